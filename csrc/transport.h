/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transport - what a source of packets has to know: a table of functions it provides, and the few calls by which it
 * hands packets to its stream.
 *
 * How it works
 *
 * A reader is one source feeding one stream. xps_reader_attach() gives it to the stream, whose worker thread then calls
 * ops->poll whenever one of the reader's watches is ready, or when it asked to be called again. In poll the reader
 * takes what the source has, makes views of it, and pushes them:
 *
 *     xps_batch_begin(reader);
 *     n = xps_batch_push(reader, views, n_views);    // as often as the batch needs
 *     xps_batch_end(reader);
 *
 * Heaps that became complete go to the ring when there are several, at the end of the batch, and when poll returns.
 *
 * xps_batch_push() may take fewer views than it was given, because the ring of finished heaps is full. The reader then
 * keeps the rest (views and the bytes under them), does not end the batch, and returns XPS_POLL_BLOCKED; when the user
 * has made room the stream calls poll again, and the reader goes on where it was. Nothing waits inside a worker, so
 * that a stream nobody reads costs the others nothing.
 *
 * When packets come faster than the worker can be woken for each, it stops waiting for descriptors and looks after the
 * stream's nap_ns instead (see lane.c). A transport knows nothing of that.
 *
 * Threads: open and attach are called by the user's thread; poll and close by the reader's worker only (or, once the
 * workers are gone, by the thread that stops the stream), so a reader needs no lock of its own. add_stats is called by
 * any thread, under the stream's lock, but never at the same time as close, except by xps_reader_settle().
 */
#pragma once

#include "fail.h"
#include "pool.h"
#include "view.h"

struct xps_lane;
struct xps_queue_table;
struct xps_reader;
struct xps_stream;

enum xps_poll {
	XPS_POLL_WAIT,    /* drained: call again when a watch is ready */
	XPS_POLL_AGAIN,   /* more to do: call again after the others had their turn */
	XPS_POLL_LATER,   /* more to do, but not now for want of something: call again in a while */
	XPS_POLL_BLOCKED, /* xps_batch_push() took less than it was given: call again when there is room */
	XPS_POLL_END,     /* the source is at its end: flush and stop the stream */
};

struct xps_reader_ops {
	const char *name; /* "udp" */
	bool lossy;       /* packets are lost while the stream is blocked */
	enum xps_poll (*poll)(struct xps_reader *reader);
	/* Release everything, the reader included. Its watches have been removed from the loop. */
	void (*close)(struct xps_reader *reader);
	/*
	 * Bring the reader's queue table up to date, and add what else only the source can tell to stats[XPS_N_STATS].
	 * May be NULL.
	 */
	void (*add_stats)(struct xps_reader *reader, uint64_t *stats);
	/*
	 * Called instead of poll while the stream is blocked and a watch is ready: throw away what would starve others.
	 * NULL: the watches are not looked at while the stream is blocked.
	 */
	void (*poll_blocked)(struct xps_reader *reader);
	/*
	 * For a source that may go away, or change: see what has become of it. Called by the worker when reader->news is
	 * readable, and each second besides, whatever the stream is doing; then the reader is called as ever. May be NULL.
	 */
	void (*look)(struct xps_reader *reader);
	/* poll comes next, and another reader has its turn meanwhile: fetch what it will need into the cache. May be NULL. */
	void (*soon)(const struct xps_reader *reader);
};

/* One descriptor that a reader waits for. The transport sets watch.fd, the stream all the rest. */
struct xps_reader_watch {
	struct xps_watch watch;
	struct xps_reader *reader;
};

struct xps_reader {
	const struct xps_reader_ops *ops;
	struct xps_reader_watch *watches; /* may be none: poll is called at once, and after each block */
	uint32_t n_watches;
	struct xps_watch news;          /* with ops->look the transport sets news.fd, which may be -1 */
	struct xps_queue_table *queues; /* may be NULL; see stats.h */
	/* Packets that the source has room for while nobody looks, so that naps are not too long; 0: it loses none. */
	uint32_t room;

	/* the stream's */
	struct xps_lane *lane;
	struct xps_reader *next;
	struct xps_watch again; /* no descriptor: how the reader gets called without one */
	bool blocked;           /* poll returned XPS_POLL_BLOCKED */
	bool progress;          /* a batch has begun since poll was called, or since it last found nothing more */
	bool going_on;          /* it has not come so far yet */
	bool napping;           /* called by time, its watches are muted */
	uint32_t naps_in_vain;  /* which brought nothing, since the last that did */
	uint64_t safe_nap_ns;   /* a longer one could lose packets, if they go on to come as they did */
	int64_t last_wait_ns;   /* when it last found nothing more to do after some work */
	uint64_t since_wait;    /* packets that it has brought since then */
	uint64_t batch_packets; /* decoded packets in the open batch */
};

/* Give an opened reader to the stream. On error the caller still owns it. 0, or -EPIPE if the stream has stopped. */
int xps_reader_attach(struct xps_stream *stream, struct xps_reader *reader);

/*
 * For a transport whose source comes in parts of which no heap needs two, such as the queues of an interface: have the
 * stream look after `n` lanes, each a worker with a window of its own, numbered from 0, and give each of them a reader of
 * its own. Lanes once made stay, and serve all readers that ask for them. 0, -EPIPE, -EINVAL if they are too many, -ENOMEM.
 */
int xps_stream_want_lanes(struct xps_stream *stream, uint32_t n);
int xps_reader_attach_to(struct xps_stream *stream, uint32_t lane, struct xps_reader *reader);
/* Close the reader, if the stream has not done so already. Its memory must still be its own. */
void xps_reader_detach(struct xps_stream *stream, uint32_t lane, struct xps_reader *reader);

/* From poll only. Wait for `fd` from now on; the descriptor that the watch has is the reader's to close. 0 or -errno. */
int xps_reader_watch_instead(struct xps_reader_watch *watch, int fd);

/*
 * From poll, which then returns XPS_POLL_END: the source has come to an end that its user did not want, and shall be told
 * of. The first one to say so in a stream that has not ended is heard.
 */
void xps_reader_fail(struct xps_reader *reader, const struct xps_fail *why);

/* From close only: have add_stats() called once more. */
void xps_reader_settle(struct xps_reader *reader);

/* From poll only. */
void xps_batch_begin(struct xps_reader *reader);
/* Takes the first so many of `n` views; those after a stop item count as taken. */
uint32_t xps_batch_push(struct xps_reader *reader, const struct xps_view *views, uint32_t n);
void xps_batch_end(struct xps_reader *reader);
/* True once the stream has come to its end: nothing more is wanted, return XPS_POLL_END. */
bool xps_reader_ended(const struct xps_reader *reader);
/* Count something that the reader itself saw happen to `n` packets; `stat` of enum xps_stat. */
void xps_reader_count(struct xps_reader *reader, int stat, uint64_t n);
/* Likewise, for a failure that belongs into the log. */
void xps_reader_log_error(struct xps_reader *reader, int err);
/* Tell the log that the kernel dropped `n` packets because the socket's buffer was full. */
void xps_reader_log_drops(struct xps_reader *reader, uint64_t n);
/* Put a sentence of about 250 bytes at most into the log; for what seldom happens. Level: enum xps_log_level. */
void xps_reader_tell(struct xps_reader *reader, int level, const char *text);
