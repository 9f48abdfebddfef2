/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-map: which files lie below an address range, and how the application holds them
 *
 * What lies where the kernel is asked, each time: so nothing is missed of mremap, MAP_FIXED, fork and what others map.
 * What is remembered of mmap() is where a descriptor of the file may be, which the agent looks at before it is used;
 * and within which addresses anything may concern us, so that other mappings cost nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "preload.h"

#define N_HELD   256
#define N_RANGES 128

/* Linux 6.11; headers are often older. */
struct procmap_query {
	uint64_t size, flags, address;
	uint64_t start, end, vma_flags, page_size, offset, inode;
	uint32_t device_major, device_minor;
	uint32_t name_size, build_id_size;
	uint64_t name, build_id;
};
_Static_assert(sizeof(struct procmap_query) == 104, "the kernel's struct procmap_query");
#define QUERY             _IOWR('f', 17, struct procmap_query)
#define QUERY_SHARED      0x08
#define QUERY_OR_NEXT     0x10
#define QUERY_FILE_BACKED 0x20

/* ---- addresses ---- */

/*
 * Where there are mappings that concern us, or have been: nothing is taken back, since others may map and unmap there
 * at the same time. What does not fit lies within the last one.
 */
static struct range {
	uintptr_t start, end; /* 0: free, but for the last */
	uint32_t claimed;
} ranges[N_RANGES] = { [N_RANGES - 1] = { .start = UINTPTR_MAX, .claimed = 1 } };

