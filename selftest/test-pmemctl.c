/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-pmemctl: the tool against an agent with an emulated region, and its tables against its manual page
 */
#include "agent/answer.h"
#include "selftest/process.h"
#include "selftest/pmemctl.h"

static int set_up(void **state)
{
	const char *missing;

	alarm(120);
	setenv("TZ", "UTC", 1);
	missing = session_start(&session);
	if (missing)
		print_error("test-pmemctl needs %s\n", missing);
	return missing ? -1 : 0;
}

static int tear_down(void **state)
{
	session_stop(&session);
	return 0;
}

/* ---- the tables against what is written about them ---- */

static char *load(const char *path)
{
	static char text[65536];
	FILE *f = fopen(path, "re");

	assert_non_null(f);
	read_back(f, text, sizeof(text));
	return text;
}

static void assert_written(const char *path, const char *before, const char *name, const char *after)
{
	char words[128];

	snprintf(words, sizeof(words), "%s%s%s", before, name, after);
	if (!strstr(load(path), words))
		print_error("%s has no \"%s\"\n", path, words);
	assert_non_null(strstr(load(path), words));
}

static void test_verbs_and_options_are_written_down(void **state)
{
	assert_int_equal(run("--help"), 0);
	for (unsigned int i = 0; i < ctl_n_verbs; i++) {
		assert_written("agent/pmemctl.1.scd", "\n*", ctl_verbs[i].name, "*");
		assert_written("agent/pmemctl.bash", "", ctl_verbs[i].name, "");
		assert_says(out, ctl_verbs[i].help);
	}
	for (unsigned int i = 0; i < ctl_n_options; i++) {
		char option[64];

		snprintf(option, sizeof(option), "--%s", ctl_options[i]);
		assert_written("agent/pmemctl.1.scd", "*", option, "*");
		assert_written("agent/pmemctl.bash", "", option, "");
		assert_says(out, option);
	}
}

static void test_exit_statuses_are_written_down(void **state)
{
	for (unsigned int i = 0; i < PMEM_AGENT_N_ANSWERS; i++) {
		const struct answer *a = answer_get(i);
		char row[128];

		snprintf(row, sizeof(row), "\n|  %d\n:  %s\n", a->exit_status, a->name);
		assert_written("agent/pmemctl.1.scd", "", row, "");
		if (i != PMEM_AGENT_DURABLE)
			assert_written("agent/io.pmem.Agent1.5.scd", "*", a->name, "*");
	}
}

static unsigned int check_members(const char *start_of_name)
{
	_cleanup_free_ char *xml = strdup(load("units/io.pmem.Agent1.xml"));
	unsigned int n = 0;

	for (char *p = xml; (p = strstr(p, start_of_name)); n++) {
		p += strlen(start_of_name);
		p[strcspn(p, "\"")] = '\0';
		assert_written("agent/io.pmem.Agent1.5.scd", "*", p, "*");
		p += strlen(p) + 1;
	}
	return n;
}

static void test_interface_is_written_down(void **state)
{
	assert_in_range(check_members("<property name=\""), 20, 100);
	assert_in_range(check_members("<method name=\""), 9, 100);
	assert_in_range(check_members("<signal name=\""), 4, 100);
}

/* ---- usage ---- */

static void test_wrong_usage(void **state)
{
	assert_int_equal(run("--scope=file"), CTL_EXIT_USAGE);
	assert_says(err, "Known: list, status, flush, wait, stats, acknowledge, watch");
	assert_int_equal(run("flash"), CTL_EXIT_USAGE);
	assert_says(err, "unknown verb flash");
	assert_int_equal(run("--nonsense", "list"), CTL_EXIT_USAGE);
	assert_says(err, "--nonsense");
	assert_int_equal(run("list", "emu0"), CTL_EXIT_USAGE);
	assert_int_equal(run("flush"), CTL_EXIT_USAGE);
	assert_int_equal(run("flush", "--all", "/"), CTL_EXIT_USAGE);
	assert_int_equal(run("list", "--all"), CTL_EXIT_USAGE);
	assert_int_equal(run("flush", "--scope=disk", "/"), CTL_EXIT_USAGE);
	assert_says(err, "disk");
	assert_int_equal(run("flush", "--scope=region", "--datasync", "/"), CTL_EXIT_USAGE);
	assert_int_equal(run("flush", "--scope=file", "emu0"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "--loss=1"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0", "emu1", "--loss=1"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0", "--loss=0"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0", "--loss=1x"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0", "--loss=99999999999999999999"), CTL_EXIT_USAGE);
	assert_says(err, "99999999999999999999");
	assert_int_equal(run("flush", "--loss=1", "emu0"), CTL_EXIT_USAGE);
	assert_int_equal(run("wait"), CTL_EXIT_USAGE);
	assert_int_equal(run("wait", "nonsense"), CTL_EXIT_USAGE);
	assert_says(err, "\"nonsense\" is no ticket");
	assert_int_equal(run("wait", "--all", "nonsense"), CTL_EXIT_USAGE);
	assert_int_equal(run("status", "--no-wait"), CTL_EXIT_USAGE);
	assert_int_equal(run("flush", "--no-wait", "--fallback", "/"), CTL_EXIT_USAGE);
	assert_int_equal(run("--version"), 0);
	assert_says(out, PMEM_AGENT_VERSION);
}

