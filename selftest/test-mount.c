/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-mount: from descriptors and mount points to leaves, in a sysfs and a mountinfo made up here
 */
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

static void _printf_(2, 3) put(const char *text, const char *format, ...)
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

static void make_link(const char *to, const char *name)
{
	char target[512], path[512];

	snprintf(target, sizeof(target), "%s/sys/devices/%s", root, to);
	snprintf(path, sizeof(path), "%s/sys/%s", root, name);
	assert_int_equal(symlink(target, path), 0);
}

/* A disk with its links; `path` is below /sys/devices. */
static void add_disk(const char *path, const char *devnum, const char *write_cache)
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

static void add_slave(const char *disk, const char *slave)
{
	char path[256];

	snprintf(path, sizeof(path), "devices/%s/slaves/%s", disk, strrchr(slave, '/') + 1);
	make_link(slave, path);
}

static void add_partition(const char *path, const char *devnum)
{
	char link[128];

	put("1\n", "sys/devices/%s/partition", path);
	put(devnum, "sys/devices/%s/dev", path);
	snprintf(link, sizeof(link), "dev/block/%.*s", (int)strcspn(devnum, "\n"), devnum);
	make_link(path, link);
	snprintf(link, sizeof(link), "class/block/%s", strrchr(path, '/') + 1);
	make_link(path, link);
}

static void add_disks(void)
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
static void set_mountinfo(const char *text)
{
	put(text, "proc/self/mountinfo");
	put(text, "proc/fs/ext4/pmem0/options");
	put(text, "proc/fs/ext4/pmem0p1/options");
	mount_cache_forget(looked_up);
}

static void fake_file(unsigned int type, unsigned int dev_major, unsigned int dev_minor, uint64_t inode)
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
static int resolve(enum mount_scope scope, struct target *t, char *detail)
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
static int check(const struct target *t, char *detail)
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

static void assert_has(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' is not in '%s'", part, text);
}

static void assert_leaves(const struct target *t, const char *names)
{
	char text[256] = "";

	for (unsigned int i = 0; i < t->n_leaves; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s", i ? " " : "", t->leaves[i].name);
	/* Two at most in these tests, in any order. */
	if (strcmp(text, names) != 0 && t->n_leaves == 2)
		snprintf(text, sizeof(text), "%s %s", t->leaves[1].name, t->leaves[0].name);
	assert_string_equal(text, names);
}

static void test_file(void **state)
{
	static const struct {
		enum mount_scope scope;
		unsigned int type;
		struct flush_target flush;
		bool dax;
	} rows[] = {
		{ MOUNT_SCOPE_AUTO, S_IFREG, { FLUSH_FILE, 1, 1 } },
		{ MOUNT_SCOPE_FILE, S_IFREG, { FLUSH_FILE, 1, 1 }, true },
		{ MOUNT_SCOPE_FILE_DATA, S_IFREG, { FLUSH_FILE_DATA, 1, 1 } },
		{ MOUNT_SCOPE_FILESYSTEM, S_IFREG, { FLUSH_FILESYSTEM, 1, 0 } },
		{ MOUNT_SCOPE_REGION, S_IFREG, { FLUSH_REGION, 0, 0 }, true },
		/* Its stores may be in the page cache. */
		{ MOUNT_SCOPE_REGION, S_IFREG, { FLUSH_FILE_DATA, 1, 1 } },
		{ MOUNT_SCOPE_AUTO, S_IFDIR, { FLUSH_FILESYSTEM, 1, 0 } },
		{ MOUNT_SCOPE_FILE, S_IFDIR, { FLUSH_FILE, 1, 1 } },
	};
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		fake_file(rows[i].type, 259, 0, 12);
		fake.stx_attributes = rows[i].dax ? STATX_ATTR_DAX : 0;
		assert_int_equal(resolve(rows[i].scope, &t, detail), 0);
		assert_int_equal(t.flush.scope, rows[i].flush.scope);
		assert_int_equal(t.flush.device, rows[i].flush.device ? makedev(259, 0) : 0);
		assert_int_equal(t.flush.inode, rows[i].flush.inode ? 12 : 0);
		assert_int_equal(t.device, makedev(259, 0));
		assert_string_equal(t.fstype, "ext4");
		assert_true(t.syncfs_is_enough);
		assert_leaves(&t, "pmem0");
		assert_int_equal(t.leaves[0].devnum, makedev(259, 0));
		assert_false(t.leaves[0].character);
		assert_int_equal(check(&t, detail), 0);
	}
}

