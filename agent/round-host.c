/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * round-host: what of a round the host does: the flush itself where only it can, or a confirmation after ours
 *
 * A round that the worker ended well goes on here if the instance has changed meanwhile: the guest may have been
 * restored since, and who confirmed was the host before. What the calls wrote is in the region's memory by then, so one
 * more flush of the region stands for all of them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "event.h"
#include "log.h"
#include "manager-private.h"

static bool is_by_host(const struct manager_region *mr)
{
	return mr->region->method == REGION_METHOD_HOST;
}

bool manager_region_wants_confirm(const struct manager_region *mr)
{
	return !is_by_host(mr) && conf_wants_confirm(mr->manager->conf, mr->region->name);
}

static bool offers(const struct manager_region *mr, bool confirm)
{
	const struct manager *m = mr->manager;

	return mr->region->backing.served && (confirm ? m->host.confirms : m->host.flushes);
}

bool manager_region_is_served(const struct manager_region *mr)
{
	return offers(mr, !is_by_host(mr));
}

static bool has_durable(const struct manager_region *mr)
{
	for (unsigned int i = 0; i < mr->round.n_calls; i++)
		if (mr->result.outcome.calls[i].answer == PMEM_AGENT_DURABLE)
			return true;
	return false;
}

static bool has_lost(const struct manager_region *mr)
{
	const struct flush_outcome *o = &mr->result.outcome;
	bool lost = false;

	for (unsigned int i = 0; i < mr->round.n_calls; i++)
		lost |= o->calls[i].answer == PMEM_AGENT_LOST;
	for (unsigned int i = 0; i < mr->round.n_descriptors; i++)
		lost |= o->descriptors[i].answer == PMEM_AGENT_LOST;
	return lost;
}

/* What has been confirmed so far is no better than this. */
static void spoil(struct manager_region *mr, enum pmem_agent_answer answer, int error, const char *detail)
{
	struct worker_result *result = &mr->result;

	for (unsigned int i = 0; i < mr->round.n_calls; i++) {
		if (result->outcome.calls[i].answer != PMEM_AGENT_DURABLE)
			continue;
		result->outcome.calls[i] = (struct flush_outcome_of){ .answer = answer, .error = error };
		snprintf(result->details[i], sizeof(result->details[i]), "%s", detail);
	}
}

/* ---- once more ---- */

static int remake(struct manager_region *mr)
{
	static struct worker_round round;

	uint64_t now = now_usec(CLOCK_MONOTONIC);

	if (mr->host.remade_usec == 0)
		mr->host.remade_usec = now;
	if (now - mr->host.remade_usec > mr->manager->conf->stall_usec || mr->host.is_over_time) {
		spoil(mr, PMEM_AGENT_UNKNOWN, 0,
		      "the connection to the host was made anew while the flush was in flight, again and again");
		return 0;
	}
	mr->host.instance = mr->manager->instance;
	round_set_region(mr, mr->round.round, &round);
	if (round_send(mr, &round, NULL) < 0) {
		spoil(mr, PMEM_AGENT_UNKNOWN, 0, "the flush could not be made again for a new instance");
		return 0;
	}
	mr->host.first = mr->result;
	mr->host.is_remaking = true;
	return 1;
}

/* `mr->result` is of the flush that was made again. */
static void end_remake(struct manager_region *mr)
{
	struct flush_outcome_of again = mr->result.outcome.calls[0];
	char detail[MOUNT_DETAIL_MAX];

	memcpy(detail, mr->result.details[0], sizeof(detail));
	mr->host.is_remaking = false;
	mr->result = mr->host.first;
	if (again.answer != PMEM_AGENT_DURABLE)
		spoil(mr, again.answer, again.error, detail);
}

/* ---- asking ---- */

static void ask(struct manager_region *mr)
{
	struct manager *m = mr->manager;
	bool confirm = !is_by_host(mr);
	uint64_t number = m->host.last_number + 1;

	mr->host.number = 0;
	if (!offers(mr, confirm) || m->host.ops.ask(mr, number, confirm, m->host.ops.userdata) < 0)
		return;
	m->host.last_number = number;
	mr->host.number = number;
	mr->host.instance = m->instance;
}

