// SPDX-License-Identifier: Apache-2.0
#include "xdp_program.h"

#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bits.h"
#include "bpf_call.h"

enum {
	ATTACH_TRIES = 25,
	ATTACH_PAUSE_NS = 20 * 1000 * 1000,
	ORDINARY_MTU = 1500, /* fits every driver that has native mode */
};

static int no_libbpf(const char *said, const char *step, struct xps_fail *fail)
{
	return xps_fail_set(
		fail, ELIBACC, step,
		"libbpf, which loads the BPF program, cannot be used (%s). Install it (Debian, Ubuntu: apt install "
		"libbpf1; Fedora: dnf install libbpf).",
		said);
}

int xps_find_libbpf(struct xps_fail *fail)
{
	char said[600];

	return xps_xdp_can_load(said, sizeof(said)) ? no_libbpf(said, "find libbpf", fail) : 0;
}

static int load_fail(int err, const char *said, struct xps_fail *fail)
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
			said);
	case ENOMEM:
		return xps_fail_set(fail, err, step,
				    "Not enough memory for the BPF program and its maps. On kernels before 5.11 raise "
				    "RLIMIT_MEMLOCK (ulimit -l).");
	case ELIBACC:
		return no_libbpf(said, step, fail);
	case ENOSYS:
		return xps_fail_set(fail, err, step, "This kernel has no bpf() system call (CONFIG_BPF_SYSCALL).");
	default:
		return xps_fail_set(
			fail, err, step,
			"The kernel refused the BPF program (%s); AF_XDP needs Linux 5.11 or later. It said: %s",
			strerror(err), said);
	}
}

int xps_xdp_program_load(struct xps_xdp_program *program, uint32_t n_queues, enum xps_xdp_variant best,
			 struct xps_fail *fail)
{
	char said[600];
	int err;

	*program = XPS_XDP_NO_PROGRAM;
	err = xps_xdp_load(&program->loaded, n_queues, best, said, sizeof(said));
	if (err) {
		*program = XPS_XDP_NO_PROGRAM;
		return load_fail(-err, said, fail);
	}
	program->id = xps_bpf_program_id(program->loaded.fd);
	return 0;
}

static int try_attach(struct xps_xdp_program *program, int ifindex, uint32_t flags)
{
	int fd = xps_bpf_link_xdp(program->loaded.fd, ifindex, flags);

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
	uint32_t id;

	if_indextoname((unsigned)config->ifindex, name);
	switch (err) {
	case EBUSY:
	case EEXIST:
		id = xps_xdp_attached(config->ifindex); /* 0 if it cannot be told */
		return xps_fail_set(
			fail, EBUSY, step,
			"Another XDP program (id %u) is attached to %s, which can have one. End the process that it "
			"belongs to ('bpftool prog show id %u' names it); if it belongs to none, take it off with 'ip "
			"link set dev %s xdp off'.",
			id, name, id, name);
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
	return err ? attach_fail(-err, config, program->loaded.frags, fail) : 0;
}

void xps_xdp_program_detach(struct xps_xdp_program *program)
{
	if (program->link_fd < 0)
		return;
	/* Closing is not enough while a forked child has a copy of the descriptor. */
	xps_bpf_link_detach(program->link_fd);
	close(program->link_fd);
	program->link_fd = -1;
}

void xps_xdp_program_unload(struct xps_xdp_program *program)
{
	const struct xps_xdp_loaded *loaded = &program->loaded;
	/* Not detached: this may be a forked child, and the link its parent's. */
	const int fds[] = { program->link_fd,   loaded->fd,          loaded->endpoints_fd, loaded->sources_fd,
			    loaded->sockets_fd, loaded->counters_fd, loaded->passed_fd };

	for (size_t i = 0; i < XPS_ARRAY_LEN(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	*program = XPS_XDP_NO_PROGRAM;
}
