/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-page: the pages of regions: what was lost, also without the agent
 *
 * Each is mapped when it is first seen, and for good: it can be read after chroot() and when there is no descriptor to
 * be had. One that the agent replaces says so itself, and its place is then looked at again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "preload.h"

#define N_PAGES       64
#define RETRY_NSEC    1000000
#define MAX_RETRIES   100 /* of what passes within milliseconds, if it passes */
#define PAGE_SUFFIX   ".page"
#define FILE_IDENTITY "file:"

struct seen {
	uint64_t number; /* stored before `page`, and for good */
	uint64_t inode;
	const struct pmem_agent_page *page;
};

static struct seen pages[N_PAGES];

static void sleep_a_little(void)
{
	const struct timespec ts = { .tv_nsec = RETRY_NSEC };

	nanosleep(&ts, NULL);
}

/* ---- where they are ---- */

static const struct pmem_agent_page *map_page(const char *path, uint64_t *ret_inode)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	void *page = MAP_FAILED;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= PMEM_AGENT_PAGE_SIZE)
		page = (void *)syscall(SYS_mmap, NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	preload_close(fd);
	*ret_inode = st.st_ino;
	return page == MAP_FAILED ? NULL : page;
}

/* Its place; NULL: there is no room. Two at the same time may get two. */
static struct seen *get_place(uint64_t number)
{
	for (unsigned int i = 0; i < N_PAGES; i++) {
		uint64_t found = 0;

		if (__atomic_compare_exchange_n(&pages[i].number, &found, number, false, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE) ||
		    found == number)
			return &pages[i];
	}
	return NULL;
}

/* What is mapped of it already; or it is mapped now. NULL: it can't be. What it replaces others may be reading. */
static const struct pmem_agent_page *see(const char *directory, uint64_t number)
{
	const struct pmem_agent_page *page;
	struct seen *s = get_place(number);
	char path[128];
	struct stat st;
	uint64_t inode;

	if (!s)
		return NULL;
	snprintf(path, sizeof(path), "%s/%016" PRIx64 PAGE_SUFFIX, directory, number);
	page = __atomic_load_n(&s->page, __ATOMIC_ACQUIRE);
	if (page && (lstat(path, &st) < 0 || st.st_ino == __atomic_load_n(&s->inode, __ATOMIC_RELAXED)))
		return page;
	page = map_page(path, &inode);
	if (!page)
		return NULL;
	__atomic_store_n(&s->inode, inode, __ATOMIC_RELAXED);
	__atomic_store_n(&s->page, page, __ATOMIC_RELEASE);
	preload_device_add_page(page, number);
	return page;
}

int preload_page_look(const char *directory)
{
	char buffer[512];
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	long n;

	if (fd < 0)
		return -errno;
	while ((n = syscall(SYS_getdents64, fd, buffer, sizeof(buffer))) > 0) {
		for (long at = 0; at < n; at += *(uint16_t *)(buffer + at + 16)) {
			const char *name = buffer + at + 19;
			char *end;
			uint64_t number = strtoull(name, &end, 16);

			if (end != name && strcmp(end, PAGE_SUFFIX) == 0 && number != 0 && !see(directory, number))
				r = -EAGAIN;
		}
	}
	preload_close(fd);
	return n < 0 ? -EIO : r;
}

const struct pmem_agent_page *preload_page_find(const char *directory, uint64_t number)
{
	const struct pmem_agent_page *page;

	for (unsigned int i = 0; i < N_PAGES; i++) {
		if (__atomic_load_n(&pages[i].number, __ATOMIC_ACQUIRE) != number)
			continue;
		page = __atomic_load_n(&pages[i].page, __ATOMIC_ACQUIRE);
		if (page && __atomic_load_n(&page->magic, __ATOMIC_ACQUIRE) == PMEM_AGENT_PAGE_MAGIC)
			return page;
	}
	return see(directory, number);
}

/* ---- what they say ---- */

/* Field 22 of /proc/PID/stat; 0: there is no such process, or it can't be seen from here. */
static uint64_t start_time_of(uint32_t pid)
{
	char path[32], text[512], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%u/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	preload_close(fd);
	text[n > 0 ? n : 0] = '\0';
	/* The name may have anything in it; 20 spaces after its end. */
	p = strrchr(text, ')');
	for (unsigned int i = 0; p && i < 20; i++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

/* The rounds that are in flight end; false: nobody can tell how. */
static bool settle_page(const struct pmem_agent_page *page)
{
	uint64_t started = __atomic_load_n(&page->worker.started, __ATOMIC_ACQUIRE);

	while (__atomic_load_n(&page->worker.done, __ATOMIC_ACQUIRE) < started) {
		uint64_t start_time = __atomic_load_n(&page->worker.start_time, __ATOMIC_ACQUIRE);
		uint32_t pid = __atomic_load_n(&page->worker.pid, __ATOMIC_ACQUIRE);

		if (pid == 0 || start_time_of(pid) != start_time)
			return __atomic_load_n(&page->worker.done, __ATOMIC_ACQUIRE) >= started;
		sleep_a_little();
	}
	return true;
}

bool preload_page_is_lost(const struct pmem_agent_page *page, bool settle)
{
	int lost = PMEM_AGENT_UNKNOWN;

	if (settle && !settle_page(page))
		return true;
	for (unsigned int i = 0; i < MAX_RETRIES && lost == PMEM_AGENT_UNKNOWN; i++) {
		if (i > 0)
			sleep_a_little();
		lost = pmem_agent_page_lost(page);
	}
	return lost != 0;
}

bool preload_page_any_is_lost(const char *directory, bool emulated, bool settle)
{
	int r = preload_page_look(directory);

	/* Out of sight after chroot(), or there never was one: then those that have been seen. */
	if (r < 0 && r != -ENOENT)
		return true;
	for (unsigned int i = 0; i < N_PAGES && __atomic_load_n(&pages[i].number, __ATOMIC_ACQUIRE) != 0; i++) {
		const struct pmem_agent_page *page = __atomic_load_n(&pages[i].page, __ATOMIC_ACQUIRE);

		if (!page || (!emulated && strncmp(page->identity, FILE_IDENTITY, strlen(FILE_IDENTITY)) == 0))
			continue;
		if (preload_page_is_lost(page, settle))
			return true;
	}
	return false;
}
