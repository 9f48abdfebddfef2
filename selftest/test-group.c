/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-group: threads that share a request of libpmem-agent-preload
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util.h"
#include "lib/preload.h"

/* Who waits has joined. */
static unsigned int n_waits, n_wakes;

/* A clock that is an hour slow: pauses take an hour, as long as it is looked at. Or one that is 50 times as fast. */
static __thread bool is_slow;
static bool is_fast;
static uint64_t fast_since;

#define HOUR  3600000000000ULL
#define SPEED 50

static uint64_t real_nsec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int get_time(clockid_t clock, struct timespec *ret)
{
	uint64_t now = real_nsec();

	now = is_fast ? fast_since + (now - fast_since) * SPEED : is_slow ? now - HOUR : now;
	*ret = (struct timespec){ .tv_sec = (time_t)(now / 1000000000), .tv_nsec = (long)(now % 1000000000) };
	return 0;
}

static long call_futex(long number, const uint32_t *word, int operation, uint32_t value, const struct timespec *ts, ...)
{
	bool wait = operation == FUTEX_WAIT_BITSET_PRIVATE;
	struct timespec real = { 0 };
	uint64_t until;

	if (wait) {
		until = (uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec;
		until = is_fast ? fast_since + (until - fast_since) / SPEED : is_slow ? until + HOUR : until;
		real =
		    (struct timespec){ .tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000) };
	}
	__atomic_fetch_add(wait ? &n_waits : &n_wakes, 1, __ATOMIC_SEQ_CST);
	return syscall(number, word, operation, value, &real, NULL, FUTEX_BITSET_MATCH_ANY);
}

#define syscall(...)             call_futex(__VA_ARGS__, NULL)
#define clock_gettime(clock, ts) get_time(clock, ts)

#include "lib/preload-group.c"
#include "lib/preload-wait.c"

#define N_THREADS 32

static const struct preload_question asked = { .device = 1, .inode = 2, .fd = 3, .scope = 4 };
static const struct preload_reply durable = { .answer = PMEM_AGENT_DURABLE, .page = 7 };

struct member {
	pthread_t thread;
	struct preload_question question;
	bool is_slow, joined, opened;
	struct group group;
	enum preload_outcome outcome;
	struct preload_reply reply;
};

static void *join(void *userdata)
{
	struct member *m = userdata;

	m->joined = join_group(&m->question, &m->outcome, &m->reply) == JOINED;
	return NULL;
}

static void *lead(void *userdata)
{
	struct member *m = userdata;

	is_slow = m->is_slow;
	m->opened = open_group(&m->question, &m->group);
	return NULL;
}

static unsigned int get_waits(void)
{
	return __atomic_load_n(&n_waits, __ATOMIC_SEQ_CST);
}

static void start_one(struct member *m, void *(*call)(void *), bool slow)
{
	unsigned int before = get_waits();

	*m = (struct member){ .question = asked, .is_slow = slow };
	assert_int_equal(pthread_create(&m->thread, NULL, call, m), 0);
	while (get_waits() == before)
		sched_yield();
}

