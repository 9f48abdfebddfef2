/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "worker-message.h"

#define MAX_PARTS (3 + WORKER_MAX_CALLS)

union control {
	struct cmsghdr header;
	char buffer[CMSG_SPACE(WORKER_MAX_DESCRIPTORS * sizeof(int))];
};

struct parts {
	struct iovec iov[MAX_PARTS];
	unsigned int n;
};

static void add(struct parts *p, const void *base, size_t size)
{
	p->iov[p->n++] = (struct iovec){ .iov_base = (void *)base, .iov_len = size };
}

/* What is left of a message that was received. */
struct rest {
	const char *at;
	size_t size;
};

static bool take(struct rest *m, void *ret, size_t size)
{
	if (m->size < size)
		return false;
	memcpy(ret, m->at, size);
	m->at += size;
	m->size -= size;
	return true;
}

/* ---- the round ---- */

static size_t target_size(const struct target *t)
{
	return offsetof(struct target, leaves) + t->n_leaves * sizeof(t->leaves[0]);
}

int worker_send_round(int sock, const struct worker_round *round, const int *fds)
{
	size_t size = round->n_descriptors * sizeof(int);
	struct parts p = { .n = 0 };
	union control control;
	struct msghdr m = { .msg_iov = p.iov };

	add(&p, round, offsetof(struct worker_round, calls));
	add(&p, round->calls, round->n_calls * sizeof(round->calls[0]));
	add(&p, round->descriptors, round->n_descriptors * sizeof(round->descriptors[0]));
	for (unsigned int i = 0; i < round->n_targets; i++)
		add(&p, &round->targets[i], target_size(&round->targets[i]));
	m.msg_iovlen = p.n;
	if (size > 0) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(size);
		memset(&control, 0, m.msg_controllen);
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(size),
		};
		memcpy(CMSG_DATA(&control.header), fds, size);
	}
	return sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static bool take_target(struct rest *m, struct target *ret)
{
	return take(m, ret, offsetof(struct target, leaves)) && ret->n_leaves <= MOUNT_MAX_LEAVES &&
	       take(m, ret->leaves, ret->n_leaves * sizeof(ret->leaves[0]));
}

static bool take_round(struct rest *m, struct worker_round *ret)
{
	if (!take(m, ret, offsetof(struct worker_round, calls)) || ret->n_calls > WORKER_MAX_CALLS ||
	    ret->n_descriptors > WORKER_MAX_DESCRIPTORS || ret->n_targets > WORKER_MAX_CALLS ||
	    !take(m, ret->calls, ret->n_calls * sizeof(ret->calls[0])) ||
	    !take(m, ret->descriptors, ret->n_descriptors * sizeof(ret->descriptors[0])))
		return false;
	for (unsigned int i = 0; i < ret->n_targets; i++)
		if (!take_target(m, &ret->targets[i]))
			return false;
	return m->size == 0;
}

int worker_receive_round(int sock, struct worker_round *ret, int ret_fds[static WORKER_MAX_DESCRIPTORS],
			 unsigned int *ret_n_fds)
{
	static char buffer[sizeof(struct worker_round)];
	union control control;
	struct iovec iov = { .iov_base = buffer, .iov_len = sizeof(buffer) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t n;

	do
		n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0 || !take_round(&(struct rest){ .at = buffer, .size = (size_t)n }, ret))
		return -EPIPE;

	*ret_n_fds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		*ret_n_fds = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(ret_fds, CMSG_DATA(c), *ret_n_fds * sizeof(int));
	}
	return 0;
}

/* ---- the result ---- */

int worker_send_result(int sock, const struct worker_result *result)
{
	struct parts p = { .n = 0 };
	struct msghdr m = { .msg_iov = p.iov };

	add(&p, result, offsetof(struct worker_result, outcome));
	add(&p, result->outcome.calls, result->n_calls * sizeof(result->outcome.calls[0]));
	add(&p, result->outcome.descriptors, result->n_descriptors * sizeof(result->outcome.descriptors[0]));
	for (unsigned int i = 0; i < result->n_calls; i++)
		add(&p, result->details[i], strlen(result->details[i]) + 1);
	m.msg_iovlen = p.n;
	return sendmsg(sock, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static bool take_string(struct rest *m, char *ret, size_t size)
{
	size_t length = strnlen(m->at, m->size);

	return length < size && take(m, ret, length + 1);
}

static bool take_result(struct rest *m, struct worker_result *ret)
{
	if (!take(m, ret, offsetof(struct worker_result, outcome)) || ret->n_calls > WORKER_MAX_CALLS ||
	    ret->n_descriptors > WORKER_MAX_DESCRIPTORS ||
	    !take(m, ret->outcome.calls, ret->n_calls * sizeof(ret->outcome.calls[0])) ||
	    !take(m, ret->outcome.descriptors, ret->n_descriptors * sizeof(ret->outcome.descriptors[0])))
		return false;
	for (unsigned int i = 0; i < ret->n_calls; i++)
		if (!take_string(m, ret->details[i], sizeof(ret->details[i])))
			return false;
	return m->size == 0;
}

int worker_receive_result(int sock, struct worker_result *ret)
{
	char buffer[sizeof(struct worker_result)];
	ssize_t n = recv(sock, buffer, sizeof(buffer), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n <= 0 || !take_result(&(struct rest){ .at = buffer, .size = (size_t)n }, ret))
		return -EPIPE;
	return 0;
}
