// SPDX-License-Identifier: Apache-2.0
/*
 * xdpspead-helper - holds the privileges that AF_XDP needs, so that ordinary users can receive.
 *
 * The program: reads its configuration (helper_rules.h), listens on its socket, and lets helper_server.c do what is
 * asked. One thread, and one place where it waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "helper_privileges.h"
#include "helper_protocol.h"
#include "helper_server.h"

enum {
	MAX_CONFIG = 256 * 1024,
	LOG_PER_SECOND = 20,
	BACKLOG = 64,
	ACCEPTED_AT_A_TIME = 16,
	ACCEPT_PAUSE_MS = 200,
	SYSTEMD_FD = 3, /* the first that it passes on */
};

static const char usage[] =
	"Usage: xdpspead-helper [--config FILE] [--socket PATH] [--check]\n"
	"\n"
	"Lets ordinary users receive SPEAD streams through AF_XDP, as far as the configuration allows.\n"
	"\n"
	"  --config FILE   who may receive what (default: /etc/xdpspead/helper.conf)\n"
	"  --socket PATH   where to listen (default: " XPS_HELPER_SOCKET "; systemd's comes first)\n"
	"  --check         print what is allowed, and end\n"
	"\n"
	"SIGHUP reads the configuration again.\n";

struct options {
	const char *config, *socket;
	bool check;
};

/* ---------------------------------------------------------------- log */

/* To stderr, where the journal or a shell finds it. Who can make it say something cannot make it say much. */
static void say(const char *text)
{
	static time_t second;
	static unsigned said, unsaid;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec != second) {
		if (unsaid)
			fprintf(stderr, "xdpspead-helper: %u more lines were left out\n", unsaid);
		second = now.tv_sec;
		said = unsaid = 0;
	}
	if (said++ < LOG_PER_SECOND)
		fprintf(stderr, "xdpspead-helper: %s\n", text);
	else
		unsaid++;
}

static void say_fail(const struct xps_fail *fail)
{
	fprintf(stderr, "xdpspead-helper: %s: %s\n", fail->step, fail->text);
}

/* ---------------------------------------------------------------- configuration */

static bool look_up(const char *name, bool group, uint32_t *id)
{
	if (group) {
		const struct group *entry = getgrnam(name);

		*id = entry ? entry->gr_gid : 0;
		return entry;
	} else {
		const struct passwd *entry = getpwnam(name);

		*id = entry ? entry->pw_uid : 0;
		return entry;
	}
}

static int check_file(int fd, const char *path, struct xps_fail *fail)
{
	static const char step[] = "read configuration";
	struct stat status;

	if (fstat(fd, &status))
		return xps_fail_set(fail, errno, step, "Cannot look at %s: %s.", path, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return xps_fail_set(fail, EINVAL, step, "%s is not a file.", path);
	if (status.st_uid != 0 && status.st_uid != geteuid())
		return xps_fail_set(
			fail, EPERM, step,
			"%s belongs to user %u: whoever can change it decides who may receive, so it must be "
			"root's or user %u's.",
			path, status.st_uid, geteuid());
	if (status.st_mode & (S_IWGRP | S_IWOTH))
		return xps_fail_set(fail, EPERM, step, "Others can write to %s: 'chmod go-w %s'.", path, path);
	return 0;
}

static int read_file(const char *path, char *text, size_t *n, struct xps_fail *fail)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t got = 0;
	int err;

	if (fd < 0)
		return xps_fail_set(fail, errno, "read configuration", "Cannot open %s: %s.", path, strerror(errno));
	err = check_file(fd, path, fail);
	*n = 0;
	while (!err && *n < MAX_CONFIG && (got = read(fd, text + *n, MAX_CONFIG - *n)) > 0)
		*n += (size_t)got;
	if (!err && (got < 0 || *n == MAX_CONFIG))
		err = xps_fail_set(fail, got < 0 ? errno : EFBIG, "read configuration", "Cannot read %s: %s.", path,
				   strerror(got < 0 ? errno : EFBIG));
	close(fd);
	return err;
}

