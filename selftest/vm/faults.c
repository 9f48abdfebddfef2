/*
 * faults.c - preloaded into QEMU: what a host may do to the flushes of a region
 *
 * QEMU's virtio-pmem answers one flush of the guest with one fsync of the backing file, in a thread
 * of its pool. Here each such fsync is counted, and may be slow, fail, or hang. A region is known by
 * its backing file; any other file's fsync passes straight through. All state lies in memory that
 * this process shares with its children, behind one lock, and a thread serves the commands that
 * faults.py sends, one datagram each: so a setting takes effect at once, and counts from the very
 * moment it is made. pmemctl serve, whose children flush, has it preloaded too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "record.h"

enum { REGIONS = 64, FAILURES = 64, MESSAGE = 8192 };

struct region {
	char id[16];
	dev_t dev;
	ino_t ino;
	char durable[1024];   /* where to copy the backing file, "" for nowhere */
	pthread_mutex_t disk; /* held for the delay: a disk does one thing at a time */
	uint64_t begun;
	uint64_t delay_us;
	uint64_t fail_at[FAILURES];
	size_t n_fail;
	bool fail_every;
	uint64_t hang_at; /* 0: none */
	unsigned int hanging;
	uint64_t release; /* grows with every release; those who hang wait for that */
	bool release_fails;
};

/* What one flush is to do, decided when it begins. */
struct plan {
	uint64_t number;
	bool fail;
	bool hang;
};

static struct shared {
	struct region regions[REGIONS];
	struct record records[REGIONS];
	size_t n_regions;
	pthread_mutex_t lock;
	pthread_cond_t released;
} * shared;
static struct record_view views[REGIONS];
static int control = -1, log_fd = -1; /* the first: -1 in a child */
static char log_path[1024];
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

static void event(const char *what, const struct region *r, uint64_t number)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "! %s %s %llu", what, r->id, (unsigned long long)number);

	if (control >= 0 && send(control, text, n, MSG_NOSIGNAL) < 0)
		perror("vm faults: event");
}

static struct region *find_file(int fd)
{
	struct stat st;

	if (!shared || !shared->n_regions || fstat(fd, &st) < 0)
		return NULL;
	for (size_t i = 0; i < shared->n_regions; i++)
		if (shared->regions[i].dev == st.st_dev && shared->regions[i].ino == st.st_ino)
			return &shared->regions[i];
	return NULL;
}

static struct record *record_of(const struct region *r)
{
	return &shared->records[r - shared->regions];
}

static struct record_view *view_of(const struct region *r)
{
	return &views[r - shared->regions];
}

static struct plan begin(struct region *r)
{
	struct plan plan = { 0 };

	pthread_mutex_lock(&shared->lock);
	plan.number = ++r->begun;
	plan.fail = r->fail_every;
	for (size_t i = 0; i < r->n_fail; i++)
		plan.fail |= r->fail_at[i] == plan.number;
	plan.hang = r->hang_at == plan.number;
	pthread_mutex_unlock(&shared->lock);
	return plan;
}

/* Returns whether the release said that the flush is to fail. */
static bool hang(struct region *r, uint64_t number)
{
	uint64_t before;
	bool fail;

	pthread_mutex_lock(&shared->lock);
	before = r->release;
	r->hanging++;
	event("hung", r, number);
	while (r->release == before)
		pthread_cond_wait(&shared->released, &shared->lock);
	r->hanging--;
	fail = r->release_fails;
	pthread_mutex_unlock(&shared->lock);
	return fail;
}

