// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * libpcap reads the packets one by one, each into the same memory, so each is pushed to the stream before the next is
 * read. When the stream does not take one, it stays where it is until the stream does: nothing is lost, and a file of
 * any size is read in bounded memory.
 *
 * The user's filter is run by us and not by libpcap, which would not say how many packets it drops. There is no other
 * filter: every packet is walked by frame.h, so that VLAN tags, IPv6 and fragments need no word from the user, and what
 * cannot be used is counted by reason. Every packet read ends up in exactly one place (see docs/statistics.md).
 *
 * Checksums are not verified: packets captured on the host that sent them were given theirs later, by the device.
 *
 * Threads: a capture is opened, and read up to its first packet, by the user's thread. From then on it is the worker's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "decompress.h"
#include "fragment.h"
#include "frame.h"
#include "pcap_library.h"
#include "stats.h"
#include "transport.h"

#ifndef DLT_LINUX_SLL2
#define DLT_LINUX_SLL2 276
#endif

/* Packets in a batch at most: given to the stream, and read. */
#define BATCH 64
#define BATCH_READ 4096
/*
 * Packets read between two turns of the other readers on the loop: 50 to 200 us, as in transport_buffer.c. A stream that is
 * stopped while it is blocked has one more turn.
 */
#define READ_PER_POLL 512

struct pcap_reader {
	struct xps_reader base;
	struct xps_decompress *source;
	struct xps_pcap_library libpcap;
	pcap_t *pcap;
	enum xps_link link;
	bool has_filter;
	struct bpf_program filter;
	struct xps_fragments *fragments;
	char name[52]; /* of the file, for the log, whose lines are short: the end of it, if it is long */

	int result;                 /* of the last pcap_next_ex() */
	struct pcap_pkthdr *header; /* and the packet, if it gave one */
	const uint8_t *data;
	bool read_ahead; /* nobody has looked at it yet */

	struct xps_view view; /* of the last packet */
	bool has_view;        /* and the stream has not taken it yet */
	bool in_batch;
	uint32_t batch_used, batch_read;

	uint64_t n_read, n_undecodable;
	uint64_t n_lost[XPS_N_STATS]; /* what we counted, for the summary; only a few are used */
};

struct xps_capture {
	struct pcap_reader *reader; /* NULL once a stream has it */
};

bool xps_has_pcap(void)
{
	return true;
}

int xps_load_pcap(struct xps_fail *fail)
{
	struct xps_pcap_library libpcap;

	return xps_pcap_library_load(&libpcap, fail);
}

/* ---------------------------------------------------------------- one packet */

static void lose(struct pcap_reader *p, enum xps_stat stat, uint64_t n)
{
	xps_reader_count(&p->base, (int)stat, n);
	p->n_lost[stat] += n;
}

/* Count fragments that have been given up since the last time. */
static void lose_fragments(struct pcap_reader *p)
{
	lose(p, XPS_STAT_PCAP_FRAGMENTS, xps_fragments_lost(p->fragments) - p->n_lost[XPS_STAT_PCAP_FRAGMENTS]);
}

/* Returns whether there is one. */
static bool read_packet(struct pcap_reader *p)
{
	if (!p->read_ahead)
		p->result = p->libpcap.next_ex(p->pcap, &p->header, &p->data);
	p->read_ahead = false;
	if (p->result != 1)
		return false;
	p->n_read++;
	p->batch_read++;
	xps_reader_count(&p->base, XPS_STAT_PCAP_PACKETS, 1);
	return true;
}

/* The datagram that this fragment completes, if it does. */
static bool view_joined(struct pcap_reader *p, struct xps_frame *frame)
{
	struct xps_joined joined;
	int complete;

	complete =
		xps_fragments_add(p->fragments, frame, p->data + frame->payload_offset, p->header->ts.tv_sec, &joined);
	lose_fragments(p);
	if (complete != 1)
		return false;
	frame->protocol = joined.protocol;
	switch (xps_frame_parse_joined(frame, joined.payload, joined.length)) {
	case XPS_FRAME_UDP:
		xps_reader_count(&p->base, XPS_STAT_PCAP_JOINED, joined.n_fragments - 1);
		p->view = (struct xps_view){
			.data = joined.payload + frame->payload_offset,
			.length = frame->payload_length,
		};
		return true;
	case XPS_FRAME_TRUNCATED:
	case XPS_FRAME_BAD_LENGTH:
		lose(p, XPS_STAT_PCAP_BAD_LENGTH, joined.n_fragments);
		return false;
	case XPS_FRAME_NOT_IP:
	case XPS_FRAME_NOT_UDP:
	case XPS_FRAME_FRAGMENT: /* of a fragment, which nobody makes */
		break;
	}
	lose(p, XPS_STAT_PCAP_NOT_UDP, joined.n_fragments);
	return false;
}