/* Returns when all of them have joined. */
static void start(struct member *members, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		start_one(&members[i], join, false);
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
static struct group open_elsewhere(void)
{
	struct group group;

	assert_true(open_group(&asked, &group));
	PRELOAD_POKE(group.place->leader, &places);
	return group;
}

static void go_fast(void)
{
	fast_since = real_nsec();
	is_fast = true;
}

static int set_up(void **state)
{
	alarm(60);
	preload_group_inherit();
	is_fast = false;
	return 0;
}

static void test_shared(void **state)
{
	struct member members[N_THREADS];

	for (unsigned int round = 0; round < 3 * N_RESULTS; round++) {
		struct group group;

		assert_true(open_group(&asked, &group));
		start(members, N_THREADS);
		close_group(&group);
		tell_group(&group, PRELOAD_TOLD, &durable);
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
	struct group group;

	n_waits = n_wakes = 0;
	for (unsigned int i = 0; i < 10; i++) {
		assert_true(open_group(&asked, &group));
		close_group(&group);
		tell_group(&group, PRELOAD_TOLD, &durable);
	}
	assert_int_equal(n_waits + n_wakes, 0);
}

/* What comes after it has been closed may be stored after the flush has begun. */
static void test_closed(void **state)
{
	struct member late = { .question = asked };
	struct group group = open_elsewhere();

	close_group(&group);
	join(&late);
	assert_false(late.joined);
	tell_group(&group, PRELOAD_TOLD, &durable);
	join(&late);
	assert_false(late.joined);
}

/* As `asked`, but for one thing; in the same place, whatever its hash is. */
static struct preload_question find_other(unsigned int which)
{
	struct preload_question q = asked;
	uint64_t *wide[] = { &q.device, &q.inode, &q.kept };

	do {
		if (which < 3)
			++*wide[which];
		else if (which == 3)
			q.fd++;
		else
			q.scope++;
	} while (place_of(&q) != place_of(&asked));
	return q;
}

static void test_other_question(void **state)
{
	struct group group = open_elsewhere(), other;
	struct member m;

	for (unsigned int i = 0; i < 5; i++) {
		m = (struct member){ .question = find_other(i) };
		join(&m);
		assert_false(m.joined);
		assert_int_equal(members_of(get_newest(group.place)), 1);
	}
	assert_false(open_group(&asked, &other));
	close_group(&group);
}

/* A place is one question's as long as anything is under way there. */
static void test_neighbour(void **state)
{
	struct preload_question neighbour = find_other(1);
	struct group group = open_elsewhere(), other;

	close_group(&group);
	assert_false(open_group(&neighbour, &other));
	tell_group(&group, PRELOAD_TOLD, &durable);
	assert_true(open_group(&neighbour, &other));
	close_group(&other);
	tell_group(&other, PRELOAD_TOLD, &durable);
}

/* The next group is not sent before the one under way has been told, and then with all who were in either. */
static void test_turn(void **state)
{
	struct member leader, members[2];
	struct group group = open_elsewhere();

	start(&members[0], 1);
	close_group(&group);
	start_one(&leader, lead, true);
	tell_group(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&members[0], 1), 1);
	assert_int_equal(PRELOAD_PEEK(place_of(&asked)->expected), 3);
	start(members, 2);
	pthread_join(leader.thread, NULL);
	assert_true(leader.opened);
	close_group(&leader.group);
	assert_int_equal(leader.group.members, 3);
	tell_group(&leader.group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(members, 2), 2);
}

/* Who does not come back is not waited for. */
static void test_not_back(void **state)
{
	struct member m;
	struct group group = open_elsewhere();

	start(&m, 1);
	close_group(&group);
	tell_group(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&m, 1), 1);
	assert_true(open_group(&asked, &group));
	close_group(&group);
	assert_int_equal(group.members, 1);
	tell_group(&group, PRELOAD_TOLD, &durable);
}

