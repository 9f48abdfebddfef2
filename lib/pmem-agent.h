/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmem-agent: have pmem-agent make durable what a descriptor stands for; pmem_agent_flush(3) has more
 *
 * Only a return value of 0 says that something is durable: every store and write to the target that was complete before
 * the call. Any other promises nothing; see enum pmem_agent_answer in wire.h for what is known then.
 *
 * A struct pmem_agent may be used by any number of threads at once. Those that flush the same open file at the same
 * time are combined where none of their requests has been sent yet. After fork() both processes may go on using it: the
 * child has a connection of its own then, and no requests. No call raises SIGPIPE, and none is a cancellation point.
 * Times are in microseconds.
 */
#pragma once

#include <stdint.h>

#include "wire.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct pmem_agent;

#define PMEM_AGENT_NO_TIMEOUT    UINT64_MAX
#define PMEM_AGENT_MAX_SUBMITTED 64 /* requests whose result has not been taken */

struct pmem_agent_result {
	uint64_t id;
	enum pmem_agent_answer answer;
	enum pmem_agent_scope scope; /* what was flushed; this and the next four with PMEM_AGENT_DURABLE only */
	enum pmem_agent_basis basis;
	uint64_t durable_usec; /* stores made before this are durable, CLOCK_REALTIME */
	unsigned int n_regions;
	struct pmem_agent_epoch regions[PMEM_AGENT_MAX_REGIONS]; /* the flush that confirmed, for each */
	char detail[PMEM_AGENT_DETAIL_MAX];                      /* why it isn't durable, a sentence; else "" */
};

/*
 * Connects to the agent that listens at `path`, NULL: /run/pmem-agent/socket. While the agent is being restarted by
 * systemd this succeeds, and requests wait. If a connection ends later, the next request makes another.
 *
 * 0; -ENOENT, -ECONNREFUSED: there is no agent; -EACCES; -EAGAIN: too many wait to be connected; -ENAMETOOLONG;
 * -ENOMEM, -EMFILE.
 */
int pmem_agent_connect(const char *path, struct pmem_agent **ret);

/* What has been submitted is given up; flushes that have begun go on. NULL is allowed, and returned. */
struct pmem_agent *pmem_agent_close(struct pmem_agent *agent);

/*
 * Flushes what `fd` stands for, and waits for it, for `timeout_usec` at most (not 0; or PMEM_AGENT_NO_TIMEOUT). `fd` is
 * a file or directory, opened for reading or writing, or a block device; best the one that was written through, since
 * the kernel tells an error once to each. It is not closed. `ret` may be NULL.
 *
 * 0: durable. Else a negative errno, with `ret` filled in, answer and detail at least:
 * -EIO         stores were lost, or the agent ended before it answered: nobody can tell
 * -ETIMEDOUT   not confirmed in time, or nobody can tell; the flush goes on
 * -EBUSY       too many requests or connections
 * -ENOSPC, -EDQUOT            the target has no room; nothing else was lost
 * -ENODEV      the region was removed
 * -ENOTBLK, -EXDEV            not on persistent memory, or not only: use fsync
 * -EOPNOTSUPP  the region or filesystem is none that the agent can flush
 * -EINVAL, -EBADF             no target, or wrong arguments
 * -ESTALE                     another thread has closed the descriptor meanwhile, and it is of another file now
 * -EPROTONOSUPPORT            the agent speaks another version
 * and those of pmem_agent_connect() and pmem_agent_submit(): nothing has been asked then.
 */
int pmem_agent_flush(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		     struct pmem_agent_result *ret);

/*
 * What pmem_agent_flush() would come to now, without flushing anything. `ret` is filled in, answer and detail at least.
 *
 * 0: the flush would be made, and `ret->detail` tells what shows how. Else a negative errno as from pmem_agent_flush().
 */
struct pmem_agent_info {
	enum pmem_agent_answer answer;                           /* 0: it would be made */
	enum pmem_agent_method method;                           /* how; or of the region which is why it can't be */
	enum pmem_agent_scope scope;                             /* what would be flushed */
	unsigned int n_regions;                                  /* below it, as far as they are known */
	struct pmem_agent_epoch regions[PMEM_AGENT_MAX_REGIONS]; /* a page of 0: there is none */
	char detail[PMEM_AGENT_DETAIL_MAX];                      /* a sentence, "" if there is nothing to tell */
};
int pmem_agent_query(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		     struct pmem_agent_info *ret);

/*
 * The number of the newest flush that was confirmed for a region, and whether it has lost stores that nobody has
 * acknowledged, from its page in memory: also while there is no agent. `page` is from a result or an info. The first
 * call for a page opens it; later ones make no system call, and may be made in a signal handler.
 *
 * pmem_agent_epoch(): 0 or a negative errno. pmem_agent_lost(): 0: nothing was lost; PMEM_AGENT_LOST;
 * PMEM_AGENT_UNKNOWN: nobody can tell, maybe for a moment only; or a negative errno: -ENOENT: there is no such page;
 * -EPROTONOSUPPORT: the agent has pages of another version; -EMFILE, -ENOMEM, -EACCES.
 */
int pmem_agent_epoch(struct pmem_agent *agent, uint64_t page, uint64_t *ret);
int pmem_agent_lost(struct pmem_agent *agent, uint64_t page);

/*
 * Asks for the same as pmem_agent_flush() and does not wait: `ret_id`, never 0, is for pmem_agent_wait(). `fd` may be
 * closed at once.
 *
 * 0: it has been sent. -EAGAIN: PMEM_AGENT_MAX_SUBMITTED are under way, take a result first; -ETIMEDOUT: it could not
 * be sent in time; -EINVAL, -EBADF; -ETOOMANYREFS: the kernel's bound of descriptors in flight; or as from
 * pmem_agent_connect(), when the agent has gone since.
 */
int pmem_agent_submit(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		      uint64_t *ret_id);

/*
 * A descriptor to poll for reading: when it is ready, pmem_agent_wait() may have something. It stays the same until
 * pmem_agent_close(), to which it belongs; in a child of fork() that has closed it, until the first call that follows.
 */
int pmem_agent_get_fd(const struct pmem_agent *agent);

/*
 * The result of the request `id`, or of any if that is 0, within `timeout_usec` (0: don't wait; or
 * PMEM_AGENT_NO_TIMEOUT). It is told once. `ret` may be NULL. What was submitted with a timeout of its own is answered
 * by then, whether the agent is there or not, if somebody waits.
 *
 * As pmem_agent_flush(), and these, which stand for no answer, and leave `ret` alone:
 * -EAGAIN      no answer within `timeout_usec`
 * -ESRCH       no such request is under way
 */
int pmem_agent_wait(struct pmem_agent *agent, uint64_t id, uint64_t timeout_usec, struct pmem_agent_result *ret);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
