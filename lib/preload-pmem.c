/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-pmem: the calls of libpmem and libpmem2 after which stores are durable, on device-dax
 *
 * Both take it that a CPU flush is enough there, which it isn't on asynchronous memory. So first the CPU's flush is
 * made by the library itself, and then the agent flushes the region. Most of these calls can't return an error: where
 * there is one they end the program, as libpmem does when its own msync() fails. Where no device-dax is mapped they are
 * the library's own; and so are calls that only begin a flush, which is durable after a drain.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "preload.h"

#define EXPORT __attribute__((visibility("default")))

/* Of libpmem.h and libpmem2.h: no drain is part of the call. */
#define F_MEM_NODRAIN (1U << 0)
#define F_MEM_NOFLUSH (1U << 5)

struct pmem2_map;

typedef void (*persist_fn)(const void *address, size_t size);
typedef void (*drain_fn)(void);
typedef void *(*copy_fn)(void *to, const void *from, size_t size, unsigned int flags);
typedef void *(*set_fn)(void *to, int c, size_t size, unsigned int flags);

/* The library's own; it may have been loaded later, where the search for the next symbol doesn't find it. */
static void *find(const char *name)
{
	static const char *const libraries[] = { "libpmem.so.1", "libpmem2.so.1" };
	void *p = dlsym(RTLD_NEXT, name), *library;

	for (unsigned int i = 0; !p && i < sizeof(libraries) / sizeof(libraries[0]); i++) {
		library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
		p = library ? dlsym(library, name) : NULL;
	}
	if (p)
		return p;
	fprintf(stderr, "libpmem-agent-preload: %s was called, and there is none\n", name);
	abort();
}

