/*
 * record.c - what every flush of a region found changed, and what had been told by then
 *
 * When a flush begins, the memory is compared with what it was when the one before began. The pages that differ are
 * those that this flush makes durable if it succeeds; if it fails, the host takes them for clean, and they are lost
 * until somebody stores there again. Both the beginning and the end of a flush say how many promises the guest had
 * made by then. The guest writes them down on a board in memory that this process sees too, so no clock is needed: what
 * is on the board before the flush has ended was promised before.
 *
 * Several processes may flush one region: pmemctl serve has a child for each. So what has been seen is a file too,
 * beside the trace, and each process opens both when it first flushes after a recording began.
 *
 * The trace is a row of records: struct entry, then `n_pages` times a page's number (4 bytes) and its content; the last
 * one has the board instead.
 */
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, ALIGNMENT = 2 << 20, BOARD_SIZE = 2 << 20 };

#define BOARD_MAGIC 0x6472616f42747543ULL

struct entry {
	uint32_t type; /* 'S'tart, 'B'egin, 'E'nd, 'L'ast, 'T'old */
	uint32_t n_pages;
	uint64_t number;
	uint64_t nsec; /* CLOCK_REALTIME of the host */
	uint64_t n_told;
	int64_t result;
};

static void put(struct record *r, struct record_view *v, const void *data, size_t size)
{
	if (!r->failed && write(v->trace, data, size) != (ssize_t)size)
		r->failed = errno ? errno : ENOSPC;
}

/* Another process may have written meanwhile. */
static off_t go_to_end(const struct record_view *v)
{
	return lseek(v->trace, 0, SEEK_END);
}

static struct entry entry_of(struct record *r, const struct record_view *v, uint32_t type, uint64_t number)
{
	struct timespec t;

	while (v->board && r->n_told < v->max_told && __atomic_load_n(&v->board[1 + r->n_told], __ATOMIC_ACQUIRE) != 0)
		r->n_told++;
	clock_gettime(CLOCK_REALTIME, &t);
	return (struct entry){
		.type = type, .number = number, .nsec = t.tv_sec * 1000000000ULL + t.tv_nsec, .n_told = r->n_told
	};
}

/* Says what differs between the two offsets, and sees it from now on; how many pages. */
static uint32_t compare(struct record *r, struct record_view *v, size_t from, size_t to)
{
	uint32_t n = 0;

	for (size_t at = from & ~(size_t)(PAGE - 1); at < to; at += PAGE) {
		uint32_t page = at / PAGE;

		if (memcmp(v->now + at, v->seen + at, PAGE) == 0)
			continue;
		n++;
		memcpy(v->seen + at, v->now + at, PAGE);
		put(r, v, &page, sizeof(page));
		put(r, v, v->seen + at, PAGE);
	}
	return n;
}

/* Holes of the file have never been stored to. How many pages there are is known afterwards only. */
static void put_changes(struct record *r, struct record_view *v, struct entry entry)
{
	off_t at = go_to_end(v), data = 0, hole;

	put(r, v, &entry, sizeof(entry));
	while ((data = lseek(v->fd, data, SEEK_DATA)) >= 0) {
		hole = lseek(v->fd, data, SEEK_HOLE);
		entry.n_pages += compare(r, v, data, hole);
		data = hole;
	}
	if (!r->failed && pwrite(v->trace, &entry, sizeof(entry), at) != sizeof(entry))
		r->failed = errno;
}

static const char *find_board(struct record_view *v, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint64_t magic;
	off_t at = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		return "no such board";
	while (pread(fd, &magic, sizeof(magic), at) == sizeof(magic) && magic != BOARD_MAGIC)
		at += ALIGNMENT;
	v->board = at < st.st_size ? mmap(NULL, BOARD_SIZE, PROT_READ, MAP_SHARED, fd, at) : MAP_FAILED;
	close(fd);
	if (v->board == MAP_FAILED) {
		v->board = NULL;
		return "there is no board in that file";
	}
	v->max_told = BOARD_SIZE / sizeof(uint64_t) - 1;
	return NULL;
}

/* ---- one process's view ---- */

static void forget(struct record_view *v)
{
	if (v->board)
		munmap((void *)v->board, BOARD_SIZE);
	if (v->now)
		munmap((void *)v->now, v->size);
	if (v->seen)
		munmap(v->seen, v->size);
	if (v->generation && v->fd >= 0)
		close(v->fd);
	if (v->generation && v->trace >= 0)
		close(v->trace);
	*v = (struct record_view){ 0 };
}

