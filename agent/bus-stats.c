/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-stats: what was counted of a region, as D-Bus tells it
 */
#include "answer.h"
#include "bus-private.h"

static int append_number(sd_bus_message *m, const char *key, uint64_t value)
{
	return sd_bus_message_append(m, "{sv}", key, "t", value);
}

static const char *scope_name(unsigned int i)
{
	return flush_scope_to_string(i);
}

static const char *answer_name(unsigned int i)
{
	return answer_get(i)->name;
}

/* What a round for the scope calls. */
static const char *call_name(unsigned int scope)
{
	static const char *const names[N_FLUSH_SCOPES] = {
		[FLUSH_REGION] = "region",
		[FLUSH_FILESYSTEM] = "syncfs",
		[FLUSH_FILE] = "fsync",
		[FLUSH_FILE_DATA] = "fdatasync",
	};

	return names[scope];
}

/* One number a name: a{st}. */
static int append_counts(sd_bus_message *m, const char *key, const char *(*name)(unsigned int i),
			 const uint64_t *counts, unsigned int n)
{
	int r = sd_bus_message_open_container(m, 'e', "sv");

	if (r >= 0)
		r = sd_bus_message_append(m, "s", key);
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'v', "a{st}");
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'a', "{st}");
	for (unsigned int i = 0; r >= 0 && i < n; i++)
		r = sd_bus_message_append(m, "{st}", name(i), counts[i]);
	for (unsigned int i = 0; r >= 0 && i < 3; i++)
		r = sd_bus_message_close_container(m);
	return r;
}

/* The buckets and the sum: (att). */
static int append_histogram(sd_bus_message *m, const char *key, const struct stats_histogram *h)
{
	int r = sd_bus_message_open_container(m, 'e', "sv");

	if (r >= 0)
		r = sd_bus_message_append(m, "s", key);
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'v', "(att)");
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'r', "att");
	if (r >= 0)
		r = sd_bus_message_append_array(m, 't', h->buckets, sizeof(h->buckets));
	if (r >= 0)
		r = sd_bus_message_append(m, "t", h->sum_usec);
	for (unsigned int i = 0; r >= 0 && i < 3; i++)
		r = sd_bus_message_close_container(m);
	return r;
}

int bus_append_statistics(sd_bus_message *reply, const struct manager_region *mr)
{
	struct stats s;

	manager_region_get_stats(mr, &s);
	const struct {
		const char *key;
		uint64_t value;
	} numbers[] = {
		{ "RequestsLeft", s.left },
		{ "RoundsBegun", s.rounds_begun },
		{ "RoundsConfirmed", s.rounds_confirmed },
		{ "RoundsFailed", s.rounds_failed },
		{ "Losses", s.losses },
		{ "Stalls", s.stalls },
		{ "StalledUSec", stats_stalled_usec(&s, now_usec(CLOCK_MONOTONIC)) },
	};
	int r = sd_bus_message_open_container(reply, 'a', "{sv}");

	if (r >= 0)
		r = append_counts(reply, "Requests", scope_name, s.requests, N_FLUSH_SCOPES);
	if (r >= 0)
		r = append_counts(reply, "Answers", answer_name, s.answers, PMEM_AGENT_N_ANSWERS);
	if (r >= 0)
		r = append_counts(reply, "Calls", call_name, s.calls, N_FLUSH_SCOPES);
	for (unsigned int i = 0; r >= 0 && i < ARRAY_SIZE(numbers); i++)
		r = append_number(reply, numbers[i].key, numbers[i].value);
	if (r >= 0)
		r = append_histogram(reply, "RequestUSec", &s.request_usec);
	if (r >= 0)
		r = append_histogram(reply, "RoundUSec", &s.round_usec);
	if (r >= 0)
		r = append_histogram(reply, "HostUSec", &s.host_usec);
	return r < 0 ? r : sd_bus_message_close_container(reply);
}
