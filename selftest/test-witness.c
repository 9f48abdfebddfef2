/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-witness: lines of trace_pipe, from a table, from a FIFO, and from the kernel
 */
#include <fcntl.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent/witness.h"

#define EVENT "block/block_bio_complete"

struct fixture {
	char dir[64];
	int pipe; /* the writing end of its trace_pipe */
	struct witness *witness;
};

static void put(const char *dir, const char *name, const char *value)
{
	char path[160];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "we");
	assert_non_null(f);
	fputs(value, f);
	assert_int_equal(fclose(f), 0);
}

static int set_up(void **state)
{
	static const char *const dirs[] = { "events", "events/block", "events/" EVENT };
	struct fixture *f = calloc(1, sizeof(*f));
	char path[160];

	strcpy(f->dir, "/tmp/test-witness.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s/%s", f->dir, dirs[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	put(f->dir, "events/" EVENT "/filter", WITNESS_FILTER "\n");
	put(f->dir, "events/" EVENT "/enable", "1\n");
	put(f->dir, "tracing_on", "1\n");
	snprintf(path, sizeof(path), "%s/trace_pipe", f->dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	f->pipe = open(path, O_RDWR | O_CLOEXEC);
	assert_true(f->pipe >= 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char command[96];

	witness_free(f->witness);
	close(f->pipe);
	snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static void test_parse(void **state)
{
	const struct {
		const char *line;
		struct witness_entry expected;
	} rows[] = {
		{ "     kworker/0:1H-123     [000] .N...    12.345678: block_bio_complete: 259,0 FR () 0 + 0 [-5]",
		  { WITNESS_ENTRY_ERROR, makedev(259, 0), EIO } },
		{ "           <...>-7       [001] d..1.    12.345: block_bio_complete: 259,3 FWFSM 262144 + 8 [-28]",
		  { WITNESS_ENTRY_ERROR, makedev(259, 3), ENOSPC } },
		{ "         [-5] a-7       [001] d..1.    12.345: block_bio_complete: 8,16 W 1 + 8 [-61]",
		  { WITNESS_ENTRY_ERROR, makedev(8, 16), ENODATA } },
		/* what is needed is read again; what can't be read may have been in the way of a write */
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 RA () 8 + 8 [-5]", {} },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 RAM () 8 + 8 [-5]", {} },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 R (A) 8 + 8 [-5]",
		  { WITNESS_ENTRY_ERROR, makedev(259, 0), EIO } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 RM () 8 + 8 [-5]",
		  { WITNESS_ENTRY_ERROR, makedev(259, 0), EIO } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 ZA () 8 + 8 [-5]",
		  { WITNESS_ENTRY_ERROR, makedev(259, 0), EIO } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 RA () 8 + 8 [-", { WITNESS_ENTRY_OVERRUN } },
		{ "CPU:0 [LOST 12 EVENTS]", { WITNESS_ENTRY_OVERRUN } },
		{ "CPU:17 [LOST EVENTS]", { WITNESS_ENTRY_OVERRUN } },
		/* an event that can't be read is doubt, never silence */
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 FR () 0 + 0 [-", { WITNESS_ENTRY_OVERRUN } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 FR () 0 + 0", { WITNESS_ENTRY_OVERRUN } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: pmem0 FR () 0 + 0 [-5]", { WITNESS_ENTRY_OVERRUN } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete: 259,0 FR () 0 + 0 [0]", { WITNESS_ENTRY_OVERRUN } },
		{ "  a-7 [001] d..1. 1.0: block_bio_complete", { WITNESS_ENTRY_OVERRUN } },
		{ "", {} },
		{ "# tracer: nop", {} },
		{ "  a-7 [001] d..1. 1.0: sched_switch: 259,0 [-5]", {} },
		/* a task named like an overrun, newline included, is none */
		{ "CPU:0 [LOST 1 E-123   [000] .....  1.0: sched_switch: x", {} },
		{ "   CPU:0 [LOST 1 E-123   [000] .....  1.0: sched_switch: x", {} },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct witness_entry entry = { .type = WITNESS_ENTRY_ERROR, .error = -1 };

		witness_parse(rows[i].line, &entry);
		if (entry.type != rows[i].expected.type || entry.devnum != rows[i].expected.devnum ||
		    entry.error != rows[i].expected.error)
			fail_msg("%s: type %d device %u:%u error %d", rows[i].line, entry.type, major(entry.devnum),
				 minor(entry.devnum), entry.error);
	}
}

static void test_open_refuses_what_records_nothing(void **state)
{
	static const struct {
		const char *name, *broken, *good;
	} rows[] = {
		{ "tracing_on", "0\n", "1\n" },
		{ "events/" EVENT "/enable", "0\n", "1\n" },
		{ "events/" EVENT "/filter", "none\n", WITNESS_FILTER "\n" },
		/* as it was: any user can make it overflow */
		{ "events/" EVENT "/filter", "error != 0\n", WITNESS_FILTER "\n" },
	};
	struct fixture *f = *state;
	struct witness *untouched = (struct witness *)f, *w = untouched;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		put(f->dir, rows[i].name, rows[i].broken);
		assert_int_equal(witness_open(f->dir, &w), -ENOENT);
		assert_ptr_equal(w, untouched);
		put(f->dir, rows[i].name, rows[i].good);
	}
	assert_int_equal(witness_open("/nonexistent", &w), -ENOENT);
	assert_ptr_equal(w, untouched);

	assert_int_equal(witness_open(f->dir, &f->witness), 0);
}

/* Whoever reads takes what it reads from everybody else. */
static void test_one_reads(void **state)
{
	struct fixture *f = *state;
	struct witness *other = NULL;

	assert_int_equal(witness_open(f->dir, &f->witness), 0);
	assert_int_equal(witness_open(f->dir, &other), -EBUSY);
	assert_null(other);
	f->witness = witness_free(f->witness);
	assert_int_equal(witness_open(f->dir, &f->witness), 0);
}

/* What the script sets up is what witness_open() expects. */
static void test_script(void **state)
{
	char line[256];
	bool found = false;
	FILE *f = fopen("units/pmem-agent-witness", "re");

	if (!f) {
		print_message("test_script is to be run from the top of the source tree\n");
		skip();
	}
	while (fgets(line, sizeof(line), f))
		found |= strcmp(line, "filter='" WITNESS_FILTER "'\n") == 0;
	fclose(f);
	assert_true(found);
}

static void feed(struct fixture *f, const char *text)
{
	assert_int_equal(write(f->pipe, text, strlen(text)), strlen(text));
}

static void test_lines(void **state)
{
	struct fixture *f = *state;
	struct witness_entry entry = {};
	struct pollfd pfd;

	assert_int_equal(witness_open(f->dir, &f->witness), 0);
	assert_int_equal(witness_next(f->witness, &entry), 0);
	pfd = (struct pollfd){ .fd = witness_get_fd(f->witness), .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, 0), 0);

	/* a line that comes in two parts is one line, and not before it is whole */
	feed(f, "# header\n a-1 [000] 1.0: block_bio_complete: 259,1 FR () 0 + 0 [-");
	assert_int_equal(poll(&pfd, 1, 0), 1);
	assert_int_equal(witness_next(f->witness, &entry), 0);
	feed(f, "5]\nCPU:1 [LOST 3 EVENTS]\n a-1 [000] 1.0: block_bio_complete: 259,2 W 0 + 8 [-5]\n");
	assert_int_equal(witness_next(f->witness, &entry), 1);
	assert_int_equal(entry.type, WITNESS_ENTRY_ERROR);
	assert_int_equal(entry.devnum, makedev(259, 1));
	assert_int_equal(entry.error, EIO);
	assert_int_equal(witness_next(f->witness, &entry), 1);
	assert_int_equal(entry.type, WITNESS_ENTRY_OVERRUN);
	assert_int_equal(witness_next(f->witness, &entry), 1);
	assert_int_equal(entry.devnum, makedev(259, 2));
	assert_int_equal(witness_next(f->witness, &entry), 0);
}

static void test_overlong_line_is_doubt(void **state)
{
	static char junk[10000];
	struct fixture *f = *state;
	struct witness_entry entry = {};

	assert_int_equal(witness_open(f->dir, &f->witness), 0);
	memset(junk, 'x', sizeof(junk) - 1);
	feed(f, junk);
	assert_int_equal(witness_next(f->witness, &entry), 0);
	feed(f, " tail\n a-1 [000] 1.0: block_bio_complete: 259,2 W 0 + 8 [-5]\n");
	assert_int_equal(witness_next(f->witness, &entry), 1);
	assert_int_equal(entry.type, WITNESS_ENTRY_OVERRUN);
	assert_int_equal(witness_next(f->witness, &entry), 1);
	assert_int_equal(entry.type, WITNESS_ENTRY_ERROR);
	assert_int_equal(witness_next(f->witness, &entry), 0);
}

/* What the script sets up is what witness_open() accepts, and reads as empty while nothing fails. */
static void test_real_instance(void **state)
{
	struct witness_entry entry;
	struct fixture *f = *state;
	int r = witness_open(WITNESS_INSTANCE, &f->witness);

	if (r == -ENOENT || r == -EACCES) {
		print_message("test_real_instance needs CAP_DAC_READ_SEARCH and units/pmem-agent-witness run before\n");
		skip();
	}
	assert_int_equal(r, 0);
	assert_in_range(witness_next(f->witness, &entry), 0, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test_setup_teardown(test_open_refuses_what_records_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_one_reads, set_up, tear_down),
		cmocka_unit_test(test_script),
		cmocka_unit_test_setup_teardown(test_lines, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_overlong_line_is_doubt, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_real_instance, set_up, tear_down),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("witness", tests, NULL, NULL);
}
