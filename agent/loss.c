/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * loss: what is remembered of the regions' losses: in the page for this boot, by the state child beyond it
 *
 * In the boot in which it was made the page is the authority: a loss and its acknowledgement are in it before anyone is
 * told. A new page knows nothing of earlier boots. Until the records of those have been read, and what they say stands
 * in the page, the region is withheld.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "event.h"
#include "log.h"
#include "manager-private.h"

/* How long requests wait for the records, and how long one may take to be written until that is a problem. */
#define LOSS_PATIENCE_USEC (3 * USEC_PER_SEC)

/* What failed is tried again after this. */
#define LOSS_RETRY_USEC (30 * USEC_PER_SEC)

static int start_child(struct manager *m);
static void save_dirty(struct manager *m);

/* ---- problems ---- */

static void set_problem(struct manager *m, const char *text)
{
	if (strcmp(m->memory.problem, text) == 0)
		return;
	snprintf(m->memory.problem, sizeof(m->memory.problem), "%s", text);
	if (text[0])
		log_daemon(LOG_ERR, LOG_EVENT_STATE, "%s", text);
	else
		log_daemon(LOG_NOTICE, LOG_EVENT_STATE, "%s: losses are recorded again", m->memory.dir);
	manager_notify(m, MANAGER_STATE, NULL);
}

static void report(struct manager *m, const char *what, int error)
{
	char text[sizeof(m->memory.problem)];

	snprintf(text, sizeof(text), "%.128s cannot be %s: %.80s", m->memory.dir, what,
		 error == ETIMEDOUT ? "its filesystem does not answer" : strerrordesc_np(error));
	set_problem(m, text);
}

const char *manager_get_state_problem(const struct manager *m)
{
	return m->memory.problem;
}

static void set_timer(struct manager *m, uint64_t usec)
{
	sd_event_source_set_time_relative(m->memory.timer, usec);
	event_enable(m->memory.timer, SD_EVENT_ONESHOT);
}

/* Requests have waited long enough for what earlier boots recorded. */
static void doubt(struct manager_region *mr)
{
	struct flush_status status;

	manager_region_get_status(mr, &status);
	if (!status.withheld)
		return;
	snprintf(mr->detail, sizeof(mr->detail), "what %.40s lost in earlier boots is not known: %.160s",
		 mr->region->name, mr->manager->memory.problem);
	flush_doubt(mr->flush);
	round_kick(mr);
}

static void doubt_all(struct manager *m)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		doubt(mr);
}

/* ---- records ---- */

struct loss_record *loss_find_record(struct manager *m, uint64_t hash)
{
	struct loss_record *r;

	TAILQ_FOREACH (r, &m->memory.records, entry)
		if (r->hash == hash)
			return r;
	return NULL;
}

static struct loss_record *add_record(struct manager *m, uint64_t hash)
{
	struct loss_record *r = loss_find_record(m, hash);

	if (r)
		return r;
	if (m->memory.n_records >= STATE_MAX_RECORDS)
		return NULL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return NULL;
	r->hash = hash;
	m->memory.n_records++;
	TAILQ_INSERT_TAIL(&m->memory.records, r, entry);
	return r;
}

static void forget_records(struct manager *m)
{
	struct loss_record *r;

	while ((r = TAILQ_FIRST(&m->memory.records))) {
		TAILQ_REMOVE(&m->memory.records, r, entry);
		free(r);
	}
	m->memory.n_records = 0;
}

void loss_remember(struct manager_region *mr)
{
	struct manager *m = mr->manager;
	const struct pmem_agent_page *page = mr->page;
	struct state_record record = {
		.size = mr->region->size,
		.loss = page->agent.loss,
		.acknowledged = page->agent.acknowledged,
		.usec = page->agent.loss_usec,
		.round = page->agent.loss_round,
		.epoch = page->agent.loss_epoch,
		.error = page->agent.loss_error,
		.origin = page->agent.loss_origin,
	};
	struct loss_record *r;

	if (record.loss == 0 || !m->memory.loaded)
		return;
	r = add_record(m, region_identity_hash(mr->region->identity));
	if (!r) {
		report(m, "written", ENOSPC);
		return;
	}
	memcpy(record.identity, mr->region->identity, sizeof(record.identity));
	if (!page->agent.loss_earlier)
		memcpy(record.boot_id, m->boot_id.bytes, sizeof(record.boot_id));
	if (recall_is_of(r, mr->region) && !r->dirty && r->record.loss == record.loss &&
	    r->record.acknowledged == record.acknowledged)
		return;
	r->record = record;
	r->damaged = false;
	r->dirty = true;
	save_dirty(m);
}

/* ---- a region joins, loses something, is acknowledged ---- */

