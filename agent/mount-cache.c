/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount-cache: what mount.c has found out, for as long as nothing has changed that it looked at
 */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "layers.h"
#include "mount-cache.h"
#include "mount-private.h"
#include "sysfs.h"

#define MAX_ENTRIES 8
#define MAX_OPTIONS (16 * 1024)
#define MAX_QUEUE   64
#define MAX_NUMBER  32

/* What shows that nothing has changed: a file, and what it said. */
struct evidence {
	int fd;
	char *text;
	size_t size;
};

struct entry {
	struct target target;
	uint64_t mount_id;              /* of the file that was looked up; 0: a block device */
	struct evidence options, queue; /* of those that were checked */
	int messages;                   /* likewise, the file that has their number; -1: none */
	bool checked;
	bool by_path; /* its source, where it is mounted */
};

struct mount_cache {
	int mounts;                         /* /proc/self/mountinfo: poll() tells once of each change */
	struct entry *entries[MAX_ENTRIES]; /* newest first */
};

/* ---- evidence ---- */

static int open_file(const char *path)
{
	return open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
}

static int open_mounts(void)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/self/mountinfo", mount_proc);
	return open_file(path);
}

/* ext4 shows its options in a small file of their own, every other filesystem in the table of mounts only. */
static int open_options(const struct target *t)
{
	_cleanup_free_ char *device =
	    sysfs_resolve("%s/dev/block/%u:%u", mount_sys, major(t->device), minor(t->device));
	char path[PATH_MAX];

	if (!device || strcmp(t->fstype, "ext4") != 0)
		return open_mounts();
	snprintf(path, sizeof(path), "%s/fs/ext4/%s/options", mount_proc, strrchr(device, '/') + 1);
	return open_file(path);
}

static int open_messages(const struct target *t)
{
	char path[PATH_MAX], name[64];

	if (strcmp(t->fstype, "ext4") != 0 || layers_get_name(mount_sys, t->device, name, sizeof(name)) < 0)
		return -1;
	snprintf(path, sizeof(path), "%s/fs/ext4/%s/msg_count", mount_sys, name);
	return open_file(path);
}

static int open_queue(dev_t disk)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/dev/block/%u:%u/queue/write_cache", mount_sys, major(disk), minor(disk));
	return open_file(path);
}

/* Whether `device` is the disk or a partition of it, and the disk is one that has nothing below it. */
static bool is_on_disk(dev_t device, dev_t disk)
{
	dev_t parent;

	if (device == disk)
		return true;
	return sysfs_exists("%s/dev/block/%u:%u/partition", mount_sys, major(device), minor(device)) &&
	       sysfs_read_devnum(&parent, "%s/dev/block/%u:%u/../dev", mount_sys, major(device), minor(device)) == 0 &&
	       parent == disk;
}

static ssize_t read_all(int fd, char *buffer, size_t size)
{
	size_t n = 0;
	ssize_t k;

	do {
		k = pread(fd, buffer + n, size - n, (off_t)n);
		if (k < 0)
			return -errno;
		n += (size_t)k;
	} while (k > 0 && n < size);
	return n < size ? (ssize_t)n : -EOVERFLOW;
}

static bool evidence_take(struct evidence *e, int fd, size_t max)
{
	ssize_t n;

	e->fd = fd;
	e->text = fd >= 0 ? malloc(max) : NULL;
	n = e->text ? read_all(fd, e->text, max) : -1;
	if (n <= 0)
		return false;
	e->size = (size_t)n;
	e->text = realloc(e->text, e->size) ?: e->text;
	return true;
}

static bool evidence_holds(const struct evidence *e, char *buffer, size_t size)
{
	return read_all(e->fd, buffer, size) == (ssize_t)e->size && memcmp(buffer, e->text, e->size) == 0;
}

static void evidence_drop(struct evidence *e)
{
	e->fd = safe_close(e->fd);
	free(e->text);
	e->text = NULL;
}

/* ---- memory ---- */

static struct entry *entry_free(struct entry *e)
{
	if (!e)
		return NULL;
	evidence_drop(&e->options);
	evidence_drop(&e->queue);
	safe_close(e->messages);
	free(e);
	return NULL;
}
DEFINE_CLEANUP(struct entry *, entry_free)

static struct entry *entry_new(const struct target *target)
{
	struct entry *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->target = *target;
	e->options.fd = e->queue.fd = e->messages = -1;
	return e;
}

struct mount_cache *mount_cache_new(void)
{
	struct mount_cache *c = calloc(1, sizeof(*c));

	if (c)
		c->mounts = open_mounts();
	return c;
}

struct mount_cache *mount_cache_free(struct mount_cache *c)
{
	if (!c)
		return NULL;
	mount_cache_forget(c);
	safe_close(c->mounts);
	free(c);
	return NULL;
}

void mount_cache_forget(struct mount_cache *c)
{
	for (unsigned int i = 0; i < MAX_ENTRIES; i++)
		c->entries[i] = entry_free(c->entries[i]);
}

/* Takes it over. The oldest goes. */
static void remember(struct mount_cache *c, struct entry *e)
{
	entry_free(c->entries[MAX_ENTRIES - 1]);
	memmove(&c->entries[1], &c->entries[0], (MAX_ENTRIES - 1) * sizeof(c->entries[0]));
	c->entries[0] = e;
}

/* Whether what is remembered may be used: the kernel tells each reader of the table once that it has changed. */
static bool is_current(struct mount_cache *c)
{
	struct pollfd p = { .fd = c->mounts, .events = POLLPRI };

	if (c->mounts < 0)
		return false;
	if (poll(&p, 1, 0) == 0)
		return true;
	mount_cache_forget(c);
	return !(p.revents & (POLLNVAL | POLLHUP));
}

/* ---- looking up ---- */

