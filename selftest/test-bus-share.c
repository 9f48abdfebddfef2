/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-bus-share: the D-Bus door: what one user may have of it, while others are served
 */
#include <poll.h>
#include <sys/resource.h>

#include "agent/answer.h"
#include "selftest/caller.h"
#include "selftest/process.h"

#define N_FILES          4096
#define MAX_CALLS        (N_FILES / 4) /* as bus.c says */
#define CALLS_PER_CLIENT 96
#define CALLS_PER_USER   (MAX_CALLS / 4)
#define CHECKS_PER_USER  24
#define CALLS_OF_OTHERS  (MAX_CALLS - MAX_CALLS / 8)
#define N_CLIENTS        12 /* more than enough to have all calls, and as many of each of four users */
#define NOBODY           65534
#define SOMEBODY         1 /* daemon: the bus lets in whom it knows */

static sd_bus *crowd[N_CLIENTS];

/* By what they were answered. */
static struct {
	unsigned int well, too_many, else_wise;
} counts;

static int set_up(void **state)
{
	struct rlimit limit = { N_FILES, N_FILES };
	const char *missing;

	alarm(120);
	setrlimit(RLIMIT_NOFILE, &limit);
	missing = session_start(&session);
	if (missing) {
		print_error("test-bus-share needs %s\n", missing);
		return -1;
	}
	let_others_in();
	return sd_bus_open_system(&bus) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	sd_bus_flush_close_unref(bus);
	session_stop(&session);
	return 0;
}

/* ---- others ---- */

/* As that user, where we can be; else as ourselves. */
static sd_bus *open_bus_as(uid_t uid)
{
	const char *name;
	sd_bus *b = NULL;
	int r;
	bool root = geteuid() == 0;

	assert_true(!root || seteuid(uid) == 0);
	assert_true(sd_bus_open_system(&b) >= 0);
	/* Who we are is asked until the bus has let us in. */
	r = sd_bus_get_unique_name(b, &name);
	if (r < 0)
		fail_msg("uid %u is not let in: %s", (unsigned int)uid, strerrordesc_np(-r));
	assert_true(!root || seteuid(0) == 0);
	return b;
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	if (sd_bus_message_is_method_error(m, SD_BUS_ERROR_LIMITS_EXCEEDED))
		counts.too_many++;
	else if (sd_bus_message_is_method_error(m, NULL))
		counts.else_wise++;
	else
		counts.well++;
	return 1;
}

static void open_crowd(const uid_t *uids, unsigned int n_uids)
{
	memset(&counts, 0, sizeof(counts));
	for (unsigned int i = 0; i < N_CLIENTS; i++)
		crowd[i] = open_bus_as(uids[i % n_uids]);
}

static const uid_t nobody[] = { NOBODY };

/* What has come, and waits for more. */
static void process_crowd(void)
{
	struct pollfd polls[N_CLIENTS];
	unsigned int n = 0;

	for (unsigned int i = 0; i < N_CLIENTS; i++) {
		while (sd_bus_process(crowd[i], NULL) > 0)
			n++;
		polls[i] = (struct pollfd){ .fd = sd_bus_get_fd(crowd[i]), .events = POLLIN };
	}
	if (n == 0)
		assert_true(poll(polls, N_CLIENTS, -1) > 0);
}

static void close_crowd(void)
{
	for (unsigned int i = 0; i < N_CLIENTS; i++)
		crowd[i] = sd_bus_flush_close_unref(crowd[i]);
}

/* What is asked for is not there; but it is looked for. */
static void assert_others_are_heard(void)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	assert_true(sd_bus_call_method(bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "FlushPath", &error, NULL,
				       "sa{sv}", session.directory, 0) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_NOT_FOUND), session.directory);
}

static void assert_others_are_served(void)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_close_ int fd = open_emulated();

	m = new_flush(bus, fd);
	if (sd_bus_call(bus, m, 0, &error, &reply) < 0)
		fail_msg("%s: %s", error.name, error.message);
}

/* ---- calls ---- */

