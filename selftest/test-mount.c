/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-mount: from descriptors and mount points to leaves
 */
#include "selftest/mounts.h"

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

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_file), TEST(test_mount_id), TEST(test_layers), TEST(test_block),
		TEST(test_dax),  TEST(test_refused),  TEST(test_path),   TEST(test_long_names),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