/* st_dev of these says nothing, or too much; the number of the mount tells what they are. */
static void test_mount_id(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	fake_file(S_IFREG, 0, 77, 12);
	fake.stx_mask |= STATX_MNT_ID;
	fake.stx_mnt_id = MNT_ID_BTRFS;
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_FILESYSTEM);
	assert_has(detail, "btrfs at /btrfs2");
	assert_leaves(&t, "pmem1");

	/* An overlay may show the number of the filesystem below it. */
	fake_file(S_IFREG, 259, 0, 12);
	fake.stx_mask |= STATX_MNT_ID;
	fake.stx_mnt_id = MNT_ID_OVERLAY;
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_FILESYSTEM);
	assert_has(detail, "overlay at /overlay hides");
	assert_int_equal(t.n_leaves, 0);
	fake.stx_mask &= ~STATX_MNT_ID;
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
}

static void test_layers(void **state)
{
	static const struct {
		unsigned int major, minor;
		int answer;
		const char *leaves, *detail;
	} rows[] = {
		{ 253, 1, 0, "pmem0 pmem1", "" },
		{ 253, 3, 0, "pmem0 sdb", "" },
		{ 259, 10, 0, "pmem0", "" },
		{ 253, 2, 0, "pmem1", "" },
		{ 8, 0, 0, "sda", "" },
		{ 253, 5, PMEM_AGENT_REFUSED, NULL, "too many devices" },
		{ 253, 9, PMEM_AGENT_GONE, NULL, "253:9" },
	};
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		fake_file(S_IFDIR, rows[i].major, rows[i].minor, 2);
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), rows[i].answer);
		assert_has(detail, rows[i].detail);
		if (rows[i].leaves)
			assert_leaves(&t, rows[i].leaves);
		else
			assert_int_equal(((unsigned char *)&t)[0], 0xaa);
	}
}

static void test_filesystems(void **state)
{
	static const struct {
		unsigned int major, minor;
		int answer;
		const char *leaves, *detail;
	} rows[] = {
		{ 0, 40, PMEM_AGENT_ORDINARY, "", "tmpfs at /tmp" },
		{ 0, 41, PMEM_AGENT_ORDINARY, "", "fuse.sshfs at /fuse" },
		{ 0, 42, PMEM_AGENT_ORDINARY, "", "nfs4 at /nfs" },
		{ 0, 43, PMEM_AGENT_FILESYSTEM, "pmem0", "btrfs at /btrfs is none that the agent can flush" },
		{ 0, 45, PMEM_AGENT_FILESYSTEM, "", "overlay at /overlay hides" },
		{ 0, 99, PMEM_AGENT_FILESYSTEM, "", "not mounted where the agent can see it" },
		{ 8, 16, PMEM_AGENT_FILESYSTEM, "sdb", "ext2 at /ext2" },
		{ 253, 0, PMEM_AGENT_FILESYSTEM, "pmem0 pmem1", "not mounted where" },
	};
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		fake_calls = 0;
		fake_file(S_IFREG, rows[i].major, rows[i].minor, 2);
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), rows[i].answer);
		assert_has(detail, rows[i].detail);
		assert_leaves(&t, rows[i].leaves);
		assert_int_equal(t.flush.device, makedev(rows[i].major, rows[i].minor));
		assert_int_equal(t.flush.inode, 2);
		assert_int_equal(fake_calls, 3);
	}
	fake_file(S_IFREG, 259, 1, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_string_equal(t.fstype, "xfs");
	assert_false(t.syncfs_is_enough);
}

