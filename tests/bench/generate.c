// SPDX-License-Identifier: Apache-2.0
/*
 * Sends SPEAD packets from inside the kernel at a stated rate: the loader of bpf/generate.bpf.c. It
 * runs in the network namespace of the sending end of a veth pair, as root, pinned to one core, and
 * prints one line of JSON when the packets are sent or a signal ended it. It is not a general
 * sender: all packets have the same size, and the content is the one generate.h describes.
 *
 * How it works: the main thread spends the whole run in one BPF_PROG_TEST_RUN system call. A second
 * thread looks at the program's counters, which are mapped here, every two milliseconds, and
 * interrupts the call by a signal when all is sent, when the time is over, or when the user asks.
 * What the receiving end refused (its ring was full, it was down) is known from the interface's
 * statistics only: the redirect itself happens after the program.
 *
 * With --socket the packets go through a UDP socket instead; see generate_socket.h.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/btf.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "generate.h"
#include "generate_socket.h"

/* Not in the headers of older distributions. */
#ifndef BPF_F_TEST_XDP_LIVE_FRAMES
#define BPF_F_TEST_XDP_LIVE_FRAMES (1U << 1)
#endif

#define WATCH_PERIOD_NS 2000000
/* One call's worth of runs. When they run out, after half a minute or so, another call follows. */
#define RUNS_PER_CALL 1000000000
/* Live mode puts packet, headroom and bookkeeping into one page: the kernel refuses more. */
#define PAYLOAD_MAX 3200

struct options {
	const char *object;
	const char *interface;
	double rate;
	double seconds;
	double limit_s; /* from the options: when to end whatever was sent */
	uint64_t count;
	uint64_t first_heap;
	uint64_t payload;
	uint64_t packets_per_heap;
	uint64_t flows;
	uint64_t port;
	uint64_t port_step;
	uint64_t source_port;
	uint64_t burst;
	uint64_t batch;
	uint64_t pin_core;
	bool udp_checksum;
	bool whole_heaps;
	bool timestamp;
	bool wait;
	bool socket;
	uint8_t dst_mac[ETH_ALEN];
	uint8_t src_mac[ETH_ALEN];
	struct in_addr dst_ip;
	struct in_addr src_ip;
};

struct generator {
	struct bpf_object *object;
	int program_fd;
	void *bss;
	size_t bss_size;
	const struct generate_state *state;
};

struct plans {
	struct generate_plan first, other;
	uint8_t *packet; /* as every page starts out: the longer kind, zero headers */
	size_t packet_size;
};

struct watch {
	const struct generate_state *state;
	pthread_t target;
	uint64_t count;
	uint64_t deadline_ns;
	bool over; /* the wait is over; read and written with __atomic builtins */
	bool finished;
};

static volatile sig_atomic_t interrupted;

static const char usage[] =
	"usage: generate --object FILE --interface NAME --dst-mac MAC --dst-ip IP --src-ip IP [...]\n"
	"\n"
	"  --object FILE          the compiled bpf/generate.bpf.c\n"
	"  --interface NAME       send into this interface of the current network namespace\n"
	"  --dst-mac, --dst-ip    address of the receiving end\n"
	"  --src-ip IP            sender's address in the packets\n"
	"  --rate PPS             packets per second, 0 for as fast as possible (default 100000)\n"
	"  --payload BYTES        payload per packet, 8 to 3200: a packet has to fit in one page\n"
	"                         together with the kernel's bookkeeping (default 1024)\n"
	"  --socket               send through a UDP socket, which takes longer packets (payload up to\n"
	"                         65000) but fewer of them; one flow, checksums as the kernel likes\n"
	"  --packets-per-heap N   default 64\n"
	"  --count N              packets to send (default rate * seconds)\n"
	"  --seconds S            how long to send (default 1, or until --count is sent)\n"
	"  --port N               destination port of the first flow (default 8888)\n"
	"  --source-port N        source port of the first flow (default 20000)\n"
	"  --flows N              heaps that are sent side by side, packet by packet (default 1)\n"
	"  --whole-heaps          flows take turns heap by heap, not packet by packet\n"
	"  --port-step N          added to the destination port from flow to flow (default 1; 0 puts\n"
	"                         interleaved heaps on one port)\n"
	"  --first-heap N         id of the first heap (default 1)\n"
	"  --burst N              most packets sent in a row to catch up (default 128)\n"
	"  --batch N              packets per kernel batch, at most 256 (default 64)\n"
	"  --pin-core N           core to run on (default 0)\n"
	"  --timestamp            write the time into bytes 8 to 15 of each payload, in nanoseconds of\n"
	"                         CLOCK_MONOTONIC, big-endian\n"
	"  --udp-checksum         write valid UDP checksums instead of none\n"
	"  --wait                 print \"ready\", then start when a line is read from stdin\n";

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("generate: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

/* ---- options ------------------------------------------------------------------------------- */

static uint64_t to_number(const char *name, const char *text, uint64_t low, uint64_t high)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value < low || value > high)
		die("--%s: '%s' is not a number from %" PRIu64 " to %" PRIu64, name, text, low, high);
	return value;
}

