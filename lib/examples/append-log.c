/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * append-log: an append-only log on a DAX file. A record is there after a power cut if append() said so, and what was
 * half written is not.
 *
 * usage: append-log FILE              show what the log holds
 *        append-log FILE TEXT...      append each
 *
 * cc append-log.c $(pkg-config --cflags --libs libpmem-agent)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pmem-agent/pmem-agent.h>

#define LOG_SIZE (1 << 20)

/* What follows the newest record is zero, or a record that was never confirmed, whose sum is wrong or right. */
struct record {
	uint32_t length; /* of the text; 0: the end */
	uint32_t sum;
	char text[];
};

struct log {
	struct pmem_agent *agent;
	int fd;
	char *memory;
	size_t end;
};

static uint32_t sum_of(const char *text, uint32_t length)
{
	uint32_t sum = 2166136261U ^ length;

	for (uint32_t i = 0; i < length; i++)
		sum = (sum ^ (unsigned char)text[i]) * 16777619U;
	return sum;
}

static size_t size_of(uint32_t length)
{
	return (sizeof(struct record) + length + 7) & ~(size_t)7;
}

/* The record there, NULL if there is no whole one. */
static const struct record *record_at(const struct log *l, size_t at)
{
	const struct record *r = (const struct record *)(l->memory + at);

	if (at + sizeof(*r) > LOG_SIZE || r->length == 0 || r->length > LOG_SIZE - at - sizeof(*r))
		return NULL;
	return r->sum == sum_of(r->text, r->length) ? r : NULL;
}

static int flush(struct log *l, enum pmem_agent_scope scope)
{
	struct pmem_agent_result result;
	int r = pmem_agent_flush(l->agent, l->fd, scope, PMEM_AGENT_NO_TIMEOUT, &result);

	if (r < 0)
		fprintf(stderr, "not durable: %s: %s\n", strerror(-r), result.detail);
	return r;
}

/* A new file is written in full, so that its layout is fixed from then on: that takes a flush of the file, once. */
static int make(struct log *l)
{
	static const char zeros[4096];
	struct stat st;

	if (fstat(l->fd, &st) < 0)
		return -errno;
	if (st.st_size == LOG_SIZE)
		return 0;
	for (off_t at = 0; at < LOG_SIZE; at += (off_t)sizeof(zeros))
		if (pwrite(l->fd, zeros, sizeof(zeros), at) != (ssize_t)sizeof(zeros))
			return -errno;
	return flush(l, PMEM_AGENT_SCOPE_FILE);
}

static int open_log(struct log *l, const char *path)
{
	int r = pmem_agent_connect(NULL, &l->agent);

	if (r < 0)
		return r;
	l->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (l->fd < 0)
		return -errno;
	r = make(l);
	if (r < 0)
		return r;
	l->memory = mmap(NULL, LOG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
	return l->memory == MAP_FAILED ? -errno : 0;
}

/*
 * Finds the end. What looks whole may be a record that was never confirmed, and is only in the host's memory yet: from
 * here on it counts, so it must be durable before anyone sees it. What comes behind the end is wiped, or half of an old
 * record might complete a new one.
 */
static int recover(struct log *l)
{
	const struct record *r;

	while ((r = record_at(l, l->end)))
		l->end += size_of(r->length);
	memset(l->memory + l->end, 0, LOG_SIZE - l->end);
	return flush(l, PMEM_AGENT_SCOPE_FILE_DATA);
}

/* 0: it is durable. After an error nobody knows: stop, and recover when the loss has been dealt with. */
static int append(struct log *l, const char *text)
{
	struct record *r = (struct record *)(l->memory + l->end);
	size_t length = strlen(text);
	int e;

	if (length == 0 || length > LOG_SIZE || l->end + size_of((uint32_t)length) > LOG_SIZE)
		return -ENOSPC;
	memcpy(r->text, text, length);
	r->sum = sum_of(text, (uint32_t)length);
	r->length = (uint32_t)length;
	/* The layout is fixed: the memory alone will do. */
	e = flush(l, PMEM_AGENT_SCOPE_REGION);
	if (e == 0)
		l->end += size_of((uint32_t)length);
	return e;
}

int main(int argc, char **argv)
{
	struct log l = { .fd = -1 };
	const struct record *record;
	int r;

	if (argc < 2) {
		fprintf(stderr, "usage: append-log FILE [TEXT...]\n");
		return 2;
	}
	r = open_log(&l, argv[1]);
	if (r >= 0)
		r = recover(&l);
	for (int i = 2; r >= 0 && i < argc; i++) {
		r = append(&l, argv[i]);
		if (r == 0)
			printf("durable: %s\n", argv[i]);
	}
	for (size_t at = 0; argc == 2 && r >= 0 && (record = record_at(&l, at)); at += size_of(record->length))
		printf("%.*s\n", (int)record->length, record->text);
	if (r < 0)
		fprintf(stderr, "append-log: %s\n", strerror(-r));
	pmem_agent_close(l.agent);
	return r < 0;
}
