/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sock-kept: descriptors that peers have us keep, for mappings whose own they have closed
 *
 * Each belongs to a connection, and is dropped with it. Who flushes by it names its number, from any connection of the
 * same user. Closing may hang, as that of every descriptor that came from others; but only when it is done may the peer
 * see the connection end, since it unmounts then.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "closer.h"
#include "packet.h"
#include "sock-private.h"

struct sock_kept {
	uint64_t number;
	int fd;
	uid_t uid;
	struct connection *connection; /* NULL: it has gone before this was closed */
	bool dropping;
	TAILQ_ENTRY(sock_kept) entry;
};

static struct sock_kept *find(const struct sock *s, uid_t uid, uint64_t number)
{
	struct sock_kept *k;

	TAILQ_FOREACH (k, &s->kept, entry)
		if (k->number == number && k->uid == uid && !k->dropping)
			return k;
	return NULL;
}

/* Only what is on a region that we know, whatever a flush would come to just now. */
static int look_at(struct connection *c, int fd, char detail[static MOUNT_DETAIL_MAX])
{
	const struct flush_caller caller = { .uid = c->user->uid };
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), r;
	struct manager_query q;

	if (copy < 0)
		return -errno;
	r = manager_query_fd(c->sock->manager, copy, MOUNT_SCOPE_AUTO, &caller, &q);
	if (r < 0 || q.n_regions > 0)
		return r;
	snprintf(detail, MOUNT_DETAIL_MAX, "%s", q.detail);
	return q.answer ? (int)q.answer : PMEM_AGENT_ORDINARY;
}

int sock_keep(struct connection *c, struct packet *p, char detail[static MOUNT_DETAIL_MAX])
{
	struct sock *s = c->sock;
	unsigned int all = s->max_connections / 2;
	struct sock_kept *k;
	int r;

	if (c->kept || find(s, c->user->uid, p->request.id)) {
		snprintf(detail, MOUNT_DETAIL_MAX, "%s",
			 c->kept ? "this connection keeps a descriptor already" : "the number is in use");
		return PMEM_AGENT_REFUSED;
	}
	if (s->n_kept >= all || c->user->n_kept >= sock_share(all)) {
		snprintf(detail, MOUNT_DETAIL_MAX, "%u descriptors are kept already, %u of them yours", s->n_kept,
			 c->user->n_kept);
		return PMEM_AGENT_BUSY;
	}
	r = look_at(c, p->fds[0], detail);
	if (r != 0)
		return r;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->number = p->request.id;
	k->fd = packet_take_fd(p);
	k->uid = c->user->uid;
	k->connection = c;
	c->kept = k;
	c->user->n_kept++;
	s->n_kept++;
	TAILQ_INSERT_TAIL(&s->kept, k, entry);
	return 0;
}

int sock_kept_copy(const struct connection *c, uint64_t number)
{
	const struct sock_kept *k = find(c->sock, c->user->uid, number);
	int fd;

	if (!k)
		return -ENOENT;
	fd = fcntl(k->fd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

/* Off its connection and its list. */
static void detach(struct sock_kept *k)
{
	struct connection *c = k->connection;

	TAILQ_REMOVE(&c->sock->kept, k, entry);
	c->user->n_kept--;
	c->sock->n_kept--;
	c->kept = NULL;
	k->connection = NULL;
}

static void on_harmless(void *userdata)
{
	struct sock_kept *k = userdata;
	struct connection *c = k->connection;

	safe_close(k->fd);
	if (c) {
		detach(k);
		connection_retry(c);
	}
	free(k);
}

void sock_kept_drop(struct connection *c)
{
	struct sock_kept *k = c->kept;

	if (!k || k->dropping)
		return;
	k->dropping = true;
	closer_defuse(&k->fd, 1, k->uid, on_harmless, k);
}

void sock_kept_abandon(struct connection *c)
{
	struct sock_kept *k = c->kept;

	if (!k)
		return;
	detach(k);
	/* Else it goes when it is harmless. */
	if (!k->dropping) {
		closer_close(k->fd, k->uid);
		free(k);
	}
}
