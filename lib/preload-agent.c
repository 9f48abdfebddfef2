/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload-agent: connections, and one request over one of them
 *
 * Whoever needs a connection claims one that nobody uses: a signal handler another one than what it has interrupted.
 * One with a request under way is given back only when its answer has been received, so that it never brings an answer
 * to somebody else. The program may close it at any time, and its number may be another thread's connection then: so it
 * is looked at before each use, and an answer must have the id of the request.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "exchange.h"
#include "preload.h"

#define N_LINES        32
#define MAX_RECONNECTS 16
#define RETRY_NSEC     1000000

enum line_state { LINE_FREE, LINE_IDLE, LINE_BUSY };

static struct preload_line lines[N_LINES];
static uint32_t n_let_go, n_waiting; /* how often a line has been let go; who waits for that */
static uint64_t n_requests;          /* ids */

/* Others' constructors may call before ours has looked where it really is. */
static struct sockaddr_un address = {
	.sun_family = AF_UNIX,
	.sun_path = PMEM_AGENT_RUNTIME_DIR "/" PMEM_AGENT_SOCKET_NAME,
};

/*
 * Whose lines these are: a process's number, in memory that a child of fork() finds zeroed. A child of vfork() finds
 * its parent's. NULL: each request has a connection of its own.
 */
static int32_t *owner;

void preload_agent_init(void)
{
	int32_t *page;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/" PMEM_AGENT_SOCKET_NAME, preload_directory());
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return;
	if (madvise(page, 4096, MADV_WIPEONFORK) < 0) {
		munmap(page, 4096);
		return;
	}
	*page = getpid();
	owner = page;
}

