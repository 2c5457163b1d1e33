/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdpspead - receive and send SPEAD streams: the public C interface.
 *
 * This header is three things at once: the C API, its manual, and the declarations that cffi reads to make the Python
 * binding. For the last reason it holds declarations only; the two includes below are dropped when cffi reads it.
 *
 * In reading order: errors and features, log, memory, threads; receiving: heaps, statistics, streams, readers, AF_XDP;
 * sending: heaps and packets, senders, AF_XDP.
 *
 * Rules that hold everywhere
 * - Functions return 0 or a positive result, or a negative errno. Those that take a `struct xps_fail *` also fill it.
 * - `xps_x_new` gives one reference, `xps_x_free` gives it back. Objects that need each other hold references of their
 *   own, so the user's may be given back in any order.
 * - Unless it says otherwise a function may be called from any thread, and never calls back into the user's code.
 * - Objects belong to the process that made them. In a forked child only payloads, heaps and allocators can be used;
 *   pools, queues and streams refuse with -ECHILD or do nothing, and all can be freed.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---------------------------------------------------------------- errors and features */

struct xps_fail {
	int err;         /* positive errno */
	char step[32];   /* what was being done, a word or two: "bind" */
	char text[1024]; /* what went wrong and how to mend it, a sentence or two */
};

/* Whether this build can receive through AF_XDP (clang and libbpf were there when it was built). */
bool xps_has_xdp(void);
/* Whether this build can read capture files (libpcap was there when it was built), */
bool xps_has_pcap(void);
/* those that gzip compressed (zlib), */
bool xps_has_gzip(void);
/* and those that Zstandard did (libzstd). */
bool xps_has_zstd(void);
/* Load libpcap, as opening the first capture file does. Fails with ENOSYS if it is not there. */
int xps_load_pcap(struct xps_fail *fail);
/* Whether libbpf, which is opened to load the BPF program, is there: 0, or ELIBACC. */
int xps_find_libbpf(struct xps_fail *fail);

/* ---------------------------------------------------------------- log */

/*
 * Messages from the core for the user's log: a bounded queue that workers put into and one user thread takes from.
 * Messages of one kind beyond the first few in a second are not queued but counted, and come as one summed line.
 */
struct xps_log;

enum xps_log_level { XPS_LOG_DEBUG = 10, XPS_LOG_INFO = 20, XPS_LOG_WARNING = 30, XPS_LOG_ERROR = 40 };

struct xps_log_line {
	int level; /* enum xps_log_level, the values of Python's logging */
	char text[252];
};

struct xps_log *xps_log_new(void);
void xps_log_free(struct xps_log *log);
/*
 * Wait up to `timeout_ms` for messages and move at most `n` into `lines`. Returns how many; 0 on time-out; -EPIPE
 * once the log is closed and empty.
 */
int xps_log_take(struct xps_log *log, struct xps_log_line *lines, int n, int timeout_ms);
/* Wake the waiting thread for good. Later messages are discarded. */
void xps_log_close(struct xps_log *log);

/* ---------------------------------------------------------------- memory */

/*
 * Where heap payloads live. A payload stays valid until the last reference to it is given back, even after the stream,
 * the pool and the allocator's owner are gone.
 */
struct xps_allocator;

struct xps_allocator *xps_allocator_new(void);
/* Straight from mmap(2): `flags` are added to MAP_PRIVATE|MAP_ANONYMOUS; `prefer_huge` tries huge pages first. */
struct xps_allocator *xps_mmap_allocator_new(int flags, bool prefer_huge);
void xps_allocator_free(struct xps_allocator *allocator);

struct xps_pool;
/*
 * A pool of equal blocks of `upper` bytes that serves sizes lower..upper, last freed first. Other sizes go to `base`.
 * Holds at most `max_free` free blocks; starts with `initial`. When fewer than `low_water` remain and `threads` is not
 * NULL, a task on it refills to `initial`.
 */
struct xps_allocator *xps_memory_pool_new(struct xps_pool *threads, uint64_t lower, uint64_t upper, uint64_t max_free,
					  uint64_t initial, uint64_t low_water, struct xps_allocator *base,
					  struct xps_log *log, struct xps_fail *fail);
void xps_memory_pool_set_warn_on_empty(struct xps_allocator *pool, bool warn);
bool xps_memory_pool_warn_on_empty(struct xps_allocator *pool);
uint64_t xps_memory_pool_n_free(struct xps_allocator *pool);

/* Give a payload's reference back: the destructor for xps_heap.payload after xps_heap_take_payload(). */
void xps_payload_free(uint8_t *payload);

