/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-device: which files concern us, and what is known of the regions below them, also without the agent
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

#define N_DEVICES     64
#define N_EMULATED    16
#define RETRY_NSEC    1000000
#define MAX_RETRIES   100 /* of what passes within milliseconds, if it passes */
#define PAGE_SUFFIX   ".page"
#define FILE_IDENTITY "file:"

struct preload_device {
	uint64_t device;       /* 0: free; stored once */
	uint64_t page;         /* 0: not known */
	uint64_t not_before;   /* second at which the agent is asked again: it was nothing of ours */
	uint32_t stuck;        /* a real call has failed with EIO, */
	uint64_t acknowledged; /* when that much of the page's losses was acknowledged */
	uint32_t is_no_region; /* by sysfs, for good */
};

struct emulated {
	uint64_t device, inode, page; /* device is stored last; 0: free */
};

static struct preload_device devices[N_DEVICES];
static struct emulated emulated[N_EMULATED];
static char directory[80] = PMEM_AGENT_RUNTIME_DIR;
static uint32_t active, any_stuck;
static uint64_t looked_sec, seen_nsec; /* when, and what its time of change was */

const char *preload_directory(void)
{
	return directory;
}

static uint64_t now_sec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t)ts.tv_sec + 1;
}

static void sleep_a_little(void)
{
	const struct timespec ts = { .tv_nsec = RETRY_NSEC };

	nanosleep(&ts, NULL);
}

/* ---- pages ---- */

static const struct pmem_agent_page *map_page(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *page = MAP_FAILED;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && st.st_size >= PMEM_AGENT_PAGE_SIZE)
		page = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

static void unmap_page(const struct pmem_agent_page *page)
{
	munmap((void *)page, PMEM_AGENT_PAGE_SIZE);
}

static void page_path(uint64_t number, char *ret, size_t size)
{
	snprintf(ret, size, "%s/%016" PRIx64 PAGE_SUFFIX, directory, number);
}

/* Calls it for each page until it says true. True: one has; or there may be pages that can't be read. */
static bool any_page(bool (*of)(const struct pmem_agent_page *page, uint64_t number, const void *data),
		     const void *data)
{
	char buffer[512], path[128];
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool found = fd < 0 && errno != ENOENT;
	long n;

	while (!found && fd >= 0 && (n = syscall(SYS_getdents64, fd, buffer, sizeof(buffer))) > 0) {
		for (long at = 0; !found && at < n; at += *(uint16_t *)(buffer + at + 16)) {
			const char *name = buffer + at + 19;
			const struct pmem_agent_page *page;
			char *end;
			uint64_t number = strtoull(name, &end, 16);

			if (end == name || strcmp(end, PAGE_SUFFIX) != 0)
				continue;
			page_path(number, path, sizeof(path));
			page = map_page(path);
			found = !page || of(page, number, data);
			if (page)
				unmap_page(page);
		}
	}
	if (fd >= 0)
		close(fd);
	return found;
}

/* Field 22 of /proc/PID/stat; 0: there is no such process. */
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
	close(fd);
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

static bool page_is_lost(const struct pmem_agent_page *page, bool settle)
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

/* ---- emulated regions ---- */

