/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "answer.h"
#include "child.h"
#include "mount-cache.h"
#include "region.h"
#include "worker-message.h"

struct worker {
	pid_t pid;
	int socket;
};

/* ---- the child ---- */

static int open_attribute(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int open_node(const char *path, uint64_t device, uint64_t inode)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;
	int r;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if ((S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev) != device || (inode != 0 && st.st_ino != inode))
		return -ESTALE; /* the name stands for something else by now */

	r = fd;
	fd = -1;
	return r;
}

/* A round at work. */
struct work {
	struct worker_round *round;
	struct mount_cache *mounts;
	int fds[WORKER_MAX_DESCRIPTORS];
	unsigned int n_fds;
	uint64_t counts[WORKER_MAX_CALLS]; /* mount_cache_count() of each target */
	int checked[WORKER_MAX_CALLS];     /* what mount_check() says of it, and why */
	char why[WORKER_MAX_CALLS][MOUNT_DETAIL_MAX];
	bool served[WORKER_MAX_CALLS];       /* by another call */
	int written[WORKER_MAX_DESCRIPTORS]; /* errno of write_back() */
	struct worker_result result;
};

/*
 * A filesystem that has been shut down may say success to syncfs and send nothing: ext4 of Linux 6.1 and 6.12 does. To
 * be asked for an attribute is an error then, for ext4 and XFS: nobody needs rights for that, and unlike an fsync of a
 * directory it commits nothing of what others have begun after the syncfs, and holds nobody up.
 */
static int sync_filesystem(int fd)
{
	if (syncfs(fd) < 0)
		return errno;
	if (fgetxattr(fd, "security.pmem-agent", NULL, 0) >= 0 || errno == ENODATA)
		return 0;
	if (errno != EOPNOTSUPP)
		return errno;
	return fsync(fd) < 0 ? errno : 0;
}

static int flush_region(const struct worker_node *region, int fd)
{
	return (region->attribute ? write(fd, "1\n", 2) : fsync(fd)) < 0 ? errno : 0;
}

static int make_call(struct work *w, const struct worker_call *c, int fd)
{
	switch (c->scope) {
	case FLUSH_REGION:
		return flush_region(&w->round->region, fd);
	case FLUSH_FILESYSTEM:
		return sync_filesystem(fd);
	case FLUSH_FILE:
		return fsync(fd) < 0 ? errno : 0;
	case FLUSH_FILE_DATA:
		return fdatasync(fd) < 0 ? errno : 0;
	case N_FLUSH_SCOPES:
		break;
	}
	return EINVAL;
}

static bool is_region(const struct worker_node *region, int fd)
{
	struct stat st;

	if (region->attribute || fstat(fd, &st) < 0)
		return false;
	if (region->inode == 0)
		return S_ISBLK(st.st_mode) && st.st_rdev == region->device;
	return S_ISREG(st.st_mode) && st.st_dev == region->device && st.st_ino == region->inode;
}

/* A caller's descriptor of the region's node, so that none needs to be opened; -1: the first of the call is none. */
static int find_region(const struct work *w, unsigned int call)
{
	for (unsigned int i = 0; i < w->round->n_descriptors; i++)
		if (w->round->descriptors[i].call == call)
			return is_region(&w->round->region, w->fds[i]) ? w->fds[i] : -1;
	return -1;
}

static int open_region(const struct worker_node *region)
{
	return region->attribute ? open_attribute(region->path)
				 : open_node(region->path, region->device, region->inode);
}

/* No flush of which anything is known: `r` is the answer, or a negative errno of what could not be done. */
static void refuse(struct work *w, unsigned int call, int r, const char *what)
{
	const struct target *target = &w->round->targets[w->round->calls[call].target];

	w->result.outcome.calls[call] = (struct flush_outcome_of){
		.answer = r > 0 ? (enum pmem_agent_answer)r : PMEM_AGENT_UNKNOWN,
		.error = r < 0 ? -r : 0,
	};
	if (r < 0)
		snprintf(w->result.details[call], sizeof(w->result.details[call]),
			 "%.120s could not be %s for the flush: %s", target->source, what, strerrordesc_np(-r));
}

static struct flush_outcome_of outcome_of(int error)
{
	return (struct flush_outcome_of){
		.answer = error ? answer_from_flush_errno(error) : PMEM_AGENT_DURABLE,
		.error = error,
	};
}

