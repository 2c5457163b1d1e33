// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Groups of heaps wait in a ring, where their tickets are their places. Whoever sends is the driver: a thread that waits
 * for a group, or the worker. The driver alone touches the groups from `staging` on, the stage and the writer; the role
 * is handed on under the lock, so that what one driver wrote is seen by the next.
 *
 * The driver fills the stage with packets of one or several groups, asks the limiter how many may go, and has them
 * written. What the writer does not take stays for the next time; the stage is filled again when it is empty. A group is
 * done when its last packet has been written or given up, so groups are done in order.
 *
 * A waiting thread drives until its group is done, then leaves the rest to another that waits or to the worker. One that
 * posts a small group makes one step, in which most such groups are done; the rest is for the worker, too. The worker drives until there is nothing left, and a thread that begins to wait in the meantime lets it go on.
 *
 * Then its place in the ring is free, and its result waits to be taken, in memory that it was given when it was posted.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "bits.h"
#include "limiter.h"
#include "pool.h"
#include "process.h"
#include "send_group.h"
#include "writer.h"

/* A paced sender sends what falls due in this time at once, unless that is more than half a burst: */
#define PACE_NS 250000
/* A pause of the user that is as short as this does not lower the rate, */
#define PAUSE_NS 1000000
/* as long as these pauses are not more than this altogether: */
#define CATCH_UP_NS 10000000
/* Shorter waits than this are not worth going to sleep. */
#define SPIN_NS 5000
/* The stage is smaller if its packets would take more bytes than this. */
#define MAX_STAGE (64 << 20)
/* When to ask a writer again that has no room and no descriptor to tell when it will have. */
#define RETRY_NS 50000
/* Turns of the worker before the others on its loop have theirs. */
#define TURNS 8
/* Heaps with so many bytes of payload are sent by whoever posts them, if that can be at once. */
#define SMALL 65536
/* How long a waiting thread does not look at its deadline or for a sender that is being stopped. */
#define SLICE_MS 100

#define NS_PER_S INT64_C(1000000000)
#define NS_PER_MS 1000000

enum driver { NOBODY, CALLER, WORKER };

enum state {
	STATE_BUSY,    /* go on */
	STATE_IDLE,    /* nothing to send */
	STATE_BLOCKED, /* the writer has no room */
	STATE_EARLY,   /* not before wake_ns */
};

/* What became of a group, for whoever asks. */
struct outcome {
	struct outcome *next;
	struct xps_send_result result;
};

struct slot {
	struct xps_send_group group;
	struct outcome *outcome; /* NULL: nobody asks */
	bool awaited;            /* it is in the list of those who wait, and not to be taken */
};

struct xps_sender {
	uint32_t process;
	struct xps_pool *pool;
	struct xps_loop *loop;
	struct xps_writer *writer;
	struct xps_sender_config config;
	double cost_ns; /* of a byte */
	int fd;         /* eventfd, for those who take results */

	/* the driver's */
	int64_t staging; /* ticket of the group whose packets are staged next */
	struct xps_limiter limiter;
	int64_t left_ns;                   /* when somebody drove last */
	bool limited;                      /* a staged packet has a cost */
	uint32_t batch;                    /* packets for the stage */
	uint32_t first, granted, n_staged; /* in the stage: next to be written, next to be granted, end */
	struct xps_write stage[XPS_MAX_WRITE];
	struct owner {
		int64_t ticket;
		struct xps_sending *heap;
	} owners[XPS_MAX_WRITE];
	uint8_t *bytes;
	struct iovec *slices;
	int64_t wake_ns;

	/* the worker's */
	struct xps_loop_user user;
	struct xps_task start;
	struct xps_watch turn;     /* no descriptor: called again, or by time */
	struct xps_watch writable; /* muted unless the worker is blocked */

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t changed;
	enum driver driver;
	uint32_t n_waiting; /* threads in xps_sender_wait() that do not drive */
	bool ended;         /* so has the writer */
	bool resumed;       /* a group came into the empty queue since somebody began to drive */
	bool stopping;      /* atomic; the driver looks at it without the lock */
	uint64_t next_cnt, cnt_step;
	struct slot *slots;
	uint64_t n_heaps;                       /* in the slots */
	int64_t last_ticket;                    /* given out */
	int64_t done;                           /* groups up to here are done */
	struct outcome *awaited;                /* of groups that somebody waits for, done or not: they are few */
	struct outcome *results, **results_end; /* of those that are done, to be taken */
	bool signalled, fd_wanted;
	uint64_t stats[XPS_N_SEND_STATS];
};

