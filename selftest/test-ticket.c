/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-ticket: flushes that are submitted now and waited for later
 */
#include <sys/resource.h>

#include "agent/answer.h"
#include "agent/ticket.h"
#include "selftest/caller.h"
#include "selftest/process.h"

#define DESCRIPTORS 4096
#define OF_ONE_USER (1 + (DESCRIPTORS / 8 - 1) / 4)
#define INSTANCE    "0123456789abcdef0123456789abcdef"

static int set_up(void **state)
{
	struct rlimit limit = { DESCRIPTORS, DESCRIPTORS };
	const char *missing;

	alarm(120);
	setrlimit(RLIMIT_NOFILE, &limit);
	missing = session_start(&session);
	if (missing)
		print_error("test-ticket needs %s\n", missing);
	return missing || sd_bus_open_system(&bus) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	sd_bus_flush_close_unref(bus);
	session_stop(&session);
	return 0;
}

/* ---- the book ---- */

static void test_text(void **state)
{
	static const char *const wrong[] = {
		"",
		"1",
		INSTANCE,
		INSTANCE "-",
		INSTANCE "-0",
		INSTANCE "-01",
		INSTANCE "-1 ",
		INSTANCE "--1",
		INSTANCE "-18446744073709551616",
		"0123456789ABCDEF0123456789ABCDEF-1",
		"00123456789abcdef0123456789abcdef-1",
	};
	struct ticket t, *gone;
	struct ticket_book book;
	char text[TICKET_TEXT_MAX];
	uint64_t number = 0;

	ticket_book_init(&book, INSTANCE, 1);
	book.last = UINT64_MAX - 1;
	assert_int_equal(ticket_issue(&book, &t, 1, &gone), 0);
	ticket_format(&book, &t, text);
	assert_string_equal(text, INSTANCE "-18446744073709551615");
	assert_int_equal(ticket_parse(&book, text, &number), 0);
	assert_true(number == UINT64_MAX);
	assert_ptr_equal(ticket_find(&book, number), &t);
	for (unsigned int i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(ticket_parse(&book, wrong[i], &number), -EINVAL);
	text[0] = '1';
	assert_int_equal(ticket_parse(&book, text, &number), -ESTALE);
}

static void issue(struct ticket_book *book, struct ticket *t, uid_t uid, const struct ticket *makes_room)
{
	struct ticket *gone;

	assert_int_equal(ticket_issue(book, t, uid, &gone), 0);
	assert_ptr_equal(gone, makes_room);
}

/* Of eight, two are one user's, and only what is finished makes room. */
static void test_room(void **state)
{
	struct ticket_book book;
	struct ticket t[16], *gone;

	ticket_book_init(&book, INSTANCE, 8);
	issue(&book, &t[0], 1, NULL);
	issue(&book, &t[1], 1, NULL);
	assert_int_equal(ticket_issue(&book, &t[2], 1, &gone), -EBUSY);
	t[1].finished = true;
	issue(&book, &t[2], 1, &t[1]);
	assert_int_equal(t[2].number, 3);
	assert_null(ticket_find(&book, 2));
	t[0].finished = t[2].finished = true;
	issue(&book, &t[3], 1, &t[0]);

	for (unsigned int i = 4; i < 10; i++)
		issue(&book, &t[i], 2 + i / 2, NULL);
	/* All taken: a newcomer gets the place of the oldest that is finished. */
	issue(&book, &t[10], 10, &t[2]);
	assert_int_equal(ticket_issue(&book, &t[11], 11, &gone), -EBUSY);
	/* Who has a finished one pays with that, and not with another's. */
	t[3].finished = t[9].finished = true;
	issue(&book, &t[11], 2 + 9 / 2, &t[9]);
	ticket_remove(&book, &t[11]);
	ticket_remove(&book, &t[11]);
	assert_int_equal(book.n, 7);
}

/* ---- on the bus ---- */

static int call_submit(sd_bus *from, uint64_t timeout_usec, char *ret_ticket, sd_bus_error *error)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
	_cleanup_close_ int fd = open_emulated();
	const char *text;
	int r;

	assert_true(sd_bus_message_new_method_call(from, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Submit") >= 0);
	assert_true(sd_bus_message_append(m, "ha{sv}", fd, 1, "timeout-usec", "t", timeout_usec) >= 0);
	r = sd_bus_call(from, m, 0, error, &reply);
	if (r < 0)
		return r;
	assert_true(sd_bus_message_read(reply, "s", &text) >= 0);
	snprintf(ret_ticket, TICKET_TEXT_MAX, "%s", text);
	return 0;
}

static void submit(char *ret_ticket)
{
	assert_int_equal(call_submit(bus, 0, ret_ticket, NULL), 0);
}

static int call_wait(const char *ticket, uint64_t timeout_usec, sd_bus_error *error, sd_bus_message **ret)
{
	return sd_bus_call_method(bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Wait", error, ret, "sa{sv}", ticket,
				  1, "timeout-usec", "t", timeout_usec);
}

static void assert_durable(const char *ticket)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	if (call_wait(ticket, 0, &error, &reply) < 0)
		fail_msg("%s", error.message);
	assert_true(read_epoch(reply, "region") <= get_number("Epoch"));
}

static void assert_wait(const char *ticket, uint64_t timeout_usec, enum pmem_agent_answer answer, const char *words)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	assert_true(call_wait(ticket, timeout_usec, &error, NULL) < 0);
	assert_error(&error, answer_dbus_error(answer), words);
}

