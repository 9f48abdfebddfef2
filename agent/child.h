/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * child: a process that makes the calls which can hang, at the other end of a socket
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

/*
 * Forks, and runs `run` in the child: with nothing open but standard streams and `sock` (SOCK_SEQPACKET), deaf to the
 * signals by which a service is stopped. It ends when `run` returns, which it should when the other end is closed.
 * 0 or a negative errno.
 */
int child_start(const char *name, void (*run)(int sock, void *userdata), void *userdata, pid_t *ret_pid,
		int *ret_socket);

/*
 * Field 22 of /proc/PID/stat, in clock ticks since the boot: with the pid, it names a process for good. 0 or a negative
 * errno.
 */
int child_get_start_time(pid_t pid, uint64_t *ret);