/* Make a view of the datagram that the packet is, or completes. False: there is none, and the packet is accounted for. */
static bool view_packet(struct pcap_reader *p)
{
	const uint32_t captured = p->header->caplen;
	uint32_t length;
	struct xps_frame frame;
	enum xps_frame_verdict verdict;

	if (p->has_filter && !p->libpcap.offline_filter(&p->filter, p->header, p->data)) {
		lose(p, XPS_STAT_PCAP_FILTERED, 1);
		return false;
	}
	if (likely(p->link == XPS_LINK_ETHERNET && xps_frame_is_usual(p->data, captured, p->header->len, &length) &&
		   length <= captured - XPS_FRAME_USUAL_OFFSET)) {
		p->view = (struct xps_view){ .data = p->data + XPS_FRAME_USUAL_OFFSET, .length = length };
		return true;
	}
	verdict = xps_frame_parse_link(&frame, p->link, p->data, captured, p->header->len);
	switch (verdict) {
	case XPS_FRAME_UDP:
	case XPS_FRAME_FRAGMENT:
		if (frame.payload_length > captured - frame.payload_offset)
			break;
		if (verdict == XPS_FRAME_FRAGMENT)
			return view_joined(p, &frame);
		p->view = (struct xps_view){ .data = p->data + frame.payload_offset, .length = frame.payload_length };
		return true;
	case XPS_FRAME_TRUNCATED:
		if (captured < p->header->len)
			break;
		/* fall through */
	case XPS_FRAME_BAD_LENGTH:
		lose(p, XPS_STAT_PCAP_BAD_LENGTH, 1);
		return false;
	case XPS_FRAME_NOT_IP:
	case XPS_FRAME_NOT_UDP:
		lose(p, XPS_STAT_PCAP_NOT_UDP, 1);
		return false;
	}
	lose(p, XPS_STAT_PCAP_SNAPPED, 1);
	return false;
}

/* ---------------------------------------------------------------- batches */

static void begin_batch(struct pcap_reader *p)
{
	p->in_batch = true;
	p->batch_used = p->batch_read = 0;
	xps_batch_begin(&p->base);
}

static void add_undecodable(struct pcap_reader *p)
{
	p->n_undecodable += p->batch_used - p->base.batch_packets;
}

static void end_batch(struct pcap_reader *p)
{
	p->in_batch = false;
	add_undecodable(p);
	xps_batch_end(&p->base);
}

static enum xps_poll finish(struct pcap_reader *p)
{
	if (p->base.batch_packets) /* a batch without a packet is none */
		end_batch(p);
	return XPS_POLL_END;
}

static enum xps_poll capture_poll(struct xps_reader *reader)
{
	struct pcap_reader *p = XPS_CONTAINER_OF(reader, struct pcap_reader, base);

	for (int i = 0; i < READ_PER_POLL; i++) {
		if (!p->in_batch)
			begin_batch(p);
		if (!p->has_view) {
			if (!read_packet(p))
				return finish(p);
			p->has_view = view_packet(p);
		}
		if (p->has_view) {
			if (xps_batch_push(reader, &p->view, 1) == 0)
				return XPS_POLL_BLOCKED;
			p->has_view = false;
			p->batch_used++;
			if (xps_reader_ended(reader))
				return finish(p);
		}
		if (p->batch_used == BATCH || p->batch_read >= BATCH_READ)
			end_batch(p);
	}
	return XPS_POLL_AGAIN;
}

/* ---------------------------------------------------------------- the end */

static void free_reader(struct pcap_reader *p)
{
	if (p->has_filter)
		p->libpcap.freecode(&p->filter);
	if (p->pcap)
		p->libpcap.close(p->pcap); /* and its FILE */
	xps_decompress_free(p->source);
	xps_fragments_free(p->fragments);
	free(p);
}

