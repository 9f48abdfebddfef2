/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stats.h"

static unsigned int bucket_of(uint64_t usec)
{
	unsigned int i = usec <= 1 ? 0 : 64 - (unsigned int)__builtin_clzll(usec - 1);

	return i < STATS_BUCKETS ? i : STATS_BUCKETS - 1;
}

void stats_add(struct stats_histogram *h, uint64_t usec)
{
	h->buckets[bucket_of(usec)]++;
	h->sum_usec += usec;
}

uint64_t stats_count(const struct stats_histogram *h)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < STATS_BUCKETS; i++)
		n += h->buckets[i];
	return n;
}

void stats_arrived(struct stats *s, enum flush_scope scope)
{
	s->requests[scope]++;
}

void stats_answered(struct stats *s, enum pmem_agent_answer answer, uint64_t arrived_usec, uint64_t now)
{
	s->answers[answer]++;
	stats_add(&s->request_usec, now - arrived_usec);
}

void stats_refused(struct stats *s, enum flush_scope scope, enum pmem_agent_answer answer)
{
	s->requests[scope]++;
	s->answers[answer]++;
}

void stats_round_began(struct stats *s, uint64_t now)
{
	s->rounds_begun++;
	s->round_began_usec = now;
}

void stats_round_ended(struct stats *s, bool confirmed, uint64_t now)
{
	if (s->round_began_usec == 0)
		return;
	if (confirmed)
		s->rounds_confirmed++;
	else
		s->rounds_failed++;
	stats_add(&s->round_usec, now - s->round_began_usec);
	s->round_began_usec = 0;
	stats_recovered(s, now);
}

void stats_stalled(struct stats *s, uint64_t now)
{
	if (s->stall_began_usec != 0)
		return;
	s->stalls++;
	s->stall_began_usec = now;
}

void stats_recovered(struct stats *s, uint64_t now)
{
	s->stalled_usec = stats_stalled_usec(s, now);
	s->stall_began_usec = 0;
}

uint64_t stats_stalled_usec(const struct stats *s, uint64_t now)
{
	return s->stalled_usec + (s->stall_began_usec ? now - s->stall_began_usec : 0);
}
