/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount: from a descriptor or a mount point to a target and the leaf devices below it
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <libmount/libmount.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "layers.h"
#include "mount-private.h"
#include "sysfs.h"

const char *mount_proc = "/proc", *mount_sys = "/sys";

void mount_set_roots(const char *proc, const char *sys)
{
	mount_proc = proc;
	mount_sys = sys;
}

static struct libmnt_table *table_free(struct libmnt_table *table)
{
	mnt_unref_table(table);
	return NULL;
}
DEFINE_CLEANUP(struct libmnt_table *, table_free)

static struct libmnt_iter *iter_free(struct libmnt_iter *iter)
{
	mnt_free_iter(iter);
	return NULL;
}
DEFINE_CLEANUP(struct libmnt_iter *, iter_free)

static DIR *close_directory(DIR *d)
{
	closedir(d);
	return NULL;
}
DEFINE_CLEANUP(DIR *, close_directory)

static int _printf_(3, 4) explain(char *detail, int answer, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(detail, MOUNT_DETAIL_MAX, format, args);
	va_end(args);
	return answer;
}

/*
 * The file is parsed without a cache and without utab: libmount then looks at no mount point, and at nothing that a
 * stuck filesystem could hold up.
 */
static int read_mounts(struct libmnt_table **ret)
{
	_cleanup_(table_freep) struct libmnt_table *table = mnt_new_table();
	_cleanup_free_ char *path = NULL;
	int e;

	if (!table || asprintf(&path, "%s/self/mountinfo", mount_proc) < 0)
		return -ENOMEM;
	e = mnt_table_parse_file(table, path);
	if (e != 0)
		return e < 0 ? e : -EIO;
	*ret = table;
	table = NULL;
	return 0;
}

/* ---- filesystems ---- */

/* Whether the journal of the ext4 on the device `name` is one of its own files, as jbd2's names of journals tell. */
static bool has_internal_journal(const char *entry, const char *name)
{
	size_t n = strlen(name);

	return strncmp(entry, name, n) == 0 && entry[n] == '-' && entry[n + 1] &&
	       !entry[n + 1 + strspn(entry + n + 1, "0123456789")];
}

/*
 * Nothing names the journal's device of a mounted ext4. /proc/fs/jbd2 has an entry for each journal in use:
 * DEVICE-INODE for one inside a filesystem, DEVICE for an external one. So if there is just one external journal, and
 * ours is not inside, it is that one.
 */
