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

/* Where each is. Of a map that others may be deleting nothing but this is read. */
static struct place {
	uint32_t sequence; /* odd while it changes */
	const char *address;
	size_t size;
	struct pmem_agent_map *map; /* NULL: free */
} places[MAX_MAPS];

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

/* Stores in a private mapping reach no file. 0: it is a shared one; or a negative errno. */
static int check_shared(const char *address)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	int r = -EINVAL;
	char line[512], share;
	bool begins = true;

	if (!f)
		return -errno;
	for (; fgets(line, sizeof(line), f); begins = strchr(line, '\n'))
		if (begins && sscanf(line, "%lx-%lx %*3c%c", &start, &end, &share) == 3 &&
		    (uintptr_t)address >= start && (uintptr_t)address < end)
			r = share == 's' ? 0 : -EINVAL;
	fclose(f);
	return r;
}

/* ---- the list of maps ---- */

/* False: it is another one now. */
static bool replace(struct place *p, struct pmem_agent_map *old, struct pmem_agent_map *new)
{
	uint32_t sequence = __atomic_load_n(&p->sequence, __ATOMIC_ACQUIRE) & ~1U;

	if (__atomic_load_n(&p->map, __ATOMIC_RELAXED) != old ||
	    !__atomic_compare_exchange_n(&p->sequence, &sequence, sequence + 1, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return false;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&p->address, new ? new->address : NULL, __ATOMIC_RELAXED);
	__atomic_store_n(&p->size, new ? new->size : 0, __ATOMIC_RELAXED);
	__atomic_store_n(&p->map, new, __ATOMIC_RELAXED);
	__atomic_store_n(&p->sequence, sequence + 2, __ATOMIC_RELEASE);
	return true;
}

static int enlist(struct pmem_agent_map *m)
{
	for (unsigned int i = 0; i < MAX_MAPS; i++)
		if (replace(&places[i], NULL, m))
			return 0;
	return -ENOSPC;
}

static void strike(struct pmem_agent_map *m)
{
	for (unsigned int i = 0; i < MAX_MAPS; i++)
		if (replace(&places[i], m, NULL))
			return;
}

static bool contains(const char *address, size_t size, const char *part, size_t part_size)
{
	return part >= address && part_size <= size && (size_t)(part - address) <= size - part_size;
}

/* The map that has all of that, which by the rules nobody deletes now; NULL: none has. */
static const struct pmem_agent_map *find_map(const char *part, size_t size)
{
	for (unsigned int i = 0; i < MAX_MAPS; i++) {
		const struct place *p = &places[i];
		uint32_t sequence = __atomic_load_n(&p->sequence, __ATOMIC_ACQUIRE);
		const struct pmem_agent_map *m = __atomic_load_n(&p->map, __ATOMIC_RELAXED);
		bool found = m && contains(__atomic_load_n(&p->address, __ATOMIC_RELAXED),
					   __atomic_load_n(&p->size, __ATOMIC_RELAXED), part, size);

		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		/* One that changes is another. */
		if (found && sequence % 2 == 0 && __atomic_load_n(&p->sequence, __ATOMIC_RELAXED) == sequence)
			return m;
	}
	return NULL;
}

/* ---- a map ---- */

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
		r = check_shared(m->address);
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
	if (m)
		strike(m);
	free(m);
	return NULL;
}

enum pmem2_granularity pmem_agent_map_get_store_granularity(const struct pmem_agent_map *m)
{
	return m->way == WAY_CPU ? m->granularity : PMEM2_GRANULARITY_PAGE;
}

/* ---- persist ---- */

static int sync_pages(const char *address, size_t size)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)address & ~(page - 1);

	return msync((void *)begin, (uintptr_t)address + size - begin, MS_SYNC) < 0 ? -errno : 0;
}

int pmem_agent_persist(const struct pmem_agent_map *m, const void *address, size_t size)
{
	if (!contains(m->address, m->size, address, size))
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
	const struct pmem_agent_map *m = find_map(address, size);
	int r = m ? pmem_agent_persist(m, address, size) : -ENXIO;

	if (r == 0)
		return;
	fprintf(stderr, "libpmem-agent-pmem2: %zu bytes at %p can't be made durable: %s\n", size, address,
		strerrordesc_np(-r));
	abort();
}