static double to_real(const char *name, const char *text, double high)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0 && value <= high))
		die("--%s: '%s' is not a number from 0 to %g", name, text, high);
	return value;
}

static void to_mac(const char *name, const char *text, uint8_t *mac)
{
	int length = 0;

	if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5],
		   &length) != ETH_ALEN ||
	    text[length])
		die("--%s: '%s' is not a MAC address", name, text);
}

static void to_ip(const char *name, const char *text, struct in_addr *ip)
{
	if (inet_pton(AF_INET, text, ip) != 1)
		die("--%s: '%s' is not an IPv4 address", name, text);
}

enum kind { TEXT, REAL, NUMBER, FLAG, MAC, IP };

/* One row per option: where its value goes and what it may be. */
struct rule {
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t low;
	uint64_t high;
};

#define AT(member) offsetof(struct options, member)

static const struct rule rules[] = {
	{ "object", TEXT, AT(object), 0, 0 },
	{ "interface", TEXT, AT(interface), 0, 0 },
	{ "dst-mac", MAC, AT(dst_mac), 0, 0 },
	{ "dst-ip", IP, AT(dst_ip), 0, 0 },
	{ "src-ip", IP, AT(src_ip), 0, 0 },
	{ "rate", REAL, AT(rate), 0, 100000000 },
	{ "seconds", REAL, AT(seconds), 0, 3600 },
	{ "payload", NUMBER, AT(payload), GENERATE_STAMP_SIZE, GENERATE_SOCKET_PAYLOAD_MAX },
	{ "socket", FLAG, AT(socket), 0, 0 },
	{ "packets-per-heap", NUMBER, AT(packets_per_heap), 1, 65536 },
	{ "count", NUMBER, AT(count), 1, 1ULL << 40 },
	{ "port", NUMBER, AT(port), 1, 65535 },
	{ "source-port", NUMBER, AT(source_port), 1, 65535 },
	{ "flows", NUMBER, AT(flows), 1, 32768 },
	{ "port-step", NUMBER, AT(port_step), 0, 65535 },
	/* The highest id that a heap address holds, and room for all that may follow the first. */
	{ "first-heap", NUMBER, AT(first_heap), 0, 1ULL << 40 },
	{ "burst", NUMBER, AT(burst), 1, 1000000 },
	{ "batch", NUMBER, AT(batch), 1, 256 },
	{ "pin-core", NUMBER, AT(pin_core), 0, CPU_SETSIZE - 1 },
	{ "whole-heaps", FLAG, AT(whole_heaps), 0, 0 },
	{ "timestamp", FLAG, AT(timestamp), 0, 0 },
	{ "udp-checksum", FLAG, AT(udp_checksum), 0, 0 },
	{ "wait", FLAG, AT(wait), 0, 0 },
};

#define N_RULES (sizeof(rules) / sizeof(rules[0]))
#define HELP N_RULES

