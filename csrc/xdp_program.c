// SPDX-License-Identifier: Apache-2.0
#include "xdp_program.h"

#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bits.h"
#include "steer.h"
#include "steer_bpf_o.h"
#include "xdp_uapi.h"

enum {
	ATTACH_TRIES = 25,
	ATTACH_PAUSE_NS = 20 * 1000 * 1000,
	ORDINARY_MTU = 1500, /* fits every driver that has native mode */
};

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

static const char *one_line(struct messages *m)
{
	for (size_t i = 0; i < m->length; i++)
		if (m->text[i] == '\n')
			m->text[i] = ' ';
	return m->text;
}

static int load_fail(int err, struct messages *m, struct xps_fail *fail)
{
	static const char step[] = "load program";

	switch (err) {
	case EPERM:
		return xps_fail_set(fail, err, step,
				    "The kernel does not let this process load a BPF program. It needs CAP_BPF and "
				    "CAP_NET_ADMIN (and CAP_NET_RAW for the sockets): run as root, or grant them.");
	case EACCES:
		return xps_fail_set(
			fail, err, step,
			"The kernel's verifier refused the BPF program; before Linux 5.18 that is a lack of "
			"CAP_PERFMON: run as root, or grant it. It said: %s",
			one_line(m));
	case ENOMEM:
		return xps_fail_set(fail, err, step,
				    "Not enough memory for the BPF program and its maps. On kernels before 5.11 raise "
				    "RLIMIT_MEMLOCK (ulimit -l).");
	case ENOSYS:
		return xps_fail_set(fail, err, step, "This kernel has no bpf() system call (CONFIG_BPF_SYSCALL).");
	default:
		return xps_fail_set(
			fail, err, step,
			"The kernel refused the BPF program (%s); AF_XDP needs Linux 5.11 or later. It said: %s",
			strerror(err), one_line(m));
	}
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

static int load_variant(struct xps_xdp_program *program, uint32_t n_queues, const struct variant *variant)
{
	const struct bpf_object_open_opts options = { .sz = sizeof(options), .object_name = "xdpspead" };
	struct bpf_object *object = bpf_object__open_mem(steer_bpf_o, steer_bpf_o_len, &options);
	int err = (int)libbpf_get_error(object);

	if (err)
		return err;
	err = prepare(object, n_queues, variant);
	if (!err)
		err = bpf_object__load(object);
	if (err) {
		bpf_object__close(object);
		return err;
	}
	program->object = object;
	program->frags = variant->frags;
	program->fd = bpf_program__fd(bpf_object__find_program_by_name(object, variant->name));
	return 0;
}

/* With libbpf's messages going to `m` instead of the process's stderr. */
static int load_best(struct xps_xdp_program *program, uint32_t n_queues, enum xps_xdp_variant best, struct messages *m)
{
	libbpf_print_fn_t before;
	int err = -ENOENT;

	pthread_mutex_lock(&print_lock);
	messages = m;
	before = libbpf_set_print(capture);
	for (size_t i = best; i < XPS_ARRAY_LEN(variants) && err && err != -EPERM; i++) {
		m->length = 0;
		err = load_variant(program, n_queues, &variants[i]);
	}
	libbpf_set_print(before);
	messages = NULL;
	pthread_mutex_unlock(&print_lock);
	return err;
}

int xps_xdp_program_load(struct xps_xdp_program *program, uint32_t n_queues, enum xps_xdp_variant best,
			 struct xps_fail *fail)
{
	struct bpf_prog_info info = { 0 };
	__u32 length = sizeof(info);
	struct messages m = { 0 };
	int err;

	*program = (struct xps_xdp_program){ .fd = -1, .link_fd = -1 };
	err = load_best(program, n_queues, best, &m);
	if (err)
		return load_fail(-err, &m, fail);
	program->endpoints_fd = bpf_object__find_map_fd_by_name(program->object, "endpoints");
	program->sources_fd = bpf_object__find_map_fd_by_name(program->object, "sources");
	program->sockets_fd = bpf_object__find_map_fd_by_name(program->object, "sockets");
	program->counters_fd = bpf_object__find_map_fd_by_name(program->object, "counters");
	program->passed_fd = bpf_object__find_map_fd_by_name(program->object, "passed");
	program->n_cpus = (uint32_t)libbpf_num_possible_cpus();
	if (!bpf_obj_get_info_by_fd(program->fd, &info, &length))
		program->id = info.id;
	return 0;
}

/* The program that is in our way; 0 if it cannot be told. */
static uint32_t attached_program(int ifindex)
{
	__u32 id = 0;

	if (bpf_xdp_query_id)
		bpf_xdp_query_id(ifindex, 0, &id);
	else if (bpf_get_link_xdp_id)
		bpf_get_link_xdp_id(ifindex, &id, 0);
	return id;
}

static int try_attach(struct xps_xdp_program *program, int ifindex, uint32_t flags)
{
	const struct bpf_link_create_opts options = { .sz = sizeof(options), .flags = flags };
	int fd = bpf_link_create(program->fd, ifindex, BPF_XDP, &options);

	if (fd < 0)
		return -errno;
	program->link_fd = fd;
	return 0;
}

/* The program of a process that was killed stays for a moment; a new one is to start at once all the same. */
static int attach_patiently(struct xps_xdp_program *program, const struct xps_xdp_port_config *config, uint32_t flags)
{
	const struct timespec pause = { .tv_nsec = ATTACH_PAUSE_NS };
	const int ifindex = config->ifindex, tries = config->for_others ? 1 : ATTACH_TRIES;
	int err = try_attach(program, ifindex, flags);

	for (int i = 1; i < tries && (err == -EBUSY || err == -EEXIST); i++) {
		nanosleep(&pause, NULL);
		err = try_attach(program, ifindex, flags);
	}
	return err;
}

static int attach_fail(int err, const struct xps_xdp_port_config *config, bool frags, struct xps_fail *fail)
{
	static const char step[] = "attach program";
	static const char *const modes[] = {
		[XPS_XDP_AUTO] = "native or generic",
		[XPS_XDP_NATIVE] = "native",
		[XPS_XDP_GENERIC] = "generic",
	};
	/* Where the program was to take packets in several buffers and cannot, that holds in any mode. */
	const bool generic_helps = config->mode == XPS_XDP_NATIVE && (frags || !config->multi_buffer);
	char name[IF_NAMESIZE] = "?";

	if_indextoname((unsigned)config->ifindex, name);
	switch (err) {
	case EBUSY:
	case EEXIST:
		return xps_fail_set(
			fail, EBUSY, step,
			"Another XDP program (id %u) is attached to %s, which can have one. End the process that it "
			"belongs to ('bpftool prog show id %u' names it); if it belongs to none, take it off with 'ip "
			"link set dev %s xdp off'.",
			attached_program(config->ifindex), name, attached_program(config->ifindex), name);
	case ENODEV:
		return xps_fail_set(fail, err, step, "There is no interface with index %d in this network namespace.",
				    config->ifindex);
	case EPERM:
		return xps_fail_set(fail, err, step,
				    "Attaching to %s needs CAP_NET_ADMIN and CAP_BPF: run as root, or "
				    "grant them.",
				    name);
	case EOPNOTSUPP:
		if (config->mode != XPS_XDP_NATIVE || config->mtu > ORDINARY_MTU)
			break;
		return xps_fail_set(
			fail, err, step,
			"The driver of %s cannot run XDP programs (native mode). Use mode='generic' or 'auto'.", name);
	}
	return xps_fail_set(fail, err, step,
			    "%s does not take an XDP program in %s mode at MTU %d%s (%s). Use a smaller MTU (1500 "
			    "always fits, most drivers take about 3000 to 3500; a veth counts its peer's MTU)%s.",
			    name, modes[config->mode], config->mtu, frags ? "" : " without multi-buffer support",
			    strerror(err), generic_helps ? ", or mode='generic'" : "");
}

/* Whether native mode failed for a reason that generic mode does not share. */
static bool generic_may_work(int err)
{
	return err != -EBUSY && err != -EEXIST && err != -EPERM && err != -ENODEV && err != -ENOMEM;
}

int xps_xdp_program_attach(struct xps_xdp_program *program, const struct xps_xdp_port_config *config,
			   struct xps_fail *fail)
{
	int err = -EOPNOTSUPP;

	if (config->mode != XPS_XDP_GENERIC) {
		program->mode = XPS_XDP_NATIVE;
		err = attach_patiently(program, config, XDP_FLAGS_DRV_MODE);
	}
	if (err && config->mode != XPS_XDP_NATIVE && generic_may_work(err)) {
		program->mode = XPS_XDP_GENERIC;
		err = attach_patiently(program, config, XDP_FLAGS_SKB_MODE);
	}
	return err ? attach_fail(-err, config, program->frags, fail) : 0;
}

void xps_xdp_program_detach(struct xps_xdp_program *program)
{
	if (program->link_fd < 0)
		return;
	/* Closing is not enough while a forked child has a copy of the descriptor. */
	bpf_link_detach(program->link_fd);
	close(program->link_fd);
	program->link_fd = -1;
}

void xps_xdp_program_unload(struct xps_xdp_program *program)
{
	/* Not detached: this may be a forked child, and the link its parent's. */
	if (program->link_fd >= 0)
		close(program->link_fd);
	if (program->object)
		bpf_object__close(program->object);
	*program = (struct xps_xdp_program){ .fd = -1, .link_fd = -1 };
}