static void test_options(void **state)
{
	static const struct {
		const char *fstype, *options;
		int answer;
		const char *detail;
	} rows[] = {
		{ "ext4", "rw", 0, "" },
		{ "ext4", "rw,errors=remount-ro,data=ordered", 0, "" },
		{ "ext4", "rw,barrier", 0, "" },
		{ "ext4", "rw,barrier=1", 0, "" },
		{ "ext4", "rw,nobarrier", PMEM_AGENT_UNFLUSHED, "nobarrier" },
		{ "ext4", "rw,barrier=0", PMEM_AGENT_UNFLUSHED, "barrier=0" },
		{ "ext4", "ro", PMEM_AGENT_UNFLUSHED, "the ext4 at /a is read-only" },
		{ "ext4", "rw,emergency_ro", PMEM_AGENT_UNFLUSHED, "after an error" },
		{ "ext4", "rw,shutdown", PMEM_AGENT_UNFLUSHED, "shut down" },
		{ "xfs", "rw,attr2", 0, "" },
		{ "xfs", "ro,attr2", PMEM_AGENT_UNFLUSHED, "the xfs at /a is read-only" },
		{ "xfs", "rw,nobarrier", PMEM_AGENT_UNFLUSHED, "nobarrier" },
	};
	char detail[MOUNT_DETAIL_MAX], line[256];
	struct target t, healthy;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		fake_file(S_IFDIR, 259, 0, 2);
		set_mountinfo("30 27 259:0 / /a rw - ext4 /dev/pmem0 rw\n");
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &healthy, detail), 0);

		/* Seen when resolving, and by a check of what was fine before. */
		snprintf(line, sizeof(line), "30 27 259:0 / /a rw - %s /dev/pmem0 %s\n", rows[i].fstype,
			 rows[i].options);
		set_mountinfo(line);
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), rows[i].answer);
		assert_has(detail, rows[i].detail);
		assert_leaves(&t, "pmem0");
		assert_int_equal(check(&healthy, detail), rows[i].answer);

		/* What is stored in the region's memory reaches the host whatever the filesystem does. */
		assert_int_equal(resolve(MOUNT_SCOPE_REGION, &t, detail), 0);
		assert_int_equal(check(&t, detail), 0);
	}
}

static void test_check_changes(void **state)
{
	char detail[MOUNT_DETAIL_MAX], path[256];
	struct target t, disk;

	fake_file(S_IFDIR, 253, 1, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	fake_file(S_IFBLK, 259, 0, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &disk, detail), 0);
	assert_int_equal(check(&t, detail), 0);
	assert_int_equal(check(&disk, detail), 0);

	put("write through\n", "sys/devices/nd/block/pmem0/queue/write_cache");
	assert_int_equal(check(&t, detail), PMEM_AGENT_UNFLUSHED);
	assert_has(detail, "echo \"write back\" > /sys/block/pmem0/queue/write_cache");
	assert_int_equal(check(&disk, detail), PMEM_AGENT_UNFLUSHED);
	put("write back\n", "sys/devices/nd/block/pmem0/queue/write_cache");

	/* The table of dm-0 was replaced. */
	snprintf(path, sizeof(path), "%s/sys/devices/virtual/block/dm-0/slaves/pmem1", root);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(check(&t, detail), PMEM_AGENT_UNKNOWN);
	assert_has(detail, "other devices");
	add_slave("virtual/block/dm-0", "ata/block/sdb");
	assert_int_equal(check(&t, detail), PMEM_AGENT_UNKNOWN);

	set_mountinfo("27 1 8:0 / / rw,relatime - ext4 /dev/sda rw\n");
	assert_int_equal(check(&t, detail), PMEM_AGENT_FILESYSTEM);
	snprintf(path, sizeof(path), "%s/sys/dev/block/259:0", root);
	assert_int_equal(unlink(path), 0);
	put("", "sys/devices/nd/block/pmem0/queue/write_cache"); /* can't be read any more */
	assert_int_equal(check(&disk, detail), PMEM_AGENT_GONE);
}

