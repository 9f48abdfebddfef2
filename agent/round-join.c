/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * round-join: how a region joins and leaves, and what agents before us have left of its rounds
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "log.h"
#include "manager-private.h"

/* Requests of one user that may wait for a region: one of so many parts of the queue. */
#define UID_SHARE 4

/* ---- what the agent before us left ---- */

/* Of a round that may have been one of other regions too, and of which is not known any more. They first. */
static void lose_adopted(struct manager_region *mr, int error, enum flush_origin origin)
{
	struct manager_region *peer;

	if (mr->page->worker.peers) {
		worker_doubt_pages(mr->manager->runtime_dir, mr->page);
		TAILQ_FOREACH (peer, &mr->manager->regions, entry) {
			if (peer == mr || !peer->flush)
				continue;
			round_lose(peer, error, FLUSH_ORIGIN_PEER);
			page_store(peer->page->agent.reading, 0);
		}
	}
	round_lose(mr, error, origin);
}

/*
 * What the agent before us left, once its worker is known to have ended. A round that it began and nobody ended has an
 * outcome that nobody will ever know; so has one that ended without being durable, and of which it had not told all.
 */
static void settle_page(struct manager_region *mr)
{
	const struct pmem_agent_page *page = mr->page;
	bool counted = page->agent.loss_origin == FLUSH_ORIGIN_WORKER && !page->agent.loss_earlier &&
		       page->agent.loss_round >= page->worker.started;
	uint64_t done = page->worker.done;
	bool told = page->worker.durable >= done || page->worker.failed >= done || page->agent.answered >= done;

	if (page->worker.failed > page->agent.failed_seen)
		lose_adopted(mr, page->worker.error, FLUSH_ORIGIN_ROUND);
	else if ((page->worker.started > done || !told) && !counted)
		lose_adopted(mr, EIO, FLUSH_ORIGIN_WORKER);
}

static int on_adopted(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager_region *mr = userdata;
	struct flush_status status;

	mr->adopted_source = sd_event_source_disable_unref(mr->adopted_source);
	watch_read(mr->manager, NULL);
	flush_adopted(mr->flush, mr->page->worker.started);
	settle_page(mr);
	stats_recovered(&mr->stats, now_usec(CLOCK_MONOTONIC));
	manager_region_get_status(mr, &status);
	if (status.loss.number == 0) {
		log_region(LOG_NOTICE, LOG_EVENT_RECOVERED, mr->region->name, status.epoch,
			   "%s: the worker of the agent before this one has ended", mr->region->name);
		manager_notify(mr->manager, MANAGER_RECOVERED, mr);
	} else {
		manager_notify(mr->manager, MANAGER_ROUND, mr);
	}
	round_kick(mr);
	return 0;
}

static int adopt(struct manager_region *mr)
{
	struct pmem_agent_page *page = mr->page;
	_cleanup_close_ int fd = -1;
	int r;

	loss_restore(mr);

	/* The agent before us died over entries that nobody else will see. */
	if (page->agent.reading)
		round_lose(mr, EIO, FLUSH_ORIGIN_OVERRUN);
	__atomic_store_n(&page->agent.reading, 0, __ATOMIC_RELEASE);

	/* A failure that the worker has written of is one, whatever it hangs in now. */
	if (page->worker.failed > page->agent.failed_seen)
		lose_adopted(mr, page->worker.error, FLUSH_ORIGIN_ROUND);

	fd = worker_find(page);
	if (fd == -ESRCH) {
		settle_page(mr);
		return 0;
	}
	if (fd < 0)
		return fd;
	r = sd_event_add_io(mr->manager->event, &mr->adopted_source, fd, EPOLLIN, on_adopted, mr);
	if (r < 0)
		return r;
	r = sd_event_source_set_io_fd_own(mr->adopted_source, true);
	if (r < 0)
		return r;
	fd = -1;
	if (page->worker.started <= page->worker.done) {
		/* About to end. */
		flush_adopt(mr->flush, now_usec(CLOCK_REALTIME));
		return 0;
	}
	flush_adopt(mr->flush, page->worker.started_usec);
	stats_stalled(&mr->stats, now_usec(CLOCK_MONOTONIC));
	log_region(LOG_WARNING, LOG_EVENT_STALLED, mr->region->name, mr->page->agent.epoch,
		   "%s: a flush of the agent before this one has not been answered", mr->region->name);
	return 0;
}

/* ---- a region joins and leaves ---- */

/* What only a region has that the agent flushes. */
static int prepare(struct manager_region *mr)
{
	struct manager *m = mr->manager;
	uint64_t started;
	int r;

	r = worker_open_page(m->runtime_dir, mr->region->identity, m->boot_id, &mr->page);
	if (r < 0)
		return r;
	/* A loss may have been noticed in a round that no worker has got to, or descriptors handed over for it. */
	started = mr->page->worker.started;
	if (!mr->page->agent.loss_earlier && started < mr->page->agent.loss_round)
		started = mr->page->agent.loss_round;
	if (started < mr->page->agent.handed)
		started = mr->page->agent.handed;
	mr->flush =
	    flush_new(m->conf->queue_depth, 1 + (m->conf->queue_depth - 1) / UID_SHARE, started, mr->page->agent.epoch);
	if (!mr->flush)
		return -ENOMEM;
	memcpy(mr->page->agent.instance, m->instance.bytes, sizeof(mr->page->agent.instance));

	r = round_add_sources(mr);
	if (r < 0)
		return r;
	r = adopt(mr);
	if (r < 0)
		return r;
	loss_join(mr);
	return 0;
}

int round_region_new(struct manager *m, struct region *region, struct manager_region **ret)
{
	_cleanup_(round_region_freep) struct manager_region *mr = calloc(1, sizeof(*mr));
	int r;

	if (!mr)
		return -ENOMEM;
	mr->manager = m;
	mr->region = region;
	if (region_can_flush(region)) {
		r = prepare(mr);
		if (r < 0) {
			mr->region = NULL; /* still the caller's */
			return r;
		}
	}
	*ret = mr;
	mr = NULL;
	return 0;
}

void round_region_pin(struct manager_region *mr)
{
	mr->n_pins++;
}

void round_region_unpin(struct manager_region *mr)
{
	mr->n_pins--;
	round_kick(mr);
}

void round_region_remove(struct manager_region *mr)
{
	mr->removed = true;
	if (!mr->flush) {
		round_region_free(mr);
		return;
	}
	TAILQ_INSERT_TAIL(&mr->manager->removed, mr, entry);
	round_host_remove(mr);
	flush_gone(mr->flush);
	round_kick(mr);
}

struct manager_region *round_region_free(struct manager_region *mr)
{
	if (!mr)
		return NULL;
	sd_event_source_disable_unref(mr->run_source);
	sd_event_source_disable_unref(mr->stall_source);
	sd_event_source_disable_unref(mr->wakeup_source);
	sd_event_source_disable_unref(mr->worker_source);
	sd_event_source_disable_unref(mr->adopted_source);
	sd_event_source_disable_unref(mr->host.timer);
	worker_free(mr->worker);
	flush_free(mr->flush);
	worker_close_page(mr->page);
	region_free(mr->region);
	free(mr);
	return NULL;
}