static char *submit(sd_bus *from)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
	_cleanup_close_ int fd = open_emulated();
	const char *ticket;

	assert_true(sd_bus_message_new_method_call(from, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Submit") >= 0);
	assert_true(sd_bus_message_append(m, "ha{sv}", fd, 0) >= 0);
	assert_true(sd_bus_call(from, m, 0, NULL, &reply) >= 0);
	assert_true(sd_bus_message_read(reply, "s", &ticket) >= 0);
	return strdup(ticket);
}

static unsigned int wait_in_crowd(unsigned int client, const char *ticket)
{
	for (unsigned int j = 0; j < CALLS_PER_CLIENT; j++)
		assert_true(sd_bus_call_method_async(crowd[client], NULL, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER,
						     "Wait", on_reply, NULL, "sa{sv}", ticket, 0) >= 0);
	assert_true(sd_bus_flush(crowd[client]) >= 0);
	return CALLS_PER_CLIENT;
}

/* Whatever the number of their connections: those of one user share what one user may have. */
static void test_calls_of_a_user(void **state)
{
	_cleanup_free_ char *ticket = NULL;
	unsigned int n = 0;
	pid_t worker;

	assert_others_are_served();
	worker = find_worker();
	open_crowd(nobody, 1);
	stop_process(worker);
	ticket = submit(crowd[0]);
	for (unsigned int i = 0; i < N_CLIENTS; i++)
		n += wait_in_crowd(i, ticket);
	assert_true(n > MAX_CALLS);
	while (counts.too_many < n - CALLS_PER_USER)
		process_crowd();
	if (geteuid() == 0)
		assert_others_are_heard();
	assert_int_equal(kill(worker, SIGCONT), 0);
	while (counts.well + counts.too_many + counts.else_wise < n)
		process_crowd();
	assert_int_equal(counts.well + counts.else_wise, CALLS_PER_USER);
	assert_int_equal(counts.too_many, n - CALLS_PER_USER);
	close_crowd();
	assert_others_are_served();
}

/* Four users have all but those that are kept for root. */
static void test_calls_of_many_users(void **state)
{
	static const uid_t uids[] = { NOBODY, SOMEBODY, 2, 3 };
	char *tickets[N_CLIENTS];
	unsigned int n = 0;
	pid_t worker;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	assert_others_are_served();
	worker = find_worker();
	open_crowd(uids, ARRAY_SIZE(uids));
	stop_process(worker);
	for (unsigned int i = 0; i < N_CLIENTS; i++)
		tickets[i] = submit(crowd[i]);
	for (unsigned int i = 0; i < N_CLIENTS; i++) {
		n += wait_in_crowd(i, tickets[i]);
		free(tickets[i]);
	}
	assert_true(n > MAX_CALLS);
	while (counts.too_many < n - MAX_CALLS)
		process_crowd();
	assert_others_are_heard();
	while (counts.too_many < n - CALLS_OF_OTHERS)
		process_crowd();
	assert_int_equal(kill(worker, SIGCONT), 0);
	while (counts.well + counts.too_many + counts.else_wise < n)
		process_crowd();
	assert_int_equal(counts.too_many, n - CALLS_OF_OTHERS);
	close_crowd();
	assert_others_are_served();
}

/* ---- checks by polkit ---- */

/* Stands for polkit: lets everybody, but nobody waits for a password that is never typed. */
static int on_check(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_(sd_bus_creds_unrefp) sd_bus_creds *creds = NULL;
	const char *kind, *key, *name, *action;
	uid_t uid;

	if (!sd_bus_message_is_method_call(m, "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization"))
		return 0;
	if (sd_bus_message_read(m, "(sa{sv})s", &kind, 1, &key, "s", &name, &action) < 0 ||
	    sd_bus_get_name_creds(sd_bus_message_get_bus(m), name, SD_BUS_CREDS_EUID, &creds) < 0 ||
	    sd_bus_creds_get_euid(creds, &uid) < 0)
		return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_INVALID_ARGS, "not what polkit is asked");
	return uid == NOBODY ? 1 : sd_bus_reply_method_return(m, "(bba{ss})", 1, 0, 0);
}

static sd_bus_message *new_flush_by_name(sd_bus *from)
{
	sd_bus_message *m = NULL;

	assert_true(sd_bus_message_new_method_call(from, &m, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Flush") >=
		    0);
	assert_true(sd_bus_message_append(m, "a{sv}", 0) >= 0);
	assert_true(sd_bus_message_set_allow_interactive_authorization(m, true) >= 0);
	return m;
}

/* The bus lets us wait for so many replies and no more. */
static void test_checks_of_a_user(void **state)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	unsigned int n = 0;
	sd_bus *somebody;
	pid_t authority;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	authority = start_authority(on_check, NULL);
	open_crowd(nobody, 1);
	for (unsigned int i = 0; i < 3; i++) {
		for (unsigned int j = 0; j < 64; j++, n++) {
			_cleanup_(sd_bus_message_unrefp) sd_bus_message *call = new_flush_by_name(crowd[i]);

			assert_true(sd_bus_call_async(crowd[i], NULL, call, on_reply, NULL, UINT64_MAX) >= 0);
		}
		assert_true(sd_bus_flush(crowd[i]) >= 0);
	}
	while (counts.too_many + counts.else_wise < n - CHECKS_PER_USER)
		process_crowd();
	assert_int_equal(counts.too_many, n - CHECKS_PER_USER);
	somebody = open_bus_as(SOMEBODY);
	m = new_flush_by_name(somebody);
	if (sd_bus_call(somebody, m, 0, &error, NULL) < 0)
		fail_msg("%s: %s", error.name, error.message);
	sd_bus_flush_close_unref(somebody);
	close_crowd();
	session_kill(&authority);
	assert_others_are_served();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_calls_of_a_user),
		cmocka_unit_test(test_calls_of_many_users),
		cmocka_unit_test(test_checks_of_a_user),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
