/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus-client: who has calls that wait, whose user they are, and what share that user has of us
 */
#include <stdio.h>
#include <string.h>

#include "bus-private.h"
#include "log.h"

#define BUS_MAX_RESTING_CLIENTS 64
#define BUS_UID_SHARE           4

struct bus_client *bus_client_free(struct bus_client *c)
{
	struct bus_call *call;

	while ((call = TAILQ_FIRST(&c->calls)))
		bus_call_free(call);
	TAILQ_REMOVE(&c->bus->clients, c, entry);
	sd_bus_slot_unref(c->match);
	sd_bus_slot_unref(c->query);
	free(c->sender);
	free(c);
	return NULL;
}

static int on_name_owner_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	bus_client_free(userdata);
	return 0;
}

/*
 * The bus lets each connection have so many matches (512 with dbus-daemon) and no more. That this one was refused is no
 * reason to part with the bus, as sd-bus does where nobody looks.
 */
static int on_match_added(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct bus_client *c = userdata;

	if (sd_bus_message_is_method_error(reply, NULL))
		c->match = sd_bus_slot_unref(c->match);
	return 1;
}

struct bus_client *bus_client_find(struct bus *b, const char *sender)
{
	struct bus_client *c;

	TAILQ_FOREACH (c, &b->clients, entry)
		if (strcmp(c->sender, sender) == 0)
			return c;
	return NULL;
}

/*
 * Who left before the bus knows that we want to know is not noticed, nor who leaves where the bus has no room for the
 * match: those calls run to their end, and answer nobody.
 */
int bus_client_new(struct bus *b, const char *sender, struct bus_client **ret)
{
	char match[256];
	struct bus_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->bus = b;
	TAILQ_INIT(&c->calls);
	TAILQ_INSERT_TAIL(&b->clients, c, entry);
	c->sender = strdup(sender);
	snprintf(match, sizeof(match),
		 "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',"
		 "interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='%.64s'",
		 sender);
	r = c->sender ? sd_bus_add_match_async(b->bus, &c->match, match, on_name_owner_changed, on_match_added, c)
		      : -ENOMEM;
	/* sd-bus is left with a match that it aborts of at the next message (252). */
	if (r == -ENOMEM && c->sender)
		log_end_without_memory("what the bus is to tell of a caller");
	if (r < 0) {
		bus_client_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

/* `c` has no calls any more. Of such clients those are kept who had calls last, so that their uid is known next time.
 */
void bus_client_rest(struct bus_client *c)
{
	struct bus *b = c->bus;
	struct bus_client *oldest = NULL, *other;
	unsigned int n = 0;

	if (!c->known || !c->match) {
		bus_client_free(c);
		return;
	}
	TAILQ_REMOVE(&b->clients, c, entry);
	TAILQ_INSERT_TAIL(&b->clients, c, entry);
	TAILQ_FOREACH (other, &b->clients, entry) {
		if (other->n_calls > 0)
			continue;
		n++;
		oldest = oldest ?: other;
	}
	if (n > BUS_MAX_RESTING_CLIENTS)
		bus_client_free(oldest);
}

/* ---- shares ---- */

unsigned int bus_share(unsigned int all)
{
	return 1 + (all - 1) / BUS_UID_SHARE;
}

/* That are known to be theirs. */
unsigned int bus_count_calls(const struct bus *b, uid_t uid)
{
	const struct bus_client *c;
	unsigned int n = 0;

	TAILQ_FOREACH (c, &b->clients, entry)
		if (c->known && c->uid == uid)
			n += c->n_calls;
	return n;
}

unsigned int bus_count_calls_of_others(const struct bus *b)
{
	const struct bus_client *c;
	unsigned int n = 0;

	TAILQ_FOREACH (c, &b->clients, entry)
		if (c->known && !share_is_kept_for(c->uid))
			n += c->n_calls;
	return n;
}

void bus_count_checks(const struct bus *b, uid_t uid, unsigned int *ret_all, unsigned int *ret_of_uid)
{
	const struct bus_client *c;
	const struct bus_call *call;

	*ret_all = *ret_of_uid = 0;
	TAILQ_FOREACH (c, &b->clients, entry)
		TAILQ_FOREACH (call, &c->calls, entry) {
			*ret_all += call->polkit != NULL;
			*ret_of_uid += call->polkit && c->uid == uid;
		}
}