static void set_option(struct options *o, const struct rule *rule, const char *text)
{
	void *value = (char *)o + rule->offset;

	switch (rule->kind) {
	case TEXT:
		*(const char **)value = text;
		break;
	case REAL:
		*(double *)value = to_real(rule->name, text, (double)rule->high);
		break;
	case NUMBER:
		*(uint64_t *)value = to_number(rule->name, text, rule->low, rule->high);
		break;
	case FLAG:
		*(bool *)value = true;
		break;
	case MAC:
		to_mac(rule->name, text, value);
		break;
	case IP:
		to_ip(rule->name, text, value);
		break;
	}
}

static void parse(struct options *o, int argc, char **argv)
{
	struct option names[N_RULES + 2] = { [HELP] = { .name = "help", .val = HELP } };
	int index;

	for (size_t i = 0; i < N_RULES; i++)
		names[i] = (struct option){
			.name = rules[i].name,
			.has_arg = rules[i].kind == FLAG ? no_argument : required_argument,
			.val = (int)i,
		};
	while ((index = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (index == HELP) {
			fputs(usage, stdout);
			exit(0);
		}
		if (index < 0 || index > (int)N_RULES) /* getopt has said what is wrong */
			exit(2);
		set_option(o, &rules[index], optarg);
	}
	if (optind < argc)
		die("'%s' is not an option; see --help", argv[optind]);
}

/* Every run is bounded in count or in time. A paced run is given some time to end by its count. */
static void set_limits(struct options *o)
{
	double given = o->seconds;

	if (!o->count && given <= 0)
		given = 1;
	o->limit_s = given;
	if (given <= 0)
		o->limit_s = o->rate > 0 ? 1 + 1.2 * (double)o->count / o->rate : 60;
	else if (!o->count && o->rate > 0)
		o->limit_s = given + 0.5;
	if (!o->count)
		o->count = o->rate > 0 ? (uint64_t)(o->rate * given) : UINT64_MAX;
}

static void read_options(struct options *o, int argc, char **argv)
{
	static const uint8_t no_mac[ETH_ALEN];
	uint64_t last_port;

	parse(o, argc, argv);
	if (!o->object || !o->interface || !memcmp(o->dst_mac, no_mac, ETH_ALEN) || !o->dst_ip.s_addr ||
	    !o->src_ip.s_addr)
		die("--object, --interface, --dst-mac, --dst-ip and --src-ip are needed");
	last_port = o->port + (o->flows - 1) * o->port_step;
	if (last_port > 65535)
		die("the last of %" PRIu64 " flows would have port %" PRIu64, o->flows, last_port);
	if (o->socket && (o->flows > 1 || o->timestamp || o->udp_checksum))
		die("--socket goes with neither --flows nor --timestamp nor --udp-checksum");
	if (!o->socket && o->payload > PAYLOAD_MAX)
		die("--payload: %" PRIu64 " is more than %d, which takes --socket", o->payload, PAYLOAD_MAX);
	if (o->timestamp && o->payload < GENERATE_STAMP_SIZE + GENERATE_TIMESTAMP_SIZE)
		die("--timestamp: needs a payload of at least %d bytes", GENERATE_STAMP_SIZE + GENERATE_TIMESTAMP_SIZE);
	if (o->source_port + o->flows - 1 > 65535)
		die("the source port of the last of %" PRIu64 " flows is above 65535", o->flows);
	set_limits(o);
}

static void read_source_mac(struct options *o)
{
	struct ifreq request = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (strlen(o->interface) >= sizeof(request.ifr_name))
		die("'%s' is too long for the name of an interface", o->interface);
	strcpy(request.ifr_name, o->interface);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &request) < 0)
		die("interface '%s': %s", o->interface, strerror(errno));
	memcpy(o->src_mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
	close(fd);
}

/* ---- the plans ----------------------------------------------------------------------------- */

/* The plain sum of big-endian 16-bit words, to be folded later. */
static uint32_t sum_words(const void *data, size_t size)
{
	const uint8_t *byte = data;
	uint32_t sum = 0;
	size_t i;

	for (i = 0; i + 1 < size; i += 2)
		sum += (uint32_t)byte[i] << 8 | byte[i + 1];
	if (i < size)
		sum += (uint32_t)byte[i] << 8;
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum & 0xffff;
}

