// SPDX-License-Identifier: Apache-2.0
/* gzip, by zlib. A file may be several of them, one after the other, as `cat` and parallel compressors make them. */
#include <stdlib.h>
#include <zlib.h>

#include "codec.h"
#include "xdpspead.h"

#define GZIP_ONLY 16 /* added to the window's bits: with a gzip header and trailer, and nothing else */

struct gzip {
	z_stream z;
	bool at_end;
};

bool xps_has_gzip(void)
{
	return true;
}

static void *gzip_open(void)
{
	struct gzip *gzip = calloc(1, sizeof(*gzip));

	if (gzip && inflateInit2(&gzip->z, MAX_WBITS + GZIP_ONLY) != Z_OK) {
		free(gzip);
		return NULL;
	}
	return gzip;
}

static uInt bounded(ptrdiff_t n)
{
	return n > (1 << 30) ? 1 << 30 : (uInt)n;
}

static enum xps_codec_result gzip_run(void *state, struct xps_codec_io *io)
{
	struct gzip *gzip = state;
	z_stream *z = &gzip->z;
	int result;

	if (gzip->at_end)
		inflateReset(z);
	gzip->at_end = false;
	z->next_in = (z_const Bytef *)io->in;
	z->avail_in = bounded(io->in_end - io->in);
	z->next_out = io->out;
	z->avail_out = bounded(io->out_end - io->out);
	result = inflate(z, Z_NO_FLUSH);
	io->in = z->next_in;
	io->out = z->next_out;
	switch (result) {
	case Z_STREAM_END:
		gzip->at_end = true;
		return XPS_CODEC_AT_END;
	case Z_OK:
	case Z_BUF_ERROR: /* nothing to do without more input or room */
		return XPS_CODEC_MORE;
	default:
		io->damage = z->msg ? z->msg : zError(result);
		return XPS_CODEC_DAMAGED;
	}
}

static void gzip_close(void *state)
{
	struct gzip *gzip = state;

	inflateEnd(&gzip->z);
	free(gzip);
}

const struct xps_codec xps_codec_gzip = {
	.name = "gzip",
	.open = gzip_open,
	.run = gzip_run,
	.close = gzip_close,
};
