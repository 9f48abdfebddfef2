/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flush: the rounds of one region, and who waits for which
 *
 * A pure state machine: events go in, actions come out of flush_next(), the clock is passed in. It makes no system
 * call and allocates nothing after flush_new(), so that it can be run through any schedule of events.
 *
 * The rule it keeps: a request is answered durable only by a round that started after the request arrived, by a call
 * of it that makes the request's target durable and that the host confirmed, and if no error waited in the request's
 * own descriptor. At most one round is in flight.
 *
 * A round takes all that waits when it begins, by as few calls as are sound (see plan.h), within bounds: so many calls,
 * so many of them led by one uid, so many descriptors. Requests are taken oldest first. One that would need a call or
 * a descriptor beyond a bound waits for the next round; those behind it that need none, or whose uid still may, do not.
 * So one waits for the rest of the round in flight and for its own, unless the requests before it in the queue, or
 * those of its uid among them, fill a round by themselves.
 *
 * Before a round there may be a pause, so that those just answered can come back and share it: at most
 * FLUSH_GATHER_MAX_USEC and one FLUSH_GATHER_SHARE-th of a round as it usually takes, counted from the end of the last
 * one. It is made for requests for the region and for files, which share calls, and ends when all are back. Who is
 * alone never waits for others.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/wire.h"
#include "util.h"

struct flush;

#define FLUSH_GATHER_MAX_USEC 1000
#define FLUSH_GATHER_SHARE    4

#define FLUSH_ROUND_MAX_CALLS       16
#define FLUSH_UID_MAX_CALLS         4
#define FLUSH_ROUND_MAX_DESCRIPTORS 253 /* the kernel passes no more in one message */
#define FLUSH_SYNCFS_FILES          4   /* from so many files on a syncfs costs less than their fsyncs */

/* One moment, in microseconds: what is told to others, and what waits are measured by. */
struct flush_time {
	uint64_t realtime, monotonic;
};

/* What is to be durable, and the call that makes it so. */
enum flush_scope {
	FLUSH_REGION,     /* by its own method */
	FLUSH_FILESYSTEM, /* syncfs, and whatever it takes that the region is flushed */
	FLUSH_FILE,       /* fsync */
	FLUSH_FILE_DATA,  /* fdatasync */
	N_FLUSH_SCOPES,
};

struct flush_target {
	enum flush_scope scope;
	uint64_t device; /* st_dev of the file or filesystem; 0 for the region */
	uint64_t inode;  /* of the file; 0 else: a block device flushed as a file is of no filesystem */
	bool descriptor; /* there is one with the request: an error that waits in it is the request's */
};

/* Who asks, and for how long they wait. */
struct flush_caller {
	uid_t uid;              /* whose quota it takes from */
	uint64_t deadline_usec; /* CLOCK_MONOTONIC; 0: none */
};

enum flush_state {
	FLUSH_IDLE,
	FLUSH_GATHERING, /* about to begin a round, when those answered by the last one are back */
	FLUSH_IN_FLIGHT,
	FLUSH_STALLED, /* in flight for longer than the stall time, or under a worker of an agent before us */
	N_FLUSH_STATES,
};

/* Who noticed a loss. */
enum flush_origin {
	FLUSH_ORIGIN_NONE,
	FLUSH_ORIGIN_ROUND,   /* a round of ours failed */
	FLUSH_ORIGIN_WITNESS, /* somebody else's flush or write failed, the trace instance saw it */
	FLUSH_ORIGIN_OVERRUN, /* the trace instance lost entries, so nobody can say that nothing failed */
	FLUSH_ORIGIN_WORKER,  /* the worker died with a round in flight */
	FLUSH_ORIGIN_PEER,    /* another region of the same target failed */
	FLUSH_ORIGIN_RECORD,  /* it is on record, but of which region can't be told, or the record is damaged */
	FLUSH_ORIGIN_HOST,    /* the host's own flush of what is behind the region failed */
	FLUSH_ORIGIN_CALLER,  /* a flush that a program made itself failed, it says */
	N_FLUSH_ORIGINS,
};