static __be64 pointer(unsigned int id, uint64_t value)
{
	return htobe64(GENERATE_IMMEDIATE(id, value));
}

static void fill_payload(uint8_t *payload, size_t size, size_t stamps_size)
{
	for (size_t i = 0; i < size; i++)
		payload[i] = i < stamps_size ? 0 : i & 0xff;
}

/* The UDP sum over all that the program does not patch: ports, stamp and two values are still 0. */
static uint32_t plan_udp_sum(const struct generate_headers *h, size_t udp_size, const void *payload,
			     size_t payload_size)
{
	size_t headers_size = udp_size - payload_size;

	return sum_words(&h->ip_src, 2 * sizeof(h->ip_src)) + IPPROTO_UDP + udp_size +
	       sum_words(&h->udp_src, headers_size) + sum_words(payload, payload_size);
}

static void make_plan(struct generate_plan *plan, const struct options *o, unsigned int n_items, const void *payload)
{
	struct generate_headers *h = &plan->headers;
	uint16_t udp_size = (uint16_t)(8 + 8 + n_items * GENERATE_POINTER_SIZE + o->payload);

	memcpy(h->eth_dst, o->dst_mac, ETH_ALEN);
	memcpy(h->eth_src, o->src_mac, ETH_ALEN);
	h->eth_proto = htons(ETH_P_IP);
	h->ip_version_ihl = 0x45;
	h->ip_len = htons(20 + udp_size);
	h->ip_frag_off = htons(0x4000); /* do not fragment, so that the id may stay 0 */
	h->ip_ttl = 64;
	h->ip_protocol = IPPROTO_UDP;
	h->ip_src = o->src_ip.s_addr;
	h->ip_dst = o->dst_ip.s_addr;
	h->ip_check = htons(fold(sum_words(&h->ip_version_ihl, 20)));
	h->udp_len = htons(udp_size);
	h->spead_magic = 0x53;
	h->spead_version = 4;
	h->spead_item_id_bytes = 2;
	h->spead_address_bytes = 6;
	h->spead_n_items = htons(n_items);
	h->heap_id = pointer(GENERATE_HEAP_CNT, 0);
	h->heap_length = pointer(GENERATE_HEAP_LENGTH, o->payload * o->packets_per_heap);
	h->payload_offset = pointer(GENERATE_PAYLOAD_OFFSET, 0);
	h->payload_length = pointer(GENERATE_PAYLOAD_LENGTH, o->payload);
	h->item = htobe64((uint64_t)GENERATE_ITEM_ID << 48); /* its value starts at offset 0 */
	plan->udp_sum = plan_udp_sum(h, udp_size, payload, o->payload);
}

static void make_plans(struct plans *plans, const struct options *o)
{
	uint8_t *payload;

	plans->packet_size = sizeof(struct generate_headers) + o->payload;
	plans->packet = calloc(1, plans->packet_size);
	if (!plans->packet)
		die("out of memory");
	payload = plans->packet + sizeof(struct generate_headers);
	/* What is written later is 0 in the sum that is begun with. */
	fill_payload(payload, o->payload, GENERATE_STAMP_SIZE + (o->timestamp ? GENERATE_TIMESTAMP_SIZE : 0));
	make_plan(&plans->first, o, GENERATE_N_ITEMS_FIRST, payload);
	make_plan(&plans->other, o, GENERATE_N_ITEMS_OTHER, payload);
}

/* ---- the program --------------------------------------------------------------------------- */

/* Where the variable is in the section's map, from the object's BTF. */
static void *variable(struct bpf_object *object, const char *section, void *values, const char *name, size_t size)
{
	const struct btf *btf = bpf_object__btf(object);
	int id = btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC);
	const struct btf_type *type = btf__type_by_id(btf, id);
	const struct btf_var_secinfo *info = type ? btf_var_secinfos(type) : NULL;

	for (int i = 0; type && i < btf_vlen(type); i++, info++) {
		const struct btf_type *var = btf__type_by_id(btf, info->type);

		if (!strcmp(btf__name_by_offset(btf, var->name_off), name) && info->size == size)
			return (char *)values + info->offset;
	}
	die("the program has no variable '%s' of %zu bytes: rebuild it", name, size);
}

