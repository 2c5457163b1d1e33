// SPDX-License-Identifier: Apache-2.0
/* All ways to copy a payload give the same bytes, and touch no others. */
#include "check.h"
#include "copy.h"

/* `ahead`: where something lies that will be needed soon, or so it seems. */
static void check_copy(size_t to_offset, size_t from_offset, size_t n, int mode, const uint8_t *ahead)
{
	enum { ROOM = 64 };
	uint8_t *from = malloc(from_offset + n + 1);
	uint8_t *to = aligned_alloc(XPS_CACHE_LINE, xps_round_up(to_offset + n + ROOM, XPS_CACHE_LINE));

	for (size_t i = 0; i < n; i++)
		from[from_offset + i] = (uint8_t)(i * 7 + 1);
	memset(to, 0, to_offset + n + ROOM);
	xps_copy_ahead(to + to_offset, from + from_offset, n, mode, ahead);
	xps_copy_fence();
	for (size_t i = 0; i < to_offset; i++)
		CHECK_EQ(to[i], 0);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(to[to_offset + i], (uint8_t)(i * 7 + 1));
	for (size_t i = to_offset + n; i < to_offset + n + ROOM; i++)
		CHECK_EQ(to[i], 0);
	free(from);
	free(to);
}

static void check_all(int mode, const uint8_t *ahead)
{
	for (size_t offset = 0; offset < 65; offset++) {
		for (size_t n = 0; n < 140; n++)
			check_copy(offset, 0, n, mode, ahead);
		for (size_t n = 500; n < 3000; n += 131)
			check_copy(offset, offset % 7, n, mode, ahead);
		check_copy(0, offset, 129, mode, ahead);
		check_copy(0, offset, 1024, mode, ahead);
	}
}

static void test_copy_is_exact_for_every_alignment_and_length(void)
{
	uint8_t *packet = calloc(1, 4096);

	for (int mode = XPS_MEMCPY_STD; mode <= XPS_MEMCPY_NONTEMPORAL; mode++) {
		check_all(mode, NULL);
		check_all(mode, packet);
		check_all(mode, (const uint8_t *)16); /* nothing is there: a wrong guess costs nothing */
	}
	free(packet);
}

int main(void)
{
	test_copy_is_exact_for_every_alignment_and_length();
	return 0;
}
