// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A loop's round: run the tasks that others posted, call the watches that asked to be called again or by now, ask epoll. With
 * watches in the again-queue epoll is asked without waiting, so that nobody is starved by one busy watch.
 *
 * Tasks are the only way in from other threads. They are run even while the pool is being stopped; once the thread has
 * ended, whoever calls runs the task himself, one at a time. Before it ends, the loop's users are told.
 */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bits.h"
#include "fail.h"
#include "process.h"

#define MAX_EVENTS 64

struct xps_loop {
	uint32_t process; /* that has the thread */
	pthread_t thread;
	int epoll_fd;
	int wake_fd;

	/* the loop's thread only */
	struct epoll_event events[MAX_EVENTS];
	int n_events;
	struct xps_watch *again, **again_tail;
	struct xps_watch *running; /* taken from the again-queue in this round */
	struct xps_watch *timed;   /* waiting for their time, the next one first */
	struct xps_loop_user *users;
	struct xps_loop_notes notes;
	bool closed; /* the users have been told, and no more may join */

	pthread_mutex_t lock; /* guards all below */
	struct xps_task *tasks, **tasks_tail;
	bool stopping;
	bool ended;            /* the thread will run no more tasks */
	pthread_mutex_t alone; /* held by whoever runs a task after that; recursive */
	int64_t cpu_ns;        /* used by the thread that has ended */
};

struct xps_pool {
	uint32_t process;
	uint32_t references; /* atomic */
	uint32_t n_loops;
	uint32_t next; /* atomic */
	pthread_mutex_t stop_lock;
	bool joined; /* guarded by stop_lock */
	struct xps_loop *loops;
};

/* ---------------------------------------------------------------- watches */

static int ask_epoll(struct xps_loop *loop, struct xps_watch *watch)
{
	struct epoll_event event = { .events = watch->writable ? EPOLLOUT : EPOLLIN, .data.ptr = watch };

	return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event);
}

int xps_loop_add(struct xps_loop *loop, struct xps_watch *watch)
{
	watch->muted = watch->queued = watch->timed = false;
	watch->added = true;
	if (watch->fd >= 0 && ask_epoll(loop, watch) < 0) {
		watch->added = false;
		return -errno;
	}
	return 0;
}

static void unlink_watch(struct xps_watch **list, struct xps_watch *watch)
{
	while (*list && *list != watch)
		list = &(*list)->next;
	if (*list)
		*list = watch->next;
}

static void forget_again(struct xps_loop *loop, struct xps_watch *watch)
{
	unlink_watch(&loop->again, watch);
	unlink_watch(&loop->running, watch);
	loop->again_tail = &loop->again;
	while (*loop->again_tail)
		loop->again_tail = &(*loop->again_tail)->next;
}

static void forget_timed(struct xps_loop *loop, struct xps_watch *watch)
{
	struct xps_watch **link = &loop->timed;

	while (*link != watch)
		link = &(*link)->next_timed;
	*link = watch->next_timed;
	watch->timed = false;
}

void xps_loop_remove(struct xps_loop *loop, struct xps_watch *watch)
{
	if (!watch->added)
		return;
	watch->added = false;
	if (watch->fd >= 0 && !watch->muted)
		epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	if (watch->queued)
		forget_again(loop, watch);
	if (watch->timed)
		forget_timed(loop, watch);
	/* It may be among the events that epoll has just returned. */
	for (int i = 0; i < loop->n_events; i++)
		if (loop->events[i].data.ptr == watch)
			loop->events[i].data.ptr = NULL;
}

/* Taken out of epoll altogether, because errors and hang-ups are reported whatever the mask says. */
void xps_loop_mute(struct xps_loop *loop, struct xps_watch *watch)
{
	if (watch->fd < 0 || watch->muted || !watch->added)
		return;
	watch->muted = true;
	epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
}

void xps_loop_unmute(struct xps_loop *loop, struct xps_watch *watch)
{
	if (!watch->muted || !watch->added)
		return;
	watch->muted = false;
	ask_epoll(loop, watch);
}

void xps_loop_again(struct xps_loop *loop, struct xps_watch *watch)
{
	if (watch->queued || !watch->added)
		return;
	watch->queued = true;
	watch->next = NULL;
	*loop->again_tail = watch;
	loop->again_tail = &watch->next;
}

static void run_again(struct xps_loop *loop)
{
	loop->running = loop->again;
	loop->again = NULL;
	loop->again_tail = &loop->again;
	while (loop->running) {
		struct xps_watch *watch = loop->running;

		loop->running = watch->next;
		watch->queued = false;
		if (loop->running && loop->running->soon)
			loop->running->soon(loop->running);
		watch->ready(watch);
	}
}

