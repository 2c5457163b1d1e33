// SPDX-License-Identifier: Apache-2.0
/* Messages from workers to the user's log: what is said, how often, and that nothing is lost without a word. */
#include <errno.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "log.h"

/* The lines that are there now. */
static int take(struct xps_log *log, struct xps_log_line *lines, int n)
{
	return xps_log_take(log, lines, n, 0);
}

static void test_each_kind_has_its_text_and_numbers(void)
{
	static const struct {
		enum xps_log_kind kind;
		int level;
		uint64_t first, second, third;
		const char *text;
	} cases[] = {
		{ XPS_LOG_BAD_PACKET, XPS_LOG_INFO, XPS_STAT_BAD_MAGIC, UINT64_MAX, 0,
		  "packet rejected: not a SPEAD version 4 packet" },
		{ XPS_LOG_REFUSED_PACKET, XPS_LOG_INFO, XPS_STAT_TOO_LARGE, 1234567890123, 0,
		  "packet of heap 1234567890123 rejected: heap is larger than max_heap_size" },
		{ XPS_LOG_BEHIND, XPS_LOG_WARNING, 42, 0, 0, "heap 42" },
		{ XPS_LOG_INCOMPLETE_HEAP, XPS_LOG_WARNING, 42, 10, 20,
		  "dropped incomplete heap 42 (10/20 bytes of payload)" },
		{ XPS_LOG_STOPPED_HEAP, XPS_LOG_INFO, 42, 0, 0, "dropped heap 42 due to external stop" },
		{ XPS_LOG_RING_FULL, XPS_LOG_WARNING, 42, 0, 0, "heap 42" },
		{ XPS_LOG_POOL_EMPTY, XPS_LOG_WARNING, 4096, 0, 0, "4096 bytes" },
		{ XPS_LOG_KERNEL_DROPS, XPS_LOG_WARNING, 0, 0, 0, "the kernel dropped a packet" },
		{ XPS_LOG_READER_ERROR, XPS_LOG_WARNING, ENETDOWN, 0, 0, "Network is down" },
	};
	struct xps_log *log = xps_log_new();

	_Static_assert(sizeof(cases) / sizeof(cases[0]) == XPS_N_LOG_KINDS, "every kind is tried");
	for (int i = 0; i < XPS_N_LOG_KINDS; i++) {
		struct xps_log_line lines[2];

		xps_log(log, cases[i].kind, 1, cases[i].first, cases[i].second, cases[i].third);
		CHECK_EQ(take(log, lines, 2), 1);
		CHECK_EQ(lines[0].level, cases[i].level);
		CHECK(strstr(lines[0].text, cases[i].text));
	}
	xps_log_free(log);
}

static void test_text_is_a_line_and_cut_where_the_line_ends(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line lines[2];
	char text[400];

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	xps_log_text(log, XPS_LOG_ERROR, "100 % of it");
	xps_log_text(log, XPS_LOG_WARNING, text);
	CHECK_EQ(take(log, lines, 2), 2);
	CHECK_EQ(lines[0].level, XPS_LOG_ERROR);
	CHECK(!strcmp(lines[0].text, "100 % of it"));
	CHECK_EQ(strlen(lines[1].text), sizeof(lines[1].text) - 1);
	xps_log_free(log);
}

static void test_texts_are_not_summed_up(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line lines[64];

	for (int i = 0; i < 50; i++)
		xps_log_text(log, XPS_LOG_WARNING, "text");
	CHECK_EQ(take(log, lines, 64), 50);
	xps_log_free(log);
}

static void test_no_events_are_no_line(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line line;

	xps_log(log, XPS_LOG_BEHIND, 0, 1, 2, 3);
	CHECK_EQ(take(log, &line, 1), 0);
	xps_log_free(log);
}