static void test_ext4_journal(void **state)
{
	char detail[MOUNT_DETAIL_MAX], path[256];
	struct target t;

	fake_file(S_IFDIR, 259, 10, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);

	/* Without a journal. */
	snprintf(path, sizeof(path), "%s/proc/fs/jbd2/pmem0p1-8", root);
	assert_int_equal(rmdir(path), 0);
	mount_cache_forget(looked_up); /* mounted anew */
	put("<none>\n", "sys/fs/ext4/pmem0p1/journal_task");
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_leaves(&t, "pmem0");

	/* With one, and nothing tells where: neither a name that only looks like ours, nor somebody's internal one. */
	mount_cache_forget(looked_up);
	put("1234\n", "sys/fs/ext4/pmem0p1/journal_task");
	snprintf(path, sizeof(path), "%s/proc/fs/jbd2/pmem0p1-x", root);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_FILESYSTEM);
	assert_has(detail, "the journal of the ext4 at /part is on another device");

	/* The only external one there is. */
	mount_cache_forget(looked_up);
	snprintf(path, sizeof(path), "%s/proc/fs/jbd2/sdb", root);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_leaves(&t, "pmem0 sdb");
	assert_int_equal(check(&t, detail), 0);

	/* One of two. */
	mount_cache_forget(looked_up);
	snprintf(path, sizeof(path), "%s/proc/fs/jbd2/pmem1", root);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_FILESYSTEM);
}

static void test_xfs_devices(void **state)
{
	static const struct {
		const char *options;
		int answer;
		const char *leaves;
	} rows[] = {
		{ "rw,logdev=/dev/pmem1", 0, "pmem0 pmem1" },
		{ "rw,rtdev=/dev/sdb,logbufs=8", 0, "pmem0 sdb" },
		{ "rw,logdev=/dev/pmem0p1", 0, "pmem0" },
		{ "rw,logdev=/dev/mapper/vg-top", 0, "pmem0 pmem1" },
		{ "rw,logdev=/dev/mapper/none", PMEM_AGENT_FILESYSTEM, "pmem0" },
		{ "rw,logdev=/dev/disk/by-id/x", PMEM_AGENT_FILESYSTEM, "pmem0" },
		{ "rw,rtdev=/srv/dev", PMEM_AGENT_FILESYSTEM, "pmem0" },
		{ "rw,logdev=/dev/dm-2", 0, "pmem0 pmem1" },
	};
	char detail[MOUNT_DETAIL_MAX], line[256];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		snprintf(line, sizeof(line), "30 27 259:0 / /a rw - xfs /dev/pmem0 %s\n", rows[i].options);
		set_mountinfo(line);
		fake_file(S_IFDIR, 259, 0, 2);
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), rows[i].answer);
		assert_leaves(&t, rows[i].leaves);
	}
}

/* What is remembered is used: nothing but the evidence is read, and any change of that is the end of it. */
static void test_memory(void **state)
{
	char detail[MOUNT_DETAIL_MAX], again[MOUNT_DETAIL_MAX];
	struct target t;
	int answer;

	fake_file(S_IFREG, 259, 0, 12);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_int_equal(mount_cache_check(checked, &t, detail), 0);
	put("", "proc/self/mountinfo");
	assert_int_equal(mount_cache_check(checked, &t, detail), 0);
	assert_int_equal(mount_check(&t, detail), PMEM_AGENT_FILESYSTEM);
	assert_int_equal(mount_cache_check(NULL, &t, detail), PMEM_AGENT_FILESYSTEM);

	put("rw\nbarrier\n", "proc/fs/ext4/pmem0/options");
	answer = mount_cache_check(checked, &t, again);
	assert_int_equal(answer, PMEM_AGENT_FILESYSTEM);
	assert_string_equal(again, detail);
	set_mountinfo(mountinfo);
	assert_int_equal(mount_cache_check(checked, &t, detail), 0);
	put("write through\n", "sys/devices/nd/block/pmem0/queue/write_cache");
	assert_int_equal(mount_cache_check(checked, &t, detail), PMEM_AGENT_UNFLUSHED);
}

