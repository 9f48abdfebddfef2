/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mounts: a sysfs and a mountinfo made up here, and descriptors of what is there
 */
#pragma once

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/mount-cache.h"

#define MNT_ID_BTRFS   120
#define MNT_ID_OVERLAY 121

static char root[] = "/tmp/test-mount.XXXXXX";
static char proc[64], sys[64];
static struct statx fake;
static int fake_calls;
static struct mount_cache *looked_up, *checked; /* as an agent has it, and as its worker */

/* Takes libc's place: what a descriptor is of is made up, and nothing but this one harmless call is allowed. */
int statx(int fd, const char *path, int flags, unsigned int mask, struct statx *st)
{
	assert_string_equal(path, "");
	assert_int_equal(flags, AT_EMPTY_PATH | AT_STATX_DONT_SYNC);
	assert_int_equal(mask & (STATX_SIZE | STATX_MTIME | STATX_ATIME | STATX_BLOCKS), 0);
	fake_calls++;
	*st = fake;
	return 0;
}

static inline void _printf_(2, 3) put(const char *text, const char *format, ...)
{
	char name[256], path[512];
	va_list args;
	FILE *f;

	va_start(args, format);
	vsnprintf(name, sizeof(name), format, args);
	va_end(args);
	snprintf(path, sizeof(path), "%s/%s", root, name);
	for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0755);
		*slash = '/';
	}
	f = fopen(path, "we");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static inline void make_link(const char *to, const char *name)
{
	char target[512], path[512];

	snprintf(target, sizeof(target), "%s/sys/devices/%s", root, to);
	snprintf(path, sizeof(path), "%s/sys/%s", root, name);
	assert_int_equal(symlink(target, path), 0);
}

/* A disk with its links; `path` is below /sys/devices. */
static inline void add_disk(const char *path, const char *devnum, const char *write_cache)
{
	const char *name = strrchr(path, '/') + 1;
	char link[128];

	put(devnum, "sys/devices/%s/dev", path);
	put(write_cache, "sys/devices/%s/queue/write_cache", path);
	put("", "sys/devices/%s/slaves/.keep", path);
	snprintf(link, sizeof(link), "dev/block/%.*s", (int)strcspn(devnum, "\n"), devnum);
	make_link(path, link);
	snprintf(link, sizeof(link), "class/block/%s", name);
	make_link(path, link);
}

static inline void add_slave(const char *disk, const char *slave)
{
	char path[256];

	snprintf(path, sizeof(path), "devices/%s/slaves/%s", disk, strrchr(slave, '/') + 1);
	make_link(slave, path);
}

static inline void add_partition(const char *path, const char *devnum)
{
	char link[128];

	put("1\n", "sys/devices/%s/partition", path);
	put(devnum, "sys/devices/%s/dev", path);
	snprintf(link, sizeof(link), "dev/block/%.*s", (int)strcspn(devnum, "\n"), devnum);
	make_link(path, link);
	snprintf(link, sizeof(link), "class/block/%s", strrchr(path, '/') + 1);
	make_link(path, link);
}

