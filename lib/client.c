/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client: the calls of libpmem-agent
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "client.h"

/* ---- the lock ---- */

static void init_lock(struct pmem_agent *agent)
{
	pthread_condattr_t attributes;

	pthread_mutex_init(&agent->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&agent->answered, &attributes);
	pthread_cond_init(&agent->room, &attributes);
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++)
		pthread_cond_init(&agent->slots[i].changed, &attributes);
	pthread_condattr_destroy(&attributes);
}

/* ---- what can be polled ---- */

/*
 * A program that closes all it knows of may have the numbers for something else by now, which is not ours to close. The
 * pipe has an inode of its own, as an eventfd has not; and the epoll is the one that it is in.
 */
static bool are_our_polls(const struct pmem_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct stat st;

	for (unsigned int i = 0; i < 2; i++)
		if (fstat(agent->event[i], &st) < 0 || !S_ISFIFO(st.st_mode) || st.st_ino != agent->event_inode)
			return false;
	return epoll_ctl(agent->epoll, EPOLL_CTL_MOD, agent->event[0], &event) == 0;
}

static void close_polls(struct pmem_agent *agent)
{
	const int fds[] = { agent->epoll, agent->event[0], agent->event[1] };

	for (unsigned int i = 0; i < 3; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	agent->epoll = agent->event[0] = agent->event[1] = -1;
}

static int open_polls(struct pmem_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct stat st;
	int r;

	agent->event[0] = agent->event[1] = -1;
	agent->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (agent->epoll >= 0 && pipe2(agent->event, O_CLOEXEC | O_NONBLOCK) == 0 && fstat(agent->event[0], &st) == 0 &&
	    epoll_ctl(agent->epoll, EPOLL_CTL_ADD, agent->event[0], &event) == 0) {
		agent->event_inode = st.st_ino;
		return 0;
	}
	r = -errno;
	close_polls(agent);
	return r;
}

/* A child must not take its parent's answers, nor its poll set: it gets its own, under the same number if it can. */
static int renew_polls(struct pmem_agent *agent)
{
	int epoll = -1, r;

	if (are_our_polls(agent)) {
		epoll = agent->epoll;
		agent->epoll = -1;
		close_polls(agent);
	}
	r = open_polls(agent);
	if (epoll < 0)
		return r;
	if (r >= 0 && dup3(agent->epoll, epoll, O_CLOEXEC) < 0)
		r = -errno;
	if (r >= 0) {
		close(agent->epoll);
		agent->epoll = epoll;
	} else {
		close_polls(agent);
		close(epoll);
	}
	return r;
}

static int begin_anew(struct pmem_agent *agent)
{
	int r;

	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (agent->connections[i].fd >= 0)
			connection_close(agent, &agent->connections[i]);
	r = renew_polls(agent);
	if (r < 0)
		return r;
	memset(agent->slots, 0, sizeof(agent->slots));
	agent->current = NULL;
	agent->sending = agent->signalled = false;
	agent->waiting = 0;
	init_lock(agent);
	return 0;
}

enum { PROCESS_OTHER, PROCESS_OURS, PROCESS_CHANGING };

/*
 * Takes the lock. The word at `process` is zeroed by the kernel for a child of fork(), however that was called, whose
 * copy of all this may have been made in the middle of anything. No call is a cancellation point: a thread that ended
 * there would leave its part undone.
 */
static int enter(struct pmem_agent *agent, int *ret_cancel)
{
	unsigned int process;
	int r;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, ret_cancel);
	while ((process = __atomic_load_n(agent->process, __ATOMIC_ACQUIRE)) != PROCESS_OURS) {
		if (process == PROCESS_CHANGING ||
		    !__atomic_compare_exchange_n(agent->process, &process, PROCESS_CHANGING, false, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED)) {
			sched_yield();
			continue;
		}
		r = begin_anew(agent);
		__atomic_store_n(agent->process, r < 0 ? PROCESS_OTHER : PROCESS_OURS, __ATOMIC_RELEASE);
		if (r < 0) {
			pthread_setcancelstate(*ret_cancel, NULL);
			return r;
		}
	}
	pthread_mutex_lock(&agent->lock);
	return 0;
}

static int leave(struct pmem_agent *agent, int cancel, int r)
{
	pthread_mutex_unlock(&agent->lock);
	pthread_setcancelstate(cancel, NULL);
	return r;
}

/* ---- the agent ---- */

/* Where the socket is, there are the pages. */
static void set_paths(struct pmem_agent *agent, const char *path)
{
	const char *slash = strrchr(path, '/');

	agent->address.sun_family = AF_UNIX;
	memcpy(agent->address.sun_path, path, strlen(path));
	if (slash)
		memcpy(agent->directory, path, (size_t)(slash - path));
	else
		agent->directory[0] = '.';
}

