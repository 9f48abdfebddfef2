/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ticket: names for flushes that nobody waits for yet; whose they are, and how many are kept
 *
 * A ticket's text is the agent's instance and a number that counts from 1, so that it never stands for another flush,
 * neither of this agent nor of the next. Pure: no system call, no allocation.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#define TICKET_INSTANCE_SIZE 32 /* hexadecimal digits */
#define TICKET_TEXT_MAX      (TICKET_INSTANCE_SIZE + 22)

struct ticket {
	uint64_t number; /* 0: not given out */
	uid_t uid;
	bool finished; /* the flush has been answered */
	TAILQ_ENTRY(ticket) entry;
};

TAILQ_HEAD(ticket_list, ticket);

struct ticket_book {
	char instance[TICKET_INSTANCE_SIZE + 1];
	struct ticket_list tickets; /* by number */
	uint64_t last;              /* number given out */
	unsigned int n, max;
};

/* `max`: tickets in all; one uid gets a quarter of them at most. */
void ticket_book_init(struct ticket_book *book, const char *instance, unsigned int max);

/*
 * Gives `t` a number. Where there is no room, a finished ticket goes, in *ret_gone (else NULL), which is the caller's
 * then: the oldest of this uid, or, if it has none and all tickets are taken, the oldest of all. 0, or -EBUSY: all are
 * unfinished.
 */
int ticket_issue(struct ticket_book *book, struct ticket *t, uid_t uid, struct ticket **ret_gone);

/* Off the book; one that was never on it may be given too. */
void ticket_remove(struct ticket_book *book, struct ticket *t);

void ticket_format(const struct ticket_book *book, const struct ticket *t, char ret[static TICKET_TEXT_MAX]);

/* 0 with its number; -EINVAL: no ticket's text; -ESTALE: one of another instance. */
int ticket_parse(const struct ticket_book *book, const char *text, uint64_t *ret_number);

/* NULL: not there any more, or never given out. */
struct ticket *ticket_find(const struct ticket_book *book, uint64_t number);
