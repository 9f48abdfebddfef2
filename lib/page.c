/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * page: the pages of regions, each mapped at an address that stays
 *
 * Another file may come in the place of one: an agent of another version has made it, or somebody had removed the
 * first. So once a second it is looked at whether it is still the same, and at once where the page itself says that it
 * isn't.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

static int check(const struct pmem_agent_page *page)
{
	if (__atomic_load_n(&page->magic, __ATOMIC_ACQUIRE) != PMEM_AGENT_PAGE_MAGIC)
		return -ENOENT;
	return page->version == PMEM_AGENT_PAGE_VERSION ? 0 : -EPROTONOSUPPORT;
}

static uint64_t now_sec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t)ts.tv_sec;
}

/* `at`: instead of what is mapped there; NULL: anywhere. */
static int map(const char *path, void *at, uint64_t *ret_inode, void **ret)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), r;
	struct stat st;
	void *page;

	if (fd < 0)
		return -errno;
	r = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) && st.st_size == PMEM_AGENT_PAGE_SIZE ? 0 : -ENOENT;
	page = r < 0 ? MAP_FAILED : mmap(at, PMEM_AGENT_PAGE_SIZE, PROT_READ, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
	if (r == 0 && page == MAP_FAILED)
		r = -errno;
	close(fd);
	if (r < 0)
		return r;
	*ret_inode = st.st_ino;
	*ret = page;
	return 0;
}

/* Where the name leads nowhere, after chroot() for one, what is mapped is all there is. */
static void renew(struct client_page *p)
{
	int saved = errno, cancel;
	uint64_t inode;
	struct stat st;
	void *page;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	__atomic_store_n(&p->looked_sec, now_sec(), __ATOMIC_RELAXED);
	if (lstat(p->path, &st) == 0 && st.st_ino != __atomic_load_n(&p->inode, __ATOMIC_RELAXED) &&
	    map(p->path, (void *)p->page, &inode, &page) == 0)
		__atomic_store_n(&p->inode, inode, __ATOMIC_RELAXED);
	pthread_setcancelstate(cancel, NULL);
	errno = saved;
}

/* Without a lock: two that add the same page at the same time both do. */
static int add(struct pmem_agent *agent, uint64_t number, const struct pmem_agent_page **ret)
{
	char path[sizeof(agent->pages->path)];
	uint64_t inode;
	int cancel, r;
	void *page;

	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".page", agent->directory, number);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	r = map(path, NULL, &inode, &page);
	pthread_setcancelstate(cancel, NULL);
	if (r >= 0 && (r = check(page)) < 0)
		munmap(page, PMEM_AGENT_PAGE_SIZE);
	if (r < 0)
		return r;
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++) {
		struct client_page *p = &agent->pages[i];
		uint64_t none = 0;

		if (!__atomic_compare_exchange_n(&p->number, &none, number, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		strcpy(p->path, path);
		p->inode = inode;
		p->looked_sec = now_sec();
		__atomic_store_n(&p->page, page, __ATOMIC_RELEASE);
		*ret = page;
		return 0;
	}
	munmap(page, PMEM_AGENT_PAGE_SIZE);
	return -EMFILE;
}

static int find(struct pmem_agent *agent, uint64_t number, const struct pmem_agent_page **ret)
{
	if (number == 0)
		return -ENOENT;
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++) {
		struct client_page *p = &agent->pages[i];

		/* Who adds it just now may not have stored it yet. */
		if (__atomic_load_n(&p->number, __ATOMIC_ACQUIRE) != number)
			continue;
		*ret = __atomic_load_n(&p->page, __ATOMIC_ACQUIRE);
		if (!*ret)
			continue;
		if (check(*ret) < 0 || __atomic_load_n(&p->looked_sec, __ATOMIC_RELAXED) != now_sec())
			renew(p);
		return 0;
	}
	return add(agent, number, ret);
}

int pmem_agent_epoch(struct pmem_agent *agent, uint64_t page, uint64_t *ret)
{
	const struct pmem_agent_page *p;
	int r = find(agent, page, &p);

	if (r >= 0)
		r = check(p);
	if (r >= 0)
		*ret = __atomic_load_n(&p->agent.epoch, __ATOMIC_ACQUIRE);
	return r;
}

int pmem_agent_lost(struct pmem_agent *agent, uint64_t page)
{
	const struct pmem_agent_page *p;
	int r = find(agent, page, &p);

	return r < 0 ? r : pmem_agent_page_lost(p);
}