static inline void add_disks(void)
{
	add_disk("nd/block/pmem0", "259:0\n", "write back\n");
	add_partition("nd/block/pmem0/pmem0p1", "259:10\n");
	add_disk("nd/block/pmem1", "259:1\n", "write back\n");
	add_disk("nd/block/pmem2", "259:2\n", "write through\n");
	add_disk("ata/block/sda", "8:0\n", "write through\n");
	add_disk("ata/block/sdb", "8:16\n", "write back\n");

	/* dm-0 is over a partition of pmem0 and all of pmem1; dm-1 over it; dm-2 swallows flushes; dm-3 is mixed. */
	add_disk("virtual/block/dm-0", "253:0\n", "write back\n");
	add_slave("virtual/block/dm-0", "nd/block/pmem0/pmem0p1");
	add_slave("virtual/block/dm-0", "nd/block/pmem1");
	add_disk("virtual/block/dm-1", "253:1\n", "write back\n");
	add_slave("virtual/block/dm-1", "virtual/block/dm-0");
	put("vg-top\n", "sys/devices/virtual/block/dm-1/dm/name");
	add_disk("virtual/block/dm-2", "253:2\n", "write through\n");
	add_slave("virtual/block/dm-2", "nd/block/pmem1");
	add_disk("virtual/block/dm-3", "253:3\n", "write back\n");
	add_slave("virtual/block/dm-3", "nd/block/pmem0");
	add_slave("virtual/block/dm-3", "ata/block/sdb");

	/* dm-4 is over itself, as no kernel has it; dm-5 over more disks than are followed. */
	add_disk("virtual/block/dm-4", "253:4\n", "write back\n");
	add_slave("virtual/block/dm-4", "virtual/block/dm-4");
	add_disk("virtual/block/dm-5", "253:5\n", "write back\n");
	for (int i = 0; i < MOUNT_MAX_LEAVES + 1; i++) {
		char path[64], devnum[16];

		snprintf(path, sizeof(path), "nd/block/pmem%d", 100 + i);
		snprintf(devnum, sizeof(devnum), "259:%d\n", 100 + i);
		add_disk(path, devnum, "write back\n");
		add_slave("virtual/block/dm-5", path);
	}

	put("252:0\n", "sys/devices/nd/dax0.0/dev");
	put("", "sys/devices/bus/dax/.keep");
	make_link("bus/dax", "devices/nd/dax0.0/subsystem");
	make_link("nd/dax0.0", "dev/char/252:0");
	put("1:3\n", "sys/devices/virtual/mem/null/dev");
	put("", "sys/devices/class/mem/.keep");
	make_link("class/mem", "devices/virtual/mem/null/subsystem");
	make_link("virtual/mem/null", "dev/char/1:3");
}

static const char mountinfo[] =
    "22 27 0:21 / /proc rw - proc proc rw\n"
    "27 1 8:0 / / rw,relatime - ext4 /dev/sda rw\n"
    "30 27 259:0 / /mnt rw,relatime - ext4 /dev/pmem0 rw,dax=always\n"
    "31 27 259:0 /sub /bind ro,relatime - ext4 /dev/pmem0 rw,dax=always\n"
    "32 27 253:1 / /lvm rw - ext4 /dev/mapper/vg-top rw\n"
    "33 27 253:2 / /through rw - ext4 /dev/dm-2 rw\n"
    "34 27 253:3 / /mixed rw - ext4 /dev/dm-3 rw\n"
    "35 27 259:1 / /xfs rw - xfs /dev/pmem1 rw,attr2,inode64\n"
    "36 27 259:10 / /part rw - ext4 /dev/pmem0p1 rw\n"
    "37 27 253:5 / /wide rw - ext4 /dev/dm-5 rw\n"
    "38 27 253:9 / /vanished rw - ext4 /dev/dm-9 rw\n"
    "40 27 0:40 / /tmp rw - tmpfs tmpfs rw\n"
    "41 27 0:41 / /fuse rw - fuse.sshfs host:/ rw\n"
    "42 27 0:42 / /nfs rw - nfs4 host:/export rw\n"
    "43 27 0:43 / /btrfs rw - btrfs /dev/pmem0 rw,subvol=/\n"
    "44 27 8:16 / /ext2 rw - ext2 /dev/sdb rw\n"
    "45 27 8:0 / /over rw - ext4 /dev/sda rw\n"
    "46 27 259:0 / /over rw - ext4 /dev/pmem0 rw\n"
    "47 27 259:0 / /with\\040blank rw - ext4 /dev/pmem0 rw\n"
    "120 27 0:44 / /btrfs2 rw - btrfs /dev/pmem1 rw,subvol=/\n"
    "121 27 0:45 / /overlay rw - overlay overlay rw,lowerdir=/mnt,upperdir=/mnt/u,workdir=/mnt/w\n";

/* Where the kernel shows new options in both places, and tells of new mounts by poll(). */
static inline void set_mountinfo(const char *text)
{
	put(text, "proc/self/mountinfo");
	put(text, "proc/fs/ext4/pmem0/options");
	put(text, "proc/fs/ext4/pmem0p1/options");
	mount_cache_forget(looked_up);
}

