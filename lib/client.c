/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client: the calls of libpmem-agent, and who does what while they wait
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

uint64_t client_now_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t deadline_after(uint64_t timeout_usec)
{
	uint64_t now;

	if (timeout_usec == PMEM_AGENT_NO_TIMEOUT)
		return UINT64_MAX;
	now = client_now_usec();
	return timeout_usec < UINT64_MAX - now ? now + timeout_usec : UINT64_MAX;
}

static bool is_over(uint64_t deadline_usec)
{
	return deadline_usec != UINT64_MAX && client_now_usec() >= deadline_usec;
}

int client_until(uint64_t deadline_usec)
{
	uint64_t now, msec;

	if (deadline_usec == UINT64_MAX)
		return -1;
	now = client_now_usec();
	msec = deadline_usec > now ? (deadline_usec - now + 999) / 1000 : 0;
	return msec > 1000000 ? 1000000 : (int)msec;
}

/* ---- the lock ---- */

static void wait_until(struct pmem_agent *agent, pthread_cond_t *cond, uint64_t deadline_usec)
{
	struct timespec ts = { .tv_sec = (time_t)(deadline_usec / 1000000),
			       .tv_nsec = (long)(deadline_usec % 1000000) * 1000 };

	if (deadline_usec == UINT64_MAX)
		pthread_cond_wait(cond, &agent->lock);
	else
		pthread_cond_timedwait(cond, &agent->lock, &ts);
}

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

static int open_polls(int *ret_epoll, int *ret_event)
{
	struct epoll_event event = { .events = EPOLLIN };
	int r;

	*ret_epoll = epoll_create1(EPOLL_CLOEXEC);
	*ret_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (*ret_epoll >= 0 && *ret_event >= 0 && epoll_ctl(*ret_epoll, EPOLL_CTL_ADD, *ret_event, &event) == 0)
		return 0;
	r = -errno;
	if (*ret_epoll >= 0)
		close(*ret_epoll);
	if (*ret_event >= 0)
		close(*ret_event);
	*ret_epoll = *ret_event = -1;
	return r;
}

/* A child must not take its parent's answers, nor its poll set: it gets its own, under the same number. */
static int begin_anew(struct pmem_agent *agent)
{
	int epoll, event, r;

	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (agent->connections[i].fd >= 0)
			connection_close(agent, &agent->connections[i]);
	r = open_polls(&epoll, &event);
	if (r < 0)
		return r;
	close(agent->event);
	agent->event = event;
	r = dup3(epoll, agent->epoll, O_CLOEXEC) < 0 ? -errno : 0;
	close(epoll);
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

	while ((process = __atomic_load_n(agent->process, __ATOMIC_ACQUIRE)) != PROCESS_OURS) {
		if (process == PROCESS_CHANGING ||
		    !__atomic_compare_exchange_n(agent->process, &process, PROCESS_CHANGING, false, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED)) {
			sched_yield();
			continue;
		}
		r = begin_anew(agent);
		__atomic_store_n(agent->process, r < 0 ? PROCESS_OTHER : PROCESS_OURS, __ATOMIC_RELEASE);
		if (r < 0)
			return r;
	}
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, ret_cancel);
	pthread_mutex_lock(&agent->lock);
	return 0;
}

static int leave(struct pmem_agent *agent, int cancel, int r)
{
	pthread_mutex_unlock(&agent->lock);
	pthread_setcancelstate(cancel, NULL);
	return r;
}

/* ---- slots ---- */

static struct slot *slot_new(struct pmem_agent *agent, bool submitted, const struct slot_key *key,
			     uint64_t deadline_usec)
{
	unsigned int n = 0, bound = submitted ? PMEM_AGENT_MAX_SUBMITTED : CLIENT_MAX_CALLS;
	struct slot *s = NULL;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++)
		if (agent->slots[i].state == SLOT_FREE)
			s = s ?: &agent->slots[i];
		else
			n += agent->slots[i].submitted == submitted;
	if (!s || n >= bound)
		return NULL;
	s->state = SLOT_GATHERING;
	s->submitted = submitted;
	s->pinned = s->done = s->called = false;
	s->members = 0;
	s->key = *key;
	s->deadline_usec = deadline_usec;
	s->expected = 0;
	s->hold_usec = 0;
	s->connection = NULL;
	s->method = PMEM_AGENT_METHOD_NONE;
	memset(&s->result, 0, sizeof(s->result));
	s->result.id = ++agent->last_id;
	return s;
}

/* Nobody wants it any more. */
static void slot_free(struct pmem_agent *agent, struct slot *s)
{
	s->done = true;
	if (s->pinned)
		return;
	s->state = SLOT_FREE;
	pthread_cond_signal(&agent->room);
}

/* So that who polls learns of answers that others have taken in for it. */
static void signal_answers(struct pmem_agent *agent)
{
	uint64_t count = 1;
	bool any = false;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS && !any; i++)
		any = agent->slots[i].submitted && agent->slots[i].state == SLOT_ANSWERED && !agent->slots[i].done;
	if (any == agent->signalled)
		return;
	agent->signalled = any;
	if ((any ? write(agent->event, &count, sizeof(count)) : read(agent->event, &count, sizeof(count))) < 0)
		agent->signalled = !any;
}

