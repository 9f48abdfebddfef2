/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * emulated: a manager in the test itself, with one emulated region, emu0, its page, and real workers
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/closer.h"
#include "agent/manager-private.h"
#include "selftest/patience.h"
#include "selftest/process.h"

static char directory[] = "/tmp/test-emulated-XXXXXX", conf_path[64], emulated[64], page_path[64], record_path[64],
	    fifo[64], identity[80];
static sd_event *event;
static struct manager *manager;
static struct pmem_agent_page *page; /* as a client sees it */

/* ---- an agent, and how it ends ---- */

static inline struct manager_region *emu0(void)
{
	return manager_find_region(manager, "emu0");
}

static inline void start_agent(void)
{
	struct conf *conf;

	assert_int_equal(conf_load(conf_path, &conf), 0);
	assert_int_equal(manager_new(event, conf, directory, directory, &manager), 0);
	assert_non_null(emu0());
}

static inline void turn(void)
{
	assert_true(sd_event_run(event, UINT64_MAX) >= 0);
}

/* The state child has nothing to do. */
static inline void wait_for_state(void)
{
	while (manager && manager->memory.child)
		turn();
}

/* As if it were killed: its workers go on until their rounds have ended. */
static inline void end_agent(void)
{
	wait_for_state();
	manager = manager_free(manager);
}

static inline int write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	return !f || fputs(text, f) < 0 || fclose(f) != 0 ? -1 : 0;
}

static inline int write_conf(void)
{
	char text[128];

	snprintf(text, sizeof(text), "[Agent]\nStopFlushSec=%ums\n[Region emu0]\nEmulate=%s\n", patient(200), emulated);
	return write_file(conf_path, text);
}

static inline int set_up_group(void **state)
{

	alarm(60);
	signal(SIGCHLD, SIG_IGN);
	if (!mkdtemp(directory))
		return -1;
	snprintf(conf_path, sizeof(conf_path), "%s/conf", directory);
	snprintf(emulated, sizeof(emulated), "%s/emulated", directory);
	snprintf(fifo, sizeof(fifo), "%s/fifo", directory);
	snprintf(identity, sizeof(identity), "file:%s", emulated);
	worker_page_path(directory, identity, page_path, sizeof(page_path));
	snprintf(record_path, sizeof(record_path), "%s/%016" PRIx64 ".loss", directory, region_identity_hash(identity));
	return write_conf() < 0 || sd_event_new(&event) < 0 || closer_start(event) < 0 ? -1 : 0;
}

/* Pages and records. */
static inline void remove_kept(void)
{
	char pattern[64];
	glob_t kept;

	snprintf(pattern, sizeof(pattern), "%s/*.{page,loss}", directory);
	if (glob(pattern, GLOB_BRACE, NULL, &kept) == 0) {
		for (size_t i = 0; i < kept.gl_pathc; i++)
			unlink(kept.gl_pathv[i]);
		globfree(&kept);
	}
}

static inline int tear_down_group(void **state)
{
	closer_stop();
	sd_event_unref(event);
	remove_kept(); /* of regions that this machine has */
	return unlink(conf_path) < 0 || rmdir(directory) < 0 ? -1 : 0;
}

static inline int set_up(void **state)
{
	sd_id128_t boot_id;

	return write_file(emulated, "x") < 0 || sd_id128_get_boot(&boot_id) < 0
		   ? -1
		   : worker_open_page(directory, identity, boot_id, &page);
}

static inline int tear_down(void **state)
{
	end_agent();
	page = worker_close_page(page);
	unlink(record_path);
	unlink(fifo);
	return unlink(page_path) < 0 || unlink(emulated) < 0 ? -1 : 0;
}

/* ---- what happens ---- */

static inline struct flush_status status(void)
{
	struct flush_status s;

	manager_region_get_status(emu0(), &s);
	return s;
}

struct answer_of {
	bool told;
	struct request_result result;
};

static inline void on_done(const struct request_result *result, void *userdata)
{
	struct answer_of *a = userdata;

	assert_false(a->told);
	a->told = true;
	a->result = *result;
}

static const struct flush_caller me = { .uid = 1 };

static inline struct request *ask(struct answer_of *a)
{
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;

	*a = (struct answer_of){};
	assert_int_equal(manager_flush_region(manager, emu0(), &me, on_done, a, &request, detail), 0);
	return request;
}

static inline void assert_answer(const struct answer_of *a, enum pmem_agent_answer answer)
{
	while (!a->told)
		turn();
	assert_int_equal(a->result.answer, answer);
}

static inline void assert_refused(enum pmem_agent_answer answer)
{
	char detail[MOUNT_DETAIL_MAX];
	struct request *request;

	assert_int_equal(manager_flush_region(manager, emu0(), &me, on_done, NULL, &request, detail), answer);
}

/* A worker that has made a round and makes the next when it is let go on. */
static inline pid_t stop_worker(void)
{
	struct answer_of a;
	pid_t pid;

	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	pid = (pid_t)page->worker.pid;
	stop_process(pid);
	return pid;
}

static inline struct request *begin(struct answer_of *a)
{
	struct request *request = ask(a);

	while (status().state != FLUSH_IN_FLIGHT)
		turn();
	return request;
}

static inline struct worker_round round_on(const char *attribute)
{
	struct worker_round round = { .round = 1, .region.attribute = true, .n_calls = 1, .n_targets = 1 };

	snprintf(round.region.path, sizeof(round.region.path), "%s", attribute);
	round.calls[0] = (struct worker_call){ .scope = FLUSH_REGION, .descriptor = -1, .served_by = -1 };
	return round;
}

/* A worker in a call that does not return before `fifo` has a reader, its agent gone. */
static inline pid_t leave_hanging_worker(void)
{
	struct worker_round round = round_on(fifo);
	struct worker *w;
	pid_t pid;

	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(worker_start(page, &w), 0);
	pid = worker_get_pid(w);
	assert_int_equal(worker_begin(w, &round, NULL), 0);
	while (__atomic_load_n(&page->worker.started, __ATOMIC_ACQUIRE) != 1)
		sched_yield();
	worker_free(w);
	return pid;
}

/* What there is to do now has been done. */
static inline void settle(void)
{
	int r;

	while ((r = sd_event_run(event, 0)) > 0)
		;
	assert_int_equal(r, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
