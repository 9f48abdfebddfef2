/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-bus: the D-Bus door, on a private bus, with an emulated region
 */
#include <sys/resource.h>

#include "agent/answer.h"
#include "selftest/caller.h"
#include "selftest/process.h"
#include "selftest/stalled.h"

#define CALLS_PER_CLIENT 96

static struct stalled stalled;
static const char *stalled_missing;

static int set_up(void **state)
{
	struct rlimit limit = { 4096, 4096 };
	const char *missing;

	alarm(120);
	setrlimit(RLIMIT_NOFILE, &limit);
	stalled_missing = stalled_start(&stalled);
	missing = session_start(&session);
	if (missing) {
		print_error("test-bus needs %s\n", missing);
		return -1;
	}
	return sd_bus_open_system(&bus) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	sd_bus_flush_close_unref(bus);
	stalled_stop(&stalled);
	session_stop(&session);
	return 0;
}

/* ---- helpers ---- */

static unsigned int count_agent_fds(void)
{
	/* Whatever it had to do after its last reply is done. */
	get_number("Epoch");
	return count_fds(session.agent);
}

/* ---- what is asked and answered ---- */

static char *extract_interface(const char *xml, const char *name)
{
	char start[128];
	const char *from, *to;

	snprintf(start, sizeof(start), "<interface name=\"%s\">", name);
	from = strstr(xml, start);
	assert_non_null(from);
	to = strstr(from, "</interface>");
	assert_non_null(to);
	return strndup(from, (size_t)(to - from));
}

static void compare_interface(const char *file, const char *path, const char *interface)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	_cleanup_free_ char *theirs = NULL, *ours = NULL;
	const char *xml;

	assert_true(sd_bus_call_method(bus, BUS_NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect", NULL,
				       &reply, NULL) >= 0);
	assert_true(sd_bus_message_read(reply, "s", &xml) >= 0);
	theirs = extract_interface(xml, interface);
	ours = extract_interface(file, interface);
	assert_string_equal(theirs, ours);
}

static void test_interface_is_as_written_down(void **state)
{
	static char file[16384];
	FILE *f = fopen("units/io.pmem.Agent1.xml", "re");

	assert_non_null(f);
	assert_true(fread(file, 1, sizeof(file) - 1, f) > 0);
	fclose(f);
	compare_interface(file, BUS_PATH, BUS_INTERFACE_MANAGER);
	compare_interface(file, REGION_PATH, BUS_INTERFACE_REGION);
}

static void test_flush_by_descriptor(void **state)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
	uint64_t before = get_number("Epoch"), epoch;
	_cleanup_close_ int fd = open_emulated();

	m = new_flush(bus, fd);
	assert_true(sd_bus_call(bus, m, 0, NULL, &reply) >= 0);
	epoch = read_epoch(reply, "region");
	assert_true(epoch > before);
	assert_int_equal(get_number("Epoch"), epoch);
}

static void test_flush_by_region_and_path(void **state)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	assert_true(sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Flush", NULL, &reply, "a{sv}",
				       0) >= 0);
	read_epoch(reply, "region");
	assert_true(sd_bus_call_method(bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "FlushPath", &error, NULL,
				       "sa{sv}", session.directory, 0) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_NOT_FOUND), session.directory);
}

/* A name that is cut in the middle of a character would have the bus disconnect the agent. */
static void test_names_are_cut(void **state)
{
	static const char *const methods[] = { "FlushPath", "Wait" };
	uint64_t before = get_number("Epoch");
	char name[256] = "/", *end = name + 1;

	for (int i = 0; i < 120; i++)
		end = stpcpy(end, "\xc3\xa9");
	for (size_t i = 0; i < 2 * ARRAY_SIZE(methods); i++) {
		_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

		assert_true(sd_bus_call_method(bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, methods[i / 2], &error,
					       NULL, "sa{sv}", name + i % 2 * 3, 0) < 0);
		assert_non_null(strstr(error.message, "\xc3\xa9"));
	}
	assert_int_equal(get_number("Epoch"), before);
}

