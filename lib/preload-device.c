/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-device: which files concern us, and what has failed on them
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

#define N_DEVICES     64
#define N_SPECIAL     64
#define FILE_IDENTITY "file:"

struct preload_device {
	uint64_t device;       /* 0: free; stored once */
	uint64_t page;         /* 0: not known */
	uint64_t not_before;   /* second at which the agent is asked again: it was nothing of ours */
	uint32_t stuck;        /* a real call has failed with EIO, */
	uint32_t untold;       /* which the agent has not been told, */
	uint64_t acknowledged; /* when that much of the page's losses was acknowledged */
	uint32_t is_no_region; /* by sysfs, for good */
};

/* A file that stands for a region. */
struct special {
	uint64_t device, inode, page; /* device is stored last; 0: free */
	uint32_t claimed;
	enum preload_kind kind;
	uint32_t mapped;      /* has been */
	uint32_t synchronous; /* the CPU's own flush is enough, for good */
};

static struct preload_device devices[N_DEVICES];
static struct special specials[N_SPECIAL];

/* As long as the name of the socket in it can be. */
static char directory[sizeof(((struct sockaddr_un *)NULL)->sun_path) - sizeof(PMEM_AGENT_SOCKET_NAME)] =
    PMEM_AGENT_RUNTIME_DIR;

static uint32_t active, any_stuck, any_unplaced; /* the last: it could not be noted on which device */
static uint32_t n_mapped;                        /* specials that are, and are not known to be synchronous */
static uint64_t seen_nsec;                       /* the directory's time of change */
static uint32_t looked_sec;

const char *preload_directory(void)
{
	return directory;
}

static uint32_t now_sec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint32_t)ts.tv_sec + 1;
}

/* ---- files that stand for regions ---- */

static struct special *find_special(uint64_t device, uint64_t inode)
{
	for (unsigned int i = 0; i < N_SPECIAL; i++)
		if (__atomic_load_n(&specials[i].device, __ATOMIC_ACQUIRE) == device && specials[i].inode == inode)
			return &specials[i];
	return NULL;
}

