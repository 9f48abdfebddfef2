/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * closer: closes descriptors that came from others, without waiting for what their close() waits for
 *
 * A child that shares our descriptor table puts a harmless descriptor into the slot. The kernel exchanges the slot
 * first and only then calls the close of what was there, so the hang is the child's alone, and which slots it has got
 * to shows in the close-on-exec flags. A child that does hang would keep the table, with our sockets in it, beyond our
 * own end; so it is killed, for when it returns, we move to a copy of the table, and a second child empties the one we
 * left.
 *
 * A batch is of one user, so that each child that hangs is somebody's, and users take turns.
 */
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "closer.h"
#include "event.h"
#include "util.h"

#define TICK_USEC       USEC_PER_MSEC
#define PATIENCE        5 /* ticks, then a child hangs */
#define STOP_USEC       (100 * USEC_PER_MSEC)
#define RETRY_USEC      (100 * USEC_PER_MSEC)
#define MAX_BATCH       256
#define MAX_DESCRIPTORS (1 << 20)
#define SIGNAL_GO       SIGUSR1
#define RESERVED        64 /* a multiple of the bits of a long, see leave_table() */
#define SHARE_OF_ALL    4  /* of all descriptors may wait, before those who have some waiting get no more */

/* Who wants to know when all of theirs are harmless. */
struct group {
	unsigned int n_left;
	void (*done)(void *userdata);
	void *userdata;
};

/* A slot of our table; its number is its place in `entries`. */
struct entry {
	bool foreign; /* ours to close, and not yet done */
	struct user *user;
	struct group *group;
	TAILQ_ENTRY(entry) entry;
};

TAILQ_HEAD(entry_list, entry);

struct user {
	uid_t uid;
	struct entry_list waiting;
	unsigned int n_foreign; /* waiting, or in the batch */
	unsigned int n_hanging;
	TAILQ_ENTRY(user) entry;
};

static int harmless = -1;
static struct entry *entries;
static unsigned int n_entries, n_foreign;

/* Who comes next is first. The last resort is for who is not known, and where memory is short. */
static TAILQ_HEAD(, user) users = TAILQ_HEAD_INITIALIZER(users);
static struct user nobody = { .uid = CLOSER_NOBODY, .waiting = TAILQ_HEAD_INITIALIZER(nobody.waiting) };
static struct group never = { .n_left = ~0U };

static sd_event_source *run_source, *timer;

/* The child that is closing. */
static struct {
	struct user *user; /* NULL: there is none */
	int pidfd;
	unsigned int ticks;
	unsigned int n;
	int fds[MAX_BATCH];
} batch;

/* Each child that hangs, and the one that empties its table. */
static struct {
	int pidfd;
	struct user *user;
} hanging[CLOSER_MAX_HANGING + 1];
static unsigned int n_hanging;

/* ---- users ---- */

static struct user *find_user(uid_t uid)
{
	struct user *u;

	TAILQ_FOREACH (u, &users, entry)
		if (u->uid == uid)
			return u;
	return NULL;
}

static struct user *get_user(uid_t uid)
{
	struct user *u = find_user(uid);

	if (u)
		return u;
	u = calloc(1, sizeof(*u));
	if (!u)
		return &nobody;
	u->uid = uid;
	TAILQ_INIT(&u->waiting);
	TAILQ_INSERT_TAIL(&users, u, entry);
	return u;
}

static void put_user(struct user *u)
{
	if (u == &nobody || u->n_foreign > 0 || u->n_hanging > 0)
		return;
	TAILQ_REMOVE(&users, u, entry);
	free(u);
}

/* ---- children ---- */

/* As fork(), but with one descriptor table for both. `ret_pidfd` is a descriptor of the parent. */
static pid_t fork_sharing_files(int *ret_pidfd)
{
	return (pid_t)syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD | SIGCHLD, NULL, ret_pidfd, NULL, NULL);
}

static bool has_ended(int pidfd, int timeout_msec)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, timeout_msec) > 0;
}

static void forget_ended(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < n_hanging; i++) {
		if (!has_ended(hanging[i].pidfd, 0)) {
			hanging[n++] = hanging[i];
			continue;
		}
		safe_close(hanging[i].pidfd);
		hanging[i].user->n_hanging--;
		put_user(hanging[i].user);
	}
	n_hanging = n;
}

static void add_hanging(int pidfd, struct user *u)
{
	hanging[n_hanging].pidfd = pidfd;
	hanging[n_hanging++].user = u;
	u->n_hanging++;
}

/*
 * Waits until `parent` is out of the table, be it that it has ended, and empties it: first of what is ours, since in
 * the rest it may hang too, and last of what is of the user in whose it would.
 */