/* ---------------------------------------------------------------- threads */

/* A fixed number of worker threads, each with an event loop. A stream has one of them, or more if a reader asks for it. */

/* Thread i is bound to core affinity[i % n_affinity]; n_affinity == 0 binds none. */
struct xps_pool *xps_pool_new(int n_threads, const int *affinity, size_t n_affinity, struct xps_fail *fail);
/*
 * Stop the streams that are left, as xps_stream_stop() does, then end and join the threads. Idempotent. Not for use by
 * the pool's own threads.
 */
void xps_pool_stop(struct xps_pool *pool);
void xps_pool_free(struct xps_pool *pool);
/* CPU time that the pool's threads have used so far, in nanoseconds. */
int64_t xps_pool_cpu_ns(struct xps_pool *pool);

/* ---------------------------------------------------------------- heaps */

enum xps_heap_flag {
	XPS_HEAP_CONTIGUOUS = 1, /* every byte is there: otherwise an incomplete heap without payload */
	XPS_HEAP_START = 2,      /* has a stream control item that starts the stream */
	XPS_HEAP_STOP = 4,       /* has one that stops it */
};

/* A finished heap. Its user reads the first group of fields and owns it; the rest is the core's. */
struct xps_heap {
	uint64_t cnt;      /* heap identifier */
	int64_t length;    /* bytes of payload that the sender announced, -1 if it did not */
	uint64_t received; /* bytes of payload that arrived */
	uint64_t size;     /* bytes at `payload` */
	uint8_t *payload;  /* NULL if empty or incomplete */
	uint32_t n_pointers;
	uint32_t n_ranges;
	uint8_t address_bits; /* the XX of SPEAD-64-XX */
	uint8_t flags;        /* enum xps_heap_flag */

	uint64_t *pointers; /* item pointers as they came, each once */
	uint64_t *ranges;   /* n_ranges pairs: first byte, byte after the last */
	uint64_t min_size;  /* highest byte that anything in the heap refers to */
	uint64_t capacity;  /* bytes allocated at `payload` */
	uint8_t *home; /* the payload, this one or an earlier one, that this struct lies in front of; NULL: malloc */
	uint32_t pointers_capacity;
	uint32_t ranges_capacity;
	uint32_t slot; /* where the window keeps it */
	uint32_t next; /* in the window's hash chain */
	uint32_t *set; /* hash set over pointers, once they are many */
	uint32_t set_bits;
	uint64_t inline_pointers[8];
};

struct xps_item {
	uint64_t id;
	bool immediate;
	uint64_t value;  /* of an immediate */
	uint64_t offset; /* of an addressed item, in the payload */
	uint64_t length; /* of an addressed item, bytes */
};

void xps_heap_free(struct xps_heap *heap);
/*
 * The items, at most heap->n_pointers: addressed ones by offset, then immediates by value; protocol items, empty items
 * and NULL items are left out. Returns how many were written.
 */
int xps_heap_items(const struct xps_heap *heap, struct xps_item *items);
/* A second reference to the payload, which then outlives the heap. Give it back with xps_payload_free(). */
uint8_t *xps_heap_take_payload(struct xps_heap *heap);

/* ---------------------------------------------------------------- statistics */

enum xps_stat {
	/* spead2's, in its order */
	XPS_STAT_HEAPS,
	XPS_STAT_INCOMPLETE_HEAPS_EVICTED,
	XPS_STAT_INCOMPLETE_HEAPS_FLUSHED,
	XPS_STAT_PACKETS,
	XPS_STAT_BATCHES,
	XPS_STAT_MAX_BATCH,
	XPS_STAT_SINGLE_PACKET_HEAPS,
	XPS_STAT_SEARCH_DIST,
	XPS_STAT_WORKER_BLOCKED,
	XPS_N_CORE_STATS,

