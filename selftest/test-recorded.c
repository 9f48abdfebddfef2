/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-recorded: what pmemctl list and doctor say of each machine in selftest/sysfs, against what is written beside it
 *
 * For NAME.sysfs that is NAME.list and NAME.doctor, both JSON. `make golden` writes them anew; read the differences.
 * And what doctor --record makes of such a machine is the same recording again, with nothing in it that is not to be
 * told.
 */
#include <glob.h>

#include "agent/mount.h"
#include "selftest/pmemctl.h"
#include "selftest/recorded.h"

static bool golden; /* write what is said, instead of comparing it */

static char *load(const char *path)
{
	static char text[sizeof(out)];
	FILE *f = fopen(path, "re");

	text[0] = '\0';
	if (f)
		read_back(f, text, sizeof(text));
	return text;
}

/* `out` is what the file holds. */
static void assert_golden(const char *name, const char *extension)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof(path), "selftest/sysfs/%s.%s", name, extension);
	if (golden) {
		f = fopen(path, "we");
		assert_non_null(f);
		assert_true(fputs(out, f) >= 0);
		assert_int_equal(fclose(f), 0);
	}
	if (strcmp(load(path), out) != 0)
		fprintf(stderr, "%s is not what is said now (make golden writes it anew):\n%s", path, out);
	assert_string_equal(load(path), out);
}

/* Nobody has mounted anything there, and no program runs. */
static void show_machine(const char *name)
{
	static char proc[64];
	char path[128];

	recorded_restore(name);
	snprintf(proc, sizeof(proc), "%s/proc", recorded_root);
	snprintf(path, sizeof(path), "%s/self/mountinfo", proc);
	recorded_make_parents(path);
	assert_int_equal(session_write(path, ""), 0);
	mount_set_roots(proc, "/sys");
	recorded_show();
}

/* Recorded from what was recorded: nothing is left out, and nothing replaced twice. */
static void assert_recorded_again(const char *name)
{
	char path[512];
	const char *text;

	snprintf(path, sizeof(path), "selftest/sysfs/%s.sysfs", name);
	text = load(path);
	while (*text == '#')
		text = strchr(text, '\n') + 1;
	assert_int_equal(run("doctor", "--record"), 0);
	if (strcmp(out, text) != 0)
		fprintf(stderr, "%s is recorded otherwise:\n%s", name, out);
	assert_string_equal(out, text);
}

/* Once the agent has read what earlier boots lost, which it does beside. */
static void list(void)
{
	do
		assert_int_equal(run("list", "--json"), 0);
	while (strstr(out, "what earlier boots lost has not been read"));
}

static void test_recording(void **state)
{
	const char *name = *state;
	int status;

	show_machine(name);
	assert_int_equal(session_start_agent(&session, ""), 0);
	list();
	assert_golden(name, "list");
	status = run("doctor", "--json");
	assert_true(status == 0 || status == CTL_EXIT_WARNING || status == CTL_EXIT_ERROR);
	assert_golden(name, "doctor");
	assert_recorded_again(name);
}

static int stop_agent(void **state)
{
	session_kill(&session.agent);
	return recorded_tear_down(state);
}

#define NDBUS  "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0"
#define SECRET "c0ffee01-5ec7-4e70-8000-d0cade51ead5"

static unsigned int count(const char *text, const char *word)
{
	unsigned int n = 0;

	for (const char *p = text; (p = strstr(p, word)); p++)
		n++;
	return n;
}

/* What is not known to be harmless is not in it; what is needed to tell things apart is replaced. */
static void test_nothing_private(void **state)
{
	char serial[] = "f\t444\t" NDBUS "/nmem0/nfit/serial\t0x5ec7e701",
	     name[] = "f\t444\t" NDBUS "/region0/alt_name\tpayroll";
	char unknown[] = "f\t444\t" NDBUS "/region0/owner\tmallory",
	     again[] = "f\t444\t" NDBUS "/region0/btt0.0/uuid\t" SECRET;
	char zero[] = "f\t444\t" NDBUS "/nmem0/nfit/id\t0x0";

	recorded_restore("virtio-pmem-fsdax-info");
	recorded_change(NDBUS "/region0/pfn0.0/uuid", SECRET);
	recorded_change(NDBUS "/region0/btt0.0/uuid", NULL);
	recorded_line(again);
	recorded_line(serial);
	recorded_line(name);
	recorded_line(unknown);
	recorded_line(zero);
	recorded_show();
	assert_int_equal(run("doctor", "--record"), 0);
	assert_null(strstr(out, SECRET));
	assert_null(strstr(out, "5ec7e701"));
	assert_null(strstr(out, "payroll"));
	assert_null(strstr(out, "mallory"));
	assert_null(strstr(out, "owner"));
	assert_int_equal(count(out, "/alt_name\treplaced\n"), 1);
	assert_int_equal(count(out, "/nfit/id\t0x0\n"), 1);
	/* The same by the same. */
	assert_int_equal(count(out, "uuid\t00000000-0000-4000-8000-000000000003\n"), 2);
}

/* Only a bus: each machine has an agent of its own. */
static int start_bus(void **state)
{
	alarm(120);
	strcpy(session.directory, "/tmp/test-session-XXXXXX");
	if (!mkdtemp(session.directory) || session_start_bus(&session) < 0) {
		print_error("test-recorded needs dbus-daemon\n");
		return -1;
	}
	return 0;
}

static int stop_bus(void **state)
{
	session_stop(&session);
	return 0;
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[64] = { cmocka_unit_test_setup_teardown(test_nothing_private, recorded_set_up,
									stop_agent) };
	glob_t found = {};
	int failed;

	cmocka_set_message_output(CM_OUTPUT_TAP);
	golden = argc > 1 && strcmp(argv[1], "--golden") == 0;
	if (!recorded_enter(argv))
		return 0;
	if (glob("selftest/sysfs/*.sysfs", 0, NULL, &found) != 0 || found.gl_pathc >= ARRAY_SIZE(tests)) {
		puts("not ok 1 - selftest/sysfs: run this from the top of the source tree");
		return 1;
	}
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char *name = strrchr(found.gl_pathv[i], '/') + 1;

		*strrchr(name, '.') = '\0';
		tests[i + 1] = (struct CMUnitTest){ .name = name,
						    .test_func = test_recording,
						    .setup_func = recorded_set_up,
						    .teardown_func = stop_agent,
						    .initial_state = name };
	}
	failed = _cmocka_run_group_tests("recordings", tests, found.gl_pathc + 1, start_bus, stop_bus);
	globfree(&found);
	return failed;
}
