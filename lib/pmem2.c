/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmem2: persist for maps of libpmem2 that does what the memory below really needs
 *
 * pmem2 takes MAP_SYNC for proof that a CPU flush is enough. Device-dax grants it on asynchronous regions too, where it
 * isn't. So the agent is asked what there is, and pmem2's granularity only says whether the CPU's caches need a flush.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/pmem-agent-pmem2.h"

#define MAX_MAPS 256 /* that pmem_agent_persist_or_abort() finds */

enum way {
	WAY_CPU,   /* a CPU flush is enough */
	WAY_MSYNC, /* the kernel's own, on storage that the agent has nothing to do with */
	WAY_AGENT,
};

struct pmem_agent_map {
	struct pmem_agent *agent;
	int fd;
	enum way way;
	enum pmem_agent_scope scope;
	char *address;
	size_t size;
	enum pmem2_granularity granularity;
	pmem2_persist_fn persist; /* of pmem2, where that is no more than a CPU flush */
};

static struct pmem_agent_map *maps[MAX_MAPS];

/* ---- what a map needs ---- */

static int find_scope(int fd, unsigned int flags, enum pmem_agent_scope *ret)
{
	struct stat st;

	if (flags & ~PMEM_AGENT_MAP_FIXED_LAYOUT)
		return -EINVAL;
	if (fstat(fd, &st) < 0)
		return -errno;
	*ret = !S_ISREG(st.st_mode)                  ? PMEM_AGENT_SCOPE_AUTO
	       : flags & PMEM_AGENT_MAP_FIXED_LAYOUT ? PMEM_AGENT_SCOPE_REGION
						     : PMEM_AGENT_SCOPE_FILE_DATA;
	return 0;
}

/* The answer of a query decides, and nothing that is not known to work is taken. */
static int find_way(struct pmem_agent_map *m)
{
	struct pmem_agent_info info;
	int r = pmem_agent_query(m->agent, m->fd, m->scope, PMEM_AGENT_NO_TIMEOUT, &info);

	if (r == 0)
		m->way = WAY_AGENT;
	else if (info.answer == PMEM_AGENT_SYNCHRONOUS && m->granularity != PMEM2_GRANULARITY_PAGE)
		m->way = WAY_CPU;
	else if (info.answer == PMEM_AGENT_SYNCHRONOUS || info.answer == PMEM_AGENT_ORDINARY)
		m->way = WAY_MSYNC;
	else
		return r;
	return 0;
}

static int enlist(struct pmem_agent_map *m)
{
	for (unsigned int i = 0; i < MAX_MAPS; i++) {
		struct pmem_agent_map *none = NULL;

		if (__atomic_compare_exchange_n(&maps[i], &none, m, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
			return 0;
	}
	return -ENOSPC;
}

int pmem_agent_map_new(struct pmem_agent *agent, int fd, struct pmem2_map *map, unsigned int flags,
		       struct pmem_agent_map **ret)
{
	struct pmem_agent_map *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->agent = agent;
	m->fd = fd;
	m->address = pmem2_map_get_address(map);
	m->size = pmem2_map_get_size(map);
	m->granularity = pmem2_map_get_store_granularity(map);
	/* At page granularity it would be an msync() that aborts. */
	if (m->granularity != PMEM2_GRANULARITY_PAGE)
		m->persist = pmem2_get_persist_fn(map);
	r = find_scope(fd, flags, &m->scope);
	if (r >= 0)
		r = find_way(m);
	if (r >= 0)
		r = enlist(m);
	if (r < 0)
		free(m);
	else
		*ret = m;
	return r;
}

struct pmem_agent_map *pmem_agent_map_delete(struct pmem_agent_map *m)
{
	for (unsigned int i = 0; m && i < MAX_MAPS; i++)
		if (__atomic_load_n(&maps[i], __ATOMIC_ACQUIRE) == m)
			__atomic_store_n(&maps[i], NULL, __ATOMIC_RELEASE);
	free(m);
	return NULL;
}

enum pmem2_granularity pmem_agent_map_get_store_granularity(const struct pmem_agent_map *m)
{
	return m->way == WAY_CPU ? m->granularity : PMEM2_GRANULARITY_PAGE;
}

/* ---- persist ---- */

static bool contains(const struct pmem_agent_map *m, const char *address, size_t size)
{
	return address >= m->address && size <= m->size && (size_t)(address - m->address) <= m->size - size;
}

static int sync_pages(const char *address, size_t size)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)address & ~(page - 1);

	return msync((void *)begin, (uintptr_t)address + size - begin, MS_SYNC) < 0 ? -errno : 0;
}

int pmem_agent_persist(const struct pmem_agent_map *m, const void *address, size_t size)
{
	if (!contains(m, address, size))
		return -EINVAL;
	if (m->persist)
		m->persist(address, size);
	switch (m->way) {
	case WAY_CPU:
		return 0;
	case WAY_MSYNC:
		return sync_pages(address, size);
	case WAY_AGENT:
		break;
	}
	return pmem_agent_flush(m->agent, m->fd, m->scope, PMEM_AGENT_NO_TIMEOUT, NULL);
}

void pmem_agent_persist_or_abort(const void *address, size_t size)
{
	const struct pmem_agent_map *m;
	int r = -ENXIO;

	for (unsigned int i = 0; i < MAX_MAPS && r == -ENXIO; i++) {
		m = __atomic_load_n(&maps[i], __ATOMIC_ACQUIRE);
		if (m && contains(m, address, size))
			r = pmem_agent_persist(m, address, size);
	}
	if (r == 0)
		return;
	fprintf(stderr, "libpmem-agent-pmem2: %zu bytes at %p can't be made durable: %s\n", size, address,
		strerrordesc_np(-r));
	abort();
}
