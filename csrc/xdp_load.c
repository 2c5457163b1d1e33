// SPDX-License-Identifier: Apache-2.0
#include "xdp_load.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bits.h"
#include "fail.h"
#include "steer.h"
#include "steer_bpf_o.h"
#include "xdp_uapi.h"

/* Not in every libbpf: the first since 0.6, the second since 0.7, the third until 0.8. */
extern int bpf_program__set_flags(struct bpf_program *program, __u32 flags) __attribute__((weak));
extern int bpf_xdp_query_id(int ifindex, int flags, __u32 *id) __attribute__((weak));
extern int bpf_get_link_xdp_id(int ifindex, __u32 *id, __u32 flags) __attribute__((weak));

/*
 * What libbpf says while it loads, of which the end is the reason for a refusal. Its print function takes no context,
 * hence the thread's variable; and it is the process's, hence the lock.
 */
struct messages {
	char text[600];
	size_t length;
};

static _Thread_local struct messages *messages;
static pthread_mutex_t print_lock = PTHREAD_MUTEX_INITIALIZER;

static void messages_add(struct messages *m, const char *text, size_t n)
{
	const size_t room = sizeof(m->text) - 1;

	if (n > room) {
		text += n - room;
		n = room;
	}
	if (n > room - m->length) {
		size_t drop = n - (room - m->length);

		memmove(m->text, m->text + drop, m->length - drop);
		m->length -= drop;
	}
	memcpy(m->text + m->length, text, n);
	m->length += n;
	m->text[m->length] = 0;
}

static int XPS_PRINTF(2, 0) capture(enum libbpf_print_level level, const char *format, va_list args)
{
	char *text; /* the verifier's log comes in one piece of many kilobytes, and its end is what matters */
	int n;

	if (!messages || level == LIBBPF_DEBUG)
		return 0;
	n = vasprintf(&text, format, args);
	if (n < 0)
		return n;
	messages_add(messages, text, (size_t)n);
	free(text);
	return n;
}

/* Into `said`, as one line. */
static void tell(const struct messages *m, char *said, size_t size)
{
	snprintf(said, size, "%s", m->text);
	for (; *said; said++)
		if (*said == '\n')
			*said = ' ';
}

/* An entry of the object. */
struct variant {
	const char *name, *other;
	bool frags;
};

static const struct variant variants[] = {
	[XPS_XDP_FRAGS] = { .name = "steer", .other = "steer_old", .frags = true },
	[XPS_XDP_PLAIN] = { .name = "steer", .other = "steer_old" },
	[XPS_XDP_OLD] = { .name = "steer_old", .other = "steer" },
};

static int prepare(struct bpf_object *object, uint32_t n_queues, const struct variant *variant)
{
	const uint32_t entries = XPS_STEER_SLOTS * n_queues;
	struct bpf_program *program = bpf_object__find_program_by_name(object, variant->name);
	int err = bpf_program__set_autoload(bpf_object__find_program_by_name(object, variant->other), false);

	if (!err && variant->frags)
		err = bpf_program__set_flags ? bpf_program__set_flags(program, XPS_BPF_F_XDP_HAS_FRAGS) : -EOPNOTSUPP;
	if (!err)
		err = bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "sockets"), entries);
	if (!err)
		err = bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "counters"), entries);
	return err;
}

/* Descriptors of our own: the object's go with it. */
static int keep(struct xps_xdp_loaded *loaded, const struct bpf_object *object, const struct variant *variant)
{
	const struct bpf_program *program = bpf_object__find_program_by_name(object, variant->name);
	const struct {
		int *kept, fd;
	} fds[] = {
		{ &loaded->fd, bpf_program__fd(program) },
		{ &loaded->endpoints_fd, bpf_object__find_map_fd_by_name(object, "endpoints") },
		{ &loaded->sources_fd, bpf_object__find_map_fd_by_name(object, "sources") },
		{ &loaded->sockets_fd, bpf_object__find_map_fd_by_name(object, "sockets") },
		{ &loaded->counters_fd, bpf_object__find_map_fd_by_name(object, "counters") },
		{ &loaded->passed_fd, bpf_object__find_map_fd_by_name(object, "passed") },
	};

	for (size_t i = 0; i < XPS_ARRAY_LEN(fds); i++) {
		*fds[i].kept = fcntl(fds[i].fd, F_DUPFD_CLOEXEC, 0);
		if (*fds[i].kept < 0) {
			const int err = -errno;

			while (i)
				close(*fds[--i].kept);
			return err;
		}
	}
	loaded->frags = variant->frags;
	loaded->n_cpus = (uint32_t)libbpf_num_possible_cpus();
	return 0;
}

static int load_variant(struct xps_xdp_loaded *loaded, uint32_t n_queues, const struct variant *variant)
{
	const struct bpf_object_open_opts options = { .sz = sizeof(options), .object_name = "xdpspead" };
	struct bpf_object *object = bpf_object__open_mem(steer_bpf_o, steer_bpf_o_len, &options);
	int err = (int)libbpf_get_error(object);

	if (err)
		return err;
	err = prepare(object, n_queues, variant);
	if (!err)
		err = bpf_object__load(object);
	if (!err)
		err = keep(loaded, object, variant);
	bpf_object__close(object);
	return err;
}

/* With libbpf's messages going to `m` instead of the process's stderr. */
static int load_best(struct xps_xdp_loaded *loaded, uint32_t n_queues, enum xps_xdp_variant best, struct messages *m)
{
	libbpf_print_fn_t before;
	int err = -ENOENT;

	pthread_mutex_lock(&print_lock);
	messages = m;
	before = libbpf_set_print(capture);
	for (size_t i = best; i < XPS_ARRAY_LEN(variants) && err && err != -EPERM; i++) {
		m->length = 0;
		err = load_variant(loaded, n_queues, &variants[i]);
	}
	libbpf_set_print(before);
	messages = NULL;
	pthread_mutex_unlock(&print_lock);
	return err;
}

int xps_xdp_load(struct xps_xdp_loaded *loaded, uint32_t n_queues, enum xps_xdp_variant best, char *said, size_t size)
{
	struct messages m = { 0 };
	int err = load_best(loaded, n_queues, best, &m);

	tell(&m, said, size);
	return err;
}

int xps_xdp_can_load(char *said, size_t size)
{
	(void)said;
	(void)size;
	return 0; /* linked */
}

uint32_t xps_xdp_attached(int ifindex)
{
	__u32 id = 0;

	if (bpf_xdp_query_id)
		bpf_xdp_query_id(ifindex, 0, &id);
	else if (bpf_get_link_xdp_id)
		bpf_get_link_xdp_id(ifindex, &id, 0);
	return id;
}