bool preload_line_is_ours(const struct preload_line *line)
{
	struct stat st;

	return fstat(line->fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == line->inode;
}

void preload_line_close(const struct preload_line *line)
{
	if (preload_line_is_ours(line))
		preload_close(line->fd);
}

/* The lines that a child has inherited are its parent's: it gives up its duplicates of them. */
static void inherit(void)
{
	for (unsigned int i = 0; i < N_LINES; i++) {
		if (lines[i].state != LINE_FREE)
			preload_line_close(&lines[i]);
		lines[i].state = LINE_FREE;
	}
	n_waiting = 0;
	preload_group_inherit();
	preload_map_inherit();
	preload_kept_inherit();
}

bool preload_is_own_memory(void)
{
	return owner && __atomic_load_n(owner, __ATOMIC_ACQUIRE) > 0;
}

bool preload_is_own_process(void)
{
	int32_t pid = getpid(), none = 0;

	if (!owner)
		return false;
	if (__atomic_load_n(owner, __ATOMIC_ACQUIRE) == pid)
		return true;
	if (!__atomic_compare_exchange_n(owner, &none, -1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		return false;
	inherit();
	__atomic_store_n(owner, pid, __ATOMIC_RELEASE);
	return true;
}

static bool claim_state(struct preload_line *line, uint32_t state)
{
	return __atomic_compare_exchange_n(&line->state, &state, LINE_BUSY, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void let_go(struct preload_line *line, enum line_state state)
{
	__atomic_store_n(&line->state, state, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&n_let_go, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&n_waiting, __ATOMIC_SEQ_CST))
		preload_wake(&n_let_go, 1);
}

static void sleep_a_little(void)
{
	const struct timespec ts = { .tv_nsec = RETRY_NSEC };

	nanosleep(&ts, NULL);
}

int preload_line_connect(struct preload_line *line)
{
	struct stat st;
	int fd, high;

	fd = exchange_connect(&address);
	if (fd < 0)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, PRELOAD_HIGH_FD);
	if (high >= 0) {
		preload_close(fd);
		fd = high;
	}
	line->fd = fd;
	line->inode = fstat(fd, &st) == 0 ? st.st_ino : 0;
	return 0;
}

/* One of `lines`, to be used by nobody else; NULL: all are in use. */
static struct preload_line *take_line(void)
{
	for (unsigned int i = 0; i < N_LINES; i++) {
		if (!claim_state(&lines[i], LINE_IDLE))
			continue;
		if (preload_line_is_ours(&lines[i]))
			return &lines[i];
		/* The application has closed it; whatever has its number now is not ours. */
		let_go(&lines[i], LINE_FREE);
	}
	for (unsigned int i = 0; i < N_LINES; i++)
		if (claim_state(&lines[i], LINE_FREE)) {
			lines[i].fd = -1;
			return &lines[i];
		}
	return NULL;
}

/* The same, once others have let one go; but not for ever, they may be what a signal handler has interrupted. */
static struct preload_line *wait_for_line(void)
{
	uint64_t until = preload_now() + PRELOAD_NSEC_PER_SEC;
	struct preload_line *line;
	uint32_t seen;

	__atomic_fetch_add(&n_waiting, 1, __ATOMIC_SEQ_CST);
	do
		seen = __atomic_load_n(&n_let_go, __ATOMIC_SEQ_CST);
	while (!(line = take_line()) && preload_wait(&n_let_go, seen, until));
	__atomic_fetch_sub(&n_waiting, 1, __ATOMIC_SEQ_CST);
	return line;
}

/* `line`, or if that is NULL, `own`; connected. 0 or a negative errno. */
static int connect_either(struct preload_line *line, struct preload_line *own, struct preload_line **ret)
{
	int r;

	*ret = line ?: own;
	if (line && line->fd >= 0)
		return 0;
	/* Too many wait to be accepted: so do we. */
	while ((r = preload_line_connect(*ret)) == -EAGAIN)
		sleep_a_little();
	if (r < 0 && line)
		let_go(line, LINE_FREE);
	return r;
}

/* `reusable`: nothing is under way on it. */
static void give_back(struct preload_line *line, const struct preload_line *own, bool reusable)
{
	if (line != own && reusable) {
		let_go(line, LINE_IDLE);
		return;
	}
	preload_line_close(line);
	if (line != own)
		let_go(line, LINE_FREE);
}

/* Sends it to whichever agent takes it. 0 or a negative errno: nobody has got it. */
static int deliver(const struct pmem_agent_request *request, int fd, struct preload_line *line,
		   struct preload_line *own, struct preload_line **ret)
{
	int r = -ECONNRESET;

	for (unsigned int i = 0; i < MAX_RECONNECTS; i++) {
		r = connect_either(line, own, ret);
		if (r < 0)
			return r;
		while ((r = exchange_send((*ret)->fd, request, fd)) == -EAGAIN)
			sleep_a_little();
		if (r == 0)
			return 0;
		/* Not the application's, but ours has been closed. */
		if (r == -EBADF && !preload_line_is_ours(*ret))
			r = -ENOTCONN;
		give_back(*ret, own, !exchange_is_undelivered(r));
		if (!exchange_is_undelivered(r))
			return r;
		line = preload_is_own_process() ? take_line() : NULL;
	}
	if (line)
		let_go(line, line->fd < 0 ? LINE_FREE : LINE_IDLE);
	return r;
}

/* The answer to the only request under way there. False: it ended before, or is not ours any more. */
static bool receive(const struct preload_line *line, uint64_t id, struct pmem_agent_reply *reply,
		    struct exchange_verdict *v)
{
	ssize_t size;

	do {
		if (!preload_line_is_ours(line))
			return false;
		size = exchange_receive(line->fd, reply, true);
		if (size == -EAGAIN)
			sleep_a_little();
	} while (size == -EINTR || size == -EAGAIN);
	if (size <= 0)
		return false;
	exchange_judge(reply, (size_t)size, v);
	if (v->concern != EXCHANGE_ONE || reply->id == id)
		return true;
	/* Another thread waits for that, and would for ever. */
	shutdown(line->fd, SHUT_RDWR);
	return false;
}

/* One request over `line`; NULL: over a connection of its own. `ret_reply` and `ret_verdict` with PRELOAD_TOLD. */
static enum preload_outcome exchange(struct pmem_agent_request *request, int fd, const struct preload_file *file,
				     struct preload_line *line, struct pmem_agent_reply *ret_reply,
				     struct exchange_verdict *ret_verdict)
{
	struct preload_line own = { .fd = -1 };
	bool ended, single;
	int r;

	request->version = PMEM_AGENT_WIRE_VERSION;
	request->id = __atomic_add_fetch(&n_requests, 1, __ATOMIC_RELAXED);
	request->device = file->device;
	request->inode = file->inode;
	r = deliver(request, fd, line, &own, &line);
	if (r < 0)
		return r == -EBADF ? PRELOAD_CHANGED : PRELOAD_UNASKED;
	ended = !receive(line, request->id, ret_reply, ret_verdict);
	single = !ended && ret_verdict->concern == EXCHANGE_ONE;
	give_back(line, &own, single);
	if (ended)
		return PRELOAD_UNKNOWN;
	return single && ret_reply->answer == PMEM_AGENT_REFUSED && ret_reply->error == ESTALE ? PRELOAD_CHANGED
											       : PRELOAD_TOLD;
}

/* A flush, and over which line; NULL: one of its own. */
struct flush {
	struct preload_ask ask; /* first */
	struct preload_handle handle;
	enum pmem_agent_scope scope;
	const struct preload_file *file;
	struct preload_line *line;
};

static void prepare(struct preload_ask *ask)
{
	((struct flush *)ask)->line = take_line() ?: wait_for_line();
}

static enum preload_outcome send_flush(struct preload_ask *ask, struct preload_reply *ret)
{
	const struct flush *f = (const struct flush *)ask;
	struct pmem_agent_request request = {
		.type = PMEM_AGENT_PACKET_FLUSH,
		.scope = f->scope,
		.kept = f->handle.kept,
	};
	struct pmem_agent_reply reply;
	struct exchange_verdict v;
	enum preload_outcome outcome = exchange(&request, f->handle.fd, f->file, f->line, &reply, &v);

	if (outcome != PRELOAD_TOLD)
		return outcome;
	if (v.concern == EXCHANGE_ONE)
		exchange_expect(PMEM_AGENT_PACKET_FLUSH, &reply, &v);
	/* Refused as a whole: too many connections, or another version. It has flushed nothing. */
	if (v.concern == EXCHANGE_REFUSAL && (v.answer == PMEM_AGENT_BUSY || v.error == -EPROTONOSUPPORT))
		return PRELOAD_UNASKED;
	ret->answer = v.answer;
	ret->error = -v.error;
	ret->page = v.answer == PMEM_AGENT_DURABLE && reply.n_regions == 1 ? reply.regions[0].page : 0;
	return PRELOAD_TOLD;
}

enum preload_outcome preload_ask(struct preload_handle h, enum pmem_agent_scope scope, const struct preload_file *file,
				 struct preload_reply *ret)
{
	const struct preload_question question = {
		.device = file->device,
		.inode = file->inode,
		.kept = h.kept,
		.fd = h.fd,
		.scope = scope,
	};
	struct flush flush = {
		.ask = { .prepare = prepare, .send = send_flush },
		.handle = h,
		.scope = scope,
		.file = file,
	};

	*ret = (struct preload_reply){ .answer = PMEM_AGENT_UNKNOWN };
	return preload_is_own_process() ? preload_group_ask(&question, &flush.ask, ret) : send_flush(&flush.ask, ret);
}

enum preload_outcome preload_tell(struct preload_handle h, const struct preload_file *file)
{
	struct pmem_agent_request request = { .type = PMEM_AGENT_PACKET_REPORT };
	struct pmem_agent_reply reply;
	struct exchange_verdict v;
	enum preload_outcome outcome;

	if (h.fd < 0)
		return PRELOAD_UNASKED;
	outcome = exchange(&request, h.fd, file, preload_is_own_process() ? take_line() : NULL, &reply, &v);
	if (outcome != PRELOAD_TOLD)
		return outcome;
	/* Whatever it has to say of it, if it is an answer to that. */
	return v.concern == EXCHANGE_ONE && reply.type == PMEM_AGENT_PACKET_REPORT ? PRELOAD_TOLD : PRELOAD_UNKNOWN;
}