static void call_with_option(const char *key, const char *type, const char *value, const char *words)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_close_ int fd = open_emulated();

	assert_true(sd_bus_message_new_method_call(bus, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Flush") >= 0);
	if (strcmp(type, "s") == 0)
		assert_true(sd_bus_message_append(m, "ha{sv}", fd, 1, key, "s", value) >= 0);
	else
		assert_true(sd_bus_message_append(m, "ha{sv}", fd, 1, key, "b", 1) >= 0);
	assert_true(sd_bus_call(bus, m, 0, &error, NULL) < 0);
	assert_error(&error, SD_BUS_ERROR_INVALID_ARGS, words);
}

static void test_bad_options_flush_nothing(void **state)
{
	uint64_t before = get_number("Epoch");

	call_with_option("scoop", "s", "file", "\"scoop\" of type s; known: scope (s), datasync (b), timeout-usec (t)");
	call_with_option("scope", "b", NULL, "\"scope\" of type b; known: scope (s), datasync (b), timeout-usec (t)");
	call_with_option("scope", "s", "disk", "\"disk\"; known: auto, file, filesystem, region");
	call_with_option("datasync", "b", NULL, "\"datasync\" needs");
	assert_int_equal(get_number("Epoch"), before);
}

static void test_refused_descriptor(void **state)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_close_ int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);

	m = new_flush(bus, fd);
	assert_true(sd_bus_call(bus, m, 0, &error, NULL) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_ORDINARY), "proc");
}

/* ---- descriptors that nobody asked for ---- */

static void send_stray(const char *interface, const char *member, const char *types, int fd)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;

	assert_true(sd_bus_message_new_method_call(bus, &m, BUS_NAME, BUS_PATH, interface, member) >= 0);
	assert_true(sd_bus_message_append(m, types, fd, fd) >= 0);
	assert_true(sd_bus_call(bus, m, 0, NULL, NULL) < 0);
}

static void test_no_descriptor_stays(void **state)
{
	_cleanup_close_ int fd = open_emulated();
	unsigned int before;

	send_stray(BUS_INTERFACE_MANAGER, "Flush", "hh", fd);
	before = count_agent_fds();
	for (unsigned int i = 0; i < 10; i++) {
		send_stray(BUS_INTERFACE_MANAGER, "Flush", "hh", fd);
		send_stray(BUS_INTERFACE_MANAGER, "FlushPath", "hh", fd);
		send_stray(BUS_INTERFACE_MANAGER, "Submit", "hh", fd);
		send_stray("org.freedesktop.DBus.Peer", "Nothing", "hh", fd);
		test_refused_descriptor(state);
	}
	/* They go a moment later; if one didn't, this would not end. */
	while (count_agent_fds() > before)
		;
}

/*
 * dbus-daemon itself hangs when it closes such a descriptor, so its close is answered, and only the agent's is not.
 *
 * In a child, which may well hang in its own close. The name of the error comes over a pipe.
 */
static void flush_stalled_file(int result)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *m = NULL;
	sd_bus *own = NULL;
	ssize_t n;

	if (sd_bus_open_system(&own) < 0 ||
	    sd_bus_message_new_method_call(own, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Flush") < 0 ||
	    sd_bus_message_append(m, "ha{sv}", stalled_open(&stalled), 0) < 0)
		_exit(1);
	sd_bus_call(own, m, 0, &error, NULL);
	n = write(result, error.name ?: "none", strlen(error.name ?: "none"));
	_exit(n < 0);
}

static void test_stalled_descriptor(void **state)
{
	char name[128] = "";
	int pipes[2];

	if (stalled_missing) {
		print_message("# no stalled close without %s\n", stalled_missing);
		skip();
	}
	__atomic_store_n(stalled.answered, session.bus, __ATOMIC_SEQ_CST);
	for (unsigned int i = 0; i < 3; i++) {
		assert_int_equal(pipe(pipes), 0);
		if (fork() == 0)
			flush_stalled_file(pipes[1]);
		close(pipes[1]);
		assert_true(read(pipes[0], name, sizeof(name) - 1) > 0);
		close(pipes[0]);
		assert_string_equal(name, answer_dbus_error(PMEM_AGENT_ORDINARY));
		/* Closed it has been, by whoever: the filesystem was asked. */
		assert_true(stalled_wait_for_flush(&stalled));
		test_flush_by_descriptor(state);
	}
	stalled_end_server(&stalled);
}

