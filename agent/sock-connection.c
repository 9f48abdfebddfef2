/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sock-connection: packets in, replies out
 *
 * Whatever a peer sends is read to its end before the connection is closed, since closing a socket drops the
 * descriptors that are still in it, and that can hang.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "answer.h"
#include "closer.h"
#include "packet.h"
#include "sock-private.h"

struct sock_request {
	struct connection *connection;
	struct request *request; /* NULL: it has been answered */
	struct pmem_agent_reply reply;
	TAILQ_ENTRY(sock_request) entry;
};

_Static_assert((int)PMEM_AGENT_SCOPE_AUTO == (int)MOUNT_SCOPE_AUTO &&
		   (int)PMEM_AGENT_SCOPE_FILE == (int)MOUNT_SCOPE_FILE &&
		   (int)PMEM_AGENT_SCOPE_FILE_DATA == (int)MOUNT_SCOPE_FILE_DATA &&
		   (int)PMEM_AGENT_SCOPE_FILESYSTEM == (int)MOUNT_SCOPE_FILESYSTEM &&
		   (int)PMEM_AGENT_SCOPE_REGION == (int)MOUNT_SCOPE_REGION,
	       "a scope has the same number inside and outside");
_Static_assert(PMEM_AGENT_MAX_REGIONS >= MOUNT_MAX_LEAVES, "a reply has room for every region of a target");

/* ---- requests ---- */

static struct sock_request *sock_request_new(struct connection *c, const struct pmem_agent_request *request)
{
	struct sock_request *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->connection = c;
	r->reply.version = PMEM_AGENT_WIRE_VERSION;
	r->reply.type = request->type == PMEM_AGENT_PACKET_QUERY || request->type == PMEM_AGENT_PACKET_KEEP ||
				request->type == PMEM_AGENT_PACKET_REPORT
			    ? request->type
			    : PMEM_AGENT_PACKET_FLUSH;
	r->reply.id = request->id;
	TAILQ_INSERT_TAIL(&c->waiting, r, entry);
	c->n_outstanding++;
	c->user->n_requests++;
	c->sock->n_requests++;
	return r;
}

/* It has its answer, or needs none; off its list. */
static void sock_request_end(struct sock_request *r)
{
	struct connection *c = r->connection;

	TAILQ_REMOVE(&c->waiting, r, entry);
	c->user->n_requests--;
	c->sock->n_requests--;
	r->request = NULL;
}

/* On no list any more. */
static void sock_request_free(struct sock_request *r)
{
	r->connection->n_outstanding--;
	free(r);
}

static void drop_waiting(struct connection *c)
{
	struct sock_request *r = TAILQ_FIRST(&c->waiting);

	request_cancel(r->request);
	sock_request_end(r);
	sock_request_free(r);
}

static void drop_reply(struct connection *c)
{
	struct sock_request *r = TAILQ_FIRST(&c->replies);

	TAILQ_REMOVE(&c->replies, r, entry);
	sock_request_free(r);
}

/* ---- replies ---- */

