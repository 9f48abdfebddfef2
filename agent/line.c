/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * line: what is received becomes lines, what is sent waits for room; neither grows beyond its bound
 */
#include <errno.h>
#include <string.h>

#include "line.h"

int line_reader_init(struct line_reader *l, size_t max)
{
	*l = (struct line_reader){ .text = malloc(max + 1), .max = max };
	return l->text ? 0 : -ENOMEM;
}

void line_reader_clear(struct line_reader *l)
{
	free(l->text);
	*l = (struct line_reader){ 0 };
}

void line_reader_reset(struct line_reader *l)
{
	l->size = 0;
	l->skipping = false;
}

enum line_event line_reader_add(struct line_reader *l, unsigned char byte)
{
	bool whole = !l->skipping && l->size > 0;

	if (byte == LINE_RESYNC) {
		line_reader_reset(l);
		return LINE_RESET;
	}
	if (byte == '\n') {
		l->text[l->size] = '\0';
		l->length = l->size;
		line_reader_reset(l);
		return whole ? LINE_WHOLE : LINE_NONE;
	}
	if (l->size < l->max) {
		l->text[l->size++] = (char)byte;
		return LINE_NONE;
	}
	if (l->skipping)
		return LINE_NONE;
	l->skipping = true;
	return LINE_OVERLONG;
}

int line_queue_init(struct line_queue *q, size_t max)
{
	*q = (struct line_queue){ .bytes = malloc(max), .max = max };
	return q->bytes ? 0 : -ENOMEM;
}

void line_queue_clear(struct line_queue *q)
{
	free(q->bytes);
	*q = (struct line_queue){ 0 };
}

int line_queue_add(struct line_queue *q, const char *line)
{
	size_t size = strlen(line);

	if (size + 1 > q->max - q->size)
		return -ENOBUFS;
	memcpy(q->bytes + q->size, line, size);
	q->bytes[q->size + size] = '\n';
	q->size += size + 1;
	return 0;
}

int line_queue_write(struct line_queue *q, int fd)
{
	size_t written = 0;
	int r = 0;

	while (written < q->size) {
		ssize_t n = write(fd, q->bytes + written, q->size - written);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			r = -errno;
		if (n <= 0)
			break;
		written += (size_t)n;
	}
	q->size -= written;
	memmove(q->bytes, q->bytes + written, q->size);
	return r;
}