/* ---------------------------------------------------------------- time */

/* Into the list, before those that are due at the same time: readers nap to the same moments, so this ends at once. */
static void insert_timed(struct xps_loop *loop, struct xps_watch *watch)
{
	struct xps_watch **link = &loop->timed;

	while (*link && (*link)->due_ns < watch->due_ns)
		link = &(*link)->next_timed;
	watch->next_timed = *link;
	*link = watch;
	watch->timed = true;
}

void xps_loop_at(struct xps_loop *loop, struct xps_watch *watch, int64_t due_ns)
{
	if (!watch->added)
		return;
	if (watch->timed)
		forget_timed(loop, watch);
	watch->due_ns = due_ns;
	insert_timed(loop, watch);
}

void xps_loop_after(struct xps_loop *loop, struct xps_watch *watch, int64_t delay_ns)
{
	xps_loop_at(loop, watch, xps_now_ns() + delay_ns);
}

struct xps_loop_notes *xps_loop_notes(struct xps_loop *loop)
{
	return &loop->notes;
}

/* Queue the watches whose time has come. Returns nanoseconds until the next is due, -1 if none is waiting. */
static int64_t queue_due(struct xps_loop *loop)
{
	struct xps_watch *watch = loop->timed;
	int64_t now;

	if (!watch)
		return -1;
	now = xps_now_ns();
	for (; watch && watch->due_ns <= now; watch = loop->timed) {
		loop->timed = watch->next_timed;
		watch->timed = false;
		xps_loop_again(loop, watch);
	}
	return watch ? watch->due_ns - now : -1;
}

/* ---------------------------------------------------------------- tasks */

static bool on_loop_thread(const struct xps_loop *loop)
{
	return pthread_equal(pthread_self(), loop->thread);
}

/* Lock held. */
static void queue_task(struct xps_loop *loop, struct xps_task *task)
{
	if (task->queued)
		return;
	task->queued = true;
	task->next = NULL;
	*loop->tasks_tail = task;
	loop->tasks_tail = &task->next;
	eventfd_write(loop->wake_fd, 1);
}

/* Lock held. */
static struct xps_task *next_task(struct xps_loop *loop)
{
	struct xps_task *task = loop->tasks;

	if (task) {
		loop->tasks = task->next;
		if (!loop->tasks)
			loop->tasks_tail = &loop->tasks;
		task->queued = false;
	}
	return task;
}

void xps_loop_post(struct xps_loop *loop, struct xps_task *task)
{
	if (!xps_process_is(loop->process))
		return;
	pthread_mutex_lock(&loop->lock);
	if (!loop->ended)
		queue_task(loop, task);
	pthread_mutex_unlock(&loop->lock);
}

/* A task that somebody waits for. */
struct call {
	struct xps_task task;
	struct xps_task *inner;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool done;
};

static void run_call(struct xps_task *task)
{
	struct call *call = XPS_CONTAINER_OF(task, struct call, task);

	call->inner->run(call->inner);
	pthread_mutex_lock(&call->lock);
	call->done = true;
	pthread_cond_signal(&call->changed);
	pthread_mutex_unlock(&call->lock);
}

static void wait_for_call(struct call *call)
{
	pthread_mutex_lock(&call->lock);
	while (!call->done)
		pthread_cond_wait(&call->changed, &call->lock);
	pthread_mutex_unlock(&call->lock);
}

static void run_alone(struct xps_loop *loop, struct xps_task *task)
{
	pthread_mutex_lock(&loop->alone);
	task->run(task);
	pthread_mutex_unlock(&loop->alone);
}

int xps_loop_call(struct xps_loop *loop, struct xps_task *task)
{
	struct call call = { .task.run = run_call, .inner = task };
	bool ended;

	if (!xps_process_is(loop->process))
		return -ECHILD;
	pthread_mutex_lock(&loop->lock);
	ended = loop->ended;
	if (!ended && on_loop_thread(loop)) {
		pthread_mutex_unlock(&loop->lock);
		task->run(task);
		return 0;
	}
	if (!ended) {
		pthread_mutex_init(&call.lock, NULL);
		pthread_cond_init(&call.changed, NULL);
		queue_task(loop, &call.task);
	}
	pthread_mutex_unlock(&loop->lock);

	if (ended) {
		run_alone(loop, task);
		return 0;
	}
	wait_for_call(&call);
	pthread_cond_destroy(&call.changed);
	pthread_mutex_destroy(&call.lock);
	return 0;
}

/* Run what has been posted. Returns whether the loop is to end. */
static bool run_tasks(struct xps_loop *loop)
{
	struct xps_task *task;
	bool stopping;

	do {
		pthread_mutex_lock(&loop->lock);
		task = next_task(loop);
		stopping = loop->stopping;
		if (!task && loop->closed)
			loop->ended = true;
		pthread_mutex_unlock(&loop->lock);
		if (task)
			task->run(task);
	} while (task);
	return stopping;
}

