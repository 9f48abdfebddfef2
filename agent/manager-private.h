/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manager-private: what the files of the owner's floor share
 *
 *   manager.c    how it starts and stops, and who is told
 *   regions.c    which regions there are
 *   round.c      the rounds of one region: its worker, its page, its losses
 *   round-join.c how a region joins and leaves
 *   round-set.c  from the plan of a round to what its worker is told
 *   round-host.c what of a round only the host can do
 *   attest.c     what the host says of the regions, and new instances
 *   loss.c       what is remembered of losses, beyond the agent and beyond the boot
 *   recall.c     whose the losses are that are on record
 *   watch.c      the losses that only the witness saw
 *   request.c    from a door's call to its answer
 */
#pragma once

#include <sys/queue.h>

#include "lib/wire.h"
#include "manager.h"
#include "mount-cache.h"
#include "scan.h"
#include "state.h"
#include "stats.h"
#include "witness.h"
#include "worker.h"

#define WATCH_MAX_STRANGERS 16

/* Of a round that the host has a part in. */
struct round_host {
	sd_id128_t instance;        /* when what it rests on was begun */
	uint64_t remade_usec;       /* for the first time, CLOCK_MONOTONIC; 0: never */
	bool is_remaking;           /* the worker makes a flush again for another instance */
	bool is_over_time;          /* noticed meanwhile */
	struct worker_result first; /* before that */
	bool waits;                 /* the worker has no part in it any more, the host's answer decides */
	bool is_refused;            /* the region, since the round began */
	uint64_t number;            /* that the host was asked by; 0: it has not been, or is not there any more */
	uint64_t asked_usec;        /* since when there is something to ask, CLOCK_MONOTONIC; 0: there was nothing */
	sd_event_source *timer;
};

struct loss_record {
	struct state_record record; /* if damaged: nothing */
	uint64_t hash;
	bool damaged;
	bool dirty;            /* to be saved */
	unsigned int n_saving; /* orders that have not been answered */
	TAILQ_ENTRY(loss_record) entry;
};

struct manager_region {
	struct manager *manager;
	struct region *region;
	struct flush *flush; /* NULL, with the page, where the agent cannot flush the region */
	struct pmem_agent_page *page;
	bool removed;        /* off the list; lives until its round in flight has ended and */
	unsigned int n_pins; /* no request refers to it */
	bool bequeaths;      /* removed and pinned: its losses are to be those of what is in its place */

	struct worker *worker; /* NULL until the first round, and after it died */
	sd_event_source *worker_source;
	sd_event_source *adopted_source; /* pidfd of the worker of an agent before us */
	sd_event_source *run_source;     /* deferred: takes the actions of `flush` */
	sd_event_source *stall_source;
	sd_event_source *wakeup_source; /* when `flush` has something to do by itself */

	struct round_host host;
	struct worker_round round;     /* the newest begun */
	struct worker_result result;   /* of the newest ended */
	struct target last_target;     /* of the widest call confirmed in the last round that was */
	char detail[MOUNT_DETAIL_MAX]; /* why nothing can be said, where no call of a round tells */
	bool hit;                      /* by an entry of the witness, in the reading at hand */
	bool overrun;                  /* hit by entries that went unseen, or had no room, until all have been seen */
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

	struct {
		struct scan *scan; /* NULL: none is under way */
		sd_event_source *source, *timer;
		sd_event_source *retry;         /* after one that failed */
		bool again;                     /* something has changed since it began, or not all has been seen */
		const struct region_list *seen; /* NULL: none is about to join */
		bool emulated;                  /* one of these is to be tried again */
		char unserved[256]; /* since the newest began: a region that cannot be served; "" if there is none */
		char problem[256];  /* "" if the regions known are all there are, or will be in a moment */
	} look;

	struct mount_cache *mounts;
	struct witness *witness; /* NULL: not set up, or not to be relied on any more */
	struct {
		sd_event_source *source, *settle;
		struct stranger {
			struct leaf disk;
			int error;
		} strangers[WATCH_MAX_STRANGERS]; /* of disks whose regions are not known yet */
		unsigned int n_strangers;         /* more: not all have had room */
		int forgotten;                    /* errno: why a loss could be kept nowhere; 0: each has been */
	} watch;

