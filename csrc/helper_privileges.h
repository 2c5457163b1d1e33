/* SPDX-License-Identifier: Apache-2.0 */
/* helper_privileges - what xdpspead-helper is allowed to do: no less than it needs, and no more. */
#pragma once

#include "fail.h"

/*
 * Give up every capability but CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK, for good, and raise the limits of
 * locked memory and open files as far as they go. -EPERM if one of the first three is missing.
 */
int xps_helper_limit_privileges(struct xps_fail *fail);