static void test_block(void **state)
{
	static const struct {
		unsigned int major, minor;
		enum mount_scope scope;
		int check;
		enum flush_scope flush;
		const char *source, *leaves;
	} rows[] = {
		{ 259, 0, MOUNT_SCOPE_AUTO, 0, FLUSH_REGION, "pmem0", "pmem0" },
		{ 259, 0, MOUNT_SCOPE_FILE, 0, FLUSH_FILE, "pmem0", "pmem0" },
		{ 259, 10, MOUNT_SCOPE_AUTO, 0, FLUSH_FILE, "pmem0p1", "pmem0" },
		{ 259, 10, MOUNT_SCOPE_FILE_DATA, 0, FLUSH_FILE_DATA, "pmem0p1", "pmem0" },
		{ 259, 10, MOUNT_SCOPE_REGION, 0, FLUSH_REGION, "pmem0p1", "pmem0" },
		{ 253, 0, MOUNT_SCOPE_AUTO, 0, FLUSH_FILE, "dm-0", "pmem0 pmem1" },
		{ 253, 2, MOUNT_SCOPE_AUTO, PMEM_AGENT_UNFLUSHED, FLUSH_FILE, "dm-2", "pmem1" },
		{ 8, 0, MOUNT_SCOPE_AUTO, PMEM_AGENT_UNFLUSHED, FLUSH_REGION, "sda", "sda" },
	};
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		fake_file(S_IFBLK, rows[i].major, rows[i].minor, 2);
		/* Resolving must not look at the queue: that may wait for a flush. */
		assert_int_equal(resolve(rows[i].scope, &t, detail), 0);
		assert_int_equal(t.flush.scope, rows[i].flush);
		assert_int_equal(t.flush.device,
				 rows[i].flush == FLUSH_REGION ? 0 : makedev(rows[i].major, rows[i].minor));
		assert_int_equal(t.flush.inode, 0);
		assert_string_equal(t.source, rows[i].source);
		assert_string_equal(t.fstype, "");
		assert_leaves(&t, rows[i].leaves);
		assert_int_equal(check(&t, detail), rows[i].check);
		assert_has(detail, rows[i].check == 0 ? "" : "queue/write_cache of ");
	}
	fake_file(S_IFBLK, 259, 0, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_FILESYSTEM, &t, detail), PMEM_AGENT_REFUSED);
	fake_file(S_IFBLK, 253, 4, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_REFUSED);
	assert_has(detail, "dm-4");
	fake_file(S_IFBLK, 7, 7, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_GONE);
}

static void test_dax(void **state)
{
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	fake_file(S_IFCHR, 252, 0, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_int_equal(t.flush.scope, FLUSH_REGION);
	assert_leaves(&t, "dax0.0");
	assert_true(t.leaves[0].character);
	assert_int_equal(t.leaves[0].devnum, makedev(252, 0));
	assert_int_equal(check(&t, detail), 0);
	assert_int_equal(resolve(MOUNT_SCOPE_FILESYSTEM, &t, detail), PMEM_AGENT_REFUSED);

	fake_file(S_IFCHR, 1, 3, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_REFUSED);
	assert_has(detail, "1:3 is no device-dax");
	fake_file(S_IFCHR, 9, 9, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_REFUSED);
}

static void test_refused(void **state)
{
	static const unsigned int types[] = { S_IFIFO, S_IFSOCK, S_IFLNK, 0 };
	_cleanup_close_ int fd = open("/dev/null", O_PATH | O_CLOEXEC);
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		fake_file(types[i], 259, 0, 2);
		assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_REFUSED);
	}

	/* O_PATH takes no right to the file, and fsync takes no such descriptor. */
	fake_file(S_IFREG, 259, 0, 2);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_int_equal(mount_resolve_fd(fd, MOUNT_SCOPE_AUTO, &t, detail), PMEM_AGENT_REFUSED);
	assert_has(detail, "O_PATH");
	assert_int_equal(mount_resolve_fd(-1, MOUNT_SCOPE_AUTO, &t, detail), -EBADF);
}

