/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manager-private: what the six files of the owner's floor share
 *
 *   manager.c    which regions there are, and who is told
 *   round.c      the rounds of one region: its worker, its page, its losses
 *   round-set.c  from the plan of a round to what its worker is told
 *   loss.c       what is remembered of losses, beyond the agent and beyond the boot
 *   watch.c      the losses that only the witness saw
 *   request.c    from a door's call to its answer
 */
#pragma once

#include <sys/queue.h>

#include "lib/wire.h"
#include "manager.h"
#include "mount-cache.h"
#include "state.h"
#include "stats.h"
#include "witness.h"
#include "worker.h"

struct manager_region {
	struct manager *manager;
	struct region *region;
	struct flush *flush; /* NULL, with the page, where the agent cannot flush the region */
	struct pmem_agent_page *page;
	bool removed;        /* off the list; lives until its round in flight has ended and */
	unsigned int n_pins; /* no request refers to it */

	struct worker *worker; /* NULL until the first round, and after it died */
	sd_event_source *worker_source;
	sd_event_source *adopted_source; /* pidfd of the worker of an agent before us */
	sd_event_source *run_source;     /* deferred: takes the actions of `flush` */
	sd_event_source *stall_source;
	sd_event_source *wakeup_source; /* when `flush` has something to do by itself */

	struct worker_round round;     /* the newest begun */
	struct worker_result result;   /* of the newest ended */
	struct target last_target;     /* of the widest call confirmed in the last round that was */
	char detail[MOUNT_DETAIL_MAX]; /* why nothing can be said, where no call of a round tells */
	bool hit;                      /* by an entry of the witness, in the reading at hand */
	uint64_t published_loss;       /* number of the newest loss that was told */
	struct request *stop_request;  /* the last flush, while the manager is stopping */
	struct stats stats;

	void *bus_slot;
	TAILQ_ENTRY(manager_region) entry;
};

TAILQ_HEAD(manager_region_list, manager_region);
TAILQ_HEAD(loss_record_list, loss_record);

struct manager {
	sd_event *event;
	struct conf *conf;
	const char *runtime_dir;
	sd_id128_t boot_id, instance;
	struct manager_region_list regions; /* by name */
	struct manager_region_list removed;
	struct manager_listener *listeners;

	struct mount_cache *mounts;
	struct witness *witness; /* NULL: not set up, or not to be relied on any more */
	struct {
		sd_event_source *source, *settle;
	} watch;

	struct {
		const char *dir;
		struct state *child;     /* NULL while it has nothing to do */
		sd_event_source *source; /* its answers */
		sd_event_source *timer;  /* until it takes too long, or is to try again */
		struct loss_record_list records;
		unsigned int n_records;
		bool loaded; /* the records are all there are */
		bool loading;
		unsigned int n_saving; /* orders that have not been answered */
		bool saved;            /* since the child was started */
		int load_error, save_error;
		char problem[256]; /* "" if losses are recorded, or would be */
	} memory;

	struct {
		void (*done)(bool clean, void *userdata);
		void *userdata;
		sd_event_source *timer;
		unsigned int waiting;
		bool clean;
	} stop;
};

/* One leaf's share of a request; the owner of a ticket in flush.c. */
struct part {
	struct request *request;
	struct manager_region *region;
	bool begun;        /* its round has started */
	unsigned int call; /* of that round */
	bool answered;
	uint64_t loss; /* then: number of the region's newest loss, acknowledged or not */
};

struct request {
	struct manager *manager;
	int fd;    /* -1 once every part has begun, and where there is none */
	uid_t uid; /* who gave it, CLOSER_NOBODY: not known yet */
	struct target target;
	struct part parts[MOUNT_MAX_LEAVES];
	unsigned int n_parts;
	bool pinned;           /* its regions are */
	uint64_t arrived_usec; /* at their queues, CLOCK_MONOTONIC; 0: not yet */
	struct request_result result;
	request_done_t done;
	void *userdata;
};

/* ---- manager.c ---- */

/* manager_rescan() for watch.c, which has read the witness: what it says of a region must not come after its removal.
 */
int manager_scan(struct manager *m);
void manager_notify(struct manager *m, enum manager_event event, struct manager_region *mr);
struct manager_region *manager_find_device(const struct manager *m, dev_t devnum, bool character);

/* ---- round.c ---- */

/* A region that joins: takes `region` over, adopts its page. Not on any list yet. 0 or a negative errno. */
int round_region_new(struct manager *m, struct region *region, struct manager_region **ret);
struct manager_region *round_region_free(struct manager_region *mr); /* no round in flight, no request */
DEFINE_CLEANUP(struct manager_region *, round_region_free)

/* A request has come for the region, which stays valid until that has been answered. */
void round_region_pin(struct manager_region *mr);
void round_region_unpin(struct manager_region *mr);

/* A request has arrived at its queue. */
void round_region_arrived(struct manager_region *mr);

/* Off the list: what waits is answered, the round in flight keeps its own result, and then it is freed. */
void round_region_remove(struct manager_region *mr);

/* Latches the region, and tells everyone. */
void round_lose(struct manager_region *mr, int error, enum flush_origin origin);

/* "loss 1: Input/output error, noticed by witness" */
void round_describe_loss(const struct manager_region *mr, char detail[static MOUNT_DETAIL_MAX]);

/* Tells a loss that has not been told yet. */
void round_publish_loss(struct manager_region *mr);

/* Why the part's round has not made it durable, "" if there is nothing to add. */
const char *round_get_detail(const struct manager_region *mr, const struct part *part);

/* There may be something to start or to answer: from the loop, not from within the call. */
void round_kick(struct manager_region *mr);

/* ---- round-set.c ---- */

/* `mr->round`, by the plan of `mr->flush`; `ret_fds`: the descriptors of its members, still theirs. */
void round_set(struct manager_region *mr, uint64_t number, int ret_fds[static WORKER_MAX_DESCRIPTORS]);

/* ---- loss.c ---- */

/* Begins to read what earlier boots recorded; before that, regions may join already. 0 or a negative errno. */
int loss_start(struct manager *m);
void loss_stop(struct manager *m);

/* A region joins: first what its page says, and when that has been settled, what was recorded of it. */
void loss_restore(struct manager_region *mr);
void loss_join(struct manager_region *mr);

/* Its newest loss: in the page at once, on record as soon as that can be. */
void loss_store(struct manager_region *mr, const struct flush_status *status);

/* ---- watch.c ---- */

/* Opens the witness, reads what it has seen so far, and follows it. Without one the basis is own-flush. */
void watch_start(struct manager *m);

/* Reads what it has seen, and latches the regions it hit; what `just_lost` has been hit by was counted just now. */
void watch_read(struct manager *m, struct manager_region *just_lost);

/* Entries that came while a round was in flight may be looked at. */
void watch_resume(struct manager *m);

/* ---- request.c ---- */

/* The round of this part has been handed to the worker: the descriptor may go when all have. */
void request_part_begun(struct part *part, unsigned int call);
void request_part_answered(struct part *part, const struct flush_action *action);
