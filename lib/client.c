/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client: requests to the agent, over its socket
 *
 * An agent that stops takes what has been sent to it, refuses the rest (EPIPE) and answers all it took. So a packet
 * that could not be sent is sent again, on another connection, while the old one is kept until it has ended. One that
 * was sent and never answered is never sent again: what became of it nobody knows.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "lib/pmem-agent.h"

#define MAX_RECONNECTS 16
#define MAX_EVENTS     8
#define NO_SENSE       "the agent's reply makes no sense"

struct connection {
	int fd;
	struct connection *next;
};

struct pending {
	uint64_t id; /* 0: free */
	struct connection *connection;
	uint64_t deadline_usec; /* CLOCK_MONOTONIC */
	bool answered;
	int error; /* as it will be returned */
	struct pmem_agent_result result;
};

struct pmem_agent {
	struct sockaddr_un address;
	pid_t pid;
	int epoll;
	struct connection *connections; /* all that may still answer */
	struct connection *current;     /* what the next request goes to; NULL: to none of them */
	int refused;                    /* the agent wants none of our connections: the errno, negative */
	uint64_t last_id;
	struct pending pending[PMEM_AGENT_MAX_SUBMITTED];
};

static uint64_t now_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t deadline_after(uint64_t timeout_usec)
{
	uint64_t now = now_usec();

	return timeout_usec < UINT64_MAX - now ? now + timeout_usec : UINT64_MAX;
}

/* For poll(): milliseconds, rounded up; -1 for ever. */
static int until(uint64_t deadline_usec)
{
	uint64_t now, msec;

	if (deadline_usec == UINT64_MAX)
		return -1;
	now = now_usec();
	msec = deadline_usec > now ? (deadline_usec - now + 999) / 1000 : 0;
	return msec > 1000000 ? 1000000 : (int)msec;
}

/* ---- answers ---- */

static void settle(struct pending *p, enum pmem_agent_answer answer, int error, const char *detail)
{
	p->answered = true;
	p->error = error;
	p->result.answer = answer;
	snprintf(p->result.detail, sizeof(p->result.detail), "%s", detail);
}

static void settle_all(struct pmem_agent *agent, const struct connection *c, enum pmem_agent_answer answer, int error,
		       const char *detail)
{
	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++) {
		struct pending *p = &agent->pending[i];

		if (p->id != 0 && !p->answered && p->connection == c)
			settle(p, answer, error, detail);
	}
}

static struct pending *find_pending(struct pmem_agent *agent, uint64_t id)
{
	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++)
		if (agent->pending[i].id == id)
			return &agent->pending[i];
	return NULL;
}

static bool is_confirmation(const struct pmem_agent_reply *reply)
{
	return reply->type == PMEM_AGENT_PACKET_FLUSH && reply->answer == PMEM_AGENT_DURABLE && reply->error == 0 &&
	       reply->scope != PMEM_AGENT_SCOPE_AUTO && reply->scope < PMEM_AGENT_N_SCOPES &&
	       reply->basis != PMEM_AGENT_BASIS_NONE && reply->basis < PMEM_AGENT_N_BASES && reply->n_regions > 0 &&
	       reply->n_regions <= PMEM_AGENT_MAX_REGIONS;
}

/* What an answer other than durable is returned as: never 0, and never what stands for no answer. */
static int error_of(const struct pmem_agent_reply *reply)
{
	return reply->error > 0 && reply->error < 4096 && reply->error != EAGAIN && reply->error != ESRCH
		   ? -reply->error
		   : -EIO;
}