	/* packets that the decoder refused */
	XPS_STAT_EMPTY_DATAGRAM = 9,
	XPS_STAT_TRUNCATED_DATAGRAM,
	XPS_STAT_BAD_MAGIC,
	XPS_STAT_BAD_FLAVOUR,
	XPS_STAT_TRUNCATED_HEADER,
	XPS_STAT_MISSING_ITEM,
	XPS_STAT_SHORT_PACKET,
	XPS_STAT_LONG_PACKET,
	XPS_STAT_OFFSET_OVERFLOW,
	/* packets that the window refused */
	XPS_STAT_GAP,
	XPS_STAT_LATE,
	XPS_STAT_BEHIND,
	XPS_STAT_DUPLICATE,
	XPS_STAT_OVERLAP,
	XPS_STAT_LENGTH_MISMATCH,
	XPS_STAT_FLAVOUR_MISMATCH,
	XPS_STAT_UNSIZED,
	XPS_STAT_TOO_LARGE,
	XPS_STAT_TOO_MANY_ITEMS,
	XPS_STAT_TOO_MANY_RANGES,
	XPS_STAT_NO_MEMORY,
	/* packets that came after the stream's end in the same batch */
	XPS_STAT_AFTER_STOP,
	/* heaps */
	XPS_STAT_HEAPS_DISCARDED,
	XPS_STAT_HEAPS_DROPPED_STOP,
	/* packets before the stream saw them */
	XPS_STAT_UDP_PACKETS,
	XPS_STAT_UDP_KERNEL_DROPS,
	XPS_STAT_TCP_SKIPPED_BYTES,
	XPS_STAT_PCAP_PACKETS,
	XPS_STAT_PCAP_FILTERED,
	XPS_STAT_PCAP_NOT_UDP,
	XPS_STAT_PCAP_FRAGMENTS,
	XPS_STAT_PCAP_BAD_LENGTH,
	XPS_STAT_PCAP_SNAPPED,
	XPS_STAT_PCAP_JOINED,
	/* those that are also told queue by queue, to the end */
	XPS_STAT_XDP_MATCHED,
	XPS_STAT_XDP_REDIRECTED,
	XPS_STAT_XDP_NO_SOCKET,
	XPS_STAT_XDP_BAD_LENGTH,
	XPS_STAT_XDP_FRAGMENTS,
	XPS_STAT_XDP_EXTENSION_HEADERS,
	XPS_STAT_XDP_OTHER_SOURCE,
	XPS_STAT_XDP_BAD_FRAME,
	XPS_STAT_XDP_UNREAD_DROPS,
	XPS_STAT_XDP_RX_DROPPED,
	XPS_STAT_XDP_RX_INVALID,
	XPS_STAT_XDP_RX_RING_FULL,
	XPS_STAT_XDP_FILL_RING_EMPTY,
	/* calls of the driver by the worker; no packets */
	XPS_STAT_XDP_BUSY_POLLS,
	XPS_N_STATS
};

enum { XPS_N_QUEUE_STATS = XPS_N_STATS - XPS_STAT_XDP_MATCHED };

/* What an AF_XDP reader has in the statistics from one receive queue. */
struct xps_queue_stats {
	char interface[16];
	uint32_t queue;
	uint32_t read; /* 1: the reader has a socket on it. 0: packets to its endpoints came there all the same */
	uint64_t values[XPS_N_QUEUE_STATS]; /* of XPS_STAT_XDP_MATCHED and what follows it */
};

/* "heaps", "xdpspead.gap"; NULL beyond the last. */
const char *xps_stat_name(int stat);
/* Whether values of two snapshots combine by maximum rather than by sum. */
bool xps_stat_is_maximum(int stat);

/* ---------------------------------------------------------------- streams */

enum xps_memcpy { XPS_MEMCPY_STD, XPS_MEMCPY_NONTEMPORAL };

struct xps_stream_config {
	uint64_t max_heaps;     /* partial heaps alive at a time in each substream, at least 1 */
	uint64_t substreams;    /* at least 1; a heap belongs to substream cnt % substreams */
	uint64_t max_heap_size; /* larger heaps are refused, bytes */
	uint64_t ring_heaps;    /* so many finished heaps wait for the user, however large they are; at least 1 */
	uint64_t ring_bytes;    /* and, if they are small, as many as together have so many bytes */
	int64_t nap_ns;         /* under load, how long packets may wait for others to be handled with, 0: not at all */
	int memcpy;             /* enum xps_memcpy */
	bool stop_on_stop_item;
	bool allow_unsized_heaps;
	bool allow_out_of_order;
	bool contiguous_only;     /* discard incomplete heaps */
	bool keep_payload_ranges; /* tell which ranges of an incomplete heap arrived */
};

struct xps_stream;

/* `allocator` and `log` are held by the stream. */
struct xps_stream *xps_stream_new(struct xps_pool *pool, const struct xps_stream_config *config,
				  struct xps_allocator *allocator, struct xps_log *log, struct xps_fail *fail);
/*
 * Stop receiving: when it returns every reader is closed and every thread that waited in xps_stream_pop() is on its
 * way out. Heaps in the ring can still be popped, those under construction are lost and counted. Idempotent.
 */
