/*
 * record.c - what every flush of a region found changed, and what had been told by then
 *
 * When a flush begins, the memory is compared with what it was when the one before began. The pages that differ are
 * those that this flush makes durable if it succeeds; if it fails, the host takes them for clean, and they are lost
 * until somebody stores there again. Both the beginning and the end of a flush say how many promises the guest had
 * made by then. The guest writes them down on a board in memory that this process sees too, so no clock is needed: what
 * is on the board before the flush has ended was promised before.
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

static void put(struct record *r, const void *data, size_t size)
{
	if (!r->failed && write(r->trace, data, size) != (ssize_t)size)
		r->failed = errno ? errno : ENOSPC;
}

static void count_told(struct record *r)
{
	while (r->board && r->n_told < r->max_told && __atomic_load_n(&r->board[1 + r->n_told], __ATOMIC_ACQUIRE) != 0)
		r->n_told++;
}

static struct entry entry_of(struct record *r, uint32_t type, uint64_t number)
{
	struct timespec t;

	count_told(r);
	clock_gettime(CLOCK_REALTIME, &t);
	return (struct entry){
		.type = type, .number = number, .nsec = t.tv_sec * 1000000000ULL + t.tv_nsec, .n_told = r->n_told
	};
}

/* Says what differs between the two offsets, and sees it from now on; how many pages. */
static uint32_t compare(struct record *r, size_t from, size_t to)
{
	uint32_t n = 0;

	for (size_t at = from & ~(size_t)(PAGE - 1); at < to; at += PAGE) {
		uint32_t page = at / PAGE;

		if (memcmp(r->now + at, r->seen + at, PAGE) == 0)
			continue;
		n++;
		memcpy(r->seen + at, r->now + at, PAGE);
		put(r, &page, sizeof(page));
		put(r, r->seen + at, PAGE);
	}
	return n;
}

/* Holes of the file have never been stored to. How many pages there are is known afterwards only. */
static void put_changes(struct record *r, struct entry entry)
{
	off_t at = lseek(r->trace, 0, SEEK_END), data = 0, hole;

	put(r, &entry, sizeof(entry));
	while ((data = lseek(r->fd, data, SEEK_DATA)) >= 0) {
		hole = lseek(r->fd, data, SEEK_HOLE);
		entry.n_pages += compare(r, data, hole);
		data = hole;
	}
	if (!r->failed && pwrite(r->trace, &entry, sizeof(entry), at) != sizeof(entry))
		r->failed = errno;
}

static const char *find_board(struct record *r, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint64_t magic;
	off_t at = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		return "no such board";
	while (pread(fd, &magic, sizeof(magic), at) == sizeof(magic) && magic != BOARD_MAGIC)
		at += ALIGNMENT;
	r->board = at < st.st_size ? mmap(NULL, BOARD_SIZE, PROT_READ, MAP_SHARED, fd, at) : MAP_FAILED;
	close(fd);
	if (r->board == MAP_FAILED) {
		r->board = NULL;
		return "there is no board in that file";
	}
	r->max_told = BOARD_SIZE / sizeof(uint64_t) - 1;
	return NULL;
}

static void forget(struct record *r)
{
	if (r->board)
		munmap((void *)r->board, BOARD_SIZE);
	if (r->now)
		munmap((void *)r->now, r->size);
	if (r->seen)
		munmap(r->seen, r->size);
	if (r->fd >= 0)
		close(r->fd);
	if (r->trace >= 0)
		close(r->trace);
	r->now = r->seen = NULL;
	r->board = NULL;
	r->fd = r->trace = -1;
	r->n_told = r->failed = 0;
}

static const char *start(struct record *r, const char *backing, const char *trace, const char *board)
{
	const char *wrong;
	struct stat st;

	r->fd = open(backing, O_RDONLY | O_CLOEXEC);
	r->trace = open(trace, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (r->fd < 0 || r->trace < 0 || fstat(r->fd, &st) < 0)
		return "a file can't be opened";
	r->size = st.st_size;
	r->now = mmap(NULL, r->size, PROT_READ, MAP_SHARED, r->fd, 0);
	r->seen = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r->now == MAP_FAILED || r->seen == MAP_FAILED) {
		r->now = r->seen = NULL;
		return "no memory";
	}
	wrong = board[0] ? find_board(r, board) : NULL;
	if (!wrong)
		put_changes(r, entry_of(r, 'S', 0));
	return wrong;
}

const char *record_start(struct record *r, const char *backing, const char *trace, const char *board)
{
	const char *wrong = "something is recorded already";

	pthread_mutex_lock(&r->lock);
	if (r->trace < 0) {
		wrong = start(r, backing, trace, board);
		if (wrong)
			forget(r);
	}
	pthread_mutex_unlock(&r->lock);
	return wrong;
}

const char *record_stop(struct record *r)
{
	const char *wrong = "nothing is recorded";

	pthread_mutex_lock(&r->lock);
	if (r->trace >= 0) {
		struct entry told = entry_of(r, 'T', 0);

		put_changes(r, entry_of(r, 'L', 0));
		put(r, &told, sizeof(told));
		if (r->board)
			put(r, r->board + 1, told.n_told * sizeof(uint64_t));
		wrong = r->failed ? "the trace could not be written" : NULL;
		forget(r);
	}
	pthread_mutex_unlock(&r->lock);
	return wrong;
}

void record_begin(struct record *r, uint64_t number)
{
	pthread_mutex_lock(&r->lock);
	if (r->trace >= 0)
		put_changes(r, entry_of(r, 'B', number));
	pthread_mutex_unlock(&r->lock);
}

void record_end(struct record *r, uint64_t number, int result)
{
	pthread_mutex_lock(&r->lock);
	if (r->trace >= 0) {
		struct entry entry = entry_of(r, 'E', number);

		entry.result = result;
		put(r, &entry, sizeof(entry));
	}
	pthread_mutex_unlock(&r->lock);
}
