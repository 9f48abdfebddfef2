/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * packet: one packet of the socket as it came in, with every descriptor that came with it
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "closer.h"
#include "packet.h"
#include "util.h"

/* An empty packet and the end both read as 0 bytes; but each packet then says who sent it, and the end doesn't. */
int packet_prepare(int fd)
{
	int on = 1;

	return setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ? -errno : 0;
}

int packet_receive(int fd, struct packet *ret)
{
	/* Room for all there can be: what we don't take is closed right here, and that can hang. */
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * PACKET_MAX_FDS) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec iov = { .iov_base = &ret->request, .iov_len = sizeof(ret->request) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	memset(&ret->request, 0, sizeof(ret->request));
	ret->n_fds = 0;
	n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		ret->n_fds = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(ret->fds, CMSG_DATA(c), ret->n_fds * sizeof(int));
	}
	ret->size = (size_t)n;
	ret->cut = msg.msg_flags & MSG_CTRUNC;
	return n > 0 || msg.msg_controllen > 0;
}

int packet_check(const struct packet *p, char *detail, size_t size)
{
	const struct pmem_agent_request *r = &p->request;
	bool keep = r->type == PMEM_AGENT_PACKET_KEEP, report = r->type == PMEM_AGENT_PACKET_REPORT;
	bool flush = r->type == PMEM_AGENT_PACKET_FLUSH, by_number = flush && r->kept != 0;
	bool expects = r->device != 0 || r->inode != 0;

	/* The version first: others may have packets of another size. */
	if (p->size >= sizeof(r->version) && r->version != PMEM_AGENT_WIRE_VERSION)
		snprintf(detail, size, "a packet of version %u; this agent speaks version %u", r->version,
			 PMEM_AGENT_WIRE_VERSION);
	else if (p->size != sizeof(*r))
		snprintf(detail, size, "a packet of %zu bytes; a request has %zu", p->size, sizeof(*r));
	else if (!flush && r->type != PMEM_AGENT_PACKET_QUERY && !keep && !report)
		snprintf(detail, size, "a packet of unknown type %u", r->type);
	else if (r->scope >= PMEM_AGENT_N_SCOPES)
		snprintf(detail, size, "unknown scope %u", r->scope);
	else if (r->type == PMEM_AGENT_PACKET_QUERY && r->timeout_usec != 0)
		snprintf(detail, size, "a query with a timeout; it is answered at once");
	else if (report && (r->scope != PMEM_AGENT_SCOPE_AUTO || r->timeout_usec != 0))
		snprintf(detail, size, "a failure is reported without a scope or timeout");
	else if (keep && (r->scope != PMEM_AGENT_SCOPE_AUTO || r->timeout_usec != 0 || r->id == 0))
		snprintf(detail, size, "a descriptor is kept without a scope or timeout, and by a number that isn't 0");
	else if (r->flags != 0 || r->reserved != 0 || (r->kept && !flush) || (expects && !flush && !report))
		snprintf(detail, size, "a flag, a reserved field or one of another type of request is not 0");
	else if (p->cut) {
		snprintf(detail, size, "the agent has no free descriptor for yours; try again later");
		return PMEM_AGENT_BUSY;
	} else if (by_number && p->n_fds != 0)
		snprintf(detail, size, "a descriptor came with a request for one that is kept");
	else if (!by_number && p->n_fds != 1)
		snprintf(detail, size, "%u descriptors came with the request; it needs exactly one", p->n_fds);
	else
		return 0;
	return PMEM_AGENT_REFUSED;
}

int packet_take_fd(struct packet *p)
{
	return p->fds[--p->n_fds];
}

void packet_clear(struct packet *p, uid_t uid)
{
	while (p->n_fds > 0)
		closer_close(p->fds[--p->n_fds], uid);
}