static bool is_equal(const struct slot_key *a, const struct slot_key *b)
{
	return !a->alone && !b->alone && a->fd == b->fd && a->type == b->type && a->scope == b->scope &&
	       a->device == b->device && a->inode == b->inode;
}

/* Its members, and those of others that are answered at about the same time: by the same round, it seems. */
static void expect_back(struct pmem_agent *agent, const struct slot *s)
{
	uint64_t now = client_now_usec(), pause = (now - s->sent_usec) / CLIENT_GATHER_SHARE;

	/* What was sent after that answer is of somebody who is back already. */
	if (now >= agent->gather.until_usec || s->sent_usec >= agent->gather.since_usec ||
	    !is_equal(&s->key, &agent->gather.key)) {
		agent->gather.key = s->key;
		agent->gather.expected = 0;
		agent->gather.since_usec = now;
		agent->gather.until_usec = now + (pause < CLIENT_GATHER_MAX_USEC ? pause : CLIENT_GATHER_MAX_USEC);
	}
	agent->gather.expected += s->members;
}

void client_settle(struct pmem_agent *agent, struct slot *s, enum pmem_agent_answer answer, int error,
		   const char *detail)
{
	s->state = SLOT_ANSWERED;
	s->error = error;
	s->result.answer = answer;
	snprintf(s->result.detail, sizeof(s->result.detail), "%s", detail);
	pthread_cond_broadcast(s->submitted ? &agent->answered : &s->changed);
	if (answer == PMEM_AGENT_DURABLE && !s->key.alone)
		expect_back(agent, s);
	if (s->submitted) {
		pthread_cond_broadcast(&s->changed);
		if (agent->waiting == 0)
			signal_answers(agent);
	}
}

/* ---- who does what ---- */

static bool is_held(const struct slot *s)
{
	return s->members < s->expected && client_now_usec() < s->hold_usec;
}

/* The oldest that is to be sent. */
static struct slot *find_unsent(struct pmem_agent *agent)
{
	struct slot *oldest = NULL;

	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i];

		if (s->state == SLOT_GATHERING && (!oldest || s->result.id < oldest->result.id) && !is_held(s))
			oldest = s;
	}
	return oldest;
}

static void call(struct slot *s)
{
	s->called = true;
	pthread_cond_signal(&s->changed);
}

/* The caller goes, and had a part in it: somebody who waits takes it over. */
static void hand_over(struct pmem_agent *agent)
{
	struct slot *heirs[CLIENT_MAX_CONNECTIONS] = { NULL }, *unsent = agent->sending ? NULL : find_unsent(agent);

	if (unsent && !unsent->called)
		call(unsent);
	for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
		struct slot *s = &agent->slots[i], **heir;

		if (s->state != SLOT_SENT || s->members == 0 || s->connection->receiving)
			continue;
		heir = &heirs[s->connection - agent->connections];
		if (!*heir || s->called)
			*heir = s;
	}
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (heirs[i] && !heirs[i]->called)
			call(heirs[i]);
	if (agent->waiting > 0)
		pthread_cond_broadcast(&agent->answered);
}

/* Sends `s`, for all its members. From here on nobody joins it. */
static void send_slot(struct pmem_agent *agent, struct slot *s, uint64_t deadline_usec)
{
	char detail[PMEM_AGENT_DETAIL_MAX];
	int r;

	agent->sending = s->pinned = true;
	s->state = SLOT_SENDING;
	s->sent_usec = client_now_usec();
	r = connection_deliver(agent, s, deadline_usec);
	agent->sending = s->pinned = false;
	if (s->done) {
		slot_free(agent, s);
		return;
	}
	if (r == -EALREADY) {
		s->state = SLOT_GATHERING;
	} else if (r < 0) {
		snprintf(detail, sizeof(detail), "the agent could not be asked: %s", strerrordesc_np(-r));
		s->connection = NULL;
		client_settle(agent, s, r == -ETIMEDOUT ? PMEM_AGENT_TIMEOUT : PMEM_AGENT_UNKNOWN, r, detail);
	} else if (s->state == SLOT_SENDING) {
		s->state = SLOT_SENT;
	}
	if (s->members > 0)
		call(s);
}

/* Does what there is to do until the slot has come so far. False: the deadline has passed before. */
static bool await(struct pmem_agent *agent, struct slot *s, enum slot_state state, uint64_t deadline_usec)
{
	bool part = false;

	while (s->state < state) {
		struct slot *unsent = agent->sending ? NULL : find_unsent(agent);

		s->called = false;
		if (unsent) {
			part = true;
			send_slot(agent, unsent, deadline_usec);
		} else if (s->state == SLOT_SENT && !s->connection->receiving) {
			part = true;
			connection_receive(agent, &s->connection, 1, deadline_usec);
		} else {
			wait_until(agent, &s->changed,
				   is_held(s) && s->state == SLOT_GATHERING && s->hold_usec < deadline_usec
				       ? s->hold_usec
				       : deadline_usec);
		}
		part |= s->called;
		/* What has come already comes before any deadline. */
		if (s->state < state && is_over(deadline_usec)) {
			connection_drain(agent);
			break;
		}
	}
	s->called = false;
	if (part)
		hand_over(agent);
	return s->state >= state;
}