void xps_stream_stop(struct xps_stream *stream);
/* Stops the stream if nobody has, and gives it back. No other thread may be using it. */
void xps_stream_free(struct xps_stream *stream);

/*
 * Pop at most `n` finished heaps that are there, or wait up to `timeout_ms` for one (0 does not wait). Returns how
 * many; 0 on time-out; -EPIPE if the stream has stopped and the ring is empty; -EINTR if a signal came; -ECHILD in a
 * forked child.
 */
int xps_stream_pop(struct xps_stream *stream, struct xps_heap **heaps, int n, int timeout_ms);
/*
 * The same for a user who wants one heap and keeps the others for later: these take up room in the ring until somebody
 * pops again, so that no more finished heaps wait for the user, here and there, than the ring has room for. Pops at most
 * half of what it can hold, but at least one.
 */
int xps_stream_pop_ahead(struct xps_stream *stream, struct xps_heap **heaps, int n, int timeout_ms);
/* A descriptor that is readable while heaps are waiting and once the stream has stopped. Not to be read from. */
int xps_stream_fd(struct xps_stream *stream);
uint64_t xps_stream_ring_size(struct xps_stream *stream);
bool xps_stream_stopped(struct xps_stream *stream);
/*
 * Why the stream has stopped: 0 if the user wanted it, or the sender said so, or its source was read to the end. Otherwise
 * a negative errno, and `fail` says what became of the source: for whoever finds the ring empty.
 */
int xps_stream_failure(struct xps_stream *stream, struct xps_fail *fail);
/* Whether this process made the stream; false in a forked child. */
bool xps_stream_is_ours(struct xps_stream *stream);
/* A consistent snapshot, XPS_N_STATS values. */
void xps_stream_stats(struct xps_stream *stream, uint64_t *stats);
/*
 * The same, and with it what each queue of each AF_XDP reader has in it: what is told by queue is the sum over these. At
 * most `n` are written to `queues`. Returns how many there are. Those of readers that have ended stay.
 */
uint32_t xps_stream_queue_stats(struct xps_stream *stream, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n);

/*
 * Which of several streams have something for their user: so that one thread can take the heaps of many, and is woken
 * once for all that have some. The streams must live longer. Any number of threads may ask.
 */
struct xps_merge;

/* EBUSY: one of the streams is part of another merge, or twice of this. ECHILD: one of them is another process's. */
struct xps_merge *xps_merge_new(struct xps_stream *const *streams, uint32_t n, struct xps_fail *fail);
void xps_merge_free(struct xps_merge *merge);
/*
 * Wait at most timeout_ms (negative: for ever) for a stream that has heaps or has stopped, and return its index, the
 * streams in turn. Whoever is given it has to pop from that stream, once: if that leaves heaps, or gets the last ones of
 * a stream that has stopped, its index comes again. There may be nothing to pop, where others pop too. -ETIMEDOUT,
 * -EINTR; -ECHILD in a forked child.
 */
int xps_merge_next(struct xps_merge *merge, int timeout_ms);
/* Whether it would return an index at once. */
bool xps_merge_ready(struct xps_merge *merge);
/* A descriptor, of the merge's, that is readable as long as that is so. Or -errno; -ECHILD in a forked child. */
int xps_merge_fd(struct xps_merge *merge);

/* ---------------------------------------------------------------- readers */

/*
 * A reader feeds packets from one source to a stream. All of these return 0, or 0 at once without doing anything if the
 * stream has stopped already, or a negative errno.
 */

/* Back-to-back packets in memory, which must stay as it is until the stream is freed. Ends the stream. */
int xps_add_buffer_reader(struct xps_stream *stream, const uint8_t *data, uint64_t length);
/*
 * Datagrams of at most `max_size` bytes from a bound UDP socket. `fd` is duplicated. Switches UDP_GRO on while
 * it reads, and SO_RXQ_OVFL where there is no SO_MEMINFO; all other options are left alone.
 */
int xps_add_udp_reader(struct xps_stream *stream, int fd, uint64_t max_size, struct xps_fail *fail);

/*
 * Packets that follow each other in the bytes of one TCP connection, accepted from the listening socket `fd`, which is
 * duplicated; the duplicate is closed after the first connection. Sets O_NONBLOCK on it. Packets of more than `max_size`
 * bytes (less than 4 GiB) are skipped and counted. Where no packet begins, bytes are skipped, eight at a time, until one
 * does. The end of the connection, reset included, ends the stream. Memory is bounded by max_size and the longest
 * possible header, whatever the peer announces.
 */
