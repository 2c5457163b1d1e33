/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decompress - a file to read from, whether it is compressed or not.
 *
 * The format is told by the first bytes, not by the name. What is read is decompressed as it is asked for, in bounded
 * memory. It knows nothing of what is in the file.
 */
#pragma once

#include <stdio.h>

#include "fail.h"

struct xps_decompress;

/* Open a regular file, with a large buffer. NULL on failure. */
struct xps_decompress *xps_decompress_new(const char *filename, struct xps_fail *fail);
/* The file from its beginning. To be asked for once; the caller closes it, before the other is freed. */
FILE *xps_decompress_file(struct xps_decompress *decompress);
/* Why reading has failed, a text; NULL if it has not. */
const char *xps_decompress_damage(const struct xps_decompress *decompress);
void xps_decompress_free(struct xps_decompress *decompress);
