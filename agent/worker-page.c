/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * worker-page: a region's page, which outlives the agent, and the worker that it names
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#include "child.h"
#include "region.h"
#include "worker.h"

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
	if (!page_is_ours(page, identity, boot_id)) {
		/* It will be replaced: who has it mapped must not go on believing it. */
		page_store(page->magic, 0);
		return -ENOENT;
	}
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
	if (fchmod(fd, 0644) < 0)
		return -errno;
	/* Not a hole, whose first store is SIGBUS where the filesystem is full. */
	r = posix_fallocate(fd, 0, PMEM_AGENT_PAGE_SIZE);
	if (r != 0)
		return -r;
	r = map_page(fd, &page);
	if (r < 0)
		return r;

	page->version = PMEM_AGENT_PAGE_VERSION;
	memcpy(page->boot_id, boot_id.bytes, sizeof(page->boot_id));
	strncpy(page->identity, identity, sizeof(page->identity) - 1);
	page_store(page->magic, PMEM_AGENT_PAGE_MAGIC);

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

void worker_doubt_pages(const char *runtime_dir, const struct pmem_agent_page *but)
{
	glob_t found = { .gl_pathc = 0 };
	char pattern[PATH_MAX];

	snprintf(pattern, sizeof(pattern), "%s/*.page", runtime_dir);
	if (glob(pattern, GLOB_NOSORT, NULL, &found) != 0)
		return;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		_cleanup_(worker_close_pagep) struct pmem_agent_page *page = NULL;
		_cleanup_close_ int fd = open(found.gl_pathv[i], O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		struct stat st;

		if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == PMEM_AGENT_PAGE_SIZE &&
		    map_page(fd, &page) == 0 && strncmp(page->identity, but->identity, sizeof(page->identity)) != 0)
			page_store(page->agent.reading, page->agent.reading | 1);
	}
	globfree(&found);
}

/* ---- finding the worker of an agent before us ---- */

int worker_find(const struct pmem_agent_page *page)
{
	pid_t pid = (pid_t)page_load(page->worker.pid);
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
	r = child_get_start_time(pid, &start_time);
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