/* ---- what it does ---- */

static void test_list_and_status(void **state)
{
	struct json_object *json;

	assert_int_equal(run("list"), 0);
	assert_says(out, "emu0");
	assert_says(out, session.emulated);
	assert_int_equal(run("list", "--json"), 0);
	json = parse("regions", 1);
	assert_string_equal(get(json, "regions", 0, "region"), "emu0");
	assert_string_equal(get(json, "regions", 0, "asynchronous"), "true");
	assert_string_equal(get(json, "regions", 0, "size"), "1048576");
	assert_string_equal(get(json, "regions", 0, "resource"), "null");
	json_object_put(json);
	assert_int_equal(run("status", "emu0"), 0);
	assert_says(out, "idle");
	assert_int_equal(run("status", "emu0", "nothing"), 15);
	assert_says(err, "nothing: there is no such region");
	assert_says(out, "emu0");
	assert_int_equal(run("status", "--quiet"), 0);
	assert_string_equal(out, "");
}

static void test_flush(void **state)
{
	struct json_object *json;

	assert_int_equal(run("flush", "emu0"), 0);
	assert_says(out, "emu0: durable (region, emu0 epoch 1, own-flush)");
	assert_int_equal(run("flush", "--all"), 0);
	assert_says(out, "epoch 2");
	assert_int_equal(run("flush", "--quiet", session.emulated), 0);
	assert_string_equal(out, "");
	assert_string_equal(err, "");
	assert_int_equal(run("flush", "--json", "emu0", session.emulated), 0);
	json = parse("flushes", 2);
	assert_string_equal(get(json, "flushes", 0, "answer"), "Durable");
	assert_string_equal(get(json, "flushes", 0, "regions"), "[ \"emu0\" ]");
	assert_string_equal(get(json, "flushes", 1, "target"), session.emulated);
	json_object_put(json);
	assert_int_equal(run("status"), 0);
	assert_says(out, "durable: what was stored before 2");
}

/* Each failure has one line; the others are tried all the same. */
static void test_failures(void **state)
{
	struct json_object *json;
	char path[128];

	snprintf(path, sizeof(path), "%s/nothing", session.directory);
	assert_int_equal(run("flush", path), 15);
	assert_says(err, path);
	assert_int_equal(run("flush", "nothing"), 15);
	assert_says(err, "nothing: there is no such region, file or directory");
	assert_int_equal(run("flush", "/proc/self/status"), 7);
	assert_says(err, "pmemctl: /proc/self/status: ");
	assert_int_equal(run("flush", "--json", path, "/proc/self/status", "emu0"), 15);
	json = parse("flushes", 3);
	assert_string_equal(get(json, "flushes", 0, "answer"), "NotFound");
	assert_string_equal(get(json, "flushes", 1, "answer"), "OrdinaryStorage");
	assert_string_equal(get(json, "flushes", 2, "answer"), "Durable");
	json_object_put(json);
}

static void test_no_permission(void **state)
{
	char path[128], socket[128];
	int fd;

	snprintf(path, sizeof(path), "%s/closed", session.directory);
	snprintf(socket, sizeof(socket), "%s/bus", session.directory);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0);
	assert_true(fd >= 0);
	close(fd);
	/* To root nothing is closed. */
	as_nobody = geteuid() == 0;
	assert_int_equal(chmod(session.directory, 0755), 0);
	assert_int_equal(chmod(socket, 0666), 0);
	assert_int_equal(run("flush", path), 16);
	assert_says(err, "you may neither read nor write it");
	/* It gets as far as the agent. */
	assert_int_equal(chmod(path, 0222), 0);
	assert_int_equal(run("flush", path), 7);
	if (as_nobody) {
		assert_int_equal(run("flush", "emu0"), 16);
		assert_says(err, "polkit");
	}
	as_nobody = false;
	unlink(path);
}