/* 0; -EAGAIN: no room at the peer's; another negative errno. */
static int send_reply(const struct connection *c, const struct pmem_agent_reply *reply)
{
	return send(c->fd, reply, sizeof(*reply), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* What is still to be read is, and what is in work is given up, piece by piece: the loop comes back for it. */
static void leave(struct connection *c)
{
	c->left = true;
	shutdown(c->fd, SHUT_RDWR);
}

/* `r`, whose reply is complete, goes to the peer as soon as there is room. */
static void answer(struct sock_request *r)
{
	struct connection *c = r->connection;
	int e;

	sock_request_end(r);
	e = c->left ? -EPIPE : TAILQ_EMPTY(&c->replies) ? send_reply(c, &r->reply) : -EAGAIN;
	if (e == -EAGAIN) {
		TAILQ_INSERT_TAIL(&c->replies, r, entry);
		return;
	}
	sock_request_free(r);
	if (e < 0 && !c->left)
		leave(c);
}

static void send_waiting_replies(struct connection *c)
{
	struct sock_request *r;
	int e = 0;

	while ((r = TAILQ_FIRST(&c->replies)) && e == 0) {
		e = send_reply(c, &r->reply);
		if (e == 0)
			drop_reply(c);
	}
	if (e < 0 && e != -EAGAIN)
		leave(c);
}

/* `error`: what is behind the answer, 0 if nothing is known. */
static void set_answer(struct pmem_agent_reply *reply, enum pmem_agent_answer what, int error, const char *detail)
{
	/* Only these two tell more by it than by the answer. */
	bool own = error > 0 && (what == PMEM_AGENT_FAILED || what == PMEM_AGENT_REFUSED);

	reply->answer = what;
	reply->error = own ? error : answer_get(what)->error;
	if (what != PMEM_AGENT_DURABLE)
		snprintf(reply->detail, sizeof(reply->detail), "%s", detail[0] ? detail : answer_get(what)->meaning);
}

static uint32_t scope_of(enum flush_scope scope)
{
	switch (scope) {
	case FLUSH_REGION:
		return PMEM_AGENT_SCOPE_REGION;
	case FLUSH_FILESYSTEM:
		return PMEM_AGENT_SCOPE_FILESYSTEM;
	case FLUSH_FILE:
		return PMEM_AGENT_SCOPE_FILE;
	case FLUSH_FILE_DATA:
		return PMEM_AGENT_SCOPE_FILE_DATA;
	case N_FLUSH_SCOPES:
		break;
	}
	return PMEM_AGENT_SCOPE_AUTO;
}

static uint32_t basis_of(const char *basis)
{
	if (strcmp(basis, "host-confirmed") == 0)
		return PMEM_AGENT_BASIS_HOST_CONFIRMED;
	return strcmp(basis, "watched") == 0 ? PMEM_AGENT_BASIS_WATCHED : PMEM_AGENT_BASIS_OWN_FLUSH;
}

static void set_durable(struct pmem_agent_reply *reply, const struct request_result *result)
{
	reply->scope = scope_of(result->scope);
	reply->basis = basis_of(result->basis);
	reply->durable_usec = result->durable_usec;
	reply->n_regions = result->n_epochs;
	for (unsigned int i = 0; i < result->n_epochs; i++) {
		const struct region *region = manager_region_get(result->epochs[i].region);

		reply->regions[i].page = region_identity_hash(region->identity);
		reply->regions[i].epoch = result->epochs[i].epoch;
	}
}

/* ---- packets ---- */

static void update(struct connection *c);

static void on_request_done(const struct request_result *result, void *userdata)
{
	struct sock_request *r = userdata;
	struct connection *c = r->connection;

	set_answer(&r->reply, result->answer, result->error, result->detail);
	if (result->answer == PMEM_AGENT_DURABLE)
		set_durable(&r->reply, result);
	answer(r);
	update(c);
}

static struct flush_caller caller_of(const struct connection *c, uint64_t timeout_usec)
{
	uint64_t now = now_usec(CLOCK_MONOTONIC);

	return (struct flush_caller){
		.uid = c->user->uid,
		.deadline_usec = timeout_usec == 0                     ? 0
				 : timeout_usec > UINT64_MAX - 1 - now ? UINT64_MAX - 1
								       : now + timeout_usec,
	};
}

/* What the descriptor has to be of; NULL: anything. */
static const struct mount_file *expectation(const struct packet *p, struct mount_file *buffer)
{
	*buffer = (struct mount_file){ .device = p->request.device, .inode = p->request.inode };
	return buffer->device || buffer->inode ? buffer : NULL;
}

/* 0: it will be answered; else the answer, or a negative errno. */
static int begin(struct sock_request *r, struct packet *p, char detail[static MOUNT_DETAIL_MAX])
{
	struct connection *c = r->connection;
	struct flush_caller caller = caller_of(c, p->request.timeout_usec);
	struct mount_file expected;
	int fd;

	if (!share_allows(c->sock->n_requests, c->sock->max_requests, c->user->uid) ||
	    c->user->n_requests > sock_share(c->sock->max_requests)) {
		snprintf(detail, MOUNT_DETAIL_MAX, "%u requests wait at the socket already, %u of them yours",
			 c->sock->n_requests - 1, c->user->n_requests - 1);
		return PMEM_AGENT_BUSY;
	}
	fd = p->request.kept ? sock_kept_copy(c, p->request.kept) : packet_take_fd(p);
	if (fd == -ENOENT) {
		snprintf(detail, MOUNT_DETAIL_MAX, "no descriptor is kept by this number");
		return PMEM_AGENT_NOT_FOUND;
	}
	if (fd < 0)
		return fd;
	return manager_flush_fd(c->sock->manager, fd, expectation(p, &expected), (enum mount_scope)p->request.scope,
				&caller, on_request_done, r, &r->request, detail);
}

static uint32_t method_of(const struct region *region)
{
	static const unsigned char methods[N_REGION_METHODS] = {
		[REGION_METHOD_IMPOSSIBLE] = PMEM_AGENT_METHOD_IMPOSSIBLE,
		[REGION_METHOD_BLOCK] = PMEM_AGENT_METHOD_BLOCK,
		[REGION_METHOD_DEEP_FLUSH] = PMEM_AGENT_METHOD_DEEP_FLUSH,
		[REGION_METHOD_HOST] = PMEM_AGENT_METHOD_HOST,
		[REGION_METHOD_CPU_FLUSH] = PMEM_AGENT_METHOD_CPU_FLUSH,
		[REGION_METHOD_FILE] = PMEM_AGENT_METHOD_FILE,
	};

	return region ? methods[region->method] : PMEM_AGENT_METHOD_NONE;
}

/* As begin(); the answer is in the reply already. */
static int query(struct sock_request *r, struct packet *p)
{
	struct pmem_agent_reply *reply = &r->reply;
	struct flush_caller caller = caller_of(r->connection, 0);
	struct manager_query q;
	int e = manager_query_fd(r->connection->sock->manager, packet_take_fd(p), (enum mount_scope)p->request.scope,
				 &caller, &q);

	if (e < 0)
		return e;
	set_answer(reply, q.answer, 0, q.detail);
	if (q.answer == 0)
		snprintf(reply->detail, sizeof(reply->detail), "%.*s", PMEM_AGENT_DETAIL_MAX - 1, q.detail);
	reply->method = method_of(q.decides);
	reply->scope = q.n_regions > 0 ? scope_of(q.scope) : 0;
	reply->n_regions = q.n_regions;
	for (unsigned int i = 0; i < q.n_regions; i++) {
		const struct region *region = manager_region_get(q.regions[i]);
		struct flush_status status;

		manager_region_get_status(q.regions[i], &status);
		if (region_can_flush(region))
			reply->regions[i] = (struct pmem_agent_epoch){ .page = region_identity_hash(region->identity),
								       .epoch = status.epoch };
	}
	answer(r);
	return 0;
}

/* As begin(). */
static int keep(struct sock_request *r, struct packet *p, char detail[static MOUNT_DETAIL_MAX])
{
	int e = sock_keep(r->connection, p, detail);

	if (e == 0)
		answer(r);
	return e;
}

/* As begin(). */
static int report(struct sock_request *r, struct packet *p, char detail[static MOUNT_DETAIL_MAX])
{
	struct flush_caller caller = caller_of(r->connection, 0);
	struct mount_file expected;
	int e = manager_report_fd(r->connection->sock->manager, packet_take_fd(p), expectation(p, &expected), &caller,
				  detail);

	if (e == 0)
		answer(r);
	return e;
}

static void handle(struct connection *c, struct packet *p)
{
	struct sock_request *r = sock_request_new(c, &p->request);
	char detail[MOUNT_DETAIL_MAX] = "";
	int e;

	if (!r) {
		leave(c);
		return;
	}
	e = packet_check(p, detail, sizeof(detail));
	if (e == PMEM_AGENT_REFUSED)
		r->reply.type = PMEM_AGENT_PACKET_ERROR;
	if (e == 0)
		e = p->request.type == PMEM_AGENT_PACKET_QUERY    ? query(r, p)
		    : p->request.type == PMEM_AGENT_PACKET_KEEP   ? keep(r, p, detail)
		    : p->request.type == PMEM_AGENT_PACKET_REPORT ? report(r, p, detail)
								  : begin(r, p, detail);
	if (e == 0)
		return;
	if (e < 0)
		set_answer(&r->reply, PMEM_AGENT_REFUSED, -e, strerrordesc_np(-e));
	else
		set_answer(&r->reply, (enum pmem_agent_answer)e, 0, detail);
	answer(r);
}

/* One packet. Returns what it cost; 0: there is none. */
static unsigned int receive(struct connection *c)
{
	struct packet p;
	unsigned int cost;
	int r;

	/* An error of the connection is told once, and what had come before it is still there. */
	do
		r = packet_receive(c->fd, &p);
	while (r == -ECONNRESET || r == -EINTR);
	if (r == -EAGAIN)
		return 0;
	c->ended = r <= 0;
	if (r < 0)
		leave(c);
	cost = 1 + p.n_fds;
	if (r > 0 && !c->left)
		handle(c, &p);
	packet_clear(&p, c->user->uid);
	return cost;
}

static bool can_receive(const struct connection *c)
{
	return !c->ended && c->n_outstanding < SOCK_MAX_OUTSTANDING && !closer_is_full(c->user->uid);
}

/* ---- the connection ---- */

/* What is to be waited for now. Frees the connection if there is nothing. */
static void update(struct connection *c)
{
	struct epoll_event e = { .data.ptr = c };

	if (c->ended && c->n_outstanding == 0 && !c->kept) {
		connection_free(c);
		return;
	}
	if (c->ended)
		sock_kept_drop(c);
	if (can_receive(c))
		e.events |= EPOLLIN;
	if (!TAILQ_EMPTY(&c->replies))
		e.events |= EPOLLOUT;
	/* On its edge only: that the peer has hung up would be told again and again, and it can't be read to its end
	 * now. */
	if (!c->ended && closer_is_full(c->user->uid)) {
		e.events = EPOLLET;
		sock_retry_later(c->sock);
	}
	/* Likewise: until what it has us keep is closed. */
	if (c->ended && c->kept)
		e.events |= EPOLLET;
	if (e.events != c->events && epoll_ctl(c->sock->ready, EPOLL_CTL_MOD, c->fd, &e) == 0)
		c->events = e.events;
}

void connection_retry(struct connection *c)
{
	update(c);
}

static void give_up_some(struct connection *c)
{
	while (!TAILQ_EMPTY(&c->replies))
		drop_reply(c);
	for (unsigned int i = 0; i < SOCK_MAX_OUTSTANDING / 4 && !TAILQ_EMPTY(&c->waiting); i++)
		drop_waiting(c);
}

static unsigned int serve(struct connection *c, uint32_t events)
{
	unsigned int cost = 0;

	if (events & (EPOLLHUP | EPOLLERR) && !c->left)
		leave(c);
	if (c->left)
		give_up_some(c);
	else if (events & EPOLLOUT)
		send_waiting_replies(c);
	if (can_receive(c))
		cost = receive(c);
	update(c);
	return 1 + cost;
}

static void wait_for_turn(struct connection *c, uint32_t events)
{
	if (!c->ready) {
		if (TAILQ_EMPTY(&c->user->ready))
			TAILQ_INSERT_TAIL(&c->sock->turns, c->user, turn);
		TAILQ_INSERT_TAIL(&c->user->ready, c, turn);
	}
	c->ready |= events;
}

/* What it was ready for; 0: it has waited for no turn. */
static uint32_t leave_turns(struct connection *c)
{
	struct sock_user *u = c->user;
	uint32_t ready = c->ready;

	if (!ready)
		return 0;
	c->ready = 0;
	TAILQ_REMOVE(&u->ready, c, turn);
	TAILQ_REMOVE(&c->sock->turns, u, turn);
	if (!TAILQ_EMPTY(&u->ready))
		TAILQ_INSERT_TAIL(&c->sock->turns, u, turn);
	return ready;
}

/* Who has many connections is not heard more often than who has one. */
void connections_serve(struct sock *s)
{
	struct epoll_event events[SOCK_READY_AT_ONCE];
	unsigned int cost = 0;
	struct sock_user *u;
	int n;

	do {
		n = epoll_wait(s->ready, events, SOCK_READY_AT_ONCE, 0);
		for (int i = 0; i < n; i++)
			wait_for_turn(events[i].data.ptr, events[i].events);
		for (unsigned int look = cost; cost - look < SOCK_WORK_PER_LOOK && (u = TAILQ_FIRST(&s->turns));) {
			struct connection *c = TAILQ_FIRST(&u->ready);

			cost += serve(c, leave_turns(c));
		}
	} while (!TAILQ_EMPTY(&s->turns) && cost < SOCK_WORK_PER_DISPATCH);
	manager_run(s->manager);
}

int connection_new(struct sock *s, int fd, struct sock_user *user, struct connection **ret)
{
	struct connection *c = calloc(1, sizeof(*c));
	int r;

	if (!c) {
		safe_close(fd);
		sock_connection_gone(s, user);
		return -ENOMEM;
	}
	c->sock = s;
	c->user = user;
	c->fd = fd;
	TAILQ_INIT(&c->waiting);
	TAILQ_INIT(&c->replies);
	TAILQ_INSERT_TAIL(&s->connections, c, entry);
	c->events = EPOLLIN;
	r = packet_prepare(fd);
	if (r >= 0 &&
	    epoll_ctl(s->ready, EPOLL_CTL_ADD, fd, &(struct epoll_event){ .events = c->events, .data.ptr = c }) < 0)
		r = -errno;
	if (r < 0) {
		connection_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct connection *connection_free(struct connection *c)
{
	struct sock *s = c->sock;
	struct sock_user *user = c->user;

	while (!TAILQ_EMPTY(&c->waiting))
		drop_waiting(c);
	while (!TAILQ_EMPTY(&c->replies))
		drop_reply(c);
	leave_turns(c);
	epoll_ctl(s->ready, EPOLL_CTL_DEL, c->fd,
		  NULL); /* closing is not enough: a child may have the descriptor too */
	sock_kept_abandon(c);
	safe_close(c->fd);
	TAILQ_REMOVE(&s->connections, c, entry);
	free(c);
	sock_connection_gone(s, user);
	return NULL;
}

void connection_refuse(struct connection *c, const char *detail)
{
	struct pmem_agent_reply reply = { .version = PMEM_AGENT_WIRE_VERSION, .type = PMEM_AGENT_PACKET_ERROR };

	set_answer(&reply, PMEM_AGENT_BUSY, 0, detail);
	send_reply(c, &reply);
	leave(c);
}

void connection_stop(struct connection *c)
{
	shutdown(c->fd, SHUT_RD);
	while (can_receive(c) && receive(c) > 0)
		;
	update(c);
}

void connection_abandon(struct connection *c)
{
	struct sock_request *r;
	struct packet p;
	int e = 1;

	while ((r = TAILQ_FIRST(&c->waiting))) {
		request_cancel(r->request);
		set_answer(&r->reply, PMEM_AGENT_UNKNOWN, 0,
			   "the agent stops, and the host has not confirmed the flush");
		answer(r);
	}
	leave(c);
	while (e > 0 || e == -ECONNRESET || e == -EINTR) {
		e = packet_receive(c->fd, &p);
		packet_clear(&p, c->user->uid);
	}
	connection_free(c);
}
