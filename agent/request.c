/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request: from a door's call to its answer, over one region or several
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "closer.h"
#include "log.h"
#include "manager-private.h"
#include "share.h"

static struct request *request_free(struct request *r)
{
	if (!r)
		return NULL;
	for (unsigned int i = 0; r->pinned && i < r->n_parts; i++)
		round_region_unpin(r->parts[i].region);
	/* Not every part has begun: this may be the last reference to a file, whose release can block. */
	if (r->fd >= 0)
		closer_close(r->fd, r->uid);
	free(r);
	return NULL;
}
DEFINE_CLEANUP(struct request *, request_free)

/* ---- whether there is a request at all ---- */

static struct manager_region *next_emulated(const struct manager *m, struct manager_region *after)
{
	struct manager_region *mr = after ? TAILQ_NEXT(after, entry) : TAILQ_FIRST(&m->regions);

	while (mr && mr->region->method != REGION_METHOD_FILE)
		mr = TAILQ_NEXT(mr, entry);
	return mr;
}

/* A file that stands for a region: its descriptor stands for the region too. */
static struct manager_region *find_emulated(const struct manager *m, int fd)
{
	struct manager_region *mr = next_emulated(m, NULL);
	struct statx stx;
	int flags;

	if (!mr)
		return NULL;
	/* A descriptor of O_PATH proves no right to the file; mount.c says so. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || flags & O_PATH)
		return NULL;
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stx) < 0)
		return NULL;
	for (; mr; mr = next_emulated(m, mr))
		if (mr->region->emulate_device == makedev(stx.stx_dev_major, stx.stx_dev_minor) &&
		    mr->region->emulate_inode == stx.stx_ino)
			return mr;
	return NULL;
}

/* What the agent says of a region that it cannot flush. */
static int check_method(const struct manager_region *mr, char detail[static MOUNT_DETAIL_MAX])
{
	const struct region *region = mr->region;

	switch (region->method) {
	case REGION_METHOD_BLOCK:
	case REGION_METHOD_DEEP_FLUSH:
	case REGION_METHOD_FILE:
		return 0;
	case REGION_METHOD_CPU_FLUSH:
		snprintf(detail, MOUNT_DETAIL_MAX,
			 "%s is synchronous: a store is durable after its CPU flush, a file after its fsync",
			 region->name);
		return PMEM_AGENT_SYNCHRONOUS;
	case REGION_METHOD_HOST:
		if (manager_region_is_served(mr))
			return 0;
		snprintf(detail, MOUNT_DETAIL_MAX,
			 "%s is device-dax on %.32s: no flush exists inside the guest, and no host is connected that "
			 "makes it",
			 region->name, region->provider);
		return PMEM_AGENT_IMPOSSIBLE;
	case REGION_METHOD_IMPOSSIBLE:
	case N_REGION_METHODS:
		break;
	}
	snprintf(detail, MOUNT_DETAIL_MAX, "%s: %s", region->name,
		 region->n_evidence > 0 ? region->evidence[region->n_evidence - 1] : "no way to flush it");
	return PMEM_AGENT_IMPOSSIBLE;
}

static int describe_refusal(const struct manager_region *mr, int answer, char detail[static MOUNT_DETAIL_MAX])
{
	const char *name = mr->region->name;
	struct flush_status status;

	manager_region_get_status(mr, &status);
	switch (answer) {
	case PMEM_AGENT_LOST:
		round_describe_loss(mr, detail);
		break;
	case PMEM_AGENT_BUSY:
		snprintf(detail, MOUNT_DETAIL_MAX, "%u requests wait for %s already, or too many of one user",
			 status.waiting, name);
		break;
	case PMEM_AGENT_GONE:
		snprintf(detail, MOUNT_DETAIL_MAX, "%s has been removed", name);
		break;
	case PMEM_AGENT_UNKNOWN:
		snprintf(detail, MOUNT_DETAIL_MAX, "%s", mr->detail);
		break;
	}
	return answer;
}

/* There is a device below it that is of no region. */
static int refuse_other(const struct request *r, const struct leaf *other, char detail[static MOUNT_DETAIL_MAX])
{
	const char *where = r->n_parts > 0 ? "partly on" : "on", *name = other ? other->name : "no device";

	if (other && regions_is_unseen(r->manager, other)) {
		snprintf(detail, MOUNT_DETAIL_MAX,
			 "%.80s is %s %s, which the agent has not looked at yet; pmemctl status tells if that hangs",
			 r->target.source, where, name);
		return PMEM_AGENT_UNKNOWN;
	}
	snprintf(detail, MOUNT_DETAIL_MAX, "%.120s is %s %s, which is no persistent memory", r->target.source, where,
		 name);
	return r->n_parts > 0 ? PMEM_AGENT_MIXED : PMEM_AGENT_ORDINARY;
}

/*
 * The regions below the target. `answer` is what mount.c said: a filesystem that it refuses is refused as such only
 * if there is a region below it.
 */
static int find_parts(struct request *r, int answer, char detail[static MOUNT_DETAIL_MAX])
{
	const struct leaf *other = NULL;
	struct flush_status status;

	for (unsigned int i = 0; i < r->target.n_leaves; i++) {
		struct manager_region *mr = regions_find_leaf(r->manager, &r->target.leaves[i]);

		if (mr)
			r->parts[r->n_parts++] = (struct part){ .request = r, .region = mr };
		else
			other = &r->target.leaves[i];
	}

	if (r->n_parts == 0 && (other || answer == 0))
		return refuse_other(r, other, detail);
	/* A failure often sets the filesystem read-only: that is no news then. */
	for (unsigned int i = 0; i < r->n_parts; i++) {
		manager_region_get_status(r->parts[i].region, &status);
		if (status.loss.number > 0)
			return describe_refusal(r->parts[i].region, PMEM_AGENT_LOST, detail);
	}
	if (answer != 0)
		return answer;
	if (other)
		return refuse_other(r, other, detail);
	for (unsigned int i = 0; i < r->n_parts; i++) {
		answer = check_method(r->parts[i].region, detail);
		if (answer != 0)
			return answer;
	}
	return 0;
}

/* What its regions count: each of them has had a request, and this is what became of it. */
static void count_answer(struct request *r, enum pmem_agent_answer answer)
{
	uint64_t now = now_usec(CLOCK_MONOTONIC);

	for (unsigned int i = 0; i < r->n_parts; i++) {
		struct stats *stats = &r->parts[i].region->stats;

		if (r->arrived_usec)
			stats_answered(stats, answer, r->arrived_usec, now);
		else
			stats_refused(stats, r->target.flush.scope, answer);
	}
}

static int refuse(struct request *r, int answer)
{
	if (answer > 0)
		count_answer(r, (enum pmem_agent_answer)answer);
	return answer;
}

static int arrive(struct part *part, const struct flush_caller *caller)
{
	struct manager_region *mr = part->region;
	int answer = flush_arrive(mr->flush, &part->request->target.flush, caller, part);
	struct flush_status status;

	manager_region_get_status(mr, &status);
	if (answer != 0 || share_allows(status.waiting, mr->manager->conf->queue_depth, caller->uid))
		return answer;
	flush_forget(mr->flush, part, 0);
	return PMEM_AGENT_BUSY;
}

/* All parts queue up, or none does. */
static int submit(struct request *r, const struct flush_caller *caller, char detail[static MOUNT_DETAIL_MAX])
{
	r->target.flush.descriptor = r->fd >= 0;
	for (unsigned int i = 0; i < r->n_parts; i++) {
		struct manager_region *mr = r->parts[i].region;
		int answer = arrive(&r->parts[i], caller);

		if (answer != 0) {
			while (i-- > 0)
				flush_forget(r->parts[i].region->flush, &r->parts[i], 0);
			return refuse(r, describe_refusal(mr, answer, detail));
		}
	}
	r->arrived_usec = now_usec(CLOCK_MONOTONIC);
	for (unsigned int i = 0; i < r->n_parts; i++) {
		stats_arrived(&r->parts[i].region->stats, r->target.flush.scope);
		round_region_arrived(r->parts[i].region);
	}
	return 0;
}

static struct request *request_new(struct manager *m, int fd, const struct flush_caller *caller, request_done_t done,
				   void *userdata)
{
	struct request *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->manager = m;
	r->fd = fd;
	r->uid = caller ? caller->uid : CLOSER_NOBODY;
	r->done = done;
	r->userdata = userdata;
	return r;
}

static int finish_new(struct request **r, int answer, const struct flush_caller *caller, struct request **ret,
		      char detail[static MOUNT_DETAIL_MAX])
{
	if (answer != 0)
		return refuse(*r, answer);
	(*r)->result.scope = (*r)->target.flush.scope;
	(*r)->pinned = true;
	for (unsigned int i = 0; i < (*r)->n_parts; i++)
		round_region_pin((*r)->parts[i].region);
	if (caller) {
		answer = submit(*r, caller, detail);
		if (answer != 0)
			return answer;
	}
	*ret = *r;
	*r = NULL;
	return 0;
}

static void target_region(const struct manager_region *mr, struct request *r)
{
	round_target_region(mr, &r->target);
	r->parts[r->n_parts++] = (struct part){ .request = r, .region = (struct manager_region *)mr };
}

/* What its descriptor stands for. 0, an answer, or a negative errno. */
static int resolve_fd(struct request *r, const struct mount_file *expected, enum mount_scope scope,
		      char detail[static MOUNT_DETAIL_MAX])
{
	struct manager_region *emulated = scope == MOUNT_SCOPE_FILESYSTEM ? NULL : find_emulated(r->manager, r->fd);
	int answer;

	if (emulated) {
		if (expected && (expected->device != emulated->region->emulate_device ||
				 expected->inode != emulated->region->emulate_inode))
			return -ESTALE;
		target_region(emulated, r);
		return 0;
	}
	answer = mount_cache_resolve_fd(r->manager->mounts, r->fd, expected, scope, &r->target, detail);
	if (answer < 0)
		return answer;
	answer = find_parts(r, answer, detail);
	if (r->n_parts > 0 || !closer_is_busy(r->uid))
		return answer;
	snprintf(detail, MOUNT_DETAIL_MAX,
		 "descriptors that were passed before cannot be closed, since their filesystem does not answer");
	return PMEM_AGENT_BUSY;
}

int manager_flush_fd(struct manager *m, int fd, const struct mount_file *expected, enum mount_scope scope,
		     const struct flush_caller *caller, request_done_t done, void *userdata, struct request **ret,
		     char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(request_freep) struct request *r = request_new(m, fd, caller, done, userdata);

	if (!r) {
		closer_close(fd, caller ? caller->uid : CLOSER_NOBODY);
		return -ENOMEM;
	}
	return finish_new(&r, resolve_fd(r, expected, scope, detail), caller, ret, detail);
}

/* By the first region that can't be flushed, else by the first there is. */
static void describe_regions(const struct request *r, struct manager_query *q)
{
	char why[MOUNT_DETAIL_MAX];
	bool flushable = true;

	for (unsigned int i = 0; i < r->n_parts; i++)
		q->regions[q->n_regions++] = r->parts[i].region;
	for (unsigned int i = 0; i < q->n_regions && (!q->decides || flushable); i++) {
		flushable = check_method(q->regions[i], why) == 0;
		if (!q->decides || !flushable)
			q->decides = manager_region_get(q->regions[i]);
	}
	if (q->answer == 0 && q->decides && q->decides->n_evidence > 0)
		snprintf(q->detail, sizeof(q->detail), "%s: %s", q->decides->name,
			 q->decides->evidence[q->decides->n_evidence - 1]);
}

int manager_query_fd(struct manager *m, int fd, enum mount_scope scope, const struct flush_caller *caller,
		     struct manager_query *ret)
{
	_cleanup_(request_freep) struct request *r = request_new(m, fd, caller, NULL, NULL);
	int answer;