static void test_fallback(void **state)
{
	struct json_object *json;

	assert_int_equal(run("flush", "--fallback", session.directory, "/proc/self/status", "emu0"), 1);
	assert_says(out, "synced with syncfs(2), not through a region");
	assert_says(out, "emu0: durable");
	assert_says(err, "fsync(2): ");
	assert_int_equal(run("flush", "--fallback", "--json", session.directory), 0);
	json = parse("flushes", 1);
	assert_string_equal(get(json, "flushes", 0, "answer"), "Synced");
	json_object_put(json);
	/* What is in it, not its own entry. */
	assert_int_equal(run("flush", "--fallback", "--scope=region", session.directory), 0);
	assert_says(out, "synced with syncfs(2)");
	assert_int_equal(run("flush", "--fallback", "--scope=file", session.directory), 0);
	assert_says(out, "synced with fsync(2)");
}

/* Neither is needed for it where there is no region, nor to be told that it is asked for wrongly. */
static void test_no_bus(void **state)
{
	_cleanup_free_ char *bus = strdup(getenv("DBUS_SYSTEM_BUS_ADDRESS"));

	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1);
	assert_int_equal(run("flush", session.directory), CTL_EXIT_FAILURE);
	assert_says(err, "no connection to D-Bus");
	assert_int_equal(run("flush"), CTL_EXIT_USAGE);
	assert_int_equal(run("wait"), CTL_EXIT_USAGE);
	assert_int_equal(run("acknowledge", "emu0", "--loss=x"), CTL_EXIT_USAGE);
	assert_int_equal(run("run", "--json", "--", "true"), CTL_EXIT_USAGE);
	if (access("/sys/bus/nd/devices/region0", F_OK) < 0) {
		assert_int_equal(run("flush", "--fallback", session.directory), 0);
		assert_says(out, "synced with syncfs(2)");
		assert_int_equal(run("flush", "--fallback", "/nonexistent"), 15);
		assert_int_equal(run("flush", "--fallback", "--all"), 0);
	} else {
		assert_int_equal(run("flush", "--fallback", session.directory), CTL_EXIT_FAILURE);
	}
	setenv("DBUS_SYSTEM_BUS_ADDRESS", bus, 1);
}

/* ---- a host that does not answer ---- */

static void test_waits_watches_and_tells_the_loss(void **state)
{
	FILE *to = tmpfile(), *errors = tmpfile(), *events = tmpfile(), *watch_errors = tmpfile();
	pid_t worker = session_worker(&session), flush, watch;
	int status;

	assert_true(worker > 1);
	watch = start(events, watch_errors, (const char *const[]){ "watch", "--json", NULL });
	stop_process(worker);
	flush = start(to, errors, (const char *const[]){ "flush", "emu0", NULL });
	wait_until_state("\"in-flight\"");
	assert_int_equal(waitpid(flush, NULL, WNOHANG), 0);
	assert_int_equal(kill(worker, SIGKILL), 0);
	waitpid(flush, &status, 0);
	assert_int_equal(WEXITSTATUS(status), 3);
	read_back(errors, err, sizeof(err));
	assert_says(err, "pmemctl: emu0: ");
	assert_says(err, "loss 1");
	read_back(to, out, sizeof(out));
	assert_string_equal(out, "");

	assert_int_equal(run("status"), 3);
	assert_says(out, "lost");
	assert_says(out, "noticed by worker");
	assert_int_equal(run("flush", "emu0", "nothing"), 3);
	assert_int_equal(run("flush", "nothing", "emu0"), 3);

	do {
		struct stat st;

		assert_int_equal(fstat(fileno(events), &st), 0);
		assert_true((size_t)st.st_size < sizeof(out));
		memset(out, 0, sizeof(out));
		assert_true(pread(fileno(events), out, sizeof(out) - 1, 0) >= 0);
		assert_int_equal(waitpid(watch, NULL, WNOHANG), 0);
	} while (!strstr(out, "\"state\":\"lost\""));
	assert_says(out, "{\"time_usec\":");
	kill(watch, SIGKILL);
	waitpid(watch, NULL, 0);
	fclose(events);
	fclose(watch_errors);
}

static void test_times_out(void **state)
{
	pid_t worker;

	assert_int_equal(run("flush", "emu0"), 0);
	worker = session_worker(&session);
	assert_true(worker > 1);
	stop_process(worker);
	assert_int_equal(run("flush", "--timeout=0.05", "emu0"), 18);
	assert_says(err, "pmemctl: emu0: ");
	assert_says(err, "by your deadline; do not rely on it");
	wait_until_state("\"in-flight\"");
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_int_equal(run("flush", "--timeout=60", "emu0"), 0);

	assert_int_equal(run("flush", "--timeout=0", "emu0"), 2);
	assert_int_equal(run("flush", "--timeout=", "emu0"), 2);
	assert_int_equal(run("flush", "--timeout=1s", "emu0"), 2);
	assert_int_equal(run("flush", "--timeout=.5", "emu0"), 2);
	assert_int_equal(run("list", "--timeout=1"), 2);
}

/* The first line of what was printed. */
static char *first_line(void)
{
	return strndup(out, strcspn(out, "\n"));
}

