/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * watch: the regions that the witness's entries hit
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/sysmacros.h>

#include "log.h"
#include "manager-private.h"
#include "sysfs.h"

/* One failed request completes several times, as its parts do: what comes within this is one loss. */
#define WATCH_SETTLE_USEC (5 * USEC_PER_MSEC)

/* ---- one entry ---- */

/* The disk of a partition, or the disk itself. -ENOENT: the device is no more. */
static int get_disk(dev_t devnum, dev_t *ret)
{
	_cleanup_free_ char *path = sysfs_resolve("/sys/dev/block/%u:%u", major(devnum), minor(devnum));

	if (!path)
		return -errno;
	return sysfs_read_devnum(ret, sysfs_exists("%s/partition", path) ? "%s/../dev" : "%s/dev", path);
}

/* The region whose I/O failed; one that is not known yet is looked for. */
static struct manager_region *find_hit(struct manager *m, dev_t disk)
{
	struct manager_region *mr = manager_find_device(m, disk, false);

	if (!mr && manager_rescan(m) >= 0)
		mr = manager_find_device(m, disk, false);
	return mr;
}

/* Once a reading: nobody can have done anything about the first entry before the others came. */
static void hit(struct manager_region *mr, int error, enum flush_origin origin)
{
	if (!mr->hit)
		round_lose(mr, error, origin);
	mr->hit = true;
}

static void hit_error(struct manager *m, const struct witness_entry *e)
{
	struct manager_region *mr;
	dev_t disk;

	if (get_disk(e->devnum, &disk) >= 0) {
		mr = find_hit(m, disk);
		if (mr)
			hit(mr, e->error, FLUSH_ORIGIN_WITNESS);
		return;
	}

	/* What has vanished by now can't be told from a partition of ours: doubt, wherever the major is the same. */
	TAILQ_FOREACH (mr, &m->regions, entry)
		if (mr->region->flush_namespace && major(mr->region->flush_namespace->devnum) == major(e->devnum))
			hit(mr, e->error, FLUSH_ORIGIN_WITNESS);
}

static void hit_overrun(struct manager *m)
{
	struct manager_region *mr;

	TAILQ_FOREACH (mr, &m->regions, entry)
		hit(mr, EIO, FLUSH_ORIGIN_OVERRUN);
}

/* ---- all there are ---- */

static void give_up(struct manager *m, int error)
{
	log_daemon(LOG_ERR, LOG_EVENT_WITNESS,
		   "cannot read the trace instance any more (%s): errors that others take go unseen",
		   strerrordesc_np(error));
	m->watch.source = sd_event_source_disable_unref(m->watch.source);
	m->watch.settle = sd_event_source_disable_unref(m->watch.settle);
	m->witness = witness_free(m->witness);
}

void watch_read(struct manager *m, struct manager_region *just_lost)
{
	struct witness_entry entry;
	struct manager_region *mr;
	int r = 0;

	if (!m->witness)
		return;
	TAILQ_FOREACH (mr, &m->regions, entry)
		mr->hit = mr == just_lost;

	while ((r = witness_next(m->witness, &entry)) > 0)
		switch (entry.type) {
		case WITNESS_ENTRY_NONE:
			break;
		case WITNESS_ENTRY_ERROR:
			hit_error(m, &entry);
			break;
		case WITNESS_ENTRY_OVERRUN:
			hit_overrun(m);
			break;
		}
	if (r < 0)
		give_up(m, -r);
}

void watch_resume(struct manager *m)
{
	if (m->watch.source)
		sd_event_source_set_enabled(m->watch.source, SD_EVENT_ONESHOT);
}

static int on_settled(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;

	watch_read(m, NULL);
	watch_resume(m);
	return 0;
}

/*
 * While a round of ours is in flight its own error comes this way too: the end of the round, or its stall, goes on from
 * here, so that both count as one loss. No answer waits for any of this: each reads the witness first.
 */
static int on_entries(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct manager *m = userdata;
	struct manager_region *mr;
	struct flush_status status;
	int r;

	TAILQ_FOREACH (mr, &m->regions, entry) {
		manager_region_get_status(mr, &status);
		if (status.state == FLUSH_IN_FLIGHT)
			return 0;
	}
	r = sd_event_source_set_time_relative(m->watch.settle, WATCH_SETTLE_USEC);
	return r < 0 ? r : sd_event_source_set_enabled(m->watch.settle, SD_EVENT_ONESHOT);
}

static int attach(struct manager *m)
{
	int r =
	    sd_event_add_time(m->event, &m->watch.settle, CLOCK_MONOTONIC, UINT64_MAX, USEC_PER_MSEC, on_settled, m);

	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(m->watch.settle, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_io(m->event, &m->watch.source, witness_get_fd(m->witness), EPOLLIN, on_entries, m);
	if (r < 0)
		return r;
	return sd_event_source_set_enabled(m->watch.source, SD_EVENT_ONESHOT);
}

void watch_start(struct manager *m)
{
	int r = witness_open(WITNESS_INSTANCE, &m->witness);

	if (r < 0) {
		log_daemon(LOG_NOTICE, LOG_EVENT_WITNESS,
			   "no trace instance (%s): an I/O error that another program takes goes unseen, answers rest "
			   "on own-flush only",
			   strerrordesc_np(-r));
		return;
	}
	watch_read(m, NULL);
	r = m->witness ? attach(m) : 0;
	if (r < 0)
		give_up(m, -r);
}
