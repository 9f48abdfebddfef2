/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * state: what is to outlive the boot: the losses of each region, in a file of the state directory
 *
 * Only a child touches that directory, which may be full, frozen or broken. It takes orders one after the other, and
 * ends when the agent has closed its end and every order given has been carried out.
 */
#pragma once

#include <stdint.h>
#include <systemd/sd-id128.h>

#include "region.h"
#include "util.h"

#define STATE_DIR         "/var/lib/pmem-agent"
#define STATE_MAX_RECORDS 256

struct state;

/* The losses of one region: DIR/HASH.loss, native byte order. No region without a loss has one. */
struct state_record {
	char identity[REGION_IDENTITY_MAX];
	uint64_t size;               /* bytes of the region */
	uint64_t loss;               /* number of the newest one */
	uint64_t acknowledged;       /* newest loss acknowledged */
	uint64_t usec, round, epoch; /* as in struct flush_loss */
	int32_t error;
	uint32_t origin;
	uint8_t boot_id[16]; /* of the boot in which it was noticed */
};

enum state_answer_type {
	STATE_RECORD,  /* one that is there */
	STATE_DAMAGED, /* one that is there, and cannot be read */
	STATE_LOADED,  /* those were all; or `error`: they can't be read */
	STATE_SAVED,   /* or `error`: not */
};

struct state_answer {
	enum state_answer_type type;
	int32_t error;              /* errno; 0: none */
	int32_t write_error;        /* STATE_LOADED: why nothing can be saved, as far as that can be told before */
	uint64_t hash;              /* region_identity_hash() of the record's identity */
	struct state_record record; /* STATE_RECORD */
};

/* Starts the child. 0 or a negative errno. */
int state_start(const char *dir, struct state **ret);
struct state *state_free(struct state *s);
DEFINE_CLEANUP(struct state *, state_free)

/* Readable when an answer is there, or when the child has died. */
int state_get_fd(const struct state *s);

/* Orders. 0 or a negative errno; -EAGAIN: it has too many already. */
int state_load(struct state *s);

/*
 * Whatever the file says by then, neither its loss nor its acknowledgement goes back: the child of an agent before us
 * may come late with an older record.
 */
int state_save(struct state *s, const struct state_record *record);

/* 0 with an answer, in the order of the orders; -EAGAIN: none yet; -EPIPE: the child has died. */
int state_next(struct state *s, struct state_answer *ret);