#define SET(object, values, name, value)                                                                             \
	do {                                                                                                         \
		__typeof__(value) set_value = (value);                                                               \
		memcpy(variable(object, ".rodata", values, name, sizeof(set_value)), &set_value, sizeof(set_value)); \
	} while (0)

static void set_knobs(struct bpf_object *object, const struct options *o)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
	double unit_per_s = (double)(NS_PER_S << GENERATE_TIME_SHIFT);
	uint64_t interval = o->rate > 0 ? (uint64_t)(unit_per_s / o->rate) : 0;
	size_t size = 0;
	const void *initial = map ? bpf_map__initial_value(map, &size) : NULL;
	void *values = initial ? malloc(size) : NULL;

	if (!values)
		die("the program has no knobs: rebuild it");
	memcpy(values, initial, size);
	SET(object, values, "ifindex", (uint32_t)if_nametoindex(o->interface));
	SET(object, values, "count", o->count);
	SET(object, values, "interval", interval);
	SET(object, values, "max_behind", interval * o->burst);
	SET(object, values, "first_heap", o->first_heap);
	SET(object, values, "packets_per_heap", (uint32_t)o->packets_per_heap);
	SET(object, values, "payload_size", (uint32_t)o->payload);
	SET(object, values, "flows", (uint32_t)o->flows);
	SET(object, values, "port", (uint16_t)o->port);
	SET(object, values, "port_step", (uint16_t)o->port_step);
	SET(object, values, "source_port", (uint16_t)o->source_port);
	SET(object, values, "udp_checksum", (uint8_t)o->udp_checksum);
	SET(object, values, "whole_heaps", (uint8_t)o->whole_heaps);
	SET(object, values, "timestamp", (uint8_t)o->timestamp);
	if (bpf_map__set_initial_value(map, values, size))
		die("setting the knobs: %s", strerror(errno));
	free(values);
}

static void map_counters(struct generator *g)
{
	struct bpf_map *map = bpf_object__find_map_by_name(g->object, ".bss");

	if (!map)
		die("the program has no counters: rebuild it");
	g->bss_size = bpf_map__value_size(map);
	g->bss = mmap(NULL, g->bss_size, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);
	if (g->bss == MAP_FAILED)
		die("mapping the counters: %s", strerror(errno));
	g->state = variable(g->object, ".bss", g->bss, "state", sizeof(*g->state));
}

static void load(struct generator *g, const struct options *o)
{
	struct bpf_program *program;
	int error;

	g->object = bpf_object__open_file(o->object, NULL);
	if (!g->object)
		die("%s: %s", o->object, strerror(errno));
	set_knobs(g->object, o);
	error = bpf_object__load(g->object);
	if (error == -EPERM)
		die("the kernel refuses to load the program: this needs root (CAP_BPF, CAP_NET_ADMIN)");
	if (error)
		die("loading the program: %s", strerror(-error));
	program = bpf_object__find_program_by_name(g->object, "generate");
	if (!program)
		die("%s holds no program 'generate'", o->object);
	g->program_fd = bpf_program__fd(program);
	map_counters(g);
}

static void write_plans(struct generator *g, const struct plans *plans)
{
	const size_t size = sizeof(plans->first);

	memcpy(variable(g->object, ".bss", g->bss, "first_plan", size), &plans->first, size);
	memcpy(variable(g->object, ".bss", g->bss, "other_plan", size), &plans->other, size);
}

/* ---- running ------------------------------------------------------------------------------- */

static void on_signal(int number)
{
	/* SIGUSR1 only interrupts the system call. */
	if (number != SIGUSR1)
		interrupted = 1;
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1 };

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &action, NULL);
}

