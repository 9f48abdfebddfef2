/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exchange: one packet to the agent, one packet back, and what that one says
 *
 * No locks, no allocation, no state: each of these may be called from a signal handler, and after vfork().
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/un.h>

#include "wire.h"

/* A connection: a blocking descriptor, or a negative errno. Does not wait: -EAGAIN if too many do. */
int exchange_connect(const struct sockaddr_un *address);

/*
 * Sends `request` with the descriptor `fd`, unless it is for one that is kept. Does not wait: -EAGAIN if there is no
 * room. 0 or a negative errno.
 */
int exchange_send(int connection, const struct pmem_agent_request *request, int fd);

/* Whether that error says that the peer takes nothing more and surely has not got this packet either. */
bool exchange_is_undelivered(int r);

/*
 * The size of the next packet, of which `ret` is filled in as far as it goes; 0: the end, nothing more will come; or a
 * negative errno, -EAGAIN if there is none and `wait` is false.
 */
ssize_t exchange_receive(int connection, struct pmem_agent_reply *ret, bool wait);

enum exchange_concern {
	EXCHANGE_ONE,     /* the request with its id */
	EXCHANGE_ALL,     /* all that wait on this connection */
	EXCHANGE_REFUSAL, /* these too, and the agent wants none of our connections */
};

struct exchange_verdict {
	enum exchange_concern concern;
	enum pmem_agent_answer answer; /* durable only if it is exactly a confirmation */
	int error;                     /* to be returned: 0 with PMEM_AGENT_DURABLE only, never -EAGAIN or -ESRCH */
	const char *detail;            /* "", or why not; may be in `reply` */
};

/*
 * What a packet of `size` bytes says; it must be zero beyond. Which type of reply its request asked for is looked at
 * only with EXCHANGE_ONE: call exchange_expect() then.
 */
void exchange_judge(struct pmem_agent_reply *reply, size_t size, struct exchange_verdict *ret);

/* The verdict for a request of that type: a reply of another makes no sense. */
void exchange_expect(uint32_t type, const struct pmem_agent_reply *reply, struct exchange_verdict *verdict);