static int mark_process(struct pmem_agent *agent)
{
	long size = sysconf(_SC_PAGESIZE);
	void *page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -errno;
	agent->process = page;
	if (madvise(page, (size_t)size, MADV_WIPEONFORK) < 0)
		return -errno;
	*agent->process = PROCESS_OURS;
	return 0;
}

static int connect_to(const char *path, struct pmem_agent **ret)
{
	struct pmem_agent *agent;
	int r;

	agent = calloc(1, sizeof(*agent));
	if (!agent)
		return -ENOMEM;
	set_paths(agent, path);
	init_lock(agent);
	agent->epoll = agent->event[0] = agent->event[1] = -1;
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		agent->connections[i].fd = -1;
	r = mark_process(agent);
	if (r >= 0)
		r = open_polls(agent);
	if (r >= 0)
		r = connection_open(agent);
	if (r < 0) {
		pmem_agent_close(agent);
		return r;
	}
	*ret = agent;
	return 0;
}

int pmem_agent_connect(const char *path, struct pmem_agent **ret)
{
	int cancel, r;

	if (!path)
		path = PMEM_AGENT_RUNTIME_DIR "/" PMEM_AGENT_SOCKET_NAME;
	if (strlen(path) >= sizeof((*ret)->address.sun_path))
		return -ENAMETOOLONG;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	r = connect_to(path, ret);
	pthread_setcancelstate(cancel, NULL);
	return r;
}

struct pmem_agent *pmem_agent_close(struct pmem_agent *agent)
{
	int cancel;

	if (!agent)
		return NULL;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	if (are_our_polls(agent))
		close_polls(agent);
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (agent->connections[i].fd >= 0)
			connection_close(agent, &agent->connections[i]);
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++)
		if (agent->pages[i].page)
			munmap((void *)agent->pages[i].page, PMEM_AGENT_PAGE_SIZE);
	if (agent->process)
		munmap(agent->process, (size_t)sysconf(_SC_PAGESIZE));
	free(agent);
	pthread_setcancelstate(cancel, NULL);
	return NULL;
}

int pmem_agent_get_fd(const struct pmem_agent *agent)
{
	return agent->epoll;
}

/* ---- flush and query ---- */

/* -EBADF if there is no such descriptor. */
static int identify(int fd, struct slot_key *key)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &stx) < 0)
		return -errno;
	key->device = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	key->inode = stx.stx_ino;
	return 0;
}

static void set_unasked(struct pmem_agent_result *ret, enum pmem_agent_answer answer, int r)
{
	*ret = (struct pmem_agent_result){ .answer = answer };
	snprintf(ret->detail, sizeof(ret->detail), "the agent could not be asked: %s", strerrordesc_np(-r));
}

/* One request, and its answer. */
static int ask(struct pmem_agent *agent, const struct slot_key *key, uint64_t timeout_usec,
	       enum pmem_agent_method *ret_method, struct pmem_agent_result *ret)
{
	uint64_t deadline = client_deadline(timeout_usec);
	int cancel, r = enter(agent, &cancel);
	struct slot *s;

	if (r < 0) {
		set_unasked(ret, PMEM_AGENT_UNKNOWN, r);
		return r;
	}
	s = slot_join(agent, key, deadline);
	if (!s) {
		set_unasked(ret, PMEM_AGENT_TIMEOUT, -ETIMEDOUT);
		return leave(agent, cancel, -ETIMEDOUT);
	}
	if (slot_await(agent, s, SLOT_ANSWERED, deadline)) {
		*ret = s->result;
		*ret_method = s->method;
		r = s->error;
	} else {
		*ret = (struct pmem_agent_result){ .id = s->result.id, .answer = PMEM_AGENT_TIMEOUT };
		snprintf(ret->detail, sizeof(ret->detail), "the agent has not answered by your deadline");
		r = -ETIMEDOUT;
	}
	slot_part_with(agent, s);
	return leave(agent, cancel, r);
}

static int check_arguments(enum pmem_agent_scope scope, uint64_t timeout_usec)
{
	return (unsigned int)scope >= PMEM_AGENT_N_SCOPES || timeout_usec == 0 ? -EINVAL : 0;
}

int pmem_agent_flush(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		     struct pmem_agent_result *ret)
{
	struct slot_key key = { .fd = fd, .type = PMEM_AGENT_PACKET_FLUSH, .scope = (uint32_t)scope };
	int r = check_arguments(scope, timeout_usec);
	struct pmem_agent_result result;
	enum pmem_agent_method method;

	if (r >= 0)
		r = identify(fd, &key);
	if (r < 0)
		set_unasked(&result, PMEM_AGENT_UNKNOWN, r);
	else
		r = ask(agent, &key, timeout_usec, &method, &result);
	if (ret)
		*ret = result;
	return r;
}

