/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * worker-message: what the agent and a worker of its own tell each other, one atomic message each
 *
 * Only what a round has of everything travels: most have one call.
 */
#pragma once

#include "worker.h"

/* `fds`, as many as the round has descriptors, are passed on, not consumed. Doesn't wait. 0 or a negative errno. */
int worker_send_round(int sock, const struct worker_round *round, const int *fds);

/* Waits. `ret_n_fds` may be fewer than the round's: the kernel kept some back. 0; -EPIPE: the agent is gone. */
int worker_receive_round(int sock, struct worker_round *ret, int ret_fds[static WORKER_MAX_DESCRIPTORS],
			 unsigned int *ret_n_fds);

int worker_send_result(int sock, const struct worker_result *result);

/* Doesn't wait. 0; -EAGAIN: none yet; -EPIPE: the worker is gone, and `ret` means nothing. */
int worker_receive_result(int sock, struct worker_result *ret);