static int add_ext4_journal(struct libmnt_fs *fs, dev_t device, struct layers *l, char *detail)
{
	_cleanup_(close_directoryp) DIR *d = NULL;
	_cleanup_free_ char *path = NULL;
	char name[64], task[32];
	unsigned int n_external = 0;
	dev_t external = 0, found;
	struct dirent *entry;
	int e;

	e = layers_get_name(mount_sys, device, name, sizeof(name));
	if (e < 0)
		return e;
	if (asprintf(&path, "%s/fs/jbd2", mount_proc) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	d = opendir(path);
	while (d && (entry = readdir(d))) {
		if (has_internal_journal(entry->d_name, name))
			return 0;
		if (sysfs_read_devnum(&found, "%s/class/block/%s/dev", mount_sys, entry->d_name) < 0)
			continue;
		external = found;
		n_external++;
	}
	if (sysfs_read(task, sizeof(task), "%s/fs/ext4/%s/journal_task", mount_sys, name) == 0 &&
	    strcmp(task, "<none>") == 0)
		return 0;
	if (n_external == 1)
		return layers_add(l, mount_sys, external, detail);
	return explain(detail, PMEM_AGENT_FILESYSTEM,
		       "the journal of the ext4 at %.100s is on another device, and the agent can't tell which; "
		       "an internal journal would do",
		       mnt_fs_get_target(fs));
}

static int add_xfs_devices(struct libmnt_fs *fs, dev_t device, struct layers *l, char *detail)
{
	static const char *const options[] = { "logdev", "rtdev" };
	char node[64], *value;
	size_t n;
	dev_t found;
	int r;

	for (unsigned int i = 0; i < ARRAY_SIZE(options); i++) {
		if (mnt_optstr_get_option(mnt_fs_get_fs_options(fs), options[i], &value, &n) != 0)
			continue;
		snprintf(node, sizeof(node), "%.*s", (int)n, value ? value : "");
		if (n >= sizeof(node) || layers_find_device(mount_sys, node, &found) < 0)
			return explain(detail, PMEM_AGENT_FILESYSTEM,
				       "the agent doesn't know the device that %s=%s of the XFS at %.80s is; "
				       "mount it with /dev/mapper/NAME or the kernel's name",
				       options[i], node, mnt_fs_get_target(fs));
		r = layers_add(l, mount_sys, found, detail);
		if (r != 0)
			return r;
	}
	return 0;
}

/* The filesystems that we know to flush; every other is refused by name. */
static const struct filesystem {
	const char *name;
	bool syncfs_is_enough;
	int (*add_devices)(struct libmnt_fs *fs, dev_t device, struct layers *l, char *detail);
} filesystems[] = {
	{ "ext4", true, add_ext4_journal },
	{ "xfs", false, add_xfs_devices }, /* syncfs of a clean log may send nothing */
};

static const struct filesystem *find_filesystem(const char *name)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(filesystems); i++) {
		if (strcmp(filesystems[i].name, name) == 0)
			return &filesystems[i];
	}
	return NULL;
}

/* Options of the superblock with which a flush succeeds and nothing reaches the disk. A read-only bind mount is fine.
 */
static int check_options(struct libmnt_fs *fs, char *detail)
{
	static const struct {
		const char *option, *value, *remedy;
	} unflushed[] = {
		{ "ro", NULL, "is read-only, so nothing flushes it; mount it read-write" },
		{ "emergency_ro", NULL, "was set read-only after an error; check and repair it" },
		{ "shutdown", NULL, "has been shut down; unmount, check and mount it again" },
		{ "nobarrier", NULL, "is mounted nobarrier; mount it with barriers" },
		{ "barrier", "0", "is mounted barrier=0; mount it with barriers" },
	};
	char *value;
	size_t n;

	for (unsigned int i = 0; i < ARRAY_SIZE(unflushed); i++) {
		if (mnt_optstr_get_option(mnt_fs_get_fs_options(fs), unflushed[i].option, &value, &n) != 0)
			continue;
		if (unflushed[i].value &&
		    (!value || n != strlen(unflushed[i].value) || strncmp(value, unflushed[i].value, n) != 0))
			continue;
		return explain(detail, PMEM_AGENT_UNFLUSHED, "the %s at %.120s %s", mnt_fs_get_fstype(fs),
			       mnt_fs_get_target(fs), unflushed[i].remedy);
	}
	return 0;
}

/* ---- examining ---- */

static int check_layers(const struct layers *l, char *detail)
{
	if (!l->write_through[0])
		return 0;
	return explain(detail, PMEM_AGENT_UNFLUSHED,
		       "queue/write_cache of %s is not write back, so no flush reaches the host; mend it with: "
		       "echo \"write back\" > /sys/block/%s/queue/write_cache",
		       l->write_through, l->write_through);
}

/* A filesystem without a block device of its own. */
static int examine_anonymous(struct libmnt_fs *fs, struct layers *l, char *detail)
{
	const char *type = mnt_fs_get_fstype(fs), *source = mnt_fs_get_srcpath(fs);
	dev_t device;

	if (strcmp(type, "overlay") == 0)
		return explain(detail, PMEM_AGENT_FILESYSTEM,
			       "overlay at %.120s hides which filesystem holds the file; flush the filesystem below it",
			       mnt_fs_get_target(fs));
	if (!source || strncmp(source, "/dev/", strlen("/dev/")) != 0)
		return explain(detail, PMEM_AGENT_ORDINARY, "%.60s at %.120s is on no block device", type,
			       mnt_fs_get_target(fs));
	/* Btrfs and the like; the source is one of its devices. It is refused in any case, so a failure is no matter.
	 */
	if (layers_find_device(mount_sys, source, &device) == 0)
		layers_add(l, mount_sys, device, detail);
	return explain(detail, PMEM_AGENT_FILESYSTEM,
		       "%.60s at %.120s is none that the agent can flush; ext4 and XFS are", type,
		       mnt_fs_get_target(fs));
}