int pmem_agent_query(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		     struct pmem_agent_info *ret)
{
	struct slot_key key = { .fd = fd, .type = PMEM_AGENT_PACKET_QUERY, .scope = (uint32_t)scope, .alone = true };
	enum pmem_agent_method method = PMEM_AGENT_METHOD_NONE;
	int r = check_arguments(scope, timeout_usec);
	struct pmem_agent_result result;

	if (r < 0)
		set_unasked(&result, PMEM_AGENT_UNKNOWN, r);
	else
		r = ask(agent, &key, timeout_usec, &method, &result);
	*ret = (struct pmem_agent_info){
		.answer = result.answer,
		.method = method,
		.scope = result.scope,
		.n_regions = result.n_regions,
	};
	memcpy(ret->regions, result.regions, sizeof(ret->regions));
	memcpy(ret->detail, result.detail, sizeof(ret->detail));
	return r;
}

/* ---- submit and wait ---- */

int pmem_agent_submit(struct pmem_agent *agent, int fd, enum pmem_agent_scope scope, uint64_t timeout_usec,
		      uint64_t *ret_id)
{
	struct slot_key key = { .fd = fd, .type = PMEM_AGENT_PACKET_FLUSH, .scope = (uint32_t)scope, .alone = true };
	int cancel, r = check_arguments(scope, timeout_usec);
	uint64_t deadline = client_deadline(timeout_usec);
	struct slot *s;

	if (r >= 0)
		r = enter(agent, &cancel);
	if (r < 0)
		return r;
	s = slot_new(agent, true, &key, deadline);
	if (!s)
		return leave(agent, cancel, -EAGAIN);
	s->members = 1;
	if (!slot_await(agent, s, SLOT_SENT, deadline))
		r = -ETIMEDOUT;
	else if (!s->connection)
		r = s->error;
	else
		*ret_id = s->result.id;
	s->members = 0;
	if (r < 0)
		slot_free(agent, s);
	else if (s->state == SLOT_ANSWERED)
		slot_signal_answers(agent);
	return leave(agent, cancel, r);
}

static bool is_awaited(const struct slot *s, uint64_t id)
{
	return s->submitted && !s->done && (s->state == SLOT_SENT || s->state == SLOT_ANSWERED) && s->members == 0 &&
	       (id == 0 || s->result.id == id);
}

/*
 * An answer for `id`, or for any if that is 0; who is out of time has it. `ret_any`: there is such a request;
 * `ret_earliest`: when the next of them will be; `connections`: where others may come in and nobody receives.
 */
static struct slot *look(struct pmem_agent *agent, uint64_t id, bool *ret_any, uint64_t *ret_earliest,
			 struct connection *connections[static CLIENT_MAX_CONNECTIONS], unsigned int *ret_n)
{
	uint64_t now = client_now_usec();
	bool wanted[CLIENT_MAX_CONNECTIONS] = { false };

	*ret_any = false;
	*ret_n = 0;
	*ret_earliest = UINT64_MAX;
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i];

		if (!is_awaited(s, id))
			continue;
		*ret_any = true;
		if (s->state == SLOT_SENT && s->deadline_usec <= now)
			client_settle(agent, s, PMEM_AGENT_TIMEOUT, -ETIMEDOUT,
				      "the agent has not answered by your deadline");
		if (s->state == SLOT_ANSWERED)
			return s;
		if (s->deadline_usec < *ret_earliest)
			*ret_earliest = s->deadline_usec;
		if (!s->connection->receiving)
			wanted[s->connection - agent->connections] = true;
	}
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (wanted[i])
			connections[(*ret_n)++] = &agent->connections[i];
	return NULL;
}

static int wait_for(struct pmem_agent *agent, uint64_t id, uint64_t deadline_usec, struct pmem_agent_result *ret)
{
	struct connection *connections[CLIENT_MAX_CONNECTIONS];

	for (;;) {
		uint64_t earliest;
		unsigned int n;
		bool any;
		struct slot *s = look(agent, id, &any, &earliest, connections, &n);

		if (s) {
			if (ret)
				*ret = s->result;
			slot_free(agent, s);
			return s->error;
		}
		if (!any)
			return -ESRCH;
		if (client_is_over(deadline_usec))
			return -EAGAIN;
		/* They may be what somebody polls for. */
		slot_signal_answers(agent);
		if (earliest > deadline_usec)
			earliest = deadline_usec;
		agent->waiting++;
		if (n > 0)
			connection_receive(agent, connections, n, earliest);
		else
			client_wait_until(agent, &agent->answered, earliest);
		agent->waiting--;
	}
}

int pmem_agent_wait(struct pmem_agent *agent, uint64_t id, uint64_t timeout_usec, struct pmem_agent_result *ret)
{
	uint64_t deadline = client_deadline(timeout_usec);
	int cancel, r = enter(agent, &cancel);

	if (r < 0)
		return r;
	/* What has come already comes before any deadline. */
	connection_drain(agent);
	r = wait_for(agent, id, deadline, ret);
	slot_hand_over(agent);
	slot_signal_answers(agent);
	return leave(agent, cancel, r);
}