int xps_add_tcp_reader(struct xps_stream *stream, int fd, uint64_t max_size, struct xps_fail *fail);

/* A capture file that is open. */
struct xps_capture;

/*
 * Open a capture file: pcap or pcapng, plain or compressed with gzip or Zstandard. `filter` is an expression for
 * pcap_compile(3), empty: all. Reads as far as the first packet. Fails with ENOSYS in a build without libpcap.
 */
struct xps_capture *xps_capture_open(const char *filename, const char *filter, struct xps_fail *fail);
/* Also needed for one that was given to a stream. */
void xps_capture_free(struct xps_capture *capture);
/*
 * UDP datagrams of a capture file, which can be given to one stream, once. The end of the file ends the stream; what
 * could not be used is counted and summed up in the log.
 */
int xps_add_pcap_reader(struct xps_stream *stream, struct xps_capture *capture, struct xps_fail *fail);

/*
 * Packets from this process, in order. Any number of threads may add, any number of streams may read: each gets some of
 * the packets. Nobody waits and nothing is dropped, so the queue grows while packets come faster than they are taken.
 * What no stream has taken is freed with the last reference.
 */
struct xps_inproc_queue;

struct xps_inproc_queue *xps_inproc_queue_new(struct xps_fail *fail);
/* Streams that read the queue hold references of their own. */
void xps_inproc_queue_free(struct xps_inproc_queue *queue);
/* Copy one packet into the queue. -EPIPE once it is stopped, -EMSGSIZE if longer than UINT32_MAX, -ENOMEM, -ECHILD. */
int xps_inproc_queue_add(struct xps_inproc_queue *queue, const uint8_t *packet, uint64_t length);
/* No more packets: streams that read the queue end when they have read what is in it. Idempotent. */
void xps_inproc_queue_stop(struct xps_inproc_queue *queue);
/*
 * Each packet is one batch. A stream takes a packet when it has room, and leaves the others in the queue when it ends.
 * Reading a queue twice in one stream is the same as once.
 */
int xps_add_inproc_reader(struct xps_stream *stream, struct xps_inproc_queue *queue, struct xps_fail *fail);

/* ---------------------------------------------------------------- AF_XDP */

enum xps_xdp_mode { XPS_XDP_AUTO, XPS_XDP_NATIVE, XPS_XDP_GENERIC };

/* An interface on which packets are steered into this process's AF_XDP sockets. One for all its streams. */
struct xps_xdp_port;

struct xps_xdp_port_config {
	int ifindex;
	int mode;     /* enum xps_xdp_mode */
	int n_queues; /* receive queues of the interface */
	int mtu;
	bool multi_buffer; /* wanted: the packets may be longer than a frame */
	/*
	 * The readers are other processes' (a helper's port): memory for packets is such that it can be passed on, and nobody
	 * waits until somebody else has let go of the interface or a queue.
	 */
	bool for_others;
};

struct xps_xdp_endpoint {
	uint8_t address[16]; /* IPv4 in the first four bytes; all zero: any address */
	uint8_t source[16];  /* likewise: only packets that this address sends; all zero: any */
	uint16_t port;
	uint8_t family; /* 4 or 6 */
};

struct xps_xdp_reader_config {
	const char *owner; /* how the user knows this reader, for messages about its endpoints; or NULL */
	const struct xps_xdp_endpoint *endpoints;
	uint32_t n_endpoints;
	const int *
		joined; /* sockets that have joined the endpoints' groups; duplicated, and open as long as the reader */
	uint32_t n_joined;
	const uint32_t *queues;
	uint32_t n_queues;
	uint64_t buffer_size; /* bytes of UMEM for each queue, rounded to frames; the first reader of a queue decides */
	uint32_t max_size;    /* longest UDP payload accepted, bytes */
	int zero_copy;        /* 1 demand, 0 refuse, -1 take what there is, -2 copy, but join a queue that has it */
	int max_poll;         /* looks at an empty ring before the worker sleeps */
	uint32_t n_workers;   /* threads that the queues are dealt out to in turn, 1 to n_queues, at most 64 */
	/*
	 * Packets that the worker has the driver handle in one call, where it calls the driver itself instead of sleeping
	 * until an interrupt does (busy polling); 0: it sleeps.
	 */
	int busy_poll_budget;
	/*
	 * Where to put, for each of `queues`, the id of the NAPI (what serves it in the kernel) that the worker calls, or
	 * 0; or NULL.
	 */
	uint32_t *napi_ids;
};