/*
 * The layers below a filesystem, and whether flushes get through them. `fs` is its entry in mountinfo, NULL if
 * there is none. A region is flushed below the filesystem, so it is none of its business what the options are.
 */
static int examine_filesystem(struct libmnt_fs *fs, const struct target *t, struct layers *l, char *detail)
{
	const struct filesystem *known = fs ? find_filesystem(mnt_fs_get_fstype(fs)) : NULL;
	int r;

	if (fs && (major(t->device) == 0 || mnt_fs_get_devno(fs) != t->device))
		return examine_anonymous(fs, l, detail);
	r = major(t->device) ? layers_add(l, mount_sys, t->device, detail) : 0;
	if (!fs)
		return explain(detail, PMEM_AGENT_FILESYSTEM,
			       "device %u:%u belongs to a filesystem that is not mounted where the agent can see it%s",
			       major(t->device), minor(t->device),
			       major(t->device) ? "" : ", or hides its number, as btrfs and overlay do");
	if (!known)
		return explain(detail, PMEM_AGENT_FILESYSTEM,
			       "%.60s at %.120s is none that the agent can flush; ext4 and XFS are",
			       mnt_fs_get_fstype(fs), mnt_fs_get_target(fs));
	if (r == 0)
		r = known->add_devices(fs, t->device, l, detail);
	if (r == 0 && t->flush.scope != FLUSH_REGION)
		r = check_options(fs, detail);
	return r != 0 ? r : check_layers(l, detail);
}

static struct libmnt_fs *find_by_id(struct libmnt_table *table, uint64_t id)
{
	_cleanup_(iter_freep) struct libmnt_iter *iter = mnt_new_iter(MNT_ITER_FORWARD);
	struct libmnt_fs *fs;

	while (iter && mnt_table_next_fs(table, iter, &fs) == 0) {
		if ((uint64_t)mnt_fs_get_id(fs) == id)
			return fs;
	}
	return NULL;
}

/* Whether `ret` of a resolving call is filled in, see mount.h. */
static bool is_resolved(int r)
{
	return r == 0 || r == PMEM_AGENT_FILESYSTEM || r == PMEM_AGENT_UNFLUSHED || r == PMEM_AGENT_ORDINARY;
}

static int resolve_filesystem(struct libmnt_fs *fs, struct target *t, struct target *ret, char *detail)
{
	struct layers l = { .n_leaves = 0 };
	const struct filesystem *known = NULL;
	int r;

	r = examine_filesystem(fs, t, &l, detail);
	if (!is_resolved(r))
		return r;
	if (fs) {
		known = find_filesystem(mnt_fs_get_fstype(fs));
		snprintf(t->source, sizeof(t->source), "%s", mnt_fs_get_target(fs));
		snprintf(t->fstype, sizeof(t->fstype), "%s", mnt_fs_get_fstype(fs));
	} else {
		snprintf(t->source, sizeof(t->source), "%u:%u", major(t->device), minor(t->device));
		snprintf(t->fstype, sizeof(t->fstype), "unknown");
	}
	t->syncfs_is_enough = known && known->syncfs_is_enough;
	memcpy(t->leaves, l.leaves, sizeof(t->leaves));
	t->n_leaves = l.n_leaves;
	*ret = *t;
	return r;
}

/* ---- descriptors ---- */

