/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-state: records of losses, by real children
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/state.h"

#define IDENTITY "at:140000000+8000000:/sys/devices/pci0000:00/0000:00:05.0"

static char directory[] = "/tmp/test-state-XXXXXX", path[64];
static const struct state_record record = {
	.identity = IDENTITY,
	.size = 0x8000000,
	.loss = 3,
	.acknowledged = 2,
	.usec = 77,
	.round = 6,
	.epoch = 5,
	.error = EIO,
	.origin = 1,
	.boot_id = "of this boot",
};

static int set_up(void **state)
{
	alarm(60);
	signal(SIGCHLD, SIG_IGN);
	strcpy(directory + strlen(directory) - 6, "XXXXXX");
	if (!mkdtemp(directory))
		return -1;
	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".loss", directory, region_identity_hash(IDENTITY));
	return 0;
}

static int tear_down(void **state)
{
	char pattern[64];
	glob_t files = { 0 };

	snprintf(pattern, sizeof(pattern), "%s/*", directory);
	glob(pattern, 0, NULL, &files);
	for (size_t i = 0; i < files.gl_pathc; i++)
		unlink(files.gl_pathv[i]);
	globfree(&files);
	return rmdir(directory) < 0 && errno != ENOENT ? -1 : 0;
}

static struct state_answer next(struct state *s)
{
	struct pollfd p = { .fd = state_get_fd(s), .events = POLLIN };
	struct state_answer answer;

	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(state_next(s, &answer), 0);
	return answer;
}

/* The errno of the save. */
static int save(const char *dir, const struct state_record *r)
{
	_cleanup_(state_freep) struct state *s = NULL;
	struct state_answer answer;

	assert_int_equal(state_start(dir, &s), 0);
	assert_int_equal(state_save(s, r), 0);
	answer = next(s);
	assert_int_equal(answer.type, STATE_SAVED);
	assert_true(answer.hash == region_identity_hash(r->identity));
	return answer.error;
}

/* What came before the end, at most one; and the end. */
static struct state_answer load(const char *dir, struct state_answer *ret_end)
{
	_cleanup_(state_freep) struct state *s = NULL;
	struct state_answer answer, first = { .type = STATE_LOADED };

	assert_int_equal(state_start(dir, &s), 0);
	assert_int_equal(state_load(s), 0);
	for (answer = next(s); answer.type != STATE_LOADED; answer = next(s)) {
		assert_int_equal(first.type, STATE_LOADED);
		first = answer;
	}
	*ret_end = answer;
	return first;
}

static struct state_answer load_one(void)
{
	struct state_answer end, answer = load(directory, &end);

	assert_int_equal(end.error, 0);
	assert_int_equal(end.write_error, 0);
	return answer;
}

/* ---- */

static void test_saved_and_loaded(void **state)
{
	struct state_answer answer = load_one();

	assert_int_equal(answer.type, STATE_LOADED);
	assert_int_equal(save(directory, &record), 0);
	answer = load_one();
	assert_int_equal(answer.type, STATE_RECORD);
	assert_true(answer.hash == region_identity_hash(IDENTITY));
	assert_memory_equal(&answer.record, &record, sizeof(record));
}

/* A child that comes late, with what was true before. */
static void test_never_goes_back(void **state)
{
	struct state_record newer = record, older = record;
	struct state_answer answer;

	newer.acknowledged = 3;
	assert_int_equal(save(directory, &newer), 0);
	assert_int_equal(save(directory, &record), 0);
	answer = load_one();
	assert_memory_equal(&answer.record, &newer, sizeof(newer));

	newer.loss = 4;
	newer.error = ENXIO;
	assert_int_equal(save(directory, &newer), 0);
	older.acknowledged = 3;
	assert_int_equal(save(directory, &older), 0);
	answer = load_one();
	assert_memory_equal(&answer.record, &newer, sizeof(newer));
}

static void damage(off_t at)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
	char c;

	assert_true(pread(fd, &c, 1, at) == 1);
	c ^= 1;
	assert_true(pwrite(fd, &c, 1, at) == 1);
}