/* ---------------------------------------------------------------- users */

struct join_task {
	struct xps_task task;
	struct xps_loop *loop;
	struct xps_loop_user *user;
	int result;
};

static void join_on_loop(struct xps_task *task)
{
	struct join_task *join = XPS_CONTAINER_OF(task, struct join_task, task);

	if (join->loop->closed) {
		join->result = -EPIPE;
		return;
	}
	join->user->next = join->loop->users;
	join->loop->users = join->user;
}

int xps_loop_join(struct xps_loop *loop, struct xps_loop_user *user)
{
	struct join_task join = { .task.run = join_on_loop, .loop = loop, .user = user };
	int err = xps_loop_call(loop, &join.task);

	return err ? err : join.result;
}

void xps_loop_leave(struct xps_loop *loop, struct xps_loop_user *user)
{
	struct xps_loop_user **link = &loop->users;

	while (*link && *link != user)
		link = &(*link)->next;
	if (*link)
		*link = user->next;
}

/* The loop ends: nobody joins any more, and those who have are told. */
static void dismiss_users(struct xps_loop *loop)
{
	loop->closed = true;
	while (loop->users) {
		struct xps_loop_user *user = loop->users;

		loop->users = user->next;
		user->ended(user);
	}
}

/* ---------------------------------------------------------------- the thread */

/* epoll_wait(2) counts in milliseconds; the call that does not came with Linux 5.11, and later to the C libraries. */
static int wait_for_events(struct xps_loop *loop, int64_t wait_ns)
{
	const struct timespec timeout = { .tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000 };
	long n;

	if (wait_ns <= 0)
		return epoll_wait(loop->epoll_fd, loop->events, MAX_EVENTS, (int)wait_ns);
	n = syscall(SYS_epoll_pwait2, loop->epoll_fd, loop->events, MAX_EVENTS, &timeout, NULL, 0);
	if (n < 0 && errno == ENOSYS)
		return epoll_wait(loop->epoll_fd, loop->events, MAX_EVENTS, (int)(wait_ns / 1000000) + 1);
	return (int)n;
}

static void poll_watches(struct xps_loop *loop)
{
	int64_t wait_ns = queue_due(loop);
	int n = wait_for_events(loop, loop->again ? 0 : wait_ns);

	loop->n_events = n > 0 ? n : 0;
	for (int i = 0; i < loop->n_events; i++) {
		struct xps_watch *watch = loop->events[i].data.ptr;
		eventfd_t value;

		if (watch == (void *)loop)
			eventfd_read(loop->wake_fd, &value);
		else if (watch)
			watch->ready(watch);
	}
	loop->n_events = 0;
}

static int64_t thread_cpu_ns(clockid_t clock)
{
	struct timespec used;

	if (clock_gettime(clock, &used) < 0)
		return 0;
	return used.tv_sec * INT64_C(1000000000) + used.tv_nsec;
}

static void *loop_main(void *argument)
{
	struct xps_loop *loop = argument;

	prctl(PR_SET_TIMERSLACK, 1000); /* the default of 50 us would be added to every short wait */
	while (!run_tasks(loop)) {
		queue_due(loop); /* here too: whoever slept until now is called before epoll is asked again */
		run_again(loop);
		poll_watches(loop);
	}
	dismiss_users(loop);
	run_tasks(loop);
	pthread_mutex_lock(&loop->lock);
	loop->cpu_ns = thread_cpu_ns(CLOCK_THREAD_CPUTIME_ID);
	pthread_mutex_unlock(&loop->lock);
	return NULL;
}

/* Signals are for the user's threads: workers start with all of them blocked. */
static int start_thread(struct xps_loop *loop, uint32_t index, int core)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	char name[32];
	int err;

	pthread_attr_init(&attributes);
	if (core >= 0) {
		cpu_set_t cpus;

		CPU_ZERO(&cpus);
		CPU_SET((size_t)core, &cpus);
		pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&loop->thread, &attributes, loop_main, loop);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (err)
		return -err;
	snprintf(name, sizeof(name), "xdpspead-%u", index % 1000000); /* Linux takes 15 characters */
	pthread_setname_np(loop->thread, name);
	return 0;
}

static int init_loop(struct xps_loop *loop, uint32_t index, int core)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = loop };
	pthread_mutexattr_t recursive;
	int err;

	loop->process = xps_process();
	loop->again_tail = &loop->again;
	loop->tasks_tail = &loop->tasks;
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
	    epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) < 0) {
		err = -errno;
		goto close_fds;
	}
	pthread_mutex_init(&loop->lock, NULL);
	pthread_mutexattr_init(&recursive);
	pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&loop->alone, &recursive);
	pthread_mutexattr_destroy(&recursive);
	err = start_thread(loop, index, core);
	if (err)
		goto destroy_locks;
	return 0;

