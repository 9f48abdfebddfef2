/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * round: from flush.c's actions to a worker's call and back, one region at a time
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "event.h"
#include "log.h"
#include "manager-private.h"

void round_kick(struct manager_region *mr)
{
	if (mr->run_source)
		event_enable(mr->run_source, SD_EVENT_ONESHOT);
}

static struct flush_time now(void)
{
	return (struct flush_time){ .realtime = now_usec(CLOCK_REALTIME), .monotonic = now_usec(CLOCK_MONOTONIC) };
}

static void status_of(const struct manager_region *mr, struct flush_status *ret)
{
	manager_region_get_status(mr, ret);
}

static uint64_t epoch_of(const struct manager_region *mr)
{
	struct flush_status status;

	status_of(mr, &status);
	return status.epoch;
}

/* ---- losses ---- */

void round_describe_loss(const struct manager_region *mr, char detail[static MOUNT_DETAIL_MAX])
{
	struct flush_status status;

	status_of(mr, &status);
	snprintf(detail, MOUNT_DETAIL_MAX, "%s has lost stores: loss %" PRIu64 ", %s, noticed by %s", mr->region->name,
		 status.loss.number, strerrordesc_np(status.loss.error), flush_origin_to_string(status.loss.origin));
}

/* The page first: whoever reads of it anywhere else must find it there. */
void round_publish_loss(struct manager_region *mr)
{
	struct flush_status status;
	char detail[MOUNT_DETAIL_MAX];

	status_of(mr, &status);
	if (status.loss.number <= mr->published_loss)
		return;
	mr->published_loss = status.loss.number;
	mr->stats.losses++;

	loss_store(mr, &status);
	round_describe_loss(mr, detail);
	log_region(LOG_CRIT, LOG_EVENT_LOST, mr->region->name, status.epoch, "%s", detail);
	manager_notify(mr->manager, MANAGER_LOST, mr);
	round_kick(mr);
}

void round_lose(struct manager_region *mr, int error, enum flush_origin origin)
{
	if (!mr->flush)
		return;
	flush_lose(mr->flush, error, origin, now_usec(CLOCK_REALTIME));
	round_publish_loss(mr);
}

/* The errno of what was lost by a call; 0: nothing. */
static int find_loss(const struct manager_region *mr, unsigned int call)
{
	const struct flush_outcome *o = &mr->result.outcome;

	if (o->calls[call].answer == PMEM_AGENT_LOST)
		return o->calls[call].error;
	for (unsigned int i = 0; i < mr->round.n_descriptors; i++)
		if (mr->round.descriptors[i].call == call && o->descriptors[i].answer == PMEM_AGENT_LOST)
			return o->descriptors[i].error;
	return 0;
}

/* A call fails for all leaves of its target, and which of them it was is not told. */
static void lose_peers(struct manager_region *mr, const struct target *target, int error)
{
	for (unsigned int i = 0; i < target->n_leaves; i++) {
		struct manager_region *peer = regions_find_leaf(mr->manager, &target->leaves[i]);

		if (peer && peer != mr)
			round_lose(peer, error, FLUSH_ORIGIN_PEER);
	}
}

/* Whether the round has lost anything. */
static bool spread_loss(struct manager_region *mr)
{
	bool lost = false;

	for (unsigned int i = 0; i < mr->round.n_calls; i++) {
		const struct worker_call *c = &mr->round.calls[i];
		int error = find_loss(mr, i);

		lost |= error != 0;
		if (error != 0 && c->scope != FLUSH_REGION) /* that call was for this region alone */
			lose_peers(mr, &mr->round.targets[c->target], error);
	}
	return lost;
}

/* ---- a round ends ---- */

/* Of the calls that were confirmed, the one that says most. -1: none was. */
static int find_widest(const struct manager_region *mr)
{
	static const unsigned char width[N_FLUSH_SCOPES] = { [FLUSH_FILESYSTEM] = 2, [FLUSH_REGION] = 1 };
	int widest = -1;

	for (unsigned int i = 0; i < mr->round.n_calls; i++)
		if (mr->result.outcome.calls[i].answer == PMEM_AGENT_DURABLE &&
		    (widest < 0 || width[mr->round.calls[i].scope] > width[mr->round.calls[widest].scope]))
			widest = (int)i;
	return widest;
}

