/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client: what the files of libpmem-agent share
 *
 *   client.c      the calls
 *   slot.c        what threads want, and who does what while they wait
 *   connection.c  requests out, answers in
 *   page.c        the pages of regions
 *   exchange.c    one packet each way
 *
 * Many threads use one struct pmem_agent. What they want stands in slots. There is one lock, held by nobody who waits.
 * At any time at most one thread sends, and at most one receives on each connection: threads that wait do this for each
 * other. While one sends, others that want the same flush gather in one slot; once it is being sent nobody joins it any
 * more, since its flush may have begun.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <sys/un.h>

#include "exchange.h"
#include "pmem-agent.h"

#define CLIENT_MAX_CONNECTIONS 16
#define CLIENT_MAX_CALLS       64 /* flushes under way that threads wait for; others wait for room */
#define CLIENT_MAX_SLOTS       (PMEM_AGENT_MAX_SUBMITTED + CLIENT_MAX_CALLS)
#define CLIENT_MAX_PAGES       64

struct connection {
	int fd;         /* -1: none */
	uint64_t inode; /* of the socket: what else has that number is not ours to close */
	bool receiving; /* a thread waits for packets without the lock: nobody else takes any */
	bool sending;   /* a thread sends without the lock */
	bool ended;     /* while that one did: it closes it */
};

enum slot_state {
	SLOT_FREE,
	SLOT_GATHERING, /* not sent; others may join */
	SLOT_SENDING,
	SLOT_SENT,
	SLOT_ANSWERED,
};

/* What is to be flushed. The same number of the same file at the same time: it is the same open file. */
struct slot_key {
	int fd;
	uint32_t type, scope;
	bool alone; /* nobody joins it */
	uint64_t device, inode;
};

struct slot {
	enum slot_state state;
	bool submitted; /* taken by pmem_agent_wait() */
	bool pinned;    /* a thread sends it */
	bool done;      /* nobody wants it any more: free when it is not pinned */
	bool called;    /* a thread that waits has been woken, to send or receive */
	unsigned int members;
	struct slot_key key;
	uint64_t deadline_usec; /* the last of its members', CLOCK_MONOTONIC */
	unsigned int expected;  /* members that are likely to come, */
	uint64_t hold_usec;     /* for whom it waits until then */
	uint64_t sent_usec;
	struct connection *connection;
	pthread_cond_t changed;
	int error; /* as it will be returned */
	enum pmem_agent_method method;
	struct pmem_agent_result result; /* its id is the slot's */
};

/*
 * Who has just had an answer in common is likely to ask again: the next request for the same waits a little for them,
 * as the agent does for those that it has answered. Who was alone never waits.
 */
#define CLIENT_GATHER_MAX_USEC 1000
#define CLIENT_GATHER_SHARE    4 /* of the time that the answer took */

struct client_page {
	uint64_t number; /* stored before `page`, and for good */
	const struct pmem_agent_page *page;
	char path[128 + 24];
	uint64_t inode;
	uint64_t looked_sec; /* when it was looked at whether that still is the file there */
};

struct pmem_agent {
	struct sockaddr_un address;
	char directory[128];   /* where the pages are */
	unsigned int *process; /* a word of its own that a child finds 0: see client.c */
	pthread_mutex_t lock;
	int epoll;            /* for pmem_agent_get_fd() */
	int event[2];         /* a pipe: its first end is in that, and ready while a submitted request has its answer */
	uint64_t event_inode; /* whether the number is still ours */
	bool signalled;       /* there is a byte in the pipe */
	bool sending;         /* a thread does */
	unsigned int waiting; /* threads in pmem_agent_wait() without a part in it */
	pthread_cond_t answered; /* they wait for it */
	pthread_cond_t room;     /* a slot has become free */
	uint64_t last_id;
	struct {
		struct slot_key key;
		unsigned int expected;
		uint64_t since_usec, until_usec;
	} gather;
	int refused;                /* the agent wants none of our connections: the errno, negative */
	struct connection *current; /* what the next request goes to; NULL: to none of them */
	struct connection connections[CLIENT_MAX_CONNECTIONS];
	struct slot slots[CLIENT_MAX_SLOTS];
	struct client_page pages[CLIENT_MAX_PAGES];
};

/* ---- slot.c: all but those of time are called with the lock ---- */

uint64_t client_now_usec(void);

/* When so much time has passed; UINT64_MAX: never. */
uint64_t client_deadline(uint64_t timeout_usec);
bool client_is_over(uint64_t deadline_usec);

/* For poll(): milliseconds until then, rounded up; -1 for ever. */
int client_until(uint64_t deadline_usec);

/* Gives the lock up meanwhile. */
void client_wait_until(struct pmem_agent *agent, pthread_cond_t *cond, uint64_t deadline_usec);

/* NULL: there is no room. */
struct slot *slot_new(struct pmem_agent *agent, bool submitted, const struct slot_key *key, uint64_t deadline_usec);
void slot_free(struct pmem_agent *agent, struct slot *s);

/* One that others are about to send too, or a new one; waits for room. NULL at the deadline. */
struct slot *slot_join(struct pmem_agent *agent, const struct slot_key *key, uint64_t deadline_usec);

/* Does what there is to do until the slot has come so far. False: the deadline has passed before. */
bool slot_await(struct pmem_agent *agent, struct slot *s, enum slot_state state, uint64_t deadline_usec);

/* The call has what it wanted, or gives up. */
void slot_part_with(struct pmem_agent *agent, struct slot *s);

/* The caller goes, and had a part in it: somebody who waits takes it over. */
void slot_hand_over(struct pmem_agent *agent);

/* So that who polls learns of answers that others have taken in for it. */
void slot_signal_answers(struct pmem_agent *agent);

/* Its answer; whoever waits for it is woken. */
void client_settle(struct pmem_agent *agent, struct slot *s, enum pmem_agent_answer answer, int error,
		   const char *detail);

/* ---- connection.c: all called with the lock, which they give up where they wait ---- */

int connection_open(struct pmem_agent *agent);
void connection_close(struct pmem_agent *agent, struct connection *c);

/*
 * Sends the slot's request to whichever agent takes it. 0 or a negative errno: then nothing has been asked. -EALREADY:
 * there was no room until `deadline_usec`, and others may go on with it.
 */
int connection_deliver(struct pmem_agent *agent, struct slot *s, uint64_t deadline_usec);

/* Takes in what has come, without waiting, where nobody else does. */
void connection_drain(struct pmem_agent *agent);

/* Takes in something that comes on one of these, or nothing until the deadline. Nobody else receives there. */
void connection_receive(struct pmem_agent *agent, struct connection **connections, unsigned int n,
			uint64_t deadline_usec);