static const char *const stat_names[XPS_N_SEND_STATS] = {
	[XPS_SEND_STAT_HEAPS] = "heaps",
	[XPS_SEND_STAT_FAILED_HEAPS] = "failed_heaps",
	[XPS_SEND_STAT_PACKETS] = "packets",
	[XPS_SEND_STAT_FAILED_PACKETS] = "failed_packets",
	[XPS_SEND_STAT_BYTES] = "bytes",
	[XPS_SEND_STAT_BATCHES] = "batches",
	[XPS_SEND_STAT_BLOCKED] = "blocked",
	[XPS_SEND_STAT_XDP_COMPLETED] = "xdp_completed",
	[XPS_SEND_STAT_XDP_INVALID] = "xdp_invalid",
	[XPS_SEND_STAT_XDP_DROPPED] = "xdp_dropped",
};

const char *xps_send_stat_name(int stat)
{
	return stat >= 0 && stat < XPS_N_SEND_STATS ? stat_names[stat] : NULL;
}

static struct slot *slot_of(struct xps_sender *s, int64_t ticket)
{
	return &s->slots[(uint64_t)ticket % s->config.max_heaps];
}

/* ---------------------------------------------------------------- results */

/* Lock held. */
static void raise_fd(struct xps_sender *s)
{
	if (s->fd_wanted && !s->signalled)
		eventfd_write(s->fd, 1);
	s->signalled |= s->fd_wanted;
}

/* Lock held. */
static void lower_fd(struct xps_sender *s)
{
	eventfd_t value;

	if (s->signalled)
		eventfd_read(s->fd, &value);
	s->signalled = false;
}

/* Lock held. The group that comes after those done is done too. */
static void group_done(struct xps_sender *s)
{
	struct slot *slot = slot_of(s, ++s->done);
	struct outcome *outcome = slot->outcome;

	s->stats[XPS_SEND_STAT_HEAPS] += slot->group.n - slot->group.n_failed;
	s->stats[XPS_SEND_STAT_FAILED_HEAPS] += slot->group.n_failed;
	s->n_heaps -= slot->group.n;
	if (outcome) {
		outcome->result.done = true;
		outcome->result.bytes = slot->group.bytes;
		outcome->result.error = slot->group.error;
	}
	if (outcome && !slot->awaited) {
		*s->results_end = outcome;
		s->results_end = &outcome->next;
		raise_fd(s);
	}
	xps_send_group_fini(&slot->group);
}

int xps_sender_take(struct xps_sender *s, struct xps_send_result *results, int n)
{
	int taken = 0;

	if (!xps_process_is(s->process))
		return -ECHILD;
	pthread_mutex_lock(&s->lock);
	while (taken < n && s->results) {
		struct outcome *outcome = s->results;

		s->results = outcome->next;
		results[taken++] = outcome->result;
		free(outcome);
	}
	if (!s->results) {
		s->results_end = &s->results;
		lower_fd(s);
	}
	pthread_mutex_unlock(&s->lock);
	return taken;
}

/* Lock held. Where the outcome of a group that somebody waits for hangs; that is NULL if there is none. */
static struct outcome **find_awaited(struct xps_sender *s, int64_t ticket)
{
	struct outcome **link = &s->awaited;

	while (*link && (*link)->result.ticket != ticket)
		link = &(*link)->next;
	return link;
}

/* Lock held. Take the outcome out of the list, and free it. */
static void unlink_awaited(struct outcome **link)
{
	struct outcome *outcome = *link;

	*link = outcome->next;
	free(outcome);
}

void xps_sender_forget(struct xps_sender *s, int64_t ticket)
{
	struct outcome **link;

	if (!xps_process_is(s->process))
		return;
	pthread_mutex_lock(&s->lock);
	link = find_awaited(s, ticket);
	if (*link) {
		if (ticket > s->done)
			slot_of(s, ticket)->outcome = NULL;
		unlink_awaited(link);
	}
	pthread_mutex_unlock(&s->lock);
}

int64_t xps_sender_done_ticket(struct xps_sender *s)
{
	int64_t done;

	if (!xps_process_is(s->process))
		return 0;
	pthread_mutex_lock(&s->lock);
	done = s->done;
	pthread_mutex_unlock(&s->lock);
	return done;
}

int xps_sender_fd(struct xps_sender *s)
{
	if (!xps_process_is(s->process))
		return -ECHILD;
	pthread_mutex_lock(&s->lock);
	s->fd_wanted = true;
	if (s->results)
		raise_fd(s);
	pthread_mutex_unlock(&s->lock);
	return s->fd;
}

/* ---------------------------------------------------------------- the driver: packets into the stage */