/* The call has what it wanted, or gives up. */
static void part_with(struct pmem_agent *agent, struct slot *s)
{
	if (--s->members == 0)
		slot_free(agent, s);
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
	set_paths(agent, path);
	init_lock(agent);
	agent->epoll = agent->event = -1;
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		agent->connections[i].fd = -1;
	r = mark_process(agent);
	if (r >= 0)
		r = open_polls(&agent->epoll, &agent->event);
	if (r >= 0)
		r = connection_open(agent);
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
	for (unsigned int i = 0; i < CLIENT_MAX_CONNECTIONS; i++)
		if (agent->connections[i].fd >= 0)
			close(agent->connections[i].fd);
	for (unsigned int i = 0; i < CLIENT_MAX_PAGES; i++)
		if (agent->pages[i].page)
			munmap((void *)agent->pages[i].page, PMEM_AGENT_PAGE_SIZE);
	if (agent->epoll >= 0)
		close(agent->epoll);
	if (agent->event >= 0)
		close(agent->event);
	if (agent->process)
		munmap(agent->process, (size_t)sysconf(_SC_PAGESIZE));
	free(agent);
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

/* One that others are about to send too, or a new one; waits for room. NULL at the deadline. */
static struct slot *join(struct pmem_agent *agent, const struct slot_key *key, uint64_t deadline_usec)
{
	struct slot *s;

	for (;;) {
		for (unsigned int i = 0; i < CLIENT_MAX_SLOTS; i++) {
			s = &agent->slots[i];
			if (s->state != SLOT_GATHERING || !is_equal(&s->key, key))
				continue;
			if (deadline_usec > s->deadline_usec)
				s->deadline_usec = deadline_usec;
			s->members++;
			return s;
		}
		s = slot_new(agent, false, key, deadline_usec);
		if (s) {
			s->members = 1;
			if (is_equal(key, &agent->gather.key)) {
				s->expected = agent->gather.expected;
				s->hold_usec = agent->gather.until_usec;
			}
			return s;
		}
		if (is_over(deadline_usec))
			return NULL;
		wait_until(agent, &agent->room, deadline_usec);
	}
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
	uint64_t deadline = deadline_after(timeout_usec);
	int cancel, r = enter(agent, &cancel);
	struct slot *s;

	if (r < 0) {
		set_unasked(ret, PMEM_AGENT_UNKNOWN, r);
		return r;
	}
	s = join(agent, key, deadline);
	if (!s) {
		set_unasked(ret, PMEM_AGENT_TIMEOUT, -ETIMEDOUT);
		return leave(agent, cancel, -ETIMEDOUT);
	}
	if (await(agent, s, SLOT_ANSWERED, deadline)) {
		*ret = s->result;
		*ret_method = s->method;
		r = s->error;
	} else {
		*ret = (struct pmem_agent_result){ .id = s->result.id, .answer = PMEM_AGENT_TIMEOUT };
		snprintf(ret->detail, sizeof(ret->detail), "the agent has not answered by your deadline");
		r = -ETIMEDOUT;
	}
	part_with(agent, s);
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
	uint64_t deadline = deadline_after(timeout_usec);
	struct slot *s;

	if (r >= 0)
		r = enter(agent, &cancel);
	if (r < 0)
		return r;
	s = slot_new(agent, true, &key, deadline);
	if (!s)
		return leave(agent, cancel, -EAGAIN);
	s->members = 1;
	if (!await(agent, s, SLOT_SENT, deadline))
		r = -ETIMEDOUT;
	else if (!s->connection)
		r = s->error;
	else
		*ret_id = s->result.id;
	s->members = 0;
	if (r < 0)
		slot_free(agent, s);
	else if (s->state == SLOT_ANSWERED)
		signal_answers(agent);
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
		if (is_over(deadline_usec))
			return -EAGAIN;
		/* They may be what somebody polls for. */
		signal_answers(agent);
		if (earliest > deadline_usec)
			earliest = deadline_usec;
		agent->waiting++;
		if (n > 0)
			connection_receive(agent, connections, n, earliest);
		else
			wait_until(agent, &agent->answered, earliest);
		agent->waiting--;
	}
}

int pmem_agent_wait(struct pmem_agent *agent, uint64_t id, uint64_t timeout_usec, struct pmem_agent_result *ret)
{
	uint64_t deadline = deadline_after(timeout_usec);
	int cancel, r = enter(agent, &cancel);

	if (r < 0)
		return r;
	/* What has come already comes before any deadline. */
	connection_drain(agent);
	r = wait_for(agent, id, deadline, ret);
	hand_over(agent);
	signal_answers(agent);
	return leave(agent, cancel, r);
}