/* ---- calls that wait ---- */

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	unsigned int *counts = userdata;

	if (sd_bus_message_is_method_error(m, SD_BUS_ERROR_LIMITS_EXCEEDED))
		counts[1]++;
	else if (sd_bus_message_is_method_error(m, NULL))
		counts[2]++;
	else
		counts[0]++;
	return 1;
}

static void begin_flush(sd_bus *from, unsigned int *counts)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_close_ int fd = open_emulated();

	m = new_flush(from, fd);
	assert_true(sd_bus_call_async(from, NULL, m, on_reply, counts, UINT64_MAX) >= 0);
}

static void test_many_calls_wait_and_are_answered(void **state)
{
	unsigned int counts[3] = { 0 };
	pid_t worker = find_worker();

	stop_process(worker);
	for (unsigned int i = 0; i < CALLS_PER_CLIENT + 1; i++)
		begin_flush(bus, counts);
	while (counts[1] == 0)
		process(bus);
	assert_int_equal(counts[0], 0);
	wait_for_waiting(CALLS_PER_CLIENT);
	wait_until_in_flight();
	assert_true(state_is("in-flight"));
	assert_int_equal(kill(worker, SIGCONT), 0);
	while (counts[0] < CALLS_PER_CLIENT)
		process(bus);
	assert_int_equal(counts[1], 1);
	assert_int_equal(counts[2], 0);
	wait_for_waiting(0);
}

/* Its request goes, the round that it began does not. */
static void test_client_leaves(void **state)
{
	unsigned int counts[3] = { 0 };
	pid_t worker = find_worker();
	sd_bus *other = NULL;

	assert_true(sd_bus_open_system(&other) >= 0);
	stop_process(worker);
	for (unsigned int i = 0; i < 20; i++)
		begin_flush(other, counts);
	assert_true(sd_bus_flush(other) >= 0);
	wait_for_waiting(20);
	wait_until_in_flight();
	sd_bus_close_unref(other);
	wait_for_waiting(0);
	assert_true(state_is("in-flight"));
	assert_int_equal(kill(worker, SIGCONT), 0);
	while (!state_is("idle"))
		;
}

/* More of them than the bus has room for matches: nobody is told of their leaving, and all are served. */
static void test_more_clients_than_matches(void **state)
{
	sd_bus *others[120] = { NULL };
	unsigned int counts[3] = { 0 };
	pid_t worker;

	assert_true((size_t)atoi(SESSION_MAX_MATCHES) < ARRAY_SIZE(others));
	test_flush_by_descriptor(state);
	worker = find_worker();
	stop_process(worker);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		assert_true(sd_bus_open_system(&others[i]) >= 0);
		begin_flush(others[i], counts);
		assert_true(sd_bus_flush(others[i]) >= 0);
	}
	wait_for_waiting(ARRAY_SIZE(others));
	assert_int_equal(kill(worker, SIGCONT), 0);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		while (counts[0] + counts[1] + counts[2] <= i)
			process(others[i]);
		sd_bus_flush_close_unref(others[i]);
	}
	assert_int_equal(counts[0], ARRAY_SIZE(others));
	wait_for_waiting(0);
	test_flush_by_descriptor(state);
}

/* ---- who may ---- */

/* Stands for polkit: says yes to what it is asked properly, and asks for a password where that is allowed. */
static int on_check(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *kind, *key, *name, *action;
	uint32_t flags;

	if (!sd_bus_message_is_method_call(m, "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization"))
		return 0;
	if (sd_bus_message_read(m, "(sa{sv})sa{ss}u", &kind, 1, &key, "s", &name, &action, 0, &flags) < 0 ||
	    strcmp(kind, "system-bus-name") != 0 || strcmp(key, "name") != 0 || name[0] != ':' ||
	    strcmp(action, userdata) != 0)
		return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_INVALID_ARGS, "not what polkit is asked");
	return sd_bus_reply_method_return(m, "(bba{ss})", flags == 1, flags == 0, 1, "polkit.retains", "1");
}

/* A flush, or the acknowledgement of this loss. */
static int append_arguments(sd_bus_message *m, uint64_t loss)
{
	return loss ? sd_bus_message_append(m, "t", loss) : sd_bus_message_append(m, "a{sv}", 0);
}