struct flush_loss {
	uint64_t number; /* counts from 1; 0: none */
	int error;       /* errno, positive */
	enum flush_origin origin;
	uint64_t round;    /* newest round begun when it was noticed */
	uint64_t epoch;    /* newest round confirmed before */
	uint64_t usec;     /* when, CLOCK_REALTIME */
	bool earlier_boot; /* `round` and `epoch` are those of an earlier boot */
};

struct flush_status {
	enum flush_state state;
	bool gone;
	uint64_t started;    /* newest round begun */
	uint64_t epoch;      /* newest round confirmed */
	uint64_t epoch_usec; /* the durable point: when that round began, CLOCK_REALTIME; 0: none in this instance */
	uint64_t in_flight_usec; /* when the round in flight began, CLOCK_REALTIME; 0: none */
	unsigned int waiting;    /* requests not answered yet */
	struct flush_loss loss;  /* number 0: not lost */
	uint64_t acknowledged;   /* number of the newest loss acknowledged */
	bool withheld;           /* what an earlier boot lost is not known */
};

enum flush_action_type {
	FLUSH_ACT_START,  /* begin `round`: flush_get_plan() */
	FLUSH_ACT_ANSWER, /* tell `owner` its answer; it is forgotten here */
};

struct flush_action {
	enum flush_action_type type;
	void *owner; /* FLUSH_ACT_ANSWER */
	uint64_t round;
	enum pmem_agent_answer answer; /* FLUSH_ACT_ANSWER */
	int error;                     /* errno behind the answer, 0 if none */
	uint64_t durable_usec;         /* with PMEM_AGENT_DURABLE: when the round began, CLOCK_REALTIME */
};

/* One of the calls of a round. They are made in their order. */
struct flush_call {
	enum flush_scope scope;
	uint64_t device, inode; /* of the leader's target */
	uid_t uid;              /* of the leader */
	unsigned int leader;    /* the member by whose descriptor it is made; without one, by what its target names */
	int served_by;          /* made only if that call was not confirmed, and as good as confirmed else; -1: made */
};

/* A request that takes part in a round. */
struct flush_member {
	void *owner;
	enum flush_scope scope; /* that it asked for */
	unsigned int call;
	int descriptor; /* its place among the descriptors of the round; -1: it has none */
	bool fetch;     /* an error that waits in its descriptor is fetched after the call, which doesn't */
};

/* At most FLUSH_ROUND_MAX_CALLS calls, and one for the region that another serves. */
struct flush_plan {
	unsigned int n_calls, n_members, n_descriptors;
	struct flush_call calls[FLUSH_ROUND_MAX_CALLS + 1];
	unsigned int descriptors[FLUSH_ROUND_MAX_DESCRIPTORS]; /* the members they came with */
	struct flush_member *members;                          /* oldest first */
};

struct flush_outcome_of {
	enum pmem_agent_answer answer;
	int error; /* errno behind it, 0 if none */
};

/* How a round ended, by the numbers of its plan. A call that was not made confirms nothing. */
struct flush_outcome {
	struct flush_outcome_of calls[FLUSH_ROUND_MAX_CALLS + 1];
	/* PMEM_AGENT_DURABLE: no error waited in it, or there was none to fetch */
	struct flush_outcome_of descriptors[FLUSH_ROUND_MAX_DESCRIPTORS];
};

/* One outcome for all. */
void flush_outcome_set(struct flush_outcome *outcome, enum pmem_agent_answer answer, int error);

/*
 * `depth`: requests that may wait at a time; `quota`: those of one uid among them. Rounds are numbered from
 * `started` + 1. NULL: no memory.
 */
struct flush *flush_new(unsigned int depth, unsigned int quota, uint64_t started, uint64_t epoch);
struct flush *flush_free(struct flush *f);
DEFINE_CLEANUP(struct flush *, flush_free)

/*
 * A request of `owner`, which must stay valid until its answer. 0, or PMEM_AGENT_LOST, _GONE, _UNKNOWN (in doubt),
 * _BUSY at once.
 */
