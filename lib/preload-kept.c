/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-kept: descriptors that the agent keeps for mappings whose own have been closed
 *
 * When the application closes the descriptor that it mapped a file by, and the mapping stays, the agent is given it to
 * keep. A mapping holds its file as a descriptor does: so that nothing stays locked or mounted for longer than it
 * would, the agent drops it before munmap() returns. There is a connection for each; it ends with the process, too.
 */
#include <errno.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "exchange.h"
#include "preload.h"

#define N_KEPT 16

/* With an agent that doesn't answer at once: nothing is flushed for these answers. */
#define PATIENCE_NSEC PRELOAD_NSEC_PER_SEC

enum kept_state { KEPT_FREE, KEPT_USED, KEPT_BUSY };

struct kept {
	struct preload_line line; /* its state is ours */
	uint64_t device, inode, number;
	uintptr_t start, end; /* all its mappings are within */
};

static struct kept kept[N_KEPT];
static uint32_t n_kept; /* at most; for those who have none */

static bool change(struct kept *k, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(&k->line.state, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static bool is_used(const struct kept *k)
{
	return __atomic_load_n(&k->line.state, __ATOMIC_ACQUIRE) == KEPT_USED;
}

/* Where it is mapped. False: nowhere; or it can't be told. */
static bool find_mappings(uint64_t device, uint64_t inode, uintptr_t *ret_start, uintptr_t *ret_end)
{
	struct preload_mapping m;
	struct preload_map map;
	bool found = false;

	if (preload_map_open(&map) < 0)
		return false;
	for (uintptr_t at = 0; preload_map_next(&map, at, &m) > 0; at = m.end) {
		if (m.device != device || m.inode != inode)
			continue;
		*ret_start = found ? *ret_start : m.start;
		*ret_end = m.end;
		found = true;
	}
	preload_map_close(&map);
	return found;
}

/* The next packet, or the end, by that time. Not from a line that is another thread's by now: that waits for it. */
static ssize_t receive_soon(const struct preload_line *line, uint64_t until, struct pmem_agent_reply *reply)
{
	struct pollfd p = { .fd = line->fd, .events = POLLIN };
	uint64_t now;
	int r;

	do {
		now = preload_now();
		r = poll(&p, 1, now < until ? (int)((until - now) / 1000000) + 1 : 0);
	} while (r < 0 && errno == EINTR && now < until);
	return r > 0 && preload_line_is_ours(line) ? exchange_receive(line->fd, reply, false) : -ETIMEDOUT;
}

/* 0, or a negative errno: it isn't kept. */
static int hand_over(struct kept *k, int fd)
{
	struct pmem_agent_request request = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_KEEP,
	};
	struct pmem_agent_reply reply;
	uint64_t number;
	int r;

	if (getrandom(&number, sizeof(number), GRND_NONBLOCK) != sizeof(number) || number == 0)
		return -EAGAIN;
	__atomic_store_n(&k->number, number, __ATOMIC_RELEASE);
	r = preload_line_connect(&k->line);
	if (r < 0)
		return r;
	request.id = number;
	r = exchange_send(k->line.fd, &request, fd);
	if (r == 0)
		r = receive_soon(&k->line, preload_now() + PATIENCE_NSEC, &reply) == sizeof(reply) &&
			    reply.type == PMEM_AGENT_PACKET_KEEP && reply.id == number && reply.answer == 0 &&
			    reply.error == 0
			? 0
			: -EPROTO;
	if (r < 0)
		preload_line_close(&k->line);
	return r;
}

void preload_kept_offer(int fd, const struct preload_file *file)
{
	uintptr_t start, end;

	if (!preload_is_own_process() || preload_kept_find(file->device, file->inode) != 0 ||
	    !find_mappings(file->device, file->inode, &start, &end))
		return;
	for (unsigned int i = 0; i < N_KEPT; i++) {
		struct kept *k = &kept[i];

		if (!change(k, KEPT_FREE, KEPT_BUSY))
			continue;
		PRELOAD_POKE(k->device, file->device);
		PRELOAD_POKE(k->inode, file->inode);
		PRELOAD_POKE(k->start, start);
		PRELOAD_POKE(k->end, end);
		__atomic_store_n(&n_kept, N_KEPT, __ATOMIC_RELEASE);
		change(k, KEPT_BUSY, hand_over(k, fd) == 0 ? KEPT_USED : KEPT_FREE);
		return;
	}
}

static struct kept *find(uint64_t device, uint64_t inode)
{
	for (unsigned int i = 0; i < __atomic_load_n(&n_kept, __ATOMIC_ACQUIRE); i++)
		if (is_used(&kept[i]) && PRELOAD_PEEK(kept[i].device) == device && PRELOAD_PEEK(kept[i].inode) == inode)
			return &kept[i];
	return NULL;
}

/* Its place may be given to another file just now, which must not be flushed in the name of this one. */
uint64_t preload_kept_find(uint64_t device, uint64_t inode)
{
	const struct kept *k = find(device, inode);
	uint64_t number = k ? __atomic_load_n(&k->number, __ATOMIC_ACQUIRE) : 0;

	return k && find(device, inode) == k && __atomic_load_n(&k->number, __ATOMIC_ACQUIRE) == number ? number : 0;
}

static bool overlaps(const struct kept *k, uintptr_t start, uintptr_t end)
{
	return is_used(k) && start < PRELOAD_PEEK(k->end) && end > PRELOAD_PEEK(k->start);
}

void preload_kept_extend(uint64_t device, uint64_t inode, uintptr_t start, uintptr_t end)
{
	struct kept *k = find(device, inode);

	if (k)
		preload_range_widen(&k->start, &k->end, start, end);
}

void preload_kept_moved(uintptr_t old, uintptr_t old_end, uintptr_t start, uintptr_t end)
{
	for (unsigned int i = 0; i < __atomic_load_n(&n_kept, __ATOMIC_ACQUIRE); i++)
		if (overlaps(&kept[i], old, old_end))
			preload_range_widen(&kept[i].start, &kept[i].end, start, end);
}

/* Returns when the agent has dropped it; the connection of one that isn't ours any more is not to be touched. */
static void drop(struct kept *k, uint64_t until)
{
	struct pmem_agent_reply reply;

	if (!change(k, KEPT_USED, KEPT_BUSY))
		return;
	if (preload_line_is_ours(&k->line)) {
		shutdown(k->line.fd, SHUT_WR);
		receive_soon(&k->line, until, &reply);
		preload_line_close(&k->line);
	}
	change(k, KEPT_BUSY, KEPT_FREE);
}

void preload_kept_unmapped(uintptr_t start, uintptr_t end)
{
	uint32_t n = __atomic_load_n(&n_kept, __ATOMIC_ACQUIRE);
	uint64_t until;

	if (n == 0 || !preload_is_own_process())
		return;
	until = preload_now() + PATIENCE_NSEC; /* with all of them */
	for (unsigned int i = 0; i < n; i++) {
		struct kept *k = &kept[i];
		uintptr_t first, last;

		if (overlaps(k, start, end) &&
		    !find_mappings(PRELOAD_PEEK(k->device), PRELOAD_PEEK(k->inode), &first, &last))
			drop(k, until);
	}
}

void preload_kept_inherit(void)
{
	for (unsigned int i = 0; i < N_KEPT; i++) {
		if (kept[i].line.state != KEPT_FREE)
			preload_line_close(&kept[i].line);
		kept[i].line.state = KEPT_FREE;
	}
}
