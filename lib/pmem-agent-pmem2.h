/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmem-agent-pmem2: persist for maps of libpmem2 that does what the memory below really needs; pmem_agent_persist(3)
 */
#pragma once

#include <libpmem2.h>
#include <stddef.h>

#include "pmem-agent.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct pmem_agent_map;

/* All that is mapped was written in full and synced, and will not be resized or punched: the memory alone is flushed.
 */
#define PMEM_AGENT_MAP_FIXED_LAYOUT 1U

/*
 * What is needed to make stores in `map` durable; `fd` is what its source was made of. Both and `agent` stay the
 * caller's, and must live as long as this does. `flags`: 0, or PMEM_AGENT_MAP_FIXED_LAYOUT for a file.
 *
 * 0, or a negative errno as from pmem_agent_query(): -EOPNOTSUPP: nothing in this guest can make it durable, whatever
 * pmem2 says; -ENOSPC: there are too many maps; -EINVAL: a private one (PMEM2_PRIVATE), which reaches no file.
 */
int pmem_agent_map_new(struct pmem_agent *agent, int fd, struct pmem2_map *map, unsigned int flags,
		       struct pmem_agent_map **ret);

/* Nobody persists anything of it any more. NULL is allowed, and returned. */
struct pmem_agent_map *pmem_agent_map_delete(struct pmem_agent_map *m);

/* As pmem2_map_get_store_granularity(), but PMEM2_GRANULARITY_PAGE where a CPU flush makes nothing durable. */
enum pmem2_granularity pmem_agent_map_get_store_granularity(const struct pmem_agent_map *m);

/*
 * Makes durable what was stored in this part of the map before the call: the CPU flush of pmem2, and whatever it takes
 * beyond that. 0 if it is durable; -EINVAL if the part is not in the map; or a negative errno as from
 * pmem_agent_flush() or msync().
 */
int pmem_agent_persist(const struct pmem_agent_map *m, const void *address, size_t size);

/*
 * A pmem2_persist_fn for memory in any map of pmem_agent_map_new(). It can't return an error: where it would, or where
 * there is no such map, it says so on standard error and calls abort(), as pmem2's own does when msync() fails.
 */
void pmem_agent_persist_or_abort(const void *address, size_t size);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