static void *map_seen(const struct record *r, size_t size, int flags)
{
	char path[1040];
	void *p;
	int fd;

	snprintf(path, sizeof(path), "%s.seen", r->trace);
	fd = open(path, O_RDWR | O_CLOEXEC | flags, 0644);
	if (fd < 0 || ftruncate(fd, size) < 0)
		return NULL;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? NULL : p;
}

static const char *look(const struct record *r, struct record_view *v, int flags)
{
	struct stat st;

	v->generation = r->generation;
	v->fd = open(r->backing, O_RDONLY | O_CLOEXEC);
	v->trace = open(r->trace, O_RDWR | O_CLOEXEC | flags, 0644);
	if (v->fd < 0 || v->trace < 0 || fstat(v->fd, &st) < 0)
		return "a file can't be opened";
	v->size = st.st_size;
	v->now = mmap(NULL, v->size, PROT_READ, MAP_SHARED, v->fd, 0);
	v->seen = map_seen(r, v->size, flags);
	if (v->now == MAP_FAILED || !v->seen) {
		v->now = v->now == MAP_FAILED ? NULL : v->now;
		return "no memory";
	}
	return r->board[0] ? find_board(v, r->board) : NULL;
}

/* Whether something is recorded, and this process sees it. */
static bool sees(struct record *r, struct record_view *v)
{
	if (v->generation == r->generation)
		return r->generation % 2 == 1;
	forget(v);
	if (r->generation % 2 == 0)
		return false;
	if (look(r, v, 0)) {
		r->failed = EIO;
		forget(v);
		return false;
	}
	return true;
}

/* ---- a recording ---- */

void record_init(struct record *r)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&r->lock, &attributes);
}

static const char *start(struct record *r, struct record_view *v, const char *backing, const char *trace,
			 const char *board)
{
	const char *wrong;

	forget(v);
	snprintf(r->backing, sizeof(r->backing), "%s", backing);
	snprintf(r->trace, sizeof(r->trace), "%s", trace);
	snprintf(r->board, sizeof(r->board), "%s", board);
	r->n_told = r->failed = 0;
	r->generation++;
	wrong = look(r, v, O_CREAT | O_TRUNC);
	if (!wrong) {
		put_changes(r, v, entry_of(r, v, 'S', 0));
		return NULL;
	}
	r->generation++;
	forget(v);
	return wrong;
}

const char *record_start(struct record *r, struct record_view *v, const char *backing, const char *trace,
			 const char *board)
{
	const char *wrong = "something is recorded already";

	pthread_mutex_lock(&r->lock);
	if (r->generation % 2 == 0)
		wrong = start(r, v, backing, trace, board);
	pthread_mutex_unlock(&r->lock);
	return wrong;
}

const char *record_stop(struct record *r, struct record_view *v)
{
	const char *wrong = "nothing is recorded";
	char path[1040];

	pthread_mutex_lock(&r->lock);
	if (sees(r, v)) {
		struct entry told = entry_of(r, v, 'T', 0);

		put_changes(r, v, entry_of(r, v, 'L', 0));
		put(r, v, &told, sizeof(told));
		if (v->board)
			put(r, v, v->board + 1, told.n_told * sizeof(uint64_t));
		snprintf(path, sizeof(path), "%s.seen", r->trace);
		unlink(path);
		r->generation++;
		forget(v);
		wrong = r->failed ? "the trace could not be written" : NULL;
	}
	pthread_mutex_unlock(&r->lock);
	return wrong;
}

void record_begin(struct record *r, struct record_view *v, uint64_t number)
{
	pthread_mutex_lock(&r->lock);
	if (sees(r, v))
		put_changes(r, v, entry_of(r, v, 'B', number));
	pthread_mutex_unlock(&r->lock);
}

void record_end(struct record *r, struct record_view *v, uint64_t number, int result)
{
	pthread_mutex_lock(&r->lock);
	if (sees(r, v)) {
		struct entry entry = entry_of(r, v, 'E', number);

		entry.result = result;
		go_to_end(v);
		put(r, v, &entry, sizeof(entry));
	}
	pthread_mutex_unlock(&r->lock);
}
