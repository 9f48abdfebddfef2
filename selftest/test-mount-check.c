/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-mount-check: whether a flush of a filesystem reaches the devices below it, and what is remembered of that
 */
#include "selftest/mounts.h"

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

/* Changed and changed back: the table of mounts and the options say the same as before. */
static void test_remounted_in_between(void **state)
{
	char path[256];
	char detail[MOUNT_DETAIL_MAX];
	uint64_t before;
	struct target t;

	fake_file(S_IFREG, 259, 0, 12);
	assert_int_equal(resolve(MOUNT_SCOPE_AUTO, &t, detail), 0);
	assert_int_equal(mount_cache_count(checked, &t), 0);
	put("1\n", "sys/fs/ext4/pmem0/msg_count");
	for (int i = 0; i < 2; i++) {
		const struct mount_cache *c = i == 0 ? NULL : checked;

		before = mount_cache_count(c, &t);
		assert_int_not_equal(before, 0);
		assert_int_equal(mount_cache_count(c, &t), before);
		put(i == 0 ? "3\n" : "5\n", "sys/fs/ext4/pmem0/msg_count");
		assert_int_not_equal(mount_cache_count(c, &t), before);
	}
	/* From before it is remembered, and from there on. */
	before = mount_cache_count(checked, &t);
	assert_int_equal(mount_cache_check(checked, &t, detail), 0);
	assert_int_equal(mount_cache_count(checked, &t), before);
	put("7\n", "sys/fs/ext4/pmem0/msg_count");
	assert_int_not_equal(mount_cache_count(checked, &t), before);
	/* Unmounted and mounted again: what is kept open has no number any more, and the new file has. */
	put("", "sys/fs/ext4/pmem0/msg_count");
	snprintf(path, sizeof(path), "%s/sys/fs/ext4/pmem0/msg_count", root);
	assert_int_equal(unlink(path), 0);
	put("7\n", "sys/fs/ext4/pmem0/msg_count");
	before = mount_cache_count(checked, &t);
	assert_int_not_equal(before, 0);
	mount_cache_forget(checked);
	assert_int_equal(mount_cache_count(checked, &t), before);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_filesystems), TEST(test_options), TEST(test_check_changes),        TEST(test_ext4_journal),
		TEST(test_xfs_devices), TEST(test_memory),  TEST(test_remounted_in_between),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
