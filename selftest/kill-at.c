/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kill-at: kills a process at the Nth step it makes from now on
 *
 * usage: kill-at PID N
 *
 * Its steps are the beginnings and the ends of its system calls: what it does to memory that others see lies between
 * two of them. It prints "ready" when it counts, and at last "killed at NAME", or "alive after N" if it was told to end
 * (SIGTERM) before. A call that has begun is not made.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "agent/util.h"

static volatile sig_atomic_t ended;
static pid_t pid;

static void on_end(int number)
{
	ended = 1;
	/* So that a wait under way comes to an end. */
	ptrace(PTRACE_INTERRUPT, pid, 0, 0);
}

/* Whether it was a step; what else stopped it goes on as it would have. */
static bool is_step(int status, int *ret_signal)
{
	*ret_signal = 0;
	if (status >> 8 == (SIGTRAP | 0x80))
		return true;
	if (status >> 16 == 0)
		*ret_signal = WSTOPSIG(status);
	return false;
}

static int follow(unsigned long wanted)
{
	struct __ptrace_syscall_info info;
	unsigned long n = 0;
	int status, number;

	for (;;) {
		if (waitpid(pid, &status, __WALL) < 0) {
			if (errno == EINTR)
				continue;
			return 1;
		}
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			printf("ended by itself after %lu\n", n);
			return 0;
		}
		if (ended) {
			ptrace(PTRACE_DETACH, pid, 0, 0);
			printf("alive after %lu\n", n);
			return 0;
		}
		if (is_step(status, &number) && ++n == wanted)
			break;
		ptrace(PTRACE_SYSCALL, pid, 0, number);
	}
	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) <= 0)
		return 1;
	kill(pid, SIGKILL);
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
		printf("killed at the beginning of %llu\n", (unsigned long long)info.entry.nr);
	else
		printf("killed at the end, which gave %lld\n", (long long)info.exit.rval);
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_end };

	if (argc != 3)
		return 2;
	pid = (pid_t)atoi(argv[1]);
	sigaction(SIGTERM, &action, NULL);
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) < 0 || ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0) {
		perror("kill-at");
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	return follow(strtoul(argv[2], NULL, 10));
}
