/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * packet: one packet of the socket as it came in, with every descriptor that came with it
 */
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "lib/wire.h"

#define PACKET_MAX_FDS 253 /* as many as the kernel lets through at once */

struct packet {
	struct pmem_agent_request request; /* as far as `size` goes, the rest is 0 */
	size_t size;                       /* as it was sent */
	int fds[PACKET_MAX_FDS];
	unsigned int n_fds;
	int cut; /* not 0: there were more descriptors, and we had no room for them */
};

/*
 * So that packet_receive() can tell an empty packet from the end. Packets that came before it can't be told.
 * 0 or a negative errno.
 */
int packet_prepare(int fd);

/* Never waits. 1: a packet; 0: the end, nothing more will come; -EAGAIN: none yet; another negative errno. */
int packet_receive(int fd, struct packet *ret);

/* 0 if it is a request; else PMEM_AGENT_REFUSED or _BUSY, with the reason in `detail`. */
int packet_check(const struct packet *p, char *detail, size_t size);

/* The only descriptor of a request, which is the caller's from here on. */
int packet_take_fd(struct packet *p);

/* Closes what it still has, which `uid` sent. */
void packet_clear(struct packet *p, uid_t uid);