/* Whether the worker can call the driver itself. Before Linux 6.13 the kernel does not say until a packet has come. */
enum xps_xdp_busy_poll { XPS_XDP_SLEEPS, XPS_XDP_BUSY_POLLS, XPS_XDP_MAY_BUSY_POLL };

/* What a reader really got, read back from the kernel. */
struct xps_xdp_obtained {
	int mode;       /* XPS_XDP_NATIVE or XPS_XDP_GENERIC */
	bool zero_copy; /* on every queue */
	bool multi_buffer;
	uint32_t frame_size;
	uint64_t memory; /* bytes of UMEM and rings, all queues */
	int busy_poll;   /* enum xps_xdp_busy_poll, the best of the queues */
};

/* Load the program and attach it. The kernel detaches it when the process ends, however it ends. */
struct xps_xdp_port *xps_xdp_port_new(const struct xps_xdp_port_config *config, struct xps_fail *fail);
/*
 * The same for a process without privileges: xdpspead-helper does what takes them, and is asked through the Unix socket
 * `path`. Of the configuration only index and mode count, the helper tells the rest. When the helper dies, or takes back
 * what it gave, the streams that read here end, with an error in the log.
 */
struct xps_xdp_port *xps_xdp_port_through(const char *path, const struct xps_xdp_port_config *config,
					  struct xps_fail *fail);
void xps_xdp_port_free(struct xps_xdp_port *port);
uint32_t xps_xdp_port_program_id(struct xps_xdp_port *port);
/* XPS_XDP_NATIVE or XPS_XDP_GENERIC: how the program is attached. */
int xps_xdp_port_mode(struct xps_xdp_port *port);
/*
 * Packets that the program passed to the kernel because they were for no reader at all, since it was loaded: those that
 * it could not parse (more than two VLAN tags; headers that are cut short or contradict themselves), and all others.
 */
void xps_xdp_port_passed(struct xps_xdp_port *port, uint64_t *unparsed, uint64_t *others);
/* Whether it has a reader. Without any the program is not attached; the next reader attaches it again. */
bool xps_xdp_port_in_use(struct xps_xdp_port *port);
/*
 * In a forked child, before anything else runs there: close its copies of the sockets. As long as one is open the queue
 * is taken, its packets go there, and groups stay joined. The port is of no further use.
 */
void xps_xdp_port_forget(struct xps_xdp_port *port);
/*
 * Bind a socket to each queue and steer the endpoints to them. Of one reader endpoints may overlap; with another reader's
 * on this interface they may not (EADDRINUSE). The reader holds the port. With one worker it shares the
 * stream's window with the other readers. With more each has a window of its own, so that packets of one heap have to
 * come through one queue, and heaps of different workers come in no particular order. Workers of one number share a
 * window, whichever readers of the stream they belong to. A pool of fewer threads gives one thread to several workers.
 */
int xps_add_xdp_reader(struct xps_stream *stream, struct xps_xdp_port *port, const struct xps_xdp_reader_config *config,
		       struct xps_xdp_obtained *obtained, struct xps_fail *fail);

/* ---------------------------------------------------------------- sending: heaps and packets */

/* One item of a heap that is to be sent. All fields are equally wide, so that items can be made of an array. */
struct xps_send_item {
	uint64_t id;
	uint64_t immediate; /* 0 or 1 */
	uint64_t value;     /* of an immediate item; must fit in the address bits of the heap */
	uint64_t data;      /* of an addressed item: the address of its bytes, which are not copied */
	uint64_t length;    /* of an addressed item, bytes */
};

/*
 * What is in a heap, ready to be sent any number of times. The bytes of its items are read when packets are sent, so they
 * have to stay where they are until then; the description itself is held by whoever is still sending it.
 */
struct xps_send_heap;

/*
 * `address_bits` is a multiple of 8 from 8 to 56. With `repeat_pointers` every packet has the item pointers, and not only
 * the first ones. Fails with EINVAL for an identifier, a value or a sum of lengths that does not fit, for an immediate item
 * whose identifier is one of the packet's own (1 to 4), and for more items than a packet can repeat; ENOMEM.
 */
struct xps_send_heap *xps_send_heap_new(const struct xps_send_item *items, uint32_t n, int address_bits,
					bool repeat_pointers, struct xps_fail *fail);
void xps_send_heap_free(struct xps_send_heap *heap);

/* The packets of one heap, one after the other. */
struct xps_packet_generator;

/*
 * Fails with EINVAL if a packet of `max_packet_size` bytes has no room for its own header, one more item pointer (all of
 * them with repeat_pointers) and eight bytes of payload. Of `cnt` as many bits are used as there are address bits. Holds
 * the heap.
 */