static _Noreturn void empty_table(pid_t parent, const sigset_t *go)
{
	unsigned int first = 0;
	int signal;

	prctl(PR_SET_PDEATHSIG, SIGNAL_GO);
	if (getppid() == parent)
		sigwait(go, &signal);
	for (unsigned int i = 0; i < n_entries; i++) {
		if (!entries[i].foreign)
			continue;
		if (i > first)
			syscall(SYS_close_range, first, i - 1, 0);
		first = i + 1;
	}
	syscall(SYS_close_range, first, ~0U, 0);
	for (unsigned int i = 0; i < n_entries; i++)
		if (entries[i].foreign && entries[i].user != batch.user)
			close((int)i);
	syscall(SYS_close_range, 0, ~0U, 0);
	_exit(0);
}

/*
 * Moves to a copy of the table, of its lowest part only if `low`. What is not copied isn't closed by that, as long as
 * there is a child in the table; but the kernel copies by as many as a long has bits, and closes what is too much.
 * POSIX record locks, which belong to the table, do not survive this; open file description locks do.
 */
static int leave_table(bool low, int *ret_pidfd)
{
	sigset_t go, before;
	pid_t self = getpid(), child;
	int r;

	sigemptyset(&go);
	sigaddset(&go, SIGNAL_GO);
	sigprocmask(SIG_BLOCK, &go, &before);
	child = fork_sharing_files(ret_pidfd);
	if (child == 0)
		empty_table(self, &go);
	r = child < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (r < 0)
		return r;

	if (low)
		r = (int)syscall(SYS_close_range, RESERVED, ~0U, CLOSE_RANGE_UNSHARE);
	else
		r = unshare(CLONE_FILES);
	r = r < 0 ? -errno : 0;
	if (r < 0)
		safe_close(*ret_pidfd);
	kill(child, r < 0 ? SIGKILL : SIGNAL_GO);
	return r;
}

/* ---- the batch ---- */

static bool is_exchanged(int fd)
{
	return fcntl(fd, F_GETFD) & FD_CLOEXEC;
}

static void finish(int fd)
{
	struct group *g = entries[fd].group;

	entries[fd].foreign = false;
	batch.user->n_foreign--;
	n_foreign--;
	if (!g) {
		safe_close(fd);
	} else if (--g->n_left == 0) {
		g->done(g->userdata);
		free(g);
	}
}

/* The child has ended, or can't change our table any more: what it hasn't got to waits again. */
static void settle_batch(void)
{
	struct user *u = batch.user;

	for (unsigned int i = 0; i < batch.n; i++) {
		int fd = batch.fds[i];

		if (is_exchanged(fd)) {
			finish(fd);
			continue;
		}
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		TAILQ_INSERT_TAIL(&u->waiting, &entries[fd], entry);
	}
	batch.user = NULL;
	put_user(u);
}

static struct user *next_user(void)
{
	struct user *u;

	forget_ended();
	if (n_hanging >= CLOSER_MAX_HANGING)
		return NULL;
	TAILQ_FOREACH (u, &users, entry) {
		if (TAILQ_EMPTY(&u->waiting) || u->n_hanging >= CLOSER_UID_HANGING)
			continue;
		TAILQ_REMOVE(&users, u, entry);
		TAILQ_INSERT_TAIL(&users, u, entry);
		return u;
	}
	return NULL;
}

static void start_batch(void)
{
	struct user *u = next_user();
	struct entry *e;
	pid_t child;

	if (!u)
		return;
	batch.user = u;
	batch.ticks = batch.n = 0;
	while (batch.n < MAX_BATCH && (e = TAILQ_FIRST(&u->waiting))) {
		int fd = (int)(e - entries);

		TAILQ_REMOVE(&u->waiting, e, entry);
		fcntl(fd, F_SETFD, 0);
		batch.fds[batch.n++] = fd;
	}
	child = fork_sharing_files(&batch.pidfd);
	if (child == 0) {
		for (unsigned int i = 0; i < batch.n; i++)
			dup3(harmless, batch.fds[i], O_CLOEXEC);
		_exit(0);
	}
	if (child < 0)
		settle_batch();
}

/* The child hangs, or the machine is slow; in any case it goes no further, and others get their turn. */
static void give_up_batch(void)
{
	int pidfd;

	if (leave_table(false, &pidfd) < 0)
		return;
	syscall(SYS_pidfd_send_signal, batch.pidfd, SIGKILL, NULL, 0);
	add_hanging(batch.pidfd, batch.user);
	add_hanging(pidfd, batch.user);
	settle_batch();
}

static void look_after_batch(int timeout_msec)
{
	if (has_ended(batch.pidfd, timeout_msec)) {
		safe_close(batch.pidfd);
		settle_batch();
	} else if (++batch.ticks >= PATIENCE && is_exchanged(batch.fds[0])) {
		give_up_batch();
	}
}