static void add_special(enum preload_kind kind, uint64_t device, uint64_t inode, uint64_t page)
{
	for (unsigned int i = 0; i < N_SPECIAL && !find_special(device, inode); i++) {
		struct special *s = &specials[i];
		uint32_t none = 0;

		if (!__atomic_compare_exchange_n(&s->claimed, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		s->kind = kind;
		s->inode = inode;
		s->page = page;
		__atomic_store_n(&s->device, device, __ATOMIC_RELEASE);
	}
}

void preload_device_add_page(const struct pmem_agent_page *page, uint64_t number)
{
	const char *path = page->identity + strlen(FILE_IDENTITY);
	struct stat st;

	if (strncmp(page->identity, FILE_IDENTITY, strlen(FILE_IDENTITY)) == 0 && stat(path, &st) == 0)
		add_special(PRELOAD_EMULATED, st.st_dev, st.st_ino, number);
}

bool preload_device_is_region(uint64_t device, uint64_t inode)
{
	return find_special(device, inode);
}

void preload_device_note_mapped(const struct preload_file *file)
{
	struct special *s = find_special(file->device, file->inode);

	if (s && !__atomic_exchange_n(&s->mapped, 1, __ATOMIC_ACQ_REL))
		__atomic_fetch_add(&n_mapped, 1, __ATOMIC_RELEASE);
}

bool preload_device_any_mapped(void)
{
	return __atomic_load_n(&n_mapped, __ATOMIC_ACQUIRE) > 0;
}

/* ---- whether there is an agent ---- */

static void look(void)
{
	struct stat st;
	uint64_t nsec;

	if (stat(directory, &st) < 0)
		return;
	nsec = (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
	if (nsec == __atomic_load_n(&seen_nsec, __ATOMIC_RELAXED))
		return;
	if (preload_page_look(directory) == 0)
		__atomic_store_n(&seen_nsec, nsec, __ATOMIC_RELAXED);
	__atomic_store_n(&active, 1, __ATOMIC_RELEASE);
}

uint32_t preload_is_active(void)
{
	uint32_t now = now_sec();

	if (__atomic_load_n(&looked_sec, __ATOMIC_RELAXED) != now) {
		int saved = errno, cancel;

		__atomic_store_n(&looked_sec, now, __ATOMIC_RELAXED);
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
		look();
		pthread_setcancelstate(cancel, NULL);
		errno = saved;
	}
	return __atomic_load_n(&active, __ATOMIC_ACQUIRE) || __atomic_load_n(&any_stuck, __ATOMIC_RELAXED) ? now : 0;
}

void preload_device_init(void)
{
	const char *other = secure_getenv("PMEM_AGENT_RUNTIME_DIR");

	if (other && strlen(other) < sizeof(directory))
		strcpy(directory, other);
	else if (other)
		dprintf(STDERR_FILENO,
			"libpmem-agent-preload: PMEM_AGENT_RUNTIME_DIR is longer than %zu bytes: %s is used\n",
			sizeof(directory) - 1, directory);
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
	const struct special *special = find_special(device, inode);

	*ret = (struct preload_file){
		.kind = PRELOAD_NONE,
		.device = device,
		.inode = inode,
		.known = preload_device_find(device),
	};
	if (special)
		ret->kind = special->kind;
	else if (ret->known && is_ours(ret->known, device))
		ret->kind = PRELOAD_DAX_FILE;
}

void preload_classify(int fd, bool filesystem, struct preload_file *ret)
{
	const struct special *special;
	struct statx stx;

	*ret = (struct preload_file){ .kind = PRELOAD_NONE };
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stx) < 0)
		return;
	ret->device = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	ret->inode = stx.stx_ino;
	special = filesystem ? NULL : find_special(ret->device, ret->inode);
	if (S_ISCHR(stx.stx_mode) && !filesystem && is_dax_device(makedev(stx.stx_rdev_major, stx.stx_rdev_minor))) {
		/* That is no right to it, as the kernel will say. */
		if (fcntl(fd, F_GETFL) & O_PATH)
			return;
		ret->kind = PRELOAD_DAX_DEVICE;
		if (!special)
			add_special(PRELOAD_DAX_DEVICE, ret->device, ret->inode, 0);
	} else if (S_ISREG(stx.stx_mode) && special && special->kind == PRELOAD_EMULATED) {
		ret->kind = PRELOAD_EMULATED;
	} else if (filesystem ? !may_be_region(ret->device) : !(stx.stx_attributes & STATX_ATTR_DAX)) {
		ret->ordinary = S_ISREG(stx.stx_mode) && !filesystem;
		return;
	}
	ret->known = remember_device(ret->device);
	if (ret->kind == PRELOAD_NONE && is_ours(ret->known, ret->device))
		ret->kind = PRELOAD_DAX_FILE;
}

void preload_device_learn(const struct preload_file *file, uint64_t page)
{
	if (file->known && file->kind == PRELOAD_DAX_FILE)
		__atomic_store_n(&file->known->page, page, __ATOMIC_RELAXED);
}

void preload_device_dismiss(const struct preload_file *file)
{
	if (file->known && file->kind == PRELOAD_DAX_FILE)
		__atomic_store_n(&file->known->not_before, now_sec() + 1, __ATOMIC_RELAXED);
}

void preload_device_learn_synchronous(const struct preload_file *file)
{
	struct special *s = file->kind == PRELOAD_DAX_DEVICE ? find_special(file->device, file->inode) : NULL;

	if (s && __atomic_load_n(&s->mapped, __ATOMIC_ACQUIRE) &&
	    !__atomic_exchange_n(&s->synchronous, 1, __ATOMIC_ACQ_REL))
		__atomic_fetch_sub(&n_mapped, 1, __ATOMIC_RELEASE);
}

/* ---- losses ---- */

/* NULL: it isn't known which, or it can't be read: `ret_known`. */
static const struct pmem_agent_page *page_of(const struct preload_file *file, bool *ret_known)
{
	const struct special *s;
	uint64_t number = 0;

	if (file->kind == PRELOAD_EMULATED) {
		s = find_special(file->device, file->inode);
		number = s ? s->page : 0;
	} else if (file->known) {
		number = __atomic_load_n(&file->known->page, __ATOMIC_RELAXED);
	}
	*ret_known = number != 0;
	return number ? preload_page_find(directory, number) : NULL;
}

void preload_device_stick(const struct preload_file *file)
{
	const struct pmem_agent_page *page;
	uint64_t acknowledged = UINT64_MAX; /* without a page for ever */
	bool known;

	__atomic_store_n(&any_stuck, 1, __ATOMIC_RELAXED);
	if (!file->known) {
		__atomic_store_n(&any_unplaced, 1, __ATOMIC_RELEASE);
		return;
	}
	page = page_of(file, &known);
	if (page)
		acknowledged = __atomic_load_n(&page->agent.acknowledged, __ATOMIC_ACQUIRE);
	__atomic_store_n(&file->known->acknowledged, acknowledged, __ATOMIC_RELAXED);
	__atomic_store_n(&file->known->untold, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&file->known->stuck, 1, __ATOMIC_RELEASE);
}

bool preload_device_is_to_tell(const struct preload_file *file)
{
	return file->known && __atomic_load_n(&file->known->untold, __ATOMIC_RELAXED);
}

void preload_device_told(const struct preload_file *file)
{
	__atomic_store_n(&file->known->untold, 0, __ATOMIC_RELAXED);
}

bool preload_device_is_stuck(const struct preload_file *file)
{
	const struct pmem_agent_page *page;
	bool known;

	/* Where it could not be noted which one has failed, each of them may have; and so may one that is not noted. */
	if (__atomic_load_n(&any_unplaced, __ATOMIC_ACQUIRE))
		return true;
	if (!file->known)
		return __atomic_load_n(&any_stuck, __ATOMIC_RELAXED);
	if (!__atomic_load_n(&file->known->stuck, __ATOMIC_ACQUIRE))
		return false;
	page = page_of(file, &known);
	if (!page || pmem_agent_page_lost(page) != 0 ||
	    __atomic_load_n(&page->agent.acknowledged, __ATOMIC_ACQUIRE) <=
		__atomic_load_n(&file->known->acknowledged, __ATOMIC_RELAXED))
		return true;
	__atomic_store_n(&file->known->stuck, 0, __ATOMIC_RELEASE);
	return false;
}

bool preload_device_is_lost(const struct preload_file *file, bool settle)
{
	bool known;
	const struct pmem_agent_page *page = page_of(file, &known);

	if (!known)
		return preload_page_any_is_lost(directory, file->kind == PRELOAD_NONE, settle);
	return !page || preload_page_is_lost(page, settle);
}