struct xps_packet_generator *xps_packet_generator_new(struct xps_send_heap *heap, uint64_t cnt,
						      uint64_t max_packet_size, struct xps_fail *fail);
void xps_packet_generator_free(struct xps_packet_generator *generator);
/* Write the next packet to `packet`, which has room for max_packet_size bytes. Returns its length, 0 after the last. */
int64_t xps_packet_generator_next(struct xps_packet_generator *generator, uint8_t *packet);

/* ---------------------------------------------------------------- sending: senders */

/*
 * A sender has a queue of heaps and one transport. Heaps are sent in the order in which they were queued, by one thread
 * at a time: the one that waits for a heap to be sent, or, if nobody waits, a worker of the pool. So a call that waits
 * costs no change of threads.
 *
 * Rate: over time `rate` bytes of packets (SPEAD header and payload) in a second; at no time more than `burst_size`
 * bytes beyond what burst_rate_ratio * rate allows. A sender that was held up catches up at that ratio.
 */
struct xps_sender;

struct xps_sender_config {
	uint64_t max_packet_size; /* bytes, without the headers below SPEAD */
	uint64_t max_heaps;       /* in the queue at a time */
	uint64_t burst_size;      /* bytes */
	double rate;              /* bytes per second, 0: no limit */
	double burst_rate_ratio;  /* at least 1 */
};

enum xps_group_mode {
	XPS_GROUP_ROUND_ROBIN, /* a packet of each heap in turn */
	XPS_GROUP_SERIAL,      /* one heap after the other */
};

struct xps_heap_reference {
	struct xps_send_heap *heap;
	int64_t cnt;        /* heap identifier, -1: the next of the sequence */
	uint64_t substream; /* which of the sender's destinations */
	double rate;        /* bytes per second, 0: no limit, negative: the sender's */
};

struct xps_send_result {
	int64_t ticket;
	uint64_t bytes; /* of packets that were sent */
	int error;      /* 0, or negative errno of the first packet that could not be sent; the others were tried */
	bool done;      /* whether the two above are known */
};

enum xps_send_stat {
	XPS_SEND_STAT_HEAPS,          /* sent in whole */
	XPS_SEND_STAT_FAILED_HEAPS,   /* not sent, or in part */
	XPS_SEND_STAT_PACKETS,        /* that the transport took */
	XPS_SEND_STAT_FAILED_PACKETS, /* that it refused */
	XPS_SEND_STAT_BYTES,          /* in them */
	XPS_SEND_STAT_BATCHES,        /* calls of the transport that took packets */
	XPS_SEND_STAT_BLOCKED,        /* calls of the transport that found no room */
	XPS_SEND_STAT_XDP_COMPLETED,  /* packets that the completion ring gave back */
	XPS_SEND_STAT_XDP_INVALID,    /* descriptors that the kernel refused */
	XPS_SEND_STAT_XDP_DROPPED, /* packets that the kernel took and the device dropped: no carrier, its queue full */
	XPS_N_SEND_STATS
};

/* "heaps", "xdp_completed"; NULL beyond the last. */
const char *xps_send_stat_name(int stat);

/* The next heap without an identifier gets `next`, the one after it `next + step`, modulo 2**64 and its address bits. */
void xps_sender_set_cnt_sequence(struct xps_sender *sender, uint64_t next, uint64_t step);
uint64_t xps_sender_n_substreams(const struct xps_sender *sender);

/*
 * Queue a group of heaps. Returns its ticket (positive), or -EAGAIN if there is no room for it, -ECHRNG for a
 * substream that there is not, -ERANGE for an identifier that does not fit the heap's address bits, -EMSGSIZE for a heap
 * that needs larger packets, -EINVAL for an empty group, -EPIPE once the sender or its pool is stopped, -ENOMEM, -ECHILD.
 * Small heaps may have been sent when it returns; then `result` says so. Otherwise the result is kept until it is taken.
 */
int64_t xps_sender_post(struct xps_sender *sender, const struct xps_heap_reference *heaps, uint32_t n, int mode,
			struct xps_send_result *result);
/*
 * Likewise, and send until the group is done, or watch another thread doing so; at most `timeout_ms`, and until a signal
 * comes. `result` has the ticket, and all else if the group is done then; otherwise a worker goes on with it.
 */
int64_t xps_sender_send(struct xps_sender *sender, const struct xps_heap_reference *heaps, uint32_t n, int mode,
			int timeout_ms, struct xps_send_result *result);