/* Whatever is not exactly a confirmation promises nothing. */
static void take_reply(struct pending *p, const struct pmem_agent_reply *reply)
{
	struct pmem_agent_result *r = &p->result;

	if (is_confirmation(reply)) {
		r->scope = (enum pmem_agent_scope)reply->scope;
		r->basis = (enum pmem_agent_basis)reply->basis;
		r->durable_usec = reply->durable_usec;
		r->n_regions = reply->n_regions;
		memcpy(r->regions, reply->regions, sizeof(r->regions));
		settle(p, PMEM_AGENT_DURABLE, 0, "");
	} else if (reply->answer == PMEM_AGENT_DURABLE || reply->answer >= PMEM_AGENT_N_ANSWERS) {
		settle(p, PMEM_AGENT_UNKNOWN, -EIO, NO_SENSE);
	} else {
		settle(p, (enum pmem_agent_answer)reply->answer, error_of(reply), reply->detail);
	}
}

/* To all that wait on this connection; it takes no more. */
static void take_refusal(struct pmem_agent *agent, const struct connection *c, const struct pmem_agent_reply *reply)
{
	bool busy = reply->type == PMEM_AGENT_PACKET_ERROR && reply->answer == PMEM_AGENT_BUSY;

	agent->refused = busy ? -EBUSY : -EIO;
	settle_all(agent, c, busy ? PMEM_AGENT_BUSY : PMEM_AGENT_UNKNOWN, agent->refused,
		   busy ? reply->detail : NO_SENSE);
}

static void take_other_version(struct pmem_agent *agent, const struct connection *c,
			       const struct pmem_agent_reply *reply)
{
	char detail[PMEM_AGENT_DETAIL_MAX];

	snprintf(detail, sizeof(detail), "the agent speaks version %u of the protocol, and this library version %u",
		 reply->version, PMEM_AGENT_WIRE_VERSION);
	agent->refused = -EPROTONOSUPPORT;
	settle_all(agent, c, PMEM_AGENT_REFUSED, -EPROTONOSUPPORT, detail);
}

static void take_packet(struct pmem_agent *agent, const struct connection *c, struct pmem_agent_reply *reply,
			size_t size)
{
	struct pending *p;

	if (size >= offsetof(struct pmem_agent_reply, answer) && reply->version != PMEM_AGENT_WIRE_VERSION) {
		take_other_version(agent, c, reply);
		return;
	}
	if (size != sizeof(*reply)) {
		settle_all(agent, c, PMEM_AGENT_UNKNOWN, -EIO, NO_SENSE);
		return;
	}
	reply->detail[sizeof(reply->detail) - 1] = '\0';
	if (reply->id == 0) {
		take_refusal(agent, c, reply);
		return;
	}
	/* There may be none: its deadline has passed. */
	p = find_pending(agent, reply->id);
	if (p && p->connection == c && !p->answered)
		take_reply(p, reply);
}

/* ---- connections ---- */

static void connection_free(struct pmem_agent *agent, struct connection *c)
{
	struct connection **at = &agent->connections;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	if (agent->current == c)
		agent->current = NULL;
	close(c->fd);
	free(c);
}

/* Takes in what is there. False: the connection has ended, and is no more. */
static bool receive(struct pmem_agent *agent, struct connection *c)
{
	struct pmem_agent_reply reply;
	ssize_t n;

	for (;;) {
		n = recv(c->fd, &reply, sizeof(reply), MSG_DONTWAIT | MSG_TRUNC);
		if (n > 0) {
			take_packet(agent, c, &reply, (size_t)n);
			continue;
		}
		/* That the agent has not read everything is told once, before what it has answered. */
		if (n < 0 && (errno == EINTR || errno == ECONNRESET))
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		break;
	}
	settle_all(agent, c, PMEM_AGENT_UNKNOWN, -EIO, "the agent ended before it answered: nobody can tell");
	connection_free(agent, c);
	return false;
}

static int connect_current(struct pmem_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct connection *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	event.data.ptr = c;
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&agent->address, sizeof(agent->address)) < 0 ||
	    epoll_ctl(agent->epoll, EPOLL_CTL_ADD, c->fd, &event) < 0) {
		r = -errno;
		if (c->fd >= 0)
			close(c->fd);
		free(c);
		return r;
	}
	c->next = agent->connections;
	agent->connections = c;
	agent->current = c;
	return 0;
}