static void stage_packet(struct xps_sender *s, struct xps_sending *heap, const struct xps_out_packet *packet)
{
	s->stage[s->n_staged] = (struct xps_write){ .packet = *packet, .substream = heap->substream };
	s->owners[s->n_staged] = (struct owner){ .ticket = s->staging, .heap = heap };
	s->n_staged++;
	s->limited |= heap->cost_ns > 0;
}

int64_t xps_sender_last_ticket(struct xps_sender *s)
{
	int64_t last;

	if (!xps_process_is(s->process))
		return 0;
	pthread_mutex_lock(&s->lock);
	last = s->last_ticket;
	pthread_mutex_unlock(&s->lock);
	return last;
}

/* The stage is empty: fill it, as far as there are packets. */
static void fill_stage(struct xps_sender *s)
{
	struct xps_arena arena = {
		.bytes = s->bytes,
		.n_bytes = s->batch * xps_packetise_bytes(s->config.max_packet_size),
		.slices = s->slices,
		.n_slices = s->batch * xps_packetise_slices(s->config.max_packet_size),
	};
	int64_t last = xps_sender_last_ticket(s);

	s->first = s->granted = s->n_staged = 0;
	s->limited = false;
	/* All packets of that group were in the stage: it is done, and its slot maybe another's. */
	if (s->staging <= s->done)
		s->staging = s->done + 1;
	while (s->staging <= last && s->n_staged < s->batch) {
		struct xps_out_packet packet;
		struct xps_sending *heap = xps_send_group_next(&slot_of(s, s->staging)->group, &arena, &packet);

		if (heap)
			stage_packet(s, heap, &packet);
		else
			s->staging++;
	}
}

/* ---------------------------------------------------------------- the driver: packets out of the stage */

/* How many bytes of the stage are best sent at once, from packet `i` on. */
static uint64_t worth_waiting_for(const struct xps_sender *s, uint32_t i, double cost_ns)
{
	double paced = PACE_NS / cost_ns, half = (double)s->config.burst_size / 2;
	double best = paced < half ? paced : half;
	uint64_t bytes = s->stage[i].packet.length;

	while (++i < s->n_staged && (double)(bytes + s->stage[i].packet.length) <= best)
		bytes += s->stage[i].packet.length;
	return bytes;
}

/* Whether to wait for the limiter. Not for what little falls due during a write: a call for each would take a processor. */
static bool is_early(struct xps_sender *s, int64_t now)
{
	double cost_ns = s->owners[s->granted].heap->cost_ns;

	s->wake_ns = xps_limiter_when(&s->limiter, worth_waiting_for(s, s->granted, cost_ns), cost_ns);
	return cost_ns > 0 && s->wake_ns > now;
}

/* Nothing is granted: let the limiter grant as much of the stage as may go now. Returns whether there is anything. */
static bool grant(struct xps_sender *s)
{
	int64_t now;

	if (!s->limited) {
		s->granted = s->n_staged;
		return true;
	}
	now = xps_now_ns();
	if (is_early(s, now))
		return false;
	while (s->granted < s->n_staged) {
		uint64_t length = s->stage[s->granted].packet.length;
		double cost_ns = s->owners[s->granted].heap->cost_ns;

		if (cost_ns > 0) {
			if (xps_limiter_when(&s->limiter, length, cost_ns) > now)
				break;
			xps_limiter_sent(&s->limiter, now, length, cost_ns);
		}
		s->granted++;
	}
	return true;
}

/* Lock held. Groups are done in order. */
static void note_done(struct xps_sender *s)
{
	bool any = false;

	for (; s->done < s->last_ticket && xps_send_group_done(&slot_of(s, s->done + 1)->group); any = true)
		group_done(s);
	if (any && s->n_waiting)
		pthread_cond_broadcast(&s->changed);
}

static void packets_written(struct xps_sender *s, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = s->first; i < s->first + n; i++) {
		struct xps_send_group *group = &slot_of(s, s->owners[i].ticket)->group;

		xps_send_group_sent(group, s->owners[i].heap, s->stage[i].packet.length);
		bytes += s->stage[i].packet.length;
	}
	s->first += n;
	pthread_mutex_lock(&s->lock);
	s->stats[XPS_SEND_STAT_PACKETS] += n;
	s->stats[XPS_SEND_STAT_BYTES] += bytes;
	s->stats[XPS_SEND_STAT_BATCHES]++;
	note_done(s);
	pthread_mutex_unlock(&s->lock);
}