static int read_rules(const char *path, struct xps_helper_rules *rules, struct xps_fail *fail)
{
	char *text = malloc(MAX_CONFIG);
	struct xps_fail why;
	size_t n = 0;
	int err;

	if (!text)
		return xps_fail_set(fail, ENOMEM, "read configuration", "Not enough memory.");
	err = read_file(path, text, &n, fail);
	if (!err && xps_helper_rules_parse(rules, text, n, look_up, &why))
		err = xps_fail_set(fail, EINVAL, why.step, "%s: %s", path, why.text);
	free(text);
	return err;
}

static void print_rules(const struct xps_helper_rules *rules)
{
	static const char *const modes[] = {
		[XPS_XDP_AUTO] = "any",
		[XPS_XDP_NATIVE] = "native",
		[XPS_XDP_GENERIC] = "generic",
	};

	for (uint32_t i = 0; i < rules->n; i++) {
		const struct xps_helper_rule *rule = &rules->list[i];
		char queues[200], ports[200];

		xps_helper_print_ranges(&rule->queues, queues, sizeof(queues));
		xps_helper_print_ranges(&rule->ports, ports, sizeof(ports));
		printf("line %d: %s %s (%u) may receive on %s: queues %s, ports %s, %llu MiB of memory, %u readers, %s "
		       "mode\n",
		       rule->line, rule->group ? "group" : "user", rule->who, rule->id, rule->interface, queues, ports,
		       (unsigned long long)(rule->memory >> 20), rule->readers, modes[rule->mode]);
	}
	if (!rules->n)
		printf("nobody may receive anything\n");
}

static void reload(struct xps_helper_server *server, const char *path)
{
	static struct xps_helper_rules rules;
	struct xps_fail fail;

	if (read_rules(path, &rules, &fail)) {
		say_fail(&fail);
		say("the rules that were read before go on to hold");
		return;
	}
	xps_helper_server_set_rules(server, &rules);
	say("the configuration has been read again");
}

/* ---------------------------------------------------------------- listening */

/* What systemd has made for us; -1 if nothing. */
static int socket_of_systemd(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	int type = 0;
	socklen_t length = sizeof(type);

	if (!pid || !n || strtol(pid, NULL, 10) != getpid() || strtol(n, NULL, 10) < 1)
		return -1;
	if (getsockopt(SYSTEMD_FD, SOL_SOCKET, SO_TYPE, &type, &length) || type != SOCK_SEQPACKET)
		return -1;
	fcntl(SYSTEMD_FD, F_SETFD, FD_CLOEXEC);
	fcntl(SYSTEMD_FD, F_SETFL, O_NONBLOCK);
	return SYSTEMD_FD;
}

static int listen_fail(const char *path, int err, struct xps_fail *fail)
{
	return xps_fail_set(fail, err, "listen", "Cannot listen on %s: %s.%s", path, strerror(err),
			    err == EADDRINUSE ? " Another helper does."
			    : err == ENOENT   ? " Is there such a directory?"
					      : "");
}

/* Whether a socket of a process that has died is all that is in the way. */
static bool is_dead(const struct sockaddr_un *address)
{
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool dead;

	if (fd < 0)
		return false;
	dead = connect(fd, (const struct sockaddr *)address, sizeof(*address)) && errno == ECONNREFUSED;
	close(fd);
	return dead;
}

static int listen_at(const char *path, struct xps_fail *fail)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const struct sockaddr *name = (const struct sockaddr *)&address;
	int fd, err;

	if (strlen(path) >= sizeof(address.sun_path))
		return listen_fail(path, ENAMETOOLONG, fail);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return listen_fail(path, errno, fail);
	if (is_dead(&address))
		unlink(path);
	/* Everybody may ask; the rules say who gets something. */
	if (bind(fd, name, sizeof(address)) || chmod(path, 0666) || listen(fd, BACKLOG)) {
		err = errno;
		close(fd);
		return listen_fail(path, err, fail);
	}
	return fd;
}