destroy_locks:
	pthread_mutex_destroy(&loop->alone);
	pthread_mutex_destroy(&loop->lock);
close_fds:
	if (loop->epoll_fd >= 0)
		close(loop->epoll_fd);
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	return err;
}

static void fini_loop(struct xps_loop *loop)
{
	close(loop->epoll_fd);
	close(loop->wake_fd);
	if (!xps_process_is(loop->process))
		return;
	pthread_mutex_destroy(&loop->alone);
	pthread_mutex_destroy(&loop->lock);
}

/* ---------------------------------------------------------------- the pool */

struct xps_pool *xps_pool_new(int n_threads, const int *affinity, size_t n_affinity, struct xps_fail *fail)
{
	struct xps_pool *pool = calloc(1, sizeof(*pool));
	int err = -ENOMEM;

	if (!pool)
		goto failed;
	pool->process = xps_process();
	pool->references = 1;
	pthread_mutex_init(&pool->stop_lock, NULL);
	if (n_threads < 1) {
		err = -EINVAL;
		goto free_pool;
	}
	pool->loops = calloc((size_t)n_threads, sizeof(*pool->loops));
	if (!pool->loops)
		goto free_pool;
	for (int i = 0; i < n_threads; i++) {
		err = init_loop(&pool->loops[i], (uint32_t)i, n_affinity ? affinity[(size_t)i % n_affinity] : -1);
		if (err)
			goto free_pool;
		pool->n_loops++;
	}
	return pool;

free_pool:
	xps_pool_free(pool);
failed:
	xps_fail_set(fail, -err, "start threads", "cannot start %d worker threads: %s", n_threads, strerror(-err));
	return NULL;
}

void xps_pool_ref(struct xps_pool *pool)
{
	__atomic_add_fetch(&pool->references, 1, __ATOMIC_RELAXED);
}

static bool is_among(const struct xps_loop *loop, struct xps_loop *const *loops, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (loops[i] == loop)
			return true;
	return false;
}

struct xps_loop *xps_pool_loop_besides(struct xps_pool *pool, struct xps_loop *const *taken, uint32_t n)
{
	const uint32_t first = __atomic_fetch_add(&pool->next, 1, __ATOMIC_RELAXED) % pool->n_loops;

	for (uint32_t i = 0; i < pool->n_loops; i++) {
		struct xps_loop *loop = &pool->loops[(first + i) % pool->n_loops];

		if (!is_among(loop, taken, n))
			return loop;
	}
	return &pool->loops[first];
}

struct xps_loop *xps_pool_loop(struct xps_pool *pool)
{
	return xps_pool_loop_besides(pool, NULL, 0);
}

void xps_pool_stop(struct xps_pool *pool)
{
	if (!xps_process_is(pool->process))
		return;
	pthread_mutex_lock(&pool->stop_lock);
	for (uint32_t i = 0; i < pool->n_loops && !pool->joined; i++) {
		struct xps_loop *loop = &pool->loops[i];

		pthread_mutex_lock(&loop->lock);
		loop->stopping = true;
		eventfd_write(loop->wake_fd, 1);
		pthread_mutex_unlock(&loop->lock);
		pthread_join(loop->thread, NULL);
	}
	pool->joined = true;
	pthread_mutex_unlock(&pool->stop_lock);
}

void xps_pool_free(struct xps_pool *pool)
{
	if (!pool || __atomic_sub_fetch(&pool->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	xps_pool_stop(pool);
	for (uint32_t i = 0; i < pool->n_loops; i++)
		fini_loop(&pool->loops[i]);
	free(pool->loops);
	if (xps_process_is(pool->process))
		pthread_mutex_destroy(&pool->stop_lock);
	free(pool);
}

int64_t xps_pool_cpu_ns(struct xps_pool *pool)
{
	int64_t total = 0;

	if (!xps_process_is(pool->process))
		return 0;
	pthread_mutex_lock(&pool->stop_lock);
	for (uint32_t i = 0; i < pool->n_loops; i++) {
		struct xps_loop *loop = &pool->loops[i];
		clockid_t clock;

		pthread_mutex_lock(&loop->lock);
		if (pool->joined)
			total += loop->cpu_ns;
		else if (pthread_getcpuclockid(loop->thread, &clock) == 0)
			total += thread_cpu_ns(clock);
		pthread_mutex_unlock(&loop->lock);
	}
	pthread_mutex_unlock(&pool->stop_lock);
	return total;
}
