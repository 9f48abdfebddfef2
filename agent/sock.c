/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sock: who listens, who may connect, how it ends
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "event.h"
#include "log.h"
#include "sock-private.h"

#define SOCK_MAX_CONNECTIONS 1024
#define SOCK_MAX_REQUESTS    4096
#define SOCK_RETRY_USEC      USEC_PER_SEC

/* ---- users ---- */

static struct sock_user *user_get(struct sock *s, uid_t uid)
{
	struct sock_user *u;

	TAILQ_FOREACH (u, &s->users, entry)
		if (u->uid == uid)
			return u;
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->uid = uid;
	TAILQ_INIT(&u->ready);
	TAILQ_INSERT_TAIL(&s->users, u, entry);
	return u;
}

static void user_put(struct sock *s, struct sock_user *u)
{
	if (u->n_connections > 0)
		return;
	TAILQ_REMOVE(&s->users, u, entry);
	free(u);
}

/* ---- connections ---- */

static bool is_stopping(const struct sock *s)
{
	return s->stop.timer;
}

static void listen_again(struct sock *s)
{
	if (s->listen_source)
		event_enable(s->listen_source, SD_EVENT_ON);
}

void sock_connection_gone(struct sock *s, struct sock_user *user)
{
	user->n_connections--;
	user_put(s, user);
	s->n_connections--;
	listen_again(s);
	if (is_stopping(s) && s->n_connections == 0)
		sd_event_source_set_time(s->stop.timer, 0);
}

/* Takes `fd` over. */
static int add_connection(struct sock *s, int fd)
{
	struct ucred peer = { .uid = (uid_t)-1 };
	socklen_t size = sizeof(peer);
	struct sock_user *user;
	struct connection *c;
	char detail[128];
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
		r = -errno;
		safe_close(fd);
		return r;
	}
	user = user_get(s, peer.uid);
	if (!user) {
		safe_close(fd);
		return -ENOMEM;
	}
	user->n_connections++;
	s->n_connections++;
	r = connection_new(s, fd, user, &c);
	if (r < 0)
		return r;
	if (user->n_connections > sock_share(s->max_connections)) {
		snprintf(detail, sizeof(detail), "you have %u connections already", user->n_connections - 1);
		connection_refuse(c, detail);
	} else if (!share_allows(s->n_connections, s->max_connections, peer.uid)) {
		snprintf(detail, sizeof(detail), "there are %u connections already", s->n_connections - 1);
		connection_refuse(c, detail);
	}
	return 0;
}

void sock_retry_later(struct sock *s)
{
	sd_event_source_set_time_relative(s->retry_source, SOCK_RETRY_USEC);
	event_enable(s->retry_source, SD_EVENT_ONESHOT);
}

/* Until a connection is closed, or for a while: whoever wants to connect waits in the kernel. */
static void pause_listening(struct sock *s, bool retry)
{
	sd_event_source_set_enabled(s->listen_source, SD_EVENT_OFF);
	if (retry)
		sock_retry_later(s);
}

/* 0: there may be more; -EAGAIN: there is none; another negative errno: a shortage. */
static int accept_one(struct sock *s)
{
	int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0)
		return add_connection(s, fd);
	switch (errno) {
	case EINTR:
	case ECONNABORTED:
		return 0;
	default:
		return -errno;
	}
}

static int on_listen(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct sock *s = userdata;
	int r = 0;

	for (unsigned int i = 0; i < SOCK_READY_AT_ONCE && r == 0; i++) {
		if (s->n_connections >= s->max_connections) {
			pause_listening(s, false);
			return 0;
		}
		r = accept_one(s);
	}
	if (r < 0 && r != -EAGAIN)
		pause_listening(s, true);
	return 0;
}

static int on_ready(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	connections_serve(userdata);
	return 0;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sock *s = userdata;
	struct connection *c, *next;

	listen_again(s);
	for (c = TAILQ_FIRST(&s->connections); c; c = next) {
		next = TAILQ_NEXT(c, entry);
		connection_retry(c);
	}
	/* One whose end was told on its edge may still wait for its turn. */
	connections_serve(s);
	return 0;
}

/* ---- the listening socket ---- */

/* The one systemd passed; 0: none. */
static int take_passed(struct sock *s)
{
	int n = sd_listen_fds(1);

	for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n; fd++)
		if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) > 0) {
			if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
				return -errno;
			s->fd = fd;
			return 1;
		}
	return n < 0 ? n : 0;
}

