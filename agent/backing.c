/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * backing: what the host has behind a region of its guest, and a child that flushes it
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "backing.h"
#include "child.h"

/* A guest that asks without end gets no more of the host's disk than this. */
#define BURST      64
#define EVERY_USEC (2 * USEC_PER_MSEC)

#define PROBLEM_MAX 192

/* What the child is told to do. */
enum order { FLUSH = 'f', FORGET = 'g' };

struct opened {
	enum backing_state state;
	bool verified, memory;
	int kept;
	char problem[PROBLEM_MAX];
};

struct flushed {
	int error;
	bool replaced; /* the file is another now: nothing was flushed */
	bool unkept;   /* the record of what is in flight can't be written */
	uint64_t usec;
};

struct backing {
	struct backing_info info;
	const struct backing_callbacks *callbacks;
	void *userdata;
	struct opened opened;
	int sock; /* to the child */
	sd_event_source *io_source, *timer_source;
	uint64_t in_flight[BACKING_MAX_WAITING], waiting[BACKING_MAX_WAITING];
	unsigned int n_in_flight, n_waiting;
	bool replaced, unkept;
	uint64_t tokens, refilled_usec;
	uint64_t n_flushes, flush_usec;
};

/* ---- the child ---- */

/* Whether the virtual machine has this file open; -1: we may not look. */
static int machine_has_it(pid_t pid, const struct stat *wanted)
{
	char path[64];
	struct dirent *entry;
	int found = 0;
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	directory = opendir(path);
	if (!directory)
		return -1;
	while (found == 0 && (entry = readdir(directory))) {
		struct stat st;

		if (entry->d_name[0] != '.' && fstatat(dirfd(directory), entry->d_name, &st, 0) == 0)
			found = st.st_dev == wanted->st_dev && st.st_ino == wanted->st_ino;
	}
	closedir(directory);
	return found;
}