/* A later round has ended, so those before it have. */
static void flush(void)
{
	assert_true(
	    sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Flush", NULL, NULL, "a{sv}", 0) >= 0);
}

static pid_t stop_worker(void)
{
	pid_t worker;

	flush();
	worker = find_worker();
	stop_process(worker);
	return worker;
}

static void lose(void)
{
	char ticket[TICKET_TEXT_MAX];
	pid_t worker = stop_worker();

	submit(ticket);
	wait_until_in_flight();
	assert_int_equal(kill(worker, SIGKILL), 0);
	assert_wait(ticket, 0, PMEM_AGENT_LOST, "noticed by worker");
}

static void acknowledge(uint64_t loss)
{
	assert_true(sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "AcknowledgeLoss", NULL, NULL,
				       "t", loss) >= 0);
}

static void test_submit_and_wait(void **state)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	char first[TICKET_TEXT_MAX], second[TICKET_TEXT_MAX];
	const char *text;

	submit(first);
	submit(second);
	assert_string_not_equal(first, second);
	assert_durable(second);
	flush();
	assert_durable(first);
	assert_wait(first, 0, PMEM_AGENT_UNKNOWN, "the ticket is not there");

	assert_true(sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Submit", NULL, &reply,
				       "a{sv}", 0) >= 0);
	assert_true(sd_bus_message_read(reply, "s", &text) >= 0);
	assert_durable(text);
}

static void assert_call_fails(const char *method, const char *types, const char *text, int fd, const char *name)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	assert_true(sd_bus_message_new_method_call(bus, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, method) >= 0);
	assert_true((text ? sd_bus_message_append(m, "s", text) : sd_bus_message_append(m, "h", fd)) >= 0);
	assert_true(sd_bus_message_append(m, "a{sv}", 1, types, "s", "file") >= 0);
	assert_true(sd_bus_call(bus, m, 0, &error, NULL) < 0);
	assert_string_equal(error.name, name);
}

static void test_refusals(void **state)
{
	_cleanup_close_ int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	char ticket[TICKET_TEXT_MAX];

	submit(ticket);
	assert_call_fails("Submit", "scope", NULL, fd, answer_dbus_error(PMEM_AGENT_ORDINARY));
	assert_call_fails("Submit", "scoop", NULL, fd, SD_BUS_ERROR_INVALID_ARGS);
	assert_call_fails("SubmitPath", "scope", session.directory, -1, SD_BUS_ERROR_INVALID_ARGS);
	assert_call_fails("Wait", "scope", ticket, -1, SD_BUS_ERROR_INVALID_ARGS);
	assert_durable(ticket);
	assert_true(call_wait("nonsense", 0, NULL, NULL) < 0);
}