#define REAL(type, name)                                                                                               \
	({                                                                                                             \
		static __typeof__(type) own_;                                                                          \
		__typeof__(type) found_ = __atomic_load_n(&own_, __ATOMIC_ACQUIRE);                                    \
                                                                                                                       \
		if (!found_) {                                                                                         \
			found_ = (__typeof__(type))find(#name);                                                        \
			__atomic_store_n(&own_, found_, __ATOMIC_RELEASE);                                             \
		}                                                                                                      \
		found_;                                                                                                \
	})

static void flush_or_abort(const char *name, const void *address, size_t size)
{
	int error = preload_flush_regions((uintptr_t)address, (uintptr_t)address + size, NULL);

	if (error == 0)
		return;
	fprintf(stderr, "libpmem-agent-preload: %s: stores can't be made durable: %s\n", name, strerrordesc_np(error));
	abort();
}

static void flush_all_or_abort(const char *name)
{
	flush_or_abort(name, NULL, UINTPTR_MAX);
}

/*
 * A deep flush of the library's own is one beside the agent's, and would take an error that others are to see. So it is
 * made only of what is no region. As those functions return it; `deep`: whether it is still to be made.
 */
static int flush_deep(const void *address, size_t size, bool *ret_deep)
{
	bool all;
	int error = preload_flush_regions((uintptr_t)address, (uintptr_t)address + size, &all);

	*ret_deep = error == 0 && !all;
	if (error != 0)
		errno = error;
	return error ? -1 : 0;
}

/* ---- libpmem ---- */

EXPORT void pmem_persist(const void *address, size_t size);
EXPORT void pmem_drain(void);
EXPORT int pmem_deep_persist(const void *address, size_t size);
EXPORT int pmem_deep_drain(const void *address, size_t size);
EXPORT void *pmem_memmove(void *to, const void *from, size_t size, unsigned int flags);
EXPORT void *pmem_memcpy(void *to, const void *from, size_t size, unsigned int flags);
EXPORT void *pmem_memset(void *to, int c, size_t size, unsigned int flags);
EXPORT void *pmem_memmove_persist(void *to, const void *from, size_t size);
EXPORT void *pmem_memcpy_persist(void *to, const void *from, size_t size);
EXPORT void *pmem_memset_persist(void *to, int c, size_t size);

/* Its persist is its flush and its drain; the latter would come back to us, for all that is mapped. */
EXPORT void pmem_persist(const void *address, size_t size)
{
	if (!preload_device_any_mapped()) {
		REAL(persist_fn, pmem_persist)(address, size);
		return;
	}
	REAL(persist_fn, pmem_flush)(address, size);
	REAL(drain_fn, pmem_drain)();
	flush_or_abort("pmem_persist", address, size);
}

/* What has been flushed before, wherever. */
EXPORT void pmem_drain(void)
{
	REAL(drain_fn, pmem_drain)();
	if (preload_device_any_mapped())
		flush_all_or_abort("pmem_drain");
}

EXPORT int pmem_deep_persist(const void *address, size_t size)
{
	if (!preload_device_any_mapped())
		return REAL(int (*)(const void *, size_t), pmem_deep_persist)(address, size);
	REAL(persist_fn, pmem_flush)(address, size);
	return pmem_deep_drain(address, size);
}

EXPORT int pmem_deep_drain(const void *address, size_t size)
{
	bool deep = true;
	int r = 0;

	if (preload_device_any_mapped()) {
		REAL(drain_fn, pmem_drain)();
		r = flush_deep(address, size, &deep);
	}
	return deep ? REAL(int (*)(const void *, size_t), pmem_deep_drain)(address, size) : r;
}

#define COPY(name, kind, from_type)                                                                                    \
	EXPORT void *name(void *to, from_type from, size_t size, unsigned int flags)                                   \
	{                                                                                                              \
		if (!preload_device_any_mapped() || flags & (F_MEM_NODRAIN | F_MEM_NOFLUSH))                           \
			return REAL(kind, name)(to, from, size, flags);                                                \
		REAL(kind, name)(to, from, size, flags | F_MEM_NODRAIN);                                               \
		REAL(drain_fn, pmem_drain)();                                                                          \
		flush_or_abort(#name, to, size);                                                                       \
		return to;                                                                                             \
	}                                                                                                              \
                                                                                                                       \
	EXPORT void *name##_persist(void *to, from_type from, size_t size)                                             \
	{                                                                                                              \
		return name(to, from, size, 0);                                                                        \
	}

COPY(pmem_memmove, copy_fn, const void *)
COPY(pmem_memcpy, copy_fn, const void *)
COPY(pmem_memset, set_fn, int)

/* ---- libpmem2: it gives functions away, one for each granularity ---- */

#define N_GRANULARITIES 3

EXPORT persist_fn pmem2_get_persist_fn(struct pmem2_map *map);
EXPORT drain_fn pmem2_get_drain_fn(struct pmem2_map *map);
EXPORT copy_fn pmem2_get_memmove_fn(struct pmem2_map *map);
EXPORT copy_fn pmem2_get_memcpy_fn(struct pmem2_map *map);
EXPORT set_fn pmem2_get_memset_fn(struct pmem2_map *map);
EXPORT int pmem2_deep_flush(struct pmem2_map *map, void *address, size_t size);

static struct {
	persist_fn persist;
	drain_fn drain;
	copy_fn memmove, memcpy;
	set_fn memset;
} given[N_GRANULARITIES];

#define GIVEN(of)                                                                                                      \
	static void persist_##of(const void *address, size_t size)                                                     \
	{                                                                                                              \
		given[of].persist(address, size);                                                                      \
		if (preload_device_any_mapped())                                                                       \
			flush_or_abort("pmem2_persist", address, size);                                                \
	}                                                                                                              \
                                                                                                                       \
	static void drain_##of(void)                                                                                   \
	{                                                                                                              \
		given[of].drain();                                                                                     \
		if (preload_device_any_mapped())                                                                       \
			flush_all_or_abort("pmem2_drain");                                                             \
	}                                                                                                              \
                                                                                                                       \
	static void *memmove_##of(void *to, const void *from, size_t size, unsigned int flags)                         \
	{                                                                                                              \
		given[of].memmove(to, from, size, flags);                                                              \
		if (preload_device_any_mapped() && !(flags & (F_MEM_NODRAIN | F_MEM_NOFLUSH)))                         \
			flush_or_abort("pmem2_memmove", to, size);                                                     \
		return to;                                                                                             \
	}                                                                                                              \
                                                                                                                       \
	static void *memcpy_##of(void *to, const void *from, size_t size, unsigned int flags)                          \
	{                                                                                                              \
		given[of].memcpy(to, from, size, flags);                                                               \
		if (preload_device_any_mapped() && !(flags & (F_MEM_NODRAIN | F_MEM_NOFLUSH)))                         \
			flush_or_abort("pmem2_memcpy", to, size);                                                      \
		return to;                                                                                             \
	}                                                                                                              \
                                                                                                                       \
	static void *memset_##of(void *to, int c, size_t size, unsigned int flags)                                     \
	{                                                                                                              \
		given[of].memset(to, c, size, flags);                                                                  \
		if (preload_device_any_mapped() && !(flags & (F_MEM_NODRAIN | F_MEM_NOFLUSH)))                         \
			flush_or_abort("pmem2_memset", to, size);                                                      \
		return to;                                                                                             \
	}

GIVEN(0)
GIVEN(1)
GIVEN(2)

/* The map's granularity; -1: pmem2's own function is the one to be given. */
static int look_at(struct pmem2_map *map)
{
	int granularity;

	if (!preload_device_any_mapped())
		return -1;
	granularity = REAL(int (*)(struct pmem2_map *), pmem2_map_get_store_granularity)(map);
	return granularity >= 0 && granularity < N_GRANULARITIES ? granularity : -1;
}

#define GET(name, kind)                                                                                                \
	EXPORT kind pmem2_get_##name##_fn(struct pmem2_map *map)                                                       \
	{                                                                                                              \
		static const kind ours[N_GRANULARITIES] = { name##_0, name##_1, name##_2 };                            \
		kind theirs = REAL(kind(*)(struct pmem2_map *), pmem2_get_##name##_fn)(map);                           \
		int of = look_at(map);                                                                                 \
                                                                                                                       \
		if (of < 0)                                                                                            \
			return theirs;                                                                                 \
		__atomic_store_n(&given[of].name, theirs, __ATOMIC_RELEASE);                                           \
		return ours[of];                                                                                       \
	}

GET(persist, persist_fn)
GET(drain, drain_fn)
GET(memmove, copy_fn)
GET(memcpy, copy_fn)
GET(memset, set_fn)

static bool is_within(struct pmem2_map *map, const char *address, size_t size)
{
	const char *start = REAL(void *(*)(struct pmem2_map *), pmem2_map_get_address)(map);
	size_t all = REAL(size_t(*)(struct pmem2_map *), pmem2_map_get_size)(map);

	return address >= start && size <= all && (size_t)(address - start) <= all - size;
}

EXPORT int pmem2_deep_flush(struct pmem2_map *map, void *address, size_t size)
{
	bool deep = true;
	int r = 0;

	/* What isn't is for the library to refuse. */
	if (preload_device_any_mapped() && is_within(map, address, size)) {
		REAL(persist_fn(*)(struct pmem2_map *), pmem2_get_persist_fn)(map)(address, size);
		r = flush_deep(address, size, &deep) < 0 ? -errno : 0;
	}
	return deep ? REAL(int (*)(struct pmem2_map *, void *, size_t), pmem2_deep_flush)(map, address, size) : r;
}