/* ---- the loop ---- */

static int go_on(void)
{
	uint64_t usec = TICK_USEC;
	int r;

	if (batch.user)
		look_after_batch(0);
	if (!batch.user)
		start_batch();
	if (n_foreign == 0)
		return sd_event_source_set_enabled(timer, SD_EVENT_OFF);
	if (!batch.user)
		usec = RETRY_USEC;
	r = sd_event_source_set_time_relative(timer, usec);
	return r < 0 ? r : sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

static int on_run(sd_event_source *s, void *userdata)
{
	return batch.user ? 0 : go_on();
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	return go_on();
}

/* ---- from outside ---- */

static void take(int fd, struct user *u, struct group *g)
{
	struct entry *e = &entries[fd];

	e->foreign = true;
	e->user = u;
	e->group = g;
	TAILQ_INSERT_TAIL(&u->waiting, e, entry);
	u->n_foreign++;
	n_foreign++;
	event_enable(run_source, SD_EVENT_ONESHOT);
}

void closer_close(int fd, uid_t uid)
{
	if (fd >= 0)
		take(fd, get_user(uid), NULL);
}

void closer_defuse(const int *fds, unsigned int n, uid_t uid, void (*done)(void *userdata), void *userdata)
{
	struct group *g = malloc(sizeof(*g));
	struct user *u = get_user(uid);

	if (g)
		*g = (struct group){ .n_left = n, .done = done, .userdata = userdata };
	for (unsigned int i = 0; i < n; i++)
		take(fds[i], u, g ?: &never);
}

int closer_defuse_copy(int fd)
{
	return dup3(harmless, fd, O_CLOEXEC) < 0 ? -errno : 0;
}

bool closer_is_busy(uid_t uid)
{
	const struct user *u = find_user(uid);

	if (!u || u->n_hanging < CLOSER_UID_HANGING)
		return false;
	forget_ended();
	u = find_user(uid);
	return u && u->n_hanging >= CLOSER_UID_HANGING;
}

bool closer_is_full(uid_t uid)
{
	const struct user *u = n_foreign > 0 ? find_user(uid) : NULL;

	return u && u->n_foreign > 0 && (u->n_foreign >= CLOSER_UID_WAITING || n_foreign >= n_entries / SHARE_OF_ALL);
}

/* So that nothing that is not ours gets a low number; who had one before us keeps it. */
static int reserve(void)
{
	int fd;

	do
		fd = fcntl(harmless, F_DUPFD_CLOEXEC, 0);
	while (fd >= 0 && fd < RESERVED);
	if (fd < 0)
		return -errno;
	safe_close(fd);
	return 0;
}

int closer_start(sd_event *event)
{
	struct rlimit limit;
	int r;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	if (limit.rlim_cur > MAX_DESCRIPTORS) {
		limit.rlim_cur = MAX_DESCRIPTORS;
		if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
			return -errno;
	}
	n_entries = (unsigned int)limit.rlim_cur;
	entries = calloc(n_entries, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	TAILQ_INSERT_TAIL(&users, &nobody, entry);
	harmless = eventfd(0, EFD_CLOEXEC);
	if (harmless < 0)
		return -errno;
	r = reserve();
	if (r < 0)
		return r;
	r = sd_event_add_defer(event, &run_source, on_run, NULL);
	if (r < 0)
		return r;
	r = sd_event_source_set_enabled(run_source, SD_EVENT_OFF);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, NULL);
	return r < 0 ? r : sd_event_source_set_enabled(timer, SD_EVENT_OFF);
}

/* What doesn't hang, as far as there is nothing before it that does. */
static void drain(void)
{
	unsigned int n = n_hanging;

	while (n_foreign > 0 && n_hanging == n) {
		if (!batch.user)
			start_batch();
		if (!batch.user)
			return;
		n = n_hanging;
		look_after_batch(1);
	}
}

/* Those that don't hang either, but are slow, have our descriptors still. */
static void wait_for_slow(void)
{
	uint64_t until = now_usec(CLOCK_MONOTONIC) + STOP_USEC;

	do
		forget_ended();
	while (n_hanging > 0 && now_usec(CLOCK_MONOTONIC) < until && poll(NULL, 0, 1) == 0);
}

void closer_stop(void)
{
	int pidfd;

	drain();
	wait_for_slow();
	run_source = sd_event_source_disable_unref(run_source);
	timer = sd_event_source_disable_unref(timer);
	if (n_foreign > 0)
		leave_table(true, &pidfd);
}

int closer_close_from(unsigned int first)
{
	int pidfd, r = n_foreign > 0 ? leave_table(true, &pidfd) : 0;

	if (r < 0)
		return r;
	return syscall(SYS_close_range, first, ~0U, 0) < 0 ? -errno : 0;
}