static void test_lines_come_in_order_and_as_many_as_asked_for(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line lines[3];

	for (uint64_t i = 0; i < 5; i++)
		xps_log(log, XPS_LOG_POOL_EMPTY, 1, 100 + i, 0, 0);
	CHECK_EQ(take(log, lines, 3), 3);
	CHECK(strstr(lines[0].text, "100"));
	CHECK(strstr(lines[2].text, "102"));
	CHECK_EQ(take(log, lines, 3), 2);
	CHECK(strstr(lines[0].text, "103"));
	CHECK(strstr(lines[1].text, "104"));
	xps_log_free(log);
}

/*
 * How many events of the kind `word` belongs to the lines stand for: one each, or as many as a summary says.
 * The summary has the number first.
 */
static uint64_t events_in(const struct xps_log_line *lines, int n, const char *word)
{
	uint64_t events = 0;

	for (int i = 0; i < n; i++) {
		unsigned long long more;

		if (!strstr(lines[i].text, word))
			continue;
		events += sscanf(lines[i].text, "%llu more", &more) == 1 ? more : 1;
	}
	return events;
}

static void test_storm_becomes_few_lines_and_a_sum(void)
{
	enum { N = 100000 };
	struct xps_log *log = xps_log_new();
	static struct xps_log_line lines[1024];
	const int64_t begin = now_ms();
	int64_t seconds;
	int n;

	for (int i = 0; i < N; i++)
		xps_log(log, XPS_LOG_BEHIND, 1, 42, 0, 0);
	seconds = (now_ms() - begin) / 1000 + 2; /* begun */
	xps_log_close(log);
	n = take(log, lines, 1024);
	CHECK(n > 0);
	CHECK(n <= 11 * seconds); /* ten and a sum for each */
	CHECK_EQ(events_in(lines, n, "out of order"), N);
	xps_log_free(log);
}

static void test_one_kind_does_not_silence_another(void)
{
	struct xps_log *log = xps_log_new();
	static struct xps_log_line lines[64];
	int n;

	for (int i = 0; i < 1000; i++)
		xps_log(log, XPS_LOG_BEHIND, 1, 42, 0, 0);
	xps_log(log, XPS_LOG_READER_ERROR, 1, ENETDOWN, 0, 0);
	n = take(log, lines, 64);
	CHECK_EQ(events_in(lines, n, "Network is down"), 1);
	xps_log_free(log);
}

static void test_events_counted_together_are_all_in_the_sum(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line lines[64];

	xps_log(log, XPS_LOG_BEHIND, 1000, 42, 0, 0);
	CHECK_EQ(take(log, lines, 64), 1); /* the sum comes when the second is over */
	xps_log_close(log);
	CHECK_EQ(take(log, lines, 64), 1);
	CHECK(strstr(lines[0].text, "999 more duplicate or out of order packets"));
	xps_log_free(log);
}

static void test_sum_reaches_a_taker_that_waits_when_the_second_is_over(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line lines[64];

	xps_log(log, XPS_LOG_BEHIND, 1000, 42, 0, 0);
	CHECK_EQ(take(log, lines, 64), 1);
	/* Nothing else happens: only the time that goes by can wake it. */
	CHECK_EQ(xps_log_take(log, lines, 64, DEADLINE_MS), 1);
	CHECK(strstr(lines[0].text, "999 more"));
	xps_log_free(log);
}

static void test_taker_waits_as_long_as_it_was_told(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line line;
	int64_t begin = now_ms();

	CHECK_EQ(xps_log_take(log, &line, 1, 50), 0);
	CHECK(now_ms() - begin >= 50);
	xps_log_free(log);
}

struct taker {
	struct xps_log *log;
	pid_t thread; /* atomic */
};

static void *take_one(void *argument)
{
	struct taker *taker = argument;
	struct xps_log_line line;

	__atomic_store_n(&taker->thread, gettid(), __ATOMIC_RELEASE);
	return (void *)(intptr_t)xps_log_take(taker->log, &line, 1, DEADLINE_MS);
}

