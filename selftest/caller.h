/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * caller: a caller on the private bus of a session, and what it asks of emu0
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "selftest/session.h"

#define REGION_PATH BUS_PATH "/region/emu0"
#define REPLY       "a(ot)sst"

static struct session session;
static sd_bus *bus;

static inline uint64_t get_number(const char *property)
{
	uint64_t value = 0;

	assert_true(sd_bus_get_property_trivial(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, property, NULL, 't',
						&value) >= 0);
	return value;
}

static inline uint32_t get_waiting(void)
{
	uint32_t value = 0;

	assert_true(sd_bus_get_property_trivial(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "Waiting", NULL, 'u',
						&value) >= 0);
	return value;
}

static inline bool state_is(const char *state)
{
	_cleanup_free_ char *value = NULL;

	assert_true(
	    sd_bus_get_property_string(bus, BUS_NAME, REGION_PATH, BUS_INTERFACE_REGION, "State", NULL, &value) >= 0);
	return strcmp(value, state) == 0;
}

/* Asks until it is so: each question is answered from the agent's loop, so this waits for the agent's events. */
static inline void wait_for_waiting(uint32_t n)
{
	while (get_waiting() != n)
		;
}

static inline void wait_until_in_flight(void)
{
	while (get_number("FlushingSinceUSec") == 0)
		;
}

static inline sd_bus_message *new_flush(sd_bus *from, int fd)
{
	sd_bus_message *m = NULL;

	assert_true(sd_bus_message_new_method_call(from, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Flush") >= 0);
	assert_true(sd_bus_message_append(m, "ha{sv}", fd, 0) >= 0);
	return m;
}

static inline uint64_t read_epoch(sd_bus_message *reply, const char *scope)
{
	const char *path, *text, *basis;
	uint64_t epoch, usec;

	assert_true(sd_bus_message_has_signature(reply, REPLY));
	assert_true(sd_bus_message_read(reply, "a(ot)sst", 1, &path, &epoch, &text, &basis, &usec) >= 0);
	assert_string_equal(path, REGION_PATH);
	assert_string_equal(text, scope);
	assert_string_equal(basis, "own-flush");
	assert_true(usec > 0);
	return epoch;
}

static inline void assert_error(const sd_bus_error *error, const char *name, const char *words)
{
	assert_non_null(error->name);
	assert_string_equal(error->name, name);
	assert_non_null(strstr(error->message, words));
}

static inline int open_emulated(void)
{
	int fd = open(session.emulated, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static inline pid_t find_worker(void)
{
	pid_t pid = session_worker(&session);

	assert_true(pid > 1);
	return pid;
}

static inline void process(sd_bus *from)
{
	int r = sd_bus_process(from, NULL);

	assert_true(r >= 0);
	if (r == 0)
		assert_true(sd_bus_wait(from, UINT64_MAX) >= 0);
}

static inline void let_others_in(void)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/bus", session.directory);
	assert_int_equal(chmod(session.directory, 0755), 0);
	assert_int_equal(chmod(path, 0666), 0);
}

/* Stands for polkit: `on_check` answers what it is asked. Returns when it has the name. */
static inline pid_t start_authority(sd_bus_message_handler_t on_check, const char *userdata)
{
	int pipes[2];
	pid_t pid;
	char c;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	if (pid == 0) {
		sd_bus *own = NULL;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (sd_bus_open_system(&own) < 0 || sd_bus_add_filter(own, NULL, on_check, (void *)userdata) < 0 ||
		    sd_bus_request_name(own, "org.freedesktop.PolicyKit1", 0) < 0 || write(pipes[1], "R", 1) != 1)
			_exit(1);
		for (;;)
			if (sd_bus_process(own, NULL) == 0)
				sd_bus_wait(own, UINT64_MAX);
	}
	close(pipes[1]);
	assert_int_equal(read(pipes[0], &c, 1), 1);
	close(pipes[0]);
	return pid;
}