static void add_reason(char *text, size_t size, uint64_t n, const char *reason)
{
	const size_t used = strlen(text);

	if (n)
		snprintf(text + used, size - used, "%s%llu %s", used ? ", " : "", (unsigned long long)n, reason);
}

/* One line that says how many packets could not be used and why. Those that the user filtered out were not to be. */
static void warn_of_losses(struct pcap_reader *p)
{
	static const enum xps_stat lost[] = { XPS_STAT_PCAP_FRAGMENTS, XPS_STAT_PCAP_SNAPPED, XPS_STAT_PCAP_BAD_LENGTH,
					      XPS_STAT_PCAP_NOT_UDP };
	char text[512], reasons[256] = "";
	uint64_t n = p->n_undecodable;

	for (size_t i = 0; i < XPS_ARRAY_LEN(lost); i++) {
		n += p->n_lost[lost[i]];
		add_reason(reasons, sizeof(reasons), p->n_lost[lost[i]], xps_stat_reason((int)lost[i]));
	}
	add_reason(reasons, sizeof(reasons), p->n_undecodable, "not SPEAD");
	if (!n)
		return;
	snprintf(text, sizeof(text), "capture file %s: %llu of %llu packets could not be used: %s", p->name,
		 (unsigned long long)n, (unsigned long long)p->n_read, reasons);
	xps_reader_tell(&p->base, XPS_LOG_WARNING, text);
	if (p->has_filter && p->n_lost[XPS_STAT_PCAP_FRAGMENTS]) {
		snprintf(text, sizeof(text),
			 "capture file %s: a filter that names ports drops all fragments but the first; name addresses "
			 "instead",
			 p->name);
		xps_reader_tell(&p->base, XPS_LOG_WARNING, text);
	}
}

static void warn_of_damage(struct pcap_reader *p)
{
	const char *damage = xps_decompress_damage(p->source);
	char text[512];

	snprintf(text, sizeof(text), "capture file %s: only the first %llu packets could be read: %s", p->name,
		 (unsigned long long)p->n_read, damage ? damage : p->libpcap.geterr(p->pcap));
	xps_reader_tell(&p->base, XPS_LOG_WARNING, text);
}

static void capture_close(struct xps_reader *reader)
{
	struct pcap_reader *p = XPS_CONTAINER_OF(reader, struct pcap_reader, base);

	if (p->in_batch)
		add_undecodable(p);
	if (p->has_view) /* another reader has ended the stream */
		xps_reader_count(reader, XPS_STAT_AFTER_STOP, 1);
	xps_fragments_drop(p->fragments);
	lose_fragments(p);
	if (p->result == PCAP_ERROR)
		warn_of_damage(p);
	warn_of_losses(p);
	free_reader(p);
}

/* ---------------------------------------------------------------- opening: the user's thread */

static int choose_link(struct pcap_reader *p, const char *filename, struct xps_fail *fail)
{
	static const struct {
		int type;
		enum xps_link link;
	} links[] = {
		{ DLT_EN10MB, XPS_LINK_ETHERNET }, { DLT_RAW, XPS_LINK_RAW },         { DLT_IPV4, XPS_LINK_RAW },
		{ DLT_IPV6, XPS_LINK_RAW },        { DLT_NULL, XPS_LINK_NULL },       { DLT_LOOP, XPS_LINK_NULL },
		{ DLT_LINUX_SLL, XPS_LINK_SLL },   { DLT_LINUX_SLL2, XPS_LINK_SLL2 },
	};
	const int type = p->libpcap.datalink(p->pcap);
	const char *description = p->libpcap.datalink_val_to_description(type);

	for (size_t i = 0; i < XPS_ARRAY_LEN(links); i++) {
		if (links[i].type == type) {
			p->link = links[i].link;
			return 0;
		}
	}
	return xps_fail_set(fail, EINVAL, "read capture file",
			    "%s: the packets begin with headers of link type %d (%s), which xdpspead does not know; it "
			    "knows Ethernet, raw IP, BSD loopback and Linux cooked captures",
			    filename, type, description ? description : "unknown to libpcap too");
}