	if (!r) {
		closer_close(fd, caller->uid);
		return -ENOMEM;
	}
	*ret = (struct manager_query){ .detail = "" };
	answer = resolve_fd(r, NULL, scope, ret->detail);
	if (answer < 0)
		return answer;
	for (unsigned int i = 0; answer == 0 && i < r->n_parts; i++) {
		struct flush_status status;

		manager_region_get_status(r->parts[i].region, &status);
		if (status.loss.number > 0)
			answer = describe_refusal(r->parts[i].region, PMEM_AGENT_LOST, ret->detail);
		/* Else what earlier boots lost is being read, and a flush would wait for it. */
		else if (status.withheld && m->memory.problem[0])
			answer = describe_refusal(r->parts[i].region, PMEM_AGENT_UNKNOWN, ret->detail);
	}
	ret->answer = (enum pmem_agent_answer)answer;
	ret->scope = r->target.flush.scope;
	describe_regions(r, ret);
	return 0;
}

static void report_to(struct manager_region *mr, uid_t uid)
{
	bool believed = uid == 0 || strcmp(manager_region_get_basis(mr), "own-flush") == 0;
	struct flush_status status;

	manager_region_get_status(mr, &status);
	if (!mr->flush || status.loss.number > 0)
		return;
	log_region(LOG_WARNING, LOG_EVENT_NONE, mr->region->name, status.epoch,
		   "%s: a program of uid %u says that a flush of its own failed%s", mr->region->name, (unsigned int)uid,
		   believed ? "" : "; the trace instance has seen nothing of it");
	if (believed)
		round_lose(mr, EIO, FLUSH_ORIGIN_CALLER);
}

int manager_report_fd(struct manager *m, int fd, const struct mount_file *expected, const struct flush_caller *caller,
		      char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(request_freep) struct request *r = request_new(m, fd, caller, NULL, NULL);
	int answer;

	if (!r) {
		closer_close(fd, caller->uid);
		return -ENOMEM;
	}
	answer = resolve_fd(r, expected, MOUNT_SCOPE_AUTO, detail);
	if (answer < 0)
		return answer;
	if (r->n_parts == 0)
		return answer ?: PMEM_AGENT_ORDINARY;
	/* What the kernel has told comes first. */
	watch_read(m, NULL);
	for (unsigned int i = 0; i < r->n_parts; i++)
		report_to(r->parts[i].region, caller->uid);
	return 0;
}

int manager_flush_path(struct manager *m, const char *path, const struct flush_caller *caller, request_done_t done,
		       void *userdata, struct request **ret, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(request_freep) struct request *r = request_new(m, -1, caller, done, userdata);
	int answer;

	if (!r)
		return -ENOMEM;
	answer = mount_cache_resolve_path(m->mounts, path, &r->target, detail);
	if (answer < 0)
		return answer;
	if (answer != PMEM_AGENT_NOT_FOUND)
		answer = find_parts(r, answer, detail);
	return finish_new(&r, answer, caller, ret, detail);
}

int manager_flush_region(struct manager *m, struct manager_region *mr, const struct flush_caller *caller,
			 request_done_t done, void *userdata, struct request **ret,
			 char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(request_freep) struct request *r = request_new(m, -1, caller, done, userdata);

	if (!r)
		return -ENOMEM;
	target_region(mr, r);
	return finish_new(&r, check_method(mr, detail), caller, ret, detail);
}

int request_admit(struct request *r, const struct flush_caller *caller, char detail[static MOUNT_DETAIL_MAX])
{
	int answer;

	r->uid = caller->uid;
	answer = submit(r, caller, detail);
	if (answer != 0)
		request_free(r);
	return answer;
}

/* ---- what becomes of it ---- */

bool manager_look_again(struct manager *m, const struct request_result *result)
{
	for (unsigned int i = 0; i < result->n_epochs; i++) {
		const struct pmem_agent_page *page = result->epochs[i].region->page;

		/* Before the reading, which may count it. */
		if (!page || page->worker.failed > page->agent.failed_seen)
			return false;
	}
	watch_read(m, NULL);
	return true;
}

static void withdraw(struct request *r)
{
	uint64_t now = now_usec(CLOCK_REALTIME);

	for (unsigned int i = 0; i < r->n_parts; i++) {
		if (r->parts[i].answered)
			continue;
		flush_forget(r->parts[i].region->flush, &r->parts[i], now);
		round_publish_loss(r->parts[i].region);
	}
}

void request_cancel(struct request *r)
{
	if (!r)
		return;
	withdraw(r);
	for (unsigned int i = 0; r->arrived_usec && i < r->n_parts; i++)
		r->parts[i].region->stats.left++;
	request_free(r);
}

void request_part_begun(struct part *part, unsigned int call, bool handed)
{
	struct request *r = part->request;

	part->begun = true;
	part->call = call;
	if (!handed)
		return;
	for (unsigned int i = 0; i < r->n_parts; i++)
		if (!r->parts[i].begun)
			return;
	/* The worker holds it until this has been done, so that this is never the last reference. */
	r->fd = safe_close(r->fd);
}

/* Number of the newest loss, acknowledged or not. */
static uint64_t newest_loss(const struct part *part)
{
	struct flush_status status;

	manager_region_get_status(part->region, &status);
	return status.loss.number ?: status.acknowledged;
}

/*
 * The first to confirm may have lost something since, while the last one was waited for. That it has been acknowledged
 * is no matter: who did so can't know of a caller that has not been answered.
 */
static const struct part *find_lost_since(const struct request *r)
{
	for (unsigned int i = 0; i < r->n_parts; i++)
		if (newest_loss(&r->parts[i]) != r->parts[i].loss)
			return &r->parts[i];
	return NULL;
}

static void set_lost_since(struct request *r, const struct part *part)
{
	struct flush_status status;

	manager_region_get_status(part->region, &status);
	r->result.answer = PMEM_AGENT_LOST;
	r->result.error = status.loss.number ? status.loss.error : EIO;
	if (status.loss.number)
		round_describe_loss(part->region, r->result.detail);
	else
		snprintf(r->result.detail, sizeof(r->result.detail),
			 "%s has lost stores while the flush of another region was awaited: loss %" PRIu64
			 ", acknowledged meanwhile",
			 part->region->region->name, status.acknowledged);
}

static bool is_any_refused(const struct request *r)
{
	for (unsigned int i = 0; i < r->n_parts; i++)
		if (r->parts[i].region->host.is_refused)
			return true;
	return false;
}

/* What the first of its regions confirmed may have been before the guest was restored. */
static void set_void(struct request_result *result)
{
	result->answer = PMEM_AGENT_UNKNOWN;
	snprintf(result->detail, sizeof(result->detail),
		 "the connection to the host was made anew while the flush of another region was awaited");
}

static void set_refused(struct request_result *result)
{
	result->answer = PMEM_AGENT_UNKNOWN;
	snprintf(result->detail, sizeof(result->detail),
		 "the host has said meanwhile that stores to one of the regions can't be kept");
}

static void describe_answer(const struct part *part, enum pmem_agent_answer answer,
			    char detail[static MOUNT_DETAIL_MAX])
{
	const struct manager_region *mr = part->region;

	if (answer == PMEM_AGENT_LOST || answer == PMEM_AGENT_GONE)
		describe_refusal(mr, (int)answer, detail);
	else if (answer == PMEM_AGENT_TIMEOUT)
		snprintf(detail, MOUNT_DETAIL_MAX, "the host has not confirmed the flush of %s by your deadline",
			 mr->region->name);
	else
		snprintf(detail, MOUNT_DETAIL_MAX, "%s", round_get_detail(mr, part));
}

void request_part_answered(struct part *part, const struct flush_action *action)
{
	struct request *r = part->request;
	struct request_result *result = &r->result;
	const struct part *lost;

	part->answered = true;
	result->answer = action->answer;
	result->error = action->error;

	if (action->answer == PMEM_AGENT_DURABLE) {
		if (result->n_epochs == 0)
			result->instance = r->manager->instance;
		part->loss = newest_loss(part);
		result->epochs[result->n_epochs++] =
		    (struct request_epoch){ .region = part->region, .epoch = action->round };
		if (result->durable_usec == 0 || action->durable_usec < result->durable_usec)
			result->durable_usec = action->durable_usec;
		if (result->n_epochs < r->n_parts)
			return;
		lost = find_lost_since(r);
		if (lost)
			set_lost_since(r, lost);
		else if (!sd_id128_equal(result->instance, r->manager->instance))
			set_void(result);
		else if (is_any_refused(r))
			set_refused(result);
		for (unsigned int i = 0; result->answer == PMEM_AGENT_DURABLE && i < r->n_parts; i++)
			result->basis =
			    manager_weaker_basis(manager_region_get_basis(r->parts[i].region), result->basis);
	} else {
		describe_answer(part, result->answer, result->detail);
	}

	/* What was remembered of the target may be why. */
	if (result->answer != PMEM_AGENT_DURABLE)
		mount_cache_forget(r->manager->mounts);
	withdraw(r);
	count_answer(r, result->answer);
	r->done(result, r->userdata);
	request_free(r);
}