static bool add_emulated(const struct pmem_agent_page *page, uint64_t number, const void *data)
{
	const char *path = page->identity + strlen(FILE_IDENTITY);
	struct stat st;

	if (strncmp(page->identity, FILE_IDENTITY, strlen(FILE_IDENTITY)) != 0 || stat(path, &st) < 0)
		return false;
	for (unsigned int i = 0; i < N_EMULATED; i++) {
		struct emulated *e = &emulated[i];
		uint64_t none = 0;

		if (e->device == st.st_dev && e->inode == st.st_ino)
			return false;
		if (!__atomic_compare_exchange_n(&e->page, &none, number, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		e->inode = st.st_ino;
		__atomic_store_n(&e->device, st.st_dev, __ATOMIC_RELEASE);
		return false;
	}
	return false;
}

static const struct emulated *find_emulated(uint64_t device, uint64_t inode)
{
	for (unsigned int i = 0; i < N_EMULATED; i++)
		if (__atomic_load_n(&emulated[i].device, __ATOMIC_ACQUIRE) == device && emulated[i].inode == inode)
			return &emulated[i];
	return NULL;
}

static void look(void)
{
	struct stat st;
	uint64_t nsec;

	if (stat(directory, &st) < 0)
		return;
	nsec = (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
	if (nsec == __atomic_load_n(&seen_nsec, __ATOMIC_RELAXED))
		return;
	any_page(add_emulated, NULL);
	__atomic_store_n(&seen_nsec, nsec, __ATOMIC_RELAXED);
	__atomic_store_n(&active, 1, __ATOMIC_RELEASE);
}

bool preload_is_active(void)
{
	uint64_t now = now_sec();

	if (__atomic_load_n(&looked_sec, __ATOMIC_RELAXED) != now) {
		int saved = errno, cancel;

		__atomic_store_n(&looked_sec, now, __ATOMIC_RELAXED);
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
		look();
		pthread_setcancelstate(cancel, NULL);
		errno = saved;
	}
	return __atomic_load_n(&active, __ATOMIC_ACQUIRE) || __atomic_load_n(&any_stuck, __ATOMIC_RELAXED);
}

void preload_device_init(void)
{
	const char *other = secure_getenv("PMEM_AGENT_RUNTIME_DIR");

	if (other && strlen(other) < sizeof(directory))
		strcpy(directory, other);
	preload_is_active();
}

/* ---- devices ---- */

/* Where the block device, or the character device, stands in sysfs. */
static bool link_says(const char *class, uint64_t device, const char *end, const char *const *words)
{
	char path[64], link[256];
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/dev/%s/%u:%u%s", class, major(device), minor(device), end);
	n = readlink(path, link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = '\0';
	for (; *words; words++)
		if (strstr(link, *words))
			return true;
	return false;
}

/* One that others are below may have a region there; that the agent knows. */
static bool may_be_region(uint64_t device)
{
	static const char *const words[] = { "/ndbus", "/block/dm-", "/block/md", NULL };

	return major(device) != 0 && link_says("block", device, "", words);
}

static bool is_dax_device(uint64_t device)
{
	static const char *const words[] = { "/bus/dax", "/class/dax", NULL };

	return link_says("char", device, "/subsystem", words);
}

struct preload_device *preload_device_find(uint64_t device)
{
	for (unsigned int i = 0; i < N_DEVICES; i++) {
		uint64_t found = __atomic_load_n(&devices[i].device, __ATOMIC_ACQUIRE);

		if (found == device)
			return &devices[i];
		if (found == 0)
			break;
	}
	return NULL;
}

static struct preload_device *get_device(uint64_t device)
{
	for (unsigned int i = 0; i < N_DEVICES; i++) {
		uint64_t found = 0;

		if (__atomic_compare_exchange_n(&devices[i].device, &found, device, false, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE) ||
		    found == device)
			return &devices[i];
	}
	return NULL;
}

static struct preload_device *remember_device(uint64_t device)
{
	struct preload_device *d = preload_device_find(device);

	if (d)
		return d;
	d = get_device(device);
	if (d && !may_be_region(device))
		__atomic_store_n(&d->is_no_region, 1, __ATOMIC_RELAXED);
	return d;
}

/* Whether DAX files of this device are to be flushed by the agent. */
static bool is_ours(const struct preload_device *d, uint64_t device)
{
	if (!d)
		return may_be_region(device);
	return !__atomic_load_n(&d->is_no_region, __ATOMIC_RELAXED) &&
	       __atomic_load_n(&d->not_before, __ATOMIC_RELAXED) <= now_sec();
}

void preload_device_guess(uint64_t device, uint64_t inode, struct preload_file *ret)
{
	*ret = (struct preload_file){
		.kind = PRELOAD_NONE,
		.device = device,
		.inode = inode,
		.known = preload_device_find(device),
	};
	if (find_emulated(device, inode))
		ret->kind = PRELOAD_EMULATED;
	else if (ret->known && is_ours(ret->known, device))
		ret->kind = PRELOAD_DAX_FILE;
}

void preload_classify(int fd, bool filesystem, struct preload_file *ret)
{
	struct statx stx;

	*ret = (struct preload_file){ .kind = PRELOAD_NONE };
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stx) < 0)
		return;
	ret->device = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	ret->inode = stx.stx_ino;
	if (S_ISCHR(stx.stx_mode) && !filesystem && is_dax_device(makedev(stx.stx_rdev_major, stx.stx_rdev_minor)))
		ret->kind = PRELOAD_DAX_DEVICE;
	else if (S_ISREG(stx.stx_mode) && !filesystem && find_emulated(ret->device, ret->inode))
		ret->kind = PRELOAD_EMULATED;
	else if (filesystem ? !may_be_region(ret->device) : !(stx.stx_attributes & STATX_ATTR_DAX))
		return;
	ret->known = remember_device(ret->device);
	if (ret->kind == PRELOAD_NONE && is_ours(ret->known, ret->device))
		ret->kind = PRELOAD_DAX_FILE;
	/* It is no right to the file, says the kernel. */
	if (ret->kind != PRELOAD_NONE && fcntl(fd, F_GETFL) & O_PATH)
		ret->kind = PRELOAD_NONE;
}

void preload_device_learn(const struct preload_file *file, uint64_t page)
{
	if (file->known && page != 0 && file->kind == PRELOAD_DAX_FILE)
		__atomic_store_n(&file->known->page, page, __ATOMIC_RELAXED);
}

void preload_device_dismiss(const struct preload_file *file)
{
	if (file->known && file->kind == PRELOAD_DAX_FILE)
		__atomic_store_n(&file->known->not_before, now_sec() + 1, __ATOMIC_RELAXED);
}

/* ---- losses ---- */

/* 0: not known which page it is. */
static uint64_t page_of(const struct preload_file *file)
{
	const struct emulated *e;

	if (file->kind == PRELOAD_EMULATED) {
		e = find_emulated(file->device, file->inode);
		return e ? e->page : 0;
	}
	return file->known ? __atomic_load_n(&file->known->page, __ATOMIC_RELAXED) : 0;
}

static const struct pmem_agent_page *map_page_of(const struct preload_file *file)
{
	uint64_t number = page_of(file);
	char path[128];

	if (number == 0)
		return NULL;
	page_path(number, path, sizeof(path));
	return map_page(path);
}

void preload_device_stick(const struct preload_file *file)
{
	const struct pmem_agent_page *page;
	uint64_t acknowledged = UINT64_MAX; /* without a page for ever */

	__atomic_store_n(&any_stuck, 1, __ATOMIC_RELAXED);
	if (!file->known)
		return;
	page = map_page_of(file);
	if (page) {
		acknowledged = __atomic_load_n(&page->agent.acknowledged, __ATOMIC_ACQUIRE);
		unmap_page(page);
	}
	__atomic_store_n(&file->known->acknowledged, acknowledged, __ATOMIC_RELAXED);
	__atomic_store_n(&file->known->stuck, 1, __ATOMIC_RELEASE);
}

bool preload_device_is_stuck(const struct preload_file *file)
{
	const struct pmem_agent_page *page;
	bool acknowledged = false;

	/* Where it could not be noted which one has failed, each of them may have. */
	if (!file->known)
		return __atomic_load_n(&any_stuck, __ATOMIC_RELAXED);
	if (!__atomic_load_n(&file->known->stuck, __ATOMIC_ACQUIRE))
		return false;
	page = map_page_of(file);
	if (page) {
		acknowledged = pmem_agent_page_lost(page) == 0 &&
			       __atomic_load_n(&page->agent.acknowledged, __ATOMIC_ACQUIRE) >
				   __atomic_load_n(&file->known->acknowledged, __ATOMIC_RELAXED);
		unmap_page(page);
	}
	if (acknowledged)
		__atomic_store_n(&file->known->stuck, 0, __ATOMIC_RELEASE);
	return !acknowledged;
}

/* An emulated region has nothing to do with devices. */
static bool is_lost_for_device(const struct pmem_agent_page *page, uint64_t number, const void *data)
{
	return strncmp(page->identity, FILE_IDENTITY, strlen(FILE_IDENTITY)) != 0 &&
	       page_is_lost(page, *(const bool *)data);
}

bool preload_device_is_lost(const struct preload_file *file, bool settle)
{
	const struct pmem_agent_page *page;
	bool lost;

	if (page_of(file) == 0)
		return any_page(is_lost_for_device, &settle);
	page = map_page_of(file);
	if (!page)
		return true;
	lost = page_is_lost(page, settle);
	unmap_page(page);
	return lost;
}