static void wait_for_disk(uint64_t delay_us)
{
	struct timespec until;

	if (!delay_us)
		return;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += delay_us / 1000000;
	until.tv_nsec += delay_us % 1000000 * 1000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static int copy_extents(int from, int to, off_t size)
{
	off_t data = 0, hole;

	if (ftruncate(to, size) < 0)
		return -1;
	while ((data = lseek(from, data, SEEK_DATA)) >= 0 && data < size) {
		off_t at = data;

		hole = lseek(from, data, SEEK_HOLE);
		while (data < hole) {
			ssize_t n = copy_file_range(from, &data, to, &at, hole - data, 0);

			if (n <= 0)
				return -1;
		}
	}
	return 0;
}

/* The durable image is replaced in one step, so that a cut at any moment leaves a whole one. */
static void save_durable(int fd, const struct region *r)
{
	char from_path[64], temporary[1060];
	struct stat st;
	int from, to;

	snprintf(from_path, sizeof(from_path), "/proc/self/fd/%d", fd);
	snprintf(temporary, sizeof(temporary), "%s.new.%d", r->durable, getpid());
	from = open(from_path, O_RDONLY | O_CLOEXEC);
	to = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	/* Of two processes that copy it the later copy must be the one that stays. */
	if (from < 0 || to < 0 || flock(from, LOCK_EX) < 0 || fstat(from, &st) < 0 ||
	    copy_extents(from, to, st.st_size) < 0 || rename(temporary, r->durable) < 0)
		perror("vm faults: durable image");
	if (from >= 0)
		close(from);
	if (to >= 0)
		close(to);
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void write_log(const struct region *r, uint64_t number, double start, double began, int result)
{
	char line[256];
	int n = snprintf(line, sizeof(line),
			 "{\"time\": %.6f, \"region\": \"%s\", \"number\": %llu, \"result\": %d, "
			 "\"error\": \"%s\", \"duration_us\": %.0f}\n",
			 start, r->id, (unsigned long long)number, result < 0 ? -1 : 0,
			 result < 0 ? strerrorname_np(-result) : "", (seconds(CLOCK_MONOTONIC) - began) * 1e6);

	if (log_fd < 0)
		log_fd = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	if (write(log_fd, line, n) != n)
		perror("vm faults: log");
}

static int flush(int fd, int (*real)(int))
{
	struct region *r = find_file(fd);
	double start, began;
	struct plan plan;
	int result;

	if (!r)
		return real(fd);
	start = seconds(CLOCK_REALTIME);
	began = seconds(CLOCK_MONOTONIC);
	plan = begin(r);
	record_begin(record_of(r), view_of(r), plan.number);
	if (plan.hang)
		plan.fail |= hang(r, plan.number);
	pthread_mutex_lock(&r->disk);
	wait_for_disk(r->delay_us);
	result = plan.fail ? -EIO : real(fd) < 0 ? -errno : 0;
	if (result == 0 && r->durable[0])
		save_durable(fd, r);
	record_end(record_of(r), view_of(r), plan.number, result);
	pthread_mutex_unlock(&r->disk);
	write_log(r, plan.number, start, began, result);
	if (result < 0) {
		errno = -result;
		return -1;
	}
	return 0;
}

int fsync(int fd)
{
	return flush(fd, real_fsync);
}

int fdatasync(int fd)
{
	return flush(fd, real_fdatasync);
}

static struct region *find_id(const char *id)
{
	for (size_t i = 0; i < shared->n_regions; i++)
		if (strcmp(shared->regions[i].id, id) == 0)
			return &shared->regions[i];
	return NULL;
}

/* region ID BEGUN PATH: from now on flushes of this file are that region's. */
static const char *add_region(const char *id, char *rest)
{
	struct region *r = &shared->regions[shared->n_regions];
	pthread_mutexattr_t attributes;
	struct stat st;
	char *path;

	if (shared->n_regions == REGIONS)
		return "too many regions";
	r->begun = strtoull(rest, &path, 10);
	if (stat(path + 1, &st) < 0)
		return "no such backing file";
	snprintf(r->id, sizeof(r->id), "%s", id);
	r->dev = st.st_dev;
	r->ino = st.st_ino;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&r->disk, &attributes);
	record_init(record_of(r));
	shared->n_regions++;
	return NULL;
}

static const char *set_failures(struct region *r, char *rest)
{
	r->fail_every = strcmp(rest, "every") == 0;
	r->n_fail = 0;
	if (r->fail_every || strcmp(rest, "off") == 0)
		return NULL;
	for (char *word = strtok(rest, ","); word; word = strtok(NULL, ",")) {
		if (r->n_fail == FAILURES)
			return "too many numbers";
		r->fail_at[r->n_fail++] = r->begun + strtoull(word, NULL, 10);
	}
	return NULL;
}

/* record BACKING TRACE BOARD: none of them has a blank. "record" alone ends it. */
static const char *record(struct region *r, char *rest)
{
	const char *backing = strtok(rest, " "), *trace = strtok(NULL, " "), *board = strtok(NULL, " ");

	if (!backing)
		return record_stop(record_of(r), view_of(r));
	return trace ? record_start(record_of(r), view_of(r), backing, trace, board ? board : "") : "not understood";
}

/* Called with the lock held; NULL for done, else what is wrong. */
static const char *obey(const char *verb, const char *id, char *rest)
{
	struct region *r = find_id(id);

	if (strcmp(verb, "region") == 0)
		return r ? "that region is there already" : add_region(id, rest);
	if (!r)
		return "no such region";
	if (strcmp(verb, "durable") == 0) {
		snprintf(r->durable, sizeof(r->durable), "%s", rest);
	} else if (strcmp(verb, "delay") == 0) {
		r->delay_us = strtoull(rest, NULL, 10);
	} else if (strcmp(verb, "fail") == 0) {
		return set_failures(r, rest);
	} else if (strcmp(verb, "hang") == 0) {
		uint64_t number = strtoull(rest, NULL, 10);

		r->hang_at = number ? r->begun + number : 0;
	} else if (strcmp(verb, "release") == 0) {
		if (!r->hanging)
			return "no flush hangs";
		r->release++;
		r->release_fails = strcmp(rest, "fail") == 0;
		pthread_cond_broadcast(&shared->released);
	} else if (strcmp(verb, "record") == 0) {
		return record(r, rest);
	} else if (strcmp(verb, "count") != 0) {
		return "no such command";
	}
	return NULL;
}

static void *serve(void *unused)
{
	char message[MESSAGE], reply[128], verb[16], id[16];
	ssize_t n;
	int at;

	(void)unused;
	while ((n = recv(control, message, sizeof(message) - 1, 0)) > 0) {
		const char *wrong = "not understood";
		const struct region *r;

		message[n] = 0;
		pthread_mutex_lock(&shared->lock);
		if (sscanf(message, "%15s %15s%n", verb, id, &at) == 2)
			wrong = obey(verb, id, message + at + (message[at] == ' '));
		r = find_id(id);
		n = wrong ? snprintf(reply, sizeof(reply), "- %s", wrong)
			  : snprintf(reply, sizeof(reply), "= %llu %u", (unsigned long long)r->begun, r->hanging);
		if (send(control, reply, n, MSG_NOSIGNAL) < 0)
			perror("vm faults: reply");
		pthread_mutex_unlock(&shared->lock);
	}
	return NULL;
}

/* It closes what it did not open, and has no thread that obeys: it only sees what is set. */
static void in_child(void)
{
	control = log_fd = -1;
}

static void *share(void)
{
	struct shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t lock;
	pthread_condattr_t released;

	if (s == MAP_FAILED)
		return NULL;
	pthread_mutexattr_init(&lock);
	pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&s->lock, &lock);
	pthread_condattr_init(&released);
	pthread_condattr_setpshared(&released, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&s->released, &released);
	return s;
}

__attribute__((constructor)) static void start(void)
{
	const char *fd = getenv("VM_FAULTS_FD"), *log = getenv("VM_FAULTS_LOG");
	sigset_t all, before;
	pthread_t thread;

	real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
	real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
	shared = fd && log ? share() : NULL;
	if (!shared)
		return;
	snprintf(log_path, sizeof(log_path), "%s", log);
	pthread_atfork(NULL, NULL, in_child);
	control = atoi(fd);
	fcntl(control, F_SETFD, FD_CLOEXEC);
	log_fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	unsetenv("LD_PRELOAD");
	unsetenv("VM_FAULTS_FD");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, serve, NULL) != 0)
		perror("vm faults: thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