static int open_pcap(struct pcap_reader *p, const char *filename, struct xps_fail *fail)
{
	FILE *file = xps_decompress_file(p->source);
	char text[PCAP_ERRBUF_SIZE] = "";
	const char *damage;

	if (!file)
		return xps_fail_set(fail, ENOMEM, "read capture file", "no memory");
	p->pcap = p->libpcap.fopen_offline(file, text);
	if (p->pcap)
		return 0;
	fclose(file);
	damage = xps_decompress_damage(p->source);
	return xps_fail_set(fail, EINVAL, "read capture file", "%s: not a capture file (%s)", filename,
			    damage ? damage : text);
}

static int compile_filter(struct pcap_reader *p, const char *filter, struct xps_fail *fail)
{
	if (!filter[0])
		return 0;
	if (p->libpcap.compile(p->pcap, &p->filter, filter, 1, PCAP_NETMASK_UNKNOWN) < 0)
		return xps_fail_set(fail, EINVAL, "compile filter", "'%s': %s (see pcap-filter(7))", filter,
				    p->libpcap.geterr(p->pcap));
	p->has_filter = true;
	return 0;
}

/*
 * So that what libpcap cannot read (a pcapng file of interfaces whose link types differ) is an error of this call. A file
 * that merely ends too early is not: it is read as far as it goes.
 */
static int read_ahead(struct pcap_reader *p, const char *filename, struct xps_fail *fail)
{
	p->result = p->libpcap.next_ex(p->pcap, &p->header, &p->data);
	p->read_ahead = true;
	if (p->result != PCAP_ERROR || xps_decompress_damage(p->source) || feof(p->libpcap.file(p->pcap)))
		return 0;
	return xps_fail_set(fail, EINVAL, "read capture file", "%s: libpcap cannot read it: %s", filename,
			    p->libpcap.geterr(p->pcap));
}

static void set_name(struct pcap_reader *p, const char *filename)
{
	const size_t length = strlen(filename), room = sizeof(p->name) - 1;

	if (length <= room)
		snprintf(p->name, sizeof(p->name), "%s", filename);
	else
		snprintf(p->name, sizeof(p->name), "...%s", filename + length - (room - 3));
}

static int open_reader(struct pcap_reader *p, const char *filename, const char *filter, struct xps_fail *fail)
{
	int err;

	set_name(p, filename);
	p->fragments = xps_fragments_new();
	if (!p->fragments)
		return xps_fail_set(fail, ENOMEM, "read capture file", "no memory");
	p->source = xps_decompress_new(filename, fail);
	if (!p->source)
		return -fail->err;
	err = xps_pcap_library_load(&p->libpcap, fail);
	if (!err)
		err = open_pcap(p, filename, fail);
	if (!err)
		err = choose_link(p, filename, fail);
	if (!err)
		err = compile_filter(p, filter, fail);
	if (!err)
		err = read_ahead(p, filename, fail);
	return err;
}

struct xps_capture *xps_capture_open(const char *filename, const char *filter, struct xps_fail *fail)
{
	static const struct xps_reader_ops ops = { .name = "pcap", .poll = capture_poll, .close = capture_close };
	struct xps_capture *capture = calloc(1, sizeof(*capture));

	if (capture)
		capture->reader = calloc(1, sizeof(*capture->reader));
	if (!capture || !capture->reader) {
		free(capture);
		xps_fail_set(fail, ENOMEM, "read capture file", "no memory");
		return NULL;
	}
	capture->reader->base.ops = &ops;
	if (open_reader(capture->reader, filename, filter, fail) == 0)
		return capture;
	xps_capture_free(capture);
	return NULL;
}

void xps_capture_free(struct xps_capture *capture)
{
	if (!capture)
		return;
	if (capture->reader)
		free_reader(capture->reader);
	free(capture);
}

int xps_add_pcap_reader(struct xps_stream *stream, struct xps_capture *capture, struct xps_fail *fail)
{
	int err;

	if (!capture->reader)
		return xps_fail_set(fail, EINVAL, "read capture file", "it was given to a stream already");
	err = xps_reader_attach(stream, &capture->reader->base);
	if (err == -EPIPE)
		return 0;
	if (err)
		return xps_fail_set(fail, -err, "read capture file", "%s", strerror(-err));
	capture->reader = NULL;
	return 0;
}
