// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * glibc's fopencookie(3) makes a FILE of a read function. Ours asks the codec for decompressed bytes, and reads more of
 * the file when the codec has used up what it has. A file that ends where the codec does not is cut short; one where the
 * codec ends before the file does goes on with another part of the same format.
 */
#include "decompress.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bits.h"
#include "codec.h"

#define INPUT_BYTES (256 << 10)
#define STDIO_BYTES (256 << 10)

struct xps_decompress {
	int fd;
	const struct xps_codec *codec; /* NULL: the file is not compressed */
	void *state;                   /* the codec's */
	bool at_end;                   /* the codec would not mind if the file ended here */
	bool pending;                  /* it may have more to give without more input */
	const char *damage;
	const uint8_t *next, *end; /* input not used yet */
	uint8_t input[INPUT_BYTES];
	char stdio[STDIO_BYTES];
};

struct format {
	const struct xps_codec *codec; /* NULL: we cannot */
	const char *name, *command;    /* then: what can */
	uint8_t magic[6], mask[6];     /* bits of `mask` are compared */
};

#define ALL 0xff

static const struct format formats[] = {
	{ &xps_codec_gzip, NULL, NULL, { 0x1f, 0x8b }, { ALL, ALL } },
	{ &xps_codec_zstd, NULL, NULL, { 0x28, 0xb5, 0x2f, 0xfd }, { ALL, ALL, ALL, ALL } },
	/* a frame to be skipped, which parallel compressors put first */
	{ &xps_codec_zstd, NULL, NULL, { 0x50, 0x2a, 0x4d, 0x18 }, { 0xf0, ALL, ALL, ALL } },
	{ NULL, "xz", "xz -d", { 0xfd, '7', 'z', 'X', 'Z', 0 }, { ALL, ALL, ALL, ALL, ALL, ALL } },
	{ NULL, "bzip2", "bzip2 -d", { 'B', 'Z', 'h' }, { ALL, ALL, ALL } },
	{ NULL, "LZ4", "lz4 -d", { 0x04, 0x22, 0x4d, 0x18 }, { ALL, ALL, ALL, ALL } },
};

static const struct format *recognise(const uint8_t *head)
{
	for (size_t i = 0; i < XPS_ARRAY_LEN(formats); i++) {
		bool same = true;

		for (size_t j = 0; j < sizeof(formats[i].magic); j++)
			same = same && (head[j] & formats[i].mask[j]) == formats[i].magic[j];
		if (same)
			return &formats[i];
	}
	return NULL;
}

const char *xps_decompress_damage(const struct xps_decompress *d)
{
	return d->damage;
}

/* ---------------------------------------------------------------- reading */

static ssize_t read_some(struct xps_decompress *d, void *buffer, size_t size)
{
	ssize_t n;

	do
		n = read(d->fd, buffer, size);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		d->damage = "it cannot be read from its disk";
	return n;
}

/* Returns false at the end of the file, or when it cannot be read. */
static bool refill(struct xps_decompress *d)
{
	ssize_t n = read_some(d, d->input, sizeof(d->input));

	if (n == 0 && !d->at_end)
		d->damage = "the compressed file is cut short";
	if (n <= 0)
		return false;
	d->next = d->input;
	d->end = d->input + n;
	return true;
}

/* Let the codec work until it has given something, or can give no more. */
static void decompress(struct xps_decompress *d, struct xps_codec_io *io)
{
	const uint8_t *start = io->out;

	while (io->out == start && !d->damage) {
		enum xps_codec_result result;

		if (d->next == d->end && !d->pending && !refill(d))
			return;
		io->in = d->next;
		io->in_end = d->end;
		result = d->codec->run(d->state, io);
		d->next = io->in;
		d->at_end = result == XPS_CODEC_AT_END;
		d->pending = result == XPS_CODEC_MORE && io->out == io->out_end;
		if (result == XPS_CODEC_DAMAGED)
			d->damage = io->damage;
	}
}

static ssize_t cookie_read(void *cookie, char *buffer, size_t size)
{
	struct xps_decompress *d = cookie;
	uint8_t *start = (uint8_t *)buffer;
	struct xps_codec_io io = { .out = start, .out_end = start + size };

	if (size == 0)
		return 0;
	if (!d->codec)
		return read_some(d, buffer, size);
	decompress(d, &io);
	if (io.out == start && d->damage) {
		errno = EIO;
		return -1;
	}
	return io.out - start;
}

FILE *xps_decompress_file(struct xps_decompress *d)
{
	FILE *file = fopencookie(d, "r", (cookie_io_functions_t){ .read = cookie_read });

	if (!file)
		return NULL;
	setvbuf(file, d->stdio, _IOFBF, sizeof(d->stdio));
	__fsetlocking(file, FSETLOCKING_BYCALLER); /* one thread at a time uses it */
	return file;
}

/* ---------------------------------------------------------------- opening */

static int open_regular(const char *filename, struct xps_fail *fail)
{
	int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer must not hold us up */
	struct stat status = { 0 };

	if (fd < 0)
		return xps_fail_set(fail, errno, "open capture file", "%s: %s", filename, strerror(errno));
	if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
		return fd;
	close(fd);
	if (S_ISDIR(status.st_mode))
		return xps_fail_set(fail, EISDIR, "open capture file", "%s: %s", filename, strerror(EISDIR));
	return xps_fail_set(fail, EINVAL, "open capture file",
			    "%s: not a regular file; from a pipe or device save the packets to a file first", filename);
}

static int choose_codec(struct xps_decompress *d, const char *filename, struct xps_fail *fail)
{
	uint8_t head[sizeof(formats[0].magic)] = { 0 };
	const struct format *format;

	if (pread(d->fd, head, sizeof(head), 0) < 0)
		return xps_fail_set(fail, errno, "open capture file", "%s: %s", filename, strerror(errno));
	format = recognise(head);
	if (!format)
		return 0;
	if (!format->codec)
		return xps_fail_set(fail, EINVAL, "open capture file",
				    "%s: compressed with %s, which xdpspead cannot read; decompress it first (%s)",
				    filename, format->name, format->command);
	if (format->codec->missing)
		return xps_fail_set(fail, ENOSYS, "open capture file",
				    "%s: compressed with %s, which this build of xdpspead cannot read, because %s, "
				    "then build xdpspead from source again; or decompress the file first",
				    filename, format->codec->name, format->codec->missing);
	d->state = format->codec->open();
	if (!d->state)
		return xps_fail_set(fail, ENOMEM, "open capture file", "no memory");
	d->codec = format->codec;
	return 0;
}

struct xps_decompress *xps_decompress_new(const char *filename, struct xps_fail *fail)
{
	struct xps_decompress *d = calloc(1, sizeof(*d));

	if (!d) {
		xps_fail_set(fail, ENOMEM, "open capture file", "no memory");
		return NULL;
	}
	d->fd = open_regular(filename, fail);
	if (d->fd >= 0 && choose_codec(d, filename, fail) == 0)
		return d;
	xps_decompress_free(d);
	return NULL;
}

void xps_decompress_free(struct xps_decompress *d)
{
	if (!d)
		return;
	if (d->codec)
		d->codec->close(d->state);
	if (d->fd >= 0)
		close(d->fd);
	free(d);
}
