// SPDX-License-Identifier: Apache-2.0
/*
 * Zstandard, by libzstd, which takes several frames one after the other by itself. Its own bound on memory holds: 128 MiB
 * for the window, more than any level asks for that is not called "ultra" or "long".
 */
#include <zstd.h>

#include "codec.h"
#include "xdpspead.h"

bool xps_has_zstd(void)
{
	return true;
}

static void *zstd_open(void)
{
	return ZSTD_createDStream();
}

static enum xps_codec_result zstd_run(void *state, struct xps_codec_io *io)
{
	ZSTD_inBuffer in = { .src = io->in, .size = (size_t)(io->in_end - io->in) };
	ZSTD_outBuffer out = { .dst = io->out, .size = (size_t)(io->out_end - io->out) };
	size_t result = ZSTD_decompressStream(state, &out, &in);

	io->in += in.pos;
	io->out += out.pos;
	if (ZSTD_isError(result)) {
		io->damage = ZSTD_getErrorName(result);
		return XPS_CODEC_DAMAGED;
	}
	return result == 0 ? XPS_CODEC_AT_END : XPS_CODEC_MORE;
}

static void zstd_close(void *state)
{
	ZSTD_freeDStream(state);
}

const struct xps_codec xps_codec_zstd = {
	.name = "Zstandard",
	.open = zstd_open,
	.run = zstd_run,
	.close = zstd_close,
};
