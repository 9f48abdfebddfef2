/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-group: threads for whom there is no connection share one request
 *
 * The first of them opens a group, and closes it when it has got a connection and before it sends: what is flushed then
 * was stored before by all who have joined. They wait for what it is told, and not for ever: it may be what a signal
 * handler has interrupted, or never come back from one. Who has waited in vain asks by itself.
 */
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

#define BEING_TOLD UINT32_MAX
#define N_RESULTS  8 /* of the groups before, for those who are slow to read them */

enum gate { GATE_CLOSED, GATE_BEING_OPENED, GATE_OPEN, N_GATES };

struct result {
	struct preload_reply reply;
	enum preload_outcome outcome;
	uint32_t padding;
};

static uint32_t current;                 /* number of the group * N_GATES + whether it can be joined */
static struct preload_question question; /* of the group that is open */
static struct result results[N_RESULTS]; /* by number */
static uint32_t result_number[N_RESULTS];

_Static_assert(sizeof(struct result) % 8 == 0 && sizeof(question) % 8 == 0, "copied in words");

/* What others may write meanwhile: who has read anything of that sees by the number, afterwards, that they do. */
static void copy(void *to, const void *from, size_t size)
{
	typedef uint64_t __attribute__((may_alias)) word;

	for (size_t i = 0; i < size / sizeof(word); i++)
		__atomic_store_n((word *)to + i, __atomic_load_n((const word *)from + i, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELEASE);
}

static bool change(uint32_t number, enum gate from, uint32_t new_number, enum gate to)
{
	uint32_t before = number * N_GATES + from;

	return __atomic_compare_exchange_n(&current, &before, new_number * N_GATES + to, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED);
}

void preload_group_inherit(void)
{
	__atomic_store_n(&current, 0, __ATOMIC_SEQ_CST);
	memset(result_number, 0, sizeof(result_number));
}

uint32_t preload_group_open(const struct preload_question *q)
{
	uint32_t number = __atomic_load_n(&current, __ATOMIC_SEQ_CST) / N_GATES;
	uint32_t next = number + 1 < UINT32_MAX / N_GATES ? number + 1 : 1;

	if (!change(number, GATE_CLOSED, next, GATE_BEING_OPENED))
		return 0;
	copy(&question, q, sizeof(question));
	return change(next, GATE_BEING_OPENED, next, GATE_OPEN) ? next : 0;
}

void preload_group_close(uint32_t number)
{
	if (number != 0)
		change(number, GATE_OPEN, number, GATE_CLOSED);
}

void preload_group_tell(uint32_t number, enum preload_outcome outcome, const struct preload_reply *reply)
{
	const struct result result = { .reply = *reply, .outcome = outcome };
	uint32_t *told = &result_number[number % N_RESULTS], before = __atomic_load_n(told, __ATOMIC_SEQ_CST);

	/* One at a time: another is told there only if this one has been in vain for long. */
	if (number == 0 || before == BEING_TOLD ||
	    !__atomic_compare_exchange_n(told, &before, BEING_TOLD, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return;
	copy(&results[number % N_RESULTS], &result, sizeof(result));
	__atomic_store_n(told, number, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, told, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

/* False: nobody has told it in time. */
static bool wait_for_result(uint32_t number)
{
	const struct timespec wait = { .tv_sec = PRELOAD_MAX_WAIT_SEC };
	const uint32_t *told = &result_number[number % N_RESULTS];

	for (unsigned int i = 0; i < N_RESULTS; i++) {
		uint32_t seen = __atomic_load_n(told, __ATOMIC_SEQ_CST);

		if (seen == number)
			return true;
		if (syscall(SYS_futex, told, FUTEX_WAIT_PRIVATE, seen, &wait, NULL, 0) < 0 && errno == ETIMEDOUT)
			break;
	}
	return false;
}

bool preload_group_join(const struct preload_question *q, enum preload_outcome *ret_outcome, struct preload_reply *ret)
{
	uint32_t word = __atomic_load_n(&current, __ATOMIC_SEQ_CST), number = word / N_GATES;
	struct preload_question asked;
	struct result result;

	if (word % N_GATES != GATE_OPEN)
		return false;
	copy(&asked, &question, sizeof(asked));
	/* It is open still: so that was its question; and what this thread has stored comes before its flush. */
	if (memcmp(&asked, q, sizeof(asked)) != 0 || !change(number, GATE_OPEN, number, GATE_OPEN))
		return false;
	if (!wait_for_result(number)) {
		/* Nobody may be there to do it. */
		preload_group_close(number);
		return false;
	}
	copy(&result, &results[number % N_RESULTS], sizeof(result));
	if (__atomic_load_n(&result_number[number % N_RESULTS], __ATOMIC_SEQ_CST) != number)
		return false;
	*ret_outcome = result.outcome;
	*ret = result.reply;
	return true;
}
