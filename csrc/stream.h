/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream - one logical stream: its readers, its window, its ring, its statistics, and how it begins and ends.
 *
 * The interface for users is in xdpspead.h, the one for transports in transport.h. Nothing else is exported.
 */
#pragma once

#include "transport.h"
#include "xdpspead.h"