/* What was stored in a file that is not DAX may be in the page cache, which a flush of the memory does not write. */
enum mount_scope mount_sound_scope(const struct statx *st, enum mount_scope scope)
{
	return scope == MOUNT_SCOPE_REGION && S_ISREG(st->stx_mode) && !(st->stx_attributes & STATX_ATTR_DAX)
		   ? MOUNT_SCOPE_FILE_DATA
		   : scope;
}

/* Of a file, a directory or a block device: what a flush of it is for. */
void mount_set_flush(const struct statx *st, enum mount_scope scope, struct target *t)
{
	bool block = S_ISBLK(st->stx_mode);

	if (scope == MOUNT_SCOPE_AUTO) {
		bool region = block && t->n_leaves == 1 && t->leaves[0].devnum == t->device;

		scope = S_ISDIR(st->stx_mode) ? MOUNT_SCOPE_FILESYSTEM : region ? MOUNT_SCOPE_REGION : MOUNT_SCOPE_FILE;
	}
	scope = mount_sound_scope(st, scope);
	t->flush = (struct flush_target){ .scope = scope == MOUNT_SCOPE_FILE         ? FLUSH_FILE
						   : scope == MOUNT_SCOPE_FILE_DATA  ? FLUSH_FILE_DATA
						   : scope == MOUNT_SCOPE_FILESYSTEM ? FLUSH_FILESYSTEM
										     : FLUSH_REGION };
	if (t->flush.scope != FLUSH_REGION)
		t->flush.device = t->device;
	if (!block && (t->flush.scope == FLUSH_FILE || t->flush.scope == FLUSH_FILE_DATA))
		t->flush.inode = st->stx_ino;
}

static int resolve_file(const struct statx *st, enum mount_scope scope, struct target *ret, char *detail)
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	struct target t = { .device = makedev(st->stx_dev_major, st->stx_dev_minor) };
	struct libmnt_fs *fs;
	int e;

	mount_set_flush(st, scope, &t);
	e = read_mounts(&table);
	if (e < 0)
		return e;
	/* The mount's number first: st_dev of a file on btrfs or overlay is in no mountinfo. */
	fs = st->stx_mask & STATX_MNT_ID ? find_by_id(table, st->stx_mnt_id) : NULL;
	if (!fs)
		fs = mnt_table_find_devno(table, t.device, MNT_ITER_BACKWARD);
	return resolve_filesystem(fs, &t, ret, detail);
}

static int resolve_block(const struct statx *st, enum mount_scope scope, struct target *ret, char *detail)
{
	struct target t = { .device = makedev(st->stx_rdev_major, st->stx_rdev_minor) };
	struct layers l = { .n_leaves = 0 };
	int r;

	if (scope == MOUNT_SCOPE_FILESYSTEM)
		return explain(detail, PMEM_AGENT_REFUSED, "a device is no filesystem; name its mount point instead");
	r = layers_add(&l, mount_sys, t.device, detail);
	if (r == 0)
		r = layers_get_name(mount_sys, t.device, t.source, sizeof(t.source));
	if (r != 0)
		return r;
	memcpy(t.leaves, l.leaves, sizeof(t.leaves));
	t.n_leaves = l.n_leaves;
	mount_set_flush(st, scope, &t);
	r = check_layers(&l, detail);
	*ret = t;
	return r;
}