/* The round ends with `mr->result`. */
static void end(struct manager_region *mr, enum flush_origin origin)
{
	uint64_t now = now_usec(CLOCK_MONOTONIC), number = mr->result.round;
	bool durable = has_durable(mr);

	if (mr->host.asked_usec)
		stats_add(&mr->stats.host_usec, now - mr->host.asked_usec);
	mr->host.waits = false;
	sd_event_source_set_enabled(mr->host.timer, SD_EVENT_OFF);
	round_finish(mr, origin);
	if (!is_by_host(mr))
		return;
	/* It has no worker that would. Its loss, if it has one, is counted by now. */
	if (durable)
		page_store(mr->page->worker.durable, number);
	page_store(mr->page->worker.done, number);
}

static void end_unknown(struct manager_region *mr, const char *why)
{
	char detail[MOUNT_DETAIL_MAX];

	snprintf(detail, sizeof(detail), "%s: %.160s", mr->region->name, why);
	spoil(mr, PMEM_AGENT_UNKNOWN, 0, detail);
	end(mr, FLUSH_ORIGIN_NONE);
}

/* Only a flush that it was asked for may take longer: that is a stall. */
static bool is_over_time(const struct manager_region *mr)
{
	return now_usec(CLOCK_MONOTONIC) - mr->host.asked_usec >= mr->manager->conf->stall_usec;
}

int round_host_on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager_region *mr = userdata;

	if (mr->host.is_remaking)
		mr->host.is_over_time = true; /* the worker's answer comes first */
	else if (mr->host.waits && (!is_by_host(mr) || mr->host.number == 0))
		end_unknown(mr, "the host has not confirmed it within StallSec=");
	return 0;
}

static void begin_to_ask(struct manager_region *mr)
{
	mr->host.waits = true;
	mr->host.asked_usec = now_usec(CLOCK_MONOTONIC);
	sd_event_source_set_time_relative(mr->host.timer, mr->manager->conf->stall_usec);
	event_enable(mr->host.timer, SD_EVENT_ONESHOT);
	ask(mr);
}

bool round_host_goes_on(struct manager_region *mr)
{
	if (mr->host.is_remaking)
		end_remake(mr);
	if (mr->host.is_refused)
		spoil(mr, PMEM_AGENT_UNKNOWN, 0, "the host has said meanwhile that stores to the region can't be kept");
	/* A loss is latched without delay. */
	if (!has_durable(mr) || has_lost(mr))
		goto over;
	/* Before the host is asked, so that what it confirms is what was flushed last. */
	if (!sd_id128_equal(mr->host.instance, mr->manager->instance) && remake(mr) > 0)
		return true;
	if (!has_durable(mr) || !manager_region_wants_confirm(mr))
		goto over;
	if (mr->removed || mr->host.is_over_time || (!mr->host.asked_usec && !offers(mr, true))) {
		spoil(mr, PMEM_AGENT_UNKNOWN, 0,
		      mr->removed             ? "the region was removed before the host confirmed the flush"
		      : mr->host.is_over_time ? "the host has not confirmed the flush within StallSec="
					      : "no host is connected that confirms flushes, as Confirm=host demands");
		goto over;
	}
	if (mr->host.asked_usec) {
		mr->host.waits = true;
		ask(mr);
	} else {
		begin_to_ask(mr);
	}
	return true;
over:
	sd_event_source_set_enabled(mr->host.timer, SD_EVENT_OFF);
	return false;
}

void round_host_prepare(struct manager_region *mr)
{
	mr->host.instance = mr->manager->instance;
	mr->host.remade_usec = 0;
	mr->host.is_over_time = mr->host.is_remaking = mr->host.waits = false;
	mr->host.asked_usec = mr->host.number = 0;
}