static inline void fake_file(unsigned int type, unsigned int dev_major, unsigned int dev_minor, uint64_t inode)
{
	fake = (struct statx){ .stx_mode = type | 0644, .stx_ino = inode, .stx_mask = STATX_TYPE | STATX_INO };
	if (type == S_IFBLK || type == S_IFCHR) {
		fake.stx_rdev_major = dev_major;
		fake.stx_rdev_minor = dev_minor;
	} else {
		fake.stx_dev_major = dev_major;
		fake.stx_dev_minor = dev_minor;
	}
}

/* Looked up, then remembered, it is the same. */
static inline int resolve(enum mount_scope scope, struct target *t, char *detail)
{
	_cleanup_close_ int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct statx before = fake;
	char again[MOUNT_DETAIL_MAX];
	struct target remembered;
	int r;

	memset(t, 0xaa, sizeof(*t));
	detail[0] = '\0';
	r = mount_resolve_fd(fd, scope, t, detail);

	if (!(fake.stx_mask & STATX_MNT_ID)) {
		fake.stx_mask |= STATX_MNT_ID;
		fake.stx_mnt_id = 1000 + makedev(fake.stx_dev_major, fake.stx_dev_minor);
	}
	for (int i = 0; i < 2; i++) {
		memset(&remembered, 0xaa, sizeof(remembered));
		again[0] = '\0';
		assert_int_equal(mount_cache_resolve_fd(looked_up, fd, NULL, scope, &remembered, again), r);
		assert_string_equal(again, detail);
		assert_memory_equal(&remembered, t, sizeof(*t));
	}
	fake = before;
	return r;
}

/* So is what is found when it is looked at again. */
static inline int check(const struct target *t, char *detail)
{
	char again[MOUNT_DETAIL_MAX] = "";
	int r = mount_check(t, detail);

	for (int i = 0; i < 2; i++) {
		assert_int_equal(mount_cache_check(checked, t, again), r);
		if (r != 0)
			assert_string_equal(again, detail);
	}
	return r;
}

static inline void assert_has(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' is not in '%s'", part, text);
}

static inline void assert_leaves(const struct target *t, const char *names)
{
	char text[256] = "";

	for (unsigned int i = 0; i < t->n_leaves; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s", i ? " " : "", t->leaves[i].name);
	/* Two at most in these tests, in any order. */
	if (strcmp(text, names) != 0 && t->n_leaves == 2)
		snprintf(text, sizeof(text), "%s %s", t->leaves[1].name, t->leaves[0].name);
	assert_string_equal(text, names);
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline int set_up(void **state)
{
	static const char *const internal[] = { "pmem0-8", "pmem0p1-8", "pmem1-8", "sda-8", "dm-0-8",
						"dm-1-8",  "dm-2-8",    "dm-3-8",  "dm-5-8" };

	strcpy(root + strlen(root) - 6, "XXXXXX");
	if (!mkdtemp(root))
		return -1;
	snprintf(proc, sizeof(proc), "%s/proc", root);
	snprintf(sys, sizeof(sys), "%s/sys", root);
	mount_set_roots(proc, sys);
	put("", "sys/dev/block/.keep");
	put("", "sys/dev/char/.keep");
	put("", "sys/class/block/.keep");
	for (size_t i = 0; i < ARRAY_SIZE(internal); i++)
		put("", "proc/fs/jbd2/%s/info", internal[i]);
	for (size_t i = 0; i < ARRAY_SIZE(internal); i++) {
		char path[256];

		snprintf(path, sizeof(path), "%s/proc/fs/jbd2/%s/info", root, internal[i]);
		unlink(path);
	}
	add_disks();
	put("", "proc/self/mountinfo");
	looked_up = mount_cache_new();
	checked = mount_cache_new();
	assert_true(looked_up && checked);
	set_mountinfo(mountinfo);
	return 0;
}

static inline int tear_down(void **state)
{
	looked_up = mount_cache_free(looked_up);
	checked = mount_cache_free(checked);
	return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