int flush_arrive(struct flush *f, const struct flush_target *target, const struct flush_caller *caller, void *owner);

/*
 * `owner` wants no answer any more (its client left). Its round goes on. That it was to be told of a failure of its
 * target is a loss then, as in flush_done(). `now`: CLOCK_REALTIME.
 */
void flush_forget(struct flush *f, void *owner, uint64_t now);

/*
 * The next thing to do; false if there is none. After FLUSH_ACT_START the round is in flight. Who has waited until its
 * deadline is answered PMEM_AGENT_TIMEOUT; its round goes on.
 */
bool flush_next(struct flush *f, struct flush_time now, struct flush_action *ret);

/* Of the newest round begun. Its owners are to be relied on only until the next call of another function. */
const struct flush_plan *flush_get_plan(const struct flush *f);

/* When flush_next() will have something to do though nothing else happens, CLOCK_MONOTONIC; UINT64_MAX: never. */
uint64_t flush_get_wakeup(const struct flush *f);

/*
 * The round in flight has ended. PMEM_AGENT_LOST of any call or descriptor latches the region and answers every waiter,
 * those that came after the start included. So does PMEM_AGENT_FAILED if nobody waits for it any more: the kernel tells
 * it once. Else each member gets its call's answer, and where that is PMEM_AGENT_DURABLE, or its own descriptor's
 * PMEM_AGENT_FAILED, that one; one call confirmed confirms the round. A round that is not the one in flight is ignored.
 */
void flush_done(struct flush *f, uint64_t round, const struct flush_outcome *outcome, enum flush_origin origin,
		struct flush_time now);

/*
 * A worker of an agent before us still lives, so a round of its may be in flight: none of ours starts before
 * flush_adopted(), after it has ended: `started` is how far it counted. What became of its round is for flush_lose().
 */
void flush_adopt(struct flush *f, uint64_t started_usec);
void flush_adopted(struct flush *f, uint64_t started);

/*
 * A loss that no round of ours reported. Every waiter is answered, and who was to be told durable and has not been yet
 * is told of the loss instead. `now`: CLOCK_REALTIME.
 */
void flush_lose(struct flush *f, int error, enum flush_origin origin, uint64_t now);

/*
 * Whoever rewrote what was lost says so, by its number. 0, or PMEM_AGENT_STALE_LOSS: there is no such loss, it is not
 * the newest, or it has been acknowledged already; PMEM_AGENT_UNKNOWN while the region is withheld.
 */
int flush_acknowledge(struct flush *f, uint64_t number);

/*
 * The newest loss that was recorded before, and the newest acknowledged. Losses are numbered on from there; one that
 * has been noticed meanwhile comes after it.
 */
void flush_restore_loss(struct flush *f, const struct flush_loss *loss, uint64_t acknowledged);

/*
 * What an earlier boot lost is not known yet: requests wait, and no round begins, until flush_recalled(). After
 * flush_doubt() they are answered PMEM_AGENT_UNKNOWN, until then.
 */
void flush_withhold(struct flush *f);
void flush_doubt(struct flush *f);
void flush_recalled(struct flush *f);

/*
 * What was confirmed says nothing of the memory any more: the guest may have been restored. Epochs are numbered on. Who
 * was to be told durable and has not been yet is told unknown.
 */
void flush_void(struct flush *f);

/* The round in flight takes longer than the stall time. False if there is none or this was known. */
bool flush_stall(struct flush *f);

/* The region was removed: what waits is answered PMEM_AGENT_GONE; the round in flight keeps its own result. */
void flush_gone(struct flush *f);

void flush_get_status(const struct flush *f, struct flush_status *ret);

static inline bool flush_status_in_flight(const struct flush_status *status)
{
	return status->state == FLUSH_IN_FLIGHT || status->state == FLUSH_STALLED;
}

const char *flush_scope_to_string(enum flush_scope scope);
const char *flush_origin_to_string(enum flush_origin origin);

/* "idle", "gathering", "in-flight", "stalled"; or "lost", else "unknown" while withheld, whatever else it is doing. */
const char *flush_status_to_string(const struct flush_status *status);