/* The first packet cannot be sent. The others of its heap are tried all the same. */
static void packet_failed(struct xps_sender *s, int err)
{
	struct owner *owner = &s->owners[s->first++];

	xps_send_group_failed(&slot_of(s, owner->ticket)->group, owner->heap, err);
	pthread_mutex_lock(&s->lock);
	s->stats[XPS_SEND_STAT_FAILED_PACKETS]++;
	note_done(s);
	pthread_mutex_unlock(&s->lock);
}

static void count_blocked(struct xps_sender *s)
{
	pthread_mutex_lock(&s->lock);
	s->stats[XPS_SEND_STAT_BLOCKED]++;
	pthread_mutex_unlock(&s->lock);
}

/* One step of sending. */
static enum state drive(struct xps_sender *s)
{
	int written;

	if (s->first == s->n_staged) {
		fill_stage(s);
		if (!s->n_staged)
			return STATE_IDLE;
	}
	if (s->first == s->granted && !grant(s))
		return STATE_EARLY;
	written = s->writer->ops->write(s->writer, s->stage + s->first, s->granted - s->first);
	if (written > 0) {
		packets_written(s, (uint32_t)written);
		return STATE_BUSY;
	}
	if (written == -EAGAIN) {
		count_blocked(s);
		if (s->writer->fd >= 0)
			return STATE_BLOCKED;
		s->wake_ns = xps_now_ns() + RETRY_NS;
		return STATE_EARLY;
	}
	packet_failed(s, written);
	return STATE_BUSY;
}

/*
 * Somebody begins to drive. Who sends heaps one by one means the rate to hold over all of them, so time without heaps is
 * made up for if it was brief; after a longer one the stream begins anew.
 */
static void begin_to_drive(struct xps_sender *s)
{
	int64_t now = xps_now_ns();
	bool resumed;

	pthread_mutex_lock(&s->lock);
	resumed = s->resumed;
	s->resumed = false;
	pthread_mutex_unlock(&s->lock);
	if (resumed)
		xps_limiter_cap(&s->limiter, now, now - s->left_ns < PAUSE_NS ? CATCH_UP_NS : 0);
}

/* ---------------------------------------------------------------- the worker drives */

/* Lock held. */
static bool has_work(const struct xps_sender *s)
{
	return s->done < s->last_ticket;
}

/* Stop driving, unless a group was posted after we looked. */
static bool worker_leaves(struct xps_sender *s)
{
	bool leaves;

	s->left_ns = xps_now_ns();
	pthread_mutex_lock(&s->lock);
	leaves = !has_work(s);
	if (leaves)
		s->driver = NOBODY;
	else
		s->resumed = false;
	pthread_mutex_unlock(&s->lock);
	return leaves;
}

static void worker_turn(struct xps_sender *s)
{
	xps_loop_mute(s->loop, &s->writable);
	for (int i = 0; i < TURNS; i++) {
		int64_t delay;

		switch (drive(s)) {
		case STATE_BUSY:
			break;
		case STATE_IDLE:
			if (worker_leaves(s))
				return;
			break;
		case STATE_BLOCKED:
			xps_loop_unmute(s->loop, &s->writable);
			return;
		case STATE_EARLY:
			delay = s->wake_ns - xps_now_ns();
			if (delay <= SPIN_NS)
				break;
			xps_loop_after(s->loop, &s->turn, delay);
			return;
		}
	}
	xps_loop_again(s->loop, &s->turn);
}

static void turn_ready(struct xps_watch *watch)
{
	worker_turn(XPS_CONTAINER_OF(watch, struct xps_sender, turn));
}

static void writable_ready(struct xps_watch *watch)
{
	worker_turn(XPS_CONTAINER_OF(watch, struct xps_sender, writable));
}

static void start_worker(struct xps_task *task)
{
	struct xps_sender *s = XPS_CONTAINER_OF(task, struct xps_sender, start);
	bool mine;

	pthread_mutex_lock(&s->lock);
	mine = s->driver == NOBODY && !s->stopping && has_work(s);
	if (mine)
		s->driver = WORKER;
	pthread_mutex_unlock(&s->lock);
	if (!mine)
		return;
	begin_to_drive(s);
	worker_turn(s);
}

/* ---------------------------------------------------------------- a waiting thread drives */

