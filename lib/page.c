/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * page: the pages of regions, mapped once and for good
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"

static int check(const struct pmem_agent_page *page)
{
	if (__atomic_load_n(&page->magic, __ATOMIC_ACQUIRE) != PMEM_AGENT_PAGE_MAGIC)
		return -ENOENT;
	return page->version == PMEM_AGENT_PAGE_VERSION ? 0 : -EPROTONOSUPPORT;
}

static int map(const struct pmem_agent *agent, uint64_t number, const struct pmem_agent_page **ret)
{
	char path[sizeof(agent->directory) + 32];
	struct stat st;
	void *page;
	int fd, r;

	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".page", agent->directory, number);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) && st.st_size == PMEM_AGENT_PAGE_SIZE ? 0 : -ENOENT;
	page = r < 0 ? MAP_FAILED : mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (r == 0 && page == MAP_FAILED)
		r = -errno;
	close(fd);
	if (r < 0)
		return r;
	r = check(page);
	if (r < 0)
		munmap(page, PMEM_AGENT_PAGE_SIZE);
	else
		*ret = page;
	return r;
}

/* Without a lock: two that add the same page at the same time both do. */
static int add(struct pmem_agent *agent, uint64_t number, const struct pmem_agent_page **ret)
{
	const struct pmem_agent_page *page;
	int cancel, r;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	r = map(agent, number, &page);
	pthread_setcancelstate(cancel, NULL);
	if (r < 0)
		return r;
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++) {
		struct client_page *p = &agent->pages[i];
		uint64_t none = 0;

		if (!__atomic_compare_exchange_n(&p->number, &none, number, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&p->page, page, __ATOMIC_RELEASE);
		*ret = page;
		return 0;
	}
	munmap((void *)page, PMEM_AGENT_PAGE_SIZE);
	return -EMFILE;
}

static int find(struct pmem_agent *agent, uint64_t number, const struct pmem_agent_page **ret)
{
	if (number == 0)
		return -ENOENT;
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++) {
		const struct client_page *p = &agent->pages[i];

		/* Who adds it just now may not have stored it yet. */
		if (__atomic_load_n(&p->number, __ATOMIC_ACQUIRE) != number)
			continue;
		*ret = __atomic_load_n(&p->page, __ATOMIC_ACQUIRE);
		if (*ret)
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