/* Takes in what has come; waits for something until the deadline if there is nothing. */
static int process(struct pmem_agent *agent, uint64_t deadline_usec)
{
	struct epoll_event events[MAX_EVENTS];
	int n = epoll_wait(agent->epoll, events, MAX_EVENTS, until(deadline_usec));

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++)
		receive(agent, events[i].data.ptr);
	return n;
}

/* ---- the agent ---- */

static void forget_everything(struct pmem_agent *agent)
{
	while (agent->connections)
		connection_free(agent, agent->connections);
	memset(agent->pending, 0, sizeof(agent->pending));
}

/* A child must not take its parent's answers, nor its poll set: it gets its own, under the same number. */
static int check_process(struct pmem_agent *agent)
{
	pid_t pid = getpid();
	int epoll;

	if (pid == agent->pid)
		return 0;
	forget_everything(agent);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		return -errno;
	if (dup3(epoll, agent->epoll, O_CLOEXEC) < 0) {
		int r = -errno;

		close(epoll);
		return r;
	}
	close(epoll);
	agent->pid = pid;
	return 0;
}

int pmem_agent_connect(const char *path, struct pmem_agent **ret)
{
	struct pmem_agent *agent;
	int r;

	if (!path)
		path = PMEM_AGENT_RUNTIME_DIR "/" PMEM_AGENT_SOCKET_NAME;
	if (strlen(path) >= sizeof(agent->address.sun_path))
		return -ENAMETOOLONG;
	agent = calloc(1, sizeof(*agent));
	if (!agent)
		return -ENOMEM;
	agent->address.sun_family = AF_UNIX;
	memcpy(agent->address.sun_path, path, strlen(path));
	agent->pid = getpid();
	agent->epoll = epoll_create1(EPOLL_CLOEXEC);
	r = agent->epoll < 0 ? -errno : connect_current(agent);
	if (r < 0) {
		pmem_agent_close(agent);
		return r;
	}
	*ret = agent;
	return 0;
}

struct pmem_agent *pmem_agent_close(struct pmem_agent *agent)
{
	if (!agent)
		return NULL;
	forget_everything(agent);
	if (agent->epoll >= 0)
		close(agent->epoll);
	free(agent);
	return NULL;
}

int pmem_agent_get_fd(const struct pmem_agent *agent)
{
	return agent->epoll;
}

/* ---- requests ---- */

static int send_request(const struct connection *c, const struct pmem_agent_request *request, int fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)request, .iov_len = sizeof(*request) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&msg);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	return sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* The peer takes nothing more: surely it hasn't got this packet either. */
static bool is_not_delivered(int r)
{
	return r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN || r == -ECONNREFUSED;
}

/* 0 when it may be tried again; or a negative errno. */
static int wait_for_room(struct pmem_agent *agent, uint64_t deadline_usec)
{
	struct pollfd p = { .fd = agent->current->fd, .events = POLLIN | POLLOUT };
	int n = poll(&p, 1, until(deadline_usec));

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ETIMEDOUT;
	if (p.revents & POLLIN)
		receive(agent, agent->current);
	return 0;
}

/* Sends `request` to whichever agent takes it. */
static int deliver(struct pmem_agent *agent, struct pmem_agent_request *request, int fd, uint64_t deadline_usec)
{
	int r, reconnects = 0;

	agent->refused = 0;
	for (;;) {
		if (!agent->current) {
			if (reconnects++ >= MAX_RECONNECTS)
				return -ECONNRESET;
			r = connect_current(agent);
			if (r < 0)
				return r;
		}
		if (deadline_usec != UINT64_MAX) {
			uint64_t now = now_usec();

			if (now >= deadline_usec)
				return -ETIMEDOUT;
			request->timeout_usec = deadline_usec - now;
		}
		r = send_request(agent->current, request, fd);
		if (r == -EAGAIN)
			r = wait_for_room(agent, deadline_usec);
		else if (!is_not_delivered(r))
			return r;
		else {
			/* It may still answer what it took before. */
			struct connection *old = agent->current;

			agent->current = NULL;
			receive(agent, old);
			r = agent->refused;
		}
		if (r < 0)
			return r;
	}
}