/* ---------------------------------------------------------------- the loop */

/* False if there are no descriptors left, so that asking again at once would be in vain. */
static bool accept_some(struct xps_helper_server *server, int listener)
{
	for (int i = 0; i < ACCEPTED_AT_A_TIME; i++) {
		const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0)
			return errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS;
		xps_helper_server_accept(server, fd);
	}
	return true;
}

/* False if it is time to end. */
static bool take_signal(struct xps_helper_server *server, int signals, const char *config)
{
	struct signalfd_siginfo info;

	if (read(signals, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return true;
	if (info.ssi_signo != SIGHUP)
		return false;
	reload(server, config);
	return true;
}

static void run(struct xps_helper_server *server, int listener, int signals, const char *config)
{
	static struct pollfd polled[2 + XPS_HELPER_MAX_CLIENTS];
	int fds[XPS_HELPER_MAX_CLIENTS];
	bool accepting = true;

	for (;;) {
		const uint32_t n = xps_helper_server_fds(server, fds);

		polled[0] = (struct pollfd){ .fd = signals, .events = POLLIN };
		polled[1] = (struct pollfd){ .fd = accepting ? listener : -1, .events = POLLIN };
		for (uint32_t i = 0; i < n; i++)
			polled[2 + i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
		if (poll(polled, 2 + n, accepting ? -1 : ACCEPT_PAUSE_MS) < 0)
			continue;
		if (polled[0].revents && !take_signal(server, signals, config))
			return;
		/* One request of each. A number that stands for another client by now has nothing to read, or has. */
		for (uint32_t i = 0; i < n; i++)
			if (polled[2 + i].revents)
				xps_helper_server_serve(server, fds[i]);
		accepting = !polled[1].revents || accept_some(server, listener);
	}
}

static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* ---------------------------------------------------------------- main */

static int serve(const struct options *options, const struct xps_helper_rules *rules)
{
	const int signals = open_signals(), given = socket_of_systemd();
	struct xps_helper_server *server = xps_helper_server_new(options->config, say);
	struct xps_fail fail = { .step = "start", .text = "Not enough memory or descriptors." };
	int listener = given;

	if (signals < 0 || !server || xps_helper_limit_privileges(&fail)) {
		say_fail(&fail);
		return 1;
	}
	if (listener < 0)
		listener = listen_at(options->socket, &fail);
	if (listener < 0) {
		say_fail(&fail);
		return 1;
	}
	xps_helper_server_set_rules(server, rules);
	say("ready");
	run(server, listener, signals, options->config);
	if (given < 0)
		unlink(options->socket);
	xps_helper_server_free(server);
	return 0;
}

static int parse_options(struct options *options, int argc, char **argv)
{
	static const struct option known[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "socket", required_argument, NULL, 's' },
		{ "check", no_argument, NULL, 'k' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};

	for (int which; (which = getopt_long(argc, argv, "h", known, NULL)) >= 0;) {
		switch (which) {
		case 'c':
			options->config = optarg;
			break;
		case 's':
			options->socket = optarg;
			break;
		case 'k':
			options->check = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			return -1;
		}
	}
	if (optind == argc)
		return 0;
	fputs(usage, stderr);
	return -1;
}

int main(int argc, char **argv)
{
	struct options options = { .config = "/etc/xdpspead/helper.conf", .socket = XPS_HELPER_SOCKET };
	static struct xps_helper_rules rules;
	struct xps_fail fail;

	if (parse_options(&options, argc, argv))
		return 2;
	if (read_rules(options.config, &rules, &fail)) {
		say_fail(&fail);
		return 1;
	}
	if (!options.check)
		return serve(&options, &rules);
	print_rules(&rules);
	return 0;
}