/* Wait until `until_ns` or until a signal comes: 0 or -EINTR. */
static int sleep_until(int64_t until_ns)
{
	const struct timespec until = { .tv_sec = until_ns / NS_PER_S, .tv_nsec = until_ns % NS_PER_S };

	return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static int wait_writable(const struct xps_sender *s, int64_t until_ns)
{
	struct pollfd pollfd = { .fd = s->writer->fd, .events = POLLOUT };
	int64_t wait_ms = (until_ns - xps_now_ns()) / NS_PER_MS + 1;

	if (wait_ms <= 0)
		return 0;
	return poll(&pollfd, 1, (int)xps_min_u64((uint64_t)wait_ms, SLICE_MS)) < 0 ? -errno : 0;
}

/* One wait of a driving thread, which ends at the deadline at the latest. */
static int caller_waits(struct xps_sender *s, enum state state, int64_t deadline_ns)
{
	int64_t until = deadline_ns;

	if (state == STATE_BLOCKED)
		return wait_writable(s, until);
	if (s->wake_ns - xps_now_ns() <= SPIN_NS)
		return 0;
	if (s->wake_ns < until)
		until = s->wake_ns;
	return sleep_until(until);
}

/* Sleep, or wait for the writer, but not for long. 0, -ETIMEDOUT or -EINTR. */
static int caller_pauses(struct xps_sender *s, enum state state, int64_t deadline_ns)
{
	int64_t slice_ns = xps_now_ns() + SLICE_MS * NS_PER_MS;
	int err = caller_waits(s, state, deadline_ns < slice_ns ? deadline_ns : slice_ns);

	return err ? err : xps_now_ns() >= deadline_ns ? -ETIMEDOUT : 0;
}

/* Drive until the group is done. 0; -ETIMEDOUT; -EINTR; -ECANCELED if the sender is being stopped. */
static int caller_drives(struct xps_sender *s, int64_t ticket, int64_t deadline_ns)
{
	int slack = 0, err = 0;

	while (!err && s->done < ticket) {
		enum state state = drive(s);

		if (__atomic_load_n(&s->stopping, __ATOMIC_RELAXED))
			err = -ECANCELED;
		if (err || state == STATE_BUSY || state == STATE_IDLE)
			continue;
		if (!slack) {
			slack = prctl(PR_GET_TIMERSLACK);
			prctl(PR_SET_TIMERSLACK, 1000); /* as the worker has: 50 us would be added to every wait */
		}
		err = caller_pauses(s, state, deadline_ns);
	}
	if (slack > 0)
		prctl(PR_SET_TIMERSLACK, slack);
	s->left_ns = xps_now_ns();
	return s->done < ticket ? err : 0;
}

/* Lock held. Wait for another driver, a while. */
static int watch_driver(struct xps_sender *s, int64_t deadline_ns)
{
	int64_t slice_ns = xps_now_ns() + SLICE_MS * NS_PER_MS;
	int64_t until = deadline_ns < slice_ns ? deadline_ns : slice_ns;
	const struct timespec time = { .tv_sec = until / NS_PER_S, .tv_nsec = until % NS_PER_S };

	s->n_waiting++;
	pthread_cond_timedwait(&s->changed, &s->lock, &time);
	s->n_waiting--;
	return xps_now_ns() >= deadline_ns ? -ETIMEDOUT : 0;
}

/* Lock held. We drive no longer: somebody else has to, if there is anything left. */
static void hand_over(struct xps_sender *s)
{
	s->driver = NOBODY;
	if (s->n_waiting || s->stopping) /* those who stop wait, too */
		pthread_cond_broadcast(&s->changed);
	else if (has_work(s))
		xps_loop_post(s->loop, &s->start);
}

/* Lock held. Wait until all groups up to `ticket` are done, driving if nobody does. 0, -ETIMEDOUT or -EINTR. */
static int wait_done(struct xps_sender *s, int64_t ticket, int timeout_ms)
{
	int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : xps_now_ns() + (int64_t)timeout_ms * NS_PER_MS;
	int err = 0;

	while (s->done < ticket && !err) {
		if (s->driver != NOBODY || s->stopping) {
			err = watch_driver(s, deadline_ns);
			continue;
		}
		s->driver = CALLER;
		pthread_mutex_unlock(&s->lock);
		begin_to_drive(s);
		err = caller_drives(s, ticket, deadline_ns);
		pthread_mutex_lock(&s->lock);
		hand_over(s);
	}
	/* Whoever gives up was maybe the one who was to take over. */
	if (err && s->driver == NOBODY)
		hand_over(s);
	return s->done < ticket ? err : 0;
}

int xps_sender_wait(struct xps_sender *s, int64_t ticket, int timeout_ms, struct xps_send_result *result)
{
	struct outcome **link;
	int err = -EINVAL;

	if (!xps_process_is(s->process))
		return -ECHILD;
	pthread_mutex_lock(&s->lock);
	if (*find_awaited(s, ticket))
		err = wait_done(s, ticket, timeout_ms);
	link = find_awaited(s, ticket); /* another thread may have forgotten it meanwhile */
	if (!err && *link) {
		*result = (*link)->result;
		unlink_awaited(link);
	}
	pthread_mutex_unlock(&s->lock);
	if (err)
		return err == -EINTR || err == -EINVAL ? err : 0;
	return 1;
}

int xps_sender_flush(struct xps_sender *s, int timeout_ms)
{
	int err;

	if (!xps_process_is(s->process))
		return -ECHILD;
	pthread_mutex_lock(&s->lock);
	err = wait_done(s, s->last_ticket, timeout_ms);
	pthread_mutex_unlock(&s->lock);
	if (err)
		return err == -EINTR ? err : 0;
	return 1;
}

/* ---------------------------------------------------------------- heaps into the queue */

static int check_reference(const struct xps_sender *s, const struct xps_heap_reference *reference)
{
	if (reference->substream >= s->writer->n_substreams)
		return -ECHRNG;
	if (reference->cnt >= 0 && !xps_send_heap_cnt_fits(reference->heap, (uint64_t)reference->cnt))
		return -ERANGE;
	if (xps_send_heap_min_packet_size(reference->heap) > s->config.max_packet_size)
		return -EMSGSIZE;
	return 0;
}

/* Lock held. */
static void fill_sending(struct xps_sender *s, struct xps_sending *sending, const struct xps_heap_reference *reference)
{
	uint64_t cnt = (uint64_t)reference->cnt;

	if (reference->cnt < 0) {
		cnt = s->next_cnt;
		s->next_cnt += s->cnt_step;
	}
	xps_send_heap_ref(reference->heap);
	sending->heap = reference->heap;
	sending->substream = (uint32_t)reference->substream;
	sending->cost_ns = reference->rate < 0 ? s->cost_ns : xps_limiter_cost(reference->rate);
	xps_packetiser_start(&sending->packetiser, reference->heap, cnt, s->config.max_packet_size);
}

/* Lock held. */
static int64_t add_group(struct xps_sender *s, const struct xps_heap_reference *heaps, uint32_t n, int mode)
{
	struct slot *slot = slot_of(s, s->last_ticket + 1);
	struct outcome *outcome;
	int err;

	if (s->stopping)
		return -EPIPE;
	if (s->n_heaps + n > s->config.max_heaps)
		return -EAGAIN;
	outcome = calloc(1, sizeof(*outcome));
	if (!outcome)
		return -ENOMEM;
	err = xps_send_group_init(&slot->group, n, mode);
	if (err) {
		free(outcome);
		return err;
	}
	for (uint32_t i = 0; i < n; i++)
		fill_sending(s, &slot->group.heaps[i], &heaps[i]);
	s->resumed |= !has_work(s);
	s->n_heaps += n;
	s->last_ticket++;
	outcome->result.ticket = s->last_ticket;
	outcome->next = s->awaited;
	s->awaited = outcome;
	slot->outcome = outcome;
	slot->awaited = true;
	return s->last_ticket;
}

/* Put a group into the queue, as one that is waited for. */
static int64_t enqueue(struct xps_sender *s, const struct xps_heap_reference *heaps, uint32_t n, int mode)
{
	int64_t ticket;

	if (!xps_process_is(s->process))
		return -ECHILD;
	if (n == 0)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		int err = check_reference(s, &heaps[i]);

		if (err)
			return err;
	}
	pthread_mutex_lock(&s->lock);
	ticket = add_group(s, heaps, n, mode);
	pthread_mutex_unlock(&s->lock);
	return ticket;
}

