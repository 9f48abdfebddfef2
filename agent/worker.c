/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "answer.h"
#include "child.h"
#include "mount-cache.h"
#include "region.h"
#include "worker.h"

struct worker {
	pid_t pid;
	int socket;
};

#define store(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELEASE)
#define load(field)         __atomic_load_n(&(field), __ATOMIC_ACQUIRE)

/* ---- the page ---- */

void worker_page_path(const char *runtime_dir, const char *identity, char *ret, size_t size)
{
	snprintf(ret, size, "%s/%016" PRIx64 ".page", runtime_dir, region_identity_hash(identity));
}

static int map_page(int fd, struct pmem_agent_page **ret)
{
	void *p = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	*ret = p;
	return 0;
}

static bool page_is_ours(const struct pmem_agent_page *page, const char *identity, sd_id128_t boot_id)
{
	return page->magic == PMEM_AGENT_PAGE_MAGIC && page->version == PMEM_AGENT_PAGE_VERSION &&
	       memcmp(page->boot_id, boot_id.bytes, sizeof(page->boot_id)) == 0 &&
	       strncmp(page->identity, identity, sizeof(page->identity)) == 0;
}

static int find_page(const char *path, const char *identity, sd_id128_t boot_id, struct pmem_agent_page **ret)
{
	_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	int r;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size != PMEM_AGENT_PAGE_SIZE)
		return -ENOENT;
	r = map_page(fd, &page);
	if (r < 0)
		return r;
	if (!page_is_ours(page, identity, boot_id))
		return -ENOENT;
	*ret = page;
	page = NULL;
	return 0;
}

/* Made beside its place and renamed there: whoever opens the page finds a whole one. */
static int make_page(const char *path, const char *identity, sd_id128_t boot_id, struct pmem_agent_page **ret)
{
	_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
	_cleanup_close_ int fd = -1;
	char new[PATH_MAX + 8];
	int r;

	snprintf(new, sizeof(new), "%s.new", path);
	if (unlink(new) < 0 && errno != ENOENT)
		return -errno;
	fd = open(new, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0644) < 0 || ftruncate(fd, PMEM_AGENT_PAGE_SIZE) < 0)
		return -errno;
	r = map_page(fd, &page);
	if (r < 0)
		return r;

	page->version = PMEM_AGENT_PAGE_VERSION;
	memcpy(page->boot_id, boot_id.bytes, sizeof(page->boot_id));
	strncpy(page->identity, identity, sizeof(page->identity) - 1);
	store(page->magic, PMEM_AGENT_PAGE_MAGIC);

	if (rename(new, path) < 0)
		return -errno;
	*ret = page;
	page = NULL;
	return 0;
}

int worker_open_page(const char *runtime_dir, const char *identity, sd_id128_t boot_id, struct pmem_agent_page **ret)
{
	char path[PATH_MAX];
	int r;

	worker_page_path(runtime_dir, identity, path, sizeof(path));
	r = find_page(path, identity, boot_id, ret);
	if (r == -ENOENT)
		r = make_page(path, identity, boot_id, ret);
	return r;
}

struct pmem_agent_page *worker_close_page(struct pmem_agent_page *page)
{
	if (page)
		munmap(page, PMEM_AGENT_PAGE_SIZE);
	return NULL;
}

/* ---- finding the worker of an agent before us ---- */

/* Field 22 of /proc/PID/stat: with the pid, it names a process for good. */
static int get_start_time(pid_t pid, uint64_t *ret)
{
	_cleanup_close_ int fd = -1;
	char path[64], buffer[1024], *p;
	uint64_t start_time;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, buffer, sizeof(buffer) - 1);
	if (n < 0)
		return -errno;
	buffer[n] = '\0';

	p = strrchr(buffer, ')'); /* ends field 2, which may hold anything */
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %" SCNu64,
			 &start_time) != 1)
		return -EBADMSG;
	*ret = start_time;
	return 0;
}

int worker_find(const struct pmem_agent_page *page)
{
	pid_t pid = (pid_t)load(page->worker.pid);
	_cleanup_close_ int fd = -1;
	uint64_t start_time;
	int r;

	if (pid <= 0)
		return -ESRCH;
	/* The pidfd first: if the start time matches after that, it is this process that the descriptor holds. */
	fd = pidfd_open(pid, 0);
	if (fd < 0 && (errno == EINVAL || errno == ENOENT))
		return -ESRCH; /* a thread has the number now, no process */
	if (fd < 0)
		return -errno;
	r = get_start_time(pid, &start_time);
	/* It ended meanwhile, or another user's has the number, whom we may not see. */
	if (r == -ENOENT || r == -ESRCH)
		return -ESRCH;
	if (r < 0)
		return r;
	if (start_time != page->worker.start_time)
		return -ESRCH;

	r = fd;
	fd = -1;
	return r;
}

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