static bool is_same_place(const struct entry *e, const struct statx *st, bool region)
{
	bool block = S_ISBLK(st->stx_mode);

	return !e->checked && !e->by_path && e->mount_id == (block ? 0 : st->stx_mnt_id) &&
	       e->target.device == (block ? makedev(st->stx_rdev_major, st->stx_rdev_minor)
					  : makedev(st->stx_dev_major, st->stx_dev_minor)) &&
	       (block || region == (e->target.flush.scope == FLUSH_REGION));
}

int mount_cache_resolve_fd(struct mount_cache *c, int fd, const struct mount_file *expected, enum mount_scope scope,
			   struct target *ret, char detail[static MOUNT_DETAIL_MAX])
{
	struct statx st;
	struct entry *e;
	bool can;
	int r = mount_stat_fd(fd, expected, &st, detail);

	if (r != 0)
		return r;
	scope = mount_sound_scope(&st, scope);
	can = is_current(c) && (S_ISBLK(st.stx_mode) ? scope != MOUNT_SCOPE_FILESYSTEM
						     : !S_ISCHR(st.stx_mode) && st.stx_mask & STATX_MNT_ID);
	for (unsigned int i = 0; can && i < MAX_ENTRIES && c->entries[i]; i++) {
		if (!is_same_place(c->entries[i], &st, scope == MOUNT_SCOPE_REGION))
			continue;
		*ret = c->entries[i]->target;
		mount_set_flush(&st, scope, ret);
		return 0;
	}

	r = mount_resolve_stat(&st, scope, ret, detail);
	e = r == 0 && can ? entry_new(ret) : NULL;
	if (e) {
		e->mount_id = S_ISBLK(st.stx_mode) ? 0 : st.stx_mnt_id;
		remember(c, e);
	}
	return r;
}

int mount_cache_resolve_path(struct mount_cache *c, const char *path, struct target *ret,
			     char detail[static MOUNT_DETAIL_MAX])
{
	bool can = is_current(c);
	struct entry *e;
	int r;

	for (unsigned int i = 0; can && i < MAX_ENTRIES && c->entries[i]; i++) {
		if (!c->entries[i]->by_path || strcmp(c->entries[i]->target.source, path) != 0)
			continue;
		*ret = c->entries[i]->target;
		return 0;
	}
	r = mount_resolve_path(path, ret, detail);
	e = r == 0 && can && strcmp(ret->source, path) == 0 ? entry_new(ret) : NULL;
	if (e) {
		e->by_path = true;
		remember(c, e);
	}
	return r;
}

/* ---- checking ---- */

/*
 * Only where a disk, or a partition of it, is all that lies below: what is stacked can be restacked under a mounted
 * filesystem, and is looked at anew each time.
 */
static bool evidence_take_all(const struct mount_cache *c, struct entry *e)
{
	const struct target *t = &e->target;

	if (t->n_leaves != 1 || t->leaves[0].character || !is_on_disk(t->device, t->leaves[0].devnum))
		return false;
	if (!evidence_take(&e->queue, open_queue(t->leaves[0].devnum), MAX_QUEUE))
		return false;
	e->messages = open_messages(t);
	return !t->fstype[0] || evidence_take(&e->options, open_options(t), MAX_OPTIONS);
}

static bool is_same_target(const struct target *a, const struct target *b)
{
	return a->device == b->device && a->n_leaves == 1 && b->n_leaves == 1 &&
	       a->leaves[0].devnum == b->leaves[0].devnum && a->leaves[0].character == b->leaves[0].character &&
	       (a->flush.scope == FLUSH_REGION) == (b->flush.scope == FLUSH_REGION) &&
	       strcmp(a->fstype, b->fstype) == 0;
}

static bool is_unchanged(const struct entry *e)
{
	char buffer[MAX_OPTIONS];

	return evidence_holds(&e->queue, buffer, MAX_QUEUE) &&
	       (!e->target.fstype[0] || evidence_holds(&e->options, buffer, sizeof(buffer)));
}

int mount_cache_check(struct mount_cache *c, const struct target *target, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(entry_freep) struct entry *e = NULL;
	bool can = c && is_current(c);
	int r;

	for (unsigned int i = 0; can && i < MAX_ENTRIES && c->entries[i]; i++) {
		if (!c->entries[i]->checked || !is_same_target(&c->entries[i]->target, target))
			continue;
		if (is_unchanged(c->entries[i]))
			return 0;
		mount_cache_forget(c);
	}

	/* What shows a change is read first: one that comes while mount.c looks is seen the next time. */
	e = can ? entry_new(target) : NULL;
	if (e)
		e->checked = evidence_take_all(c, e);
	r = mount_check(target, detail);
	if (r == 0 && e && e->checked) {
		remember(c, e);
		e = NULL;
	}
	return r;
}

static uint64_t read_number(int fd)
{
	char text[MAX_NUMBER + 1];
	ssize_t n = fd >= 0 ? read_all(fd, text, MAX_NUMBER) : -1;

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return 1 + strtoull(text, NULL, 10);
}

static struct entry *find_checked(const struct mount_cache *c, const struct target *target)
{
	for (unsigned int i = 0; c && i < MAX_ENTRIES && c->entries[i]; i++)
		if (c->entries[i]->checked && is_same_target(&c->entries[i]->target, target))
			return c->entries[i];
	return NULL;
}

uint64_t mount_cache_count(const struct mount_cache *c, const struct target *target)
{
	const struct entry *e = find_checked(c, target);
	uint64_t count = e ? read_number(e->messages) : 0;
	_cleanup_close_ int fd = -1;

	if (count != 0)
		return count;
	/* What was opened before it was unmounted, and mounted again, can't be read any more. */
	fd = open_messages(target);
	return read_number(fd);
}
