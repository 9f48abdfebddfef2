/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-wait: waits that end at a time, whatever wakes them before: signals may come more often than that
 */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

uint64_t preload_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * PRELOAD_NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

bool preload_wait(const uint32_t *word, uint32_t seen, uint64_t until)
{
	const struct timespec ts = { .tv_sec = (time_t)(until / PRELOAD_NSEC_PER_SEC),
				     .tv_nsec = (long)(until % PRELOAD_NSEC_PER_SEC) };

	syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, seen, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
	return preload_now() < until;
}

void preload_wake(const uint32_t *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n);
}
