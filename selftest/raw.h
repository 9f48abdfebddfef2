/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw: packets on the agent's socket as anyone may send them, right or wrong
 */
#pragma once

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent/util.h"
#include "lib/wire.h"

#define RAW_MAX_FDS 253

static inline int raw_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fd = safe_close(fd);
	return fd;
}

/* `size` bytes with `n_fds` times `fd`; 0 or a negative errno. Never waits. */
static inline int raw_send(int to, const void *packet, size_t size, int fd, unsigned int n_fds)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * RAW_MAX_FDS)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)packet, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n_fds > 0) {
		struct cmsghdr *header = &control.align;

		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		for (unsigned int i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(fd));
	}
	return sendmsg(to, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static inline struct pmem_agent_request raw_request(uint64_t id)
{
	return (struct pmem_agent_request){
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_FLUSH,
		.id = id,
	};
}

static inline int raw_flush(int to, uint64_t id, int fd)
{
	struct pmem_agent_request request = raw_request(id);

	return raw_send(to, &request, sizeof(request), fd, 1);
}

/* Waits for a packet: its size, 0 at the end, or a negative errno. */
static inline ssize_t raw_receive(int from, struct pmem_agent_reply *reply)
{
	struct pollfd p = { .fd = from, .events = POLLIN };
	ssize_t n;

	do {
		if (poll(&p, 1, 60000) <= 0)
			return -ETIMEDOUT;
		n = recv(from, reply, sizeof(*reply), MSG_DONTWAIT | MSG_TRUNC);
	} while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	return n < 0 ? -errno : n;
}
