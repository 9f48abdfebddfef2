/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * door: the socket of the real agent, with an emulated region, and packets that go in and out there
 */
#pragma once

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "selftest/process.h"
#include "selftest/raw.h"
#include "selftest/served.h"

#define N_FILES         2100           /* that the agent may have, so that its bounds are within reach */
#define MAX_CONNECTIONS (N_FILES / 16) /* as sock.c says */
#define MAX_OUTSTANDING 64
#define NOBODY          65534

static struct served served;
static int target = -1; /* emu0 */

static inline int set_up(void **state)
{
	const char *missing;

	alarm(120);
	served.n_files = N_FILES;
	missing = served_start(&served, false);
	if (missing) {
		print_error("the socket's tests need %s\n", missing);
		return -1;
	}
	target = open(served.session.emulated, O_RDONLY | O_CLOEXEC);
	/* Other users are to get at the socket. */
	return target < 0 || chmod(served.session.directory, 0711) < 0 ? -1 : 0;
}

static inline int tear_down(void **state)
{
	safe_close(target);
	served_stop(&served);
	return 0;
}

/* ---- helpers ---- */

static inline int connect_agent(void)
{
	int fd = raw_connect(served.socket);

	assert_true(fd >= 0);
	return fd;
}

static inline void expect(int fd, uint64_t id, enum pmem_agent_answer answer, const char *words)
{
	struct pmem_agent_reply reply;

	assert_int_equal(raw_receive(fd, &reply), sizeof(reply));
	assert_int_equal(reply.version, PMEM_AGENT_WIRE_VERSION);
	if (words && !strstr(reply.detail, words))
		print_error("\"%s\" is not in \"%s\"\n", words, reply.detail);
	assert_int_equal(reply.answer, answer);
	assert_int_equal(reply.id, id);
	assert_true((reply.error == 0) == (answer == PMEM_AGENT_DURABLE));
	assert_true(!words || strstr(reply.detail, words));
}

static inline void expect_end(int fd)
{
	struct pmem_agent_reply reply;

	assert_int_equal(raw_receive(fd, &reply), 0);
}

static inline void flush_once(void)
{
	_cleanup_close_ int fd = connect_agent();

	assert_int_equal(raw_flush(fd, 7, target), 0);
	expect(fd, 7, PMEM_AGENT_DURABLE, NULL);
}

/* What it holds when nobody is connected. What is left of a close goes with the next. */
static inline unsigned int count_idle_fds(void)
{
	_cleanup_close_ int fd = connect_agent(), refused = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	unsigned int n, least = UINT_MAX;

	for (unsigned int i = 0; i < 20; i++) {
		assert_int_equal(raw_flush(fd, i, refused), 0);
		expect(fd, i, PMEM_AGENT_ORDINARY, "proc");
		flush_once();
		n = count_fds(served.session.agent);
		if (n < least)
			least = n;
	}
	return least;
}

/* It lets go of the rest a moment later; if it didn't, this would not end. */
static inline void wait_for_idle_fds(unsigned int n)
{
	while (count_idle_fds() > n)
		;
}

static inline pid_t stop_worker(void)
{
	pid_t pid;

	flush_once();
	pid = session_worker(&served.session);
	stop_process(pid);
	return pid;
}

static inline uint32_t get_waiting(void)
{
	_cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
	uint32_t value = 0;

	assert_true(sd_bus_open_system(&bus) >= 0);
	assert_true(sd_bus_get_property_trivial(bus, BUS_NAME, BUS_PATH "/region/emu0", BUS_INTERFACE_REGION, "Waiting",
						NULL, 'u', &value) >= 0);
	return value;
}

/* ---- many requests ---- */

static inline unsigned int send_all(int fd)
{
	unsigned int n = 0;

	while (raw_flush(fd, n, target) == 0)
		n++;
	assert_int_equal(errno, EAGAIN);
	return n;
}

static inline uint64_t agent_cpu_usec(void)
{
	clockid_t clock = (clockid_t)(~(unsigned int)served.session.agent << 3 | 2); /* as clock_getcpuclockid() */

	return now_usec(clock);
}

/* This is a measurement: of who spins, most of the time would be. */
static inline void assert_agent_rests(int msec)
{
	uint64_t before = agent_cpu_usec();

	poll(NULL, 0, msec);
	assert_in_range(agent_cpu_usec() - before, 0, (unsigned int)msec * 400);
}