static void test_path(void **state)
{
	static const struct {
		const char *path;
		int answer;
		const char *leaves;
	} rows[] = {
		{ "/mnt", 0, "pmem0" },
		{ "/mnt/", 0, "pmem0" },
		{ "/mnt//", 0, "pmem0" },
		{ "/bind", 0, "pmem0" },
		{ "/over", 0, "pmem0" },
		{ "/with blank", 0, "pmem0" },
		{ "/lvm", 0, "pmem0 pmem1" },
		{ "/", 0, "sda" },
		{ "/tmp", PMEM_AGENT_ORDINARY, "" },
		{ "/overlay", PMEM_AGENT_FILESYSTEM, "" },
		{ "/vanished", PMEM_AGENT_GONE, NULL },
		{ "/mnt/sub", PMEM_AGENT_NOT_FOUND, NULL },
		{ "/mn", PMEM_AGENT_NOT_FOUND, NULL },
		{ "/mnt/.", PMEM_AGENT_NOT_FOUND, NULL },
		{ "/mnt/../mnt", PMEM_AGENT_NOT_FOUND, NULL },
		{ "", PMEM_AGENT_REFUSED, NULL },
		{ "mnt", PMEM_AGENT_REFUSED, NULL },
	};
	char detail[MOUNT_DETAIL_MAX];
	struct target t;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		memset(&t, 0xaa, sizeof(t));
		if (mount_resolve_path(rows[i].path, &t, detail) != rows[i].answer)
			fail_msg("'%s' is not answered %d", rows[i].path, rows[i].answer);
		if (!rows[i].leaves) {
			assert_int_equal(((unsigned char *)&t)[0], 0xaa);
			continue;
		}
		assert_leaves(&t, rows[i].leaves);
		assert_int_equal(t.flush.scope, FLUSH_FILESYSTEM);
		assert_int_equal(t.flush.device, t.device);
		assert_int_equal(t.flush.inode, 0);
	}
}

/* However long the names are. */
static void test_long_names(void **state)
{
	char detail[MOUNT_DETAIL_MAX], line[8192], path[3000];
	struct target t;

	memset(path, 'x', sizeof(path) - 1);
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	snprintf(line, sizeof(line), "30 27 259:0 / %s rw - ext4 /dev/pmem0 rw,nobarrier\n", path);
	set_mountinfo(line);
	assert_int_equal(mount_resolve_path(path, &t, detail), PMEM_AGENT_REFUSED);
	assert_has(detail, "descriptor");
	set_mountinfo("");
	assert_int_equal(mount_resolve_path(path, &t, detail), PMEM_AGENT_NOT_FOUND);
	assert_has(detail, "findmnt");

	path[sizeof(t.source) - 1] = '\0';
	snprintf(line, sizeof(line), "30 27 259:0 / %s rw - ext4 /dev/pmem0 rw,nobarrier\n", path);
	set_mountinfo(line);
	assert_int_equal(mount_resolve_path(path, &t, detail), PMEM_AGENT_UNFLUSHED);
	assert_string_equal(t.source, path);
	assert_has(detail, "nobarrier");
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int set_up(void **state)
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

static int tear_down(void **state)
{
	looked_up = mount_cache_free(looked_up);
	checked = mount_cache_free(checked);
	return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_file),        TEST(test_mount_id),      TEST(test_layers),  TEST(test_filesystems),
		TEST(test_options),     TEST(test_check_changes), TEST(test_block),   TEST(test_ext4_journal),
		TEST(test_xfs_devices), TEST(test_dax),           TEST(test_refused), TEST(test_path),
		TEST(test_long_names),  TEST(test_memory),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