/* Who submitted has left, and somebody else waits: the ticket is all that counts. */
static void test_outlives_its_connection(void **state)
{
	char ticket[TICKET_TEXT_MAX];
	pid_t worker = stop_worker();
	sd_bus *other = NULL;

	assert_true(sd_bus_open_system(&other) >= 0);
	assert_int_equal(call_submit(other, 0, ticket, NULL), 0);
	sd_bus_flush_close_unref(other);
	assert_wait(ticket, 1, PMEM_AGENT_TIMEOUT, "wait for the ticket again");
	wait_for_waiting(1);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_durable(ticket);
}

/* The deadline of the flush itself is another one than that of who waits. */
static void test_deadline_of_the_flush(void **state)
{
	char ticket[TICKET_TEXT_MAX];
	pid_t worker = stop_worker();

	assert_int_equal(call_submit(bus, 1000, ticket, NULL), 0);
	assert_wait(ticket, 0, PMEM_AGENT_TIMEOUT, "by your deadline");
	assert_wait(ticket, 0, PMEM_AGENT_UNKNOWN, "not there");
	assert_int_equal(kill(worker, SIGCONT), 0);
}

static int on_waited(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	unsigned int *counts = userdata;

	counts[sd_bus_message_is_method_error(m, NULL)]++;
	return 1;
}

static void begin_wait(sd_bus *from, const char *ticket, unsigned int *counts)
{
	assert_true(sd_bus_call_method_async(from, NULL, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Wait", on_waited,
					     counts, "sa{sv}", ticket, 0) >= 0);
	assert_true(sd_bus_flush(from) >= 0);
}

/* All who wait are told, but for one who left meanwhile. */
static void test_several_wait(void **state)
{
	unsigned int counts[2] = { 0 };
	char ticket[TICKET_TEXT_MAX];
	pid_t worker = stop_worker();
	sd_bus *other = NULL;

	submit(ticket);
	assert_true(sd_bus_open_system(&other) >= 0);
	begin_wait(other, ticket, counts);
	for (unsigned int i = 0; i < 3; i++)
		begin_wait(bus, ticket, counts);
	/* It has taken in what came before. */
	assert_wait(ticket, 1, PMEM_AGENT_TIMEOUT, "again");
	sd_bus_close_unref(other);
	wait_for_waiting(1);
	assert_int_equal(kill(worker, SIGCONT), 0);
	while (counts[0] < 3)
		process(bus);
	assert_int_equal(counts[1], 0);
	assert_wait(ticket, 0, PMEM_AGENT_UNKNOWN, "not there");
}

/* It was durable when the round ended; nobody may be told so after the next loss, acknowledged or not. */
static void test_lost_since(void **state)
{
	char ticket[TICKET_TEXT_MAX], other[TICKET_TEXT_MAX];

	submit(ticket);
	submit(other);
	flush();
	lose();
	assert_wait(ticket, 0, PMEM_AGENT_LOST, "emu0 has lost stores since it confirmed the flush: loss 1");
	acknowledge(1);
	assert_wait(other, 0, PMEM_AGENT_LOST, "loss 1");
	/* One that is submitted after that is as good as any. */
	submit(ticket);
	assert_durable(ticket);
}

/* ---- whose they are ---- */

/* What `run` says, as nobody. */
static void as_nobody(int (*run)(sd_bus *own, const char *argument, char *ret, sd_bus_error *error),
		      const char *argument, char result[static 128])
{
	int pipes[2];
	pid_t pid;

	let_others_in();
	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	if (pid == 0) {
		sd_bus_error error = SD_BUS_ERROR_NULL;
		char text[128] = "done";
		sd_bus *own = NULL;

		if (setgid(65534) < 0 || setuid(65534) < 0 || sd_bus_open_system(&own) < 0)
			_exit(1);
		run(own, argument, text, &error);
		_exit(dprintf(pipes[1], "%s", error.name ?: text) < 0);
	}
	close(pipes[1]);
	memset(result, 0, 128);
	assert_true(read(pipes[0], result, 127) > 0);
	close(pipes[0]);
	waitpid(pid, NULL, 0);
}

