/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * line: what is received becomes lines, what is sent waits for room; neither grows beyond its bound
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "util.h"

#define LINE_RESYNC 0xFF /* whoever sends it has forgotten what went before */

/* ---- received ---- */

struct line_reader {
	char *text; /* max + 1 bytes */
	size_t size, max;
	size_t length; /* of the last whole line */
	bool skipping; /* to the end of a line that was too long */
};

enum line_event {
	LINE_NONE,
	LINE_WHOLE,    /* `text` has it until the next byte, without its newline, NUL added */
	LINE_RESET,    /* a resync came: what was half received is forgotten */
	LINE_OVERLONG, /* a line over the bound begins to be thrown away */
};

/* 0 or -ENOMEM. */
int line_reader_init(struct line_reader *l, size_t max);
void line_reader_clear(struct line_reader *l);
void line_reader_reset(struct line_reader *l);
enum line_event line_reader_add(struct line_reader *l, unsigned char byte);

/* ---- to be sent ---- */

struct line_queue {
	char *bytes; /* of `max` */
	size_t size, max;
};

/* 0 or -ENOMEM. */
int line_queue_init(struct line_queue *q, size_t max);
void line_queue_clear(struct line_queue *q);

/* A line, without its newline. 0; -ENOBUFS: no room. */
int line_queue_add(struct line_queue *q, const char *line);

/* As much as `fd`, which does not block, takes now. 0, also if that is nothing; a negative errno. */
int line_queue_write(struct line_queue *q, int fd);
