// SPDX-License-Identifier: Apache-2.0
#include "fail.h"

#include <stdarg.h>
#include <stdio.h>

int xps_fail_set(struct xps_fail *fail, int err, const char *step, const char *format, ...)
{
	va_list args;

	fail->err = err;
	snprintf(fail->step, sizeof(fail->step), "%s", step);
	va_start(args, format);
	vsnprintf(fail->text, sizeof(fail->text), format, args);
	va_end(args);
	return -err;
}
