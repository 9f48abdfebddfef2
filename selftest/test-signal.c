/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-signal: what a region signals on the bus, and that its properties have told it before
 */
#include "selftest/caller.h"
#include "selftest/patience.h"
#include "selftest/process.h"

struct heard {
	char member[32];
	uint64_t numbers[4];
	int32_t error;
	char origin[16], state[16];
};

static struct heard heard[16];
static unsigned int n_heard;
static char last_state[16];

static int on_signal(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	struct heard *h = &heard[n_heard];
	const char *origin = "";

	assert_true(n_heard < ARRAY_SIZE(heard));
	*h = (struct heard){ 0 };
	snprintf(h->member, sizeof(h->member), "%s", sd_bus_message_get_member(m));
	if (strcmp(h->member, "DurabilityLost") == 0)
		assert_true(sd_bus_message_read(m, "tistt", &h->numbers[0], &h->error, &origin, &h->numbers[1],
						&h->numbers[2]) > 0);
	else if (strcmp(h->member, "Stalled") == 0)
		assert_true(sd_bus_message_read(m, "tt", &h->numbers[0], &h->numbers[1]) > 0);
	else
		assert_true(sd_bus_message_read(m, "t", &h->numbers[0]) > 0);
	snprintf(h->origin, sizeof(h->origin), "%s", origin);
	snprintf(h->state, sizeof(h->state), "%s", last_state);
	n_heard++;
	return 0;
}

static int on_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *interface, *name, *type, *text;

	assert_true(sd_bus_message_read(m, "s", &interface) >= 0);
	assert_true(sd_bus_message_enter_container(m, 'a', "{sv}") >= 0);
	while (sd_bus_message_enter_container(m, 'e', "sv") > 0) {
		assert_true(sd_bus_message_read(m, "s", &name) >= 0);
		assert_true(sd_bus_message_peek_type(m, NULL, &type) >= 0);
		if (strcmp(name, "State") == 0) {
			assert_true(sd_bus_message_read(m, "v", "s", &text) >= 0);
			snprintf(last_state, sizeof(last_state), "%s", text);
		} else {
			assert_true(sd_bus_message_skip(m, "v") >= 0);
		}
		assert_true(sd_bus_message_exit_container(m) >= 0);
	}
	return 0;
}

static int set_up(void **state)
{
	char settings[32];
	const char *missing;

	alarm(120);
	snprintf(settings, sizeof(settings), "StallSec=%ums\n", patient(100));
	missing = session_start_with(&session, settings);
	if (missing)
		print_error("test-signal needs %s\n", missing);
	if (missing || sd_bus_open_system(&bus) < 0 ||
	    sd_bus_match_signal(bus, NULL, BUS_NAME, REGION_PATH, "org.freedesktop.DBus.Properties",
				"PropertiesChanged", on_changed, NULL) < 0)
		return -1;
	return sd_bus_match_signal(bus, NULL, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, NULL, on_signal, NULL) < 0
		   ? -1
		   : 0;
}

static int tear_down(void **state)
{
	sd_bus_flush_close_unref(bus);
	session_stop(&session);
	return 0;
}

static int on_answer(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	*(bool *)userdata = true;
	return 1;
}

static const struct heard *wait_for(unsigned int n)
{
	while (n_heard < n)
		process(bus);
	return &heard[n - 1];
}

static bool answered;

/* A flush that is stalled; its worker. */
static pid_t stall(void)
{
	pid_t worker;

	assert_true(
	    sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Flush", NULL, NULL, "a{sv}", 0) >= 0);
	worker = find_worker();
	n_heard = 0;
	answered = false;
	stop_process(worker);
	assert_true(sd_bus_call_method_async(bus, NULL, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Flush", on_answer,
					     &answered, "a{sv}", 0) >= 0);
	wait_for(1);
	assert_string_equal(heard[0].member, "Stalled");
	assert_string_equal(heard[0].state, "stalled");
	assert_int_equal(heard[0].numbers[0], get_number("Epoch") + 1);
	assert_int_equal(heard[0].numbers[1], get_number("FlushingSinceUSec"));
	assert_false(answered);
	return worker;
}

static void test_stall_and_recovery(void **state)
{
	pid_t worker = stall();

	assert_int_equal(kill(worker, SIGCONT), 0);
	wait_for(2);
	assert_string_equal(heard[1].member, "Recovered");
	assert_string_equal(heard[1].state, "idle");
	assert_int_equal(heard[1].numbers[0], heard[0].numbers[0]);
	while (!answered)
		process(bus);
	assert_int_equal(n_heard, 2);
}

static void test_loss_and_its_acknowledgement(void **state)
{
	uint64_t epoch;
	pid_t worker = stall();

	epoch = get_number("Epoch");
	assert_int_equal(kill(worker, SIGKILL), 0);
	wait_for(2);
	assert_string_equal(heard[1].member, "DurabilityLost");
	assert_string_equal(heard[1].state, "lost");
	assert_int_equal(heard[1].numbers[0], 1);
	assert_int_equal(heard[1].error, EIO);
	assert_string_equal(heard[1].origin, "worker");
	assert_int_equal(heard[1].numbers[1], epoch);
	assert_int_equal(heard[1].numbers[2], get_number("LossUSec"));
	while (!answered)
		process(bus);

	assert_true(sd_bus_call_method(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "AcknowledgeLoss", NULL, NULL,
				       "t", (uint64_t)1) >= 0);
	wait_for(3);
	/* Not "Recovered" in between. */
	assert_string_equal(heard[2].member, "LossAcknowledged");
	assert_string_equal(heard[2].state, "idle");
	assert_int_equal(heard[2].numbers[0], 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stall_and_recovery),
		cmocka_unit_test(test_loss_and_its_acknowledgement),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
