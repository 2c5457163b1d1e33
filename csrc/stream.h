/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream - one logical stream, as its users and its transports see it.
 *
 * The interface for users is in xdpspead.h, the one for transports in transport.h. Nothing else is exported.
 */
#pragma once

#include "transport.h"
#include "xdpspead.h"