/* A flush of these succeeds, and nothing outlives the host's power. */
static bool is_memory(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 &&
	       (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

static int refuse(struct opened *o, enum backing_state state, const char *problem)
{
	o->state = state;
	snprintf(o->problem, sizeof(o->problem), "%s", problem);
	return -1;
}

/* A relative one is the virtual machine's, if that is who told. */
static void name_file(const struct backing_info *info, char path[static PATH_MAX + 32])
{
	if (info->path[0] != '/' && info->pid > 0)
		snprintf(path, PATH_MAX + 32, "/proc/%d/cwd/%s", info->pid, info->path);
	else
		snprintf(path, PATH_MAX + 32, "%s", info->path);
}

/* The descriptor, or -1 with the reason in `o`. */
static int open_file(const struct backing_info *info, struct opened *o)
{
	_cleanup_close_ int fd = -1;
	char path[PATH_MAX + 32];
	struct stat st;
	int found, ours;

	if (info->path[0] != '/' && info->pid == 0 && info->name[0])
		return refuse(o, BACKING_REFUSED,
			      "its path is relative, and the virtual machine's process can't be seen");
	name_file(info, path);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return refuse(o, BACKING_REFUSED, strerrordesc_np(errno));
	o->memory = S_ISDIR(st.st_mode) || is_memory(fd);
	if (o->memory)
		return refuse(o, BACKING_UNKEPT, "it is memory of the host, not a file on a disk");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return refuse(o, BACKING_REFUSED, "it is neither a file nor a block device");
	found = info->pid > 0 ? machine_has_it(info->pid, &st) : -1;
	if (found == 0)
		return refuse(o, BACKING_REFUSED,
			      "the virtual machine has another file open: this one has replaced it");
	o->verified = found > 0;
	o->state = BACKING_READY;
	ours = fd;
	fd = -1;
	return ours;
}

/* Whether the name still leads to what is open here: what the virtual machine has open may be the other one. */
static bool is_replaced(const struct backing_info *info, int fd)
{
	char path[PATH_MAX + 32];
	struct stat ours, named;

	name_file(info, path);
	return fstat(fd, &ours) < 0 || stat(path, &named) < 0 || ours.st_dev != named.st_dev ||
	       ours.st_ino != named.st_ino || ours.st_rdev != named.st_rdev;
}

/*
 * What nobody was told of, for who comes after us: the errno of a flush, 0 for none. While one is in flight its error
 * may be reported to us and die with us, so it counts as failed until it has not. Only the machine's end need not be
 * survived by that: then the guest has ended too, and was told nothing.
 */
struct record {
	int fd; /* -1: there is none */
	int error;
};

static bool record_write(const struct record *r, int error)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%-4d\n", error);

	return r->fd >= 0 && pwrite(r->fd, text, (size_t)n, 0) == n;
}

/*
 * A child before us that is in a flush still, though nobody listens to it any more, has the record locked until it has
 * ended. What can't be read was kept nevertheless.
 */
static struct record record_open(const char *path)
{
	struct record r = { .fd = path[0] ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1 };
	char text[16] = "";
	ssize_t n;

	while (r.fd >= 0 && flock(r.fd, LOCK_EX) < 0 && errno == EINTR)
		;
	n = r.fd >= 0 ? pread(r.fd, text, sizeof(text) - 1, 0) : path[0] && access(path, F_OK) == 0 ? -1 : 0;

	if (n != 0 && (n < 0 || sscanf(text, "%d", &r.error) != 1 || r.error < 0))
		r.error = EIO;
	return r;
}

static struct flushed flush(const struct backing_info *info, int fd, struct record *r)
{
	uint64_t begun = now_usec(CLOCK_MONOTONIC);
	struct flushed f = { .replaced = is_replaced(info, fd) };

	if (f.replaced) {
		f.error = EOPNOTSUPP;
		return f;
	}
	f.unkept = !record_write(r, r->error ?: EIO) && info->state[0];
	if (fsync(fd) < 0)
		f.error = errno == EOPNOTSUPP ? EIO : errno;
	f.usec = now_usec(CLOCK_MONOTONIC) - begun;
	/* Before the error is told: who is killed while telling it must not have been the only one to know. */
	if (f.error != 0) {
		r->error = f.error;
		record_write(r, r->error);
		f.unkept |= r->fd >= 0 && fdatasync(r->fd) < 0;
	} else {
		record_write(r, r->error);
	}
	return f;
}

static void run(int sock, void *userdata)
{
	const struct backing_info *info = userdata;
	struct record record = record_open(info->state);
	struct opened o = { .state = BACKING_REFUSED, .kept = record.error };
	char order;
	int fd;

	if (!info->path[0])
		fd = refuse(&o, BACKING_UNKEPT, "it is memory of the host, not a file");
	else if (info->share == BACKING_NO)
		fd = refuse(&o, BACKING_UNKEPT, "it is mapped private (share=off): stores never reach the file");
	else if (info->readonly == BACKING_YES)
		fd = refuse(&o, BACKING_UNKEPT, "it is read-only");
	else
		fd = open_file(info, &o);
	if (send(sock, &o, sizeof(o), MSG_NOSIGNAL) < 0)
		return;
	while (recv(sock, &order, sizeof(order), 0) > 0) {
		struct flushed f;

		if (order == FORGET) {
			record.error = 0;
			record_write(&record, 0);
			continue;
		}
		f = flush(info, fd, &record);
		if (send(sock, &f, sizeof(f), MSG_NOSIGNAL) < 0)
			return;
	}
}

/* ---- the owner ---- */

const struct backing_info *backing_get_info(const struct backing *b)
{
	return &b->info;
}

enum backing_state backing_get_state(const struct backing *b)
{
	return b->opened.state;
}

const char *backing_get_problem(const struct backing *b)
{
	return b->opened.problem;
}

bool backing_is_verified(const struct backing *b)
{
	return b->opened.verified;
}

bool backing_is_memory(const struct backing *b)
{
	return b->opened.memory || !b->info.path[0];
}

bool backing_is_replaced(const struct backing *b)
{
	return b->replaced;
}

bool backing_is_unkept(const struct backing *b)
{
	return b->unkept;
}

uint64_t backing_get_flushes(const struct backing *b, uint64_t *ret_usec)
{
	*ret_usec = b->flush_usec;
	return b->n_flushes;
}

int backing_get_kept(const struct backing *b)
{
	return b->opened.kept;
}

void backing_forget(struct backing *b)
{
	static const char order = FORGET;

	b->opened.kept = 0;
	if (b->info.state[0])
		send(b->sock, &order, sizeof(order), MSG_NOSIGNAL);
}

static void refill(struct backing *b)
{
	uint64_t now = now_usec(CLOCK_MONOTONIC), more = (now - b->refilled_usec) / EVERY_USEC;

	b->refilled_usec += more * EVERY_USEC;
	b->tokens = more > BURST - b->tokens ? BURST : b->tokens + more;
}

static void begin_more(struct backing *b)
{
	static const char order = FLUSH;

	if (b->opened.state != BACKING_READY || b->n_in_flight > 0 || b->n_waiting == 0)
		return;
	refill(b);
	if (b->tokens == 0) {
		sd_event_source_set_time_relative(b->timer_source, EVERY_USEC);
		sd_event_source_set_enabled(b->timer_source, SD_EVENT_ONESHOT);
		return;
	}
	b->tokens--;
	memcpy(b->in_flight, b->waiting, b->n_waiting * sizeof(b->waiting[0]));
	b->n_in_flight = b->n_waiting;
	b->n_waiting = 0;
	/* If the child has gone, the end of its socket says so. */
	send(b->sock, &order, sizeof(order), MSG_NOSIGNAL);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	begin_more(userdata);
	return 0;
}

static void answer(struct backing *b, const uint64_t *numbers, unsigned int n, int error, uint64_t usec)
{
	for (unsigned int i = 0; i < n; i++)
		b->callbacks->flushed(b, numbers[i], error, usec, b->userdata);
}

/* All of them, of what was asked when it was still opening too. */
static void refuse_all(struct backing *b, int error)
{
	uint64_t numbers[2 * BACKING_MAX_WAITING];
	unsigned int n = b->n_in_flight;

	memcpy(numbers, b->in_flight, n * sizeof(numbers[0]));
	memcpy(numbers + n, b->waiting, b->n_waiting * sizeof(numbers[0]));
	n += b->n_waiting;
	b->n_in_flight = b->n_waiting = 0;
	answer(b, numbers, n, error, 0);
}

static void child_gone(struct backing *b)
{
	sd_event_source_set_enabled(b->io_source, SD_EVENT_OFF);
	b->opened = (struct opened){ .state = BACKING_REFUSED, .problem = "the process that flushed it has ended" };
	b->callbacks->state(b, b->userdata);
	refuse_all(b, EIO);
}

static void on_opened(struct backing *b)
{
	b->callbacks->state(b, b->userdata);
	if (b->opened.state == BACKING_READY)
		begin_more(b);
	else
		refuse_all(b, b->opened.state == BACKING_UNKEPT ? EOPNOTSUPP : EIO);
}

static void on_flushed(struct backing *b, const struct flushed *f)
{
	uint64_t numbers[BACKING_MAX_WAITING];
	unsigned int n = b->n_in_flight;

	memcpy(numbers, b->in_flight, n * sizeof(numbers[0]));
	b->n_in_flight = 0;
	b->n_flushes++;
	b->flush_usec += f->usec;
	b->unkept = f->unkept;
	if (f->replaced) {
		b->replaced = true;
		b->opened = (struct opened){ .state = BACKING_REFUSED,
					     .problem = "its name leads to another file now, or to none" };
		b->callbacks->state(b, b->userdata);
		answer(b, numbers, n, f->error, 0);
		refuse_all(b, EOPNOTSUPP);
		return;
	}
	begin_more(b);
	answer(b, numbers, n, f->error, f->usec);
}

static int on_child(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct backing *b = userdata;
	union {
		struct opened opened;
		struct flushed flushed;
	} message;
	ssize_t n = recv(fd, &message, sizeof(message), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (b->opened.state == BACKING_OPENING && n == sizeof(message.opened)) {
		b->opened = message.opened;
		on_opened(b);
	} else if (b->n_in_flight > 0 && n == sizeof(message.flushed)) {
		on_flushed(b, &message.flushed);
	} else {
		child_gone(b);
	}
	return 0;
}

int backing_flush(struct backing *b, uint64_t number)
{
	if (b->opened.state == BACKING_UNKEPT)
		return -EOPNOTSUPP;
	if (b->opened.state == BACKING_REFUSED)
		return -EIO;
	if (b->n_waiting == BACKING_MAX_WAITING)
		return -EBUSY;
	b->waiting[b->n_waiting++] = number;
	begin_more(b);
	return 0;
}

int backing_new(sd_event *event, const struct backing_info *info, const struct backing_callbacks *callbacks,
		void *userdata, struct backing **ret)
{
	_cleanup_(backing_freep) struct backing *b = calloc(1, sizeof(*b));
	pid_t pid;
	int r;

	if (!b)
		return -ENOMEM;
	b->info = *info;
	b->callbacks = callbacks;
	b->userdata = userdata;
	b->tokens = BURST;
	b->refilled_usec = now_usec(CLOCK_MONOTONIC);
	b->sock = -1;
	r = child_start("pmemctl-backing", run, &b->info, &pid, &b->sock);
	if (r < 0)
		return r;
	r = sd_event_add_io(event, &b->io_source, b->sock, EPOLLIN, on_child, b);
	if (r < 0)
		return r;
	r = sd_event_add_time(event, &b->timer_source, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, b);
	if (r < 0)
		return r;
	*ret = b;
	b = NULL;
	return 0;
}

struct backing *backing_free(struct backing *b)
{
	if (!b)
		return NULL;
	sd_event_source_disable_unref(b->io_source);
	sd_event_source_disable_unref(b->timer_source);
	/* The child ends when it sees this. */
	safe_close(b->sock);
	free(b);
	return NULL;
}