void round_finish(struct manager_region *mr, enum flush_origin origin)
{
	struct manager *m = mr->manager;
	struct flush_status before, after;
	int widest = find_widest(mr);
	bool lost;

	sd_event_source_set_enabled(mr->stall_source, SD_EVENT_OFF);
	status_of(mr, &before);

	/* Confirmed, unless somebody took an error meanwhile. */
	if (widest >= 0)
		watch_read(m, NULL);
	/* The others first: if we end in between, who adopts the page of this one loses them all. */
	lost = spread_loss(mr);
	flush_done(mr->flush, mr->result.round, &mr->result.outcome, origin, now());
	round_publish_loss(mr);
	if (lost)
		watch_read(m, mr);
	watch_resume(m);

	status_of(mr, &after);
	stats_round_ended(&mr->stats, after.epoch != before.epoch, now().monotonic);
	/* A loss speaks for itself. */
	if (before.state == FLUSH_STALLED && after.loss.number == 0) {
		log_region(LOG_NOTICE, LOG_EVENT_RECOVERED, mr->region->name, after.epoch,
			   "%s: the host has answered after %.1f s", mr->region->name,
			   (double)(now_usec(CLOCK_REALTIME) - before.in_flight_usec) / USEC_PER_SEC);
		manager_notify(m, MANAGER_RECOVERED, mr);
	}
	if (after.epoch != before.epoch) {
		mr->last_target = mr->round.targets[mr->round.calls[widest].target];
		mr->last_target.flush.scope = mr->round.calls[widest].scope;
		__atomic_store_n(&mr->page->agent.epoch, after.epoch, __ATOMIC_RELEASE);
	}
	manager_notify(m, after.epoch != before.epoch ? MANAGER_DURABLE : MANAGER_ROUND, mr);
	round_kick(mr);
}

/* What `mr->result` says: for the round, unless there is more to be done. */
static void end_round(struct manager_region *mr, enum flush_origin origin)
{
	if (!round_host_goes_on(mr))
		round_finish(mr, origin);
}

/* It ends when it is idle. */
static void release_worker(struct manager_region *mr)
{
	mr->worker_source = sd_event_source_disable_unref(mr->worker_source);
	mr->worker = worker_free(mr->worker);
}

/* The child is gone. What it wrote into the page before is as good as what it would have said. */
static void end_worker(struct manager_region *mr)
{
	const struct pmem_agent_page *page = mr->page;
	enum flush_origin origin = FLUSH_ORIGIN_ROUND;
	enum pmem_agent_answer answer = PMEM_AGENT_DURABLE;
	bool confirmed;
	struct flush_status status;
	int error = 0;

	release_worker(mr);
	status_of(mr, &status);
	if (!flush_status_in_flight(&status) || round_host_is_asked(mr))
		return;

	confirmed = page->worker.done == status.started && page->worker.durable == status.started;
	if (page->worker.done == status.started && page->worker.failed == status.started) {
		answer = PMEM_AGENT_LOST;
		error = page->worker.error;
	} else if (!confirmed) {
		/* It may have been a failure that the kernel tells once. */
		answer = PMEM_AGENT_LOST;
		error = EIO;
		origin = FLUSH_ORIGIN_WORKER;
	} else if (round_host_is_remaking(mr)) {
		/* What the page says may be of the flush that was to be made again. */
		answer = PMEM_AGENT_UNKNOWN;
		snprintf(mr->detail, sizeof(mr->detail), "the worker of %s died before it told why", mr->region->name);
	}
	mr->result = (struct worker_result){ .round = status.started };
	flush_outcome_set(&mr->result.outcome, answer, error);
	end_round(mr, origin);
}

static int on_run(sd_event_source *source, void *userdata);

static int on_worker(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager_region *mr = userdata;
	int r = worker_collect(mr->worker, &mr->result);

	if (r == 0)
		end_round(mr, FLUSH_ORIGIN_ROUND);
	else if (r == -EPIPE)
		end_worker(mr);
	return on_run(NULL, mr);
}

/* ---- a round begins ---- */

static int ensure_worker(struct manager_region *mr)
{
	_cleanup_(worker_freep) struct worker *worker = NULL;
	int r;

	if (mr->worker)
		return 0;
	r = worker_start(mr->page, &worker);
	if (r < 0)
		return r;
	r = sd_event_add_io(mr->manager->event, &mr->worker_source, worker_get_fd(worker), EPOLLIN, on_worker, mr);
	if (r < 0)
		return r;
	/* Before the doors: else a round lasts as long as it takes to hear everyone who asks for another. */
	r = sd_event_source_set_priority(mr->worker_source, SD_EVENT_PRIORITY_IMPORTANT);
	if (r < 0)
		return r;
	mr->worker = worker;
	worker = NULL;
	return 0;
}

int round_send(struct manager_region *mr, const struct worker_round *round, const int *fds)
{
	int r = ensure_worker(mr);

	return r < 0 ? r : worker_begin(mr->worker, round, fds);
}