void loss_restore(struct manager_region *mr)
{
	const struct pmem_agent_page *page = mr->page;
	struct flush_loss loss = {
		.number = page->agent.loss,
		.error = page->agent.loss_error,
		.origin = page->agent.loss_origin,
		.round = page->agent.loss_round,
		.epoch = page->agent.loss_epoch,
		.usec = page->agent.loss_usec,
		.earlier_boot = page->agent.loss_earlier,
	};

	flush_restore_loss(mr->flush, &loss, page->agent.acknowledged);
	mr->published_loss = loss.number;
	if (!page->agent.recalled)
		flush_withhold(mr->flush);
}

void loss_join(struct manager_region *mr)
{
	struct manager *m = mr->manager;

	recall_inherit(mr);
	if (m->memory.loaded)
		recall_region(mr);
	else if (m->memory.problem[0])
		doubt(mr);
}

/* Its page and record are those of the region that has come in its place, if there is one. */
static bool is_replaced(const struct manager_region *mr)
{
	return mr->removed && recall_is_present(mr->manager, region_identity_hash(mr->region->identity));
}

void loss_store(struct manager_region *mr, const struct flush_status *status)
{
	struct pmem_agent_page *page = mr->page;
	uint64_t failed = page->worker.failed;

	/* Not counted here, its failure waits in the page for whoever comes next. */
	if (is_replaced(mr) || status->loss.number <= page->agent.loss)
		return;
	page->agent.loss_error = status->loss.error;
	page->agent.loss_origin = status->loss.origin;
	page->agent.loss_round = status->loss.round;
	page->agent.loss_epoch = status->loss.epoch;
	page->agent.loss_usec = status->loss.usec;
	page->agent.loss_earlier = status->loss.earlier_boot;
	page_store(page->agent.loss, status->loss.number);
	/*
	 * Only now: between the two the page must say lost by either. A failure of the round in flight, which nobody
	 * has reported here yet, will be a loss of its own.
	 */
	if (!mr->worker || status->state == FLUSH_IDLE || failed != status->started)
		page_store(page->agent.failed_seen, failed);
	if (page->agent.recalled)
		loss_remember(mr);
}

int manager_acknowledge(struct manager *m, struct manager_region *mr, uint64_t number,
			char detail[static MOUNT_DETAIL_MAX])
{
	const char *name = mr->region->name;
	struct flush_status status;
	int answer;

	if (!mr->flush) {
		snprintf(detail, MOUNT_DETAIL_MAX, "%s is not flushed by the agent, which knows of no loss", name);
		return PMEM_AGENT_STALE_LOSS;
	}
	/* What has been noticed by now is not acknowledged by anybody. */
	watch_read(m, NULL);
	manager_region_get_status(mr, &status);
	if (mr->page->worker.failed > mr->page->agent.failed_seen) {
		snprintf(detail, MOUNT_DETAIL_MAX, "%s has just lost more: a flush has failed that is not counted yet",
			 name);
		return PMEM_AGENT_STALE_LOSS;
	}
	answer = flush_acknowledge(mr->flush, number);
	if (answer == PMEM_AGENT_UNKNOWN)
		snprintf(detail, MOUNT_DETAIL_MAX, "what %.40s lost in earlier boots is not known: %.160s", name,
			 m->memory.problem[0] ? m->memory.problem : "it is being read");
	else if (answer != 0 && status.loss.number == 0)
		snprintf(detail, MOUNT_DETAIL_MAX, "%s has no loss that is not acknowledged", name);
	else if (answer != 0)
		snprintf(detail, MOUNT_DETAIL_MAX, "the newest loss of %s is %" PRIu64 ", not %" PRIu64, name,
			 status.loss.number, number);
	if (answer != 0)
		return answer;

	page_store(mr->page->agent.acknowledged, number);
	loss_remember(mr);
	log_region(LOG_NOTICE, LOG_EVENT_ACKNOWLEDGED, name, status.epoch, "%s: loss %" PRIu64 " has been acknowledged",
		   name, number);
	manager_notify(m, MANAGER_ACKNOWLEDGED, mr);
	return 0;
}

/* ---- the child ---- */

static bool has_orders(const struct manager *m)
{
	return m->memory.loading || m->memory.n_saving > 0;
}

static void end_child(struct manager *m)
{
	m->memory.source = sd_event_source_disable_unref(m->memory.source);
	m->memory.child = state_free(m->memory.child);
}

static void save_dirty(struct manager *m)
{
	struct loss_record *r;
	int e = 0;

	TAILQ_FOREACH (r, &m->memory.records, entry) {
		if (!r->dirty)
			continue;
		e = start_child(m);
		if (e >= 0)
			e = state_save(m->memory.child, &r->record);
		if (e < 0)
			break;
		r->dirty = false;
		r->n_saving++;
		if (m->memory.n_saving++ == 0)
			set_timer(m, LOSS_PATIENCE_USEC);
	}
	/* Else the next answer goes on from here. */
	if (e < 0 && !has_orders(m)) {
		report(m, "written", -e);
		set_timer(m, LOSS_RETRY_USEC);
	}
}

