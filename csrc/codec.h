/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec - what decompress.c needs to know of a compression format: the bytes that it begins with, and a table of
 * functions over its library. Each format is one file beside its stub for builds without that library.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xps_codec_io {
	const uint8_t *in, *in_end; /* `in` moves to the first byte not used */
	uint8_t *out, *out_end;     /* `out` moves behind the last byte written */
	const char *damage;         /* why it cannot go on, static; set where run returns XPS_CODEC_DAMAGED */
};

enum xps_codec_result {
	XPS_CODEC_MORE,    /* wants more of `in`, or more room */
	XPS_CODEC_AT_END,  /* all that came is complete: the input may end here, or another part may follow */
	XPS_CODEC_DAMAGED, /* the input is not what it should be */
};

struct xps_codec {
	const char *name;    /* "gzip" */
	const char *missing; /* what to install where the build cannot do it, or NULL and the rest is there */
	void *(*open)(void); /* NULL: no memory */
	enum xps_codec_result (*run)(void *state, struct xps_codec_io *io);
	void (*close)(void *state);
};

extern const struct xps_codec xps_codec_gzip;
extern const struct xps_codec xps_codec_zstd;