static void test_no_wait(void **state)
{
	_cleanup_free_ char *ticket = NULL, *other = NULL;
	struct json_object *json;
	pid_t worker;

	assert_int_equal(run("flush", "--no-wait", "emu0", session.emulated), 0);
	ticket = first_line();
	other = strdup(out + strlen(ticket) + 1);
	other[strcspn(other, "\n")] = '\0';
	assert_string_not_equal(ticket, other);
	assert_int_equal(strlen(out), strlen(ticket) + strlen(other) + 2);
	assert_int_equal(run("wait", ticket, other), 0);
	assert_says(out, ticket);
	assert_says(out, ": durable (region, emu0 epoch ");
	assert_int_equal(run("wait", ticket), 4);
	assert_says(err, "the ticket is not there");

	/* Who was refused has no ticket, and the others have theirs. */
	assert_int_equal(run("flush", "--no-wait", "--json", "/proc/self/status", "emu0"), 7);
	json = parse("flushes", 2);
	assert_string_equal(get(json, "flushes", 0, "ticket"), "null");
	assert_string_equal(get(json, "flushes", 1, "answer"), "Submitted");
	assert_int_equal(run("wait", "--json", get(json, "flushes", 1, "ticket")), 0);
	json_object_put(json);
	json = parse("flushes", 1);
	assert_string_equal(get(json, "flushes", 0, "answer"), "Durable");
	assert_string_equal(get(json, "flushes", 0, "target"), "null");
	json_object_put(json);

	worker = session_worker(&session);
	stop_process(worker);
	assert_int_equal(run("flush", "--no-wait", "emu0"), 0);
	free(ticket);
	ticket = first_line();
	assert_int_equal(run("wait", "--timeout=0.05", ticket), 18);
	assert_says(err, "wait for the ticket again");
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_int_equal(run("wait", "--timeout=60", ticket), 0);
}

static void test_acknowledge(void **state)
{
	assert_int_equal(run("status"), 3);
	assert_says(out, "pmemctl acknowledge emu0 --loss=1");
	assert_says(out, "of stores since epoch ");
	assert_int_equal(run("acknowledge", "nothing", "--loss=1"), 15);
	assert_int_equal(run("acknowledge", "emu0", "--loss=2"), 17);
	assert_says(err, "the newest loss of emu0 is 1, not 2");
	assert_int_equal(run("acknowledge", "--json", "emu0", "--loss=2"), 17);
	assert_says(out, "\"answer\":\"StaleLoss\"");
	assert_int_equal(run("flush", "emu0"), 3);

	assert_int_equal(run("acknowledge", "emu0", "--loss=1"), 0);
	assert_says(out, "emu0: loss 1 is acknowledged");
	assert_int_equal(run("acknowledge", "emu0", "--loss=1"), 17);
	assert_says(err, "no loss that is not acknowledged");
	assert_int_equal(run("flush", "emu0"), 0);
	assert_int_equal(run("status"), 0);
}

static void test_agent_ends_meanwhile(void **state)
{
	struct session other;
	FILE *to = tmpfile(), *errors = tmpfile();
	int status;
	pid_t worker, flush;

	assert_null(session_start(&other));
	assert_int_equal(run("flush", "emu0"), 0);
	worker = session_worker(&other);
	assert_true(worker > 1);
	stop_process(worker);
	flush = start(to, errors, (const char *const[]){ "flush", "emu0", NULL });
	wait_until_state("\"in-flight\"");
	session_kill(&other.agent);
	waitpid(flush, &status, 0);
	assert_int_equal(WEXITSTATUS(status), 4);
	read_back(errors, err, sizeof(err));
	assert_says(err, "nobody can tell");
	read_back(to, out, sizeof(out));
	kill(worker, SIGKILL);

	assert_int_equal(run("status"), 1);
	assert_says(err, "the agent does not answer");
	assert_int_equal(run("flush", "/"), 1);
	assert_says(err, "the agent does not answer");
	session_stop(&other);
	assert_int_equal(run("list"), 1);
	assert_says(err, "D-Bus");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verbs_and_options_are_written_down),
		cmocka_unit_test(test_exit_statuses_are_written_down),
		cmocka_unit_test(test_interface_is_written_down),
		cmocka_unit_test(test_wrong_usage),
		cmocka_unit_test(test_list_and_status),
		cmocka_unit_test(test_flush),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_no_permission),
		cmocka_unit_test(test_fallback),
		cmocka_unit_test(test_no_bus),
		cmocka_unit_test(test_times_out),
		cmocka_unit_test(test_no_wait),
		cmocka_unit_test(test_waits_watches_and_tells_the_loss),
		cmocka_unit_test(test_acknowledge),
		cmocka_unit_test(test_agent_ends_meanwhile),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