/*
 * Wait for such a group. Returns 1 and its result; 0 on time-out; -EINTR if a signal came; -EINVAL for a ticket that is
 * not known or whose result has been taken.
 */
int xps_sender_wait(struct xps_sender *sender, int64_t ticket, int timeout_ms, struct xps_send_result *result);
/* Wait until everything that is in the queue now has been sent or has failed. 1; 0 on time-out; -EINTR. */
int xps_sender_flush(struct xps_sender *sender, int timeout_ms);
/* Take the results of posted groups that are done, in order, at most `n`. Returns how many. */
int xps_sender_take(struct xps_sender *sender, struct xps_send_result *results, int n);
/* Nobody is going to wait for this group any more. */
void xps_sender_forget(struct xps_sender *sender, int64_t ticket);
/* Every group up to this ticket is done, and nothing refers to its items any more. */
int64_t xps_sender_done_ticket(struct xps_sender *sender);
/* The last one that was given out. */
int64_t xps_sender_last_ticket(struct xps_sender *sender);
/* A descriptor that is readable while there are results to be taken. Not to be read from. */
int xps_sender_fd(struct xps_sender *sender);
/* XPS_N_SEND_STATS values. */
void xps_sender_stats(struct xps_sender *sender, uint64_t *stats);
/*
 * Send no more: groups that are not done are failed with -ECANCELED. When it returns no thread is sending, connections are
 * closed and queues of interfaces are free; what the transport had taken is still delivered, for at most a second.
 * Idempotent.
 */
void xps_sender_stop(struct xps_sender *sender);
/* Stops it and gives it back. */
void xps_sender_free(struct xps_sender *sender);

/*
 * UDP: datagrams through the socket `fd`, which is duplicated; the duplicate is used without waiting, whatever the
 * socket's mode. `addresses` has a struct sockaddr of the socket's family for each substream, each in 28 bytes. Uses UDP
 * segmentation offload unless the kernel or the route refuses, or `segmentation` is false.
 */
struct xps_sender *xps_udp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config, int fd,
				      const uint8_t *addresses, uint32_t n_addresses, bool segmentation,
				      struct xps_fail *fail);
/* TCP: the connected socket `fd`, which is duplicated. After an error nothing more can be sent. */
struct xps_sender *xps_tcp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config, int fd,
				      struct xps_fail *fail);
/* A queue of this process for each substream. They are held, and not stopped. */
struct xps_sender *xps_inproc_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
					 struct xps_inproc_queue *const *queues, uint32_t n_queues,
					 struct xps_fail *fail);
/* Packets back to back in memory. */
struct xps_sender *xps_bytes_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
					struct xps_fail *fail);
/* Of such a sender: copy at most `room` bytes to `data`. Returns how many bytes there are. */
uint64_t xps_bytes_sender_value(struct xps_sender *sender, uint8_t *data, uint64_t room);

/* ---------------------------------------------------------------- sending: AF_XDP */

/* Where datagrams of one substream go: all that stands in front of the UDP payload. */
struct xps_xdp_destination {
	uint8_t source_mac[6];
	uint8_t mac[6];             /* of the next hop, or of the multicast group */
	uint8_t source_address[16]; /* IPv4 in the first four bytes */
	uint8_t address[16];
	uint16_t source_port;
	uint16_t port;
	uint8_t family; /* 4 or 6 */
	uint8_t ttl;    /* or hop limit */
};

struct xps_xdp_sender_config {
	int ifindex;
	uint32_t queue;
	uint32_t mtu;
	const struct xps_xdp_destination *destinations; /* one for each substream */
	uint32_t n_destinations;
	uint64_t buffer_size; /* bytes of UMEM, rounded to frames */
	int zero_copy;        /* 1 demand, 0 refuse, -1 take what there is */
};

/*
 * Datagrams through an AF_XDP socket on one queue of an interface, past the kernel's routing and firewall. The payload is
 * copied once, into the UMEM. UDP checksums: none on IPv4, computed on IPv6. Packets longer than a frame take several
 * (Linux 6.6). Fails with EMSGSIZE if packets do not fit the MTU, EBUSY if the queue is taken. `obtained` is filled with
 * what the kernel gave; its mode means nothing.
 */
struct xps_sender *xps_xdp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
				      const struct xps_xdp_sender_config *xdp, struct xps_xdp_obtained *obtained,
				      struct xps_fail *fail);
/*
 * In a forked child, before anything else runs there: close its copy of the socket. As long as one is open the queue is
 * taken. The sender is of no further use, and still has to be freed.
 */
void xps_xdp_sender_disown(struct xps_sender *sender);