int pmem_agent_submit(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		      uint64_t *ret_id)
{
	uint64_t deadline = timeout_usec == PMEM_AGENT_NO_TIMEOUT ? UINT64_MAX : deadline_after(timeout_usec);
	struct pmem_agent_request request = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_FLUSH,
		.scope = (uint32_t)scope,
	};
	struct pending *p;
	int r;

	if ((unsigned int)scope >= PMEM_AGENT_N_SCOPES || timeout_usec == 0)
		return -EINVAL;
	r = check_process(agent);
	if (r < 0)
		return r;
	p = find_pending(agent, 0);
	if (!p)
		return -EAGAIN;
	request.id = agent->last_id + 1;
	r = deliver(agent, &request, fd, deadline);
	if (r < 0)
		return r;
	agent->last_id = request.id;
	*p = (struct pending){ .id = request.id, .connection = agent->current, .deadline_usec = deadline };
	p->result.id = request.id;
	*ret_id = request.id;
	return 0;
}

/* An answer for `id`, or for any if that is 0. */
static struct pending *find_answered(struct pmem_agent *agent, uint64_t id)
{
	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++) {
		struct pending *p = &agent->pending[i];

		if (p->id != 0 && p->answered && (id == 0 || p->id == id))
			return p;
	}
	return NULL;
}

/* Those whose time is over have their answer. The earliest deadline of the others; UINT64_MAX also if there is none. */
static uint64_t pass_deadlines(struct pmem_agent *agent, uint64_t id, bool *ret_any)
{
	uint64_t now = now_usec(), earliest = UINT64_MAX;

	*ret_any = false;
	for (unsigned int i = 0; i < PMEM_AGENT_MAX_SUBMITTED; i++) {
		struct pending *p = &agent->pending[i];

		if (p->id == 0 || (id != 0 && p->id != id))
			continue;
		*ret_any = true;
		if (p->answered)
			continue;
		if (p->deadline_usec <= now)
			settle(p, PMEM_AGENT_TIMEOUT, -ETIMEDOUT, "the agent has not answered by your deadline");
		else if (p->deadline_usec < earliest)
			earliest = p->deadline_usec;
	}
	return earliest;
}

int pmem_agent_wait(struct pmem_agent *agent, uint64_t id, uint64_t timeout_usec, struct pmem_agent_result *ret)
{
	uint64_t deadline = timeout_usec == PMEM_AGENT_NO_TIMEOUT ? UINT64_MAX : deadline_after(timeout_usec);
	int r = check_process(agent);

	/* What has come already comes before any deadline. */
	if (r >= 0)
		r = process(agent, 0);
	while (r >= 0) {
		bool any;
		uint64_t earliest = pass_deadlines(agent, id, &any);
		struct pending *p = find_answered(agent, id);

		if (p) {
			if (ret)
				*ret = p->result;
			p->id = 0;
			return p->error;
		}
		if (!any)
			return -ESRCH;
		if (deadline != UINT64_MAX && now_usec() >= deadline)
			return -EAGAIN;
		r = process(agent, deadline < earliest ? deadline : earliest);
	}
	return r;
}

int pmem_agent_flush(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		     struct pmem_agent_result *ret)
{
	uint64_t id;
	int r = pmem_agent_submit(agent, fd, scope, timeout_usec, &id);

	if (r >= 0)
		return pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, ret);
	if (ret) {
		*ret = (struct pmem_agent_result){ .answer = PMEM_AGENT_UNKNOWN };
		snprintf(ret->detail, sizeof(ret->detail), "the agent could not be asked: %s", strerrordesc_np(-r));
	}
	return r;
}