static void begin_round(struct manager_region *mr, uint64_t number)
{
	bool by_host = mr->region->method == REGION_METHOD_HOST;
	const struct flush_plan *p = flush_get_plan(mr->flush);
	struct flush_outcome outcome;
	int fds[WORKER_MAX_DESCRIPTORS], r;

	mr->detail[0] = '\0';
	round_set(mr, number, fds);
	round_host_prepare(mr);
	r = by_host ? round_host_begin(mr) : round_send(mr, &mr->round, fds);
	if (r < 0) {
		snprintf(mr->detail, sizeof(mr->detail), "the flush of %s could not be begun: %s", mr->region->name,
			 strerrordesc_np(-r));
		flush_outcome_set(&outcome, PMEM_AGENT_UNKNOWN, -r);
		flush_done(mr->flush, number, &outcome, FLUSH_ORIGIN_NONE, now());
		return;
	}

	for (unsigned int i = 0; i < p->n_members; i++)
		request_part_begun(p->members[i].owner, p->members[i].call, !by_host);
	page_store(mr->page->agent.handed, number);
	sd_event_source_set_time_relative(mr->stall_source, mr->manager->conf->stall_usec);
	event_enable(mr->stall_source, SD_EVENT_ONESHOT);
	manager_notify(mr->manager, MANAGER_ROUND, mr);
}

const char *round_get_detail(const struct manager_region *mr, const struct part *part)
{
	const char *detail = part->begun ? mr->result.details[part->call] : "";

	return detail[0] ? detail : mr->detail;
}

static int on_stall(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager_region *mr = userdata;

	if (!flush_stall(mr->flush))
		return 0;
	stats_stalled(&mr->stats, now().monotonic);
	log_region(LOG_WARNING, LOG_EVENT_STALLED, mr->region->name, epoch_of(mr),
		   "%s: the host has not answered a flush for %.1f s", mr->region->name,
		   (double)mr->manager->conf->stall_usec / USEC_PER_SEC);
	manager_notify(mr->manager, MANAGER_STALLED, mr);
	watch_resume(mr->manager);
	return 0;
}

/* Deadlines, and the end of a pause before a round. */
static void set_wakeup(struct manager_region *mr)
{
	uint64_t usec = flush_get_wakeup(mr->flush);

	if (usec != UINT64_MAX)
		sd_event_source_set_time(mr->wakeup_source, usec);
	event_enable(mr->wakeup_source, usec != UINT64_MAX ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

static int on_run(sd_event_source *source, void *userdata)
{
	struct manager_region *mr = userdata;
	struct flush_action action;
	struct flush_status status;

	sd_event_source_set_enabled(mr->run_source, SD_EVENT_OFF);
	while (flush_next(mr->flush, now(), &action)) {
		switch (action.type) {
		case FLUSH_ACT_START:
			stats_round_began(&mr->stats, now().monotonic);
			page_store(mr->page->agent.answered, action.round - 1);
			begin_round(mr, action.round);
			/* It may have come to nothing. */
			status_of(mr, &status);
			if (!flush_status_in_flight(&status))
				stats_round_ended(&mr->stats, false, now().monotonic);
			break;
		case FLUSH_ACT_ANSWER:
			request_part_answered(action.owner, &action);
			break;
		}
	}

	set_wakeup(mr);

	status_of(mr, &status);
	if (!flush_status_in_flight(&status))
		page_store(mr->page->agent.answered, status.started);
	if (!mr->removed || (flush_status_in_flight(&status) && mr->worker && !mr->host.waits))
		return 0;
	/* Its successor waits for the worker, whatever requests still refer to the region. */
	release_worker(mr);
	if (mr->n_pins == 0) {
		TAILQ_REMOVE(&mr->manager->removed, mr, entry);
		round_region_free(mr);
	}
	return 0;
}

void manager_run(struct manager *m)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		if (mr->run_source && sd_event_source_get_enabled(mr->run_source, NULL) > 0)
			on_run(NULL, mr);
}

static int on_wakeup(sd_event_source *source, uint64_t usec, void *userdata)
{
	return on_run(NULL, userdata);
}

void round_region_arrived(struct manager_region *mr)
{
	round_kick(mr);
}

int round_add_sources(struct manager_region *mr)
{
	sd_event *event = mr->manager->event;
	int r;

	r = sd_event_add_defer(event, &mr->run_source, on_run, mr);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(mr->run_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &mr->stall_source, CLOCK_MONOTONIC, UINT64_MAX, 0, on_stall, mr);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(mr->stall_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &mr->wakeup_source, CLOCK_MONOTONIC, UINT64_MAX, 1, on_wakeup, mr);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(mr->wakeup_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &mr->host.timer, CLOCK_MONOTONIC, UINT64_MAX, 1, round_host_on_timer, mr);
	if (r < 0)
		return r;
	return sd_event_source_set_enabled(mr->host.timer, SD_EVENT_OFF);
}
