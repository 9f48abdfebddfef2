/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ticket.h"

/* One uid may have so many of all tickets. */
#define TICKET_UID_SHARE 4

#define DIGITS "0123456789"

void ticket_book_init(struct ticket_book *book, const char *instance, unsigned int max)
{
	*book = (struct ticket_book){ .max = max };
	snprintf(book->instance, sizeof(book->instance), "%s", instance);
	TAILQ_INIT(&book->tickets);
}

int ticket_issue(struct ticket_book *book, struct ticket *t, uid_t uid, struct ticket **ret_gone)
{
	struct ticket *other, *oldest = NULL, *own = NULL, *gone = NULL;
	unsigned int n = 0;

	TAILQ_FOREACH (other, &book->tickets, entry) {
		if (other->uid == uid)
			n++;
		if (!other->finished)
			continue;
		oldest = oldest ?: other;
		if (other->uid == uid)
			own = own ?: other;
	}
	if (n >= 1 + (book->max - 1) / TICKET_UID_SHARE) {
		if (!own)
			return -EBUSY;
		gone = own;
	} else if (book->n >= book->max) {
		gone = own ?: oldest;
		if (!gone)
			return -EBUSY;
	}
	if (gone)
		ticket_remove(book, gone);

	*t = (struct ticket){ .number = ++book->last, .uid = uid };
	TAILQ_INSERT_TAIL(&book->tickets, t, entry);
	book->n++;
	*ret_gone = gone;
	return 0;
}

void ticket_remove(struct ticket_book *book, struct ticket *t)
{
	if (t->number == 0)
		return;
	TAILQ_REMOVE(&book->tickets, t, entry);
	book->n--;
	t->number = 0;
}

void ticket_format(const struct ticket_book *book, const struct ticket *t, char ret[static TICKET_TEXT_MAX])
{
	snprintf(ret, TICKET_TEXT_MAX, "%s-%" PRIu64, book->instance, t->number);
}

int ticket_parse(const struct ticket_book *book, const char *text, uint64_t *ret_number)
{
	const char *digits;
	uint64_t number = 0;

	if (strspn(text, DIGITS "abcdef") != TICKET_INSTANCE_SIZE || text[TICKET_INSTANCE_SIZE] != '-')
		return -EINVAL;
	digits = text + TICKET_INSTANCE_SIZE + 1;
	if (digits[0] < '1' || digits[0] > '9' || digits[strspn(digits, DIGITS)] != '\0')
		return -EINVAL;
	for (const char *p = digits; *p; p++)
		if (__builtin_mul_overflow(number, 10, &number) ||
		    __builtin_add_overflow(number, (uint64_t)(*p - '0'), &number))
			return -EINVAL;
	if (strncmp(text, book->instance, TICKET_INSTANCE_SIZE) != 0)
		return -ESTALE;
	*ret_number = number;
	return 0;
}

struct ticket *ticket_find(const struct ticket_book *book, uint64_t number)
{
	struct ticket *t;

	TAILQ_FOREACH (t, &book->tickets, entry)
		if (t->number == number)
			return t;
	return NULL;
}