static int resolve_dax(const struct statx *st, enum mount_scope scope, struct target *ret, char *detail)
{
	struct target t = {
		.device = makedev(st->stx_rdev_major, st->stx_rdev_minor),
		.flush.scope = FLUSH_REGION,
		.n_leaves = 1,
		.leaves = { { .devnum = makedev(st->stx_rdev_major, st->stx_rdev_minor), .character = true } },
	};
	_cleanup_free_ char *path = sysfs_resolve("%s/dev/char/%u:%u", mount_sys, major(t.device), minor(t.device));
	_cleanup_free_ char *subsystem = path ? sysfs_resolve("%s/subsystem", path) : NULL;

	if (!subsystem || strcmp(strrchr(subsystem, '/'), "/dax") != 0)
		return explain(detail, PMEM_AGENT_REFUSED,
			       "character device %u:%u is no device-dax; the agent flushes files, filesystems, block "
			       "devices and device-dax",
			       major(t.device), minor(t.device));
	if (scope == MOUNT_SCOPE_FILESYSTEM)
		return explain(detail, PMEM_AGENT_REFUSED, "a device is no filesystem; name its mount point instead");
	snprintf(t.leaves[0].name, sizeof(t.leaves[0].name), "%s", strrchr(path, '/') + 1);
	snprintf(t.source, sizeof(t.source), "%s", t.leaves[0].name);
	*ret = t;
	return 0;
}

static bool is_file(const struct statx *st, const struct mount_file *file)
{
	return makedev(st->stx_dev_major, st->stx_dev_minor) == file->device && st->stx_ino == file->inode;
}

int mount_stat_fd(int fd, const struct mount_file *expected, struct statx *ret, char detail[static MOUNT_DETAIL_MAX])
{
	int flags;

	/* Both look at nothing but the kernel's own memory, whatever the descriptor is of. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO | STATX_MNT_ID, ret) < 0)
		return -errno;
	if (expected && !is_file(ret, expected))
		return -ESTALE;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return -errno;
	/* Such a descriptor proves no right to the file either. */
	if (flags & O_PATH)
		return explain(detail, PMEM_AGENT_REFUSED,
			       "the descriptor was opened with O_PATH; open it for reading or writing");
	return 0;
}

int mount_resolve_stat(const struct statx *st, enum mount_scope scope, struct target *ret,
		       char detail[static MOUNT_DETAIL_MAX])
{
	switch (st->stx_mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
		return resolve_file(st, scope, ret, detail);
	case S_IFBLK:
		return resolve_block(st, scope, ret, detail);
	case S_IFCHR:
		return resolve_dax(st, scope, ret, detail);
	default:
		return explain(detail, PMEM_AGENT_REFUSED,
			       "the descriptor is of a pipe, socket or the like; the agent flushes files, filesystems, "
			       "block devices and device-dax");
	}
}

int mount_resolve_fd(int fd, enum mount_scope scope, struct target *ret, char detail[static MOUNT_DETAIL_MAX])
{
	struct statx st;
	int r = mount_stat_fd(fd, NULL, &st, detail);

	return r != 0 ? r : mount_resolve_stat(&st, scope, ret, detail);
}

/* ---- paths ---- */

int mount_resolve_path(const char *path, struct target *ret, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	struct target t = { .flush.scope = FLUSH_FILESYSTEM };
	struct libmnt_fs *fs;
	int e;

	if (path[0] != '/')
		return explain(detail, PMEM_AGENT_REFUSED, "'%.160s' is not an absolute path", path);
	e = read_mounts(&table);
	if (e < 0)
		return e;
	/* The last one is on top of those before it. Slashes too many are passed over, nothing else is. */
	fs = mnt_table_find_target(table, path, MNT_ITER_BACKWARD);
	if (!fs)
		return explain(detail, PMEM_AGENT_NOT_FOUND,
			       "nothing is mounted at %.160s; findmnt --target tells the mount point", path);
	/* A worker opens it by that name. */
	if (strlen(mnt_fs_get_target(fs)) >= sizeof(t.source))
		return explain(detail, PMEM_AGENT_REFUSED,
			       "the mount point's name is longer than %zu bytes; pass a descriptor",
			       sizeof(t.source) - 1);
	t.device = mnt_fs_get_devno(fs);
	t.flush.device = t.device;
	return resolve_filesystem(fs, &t, ret, detail);
}

