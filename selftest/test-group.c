/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-group: threads that share a request of libpmem-agent-preload
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util.h"
#include "lib/preload.h"

/* Who waits has joined. */
static unsigned int n_waits;
#define syscall(number, word, operation, ...)                                                                        \
	(__atomic_fetch_add(&n_waits, (operation) == FUTEX_WAIT_PRIVATE, __ATOMIC_SEQ_CST),                          \
	 (syscall)(number, word, operation, __VA_ARGS__))

#include "lib/preload-group.c"

#define N_THREADS 32

static const struct preload_question asked = { .device = 1, .inode = 2, .fd = 3, .scope = 4 };
static const struct preload_reply durable = { .answer = PMEM_AGENT_DURABLE, .page = 7 };

struct member {
	pthread_t thread;
	struct preload_question question;
	bool joined;
	enum preload_outcome outcome;
	struct preload_reply reply;
};

static void *join(void *userdata)
{
	struct member *m = userdata;

	m->joined = preload_group_join(&m->question, &m->outcome, &m->reply);
	return NULL;
}

/* Returns when all of them have joined. */
static void start(struct member *members, unsigned int n)
{
	__atomic_store_n(&n_waits, 0, __ATOMIC_SEQ_CST);
	for (unsigned int i = 0; i < n; i++) {
		members[i] = (struct member){ .question = asked };
		assert_int_equal(pthread_create(&members[i].thread, NULL, join, &members[i]), 0);
	}
	while (__atomic_load_n(&n_waits, __ATOMIC_SEQ_CST) < n)
		sched_yield();
}

static unsigned int end(struct member *members, unsigned int n)
{
	unsigned int n_joined = 0;

	for (unsigned int i = 0; i < n; i++) {
		pthread_join(members[i].thread, NULL);
		n_joined += members[i].joined;
	}
	return n_joined;
}

static int set_up(void **state)
{
	alarm(60);
	preload_group_inherit();
	return 0;
}

static void test_shared(void **state)
{
	struct member members[N_THREADS];

	for (unsigned int round = 0; round < 3 * N_RESULTS; round++) {
		uint32_t number = preload_group_open(&asked);

		assert_int_not_equal(number, 0);
		start(members, N_THREADS);
		preload_group_close(number);
		preload_group_tell(number, PRELOAD_TOLD, &durable);
		assert_int_equal(end(members, N_THREADS), N_THREADS);
		for (unsigned int i = 0; i < N_THREADS; i++) {
			assert_int_equal(members[i].outcome, PRELOAD_TOLD);
			assert_memory_equal(&members[i].reply, &durable, sizeof(durable));
		}
	}
}

/* What comes after it has been closed may be stored after the flush has begun. */
static void test_closed(void **state)
{
	struct member late = { .question = asked };
	uint32_t number = preload_group_open(&asked);

	preload_group_close(number);
	join(&late);
	assert_false(late.joined);
	preload_group_tell(number, PRELOAD_TOLD, &durable);
	join(&late);
	assert_false(late.joined);
}

static void test_other_question(void **state)
{
	uint32_t number = preload_group_open(&asked);
	struct member m;

	for (unsigned int i = 0; i < 5; i++) {
		m = (struct member){ .question = asked };
		*(uint64_t *[]){ &m.question.device, &m.question.inode, &m.question.kept }[i % 3] += i < 3;
		m.question.fd += i == 3;
		m.question.scope += i == 4;
		join(&m);
		assert_false(m.joined);
	}
	assert_int_equal(preload_group_open(&asked), 0);
	preload_group_close(number);
}

/* A thread that never comes back: the next are not held up by it. */
static void test_never_told(void **state)
{
	struct member m;
	uint32_t number = preload_group_open(&asked);

	start(&m, 1);
	assert_int_equal(end(&m, 1), 0);
	join(&m);
	assert_false(m.joined);
	assert_int_not_equal(preload_group_open(&asked), 0);
	assert_true(number != 0);
}

/* The place of a result has been used again: its members know nothing. */
static void test_overtaken(void **state)
{
	struct member m;
	uint32_t number = preload_group_open(&asked);

	start(&m, 1);
	preload_group_close(number);
	preload_group_tell(number + N_RESULTS, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&m, 1), 0);
}

/* Two who tell at the same place: the first is not disturbed. */
static void test_told_by_two(void **state)
{
	struct member m;
	uint32_t number = preload_group_open(&asked);

	result_number[number % N_RESULTS] = BEING_TOLD;
	preload_group_tell(number + N_RESULTS, PRELOAD_TOLD, &durable);
	assert_int_equal(result_number[number % N_RESULTS], BEING_TOLD);
	start(&m, 1);
	preload_group_close(number);
	assert_int_equal(end(&m, 1), 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_shared, set_up),         cmocka_unit_test_setup(test_closed, set_up),
		cmocka_unit_test_setup(test_other_question, set_up), cmocka_unit_test_setup(test_never_told, set_up),
		cmocka_unit_test_setup(test_overtaken, set_up),      cmocka_unit_test_setup(test_told_by_two, set_up),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
