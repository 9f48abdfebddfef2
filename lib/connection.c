/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * connection: requests out, answers in
 *
 * An agent that stops takes what has been sent to it, refuses the rest (EPIPE) and answers all it took. So a packet
 * that could not be sent is sent again, on another connection, while the old one is kept until it has ended. One that
 * was sent and never answered is never sent again: what became of it nobody knows.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"

#define MAX_RECONNECTS 16
#define ROOM_USEC      100000 /* where another thread may stop receiving while we wait for room */

/* ---- answers ---- */

static bool waits_on(const struct slot *s, const struct connection *c)
{
	return (s->state == SLOT_SENT || s->state == SLOT_SENDING) && s->connection == c;
}

/* One that is being sent on it just now may not have been delivered: who sends it knows. */
static void settle_all(struct pmem_agent *agent, const struct connection *c, const struct exchange_verdict *v)
{
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++)
		if (agent->slots[i].state == SLOT_SENT && agent->slots[i].connection == c)
			client_settle(agent, &agent->slots[i], v->answer, v->error, v->detail);
}

static void take_answer(struct pmem_agent *agent, struct slot *s, const struct pmem_agent_reply *reply,
			struct exchange_verdict *v)
{
	struct pmem_agent_result *r = &s->result;

	exchange_expect(s->key.type, reply, v);
	if (v->answer == PMEM_AGENT_DURABLE || s->key.type == PMEM_AGENT_PACKET_QUERY) {
		r->scope = (enum pmem_agent_scope)reply->scope;
		r->basis = (enum pmem_agent_basis)reply->basis;
		r->durable_usec = reply->durable_usec;
		r->n_regions = reply->n_regions <= PMEM_AGENT_MAX_REGIONS ? reply->n_regions : 0;
		memcpy(r->regions, reply->regions, sizeof(r->regions));
		s->method = (enum pmem_agent_method)reply->method;
	}
	if (v->answer == PMEM_AGENT_DURABLE && s->key.type == PMEM_AGENT_PACKET_QUERY)
		v->detail = reply->detail;
	client_settle(agent, s, v->answer, v->error, v->detail);
}

static void take_packet(struct pmem_agent *agent, const struct connection *c, struct pmem_agent_reply *reply,
			size_t size)
{
	struct exchange_verdict v;

	exchange_judge(reply, size, &v);
	if (v.concern == EXCHANGE_REFUSAL)
		agent->refused = v.error;
	if (v.concern != EXCHANGE_ONE) {
		settle_all(agent, c, &v);
		return;
	}
	/* There may be none: its deadline has passed. */
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i];

		if (waits_on(s, c) && s->result.id == reply->id) {
			take_answer(agent, s, reply, &v);
			return;
		}
	}
}

/* ---- connections ---- */

void connection_close(struct pmem_agent *agent, struct connection *c)
{
	int fd = c->fd;
	struct stat st;
	bool ours = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == c->inode;

	if (agent->current == c)
		agent->current = NULL;
	*c = (struct connection){ .fd = -1 };
	if (ours)
		close(fd);
}

int connection_open(struct pmem_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct connection *c = agent->connections;
	struct stat st;
	int r;

	/* Those that have ended make room. */
	connection_drain(agent);
	while (c->fd >= 0)
		if (++c == agent->connections + CLIENT_MAX_CONNECTIONS)
			return -EMFILE;
	c->fd = exchange_connect(&agent->address);
	if (c->fd < 0) {
		r = c->fd;
		c->fd = -1;
		return r;
	}
	c->inode = fstat(c->fd, &st) == 0 ? st.st_ino : 0;
	if (epoll_ctl(agent->epoll, EPOLL_CTL_ADD, c->fd, &event) < 0) {
		r = -errno;
		connection_close(agent, c);
		return r;
	}
	agent->current = c;
	return 0;
}

static void end(struct pmem_agent *agent, struct connection *c)
{
	static const struct exchange_verdict unknown = { EXCHANGE_ALL, PMEM_AGENT_UNKNOWN, -EIO,
							 "the agent ended before it answered: nobody can tell" };

	settle_all(agent, c, &unknown);
	if (agent->current == c)
		agent->current = NULL;
	if (c->sending)
		c->ended = true;
	else
		connection_close(agent, c);
}

/* 1: there may be more; 0: there is none now; or the connection has ended, and is no more. */
static int take(struct pmem_agent *agent, struct connection *c, struct pmem_agent_reply *reply, ssize_t size)
{
	if (size > 0)
		take_packet(agent, c, reply, (size_t)size);
	if (size > 0 || size == -EINTR)
		return 1;
	if (size != -EAGAIN)
		end(agent, c);
	return 0;
}

static void drain(struct pmem_agent *agent, struct connection *c)
{
	struct pmem_agent_reply reply;
	ssize_t size;

	if (c->fd < 0 || c->receiving || c->ended)
		return;
	do
		size = exchange_receive(c->fd, &reply, false);
	while (take(agent, c, &reply, size) > 0);
}