/* A handler of the thread that leads, or whose request is under way: it waits for nothing of its own. */
static void test_handler(void **state)
{
	struct member m = { .question = asked };
	struct group group, inner;

	n_waits = 0;
	assert_true(open_group(&asked, &group));
	join(&m);
	assert_false(m.joined);
	assert_false(open_group(&asked, &inner));
	close_group(&group);
	assert_true(open_group(&asked, &inner));
	close_group(&inner);
	tell_group(&inner, PRELOAD_TOLD, &durable);
	tell_group(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(n_waits, 0);
}

/* Nor for the group of another thread, which waits for what it has interrupted. */
static void test_handler_of_asker(void **state)
{
	struct member leader, m = { .question = asked };
	struct group group, inner;

	assert_true(open_group(&asked, &group));
	close_group(&group);
	start_one(&leader, lead, false);
	n_waits = 0;
	join(&m);
	assert_false(m.joined);
	assert_false(open_group(&asked, &inner));
	assert_int_equal(n_waits, 0);
	tell_group(&group, PRELOAD_TOLD, &durable);
	pthread_join(leader.thread, NULL);
	close_group(&leader.group);
	tell_group(&leader.group, PRELOAD_TOLD, &durable);
}

/* When the numbers begin anew, what was told of groups long ago is no answer. */
static void test_numbers_begin_anew(void **state)
{
	struct preload_place *p = place_of(&asked);
	struct group group;
	struct member m;

	p->newest = (uint64_t)(BEING_TOLD - 2) << NUMBER_SHIFT;
	for (unsigned int i = 0; i < N_RESULTS; i++)
		p->result_number[i] = N_RESULTS + i;
	go_fast();
	for (unsigned int i = 0; i < 3 * N_RESULTS; i++) {
		group = open_elsewhere();
		assert_in_range(group.number, 1, BEING_TOLD - 1);
		start(&m, 1);
		close_group(&group);
		if (i % 2)
			tell_group(&group, PRELOAD_TOLD, &durable);
		assert_int_equal(end(&m, 1), i % 2);
		end_under_way(p, group.number);
	}
}

/* Who has looked for the next number before it was another's, and only now goes on: what that one was told stays. */
static void test_late_to_open(void **state)
{
	struct preload_place *p = place_of(&asked);
	struct group group = open_elsewhere();
	uint32_t told;

	close_group(&group);
	group.members = 2;
	tell_group(&group, PRELOAD_TOLD, &durable);
	told = p->result_number[group.number % N_RESULTS];
	assert_int_equal(told, group.number);
	assert_int_equal(next_number(p, group.number - 1), group.number);
	assert_int_equal(p->result_number[group.number % N_RESULTS], told);
}

#define N_STORMS 400

static struct {
	uint64_t sent; /* requests */
	uint64_t longest;
	unsigned int wrong; /* answers */
} storm;

static void prepare(struct preload_ask *ask)
{
	sched_yield();
}

/* A request that ends when others have run. */
static enum preload_outcome send(struct preload_ask *ask, struct preload_reply *ret)
{
	ret->page = __atomic_add_fetch(&storm.sent, 1, __ATOMIC_SEQ_CST);
	for (unsigned int i = 0; i < 20; i++)
		sched_yield();
	return PRELOAD_TOLD;
}

static enum preload_outcome send_closed(struct preload_ask *ask, struct preload_reply *ret)
{
	assert_int_equal(gate_of(get_newest(place_of(&asked))), GATE_CLOSED);
	return PRELOAD_TOLD;
}

/* By the time that it is sent nobody can join. */
static void test_sent_when_closed(void **state)
{
	struct preload_ask ask = { .prepare = prepare, .send = send_closed };
	struct preload_reply reply;

	assert_int_equal(preload_group_ask(&asked, &ask, &reply), PRELOAD_TOLD);
	assert_int_equal(number_of(get_newest(place_of(&asked))), 1);
}

/* Who has waited in vain asks by itself, and waits for nobody again. */
static void test_in_vain(void **state)
{
	struct preload_ask ask = { .prepare = prepare, .send = send };
	struct preload_reply reply = { .page = 0 };
	struct group group = open_elsewhere();

	/* And one before it is under way. */
	PRELOAD_POKE(group.place->asker, &places);
	group.place->under_way = group.number + N_RESULTS;
	go_fast();
	n_waits = 0;
	assert_int_equal(preload_group_ask(&asked, &ask, &reply), PRELOAD_TOLD);
	assert_int_equal(reply.page, storm.sent);
	assert_int_equal(n_waits, 1);
}

static void ask_once(void)
{
	uint64_t begun = real_nsec(), sent = __atomic_load_n(&storm.sent, __ATOMIC_SEQ_CST), took;
	struct preload_ask ask = { .prepare = prepare, .send = send };
	struct preload_reply reply = { .page = 0 };

	/* It is to be sent after this call has begun. */
	if (preload_group_ask(&asked, &ask, &reply) != PRELOAD_TOLD || reply.page <= sent)
		__atomic_fetch_add(&storm.wrong, 1, __ATOMIC_SEQ_CST);
	took = real_nsec() - begun;
	for (uint64_t was = __atomic_load_n(&storm.longest, __ATOMIC_SEQ_CST);
	     took > was &&
	     !__atomic_compare_exchange_n(&storm.longest, &was, took, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);)
		;
}

static void *ask_often(void *userdata)
{
	for (unsigned int i = 0; i < N_STORMS; i++)
		ask_once();
	return NULL;
}

/* However threads are held up: each has its answer, from a request that was sent after it asked, and none waits long.
 */
static void test_storm(void **state)
{
	pthread_t threads[N_THREADS];

	storm.longest = 0;
	for (unsigned int i = 0; i < N_THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, NULL), 0);
	for (unsigned int i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	print_message("# %" PRIu64 " requests for %u calls, the longest took %" PRIu64 " ms\n", storm.sent,
		      N_THREADS * N_STORMS, storm.longest / 1000000);
	assert_int_equal(storm.wrong, 0);
	assert_in_range(storm.longest, 0, PATIENCE_NSEC - 1);
}

/* alarm(), which ends a test that takes too long, has the same timer. */
static void on_signal(int number)
{
	static unsigned int n;

	if (++n == 20000)
		_exit(1);
}

/* Signals that come often don't make the waits longer. */
static void test_signals(void **state)
{
	const struct sigaction action = { .sa_handler = on_signal };
	const struct itimerval often = { { .tv_usec = 1000 }, { .tv_usec = 1000 } }, never = { { 0 } };
	struct group group = open_elsewhere();
	struct member m = { .question = asked };

	go_fast();
	close_group(&group);
	PRELOAD_POKE(group.place->asker, &places);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	lead(&m);
	assert_true(m.opened);
	PRELOAD_POKE(group.place->leader, &places);
	join(&(struct member){ .question = asked });
	setitimer(ITIMER_REAL, &never, NULL);
	signal(SIGALRM, SIG_DFL);
}

/* A thread that never comes back: the next are not held up by it. */
static void test_never_told(void **state)
{
	struct member m, leader;
	struct group group = open_elsewhere();

	go_fast();
	start(&m, 1);
	assert_int_equal(end(&m, 1), 0);
	join(&m);
	assert_false(m.joined);
	group = open_elsewhere();
	close_group(&group);
	start_one(&leader, lead, false);
	pthread_join(leader.thread, NULL);
	assert_true(leader.opened);
	assert_int_equal(PRELOAD_PEEK(place_of(&asked)->under_way), 0);
}

/* The place of a result has been used again: its members know nothing. */
static void test_overtaken(void **state)
{
	struct member m;
	struct group group = open_elsewhere();

	go_fast();
	start(&m, 1);
	close_group(&group);
	group.number += N_RESULTS;
	tell_group(&group, PRELOAD_TOLD, &durable);
	assert_int_equal(end(&m, 1), 0);
}

/* Two who tell at the same place: the first is not disturbed. */
static void test_told_by_two(void **state)
{
	struct member m;
	struct group group = open_elsewhere(), second = group;
	uint32_t *told = &place_of(&asked)->result_number[group.number % N_RESULTS];

	go_fast();
	*told = BEING_TOLD;
	second.number += N_RESULTS;
	tell_group(&second, PRELOAD_TOLD, &durable);
	assert_int_equal(*told, BEING_TOLD);
	start(&m, 1);
	close_group(&group);
	assert_int_equal(end(&m, 1), 0);
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_shared),
		TEST(test_alone),
		TEST(test_closed),
		TEST(test_other_question),
		TEST(test_neighbour),
		TEST(test_turn),
		TEST(test_not_back),
		TEST(test_handler),
		TEST(test_handler_of_asker),
		TEST(test_never_told),
		TEST(test_overtaken),
		TEST(test_told_by_two),
		TEST(test_numbers_begin_anew),
		TEST(test_late_to_open),
		TEST(test_sent_when_closed),
		TEST(test_in_vain),
		TEST(test_signals),
		TEST(test_storm),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
