/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fail - how a call that goes wrong tells its caller what, where and how to mend it.
 *
 * Every function that can fail returns 0 or a positive result, or a negative errno. Where one number is too little
 * (setting up AF_XDP has fifteen steps, each with its own remedy), the function also takes a `struct xps_fail *` and
 * fills it through xps_fail_set() before it returns the same negative errno. Python turns it into one exception.
 * Not for bad packets: those are counted, see stats.h.
 */
#pragma once

#include "xdpspead.h"

#define XPS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/*
 * Fill `fail` and return -err. `err` is a positive errno, `step` a short name of what was being done ("bind"), the
 * text a whole sentence that says why and how to mend it. Text that does not fit is cut.
 */
int xps_fail_set(struct xps_fail *fail, int err, const char *step, const char *format, ...) XPS_PRINTF(4, 5);
