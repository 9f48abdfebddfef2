/*
 * record.h - what every flush of a region found changed, and what had been told by then: a trace for crash.py
 */
#ifndef VM_RECORD_H
#define VM_RECORD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In memory that all processes share which flush the region. */
struct record {
	pthread_mutex_t lock;
	uint64_t generation; /* grows with each recording; odd: one is under way */
	char backing[1024], trace[1024], board[1024];
	size_t n_told;
	int failed;
};

/* How one process sees it. All zero: not yet. */
struct record_view {
	uint64_t generation; /* of the recording that this is of */
	int fd, trace;       /* the backing file and what is written */
	size_t size;
	const char *now;       /* the region's memory, as the guest sees it */
	char *seen;            /* as of the newest flush that began */
	const uint64_t *board; /* see load-cut.c; NULL: there is none */
	size_t max_told;
};

void record_init(struct record *r);

/* NULL for done, else what is wrong. The board lies somewhere in the file `board`, "" for none. */
const char *record_start(struct record *r, struct record_view *v, const char *backing, const char *trace,
			 const char *board);
const char *record_stop(struct record *r, struct record_view *v);

void record_begin(struct record *r, struct record_view *v, uint64_t number);
void record_end(struct record *r, struct record_view *v, uint64_t number, int result);

#endif
