/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sock-private: what the three files of the socket's door share
 *
 *   sock.c             who listens, who may connect, how it ends
 *   sock-connection.c  packets in, replies out
 *   sock-kept.c        descriptors that peers have us keep
 */
#pragma once

#include <sys/queue.h>

#include "lib/wire.h"
#include "share.h"
#include "sock.h"

/* Requests of one connection that have no reply yet, or whose reply the peer hasn't taken: beyond, it isn't read. */
#define SOCK_MAX_OUTSTANDING 64

/*
 * What the connections may have us do before other doors get their turn, and before we look again which of them are
 * ready, so many at once: who has just come is not to wait for all who were there.
 */
#define SOCK_WORK_PER_DISPATCH 256
#define SOCK_WORK_PER_LOOK     64
#define SOCK_READY_AT_ONCE     256

struct packet;
struct sock_kept;
struct sock_request;

TAILQ_HEAD(connection_list, connection);

/* One user's share. */
struct sock_user {
	uid_t uid;
	unsigned int n_connections;
	unsigned int n_requests; /* not answered */
	unsigned int n_kept;
	struct connection_list ready;
	TAILQ_ENTRY(sock_user) entry, turn;
};

TAILQ_HEAD(sock_user_list, sock_user);
TAILQ_HEAD(sock_request_list, sock_request);
TAILQ_HEAD(sock_kept_list, sock_kept);

struct connection {
	struct sock *sock;
	struct sock_user *user;
	int fd;
	uint32_t events; /* that are waited for */
	uint32_t ready;  /* that have come; 0: it waits for no turn */
	struct sock_request_list waiting;
	struct sock_request_list replies; /* the peer has no room for */
	unsigned int n_outstanding;       /* on both lists */
	struct sock_kept *kept;           /* NULL: none */
	bool ended;                       /* nothing more will come in */
	bool left;                        /* nothing goes out: the peer is gone, or we want no more of it */
	TAILQ_ENTRY(connection) entry, turn;
};

struct sock {
	struct manager *manager;
	int fd;
	char path[108]; /* "": the listening socket is systemd's */
	int ready;      /* an epoll of the connections: one event of the loop serves all that are ready */
	sd_event_source *ready_source;
	sd_event_source *listen_source;
	sd_event_source *retry_source; /* accepts and reads again after a shortage */
	unsigned int max_connections, max_requests;
	unsigned int n_connections, n_requests, n_kept;
	struct sock_kept_list kept;
	struct connection_list connections;
	struct sock_user_list users;
	struct sock_user_list turns; /* those who have a connection that is ready */

	struct {
		void (*done)(void *userdata);
		void *userdata;
		sd_event_source *timer;
	} stop;
};

/* ---- sock.c ---- */

/* What one user may have of it, as in the regions' queues; and there is share.h. */
static inline unsigned int sock_share(unsigned int all)
{
	return all / 4;
}

/* A connection has gone, and is off the list. */
void sock_connection_gone(struct sock *s, struct sock_user *user);

/* connection_retry() for all, in a while. */
void sock_retry_later(struct sock *s);

/* ---- sock-connection.c ---- */

/* Takes `fd` over, and has `user` counted already. 0 or a negative errno. */
int connection_new(struct sock *s, int fd, struct sock_user *user, struct connection **ret);
struct connection *connection_free(struct connection *c);

/* Serves those of `s` that are ready: users take turns, and so do the connections of each. */
void connections_serve(struct sock *s);

/* Tells why, and ends it; what it sent is not looked at. */
void connection_refuse(struct connection *c, const char *detail);

/* It may be read again, if what its user has sent before has been closed meanwhile. */
void connection_retry(struct connection *c);

/* Nothing more is taken in: the peer knows of each packet whether it came before. Frees it if it waits for nothing. */
void connection_stop(struct connection *c);

/* Who waits is told that nobody knows, and the connection is freed. */
void connection_abandon(struct connection *c);

/* ---- sock-kept.c ---- */

/* The descriptor of the packet is kept from here on. 0, an answer with `detail`, or a negative errno. */
int sock_keep(struct connection *c, struct packet *p, char detail[static MOUNT_DETAIL_MAX]);

/* A duplicate of what a connection of the same user has us keep by that number, or a negative errno: -ENOENT. */
int sock_kept_copy(const struct connection *c, uint64_t number);

/* What the connection has us keep is closed; when that is done it has none, and connection_retry() is called. */
void sock_kept_drop(struct connection *c);

/* The same, and the connection goes at once. */
void sock_kept_abandon(struct connection *c);