static void *watch_run(void *argument)
{
	const struct timespec period = { .tv_nsec = WATCH_PERIOD_NS };
	struct watch *w = argument;

	/* Again and again, because a signal may come just before the call that it should end. */
	while (!__atomic_load_n(&w->finished, __ATOMIC_ACQUIRE)) {
		uint64_t sent = __atomic_load_n(&w->state->sent, __ATOMIC_RELAXED);

		if (sent >= w->count || generate_now_ns() >= w->deadline_ns || interrupted) {
			__atomic_store_n(&w->over, true, __ATOMIC_RELEASE);
			pthread_kill(w->target, SIGUSR1);
		}
		nanosleep(&period, NULL);
	}
	return NULL;
}

/* Starts the watch with all signals blocked, so that they all go to the main thread. */
static pthread_t start_watch(struct watch *w)
{
	sigset_t all, before;
	pthread_t thread;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, NULL, watch_run, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		die("starting a thread: %s", strerror(error));
	return thread;
}

static void run(struct generator *g, const struct options *o, const struct plans *plans)
{
	struct watch w = {
		.state = g->state,
		.target = pthread_self(),
		.count = o->count,
		.deadline_ns = generate_now_ns() + (uint64_t)(o->limit_s * (double)NS_PER_S),
	};
	LIBBPF_OPTS(bpf_test_run_opts, test, .data_in = plans->packet, .data_size_in = plans->packet_size,
		    .flags = BPF_F_TEST_XDP_LIVE_FRAMES, .repeat = RUNS_PER_CALL, .batch_size = o->batch);
	pthread_t thread;
	int error = 0;

	thread = start_watch(&w);
	while (!__atomic_load_n(&w.over, __ATOMIC_ACQUIRE) && (!error || error == -EINTR))
		error = bpf_prog_test_run_opts(g->program_fd, &test);
	__atomic_store_n(&w.finished, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	if (error == -EINVAL)
		die("the kernel refuses packets of %zu bytes in live mode, or has no live mode "
		    "(Linux 5.18)",
		    plans->packet_size);
	if (error && error != -EINTR)
		die("running the program: %s", strerror(-error));
}

/* ---- what the other end accepted ----------------------------------------------------------- */

static int ethtool(int fd, const char *interface, void *command)
{
	struct ifreq request = { .ifr_data = command };

	strncpy(request.ifr_name, interface, sizeof(request.ifr_name) - 1);
	return ioctl(fd, SIOCETHTOOL, &request);
}

static bool ends_with(const char *text, size_t max_length, const char *end)
{
	size_t length = strnlen(text, max_length), end_length = strlen(end);

	return length >= end_length && !memcmp(text + length - end_length, end, end_length);
}

/* Adds up the n statistics whose names end so; false if there is none or they cannot be read. */
static bool sum_statistics(int fd, const char *interface, uint32_t n, const char *end, uint64_t *sum)
{
	struct ethtool_gstrings *names = calloc(1, sizeof(*names) + (size_t)n * ETH_GSTRING_LEN);
	struct ethtool_stats *values = calloc(1, sizeof(*values) + n * sizeof(uint64_t));
	bool found = false;

	if (!names || !values)
		die("out of memory");
	*names = (struct ethtool_gstrings){ .cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_STATS, .len = n };
	*values = (struct ethtool_stats){ .cmd = ETHTOOL_GSTATS, .n_stats = n };
	if (ethtool(fd, interface, names) < 0 || ethtool(fd, interface, values) < 0)
		n = 0;
	for (uint32_t i = 0; i < n; i++) {
		if (!ends_with((const char *)names->data + i * ETH_GSTRING_LEN, ETH_GSTRING_LEN, end))
			continue;
		*sum += values->data[i];
		found = true;
	}
	free(names);
	free(values);
	return found;
}

/*
 * Frames that redirects into the interface have handed over so far; false if its driver does not
 * count them. Counting errors would miss those of an interface whose other end is down.
 */
static bool read_accepted(const char *interface, uint64_t *accepted)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool known = false;

	*accepted = 0;
	if (fd < 0)
		return false;
	if (!ethtool(fd, interface, &info))
		known = sum_statistics(fd, interface, info.n_stats, "_xdp_xmit", accepted);
	close(fd);
	return known;
}

/* ---- main ---------------------------------------------------------------------------------- */

