/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flush: the rounds of one region, and who waits for which
 *
 * A pure state machine: events go in, actions come out of flush_next(), the clock is passed in. It makes no system
 * call and allocates nothing after flush_new(), so that it can be run through any schedule of events.
 *
 * The rule it keeps: a request is answered durable only by a round that started after the request arrived, for the
 * same target, and that the host confirmed. At most one round is in flight.
 *
 * How long one waits: for the rest of the round in flight, then for the rounds of the file and filesystem requests that
 * came before it (or, where region requests wait already, before the first of those, whose round it joins unless that
 * one leaves), then for its own. So a region request waits for two rounds where nobody asks for files. Before a round
 * for the region there may be a pause, so that those just answered can come back and share it: at most
 * FLUSH_GATHER_MAX_USEC and one FLUSH_GATHER_SHARE-th of such a round as it usually takes, counted from the end of the
 * last one. Who is alone never waits for others.
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

/* One moment, in microseconds: what is told to others, and what waits are measured by. */
struct flush_time {
	uint64_t realtime, monotonic;
};

/* What a round makes durable. A file for sync and for datasync are two targets. */
enum flush_scope {
	FLUSH_REGION,
	FLUSH_FILESYSTEM,
	FLUSH_FILE,
	FLUSH_FILE_DATA,
	N_FLUSH_SCOPES,
};

struct flush_target {
	enum flush_scope scope;
	uint64_t device; /* st_dev of the file or filesystem; 0 for the region */
	uint64_t inode;  /* of the file; 0 else */
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

/* Since flush_new(). */
struct flush_counters {
	uint64_t requests;              /* taken */
	uint64_t rounds;                /* begun */
	uint64_t confirmed;             /* of those */
	uint64_t calls[N_FLUSH_SCOPES]; /* in them: a flush of the region, syncfs, fsync, fdatasync */
};

enum flush_action_type {
	FLUSH_ACT_START,  /* begin `round` for `target`, for the request `owner` and all that joined it */
	FLUSH_ACT_ANSWER, /* tell `owner` its answer; it is forgotten here */
};

struct flush_action {
	enum flush_action_type type;
	void *owner;
	uint64_t round;
	struct flush_target target;    /* FLUSH_ACT_START */
	enum pmem_agent_answer answer; /* FLUSH_ACT_ANSWER */
	int error;                     /* errno behind the answer, 0 if none */
	uint64_t durable_usec;         /* with PMEM_AGENT_DURABLE: when the round began, CLOCK_REALTIME */
};

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

/* `owner` wants no answer any more (its client left). Its round goes on. */
void flush_forget(struct flush *f, void *owner);

/*
 * The next thing to do; false if there is none. After FLUSH_ACT_START the round is in flight. Who has waited until its
 * deadline is answered PMEM_AGENT_TIMEOUT; its round goes on.
 */
bool flush_next(struct flush *f, struct flush_time now, struct flush_action *ret);

/* When flush_next() will have something to do though nothing else happens, CLOCK_MONOTONIC; UINT64_MAX: never. */
uint64_t flush_get_wakeup(const struct flush *f);

/*
 * The round in flight has ended. `answer`: PMEM_AGENT_DURABLE confirms it; PMEM_AGENT_LOST latches the region and
 * answers every waiter, those that came after the start included; any other is the answer of this round's own
 * requests alone. A round that is not the one in flight is ignored.
 */
void flush_done(struct flush *f, uint64_t round, enum pmem_agent_answer answer, int error, enum flush_origin origin,
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

/* The round in flight takes longer than the stall time. False if there is none or this was known. */
bool flush_stall(struct flush *f);

/* The region was removed: what waits is answered PMEM_AGENT_GONE; the round in flight keeps its own result. */
void flush_gone(struct flush *f);

void flush_get_status(const struct flush *f, struct flush_status *ret);
void flush_get_counters(const struct flush *f, struct flush_counters *ret);

static inline bool flush_status_in_flight(const struct flush_status *status)
{
	return status->state == FLUSH_IN_FLIGHT || status->state == FLUSH_STALLED;
}

const char *flush_scope_to_string(enum flush_scope scope);
const char *flush_origin_to_string(enum flush_origin origin);

/* "idle", "gathering", "in-flight", "stalled"; or "lost", else "unknown" while withheld, whatever else it is doing. */
const char *flush_status_to_string(const struct flush_status *status);