static int call_on(enum worker_call call, int fd)
{
	switch (call) {
	case WORKER_FSYNC:
	case WORKER_NODE:
		return fsync(fd) < 0 ? errno : 0;
	case WORKER_FDATASYNC:
		return fdatasync(fd) < 0 ? errno : 0;
	case WORKER_SYNCFS:
		return syncfs(fd) < 0 ? errno : 0;
	case WORKER_DEEP_FLUSH:
		return write(fd, "1\n", 2) < 0 ? errno : 0;
	case N_WORKER_CALLS:
		break;
	}
	return EINVAL;
}

static int open_for(enum worker_call call, const char *path, uint64_t device, uint64_t inode)
{
	return call == WORKER_DEEP_FLUSH ? open_attribute(path) : open_node(path, device, inode);
}

/* No flush of which anything is known: `r` is the answer, or a negative errno of what could not be done. */
static void refuse(const struct worker_round *round, struct worker_result *ret, int r, const char *what)
{
	ret->answer = r > 0 ? (enum pmem_agent_answer)r : PMEM_AGENT_UNKNOWN;
	ret->error = r < 0 ? -r : 0;
	if (r < 0)
		snprintf(ret->detail, sizeof(ret->detail), "%.120s could not be %s for the flush: %s",
			 round->target.source, what, strerrordesc_np(-r));
}

static void make_round(struct mount_cache *mounts, const struct worker_round *round, int passed,
		       struct worker_result *ret)
{
	_cleanup_close_ int opened = -1, then = -1;
	int fd = passed, r;

	*ret = (struct worker_result){ .round = round->round };
	r = mount_cache_check(mounts, &round->target, ret->detail);
	if (r != 0)
		return refuse(round, ret, r, "examined");

	if (round->path[0]) {
		fd = opened = open_for(round->call, round->path, round->device, round->inode);
		if (fd < 0)
			return refuse(round, ret, fd, "opened");
	}
	if (round->then_path[0]) {
		then = open_for(round->then, round->then_path, round->then_device, 0);
		if (then < 0)
			return refuse(round, ret, then, "opened");
	}

	ret->error = call_on(round->call, fd);
	if (ret->error == 0 && then >= 0)
		ret->error = call_on(round->then, then);
	if (ret->error != 0) {
		ret->answer = answer_from_flush_errno(ret->error);
		return;
	}

	/* Confirmed, unless what lies between has been changed meanwhile: then it may have confirmed nothing. */
	r = mount_cache_check(mounts, &round->target, ret->detail);
	if (r != 0)
		refuse(round, ret, r < 0 ? r : PMEM_AGENT_UNKNOWN, "examined again");
}

/* 1, or 0 when the agent is gone. */
static int receive(int sock, struct worker_round *ret, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char buffer[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = ret, .iov_len = sizeof(*ret) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t n;

	do
		n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(*ret))
		return 0;

	*ret_fd = -1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	return 1;
}

/*
 * The page is written before the system call and again before anybody is told, so that whoever outlives this process
 * or its agent knows at least as much as they told.
 */
static void work(int sock, void *userdata)
{
	_cleanup_(mount_cache_freep) struct mount_cache *mounts = mount_cache_new();
	struct pmem_agent_page *page = userdata;
	struct worker_round round;
	struct worker_result result;
	int fd;

	while (receive(sock, &round, &fd)) {
		store(page->worker.started_usec, now_usec(CLOCK_REALTIME));
		store(page->worker.started, round.round);

		make_round(mounts, &round, fd, &result);

		if (result.answer == PMEM_AGENT_DURABLE) {
			store(page->worker.durable, round.round);
		} else if (result.answer == PMEM_AGENT_LOST) {
			store(page->worker.error, result.error);
			store(page->worker.failed, round.round);
		}
		store(page->worker.done, round.round);

		safe_close(fd);
		send(sock, &result, sizeof(result), MSG_NOSIGNAL);
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
	r = get_start_time(w->pid, &start_time);
	if (r < 0)
		return r;
	store(page->worker.start_time, start_time);
	store(page->worker.pid, (uint32_t)w->pid);

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

int worker_begin(struct worker *w, const struct worker_round *round, int fd)
{
	union {
		struct cmsghdr header;
		char buffer[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = (void *)round, .iov_len = sizeof(*round) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		m.msg_control = &control;
		m.msg_controllen = sizeof(control);
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int)),
		};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
	}
	return sendmsg(w->socket, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int worker_collect(struct worker *w, struct worker_result *ret)
{
	struct worker_result result;
	ssize_t n = recv(w->socket, &result, sizeof(result), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n != sizeof(result))
		return -EPIPE;
	*ret = result;
	return 0;
}