void preload_range_widen(uintptr_t *range_start, uintptr_t *range_end, uintptr_t start, uintptr_t end)
{
	uintptr_t was = PRELOAD_PEEK(*range_start);

	while (start < was &&
	       !__atomic_compare_exchange_n(range_start, &was, start, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
		;
	was = PRELOAD_PEEK(*range_end);
	while (end > was &&
	       !__atomic_compare_exchange_n(range_end, &was, end, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
		;
}

static bool overlaps(const struct range *r, uintptr_t start, uintptr_t end)
{
	uintptr_t last = __atomic_load_n(&r->end, __ATOMIC_ACQUIRE);

	return start < last && end > PRELOAD_PEEK(r->start);
}

bool preload_map_concerns(uintptr_t start, uintptr_t end)
{
	for (unsigned int i = 0; i < N_RANGES; i++)
		if (overlaps(&ranges[i], start, end))
			return true;
	return false;
}

static struct range *claim_range(void)
{
	for (unsigned int i = 0; i < N_RANGES - 1; i++) {
		uint32_t none = 0;

		if (__atomic_compare_exchange_n(&ranges[i].claimed, &none, 1, false, __ATOMIC_ACQ_REL,
						__ATOMIC_RELAXED))
			return &ranges[i];
	}
	return NULL;
}

void preload_map_add(uintptr_t start, uintptr_t end)
{
	struct range *r;

	/* What touches one belongs to it. */
	for (unsigned int i = 0; i < N_RANGES; i++)
		if (overlaps(&ranges[i], start - 1, end + 1)) {
			preload_range_widen(&ranges[i].start, &ranges[i].end, start, end);
			return;
		}
	r = claim_range();
	if (!r) {
		preload_range_widen(&ranges[N_RANGES - 1].start, &ranges[N_RANGES - 1].end, start, end);
		return;
	}
	PRELOAD_POKE(r->start, start);
	__atomic_store_n(&r->end, end, __ATOMIC_RELEASE);
}

/* ---- descriptors ---- */

struct held {
	uint64_t device, inode;
	int fd;
};

static struct held held[N_HELD];
static uint32_t n_noted;

/* Two at the same time may spoil an entry: it is looked at before it is used. */
static void hold(int fd, const struct preload_file *file)
{
	unsigned int place = N_HELD;

	for (unsigned int i = 0; i < N_HELD && place == N_HELD; i++)
		if (PRELOAD_PEEK(held[i].device) == 0 ||
		    (PRELOAD_PEEK(held[i].device) == file->device && PRELOAD_PEEK(held[i].inode) == file->inode))
			place = i;
	if (place == N_HELD)
		place = __atomic_fetch_add(&n_noted, 1, __ATOMIC_RELAXED) % N_HELD;
	PRELOAD_POKE(held[place].fd, fd);
	PRELOAD_POKE(held[place].inode, file->inode);
	__atomic_store_n(&held[place].device, file->device, __ATOMIC_RELEASE);
}

static bool stands_for(int fd, uint64_t device, uint64_t inode, struct preload_file *ret)
{
	preload_classify(fd, false, ret);
	return ret->device == device && ret->inode == inode && !(fcntl(fd, F_GETFL) & O_PATH);
}

void preload_map_note(int fd, uintptr_t start, uintptr_t end)
{
	int saved = errno;
	struct preload_file file;

	preload_classify(fd, false, &file);
	/* Also where the agent has just said that it is none of its regions: by the time of msync() it may be. */
	if (file.kind != PRELOAD_NONE || file.known) {
		preload_map_add(start, end);
		hold(fd, &file);
		preload_device_note_mapped(&file);
		preload_kept_extend(file.device, file.inode, start, end);
	}
	errno = saved;
}

/* What it was, was noted when it was mapped; what it is, the agent looks at. */
void preload_map_closing(int fd)
{
	struct preload_file file;
	int saved, cancel;

	if (fd < 0)
		return;
	for (unsigned int i = 0; i < N_HELD; i++) {
		if (__atomic_load_n(&held[i].device, __ATOMIC_ACQUIRE) == 0)
			return;
		if (PRELOAD_PEEK(held[i].fd) != fd)
			continue;
		saved = errno;
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
		if (stands_for(fd, PRELOAD_PEEK(held[i].device), PRELOAD_PEEK(held[i].inode), &file) &&
		    file.kind != PRELOAD_NONE)
			preload_kept_offer(fd, &file);
		/* A child of vfork() closes its own. */
		if (preload_is_own_process())
			preload_map_disown(PRELOAD_PEEK(held[i].device), PRELOAD_PEEK(held[i].inode), fd);
		pthread_setcancelstate(cancel, NULL);
		errno = saved;
	}
}

static int search(uint64_t device, uint64_t inode, struct preload_file *ret)
{
	int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = -1;
	char buffer[512];
	long n;

	while (found < 0 && directory >= 0 && (n = syscall(SYS_getdents64, directory, buffer, sizeof(buffer))) > 0) {
		for (long at = 0; found < 0 && at < n; at += *(uint16_t *)(buffer + at + 16)) {
			const char *name = buffer + at + 19;

			if (name[0] != '.' && stands_for(atoi(name), device, inode, ret))
				found = atoi(name);
		}
	}
	if (directory >= 0)
		preload_close(directory);
	if (found >= 0)
		hold(found, ret);
	return found;
}

static struct held *find_held(uint64_t device, uint64_t inode)
{
	for (unsigned int i = 0; i < N_HELD; i++)
		if (__atomic_load_n(&held[i].device, __ATOMIC_ACQUIRE) == device &&
		    PRELOAD_PEEK(held[i].inode) == inode)
			return &held[i];
	return NULL;
}

struct preload_handle preload_map_find_handle(uint64_t device, uint64_t inode, struct preload_file *ret)
{
	const struct held *found = find_held(device, inode);
	struct preload_handle h = { .fd = found ? PRELOAD_PEEK(found->fd) : -1 };

	preload_device_guess(device, inode, ret);
	if (h.fd >= 0)
		return h;
	h.kept = preload_kept_find(device, inode);
	h.fd = h.kept ? -1 : search(device, inode, ret);
	if (h.fd < 0)
		preload_device_guess(device, inode, ret);
	return h;
}

void preload_map_disown(uint64_t device, uint64_t inode, int fd)
{
	struct held *found = find_held(device, inode);

	if (found)
		__atomic_compare_exchange_n(&found->fd, &fd, -1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* ---- mappings ---- */

/* Of this process, kept open where it can be asked for an address: that needs no place in it. */
static struct {
	uint32_t state; /* enum kept_state */
	int fd;
	uint64_t device, inode; /* whether the number is still ours */
} kept;

enum kept_state { KEPT_NONE, KEPT_CHANGING, KEPT };

/* Its descriptor, or -1. */
static int get_kept(void)
{
	int fd = PRELOAD_PEEK(kept.fd);
	struct stat st;

	return __atomic_load_n(&kept.state, __ATOMIC_ACQUIRE) == KEPT && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
		       st.st_ino == PRELOAD_PEEK(kept.inode) && st.st_dev == PRELOAD_PEEK(kept.device)
		   ? fd
		   : -1;
}

/* Those of its parent are another process's. */
void preload_map_inherit(void)
{
	int fd = get_kept();

	if (fd >= 0)
		preload_close(fd);
	__atomic_store_n(&kept.state, KEPT_NONE, __ATOMIC_RELEASE);
}

static bool change_kept(enum kept_state from, enum kept_state to)
{
	uint32_t before = from;

	return __atomic_compare_exchange_n(&kept.state, &before, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* Where no application expects its own; there or nowhere. */
static void keep(int fd)
{
	struct stat st;
	int high = fstat(fd, &st) == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, PRELOAD_HIGH_FD) : -1;

	PRELOAD_POKE(kept.fd, high);
	PRELOAD_POKE(kept.device, high >= 0 ? st.st_dev : 0);
	PRELOAD_POKE(kept.inode, high >= 0 ? st.st_ino : 0);
	__atomic_store_n(&kept.state, high >= 0 ? KEPT : KEPT_NONE, __ATOMIC_RELEASE);
}

static int open_maps(struct preload_map *map)
{
	map->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	map->is_kept = false;
	return map->fd < 0 ? -errno : 0;
}

int preload_map_open(struct preload_map *map)
{
	map->text = map->asked = false;
	map->at = map->n = 0;
	map->fd = preload_is_own_memory() || preload_is_own_process() ? get_kept() : -1;
	map->is_kept = map->fd >= 0;
	return map->is_kept ? 0 : open_maps(map);
}

void preload_map_close(struct preload_map *map)
{
	if (map->is_kept)
		return;
	/* The application may have closed the one before. */
	if (map->asked && preload_is_own_process() &&
	    (change_kept(KEPT_NONE, KEPT_CHANGING) || (get_kept() < 0 && change_kept(KEPT, KEPT_CHANGING))))
		keep(map->fd);
	preload_close(map->fd);
}

static int read_char(struct preload_map *map)
{
	ssize_t n;

	if (map->at == map->n) {
		do
			n = read(map->fd, map->buffer, sizeof(map->buffer));
		while (n < 0 && errno == EINTR);
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		map->at = 0;
		map->n = (size_t)n;
	}
	return (unsigned char)map->buffer[map->at++];
}

/* A line up to its path: "7f0000000000-7f0000001000 rw-s 00000000 fd:00 1234   /path". Paths are quoted by the kernel.
 */
static int read_line(struct preload_map *map, struct preload_mapping *ret)
{
	char text[128];
	unsigned int n = 0, spaces = 0;
	unsigned long start, end, inode;
	unsigned int major_number, minor_number;
	char *p;
	int c;

	while ((c = read_char(map)) >= 0 && c != '\n') {
		spaces += c == ' ' && (n == 0 || text[n - 1] != ' ');
		if (n < sizeof(text) - 1 && spaces < 5)
			text[n++] = (char)c;
	}
	if (c < 0)
		return c == -ENODATA ? 0 : c;
	text[n] = '\0';
	start = strtoul(text, &p, 16);
	end = *p == '-' ? strtoul(p + 1, &p, 16) : 0;
	if (end == 0 || strlen(p) < 6)
		return -EBADMSG;
	ret->shared = p[4] == 's';
	strtoul(p + 6, &p, 16);
	major_number = (unsigned int)strtoul(p, &p, 16);
	if (*p != ':')
		return -EBADMSG;
	minor_number = (unsigned int)strtoul(p + 1, &p, 16);
	inode = strtoul(p, NULL, 10);
	ret->start = start;
	ret->end = end;
	ret->device = makedev(major_number, minor_number);
	ret->inode = inode;
	return 1;
}

static int query(struct preload_map *map, uintptr_t address, struct preload_mapping *ret)
{
	struct procmap_query q = {
		.size = sizeof(q),
		.flags = QUERY_OR_NEXT | QUERY_FILE_BACKED | QUERY_SHARED,
		.address = address,
	};

	if (ioctl(map->fd, QUERY, &q) < 0)
		return errno == ENOENT ? 0 : -errno;
	*ret = (struct preload_mapping){
		.start = q.start,
		.end = q.end,
		.shared = true,
		.device = makedev(q.device_major, q.device_minor),
		.inode = q.inode,
	};
	return 1;
}

int preload_map_next(struct preload_map *map, uintptr_t address, struct preload_mapping *ret)
{
	int r;

	if (!map->text) {
		r = query(map, address, ret);
		/* Somebody has just put another in its place. */
		if (r == -EBADF || (map->is_kept && r < 0)) {
			r = open_maps(map);
			if (r < 0)
				return r;
			r = query(map, address, ret);
		}
		map->asked = r >= 0;
		if (r != -ENOTTY && r != -EINVAL)
			return r;
		map->text = true;
	}
	do
		r = read_line(map, ret);
	while (r > 0 && (ret->end <= address || !ret->shared || ret->inode == 0));
	return r;
}