static void run_call(struct work *w, unsigned int call)
{
	const struct worker_call *c = &w->round->calls[call];
	const struct target *target = &w->round->targets[c->target];
	const struct flush_outcome_of *by = c->served_by >= 0 ? &w->result.outcome.calls[c->served_by] : NULL;
	_cleanup_close_ int opened = -1, then = -1;
	int fd, error;

	if (w->checked[c->target] != 0) {
		memcpy(w->result.details[call], w->why[c->target], sizeof(w->why[c->target]));
		return refuse(w, call, w->checked[c->target], "examined");
	}
	w->served[call] = by && by->answer == PMEM_AGENT_DURABLE;
	if (w->served[call]) {
		w->result.outcome.calls[call] = *by;
		return;
	}

	fd = c->scope == FLUSH_REGION ? find_region(w, call) : c->descriptor < 0 ? -1 : w->fds[c->descriptor];
	if (fd < 0)
		fd = opened = c->scope == FLUSH_REGION ? open_region(&w->round->region)
						       : open_node(target->source, target->device, 0);
	if (fd < 0)
		return refuse(w, call, fd, "opened");
	if (c->then_region) {
		then = open_region(&w->round->region);
		if (then < 0)
			return refuse(w, call, then, "opened");
	}

	error = make_call(w, c, fd);
	if (error == 0 && c->then_region)
		error = flush_region(&w->round->region, then);
	w->result.outcome.calls[call] = outcome_of(error);
}

/*
 * What was written through a block device may be in a page cache of its own, which neither a deep flush nor the syncfs
 * of a filesystem elsewhere on the disk writes back. So that comes before any flush.
 */
static void write_back(struct work *w)
{
	for (unsigned int i = 0; i < w->round->n_descriptors; i++) {
		struct stat st;

		w->written[i] = 0;
		if (w->round->calls[w->round->descriptors[i].call].scope == FLUSH_REGION &&
		    fstat(w->fds[i], &st) == 0 && S_ISBLK(st.st_mode) &&
		    sync_file_range(w->fds[i], 0, 0, SYNC_FILE_RANGE_WRITE_AND_WAIT) < 0)
			w->written[i] = errno;
	}
}

/*
 * An error waits in each open file description until that fetches it: this does, and sends no flush. What can't have
 * any, such as device-dax, says ESPIPE.
 */
static int fetch_error(int fd)
{
	if (sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE) == 0 || errno == ESPIPE)
		return 0;
	return errno;
}

/* Such an error was met in writing back, whatever its name; but EBADF says that nothing can have been (O_PATH). */
static struct flush_outcome_of outcome_of_fetched(int error)
{
	struct flush_outcome_of of = outcome_of(error);

	if (of.answer == PMEM_AGENT_REFUSED && error != EBADF)
		of.answer = PMEM_AGENT_LOST;
	return of;
}

/* Also after a call that failed: who asks again is not to get the same error a second time. */
static bool fetch_errors(struct work *w, unsigned int call)
{
	bool lost = false;

	for (unsigned int i = 0; i < w->round->n_descriptors; i++) {
		const struct worker_descriptor *d = &w->round->descriptors[i];

		if (d->call != call)
			continue;
		w->result.outcome.descriptors[i] = outcome_of_fetched(w->written[i] ? w->written[i]
								      : d->fetch    ? fetch_error(w->fds[i])
										    : 0);
		lost |= w->result.outcome.descriptors[i].answer == PMEM_AGENT_LOST;
	}
	return lost;
}

static void count_changes(struct work *w)
{
	for (unsigned int i = 0; i < w->round->n_targets; i++)
		w->counts[i] = mount_cache_count(w->mounts, &w->round->targets[i]);
}

static void check_targets(struct work *w)
{
	for (unsigned int i = 0; i < w->round->n_targets; i++) {
		w->why[i][0] = '\0';
		w->checked[i] = mount_cache_check(w->mounts, &w->round->targets[i], w->why[i]);
	}
}

/* As it was before; but has it been so all the time? */
static void check_for_changes(struct work *w)
{
	for (unsigned int i = 0; i < w->round->n_targets; i++) {
		const struct target *target = &w->round->targets[i];

		if (w->checked[i] != 0 || mount_cache_count(w->mounts, target) == w->counts[i])
			continue;
		w->checked[i] = PMEM_AGENT_UNKNOWN;
		snprintf(w->why[i], sizeof(w->why[i]),
			 "the %s at %.120s was remounted, or had something to report, while it was flushed",
			 target->fstype, target->source);
	}
}

/* Confirmed, unless what lies between has been changed meanwhile: then it may have confirmed nothing. */
static void check_again(struct work *w)
{
	struct flush_outcome_of *calls = w->result.outcome.calls;

	check_targets(w);
	check_for_changes(w);
	for (unsigned int i = 0; i < w->round->n_calls; i++) {
		const struct worker_call *c = &w->round->calls[i];
		int r = w->checked[c->target];

		if (calls[i].answer != PMEM_AGENT_DURABLE)
			continue;
		if (r != 0) {
			memcpy(w->result.details[i], w->why[c->target], sizeof(w->why[c->target]));
			refuse(w, i, r < 0 ? r : PMEM_AGENT_UNKNOWN, "examined again");
		} else if (w->served[i] && calls[c->served_by].answer != PMEM_AGENT_DURABLE) {
			calls[i] = calls[c->served_by];
			memcpy(w->result.details[i], w->result.details[c->served_by], sizeof(w->result.details[i]));
		}
	}
}