int round_host_begin(struct manager_region *mr)
{
	struct worker_result *result = &mr->result;

	if (!is_by_host(mr))
		return -EINVAL;
	*result = (struct worker_result){ .round = mr->round.round };
	flush_outcome_set(&result->outcome, PMEM_AGENT_DURABLE, 0);
	for (unsigned int i = 0; i < mr->round.n_calls; i++) {
		if (mr->round.calls[i].scope == FLUSH_REGION)
			continue;
		result->outcome.calls[i] = (struct flush_outcome_of){ .answer = PMEM_AGENT_REFUSED, .error = EINVAL };
		snprintf(result->details[i], sizeof(result->details[i]),
			 "%s is device-dax: it has no files, ask for the region", mr->region->name);
	}
	/* Who finds this in the page, and nothing done, takes it for lost. */
	page_store(mr->page->worker.started_usec, now_usec(CLOCK_REALTIME));
	page_store(mr->page->worker.started, mr->round.round);
	begin_to_ask(mr);
	return 0;
}

bool round_host_is_remaking(const struct manager_region *mr)
{
	return mr->host.is_remaking;
}

bool round_host_is_asked(const struct manager_region *mr)
{
	return mr->host.waits;
}

void round_host_remove(struct manager_region *mr)
{
	if (mr->host.waits)
		end_unknown(mr, "the region was removed, or is flushed in another way now, before the host confirmed");
}

/* ---- the host ---- */

void manager_set_host(struct manager *m, const struct manager_host *ops)
{
	m->host.ops = *ops;
}

/* Of the host that was asked nobody will hear any more. */
void round_host_left(struct manager_region *mr)
{
	mr->host.number = 0;
	if (mr->host.waits && is_over_time(mr))
		end_unknown(mr, "the host has left without having confirmed it");
}

void manager_host_ask(struct manager *m)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry) {
		if (!mr->host.waits || mr->host.number != 0 || !offers(mr, !is_by_host(mr)))
			continue;
		if (is_by_host(mr) || sd_id128_equal(mr->host.instance, m->instance)) {
			ask(mr);
			continue;
		}
		mr->host.waits = false;
		if (!round_host_goes_on(mr))
			end(mr, FLUSH_ORIGIN_NONE);
	}
}

void manager_host_offers(struct manager *m, bool flushes, bool confirms)
{
	struct manager_region *mr, *next;

	if (m->host.flushes == flushes && m->host.confirms == confirms)
		return;
	m->host.flushes = flushes;
	m->host.confirms = confirms;
	for (mr = TAILQ_FIRST(&m->regions); mr; mr = next) {
		next = TAILQ_NEXT(mr, entry);
		if (!offers(mr, !is_by_host(mr)) && mr->host.number != 0)
			round_host_left(mr);
		if (mr->region->backing.served)
			manager_notify(m, MANAGER_REGION_CHANGED, mr);
	}
	manager_host_ask(m);
}

/* Whether it says that stores were lost: of the fsync itself, so it won't be reported again. */
static bool is_loss(int error)
{
	return error != 0 && error != EOPNOTSUPP;
}

bool manager_host_lost_nowhere(const struct manager_region *mr, int error)
{
	return is_loss(error) && !mr->flush;
}

bool manager_host_flushed(struct manager_region *mr, uint64_t number, int error, const char *why)
{
	bool current = mr->host.waits && number != 0 && number == mr->host.number;
	char detail[MOUNT_DETAIL_MAX];

	if (error != 0)
		log_region(LOG_WARNING, LOG_EVENT_HOST, mr->region->name, 0, "%s: the host's flush %s: %s%s%.128s",
			   mr->region->name, error == EOPNOTSUPP ? "was not made" : "failed",
			   strerrordesc_np(error) ?: "?", why[0] ? ": " : "", why);
	/* It counts, whatever it is an answer to. */
	if (is_loss(error) && !current) {
		round_lose(mr, error, FLUSH_ORIGIN_HOST);
		return false;
	}
	if (!current)
		return false;
	mr->host.number = 0;
	if (error == EOPNOTSUPP) {
		snprintf(detail, sizeof(detail), "the host has not flushed it%s%.128s", why[0] ? ": " : "", why);
		end_unknown(mr, detail);
		return true;
	}
	if (error != 0)
		spoil(mr, PMEM_AGENT_LOST, error, "");
	end(mr, FLUSH_ORIGIN_HOST);
	return true;
}