static int make_own(struct sock *s, const char *runtime_dir)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int n = snprintf(s->path, sizeof(s->path), "%s/" PMEM_AGENT_SOCKET_NAME, runtime_dir);

	if (n < 0 || (size_t)n >= sizeof(address.sun_path)) {
		s->path[0] = '\0';
		return -ENAMETOOLONG;
	}
	memcpy(address.sun_path, s->path, (size_t)n);
	s->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		return -errno;
	if (unlink(s->path) < 0 && errno != ENOENT)
		return -errno;
	if (bind(s->fd, (struct sockaddr *)&address, sizeof(address)) < 0 || chmod(s->path, 0666) < 0 ||
	    listen(s->fd, SOMAXCONN) < 0)
		return -errno;
	return 0;
}

static int start_listening(struct sock *s, const char *runtime_dir)
{
	sd_event *event = manager_get_event(s->manager);
	int r = take_passed(s);

	if (r == 0)
		r = make_own(s, runtime_dir);
	if (r < 0)
		return r;
	r = sd_event_add_io(event, &s->listen_source, s->fd, EPOLLIN, on_listen, s);
	if (r < 0)
		return r;
	r = sd_event_add_time_relative(event, &s->retry_source, CLOCK_MONOTONIC, 0, 0, on_retry, s);
	if (r < 0)
		return r;
	return sd_event_source_set_enabled(s->retry_source, SD_EVENT_OFF);
}

/* ---- the door ---- */

/* Each connection and each request holds a descriptor, and the other doors and the workers need theirs. */
static void set_bounds(struct sock *s)
{
	struct rlimit limit = { .rlim_cur = 1024 };

	getrlimit(RLIMIT_NOFILE, &limit);
	s->max_connections =
	    limit.rlim_cur / 16 < SOCK_MAX_CONNECTIONS ? (unsigned int)(limit.rlim_cur / 16) : SOCK_MAX_CONNECTIONS;
	s->max_requests =
	    limit.rlim_cur / 8 < SOCK_MAX_REQUESTS ? (unsigned int)(limit.rlim_cur / 8) : SOCK_MAX_REQUESTS;
}

int sock_new(struct manager *m, const char *runtime_dir, struct sock **ret)
{
	_cleanup_(sock_freep) struct sock *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->manager = m;
	s->fd = s->ready = -1;
	TAILQ_INIT(&s->connections);
	TAILQ_INIT(&s->users);
	TAILQ_INIT(&s->turns);
	TAILQ_INIT(&s->kept);
	set_bounds(s);
	s->ready = epoll_create1(EPOLL_CLOEXEC);
	if (s->ready < 0)
		return -errno;
	r = sd_event_add_io(manager_get_event(m), &s->ready_source, s->ready, EPOLLIN, on_ready, s);
	if (r < 0)
		return r;
	r = start_listening(s, runtime_dir);
	if (r < 0) {
		log_daemon(LOG_ERR, LOG_EVENT_NONE, "the socket cannot be had: %s", strerrordesc_np(-r));
		return r;
	}
	*ret = s;
	s = NULL;
	return 0;
}

/*
 * systemd's socket goes on listening: who connects now waits there for the next agent. Our own does not, and who is in
 * its queue already is taken in: what they have sent must be read, see sock-connection.c.
 */
static void stop_listening(struct sock *s)
{
	s->listen_source = sd_event_source_disable_unref(s->listen_source);
	if (!s->path[0])
		return;
	shutdown(s->fd, SHUT_RD);
	while (accept_one(s) == 0)
		;
}

static void abandon_all(struct sock *s)
{
	struct connection *c;

	while ((c = TAILQ_FIRST(&s->connections)))
		connection_abandon(c);
}

struct sock *sock_free(struct sock *s)
{
	if (!s)
		return NULL;
	stop_listening(s);
	abandon_all(s);
	sd_event_source_disable_unref(s->retry_source);
	sd_event_source_disable_unref(s->ready_source);
	sd_event_source_disable_unref(s->stop.timer);
	safe_close(s->ready);
	safe_close(s->fd);
	free(s);
	return NULL;
}

/* ---- stopping ---- */

static int on_stop_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sock *s = userdata;

	abandon_all(s);
	s->stop.done(s->stop.userdata);
	return 0;
}

void sock_stop(struct sock *s, void (*done)(void *userdata), void *userdata)
{
	struct connection *c, *next;

	s->stop.done = done;
	s->stop.userdata = userdata;
	stop_listening(s);
	for (c = TAILQ_FIRST(&s->connections); c; c = next) {
		next = TAILQ_NEXT(c, entry);
		connection_stop(c);
	}
	if (sd_event_add_time_relative(manager_get_event(s->manager), &s->stop.timer, CLOCK_MONOTONIC,
				       s->n_connections > 0 ? manager_get_conf(s->manager)->stop_usec : 0, 1,
				       on_stop_timer, s) < 0)
		done(userdata);
}
