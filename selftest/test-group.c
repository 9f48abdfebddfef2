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
static unsigned int n_waits, n_wakes;
static bool is_impatient; /* for a 50th of the time */

static long call_futex(long number, const uint32_t *word, int operation, uint32_t value, const struct timespec *ts, ...)
{
	static const struct timespec patience = { .tv_nsec = PRELOAD_MAX_WAIT_SEC * 20000000 };

	__atomic_fetch_add(operation == FUTEX_WAIT_PRIVATE ? &n_waits : &n_wakes, 1, __ATOMIC_SEQ_CST);
	return syscall(number, word, operation, value,
		       is_impatient && ts && ts->tv_sec == PRELOAD_MAX_WAIT_SEC ? &patience : ts, NULL, 0);
}

#define syscall(...) call_futex(__VA_ARGS__, NULL)

/* Whose clock is an hour slow waits for a pause as long as it takes. */
static __thread time_t slow_sec;
#define clock_gettime(clock, ts) ((clock_gettime)(clock, ts), (void)((ts)->tv_sec -= slow_sec))

#include "lib/preload-group.c"

#define N_THREADS 32

static const struct preload_question asked = { .device = 1, .inode = 2, .fd = 3, .scope = 4 };
static const struct preload_reply durable = { .answer = PMEM_AGENT_DURABLE, .page = 7 };

struct member {
	pthread_t thread;
	struct preload_question question;
	time_t slow_sec;
	bool joined, opened;
	struct preload_group group;
	enum preload_outcome outcome;
	struct preload_reply reply;
};

static void *join(void *userdata)
{
	struct member *m = userdata;

	m->joined = preload_group_join(&m->question, &m->outcome, &m->reply);
	return NULL;
}

static void *open_group(void *userdata)
{
	struct member *m = userdata;

	slow_sec = m->slow_sec;
	m->opened = preload_group_open(&m->question, &m->group);
	return NULL;
}

static unsigned int get_waits(void)
{
	return __atomic_load_n(&n_waits, __ATOMIC_SEQ_CST);
}

static void start_one(struct member *m, void *(*call)(void *))
{
	unsigned int before = get_waits();

	*m = (struct member){ .question = asked, .slow_sec = 3600 };
	assert_int_equal(pthread_create(&m->thread, NULL, call, m), 0);
	while (get_waits() == before)
		sched_yield();
}

/* Returns when all of them have joined. */
static void start(struct member *members, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		start_one(&members[i], join);
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

/* As by another thread, which is none of those that call. */
static struct preload_group open_elsewhere(void)
{
	struct preload_group group;

	assert_true(preload_group_open(&asked, &group));
	PRELOAD_POKE(group.place->leader, &places);
	return group;
}

static int set_up(void **state)
{
	alarm(60);
	preload_group_inherit();
	is_impatient = false;
	return 0;
}

static void test_shared(void **state)
{
	struct member members[N_THREADS];

	for (unsigned int round = 0; round < 3 * N_RESULTS; round++) {
		struct preload_group group;

		assert_true(preload_group_open(&asked, &group));
		start(members, N_THREADS);
		preload_group_close(&group);
		preload_group_tell(&group, PRELOAD_TOLD, &durable);
		assert_int_equal(end(members, N_THREADS), N_THREADS);
		for (unsigned int i = 0; i < N_THREADS; i++) {
			assert_int_equal(members[i].outcome, PRELOAD_TOLD);
			assert_memory_equal(&members[i].reply, &durable, sizeof(durable));
		}
	}
}

/* One after the other: nothing is waited for, and nobody is woken. */
static void test_alone(void **state)
{
	struct preload_group group;

	n_waits = n_wakes = 0;
	for (unsigned int i = 0; i < 10; i++) {
		assert_true(preload_group_open(&asked, &group));
		preload_group_close(&group);
		preload_group_tell(&group, PRELOAD_TOLD, &durable);
	}
	assert_int_equal(n_waits + n_wakes, 0);
}

/* What comes after it has been closed may be stored after the flush has begun. */
static void test_closed(void **state)
{
	struct member late = { .question = asked };
	struct preload_group group = open_elsewhere();

	preload_group_close(&group);
	join(&late);
	assert_false(late.joined);
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	join(&late);
	assert_false(late.joined);
}

static void test_other_question(void **state)
{
	struct preload_group group = open_elsewhere(), other;
	struct member m;

	for (unsigned int i = 0; i < 5; i++) {
		m = (struct member){ .question = asked };
		*(uint64_t *[]){ &m.question.device, &m.question.inode, &m.question.kept }[i % 3] += i < 3;
		m.question.fd += i == 3;
		m.question.scope += i == 4;
		join(&m);
		assert_false(m.joined);
	}
	assert_false(preload_group_open(&asked, &other));
	preload_group_close(&group);
}

/* One with the same place, whatever its hash is. */
static struct preload_question find_neighbour(void)
{
	struct preload_question q = asked;

	do
		q.inode++;
	while (place_of(&q) != place_of(&asked));
	return q;
}

/* A place is one question's as long as anything is under way there. */
static void test_neighbour(void **state)
{
	struct preload_question neighbour = find_neighbour();
	struct preload_group group = open_elsewhere(), other;

	preload_group_close(&group);
	assert_false(preload_group_open(&neighbour, &other));
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	assert_true(preload_group_open(&neighbour, &other));
	preload_group_close(&other);
	preload_group_tell(&other, PRELOAD_TOLD, &durable);
}

/* The next group is not sent before the one under way has been told, and then with all who were in either. */
static void test_turn(void **state)
{
	struct member leader, members[2];
	struct preload_group group = open_elsewhere();

	start(&members[0], 1);
	preload_group_close(&group);
	start_one(&leader, open_group);
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&members[0], 1), 1);
	assert_int_equal(PRELOAD_PEEK(place_of(&asked)->expected), 3);
	start(members, 2);
	pthread_join(leader.thread, NULL);
	assert_true(leader.opened);
	preload_group_close(&leader.group);
	assert_int_equal(leader.group.members, 3);
	preload_group_tell(&leader.group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(members, 2), 2);
}