/* Whatever is wrong with it, it is there. */
static void test_damaged(void **state)
{
	struct state_answer answer;
	struct stat st;

	assert_int_equal(save(directory, &record), 0);
	assert_int_equal(stat(path, &st), 0);
	for (off_t at = 0; at < st.st_size; at++) {
		damage(at);
		answer = load_one();
		assert_int_equal(answer.type, STATE_DAMAGED);
		assert_true(answer.hash == region_identity_hash(IDENTITY));
		damage(at);
	}
	assert_int_equal(load_one().type, STATE_RECORD);

	assert_int_equal(truncate(path, st.st_size - 1), 0);
	assert_int_equal(load_one().type, STATE_DAMAGED);
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(load_one().type, STATE_DAMAGED);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/dev/null", path), 0);
	assert_int_equal(load_one().type, STATE_DAMAGED);

	assert_int_equal(save(directory, &record), 0);
	assert_int_equal(load_one().type, STATE_RECORD);
}

static void test_other_files_are_let_alone(void **state)
{
	char other[96];

	snprintf(other, sizeof(other), "%.*s.new", (int)strlen(path) - 5, path);
	assert_int_equal(close(open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
	snprintf(other, sizeof(other), "%s/README", directory);
	assert_int_equal(close(open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
	assert_int_equal(load_one().type, STATE_LOADED);
	assert_int_equal(save(directory, &record), 0);
	assert_int_equal(load_one().type, STATE_RECORD);
}

static void test_directory_is_made(void **state)
{
	struct state_answer end;

	assert_int_equal(rmdir(directory), 0);
	assert_int_equal(load(directory, &end).type, STATE_LOADED);
	assert_int_equal(end.error, 0);
	assert_int_equal(rmdir(directory), 0);
	assert_int_equal(save(directory, &record), 0);
	assert_int_equal(load_one().type, STATE_RECORD);
}

/* procfs: not even root can make a file there. */
static void test_unwritable(void **state)
{
	struct state_answer end;

	load("/proc/self/task", &end);
	assert_int_equal(end.error, 0);
	assert_int_equal(save("/proc/self/task", &record) != 0, 1);
	load("/proc/self/stat", &end);
	assert_int_equal(end.error, ENOTDIR);
	assert_int_equal(save("/proc/self/stat", &record), ENOTDIR);
	load("/nonexistent/directory", &end);
	assert_int_equal(end.error, ENOENT);
}

static void test_too_many(void **state)
{
	struct state_record r = record;
	struct state_answer answer;
	struct state *s;

	assert_int_equal(state_start(directory, &s), 0);
	for (unsigned int i = 0; i <= STATE_MAX_RECORDS; i++) {
		snprintf(r.identity, sizeof(r.identity), "%u", i);
		assert_int_equal(state_save(s, &r), 0);
		assert_int_equal(next(s).error, 0);
	}
	assert_int_equal(state_load(s), 0);
	for (answer = next(s); answer.type == STATE_RECORD;)
		answer = next(s);
	assert_int_equal(answer.error, EFBIG);
	state_free(s);
}

/* The filesystem does not answer, and the agent ends: what was ordered is done when it does. */
static void test_order_outlives_the_agent(void **state)
{
	_cleanup_close_ int dir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct state_record newer = record;
	struct state_answer answer;
	struct state *s;

	newer.loss = 4;
	assert_int_equal(flock(dir, LOCK_EX), 0);
	assert_int_equal(state_start(directory, &s), 0);
	assert_int_equal(state_save(s, &record), 0);
	assert_int_equal(state_save(s, &newer), 0);
	assert_int_equal(state_next(s, &answer), -EAGAIN);
	state_free(s);
	/* Reading is not held up. */
	assert_int_equal(load_one().type, STATE_LOADED);
	assert_int_equal(flock(dir, LOCK_UN), 0);
	do
		answer = load_one();
	while (answer.type != STATE_RECORD || answer.record.loss != 4);
	/* It has done all when it lets go of the lock for the last time. */
	assert_int_equal(flock(dir, LOCK_EX), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_saved_and_loaded),  TEST(test_never_goes_back),
		TEST(test_damaged),           TEST(test_other_files_are_let_alone),
		TEST(test_directory_is_made), TEST(test_unwritable),
		TEST(test_too_many),          TEST(test_order_outlives_the_agent),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