/* As nobody: "none" or the name of the error. */
static void call_as_nobody(uint64_t loss, bool interactive, char *result, size_t size)
{
	const char *method = loss ? "AcknowledgeLoss" : "Flush";
	int pipes[2];
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	if (pid == 0) {
		sd_bus_error error = SD_BUS_ERROR_NULL;
		sd_bus_message *m = NULL;
		sd_bus *own = NULL;

		if (setgid(65534) < 0 || setuid(65534) < 0 || sd_bus_open_system(&own) < 0 ||
		    sd_bus_message_new_method_call(own, &m, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, method) < 0 ||
		    append_arguments(m, loss) < 0 ||
		    sd_bus_message_set_allow_interactive_authorization(m, interactive) < 0)
			_exit(1);
		sd_bus_call(own, m, 0, &error, NULL);
		_exit(dprintf(pipes[1], "%s", error.name ?: "none") < 0);
	}
	close(pipes[1]);
	memset(result, 0, size);
	assert_true(read(pipes[0], result, size - 1) > 0);
	close(pipes[0]);
	waitpid(pid, NULL, 0);
}

static void test_others_need_polkit(void **state)
{
	char result[128];
	uint64_t before = get_number("Epoch");
	pid_t authority;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	let_others_in();
	call_as_nobody(0, true, result, sizeof(result));
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	authority = start_authority(on_check, "io.pmem.agent.flush");
	call_as_nobody(0, false, result, sizeof(result));
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	assert_int_equal(get_number("Epoch"), before);
	call_as_nobody(0, true, result, sizeof(result));
	assert_string_equal(result, "none");
	assert_int_equal(get_number("Epoch"), before + 1);
	session_kill(&authority);
}

/* ---- what is told unasked ---- */

static int on_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	++*(unsigned int *)userdata;
	return 0;
}

static void test_changes_are_told_now_and_then(void **state)
{
	_cleanup_(sd_bus_slot_unrefp) sd_bus_slot *slot = NULL;
	uint64_t begun = now_usec(CLOCK_MONOTONIC), elapsed;
	static unsigned int n;
	unsigned int flushes = 0;

	n = 0;
	assert_true(sd_bus_match_signal(bus, &slot, BUS_NAME, REGION_PATH, "org.freedesktop.DBus.Properties",
					"PropertiesChanged", on_changed, &n) >= 0);
	while (flushes < 300 || n < 2) {
		if (flushes++ < 5000)
			test_flush_by_region_and_path(state);
		while (sd_bus_process(bus, NULL) > 0)
			;
	}
	elapsed = now_usec(CLOCK_MONOTONIC) - begun;
	assert_true(n <= elapsed / (100 * USEC_PER_MSEC) + 2);
	/* Fewer than there are flushes, unless those take their time. */
	assert_true(n < flushes / 2 || elapsed / flushes > 20 * USEC_PER_MSEC);
}

static int on_lost(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *interface, *name, *type, *text = "";
	bool *lost = userdata;

	assert_true(sd_bus_message_read(m, "s", &interface) >= 0);
	assert_true(sd_bus_message_enter_container(m, 'a', "{sv}") >= 0);
	while (sd_bus_message_enter_container(m, 'e', "sv") > 0) {
		assert_true(sd_bus_message_read(m, "s", &name) >= 0);
		assert_true(sd_bus_message_peek_type(m, NULL, &type) >= 0);
		if (strcmp(name, "State") == 0)
			assert_true(sd_bus_message_read(m, "v", "s", &text) >= 0);
		else
			assert_true(sd_bus_message_skip(m, "v") >= 0);
		assert_true(sd_bus_message_exit_container(m) >= 0);
		*lost |= strcmp(text, "lost") == 0;
	}
	return 0;
}

static void lose_by_worker(unsigned int *counts)
{
	pid_t worker = find_worker();

	stop_process(worker);
	begin_flush(bus, counts);
	wait_until_in_flight();
	assert_int_equal(kill(worker, SIGKILL), 0);
}