/* Who does not come back is not waited for. */
static void test_not_back(void **state)
{
	struct member m;
	struct preload_group group = open_elsewhere();

	start(&m, 1);
	preload_group_close(&group);
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&m, 1), 1);
	assert_true(preload_group_open(&asked, &group));
	preload_group_close(&group);
	assert_int_equal(group.members, 1);
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
}

/* A handler of the thread that leads, or whose request is under way: it waits for nothing of its own. */
static void test_handler(void **state)
{
	struct member m = { .question = asked };
	struct preload_group group, inner;

	n_waits = 0;
	assert_true(preload_group_open(&asked, &group));
	join(&m);
	assert_false(m.joined);
	assert_false(preload_group_open(&asked, &inner));
	preload_group_close(&group);
	assert_true(preload_group_open(&asked, &inner));
	preload_group_close(&inner);
	preload_group_tell(&inner, PRELOAD_TOLD, &durable);
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(n_waits, 0);
}

/* A thread that never comes back: the next are not held up by it. */
static void test_never_told(void **state)
{
	struct member m, leader;
	struct preload_group group = open_elsewhere();

	is_impatient = true;
	start(&m, 1);
	assert_int_equal(end(&m, 1), 0);
	join(&m);
	assert_false(m.joined);
	group = open_elsewhere();
	preload_group_close(&group);
	start_one(&leader, open_group);
	pthread_join(leader.thread, NULL);
	assert_true(leader.opened);
	assert_int_equal(PRELOAD_PEEK(place_of(&asked)->under_way), 0);
}

/* The place of a result has been used again: its members know nothing. */
static void test_overtaken(void **state)
{
	struct member m;
	struct preload_group group = open_elsewhere();

	is_impatient = true;
	start(&m, 1);
	preload_group_close(&group);
	group.number += N_RESULTS;
	preload_group_tell(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&m, 1), 0);
}

/* Two who tell at the same place: the first is not disturbed. */
static void test_told_by_two(void **state)
{
	struct member m;
	struct preload_group group = open_elsewhere(), second = group;
	uint32_t *told = &place_of(&asked)->result_number[group.number % N_RESULTS];

	is_impatient = true;
	*told = BEING_TOLD;
	second.number += N_RESULTS;
	preload_group_tell(&second, PRELOAD_TOLD, &durable);
	assert_int_equal(*told, BEING_TOLD);
	start(&m, 1);
	preload_group_close(&group);
	assert_int_equal(end(&m, 1), 0);
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_shared),     TEST(test_alone),     TEST(test_closed),      TEST(test_other_question),
		TEST(test_neighbour),  TEST(test_turn),      TEST(test_not_back),    TEST(test_handler),
		TEST(test_never_told), TEST(test_overtaken), TEST(test_told_by_two),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