/* udev names the device of each. */
static int find_uuid_device(const char *uuid, dev_t *ret, char detail[static MOUNT_DETAIL_MAX])
{
	char path[64];
	struct stat st;

	if (!uuid[0] || uuid[strspn(uuid, "0123456789abcdefABCDEF-")])
		return explain(detail, PMEM_AGENT_REFUSED, "'%.40s' is no UUID", uuid);
	snprintf(path, sizeof(path), "/dev/disk/by-uuid/%.40s", uuid);
	for (char *c = path; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	if (stat(path, &st) < 0 || !S_ISBLK(st.st_mode))
		return explain(detail, PMEM_AGENT_NOT_FOUND, "no device has a filesystem with the UUID %.40s", uuid);
	*ret = st.st_rdev;
	return 0;
}

int mount_find_uuid(const char *uuid, char *ret, size_t size, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	struct libmnt_iter *iter;
	struct libmnt_fs *fs;
	bool found = false;
	dev_t device = 0;
	int r = find_uuid_device(uuid, &device, detail);

	if (r == 0)
		r = read_mounts(&table);
	if (r != 0)
		return r;
	iter = mnt_new_iter(MNT_ITER_FORWARD);
	if (!iter)
		return -ENOMEM;
	/* One that another mount covers is not what its path leads to. */
	while (!found && mnt_table_next_fs(table, iter, &fs) == 0)
		found = mnt_fs_get_devno(fs) == device && strlen(mnt_fs_get_target(fs)) < size &&
			mnt_table_find_target(table, mnt_fs_get_target(fs), MNT_ITER_BACKWARD) == fs;
	if (found)
		snprintf(ret, size, "%s", mnt_fs_get_target(fs));
	mnt_free_iter(iter);
	return found ? 0
		     : explain(detail, PMEM_AGENT_NOT_FOUND, "the filesystem with the UUID %.40s is not mounted", uuid);
}

/* ---- before and after a round ---- */

int mount_check(const struct target *target, char detail[static MOUNT_DETAIL_MAX])
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	struct layers l = { .look_at_queues = true };
	struct libmnt_fs *fs;
	int r;

	/* A region that is not flushed through a block device. */
	if (!target->fstype[0] && (target->n_leaves == 0 || target->leaves[0].character))
		return 0;
	if (target->fstype[0]) {
		r = read_mounts(&table);
		if (r < 0)
			return r;
		fs = mnt_table_find_devno(table, target->device, MNT_ITER_BACKWARD);
		r = examine_filesystem(fs, target, &l, detail);
	} else {
		r = layers_add(&l, mount_sys, target->device, detail);
		if (r == 0)
			r = check_layers(&l, detail);
	}
	if (r == 0 && !layers_equal(l.leaves, l.n_leaves, target->leaves, target->n_leaves))
		return explain(detail, PMEM_AGENT_UNKNOWN, "%s is on other devices than before", target->source);
	return r;
}

/* ---- for people ---- */

int mount_get_options(const struct target *target, char *ret, size_t size)
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	struct libmnt_fs *fs;
	int e = read_mounts(&table);

	if (e < 0)
		return e;
	fs = mnt_table_find_devno(table, target->device, MNT_ITER_BACKWARD);
	if (!fs)
		return -ENOENT;
	snprintf(ret, size, "%s", mnt_fs_get_fs_options(fs) ?: "");
	return 0;
}

int mount_get_point(unsigned int i, char *ret, size_t size)
{
	_cleanup_(table_freep) struct libmnt_table *table = NULL;
	_cleanup_(iter_freep) struct libmnt_iter *iter = mnt_new_iter(MNT_ITER_FORWARD);
	struct libmnt_fs *fs;
	int e = read_mounts(&table);

	if (e < 0 || !iter)
		return e < 0 ? e : -ENOMEM;
	while (mnt_table_next_fs(table, iter, &fs) == 0) {
		if (major(mnt_fs_get_devno(fs)) == 0 || i-- > 0)
			continue;
		if (strlen(mnt_fs_get_target(fs)) >= size)
			return -ENAMETOOLONG;
		strcpy(ret, mnt_fs_get_target(fs));
		return 0;
	}
	return -ENOENT;
}