/* Make one step right here, if nobody is sending: small heaps are sent sooner than a worker could be woken. */
static void drive_briefly(struct xps_sender *s)
{
	bool mine;

	pthread_mutex_lock(&s->lock);
	mine = s->driver == NOBODY && !s->stopping;
	if (mine)
		s->driver = CALLER;
	pthread_mutex_unlock(&s->lock);
	if (!mine)
		return;
	begin_to_drive(s);
	drive(s);
	s->left_ns = xps_now_ns();
	pthread_mutex_lock(&s->lock);
	hand_over(s);
	pthread_mutex_unlock(&s->lock);
}

static uint64_t payload_of(const struct xps_heap_reference *heaps, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < n && bytes <= SMALL; i++)
		bytes += xps_send_heap_length(heaps[i].heap);
	return bytes;
}

static void wake_worker(struct xps_sender *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->driver == NOBODY && !s->stopping)
		xps_loop_post(s->loop, &s->start);
	pthread_mutex_unlock(&s->lock);
}

/* Lock held. The result is wanted at once if it is there; otherwise it is to be taken later. */
static void settle(struct xps_sender *s, int64_t ticket, struct xps_send_result *result)
{
	struct outcome **link = find_awaited(s, ticket), *outcome = *link;

	if (outcome->result.done) {
		*result = outcome->result;
		unlink_awaited(link);
		return;
	}
	*link = outcome->next;
	outcome->next = NULL;
	slot_of(s, ticket)->awaited = false;
}