static int run_submit(sd_bus *own, const char *fd, char *ret, sd_bus_error *error)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
	const char *text;

	if (sd_bus_message_new_method_call(own, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Submit") < 0 ||
	    sd_bus_message_append(m, "ha{sv}", atoi(fd), 0) < 0 || sd_bus_call(own, m, 0, error, &reply) < 0 ||
	    sd_bus_message_read(reply, "s", &text) < 0)
		return -1;
	return snprintf(ret, 128, "%s", text);
}

static int run_submit_path(sd_bus *own, const char *path, char *ret, sd_bus_error *error)
{
	return sd_bus_call_method(own, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "SubmitPath", error, NULL, "sa{sv}",
				  path, 0);
}

static int run_submit_region(sd_bus *own, const char *path, char *ret, sd_bus_error *error)
{
	return sd_bus_call_method(own, BUS_NAME, path, BUS_INTERFACE_REGION, "Submit", error, NULL, "a{sv}", 0);
}

static int run_wait(sd_bus *own, const char *ticket, char *ret, sd_bus_error *error)
{
	return sd_bus_call_method(own, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Wait", error, NULL, "sa{sv}", ticket,
				  0);
}

static void test_belongs_to_its_user(void **state)
{
	_cleanup_close_ int fd = open_emulated();
	char result[128], other[128], ticket[TICKET_TEXT_MAX], number[16];

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	submit(ticket);
	as_nobody(run_wait, ticket, result);
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	assert_durable(ticket);

	/* Whoever has it open may submit it; by name polkit is asked, which isn't there. */
	as_nobody(run_submit_path, session.directory, result);
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	as_nobody(run_submit_region, REGION_PATH, result);
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	snprintf(number, sizeof(number), "%d", fd);
	as_nobody(run_submit, number, other);
	as_nobody(run_wait, other, result);
	assert_string_equal(result, "done");
	/* Root may wait for any. */
	as_nobody(run_submit, number, other);
	assert_durable(other);
}

/* ---- how many ---- */

static void test_bounds(void **state)
{
	static char tickets[OF_ONE_USER + 1][TICKET_TEXT_MAX];
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	pid_t worker;

	/* Those of the tests before make room for one another. */
	for (unsigned int i = 0; i < OF_ONE_USER; i++)
		submit(tickets[0]);
	assert_durable(tickets[0]);
	worker = stop_worker();
	for (unsigned int i = 0; i < OF_ONE_USER; i++)
		submit(tickets[i]);
	assert_true(call_submit(bus, 0, tickets[OF_ONE_USER], &error) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_BUSY), "have been submitted");
	assert_int_equal(kill(worker, SIGCONT), 0);
	flush();
	/* They are finished and kept, so that each new one costs the oldest of them. */
	submit(tickets[OF_ONE_USER]);
	assert_wait(tickets[0], 0, PMEM_AGENT_UNKNOWN, "made room for others");
	for (unsigned int i = 1; i <= OF_ONE_USER; i++)
		assert_durable(tickets[i]);
	wait_for_waiting(0);
}

/* The last: the agent is another one afterwards. */
static void test_restart(void **state)
{
	char ticket[TICKET_TEXT_MAX];

	submit(ticket);
	flush();
	session_kill(&session.agent);
	assert_int_equal(session_start_agent(&session, ""), 0);
	assert_wait(ticket, 0, PMEM_AGENT_UNKNOWN, "of an agent before this one");
	submit(ticket);
	assert_durable(ticket);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_room),
		cmocka_unit_test(test_submit_and_wait),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_outlives_its_connection),
		cmocka_unit_test(test_deadline_of_the_flush),
		cmocka_unit_test(test_several_wait),
		cmocka_unit_test(test_lost_since),
		cmocka_unit_test(test_belongs_to_its_user),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_restart),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