	struct {
		struct manager_host ops; /* ask() is there if any of these is */
		bool flushes, confirms;
		uint64_t last_number;
	} host;

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

void manager_notify(struct manager *m, enum manager_event event, struct manager_region *mr);

/* ---- regions.c ---- */

/* Waits for the first look, a few seconds at most: it is reported then, and goes on. 0 or a negative errno. */
int regions_start(struct manager *m);
void regions_stop(struct manager *m);

/* Has a child look for regions; if one does already, once more after that. */
void regions_look(struct manager *m);

/*
 * The region that has it. NULL: none that is known. A number that a namespace had may be another's by now, before that
 * has been seen: so it goes by the kernel's name, which has the region's number, and if they differ looks again.
 */
struct manager_region *regions_find_leaf(struct manager *m, const struct leaf *leaf);

/* No region is known to have it, but that is no reason to call it no persistent memory: not all has been seen yet. */
bool regions_is_unseen(const struct manager *m, const struct leaf *leaf);

/* `*seen`, which is taken, stands for the region from now on; where it is flushed in another way, as a new one. */
void manager_replace_region(struct manager *m, struct manager_region *mr, struct region **seen);

/* ---- attest.c ---- */

/* What the host told an agent before us, if it was a refusal. 0 or a negative errno. */
int attest_recall(struct manager *m, struct region *r);

/* ---- round.c ---- */

/* A request has arrived at its queue. */
void round_region_arrived(struct manager_region *mr);

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

/* `mr->result` is how the round in flight ends. */
void round_finish(struct manager_region *mr, enum flush_origin origin);

/* To the worker, which is started if need be. 0 or a negative errno. */
int round_send(struct manager_region *mr, const struct worker_round *round, const int *fds);

/* What wakes it, all of it off. 0 or a negative errno. */
int round_add_sources(struct manager_region *mr);

/* ---- round-join.c ---- */

/* A region that joins: takes `region` over, adopts its page. Not on any list yet. 0 or a negative errno. */
int round_region_new(struct manager *m, struct region *region, struct manager_region **ret);
struct manager_region *round_region_free(struct manager_region *mr); /* no round in flight, no request */
DEFINE_CLEANUP(struct manager_region *, round_region_free)

/* A request has come for the region, which stays valid until that has been answered. */
void round_region_pin(struct manager_region *mr);
void round_region_unpin(struct manager_region *mr);

/* Off the list: what waits is answered, the round in flight keeps its own result, and then it is freed. */
void round_region_remove(struct manager_region *mr);

/* ---- round-host.c ---- */

/* `mr->host.timer` */
int round_host_on_timer(sd_event_source *source, uint64_t usec, void *userdata);

/* A round begins. */
void round_host_prepare(struct manager_region *mr);

/* It is one that the host has to make. 0 or a negative errno. */
int round_host_begin(struct manager_region *mr);

/* The worker's part ends with `mr->result`. Whether there is more to do before the round has ended. */
bool round_host_goes_on(struct manager_region *mr);

/* The host's answer is what ends the round, no worker's. */
bool round_host_is_asked(const struct manager_region *mr);

/* The worker has ended well once, and flushes once more now. */
bool round_host_is_remaking(const struct manager_region *mr);

/* The host doesn't serve the region any more. */
void round_host_left(struct manager_region *mr);

/* The region goes: nobody will ask the host. */
void round_host_remove(struct manager_region *mr);

/* ---- round-set.c ---- */

/* A round that flushes the region only, by its node. */
void round_set_region(const struct manager_region *mr, uint64_t number, struct worker_round *ret);

/* The region itself as a target; its leaf is what a round checks before and after. */
void round_target_region(const struct manager_region *mr, struct target *ret);

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

/* NULL: there is none. */
struct loss_record *loss_find_record(struct manager *m, uint64_t hash);

/* What the page says is to be on record, once it is known what is there. */
void loss_remember(struct manager_region *mr);

/* ---- recall.c ---- */

bool recall_is_of(const struct loss_record *r, const struct region *region);

/* Whether a region has that region_identity_hash(). */
bool recall_is_present(const struct manager *m, uint64_t hash);

/*
 * The records have been read: what they say of the region comes into its page, and it goes on. Into a page that has
 * been told already comes only what is newer, of an identity that the region may have had meanwhile.
 */
void recall_region(struct manager_region *mr);

/*
 * While the agent runs, a region that is seen under another identity goes, and joins as a new one. What it has lost, in
 * its last round too, goes with it: recall_bequeath() before it is removed. recall_is_held_up(): not all of that is
 * known yet, so that nothing may join in its place; else recall_inherit() when it does. recall_forget_gone(): of those
 * in whose place there is none in m->regions or m->look.seen.
 */
void recall_bequeath(struct manager_region *mr);
bool recall_is_held_up(const struct manager *m, const struct region *region);
void recall_inherit(struct manager_region *mr);
void recall_forget_gone(struct manager *m);

/* ---- watch.c ---- */

/* Reads what it has seen, and latches the regions it hit; what `just_lost` has been hit by was counted just now. */
void watch_read(struct manager *m, struct manager_region *just_lost);

/* Entries that came while a round was in flight may be looked at. */
void watch_resume(struct manager *m);

/* Regions have been looked for. `all`: whose is none of theirs is nobody's. */
void watch_regions_seen(struct manager *m, bool all);

/* ---- request.c ---- */

/* The round of this part has begun. `handed`: to a worker, so that the descriptor may go when all have. */
void request_part_begun(struct part *part, unsigned int call, bool handed);
void request_part_answered(struct part *part, const struct flush_action *action);