int64_t xps_sender_post(struct xps_sender *s, const struct xps_heap_reference *heaps, uint32_t n, int mode,
			struct xps_send_result *result)
{
	int64_t ticket = enqueue(s, heaps, n, mode);

	*result = (struct xps_send_result){ .ticket = ticket };
	if (ticket < 0)
		return ticket;
	if (payload_of(heaps, n) <= SMALL)
		drive_briefly(s);
	else
		wake_worker(s);
	pthread_mutex_lock(&s->lock);
	settle(s, ticket, result);
	pthread_mutex_unlock(&s->lock);
	return ticket;
}

int64_t xps_sender_send(struct xps_sender *s, const struct xps_heap_reference *heaps, uint32_t n, int mode,
			int timeout_ms, struct xps_send_result *result)
{
	int64_t ticket = enqueue(s, heaps, n, mode);

	*result = (struct xps_send_result){ .ticket = ticket };
	if (ticket > 0)
		xps_sender_wait(s, ticket, timeout_ms, result);
	return ticket;
}

void xps_sender_set_cnt_sequence(struct xps_sender *s, uint64_t next, uint64_t step)
{
	if (!xps_process_is(s->process))
		return;
	pthread_mutex_lock(&s->lock);
	s->next_cnt = next;
	s->cnt_step = step;
	pthread_mutex_unlock(&s->lock);
}

uint64_t xps_sender_n_substreams(const struct xps_sender *s)
{
	return s->writer->n_substreams;
}

struct xps_writer *xps_sender_writer(struct xps_sender *s)
{
	return s->writer;
}

void xps_sender_stats(struct xps_sender *s, uint64_t *stats)
{
	memset(stats, 0, sizeof(s->stats));
	if (!xps_process_is(s->process))
		return;
	pthread_mutex_lock(&s->lock);
	memcpy(stats, s->stats, sizeof(s->stats));
	if (s->writer->ops->add_stats)
		s->writer->ops->add_stats(s->writer, stats);
	pthread_mutex_unlock(&s->lock);
}

/* ---------------------------------------------------------------- life */

