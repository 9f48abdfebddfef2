/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-log: entries at a journal of our own, one that does not read, and lines on stderr
 */
#include <endian.h>
#include <fcntl.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent/log.h"

struct fixture {
	char dir[64], path[80];
	int journal; /* receives what the journal would */
	int saved_stderr;
	int output; /* what stderr is during the test */
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char stream[64];
	struct stat st;

	strcpy(f->dir, "/tmp/test-log.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
	strcpy(address.sun_path, f->path);
	f->journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(f->journal, (struct sockaddr *)&address, sizeof(address)), 0);

	f->saved_stderr = dup(STDERR_FILENO);
	f->output = open(f->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(f->output >= 0);
	assert_int_equal(dup2(f->output, STDERR_FILENO), STDERR_FILENO);
	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	log_close();
	unsetenv("JOURNAL_STREAM");
	dup2(f->saved_stderr, STDERR_FILENO);
	close(f->saved_stderr);
	close(f->output);
	close(f->journal);
	unlink(f->path);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* The value of a field of an entry as the journal gets it; NULL if it has none. */
static const char *field(const char *entry, size_t size, const char *name)
{
	static char value[4096];
	const char *p = entry, *end = entry + size;

	while (p < end) {
		const char *newline = memchr(p, '\n', end - p);
		uint64_t length;
		bool found;

		assert_non_null(newline);
		found = (size_t)(newline - p) == strlen(name) && memcmp(p, name, strlen(name)) == 0;
		memcpy(&length, newline + 1, sizeof(length));
		length = le64toh(length);
		p = newline + 1 + sizeof(length);
		assert_true(length < sizeof(value) && p + length < end && p[length] == '\n');
		if (found) {
			memcpy(value, p, length);
			value[length] = '\0';
			return value;
		}
		p += length + 1;
	}
	return NULL;
}

static const char *receive(struct fixture *f, const char *name)
{
	static char entry[8192];
	static ssize_t size;

	if (strcmp(name, "MESSAGE") == 0)
		size = recv(f->journal, entry, sizeof(entry), 0);
	return size < 0 ? NULL : field(entry, size, name);
}

static void test_fields(void **state)
{
	struct fixture *f = *state;

	log_open_at(f->path);
	errno = EXDEV;
	log_region(LOG_ERR, LOG_EVENT_LOST, "region0", 17, "two\nlines: %m");
	assert_int_equal(errno, EXDEV);
	assert_string_equal(receive(f, "MESSAGE"), "two\nlines: Invalid cross-device link");
	assert_string_equal(receive(f, "PRIORITY"), "3");
	assert_string_equal(receive(f, "SYSLOG_IDENTIFIER"), "pmem-agent");
	assert_string_equal(receive(f, "MESSAGE_ID"), log_event_id(LOG_EVENT_LOST));
	assert_string_equal(receive(f, "REGION"), "region0");
	assert_string_equal(receive(f, "EPOCH"), "17");

	log_daemon(LOG_INFO, LOG_EVENT_NONE, "plain");
	assert_string_equal(receive(f, "MESSAGE"), "plain");
	assert_null(receive(f, "MESSAGE_ID"));
	assert_null(receive(f, "REGION"));
	assert_null(receive(f, "EPOCH"));
	assert_int_equal(lseek(f->output, 0, SEEK_END), 0);
}

static void test_stuck_journal_is_not_waited_for(void **state)
{
	char expected[96];
	struct fixture *f = *state;
	unsigned int passed = 0;
	const char *message;

	log_open_at(f->path);
	for (unsigned int i = 0; i < 10000; i++) {
		errno = ENOSPC;
		log_daemon(LOG_INFO, LOG_EVENT_NONE, "entry");
		assert_int_equal(errno, ENOSPC);
	}
	while ((message = receive(f, "MESSAGE"))) {
		assert_string_equal(message, "entry");
		passed++;
	}
	assert_in_range(passed, 1, 9999);

	log_daemon(LOG_INFO, LOG_EVENT_NONE, "next");
	snprintf(expected, sizeof(expected), "next [entries dropped before this one: %u]", 10000 - passed);
	assert_string_equal(receive(f, "MESSAGE"), expected);
	log_daemon(LOG_INFO, LOG_EVENT_NONE, "after");
	assert_string_equal(receive(f, "MESSAGE"), "after");
}

static void test_long_message_is_cut(void **state)
{
	static char text[100000];
	struct fixture *f = *state;

	memset(text, 'x', sizeof(text) - 1);
	log_open_at(f->path);
	log_region(LOG_INFO, LOG_EVENT_HOST, "region0", UINT64_MAX, "%s", text);
	assert_in_range(strlen(receive(f, "MESSAGE")), 500, 2000);
	assert_string_equal(receive(f, "REGION"), "region0");
	assert_string_equal(receive(f, "EPOCH"), "18446744073709551615");

	/* the note of what was dropped has its room all the same */
	unlink(f->path);
	log_daemon(LOG_INFO, LOG_EVENT_NONE, "nobody listens");
	close(f->journal);
	f->journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strcpy(address.sun_path, f->path);
	assert_int_equal(bind(f->journal, (struct sockaddr *)&address, sizeof(address)), 0);
	log_daemon(LOG_INFO, LOG_EVENT_NONE, "%s", text);
	assert_non_null(strstr(receive(f, "MESSAGE"), "[entries dropped before this one: 1]"));
}

static void test_lines_without_journal(void **state)
{
	static const char expected[] = "pmem-agent: hello\npmem-agent: gone (region=region0 epoch=3)\n";
	struct fixture *f = *state;
	char text[256] = "";

	setenv("JOURNAL_STREAM", "1:1", 1);
	log_open_at(f->path);
	log_daemon(LOG_INFO, LOG_EVENT_STARTED, "hello");
	log_region(LOG_ERR, LOG_EVENT_LOST, "region0", 3, "gone");
	assert_null(receive(f, "MESSAGE"));
	assert_int_equal(pread(f->output, text, sizeof(text) - 1, 0), sizeof(expected) - 1);
	assert_string_equal(text, expected);
}

static void test_stuck_stderr_is_not_waited_for(void **state)
{
	char text[65536];
	int pipes[2];
	ssize_t n;

	unsetenv("JOURNAL_STREAM");
	log_open_at("/nonexistent");
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	/* It has sixteen of the machine's pages by itself. */
	assert_int_equal(fcntl(pipes[1], F_SETPIPE_SZ, sizeof(text)), sizeof(text));
	assert_int_equal(dup2(pipes[1], STDERR_FILENO), STDERR_FILENO);
	for (unsigned int i = 0; i < 10000; i++)
		log_daemon(LOG_INFO, LOG_EVENT_NONE, "a line on a pipe that nobody reads");
	n = read(pipes[0], text, sizeof(text));
	assert_in_range(n, 1, sizeof(text));
	log_daemon(LOG_INFO, LOG_EVENT_NONE, "next");
	n = read(pipes[0], text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = '\0';
	assert_non_null(strstr(text, "[entries dropped before this one: "));

	/* and a reader who left is no reason to die */
	close(pipes[0]);
	log_daemon(LOG_INFO, LOG_EVENT_NONE, "nobody");
	close(pipes[1]);
}

static void test_ids(void **state)
{
	assert_null(log_event_id(LOG_EVENT_NONE));
	for (enum log_event i = LOG_EVENT_NONE + 1; i < N_LOG_EVENTS; i++) {
		assert_int_equal(strlen(log_event_id(i)), 32);
		assert_int_equal(strspn(log_event_id(i), "0123456789abcdef"), 32);
		for (enum log_event k = i + 1; k < N_LOG_EVENTS; k++)
			assert_string_not_equal(log_event_id(i), log_event_id(k));
	}
}

/* A row of the table in the manual page: "|  MESSAGE_ID". */
static void test_manual_has_every_id(void **state)
{
	char text[65536];
	FILE *f = fopen("agent/pmem-agent.8.scd", "re");
	size_t n;

	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	for (enum log_event i = LOG_EVENT_NONE + 1; i < N_LOG_EVENTS; i++)
		if (!strstr(text, log_event_id(i)))
			fail_msg("pmem-agent(8) lacks MESSAGE_ID %s", log_event_id(i));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fields, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stuck_journal_is_not_waited_for, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_long_message_is_cut, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_lines_without_journal, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stuck_stderr_is_not_waited_for, set_up, tear_down),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_manual_has_every_id),
	};

	alarm(60);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