void connection_drain(struct pmem_agent *agent)
{
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		drain(agent, &agent->connections[i]);
}

/* The only one, and for as long as it takes: one system call. */
static void receive_one(struct pmem_agent *agent, struct connection *c)
{
	struct pmem_agent_reply reply;
	ssize_t size;
	int fd = c->fd;

	c->receiving = true;
	pthread_mutex_unlock(&agent->lock);
	size = exchange_receive(fd, &reply, true);
	pthread_mutex_lock(&agent->lock);
	c->receiving = false;
	take(agent, c, &reply, size);
}

void connection_receive(struct pmem_agent *agent, struct connection **connections, unsigned int n,
			uint64_t deadline_usec)
{
	struct pollfd polls[CLIENT_MAX_CONNECTIONS];

	if (n == 1 && deadline_usec == UINT64_MAX) {
		receive_one(agent, connections[0]);
		return;
	}
	for (unsigned int i = 0; i < n; i++) {
		connections[i]->receiving = true;
		polls[i] = (struct pollfd){ .fd = connections[i]->fd, .events = POLLIN };
	}
	pthread_mutex_unlock(&agent->lock);
	poll(polls, n, client_until(deadline_usec));
	pthread_mutex_lock(&agent->lock);
	for (unsigned int i = 0; i < n; i++) {
		connections[i]->receiving = false;
		drain(agent, connections[i]);
	}
}

/* ---- requests ---- */

/* 0: it may be tried again. The agent reads nothing more from who does not receive: so we do, unless somebody does. */
static int wait_for_room(struct pmem_agent *agent, struct connection *c, uint64_t deadline_usec)
{
	bool receive = !c->receiving;
	uint64_t soon = client_now_usec() + ROOM_USEC;
	struct pollfd p = { .fd = c->fd, .events = receive ? POLLIN | POLLOUT : POLLOUT };

	c->receiving = true;
	pthread_mutex_unlock(&agent->lock);
	poll(&p, 1, client_until(receive || deadline_usec < soon ? deadline_usec : soon));
	pthread_mutex_lock(&agent->lock);
	if (receive) {
		c->receiving = false;
		if (p.revents & POLLIN)
			drain(agent, c);
	}
	return client_now_usec() >= deadline_usec ? -ETIMEDOUT : 0;
}

/* As exchange_send(), without the lock; -ENOTCONN: the connection has ended, and it surely was not delivered. */
static int send_on(struct pmem_agent *agent, struct connection *c, struct slot *s,
		   const struct pmem_agent_request *request)
{
	int connection = c->fd, fd = s->key.fd, r;

	s->connection = c;
	c->sending = true;
	pthread_mutex_unlock(&agent->lock);
	r = exchange_send(connection, request, fd);
	pthread_mutex_lock(&agent->lock);
	c->sending = false;
	return r;
}

/* What was delivered as the connection ended has no answer any more. */
static void end_late(struct pmem_agent *agent, struct connection *c, struct slot *s, int r)
{
	if (r == 0 && s->state == SLOT_SENDING)
		s->state = SLOT_SENT;
	end(agent, c);
}

int connection_deliver(struct pmem_agent *agent, struct slot *s, uint64_t deadline_usec)
{
	struct pmem_agent_request request = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = s->key.type,
		.id = s->result.id,
		.scope = s->key.scope,
		/* It stands for what it stood for when they asked, all of them. */
		.device = s->key.device,
		.inode = s->key.inode,
	};
	int r, reconnects = 0;

	if (deadline_usec > s->deadline_usec)
		deadline_usec = s->deadline_usec;
	agent->refused = 0;
	for (;;) {
		struct connection *c;

		if (!agent->current) {
			r = reconnects++ < MAX_RECONNECTS ? connection_open(agent) : -ECONNRESET;
			if (r < 0)
				return r;
		}
		if (s->deadline_usec != UINT64_MAX) {
			uint64_t now = client_now_usec();

			if (now >= s->deadline_usec)
				return -ETIMEDOUT;
			if (s->key.type == PMEM_AGENT_PACKET_FLUSH)
				request.timeout_usec = s->deadline_usec - now;
		}
		c = agent->current;
		r = send_on(agent, c, s, &request);
		if (c->ended)
			end_late(agent, c, s, r);
		else if (r == -EAGAIN) {
			c->sending = true;
			r = wait_for_room(agent, c, deadline_usec);
			c->sending = false;
			if (c->ended)
				end(agent, c);
			if (r == 0 || client_now_usec() < s->deadline_usec)
				r = r == 0 ? -EAGAIN : -EALREADY;
		} else if (exchange_is_undelivered(r)) {
			/* It may still answer what it took before. */
			agent->current = NULL;
			drain(agent, c);
		}
		if (exchange_is_undelivered(r))
			r = agent->refused ?: -EAGAIN;
		if (r != -EAGAIN && r != -EINTR)
			return r;
	}
}