static void pin(uint64_t core)
{
	cpu_set_t cores;

	CPU_ZERO(&cores);
	CPU_SET(core, &cores);
	if (sched_setaffinity(0, sizeof(cores), &cores) < 0)
		die("--pin-core %" PRIu64 ": %s", core, strerror(errno));
}

static void wait_for_start(void)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(1); /* whoever was to start this is gone */
}

static void report(const struct options *o, const struct generate_state *s, uint64_t elapsed_ns, int64_t dropped)
{
	uint64_t span_ns = o->rate > 0 ? s->last_ns - s->start_ns : elapsed_ns;
	double seconds = (double)span_ns / (double)NS_PER_S;
	/* n packets span n - 1 intervals. */
	double intervals = s->sent ? (double)(s->sent - 1) : 0;
	char dropped_text[24] = "null";

	if (dropped >= 0)
		snprintf(dropped_text, sizeof(dropped_text), "%" PRId64, dropped);

	printf("{\"sent\": %" PRIu64 ", \"dropped\": %s, \"seconds\": %.6f, "
	       "\"pps\": %.0f, \"slips\": %" PRIu64 ", \"heaps\": %" PRIu64 ", \"payload\": %" PRIu64
	       ", \"packets_per_heap\": %" PRIu64 ", \"interrupted\": %s}\n",
	       (uint64_t)s->sent, dropped_text, seconds, seconds > 0 ? intervals / seconds : 0, (uint64_t)s->slips,
	       (uint64_t)(s->sent / o->packets_per_heap), o->payload, o->packets_per_heap,
	       interrupted ? "true" : "false");
}

static void send_from_the_kernel(const struct options *o, const struct plans *plans)
{
	uint64_t started_ns, elapsed_ns, accepted_before, accepted_after;
	int64_t dropped = -1; /* the driver does not count */
	struct generator g = { 0 };

	load(&g, o);
	write_plans(&g, plans);
	if (o->wait)
		wait_for_start();
	read_accepted(o->interface, &accepted_before);
	started_ns = generate_now_ns();
	run(&g, o, plans);
	elapsed_ns = generate_now_ns() - started_ns;
	if (read_accepted(o->interface, &accepted_after))
		dropped = (int64_t)(g.state->sent - (accepted_after - accepted_before));
	report(o, g.state, elapsed_ns, dropped);
	munmap(g.bss, g.bss_size);
	bpf_object__close(g.object);
}

static void send_through_socket(const struct options *o, const struct plans *plans)
{
	struct generate_state state = { 0 };
	struct generate_socket job = {
		.first = &plans->first,
		.other = &plans->other,
		.payload = plans->packet + sizeof(struct generate_headers),
		.payload_size = o->payload,
		.packets_per_heap = o->packets_per_heap,
		.first_heap = o->first_heap,
		.count = o->count,
		.burst = o->burst,
		.rate = o->rate,
		.to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)o->port), .sin_addr = o->dst_ip },
		.interrupted = &interrupted,
	};
	uint64_t started_ns;
	const char *failed;

	if (o->wait)
		wait_for_start();
	started_ns = generate_now_ns();
	job.deadline_ns = started_ns + (uint64_t)(o->limit_s * (double)NS_PER_S);
	failed = generate_through_socket(&job, &state);
	if (failed)
		die("%s: %s", failed, strerror(errno));
	report(o, &state, generate_now_ns() - started_ns, -1);
}

int main(int argc, char **argv)
{
	struct options o = {
		.rate = 100000,
		.first_heap = 1,
		.payload = 1024,
		.packets_per_heap = 64,
		.flows = 1,
		.port = 8888,
		.port_step = 1,
		.source_port = 20000,
		.burst = 128,
		.batch = 64,
	};
	struct plans plans = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	read_options(&o, argc, argv);
	read_source_mac(&o);
	pin(o.pin_core);
	make_plans(&plans, &o);
	catch_signals();
	if (o.socket)
		send_through_socket(&o, &plans);
	else
		send_from_the_kernel(&o, &plans);
	free(plans.packet);
	return interrupted ? 130 : 0;
}
