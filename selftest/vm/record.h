/*
 * record.h - what every flush of a region found changed, and what had been told by then: a trace for crash.py
 */
#ifndef VM_RECORD_H
#define VM_RECORD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct record {
	pthread_mutex_t lock;
	int fd, trace; /* the backing file and what is written; -1: nothing is recorded */
	size_t size;
	const char *now;       /* the region's memory, as the guest sees it */
	char *seen;            /* as of the newest flush that began */
	const uint64_t *board; /* see load-cut.c; NULL: there is none */
	size_t n_told, max_told;
	int failed;
};

/* NULL for done, else what is wrong. The board lies somewhere in the file `board`, "" for none. */
const char *record_start(struct record *r, const char *backing, const char *trace, const char *board);
const char *record_stop(struct record *r);

void record_begin(struct record *r, uint64_t number);
void record_end(struct record *r, uint64_t number, int result);

#endif
