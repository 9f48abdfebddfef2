/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * witness: failed block I/O that somebody else took the error of, from a private trace instance
 */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sysmacros.h>

#include "witness.h"

#define WITNESS_EVENT  "block_bio_complete"
#define WITNESS_BUFFER 4096

struct witness {
	int dir; /* of the instance, locked */
	int fd;
	size_t size;   /* bytes in `buffer` */
	size_t next;   /* where its next line begins */
	bool skipping; /* within a line that did not fit */
	char buffer[WITNESS_BUFFER];
};

/* An instance that records nothing would be a witness who always says that nothing happened. */
static int check_attribute(int dir, const char *name, const char *expected)
{
	_cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	char value[64];
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, value, sizeof(value) - 1);
	if (n < 0)
		return -errno;
	value[n] = '\0';
	value[strcspn(value, "\n")] = '\0';
	return strcmp(value, expected) == 0 ? 0 : -ENOENT;
}

int witness_open(const char *instance, struct witness **ret)
{
	static const struct {
		const char *name, *expected;
	} attributes[] = {
		{ "events/block/" WITNESS_EVENT "/filter", WITNESS_FILTER },
		{ "events/block/" WITNESS_EVENT "/enable", "1" },
		{ "tracing_on", "1" },
	};
	_cleanup_close_ int dir = open(instance, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_(witness_freep) struct witness *w = NULL;
	int r;

	if (dir < 0)
		return -errno;
	/* Each entry is read once, by whoever comes first. */
	if (flock(dir, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++) {
		r = check_attribute(dir, attributes[i].name, attributes[i].expected);
		if (r < 0)
			return r;
	}

	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->dir = -1;
	w->fd = openat(dir, "trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (w->fd < 0)
		return -errno;

	w->dir = dir;
	dir = -1;
	*ret = w;
	w = NULL;
	return 0;
}

struct witness *witness_free(struct witness *w)
{
	if (w) {
		safe_close(w->fd);
		safe_close(w->dir);
	}
	free(w);
	return NULL;
}

int witness_get_fd(const struct witness *w)
{
	return w->fd;
}

bool witness_has_more(const struct witness *w)
{
	struct pollfd p = { .fd = w->fd, .events = POLLIN };

	/* The kernel keeps nothing back that poll() does not tell of: what was begun has been read to its end. */
	return poll(&p, 1, 0) != 0;
}

/* "CPU:0 [LOST 12 EVENTS]" or "CPU:0 [LOST EVENTS]", and nothing else: a task can't forge it, its name is too short. */
static bool is_overrun(const char *line)
{
	int end = -1;

	if (sscanf(line, "CPU:%*u [LOST %*u EVENTS]%n", &end) == 0 && end > 0 && line[end] == '\0')
		return true;
	end = -1;
	return sscanf(line, "CPU:%*u [LOST EVENTS]%n", &end) == 0 && end > 0 && line[end] == '\0';
}

/*
 * "RA", "RAM": what was only read ahead is read once more by whoever needs it, and that is told if it fails. Any other
 * read counts, for write-back may have needed it: ext4 reads a file's extents as it does data, without an "M", and
 * where it can't, drops what was to be written there.
 */
static bool is_readahead(const char *rwbs)
{
	return rwbs[0] == 'R' && memchr(rwbs, 'A', strcspn(rwbs, " "));
}

/* "259,0 FR () 0 + 0 [-5]" */
static int parse_completion(const char *text, struct witness_entry *ret)
{
	const char *bracket = strrchr(text, '['), *rwbs;
	unsigned int major, minor;
	int error, end = -1;

	if (sscanf(text, "%u,%u %n", &major, &minor, &end) != 2 || end < 0 || !bracket)
		return -EBADMSG;
	rwbs = text + end;
	end = -1;
	if (sscanf(bracket, "[%d]%n", &error, &end) != 1 || end < 0 || bracket[end] != '\0' || error >= 0)
		return -EBADMSG;

	if (is_readahead(rwbs))
		return 0;
	*ret = (struct witness_entry){ WITNESS_ENTRY_ERROR, makedev(major, minor), -error };
	return 0;
}

void witness_parse(const char *line, struct witness_entry *ret)
{
	const char *event = strstr(line, WITNESS_EVENT);
	struct witness_entry entry = {};

	if (is_overrun(line))
		entry.type = WITNESS_ENTRY_OVERRUN;
	else if (event && (strncmp(event, WITNESS_EVENT ": ", strlen(WITNESS_EVENT ": ")) != 0 ||
			   parse_completion(event + strlen(WITNESS_EVENT ": "), &entry) < 0))
		/* Something failed, we can't tell where. */
		entry.type = WITNESS_ENTRY_OVERRUN;
	*ret = entry;
}

/* Cuts the next whole line off the buffer; NULL if there is none. */
static char *take_line(struct witness *w)
{
	char *line = w->buffer + w->next, *newline = memchr(line, '\n', w->size - w->next);

	if (!newline)
		return NULL;
	*newline = '\0';
	w->next = newline + 1 - w->buffer;
	return line;
}

/* 1 with more in the buffer, 0 if the kernel has no more at present. */
static int fill(struct witness *w)
{
	ssize_t n;

	memmove(w->buffer, w->buffer + w->next, w->size - w->next);
	w->size -= w->next;
	w->next = 0;
	do
		n = read(w->fd, w->buffer + w->size, sizeof(w->buffer) - w->size);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	w->size += n;
	return n > 0;
}

/* 1 with the next line; one that does not fit comes as its end, with `*ret_overlong`. */
static int next_line(struct witness *w, char **ret_line, bool *ret_overlong)
{
	char *line;
	int r;

	while (!(line = take_line(w))) {
		if (w->next == 0 && w->size == sizeof(w->buffer)) {
			w->size = 0;
			w->skipping = true;
		}
		r = fill(w);
		if (r <= 0)
			return r;
	}

	*ret_line = line;
	*ret_overlong = w->skipping;
	w->skipping = false;
	return 1;
}

int witness_next(struct witness *w, struct witness_entry *ret)
{
	struct witness_entry entry;
	bool overlong;
	char *line;
	int r;

	do {
		r = next_line(w, &line, &overlong);
		if (r <= 0)
			return r;
		witness_parse(line, &entry);
		if (overlong)
			entry.type = WITNESS_ENTRY_OVERRUN;
	} while (entry.type == WITNESS_ENTRY_NONE);

	*ret = entry;
	return 1;
}