static void test_loss_is_told_and_answered(void **state)
{
	_cleanup_(sd_bus_slot_unrefp) sd_bus_slot *slot = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	_cleanup_free_ char *origin = NULL;
	_cleanup_close_ int fd = open_emulated();
	unsigned int counts[3] = { 0 };
	bool lost = false;

	assert_true(sd_bus_match_signal(bus, &slot, BUS_NAME, REGION_PATH, "org.freedesktop.DBus.Properties",
					"PropertiesChanged", on_lost, &lost) >= 0);
	lose_by_worker(counts);
	while (counts[2] == 0 || !lost)
		process(bus);
	assert_int_equal(counts[0], 0);
	assert_int_equal(get_number("Loss"), 1);
	assert_true(sd_bus_get_property_string(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "LossOrigin", NULL,
					       &origin) >= 0);
	assert_string_equal(origin, "worker");
	m = new_flush(bus, fd);
	assert_true(sd_bus_call(bus, m, 0, &error, NULL) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_LOST), "emu0");
}

static int acknowledge(uint64_t loss, sd_bus_error *error)
{
	return sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "AcknowledgeLoss", error, NULL, "t",
				  loss);
}

static int on_idle(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	*(bool *)userdata = state_is("idle");
	return 0;
}

/* After the loss of the test before. */
static void test_acknowledge(void **state)
{
	_cleanup_(sd_bus_slot_unrefp) sd_bus_slot *slot = NULL;
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	bool told = false;

	assert_true(acknowledge(0, &error) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_STALE_LOSS), "the newest loss of emu0 is 1, not 0");
	sd_bus_error_free(&error);
	assert_true(acknowledge(2, &error) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_STALE_LOSS), "the newest loss of emu0 is 1, not 2");
	sd_bus_error_free(&error);
	assert_true(state_is("lost"));

	assert_true(sd_bus_match_signal(bus, &slot, BUS_NAME, REGION_PATH, "org.freedesktop.DBus.Properties",
					"PropertiesChanged", on_idle, &told) >= 0);
	assert_true(acknowledge(1, NULL) >= 0);
	while (!told)
		process(bus);
	assert_int_equal(get_number("Loss"), 0);
	assert_int_equal(get_number("Acknowledged"), 1);
	assert_true(acknowledge(1, &error) < 0);
	assert_error(&error, answer_dbus_error(PMEM_AGENT_STALE_LOSS), "no loss");
	test_flush_by_descriptor(state);
}

static void test_others_need_polkit_to_acknowledge(void **state)
{
	unsigned int counts[3] = { 0 };
	char result[128];
	pid_t authority;

	if (geteuid() != 0) {
		print_message("# another user needs root\n");
		skip();
	}
	let_others_in();
	lose_by_worker(counts);
	while (counts[2] == 0)
		process(bus);
	call_as_nobody(2, true, result, sizeof(result));
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	/* Who may flush may not yet acknowledge. */
	authority = start_authority(on_check, "io.pmem.agent.flush");
	call_as_nobody(2, true, result, sizeof(result));
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	session_kill(&authority);
	authority = start_authority(on_check, "io.pmem.agent.acknowledge");
	call_as_nobody(2, false, result, sizeof(result));
	assert_string_equal(result, answer_dbus_error(PMEM_AGENT_DENIED));
	assert_true(state_is("lost"));
	call_as_nobody(2, true, result, sizeof(result));
	assert_string_equal(result, "none");
	assert_true(state_is("idle"));
	session_kill(&authority);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_interface_is_as_written_down),
		cmocka_unit_test(test_flush_by_descriptor),
		cmocka_unit_test(test_flush_by_region_and_path),
		cmocka_unit_test(test_names_are_cut),
		cmocka_unit_test(test_bad_options_flush_nothing),
		cmocka_unit_test(test_refused_descriptor),
		cmocka_unit_test(test_no_descriptor_stays),
		cmocka_unit_test(test_stalled_descriptor),
		cmocka_unit_test(test_many_calls_wait_and_are_answered),
		cmocka_unit_test(test_client_leaves),
		cmocka_unit_test(test_more_clients_than_matches),
		cmocka_unit_test(test_others_need_polkit),
		cmocka_unit_test(test_changes_are_told_now_and_then),
		cmocka_unit_test(test_loss_is_told_and_answered),
		cmocka_unit_test(test_acknowledge),
		cmocka_unit_test(test_others_need_polkit_to_acknowledge),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
