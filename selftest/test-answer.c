/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-answer: the table of answers
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "agent/answer.h"

/* Exit statuses are a contract, so they are written down a second time here. */
static void test_contract(void **state)
{
	static const struct {
		enum pmem_agent_answer answer;
		int exit_status;
		const char *error;
	} expected[] = {
		{ PMEM_AGENT_DURABLE, 0, "io.pmem.Agent1.Error.Durable" },
		{ PMEM_AGENT_LOST, 3, "io.pmem.Agent1.Error.Lost" },
		{ PMEM_AGENT_UNKNOWN, 4, "io.pmem.Agent1.Error.Unknown" },
		{ PMEM_AGENT_BUSY, 5, "io.pmem.Agent1.Error.Busy" },
		{ PMEM_AGENT_GONE, 6, "io.pmem.Agent1.Error.Gone" },
		{ PMEM_AGENT_ORDINARY, 7, "io.pmem.Agent1.Error.OrdinaryStorage" },
		{ PMEM_AGENT_MIXED, 8, "io.pmem.Agent1.Error.MixedStorage" },
		{ PMEM_AGENT_SYNCHRONOUS, 9, "io.pmem.Agent1.Error.SynchronousRegion" },
		{ PMEM_AGENT_FILESYSTEM, 10, "io.pmem.Agent1.Error.UnknownFilesystem" },
		{ PMEM_AGENT_UNFLUSHED, 11, "io.pmem.Agent1.Error.NotFlushed" },
		{ PMEM_AGENT_IMPOSSIBLE, 12, "io.pmem.Agent1.Error.Impossible" },
		{ PMEM_AGENT_FAILED, 13, "io.pmem.Agent1.Error.TargetFailed" },
		{ PMEM_AGENT_REFUSED, 14, "io.pmem.Agent1.Error.InvalidTarget" },
		{ PMEM_AGENT_NOT_FOUND, 15, "io.pmem.Agent1.Error.NotFound" },
		{ PMEM_AGENT_DENIED, 16, "io.pmem.Agent1.Error.AccessDenied" },
		{ PMEM_AGENT_STALE_LOSS, 17, "io.pmem.Agent1.Error.StaleLoss" },
		{ PMEM_AGENT_TIMEOUT, 18, "io.pmem.Agent1.Error.TimedOut" },
	};

	assert_int_equal(sizeof(expected) / sizeof(expected[0]), PMEM_AGENT_N_ANSWERS);
	for (size_t i = 0; i < PMEM_AGENT_N_ANSWERS; i++) {
		assert_int_equal(answer_get(expected[i].answer)->exit_status, expected[i].exit_status);
		assert_string_equal(answer_dbus_error(expected[i].answer), expected[i].error);
	}
}

static void test_rows(void **state)
{
	for (int i = 0; i < PMEM_AGENT_N_ANSWERS; i++) {
		const struct answer *a = answer_get(i);

		assert_non_null(a->name);
		assert_true(strlen(a->meaning) > 10);
		assert_true(a->meaning[strlen(a->meaning) - 1] != '.');
		assert_int_equal(a->error == 0, i == PMEM_AGENT_DURABLE);
		assert_int_equal(a->exit_status == 0, i == PMEM_AGENT_DURABLE);
	}
	assert_int_equal(answer_get(PMEM_AGENT_LOST)->error, EIO);
	assert_int_equal(answer_get(PMEM_AGENT_UNKNOWN)->error, ETIMEDOUT);
}

static void test_out_of_range(void **state)
{
	assert_ptr_equal(answer_get(PMEM_AGENT_N_ANSWERS), answer_get(PMEM_AGENT_UNKNOWN));
	assert_ptr_equal(answer_get((enum pmem_agent_answer) - 1), answer_get(PMEM_AGENT_UNKNOWN));
	assert_string_equal(answer_dbus_error(PMEM_AGENT_N_ANSWERS), "io.pmem.Agent1.Error.Unknown");
}

static void test_from_dbus_error(void **state)
{
	for (int i = PMEM_AGENT_DURABLE + 1; i < PMEM_AGENT_N_ANSWERS; i++)
		assert_int_equal(answer_from_dbus_error(answer_dbus_error(i)), i);

	/* Nothing that comes as an error is a promise. */
	assert_int_equal(answer_from_dbus_error("io.pmem.Agent1.Error.Durable"), PMEM_AGENT_UNKNOWN);
	assert_int_equal(answer_from_dbus_error("org.freedesktop.DBus.Error.NoReply"), PMEM_AGENT_UNKNOWN);
	assert_int_equal(answer_from_dbus_error(""), PMEM_AGENT_UNKNOWN);
	assert_int_equal(answer_from_dbus_error(NULL), PMEM_AGENT_UNKNOWN);
}

static void test_from_flush_errno(void **state)
{
	assert_int_equal(answer_from_flush_errno(ENOSPC), PMEM_AGENT_FAILED);
	assert_int_equal(answer_from_flush_errno(EDQUOT), PMEM_AGENT_FAILED);
	assert_int_equal(answer_from_flush_errno(EBADF), PMEM_AGENT_REFUSED);
	assert_int_equal(answer_from_flush_errno(EINVAL), PMEM_AGENT_REFUSED);
	assert_int_equal(answer_from_flush_errno(ENOTSUP), PMEM_AGENT_REFUSED);
	assert_int_equal(answer_from_flush_errno(EROFS), PMEM_AGENT_REFUSED);

	/* Every other errno there is, and what is none: a loss, never durable. */
	for (int error = -1; error < 4096; error++) {
		enum pmem_agent_answer answer = answer_from_flush_errno(error);

		assert_true(answer == PMEM_AGENT_LOST || answer == PMEM_AGENT_FAILED || answer == PMEM_AGENT_REFUSED);
	}
	assert_int_equal(answer_from_flush_errno(EIO), PMEM_AGENT_LOST);
	assert_int_equal(answer_from_flush_errno(ENOMEM), PMEM_AGENT_LOST);
	assert_int_equal(answer_from_flush_errno(0), PMEM_AGENT_LOST);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_contract),         cmocka_unit_test(test_rows),
		cmocka_unit_test(test_out_of_range),     cmocka_unit_test(test_from_dbus_error),
		cmocka_unit_test(test_from_flush_errno),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