/* A thread that waits for a message. */
static pthread_t start_taker(struct taker *taker)
{
	pthread_t thread = start(take_one, taker);

	AWAIT(__atomic_load_n(&taker->thread, __ATOMIC_ACQUIRE));
	await_asleep(taker->thread);
	return thread;
}

static void test_message_wakes_a_taker(void)
{
	struct xps_log *log = xps_log_new();
	struct taker taker = { .log = log };
	pthread_t thread = start_taker(&taker);

	xps_log(log, XPS_LOG_BEHIND, 1, 42, 0, 0);
	CHECK_EQ((intptr_t)join(thread), 1);
	xps_log_free(log);
}

static void test_close_wakes_a_taker_for_good(void)
{
	struct xps_log *log = xps_log_new();
	struct taker taker = { .log = log };
	pthread_t thread = start_taker(&taker);

	xps_log_close(log);
	CHECK_EQ((intptr_t)join(thread), -EPIPE);
	CHECK_EQ((intptr_t)take_one(&taker), -EPIPE);
	xps_log_free(log);
}

static void test_messages_before_the_close_can_be_taken_and_later_ones_are_discarded(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_log_line line;

	xps_log(log, XPS_LOG_BEHIND, 1, 42, 0, 0);
	xps_log_close(log);
	xps_log(log, XPS_LOG_BEHIND, 1, 43, 0, 0);
	CHECK_EQ(take(log, &line, 1), 1);
	CHECK(strstr(line.text, "42"));
	CHECK_EQ(take(log, &line, 1), -EPIPE);
	xps_log_free(log);
}

static void test_log_lives_as_long_as_its_last_reference(void)
{
	struct xps_log *log = xps_log_new();

	CHECK(xps_log_ref(log) == log);
	xps_log_free(log);
	xps_log(log, XPS_LOG_BEHIND, 1, 42, 0, 0);
	xps_log_free(log);
	xps_log_free(NULL);
}

enum { TALKERS = 3, EACH = 20000 };

static void *talk(void *log)
{
	for (uint64_t i = 0; i < EACH; i++)
		xps_log(log, XPS_LOG_BEHIND, 1 + i % 3, i, 0, 0);
	return NULL;
}

static void *listen_until_closed(void *log)
{
	uint64_t *events = calloc(1, sizeof(*events));
	struct xps_log_line lines[16];
	int n;

	while ((n = xps_log_take(log, lines, 16, DEADLINE_MS)) > 0)
		*events += events_in(lines, n, "out of order");
	CHECK_EQ(n, -EPIPE);
	return events;
}

static void test_no_event_of_several_threads_is_lost(void)
{
	struct xps_log *log = xps_log_new();
	pthread_t listener = start(listen_until_closed, log);
	uint64_t *events, expected = 0;

	run_together(TALKERS, talk, log);
	for (uint64_t i = 0; i < EACH; i++)
		expected += TALKERS * (1 + i % 3);
	xps_log_close(log);
	events = join(listener);
	CHECK_EQ(*events, expected);
	free(events);
	xps_log_free(log);
}

int main(void)
{
	test_each_kind_has_its_text_and_numbers();
	test_text_is_a_line_and_cut_where_the_line_ends();
	test_texts_are_not_summed_up();
	test_no_events_are_no_line();
	test_lines_come_in_order_and_as_many_as_asked_for();
	test_storm_becomes_few_lines_and_a_sum();
	test_one_kind_does_not_silence_another();
	test_events_counted_together_are_all_in_the_sum();
	test_sum_reaches_a_taker_that_waits_when_the_second_is_over();
	test_taker_waits_as_long_as_it_was_told();
	test_message_wakes_a_taker();
	test_close_wakes_a_taker_for_good();
	test_messages_before_the_close_can_be_taken_and_later_ones_are_discarded();
	test_log_lives_as_long_as_its_last_reference();
	test_no_event_of_several_threads_is_lost();
	return 0;
}
