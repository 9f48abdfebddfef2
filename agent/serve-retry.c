/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serve-retry: which flush a client means that asks once more, since it has no answer
 *
 * The agent remembers flushes by their ids, which are ours: who asks again gets the number of the first time. A client
 * may be connected anew. To take another's flush for its own would call durable what was stored after it, so an id
 * from a connection that has ended counts only if it is long enough that no other program has the same.
 */
#include <errno.h>
#include <string.h>

#include "serve.h"

struct asked {
	uint64_t number;
	struct json_object *id;
	char *arguments;             /* as JSON, without "retry" */
	const struct client *client; /* NULL: it has left */
	TAILQ_ENTRY(asked) entry;
};

static void forget(struct serve *s, struct asked *a)
{
	TAILQ_REMOVE(&s->asked, a, entry);
	s->n_asked--;
	json_object_put(a->id);
	free(a->arguments);
	free(a);
}

void serve_retry_clear(struct serve *s)
{
	struct asked *a;

	while ((a = TAILQ_FIRST(&s->asked)))
		forget(s, a);
}

void serve_retry_leave(struct serve *s, const struct client *client)
{
	struct asked *a;

	TAILQ_FOREACH (a, &s->asked, entry)
		if (a->client == client)
			a->client = NULL;
}

static bool is_unique(struct json_object *id)
{
	return strlen(json_text(id, 0)) >= SERVE_UNIQUE_ID;
}

/* The client's own; else one of clients that have left, if no two of them have had it. */
static struct asked *find(struct serve *s, const struct client *client, struct json_object *id)
{
	struct asked *a, *left = NULL;
	bool unique = is_unique(id);

	TAILQ_FOREACH (a, &s->asked, entry) {
		if (!json_object_equal(a->id, id))
			continue;
		if (a->client == client)
			return a;
		unique &= !left && !a->client;
		left = a;
	}
	return unique ? left : NULL;
}

/* What the command is, however often it comes. NULL: no memory. */
static char *make_text(struct json_object *arguments)
{
	_cleanup_(json_unrefp) struct json_object *copy = json_copy(arguments);

	json_object_object_del(copy, "retry");
	return strdup(json_text(copy, 0));
}

int serve_retry_find(struct client *client, struct json_object *arguments, struct json_object *id, uint64_t *ret_number)
{
	struct asked *a = find(client->serve, client, id);
	_cleanup_free_ char *text = a ? make_text(arguments) : NULL;

	if (!a)
		return -ENOENT;
	if (!text)
		return -ENOMEM;
	if (strcmp(a->arguments, text) != 0)
		return -EINVAL;
	a->client = client;
	*ret_number = a->number;
	return 0;
}

void serve_retry_remember(struct client *client, struct json_object *arguments, struct json_object *id, uint64_t number)
{
	struct serve *s = client->serve;
	struct asked *a;

	/* The newest with an id is what a retry means. */
	while ((a = find(s, client, id)))
		forget(s, a);
	a = calloc(1, sizeof(*a));
	if (!a)
		return;
	a->arguments = arguments ? make_text(arguments) : strdup("{}");
	if (!a->arguments) {
		free(a);
		return;
	}
	a->number = number;
	a->id = json_object_get(id);
	a->client = client;
	if (s->n_asked >= SERVE_MAX_ASKED)
		forget(s, TAILQ_FIRST(&s->asked));
	TAILQ_INSERT_TAIL(&s->asked, a, entry);
	s->n_asked++;
}
