/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-map: which files lie below an address range, and how the application holds them
 *
 * What lies where the kernel is asked, each time: so nothing is missed of mremap, MAP_FIXED, fork and what others map.
 * What is remembered of mmap() is only where a descriptor of the file may be, and it is looked at before it is used.
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

#define N_HELD 256

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

/* ---- descriptors ---- */

struct held {
	uint64_t device, inode;
	int fd;
};

static struct held held[N_HELD];
static uint32_t n_noted, any_noted;

bool preload_map_is_empty(void)
{
	return !__atomic_load_n(&any_noted, __ATOMIC_ACQUIRE);
}

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
	return ret->device == device && ret->inode == inode &&
	       (ret->kind != PRELOAD_NONE || !(fcntl(fd, F_GETFL) & O_PATH));
}

void preload_map_note(int fd, uintptr_t start, uintptr_t end)
{
	int saved = errno;
	struct preload_file file;

	preload_classify(fd, false, &file);
	/* Also where the agent has just said that it is none of its regions: by the time of msync() it may be. */
	if (file.kind != PRELOAD_NONE || file.known) {
		hold(fd, &file);
		preload_device_note_mapped(&file);
		preload_kept_extend(file.device, file.inode, start, end);
		__atomic_store_n(&any_noted, 1, __ATOMIC_RELEASE);
	}
	errno = saved;
}

/* What it was, was noted when it was mapped; what it is, the agent looks at. */
void preload_map_closing(int fd)
{
	struct preload_file file;
	int saved, cancel;

	if (fd < 0 || preload_map_is_empty())
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

struct preload_handle preload_map_find_handle(uint64_t device, uint64_t inode, struct preload_file *ret)
{
	struct preload_handle h = { .fd = -1 };

	for (unsigned int i = 0; i < N_HELD; i++) {
		if (__atomic_load_n(&held[i].device, __ATOMIC_ACQUIRE) != device ||
		    PRELOAD_PEEK(held[i].inode) != inode)
			continue;
		h.fd = PRELOAD_PEEK(held[i].fd);
		if (stands_for(h.fd, device, inode, ret))
			return h;
		break;
	}
	h.kept = preload_kept_find(device, inode);
	h.fd = h.kept ? -1 : search(device, inode, ret);
	if (h.fd < 0)
		preload_device_guess(device, inode, ret);
	return h;
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
	map->is_own = preload_is_own_process();
	map->fd = map->is_own ? get_kept() : -1;
	map->is_kept = map->fd >= 0;
	return map->is_kept ? 0 : open_maps(map);
}

void preload_map_close(struct preload_map *map)
{
	if (map->is_kept)
		return;
	/* The application may have closed the one before. */
	if (map->asked && map->is_own &&
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
