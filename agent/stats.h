/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stats: what has been counted of one region since the agent knows it
 *
 * Pure: it makes no system call and allocates nothing; the clock (CLOCK_MONOTONIC, microseconds) is passed in. Each
 * request counts once for every region that it is for.
 */
#pragma once

#include "flush.h"
#include "lib/wire.h"

/* Bucket i counts what took at most 2^i microseconds, and more than bucket i - 1; the last one all that took longer. */
#define STATS_BUCKETS 32

struct stats_histogram {
	uint64_t buckets[STATS_BUCKETS];
	uint64_t sum_usec;
};

struct stats {
	uint64_t requests[N_FLUSH_SCOPES]; /* all there were, those refused too */
	uint64_t answers[PMEM_AGENT_N_ANSWERS];
	uint64_t left; /* nobody waited any more for the answer */
	uint64_t rounds_begun, rounds_confirmed, rounds_failed;
	uint64_t calls[N_FLUSH_SCOPES]; /* of them: for the region, syncfs, fsync, fdatasync */
	uint64_t losses;
	uint64_t stalls, stalled_usec; /* without the stall that lasts */

	struct stats_histogram request_usec; /* arrival to answer, of those that found room in the queue */
	struct stats_histogram round_usec;
	struct stats_histogram host_usec; /* of a round, while the host was asked */

	uint64_t round_began_usec, stall_began_usec; /* 0: none */
};

void stats_add(struct stats_histogram *h, uint64_t usec);
uint64_t stats_count(const struct stats_histogram *h);

/* A request finds room in the queue at `arrived_usec`, and is answered later; or it is refused at once. */
void stats_arrived(struct stats *s, enum flush_scope scope);
void stats_answered(struct stats *s, enum pmem_agent_answer answer, uint64_t arrived_usec, uint64_t now);
void stats_refused(struct stats *s, enum flush_scope scope, enum pmem_agent_answer answer);

void stats_round_began(struct stats *s, uint64_t now);
void stats_round_ended(struct stats *s, bool confirmed, uint64_t now);

/* Nobody answers the flush in flight; what ends it ends the stall. */
void stats_stalled(struct stats *s, uint64_t now);
void stats_recovered(struct stats *s, uint64_t now);

/* How long it has been stalled in all, up to now. */
uint64_t stats_stalled_usec(const struct stats *s, uint64_t now);