/* [loop] Be no user of the loop any more. */
static void leave_loop(struct xps_sender *s)
{
	xps_loop_remove(s->loop, &s->turn);
	xps_loop_remove(s->loop, &s->writable);
	pthread_mutex_lock(&s->lock);
	__atomic_store_n(&s->stopping, true, __ATOMIC_RELAXED);
	if (s->driver == WORKER)
		s->driver = NOBODY;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

/* Lock held, and nobody will begin to drive: wait for who does, and fail what is left. */
static void cancel_all(struct xps_sender *s)
{
	while (s->driver != NOBODY)
		pthread_cond_wait(&s->changed, &s->lock);
	while (s->done < s->last_ticket) {
		struct xps_send_group *group = &slot_of(s, s->done + 1)->group;

		if (!xps_send_group_done(group))
			xps_send_group_cancel(group, -ECANCELED);
		group_done(s);
	}
	s->first = s->granted = s->n_staged = 0;
	s->staging = s->last_ticket + 1;
	pthread_cond_broadcast(&s->changed);
}

static void loop_ended(struct xps_loop_user *user)
{
	struct xps_sender *s = XPS_CONTAINER_OF(user, struct xps_sender, user);

	leave_loop(s);
	pthread_mutex_lock(&s->lock);
	cancel_all(s);
	pthread_mutex_unlock(&s->lock);
}

struct stop_task {
	struct xps_task task;
	struct xps_sender *sender;
};

static void stop_on_this_loop(struct xps_sender *s)
{
	xps_loop_leave(s->loop, &s->user);
	leave_loop(s);
}

static void stop_on_loop(struct xps_task *task)
{
	stop_on_this_loop(XPS_CONTAINER_OF(task, struct stop_task, task)->sender);
}

void xps_sender_stop(struct xps_sender *s)
{
	struct stop_task stop = { .task.run = stop_on_loop, .sender = s };

	if (!xps_process_is(s->process))
		return;
	xps_loop_call(s->loop, &stop.task);
	pthread_mutex_lock(&s->lock);
	cancel_all(s);
	if (!s->ended && s->writer->ops->end)
		s->writer->ops->end(s->writer);
	s->ended = true;
	pthread_mutex_unlock(&s->lock);
}

static void free_outcomes(struct outcome *outcome)
{
	while (outcome) {
		struct outcome *next = outcome->next;

		free(outcome);
		outcome = next;
	}
}

/* Also of one that was made in part. */
static void free_memory(struct xps_sender *s)
{
	if (s->fd >= 0)
		close(s->fd);
	free(s->slots);
	free(s->bytes);
	free(s->slices);
	xps_pool_free(s->pool);
	free(s);
}

/* In a forked child. The heaps of groups that are not done are left alone: the parent's thread was maybe at them. */
static void forget_sender(struct xps_sender *s)
{
	s->writer->ops->forget(s->writer);
	free_memory(s);
}

void xps_sender_free(struct xps_sender *s)
{
	if (!s)
		return;
	if (!xps_process_is(s->process)) {
		forget_sender(s);
		return;
	}
	xps_sender_stop(s);
	free_outcomes(s->awaited);
	free_outcomes(s->results);
	s->writer->ops->close(s->writer);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	free_memory(s);
}

struct join_task {
	struct xps_task task;
	struct xps_sender *sender;
	int result;
};

static void join_on_loop(struct xps_task *task)
{
	struct join_task *join = XPS_CONTAINER_OF(task, struct join_task, task);
	struct xps_sender *s = join->sender;

	join->result = xps_loop_add(s->loop, &s->turn);
	if (!join->result)
		join->result = xps_loop_add(s->loop, &s->writable);
	if (!join->result)
		xps_loop_mute(s->loop, &s->writable);
	else
		stop_on_this_loop(s);
}

static int join_loop(struct xps_sender *s)
{
	struct join_task join = { .task.run = join_on_loop, .sender = s };
	int err = xps_loop_join(s->loop, &s->user);

	if (err)
		return err;
	err = xps_loop_call(s->loop, &join.task);
	return err ? err : join.result;
}

static int allocate(struct xps_sender *s)
{
	pthread_condattr_t attributes;
	uint64_t bytes = xps_packetise_bytes(s->config.max_packet_size);

	s->batch = s->writer->batch;
	while (s->batch > 1 && s->batch * bytes > MAX_STAGE)
		s->batch /= 2;
	s->slots = calloc(s->config.max_heaps, sizeof(*s->slots));
	s->bytes = malloc(s->batch * bytes);
	s->slices = malloc(s->batch * xps_packetise_slices(s->config.max_packet_size) * sizeof(*s->slices));
	if (!s->slots || !s->bytes || !s->slices)
		return -ENOMEM;
	s->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->fd < 0)
		return -errno;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	return 0;
}

static void init(struct xps_sender *s, const struct xps_sender_config *config, struct xps_writer *writer)
{
	s->process = xps_process();
	s->writer = writer;
	s->config = *config;
	s->fd = -1;
	s->cost_ns = xps_limiter_cost(config->rate);
	s->limiter.burst_ratio = config->burst_rate_ratio;
	s->limiter.burst_size = (double)config->burst_size;
	/* As if a burst had just been sent: a stream does not begin with one. */
	xps_limiter_idle(&s->limiter, xps_now_ns());
	xps_limiter_sent(&s->limiter, xps_now_ns(), config->burst_size, s->cost_ns);
	s->staging = 1;
	s->results_end = &s->results;
	s->next_cnt = s->cnt_step = 1;
	s->user.ended = loop_ended;
	s->start.run = start_worker;
	s->turn = (struct xps_watch){ .fd = -1, .ready = turn_ready };
	s->writable = (struct xps_watch){ .fd = writer->fd, .writable = true, .ready = writable_ready };
}

struct xps_sender *xps_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
				  struct xps_writer *writer, struct xps_fail *fail)
{
	struct xps_sender *s = calloc(1, sizeof(*s));
	int err = -ENOMEM;

	if (!s)
		goto close_writer;
	init(s, config, writer);
	err = allocate(s);
	if (err)
		goto free_sender;
	xps_pool_ref(pool);
	s->pool = pool;
	s->loop = xps_pool_loop(pool);
	err = join_loop(s);
	if (!err)
		return s;

free_sender:
	free_memory(s);
close_writer:
	writer->ops->close(writer);
	if (err == -EPIPE)
		xps_fail_set(fail, EPIPE, "make stream", "the thread pool has been stopped");
	else if (err == -ECHILD)
		xps_fail_set(fail, ECHILD, "make stream", "the thread pool belongs to the parent process");
	else
		xps_fail_set(fail, -err, "make stream", "%s", strerror(-err));
	return NULL;
}