static void load(struct manager *m)
{
	int r = start_child(m);

	if (r >= 0)
		r = state_load(m->memory.child);
	if (r < 0) {
		end_child(m);
		report(m, "read", -r);
		doubt_all(m);
		set_timer(m, LOSS_RETRY_USEC);
		return;
	}
	m->memory.loading = true;
	set_timer(m, LOSS_PATIENCE_USEC);
}

static void on_record(struct manager *m, const struct state_answer *answer)
{
	struct loss_record *r = add_record(m, answer->hash);

	/* Without memory it is as if it could not be read: the load fails as a whole. */
	if (!r) {
		m->memory.load_error = ENOMEM;
		return;
	}
	r->record = answer->record;
	r->damaged = answer->type == STATE_DAMAGED;
}

static void on_loaded(struct manager *m, const struct state_answer *answer)
{
	int error = answer->error ?: m->memory.load_error;
	struct manager_region *mr;

	m->memory.loading = false;
	m->memory.load_error = 0;
	if (error != 0) {
		forget_records(m);
		report(m, "read", error);
		doubt_all(m);
		return;
	}
	m->memory.loaded = true;
	if (answer->write_error != 0)
		report(m, "written", answer->write_error);
	else
		set_problem(m, "");
	TAILQ_FOREACH (mr, &m->regions, entry) {
		if (mr->flush)
			recall_region(mr);
	}
}

static void on_saved(struct manager *m, const struct state_answer *answer)
{
	struct loss_record *r = loss_find_record(m, answer->hash);

	m->memory.n_saving--;
	if (r && r->n_saving > 0)
		r->n_saving--;
	if (answer->error == 0)
		return;
	if (r)
		r->dirty = true;
	m->memory.save_error = answer->error;
}

/* Everything it was told to do has been answered, one way or the other. */
static void on_rest(struct manager *m)
{
	struct loss_record *r;
	bool dirty = false;

	TAILQ_FOREACH (r, &m->memory.records, entry)
		dirty |= r->dirty;
	end_child(m);
	sd_event_source_set_enabled(m->memory.timer, SD_EVENT_OFF);
	if (m->memory.save_error != 0)
		report(m, "written", m->memory.save_error);
	else if (m->memory.loaded && m->memory.saved)
		set_problem(m, "");
	if (m->memory.save_error != 0 || !m->memory.loaded)
		set_timer(m, LOSS_RETRY_USEC);
	else if (dirty)
		save_dirty(m);
	m->memory.save_error = 0;
	m->memory.saved = false;
}

/* It has died, and what it was doing has not been done. */
static void on_death(struct manager *m)
{
	struct loss_record *r;

	if (m->memory.loading)
		on_loaded(m, &(struct state_answer){ .error = ECHILD });
	TAILQ_FOREACH (r, &m->memory.records, entry) {
		r->dirty |= r->n_saving > 0;
		r->n_saving = 0;
	}
	if (m->memory.n_saving > 0)
		m->memory.save_error = ECHILD;
	m->memory.n_saving = 0;
}

static int on_answer(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager *m = userdata;
	struct state_answer answer;
	int r = state_next(m->memory.child, &answer);

	if (r == -EAGAIN)
		return 0;
	if (r < 0)
		on_death(m);
	else
		switch (answer.type) {
		case STATE_RECORD:
		case STATE_DAMAGED:
			on_record(m, &answer);
			break;
		case STATE_LOADED:
			on_loaded(m, &answer);
			break;
		case STATE_SAVED:
			m->memory.saved = true;
			on_saved(m, &answer);
			break;
		}
	if (!has_orders(m))
		on_rest(m);
	return 0;
}

static int start_child(struct manager *m)
{
	int r;

	if (m->memory.child)
		return 0;
	r = state_start(m->memory.dir, &m->memory.child);
	if (r < 0)
		return r;
	r = sd_event_add_io(m->event, &m->memory.source, state_get_fd(m->memory.child), EPOLLIN, on_answer, m);
	if (r < 0)
		m->memory.child = state_free(m->memory.child);
	return r;
}

/* It takes too long, which is no reason to end it; or it is time to try again. */
static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;
	bool waiting = has_orders(m);

	if (waiting)
		report(m, m->memory.loading ? "read" : "written", ETIMEDOUT);
	if (waiting && m->memory.loading)
		doubt_all(m);
	else if (!waiting && !m->memory.loaded)
		load(m);
	else if (!waiting)
		save_dirty(m);
	return 0;
}

int loss_start(struct manager *m)
{
	int r = sd_event_add_time(m->event, &m->memory.timer, CLOCK_MONOTONIC, UINT64_MAX, 0, on_timer, m);

	if (r < 0)
		return r;
	load(m);
	return 0;
}

void loss_stop(struct manager *m)
{
	/* What it has been told to do it still does. */
	end_child(m);
	m->memory.timer = sd_event_source_disable_unref(m->memory.timer);
	forget_records(m);
}