static void make_round(struct work *w)
{
	w->result.round = w->round->round;
	w->result.n_calls = w->round->n_calls;
	w->result.n_descriptors = w->round->n_descriptors;
	flush_outcome_set(&w->result.outcome, PMEM_AGENT_UNKNOWN, 0);
	for (unsigned int i = 0; i < w->round->n_calls; i++)
		w->result.details[i][0] = '\0';
	if (w->n_fds != w->round->n_descriptors)
		return; /* the kernel has kept some back */
	count_changes(w);
	check_targets(w);
	write_back(w);
	for (unsigned int i = 0; i < w->round->n_calls; i++) {
		run_call(w, i);
		if (w->result.outcome.calls[i].answer == PMEM_AGENT_LOST || fetch_errors(w, i))
			return;
	}
	check_again(w);
}

/* Whether all are durable; `ret_lost` is the errno of the first that was lost. */
static bool sum_up(const struct flush_outcome_of *of, unsigned int n, int *ret_lost)
{
	bool durable = true;

	for (unsigned int i = 0; i < n; i++) {
		durable &= of[i].answer == PMEM_AGENT_DURABLE;
		if (of[i].answer == PMEM_AGENT_LOST && *ret_lost == 0)
			*ret_lost = of[i].error;
	}
	return durable;
}

/*
 * The last close of a file can hang as well, if it has been removed: so it is to be here, whatever held the agent up
 * between its handing the descriptors over and its closing its own. Unless it has ended meanwhile.
 */
static void wait_until_handed(int sock, const struct pmem_agent_page *page, uint64_t round)
{
	struct pollfd p = { .fd = sock };

	while (page_load(page->agent.handed) < round && poll(&p, 1, 1) == 0)
		;
}

/* Whether a failure of the round may be that of another region. */
static bool has_peers(const struct worker_round *round)
{
	for (unsigned int i = 0; i < round->n_calls; i++)
		if (round->calls[i].scope != FLUSH_REGION && round->targets[round->calls[i].target].n_leaves != 1)
			return true;
	return false;
}

/*
 * The page is written before the first system call and again before anybody is told, so that whoever outlives this
 * process or its agent knows at least as much as they told.
 */
static void work(int sock, void *userdata)
{
	struct pmem_agent_page *page = userdata;
	static struct worker_round round;
	static struct work w = { .round = &round };
	_cleanup_(mount_cache_freep) struct mount_cache *mounts = mount_cache_new();

	w.mounts = mounts;
	while (worker_receive_round(sock, &round, w.fds, &w.n_fds) == 0) {
		const struct flush_outcome *o = &w.result.outcome;
		bool durable;
		int lost = 0;

		/* A round that is made once more has not been done, for whoever looks if we end now. */
		if (page->worker.done >= w.round->round) {
			page_store(page->worker.done, w.round->round - 1);
			page_store(page->worker.durable, w.round->round - 1);
		}
		page_store(page->worker.started_usec, now_usec(CLOCK_REALTIME));
		page_store(page->worker.peers, has_peers(w.round));
		page_store(page->worker.started, w.round->round);

		make_round(&w);

		durable = sum_up(o->calls, w.round->n_calls, &lost) & sum_up(o->descriptors, w.n_fds, &lost);
		if (durable) {
			page_store(page->worker.durable, w.round->round);
		} else if (lost != 0) {
			page_store(page->worker.error, lost);
			page_store(page->worker.failed, w.round->round);
		}
		page_store(page->worker.done, w.round->round);

		if (w.n_fds > 0)
			wait_until_handed(sock, page, w.round->round);
		for (unsigned int i = 0; i < w.n_fds; i++)
			safe_close(w.fds[i]);
		worker_send_result(sock, &w.result);
	}
}

/* ---- the agent's side ---- */

int worker_start(struct pmem_agent_page *page, struct worker **ret)
{
	_cleanup_(worker_freep) struct worker *w = calloc(1, sizeof(*w));
	uint64_t start_time;
	int r;

	if (!w)
		return -ENOMEM;
	w->socket = -1;
	r = child_start("pmem-worker", work, page, &w->pid, &w->socket);
	if (r < 0)
		return r;

	/*
	 * Who it is stands in the page before it is asked for anything: an agent that comes after us must find it. A
	 * child that died by now shows as -EPIPE later.
	 */
	r = child_get_start_time(w->pid, &start_time);
	if (r < 0)
		return r;
	page_store(page->worker.start_time, start_time);
	page_store(page->worker.pid, (uint32_t)w->pid);

	*ret = w;
	w = NULL;
	return 0;
}

struct worker *worker_free(struct worker *w)
{
	if (w) {
		safe_close(w->socket);
		free(w);
	}
	return NULL;
}

int worker_get_fd(const struct worker *w)
{
	return w->socket;
}

pid_t worker_get_pid(const struct worker *w)
{
	return w->pid;
}

int worker_begin(struct worker *w, const struct worker_round *round, const int *fds)
{
	return worker_send_round(w->socket, round, fds);
}

int worker_collect(struct worker *w, struct worker_result *ret)
{
	return worker_receive_result(w->socket, ret);
}
