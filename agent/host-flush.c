/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host-flush: the host's command flush: a request for each of its targets, and what became of it
 *
 * A host that has got no answer sends the command again, and says that it does. Then the answer is looked up by its id,
 * so that however often it comes, one flush is made. That needs to be remembered, as much as there is room for.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "host-private.h"

#define TIMEOUT_MAX_USEC (24 * 3600 * USEC_PER_SEC)

struct host_part {
	struct host_flush *flush;
	struct request *request; /* NULL: answered */
};

/* Answered when all of its parts are, or one fails; after that it may be remembered. */
struct host_flush {
	struct host *host;
	struct json_object *id;
	char *arguments;             /* as JSON, without "retry"; NULL: without id, so it isn't remembered */
	struct json_object *regions; /* what has been confirmed so far */
	const char *scope, *basis;
	uint64_t durable_usec; /* the earliest */
	TAILQ_ENTRY(host_flush) entry;

	const char *key; /* "return" or "error"; NULL: not answered yet */
	struct json_object *answer;

	unsigned int n_parts, n_waiting;
	struct host_part parts[];
};

static void command_free(struct host_flush *f)
{
	for (unsigned int i = 0; i < f->n_parts; i++)
		request_cancel(f->parts[i].request);
	json_object_put(f->id);
	json_object_put(f->regions);
	json_object_put(f->answer);
	free(f->arguments);
	free(f);
}

static void take_off(struct host_flush *f)
{
	struct host *h = f->host;

	if (f->key) {
		TAILQ_REMOVE(&h->remembered, f, entry);
		h->n_remembered--;
	} else {
		TAILQ_REMOVE(&h->flushes, f, entry);
		h->n_flushes--;
	}
}

static void forget(struct host_flush *f)
{
	take_off(f);
	command_free(f);
}

/* Takes `answer` over, and `f`. `lasting`: asked again, it would be the same. */
static void end(struct host_flush *f, const char *key, struct json_object *answer, bool lasting)
{
	struct host *h = f->host;
	struct host_flush *oldest;

	host_send_answer(h, key, json_object_get(answer), f->id);
	take_off(f);
	f->key = key;
	f->answer = answer;
	if (!lasting || !f->arguments || strlen(json_text(answer, 0)) > HOST_MAX_ANSWER) {
		command_free(f);
		return;
	}
	for (unsigned int i = 0; i < f->n_parts; i++) {
		request_cancel(f->parts[i].request);
		f->parts[i].request = NULL;
	}
	oldest = h->n_remembered >= HOST_MAX_REMEMBERED ? TAILQ_FIRST(&h->remembered) : NULL;
	if (oldest)
		forget(oldest);
	TAILQ_INSERT_TAIL(&h->remembered, f, entry);
	h->n_remembered++;
}

static void end_refused(struct host_flush *f, enum pmem_agent_answer answer, const char *detail)
{
	const struct answer *a = answer_get(answer);
	struct json_object *error = json_new_object();

	json_add_string(error, "class", a->name);
	json_add_string(error, "desc", detail[0] ? detail : a->meaning);
	end(f, "error", error, answer != PMEM_AGENT_TIMEOUT && answer != PMEM_AGENT_BUSY);
}

static void end_durable(struct host_flush *f)
{
	struct json_object *o = json_new_object();

	json_add(o, "regions", json_object_get(f->regions));
	json_add_string(o, "scope", f->scope);
	json_add_string(o, "basis", f->basis);
	json_add_u64(o, "durable-usec", f->durable_usec);
	end(f, "return", o, true);
}

void host_forget_flushes(struct host *h, const char *detail)
{
	struct host_flush *f;

	while ((f = TAILQ_FIRST(&h->flushes))) {
		if (detail)
			host_send_refusal(h, PMEM_AGENT_UNKNOWN, detail, f->id);
		forget(f);
	}
	while ((f = TAILQ_FIRST(&h->remembered)))
		forget(f);
}

static void on_flushed(const struct request_result *result, void *userdata)
{
	struct host_part *part = userdata;
	struct host_flush *f = part->flush;

	part->request = NULL;
	f->n_waiting--;
	if (result->answer != PMEM_AGENT_DURABLE) {
		end_refused(f, result->answer, result->detail);
		return;
	}

	for (unsigned int i = 0; i < result->n_epochs; i++) {
		struct json_object *o = json_name_region(result->epochs[i].region);

		json_add_u64(o, "epoch", result->epochs[i].epoch);
		json_append(f->regions, o);
	}
	f->scope = flush_scope_to_string(result->scope);
	f->basis = manager_weaker_basis(result->basis, f->basis);
	if (f->durable_usec == 0 || result->durable_usec < f->durable_usec)
		f->durable_usec = result->durable_usec;
	if (f->n_waiting == 0)
		end_durable(f);
}

/* ---- what it is to be ---- */

struct flush_arguments {
	struct manager_region *region; /* NULL: none is named */
	const char *path, *uuid;
	uint64_t timeout_usec; /* 0: none */
	bool retry;
};

/* 0, -EINVAL, or -ENOENT: no such region. */
static int read_arguments(struct host *h, struct json_object *arguments, struct flush_arguments *ret)
{
	static const char *const targets[] = { "region", "address", "path", "uuid" };
	struct json_object *value;
	unsigned int n_targets = 0, n_known = 0;

	for (size_t i = 0; i < ARRAY_SIZE(targets); i++)
		n_targets += json_object_object_get_ex(arguments, targets[i], NULL);
	if (n_targets > 1)
		return -EINVAL;
	if (json_object_object_get_ex(arguments, "path", &value))
		ret->path = json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
	if (json_object_object_get_ex(arguments, "uuid", &value))
		ret->uuid = json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
	if (json_object_object_get_ex(arguments, "timeout-usec", &value)) {
		if (!host_read_u64(value, &ret->timeout_usec) || ret->timeout_usec == 0 ||
		    ret->timeout_usec > TIMEOUT_MAX_USEC)
			return -EINVAL;
		n_known++;
	}
	if (json_object_object_get_ex(arguments, "retry", &value)) {
		if (!json_object_is_type(value, json_type_boolean))
			return -EINVAL;
		ret->retry = json_object_get_boolean(value);
		n_known++;
	}
	if (json_object_object_length(arguments) != (int)(n_targets + n_known) ||
	    (ret->path && (!ret->path[0] || strlen(ret->path) >= PATH_MAX)) ||
	    (ret->uuid && (!ret->uuid[0] || strlen(ret->uuid) > HOST_MAX_UUID)))
		return -EINVAL;
	return host_find_region(h, arguments, &ret->region);
}

static int add_part(struct host_flush *f, struct manager_region *mr, const struct flush_arguments *a,
		    char detail[static MOUNT_DETAIL_MAX])
{
	const struct flush_caller caller = {
		.uid = 0,
		.deadline_usec = a->timeout_usec ? now_usec(CLOCK_MONOTONIC) + a->timeout_usec : 0,
	};
	struct host_part *part = &f->parts[f->n_parts];
	struct manager *m = f->host->manager;
	char path[PATH_MAX];
	int r;

	part->flush = f;
	r = a->uuid ? mount_find_uuid(a->uuid, path, sizeof(path), detail) : 0;
	if (r != 0)
		return r;
	if (a->path || a->uuid)
		r = manager_flush_path(m, a->path ?: path, &caller, on_flushed, part, &part->request, detail);
	else
		r = manager_flush_region(m, mr, &caller, on_flushed, part, &part->request, detail);
	if (r != 0)
		return r;
	f->n_parts++;
	f->n_waiting++;
	return 0;
}

static int add_all(struct host_flush *f, const struct flush_arguments *a, char detail[static MOUNT_DETAIL_MAX])
{
	for (struct manager_region *mr = NULL; (mr = manager_next_region(f->host->manager, mr));) {
		int r;

		if (!manager_region_get(mr)->asynchronous)
			continue;
		r = add_part(f, mr, a, detail);
		if (r != 0)
			return r;
	}
	if (f->n_parts > 0)
		return 0;
	snprintf(detail, MOUNT_DETAIL_MAX, "there is no asynchronous region");
	return PMEM_AGENT_NOT_FOUND;
}

static unsigned int count_regions(const struct manager *m)
{
	unsigned int n = 0;

	for (struct manager_region *mr = NULL; (mr = manager_next_region(m, mr));)
		n++;
	return n;
}

static struct host_flush *command_new(struct host *h, unsigned int n_parts, struct json_object *id,
				      const char *arguments)
{
	struct host_flush *f = calloc(1, sizeof(*f) + n_parts * sizeof(f->parts[0]));

	if (!f)
		return NULL;
	f->host = h;
	f->id = json_object_get(id);
	f->arguments = id ? strdup(arguments) : NULL;
	f->regions = json_new_array();
	TAILQ_INSERT_TAIL(&h->flushes, f, entry);
	h->n_flushes++;
	return f;
}

static struct host_flush *find_in(struct host_flush_list *list, struct json_object *id)
{
	struct host_flush *f;

	TAILQ_FOREACH_REVERSE(f, list, host_flush_list, entry)
	if (f->arguments && json_object_equal(f->id, id))
		return f;
	return NULL;
}

/* Whether that was all: the command has been given before. */
static bool answer_again(struct host *h, struct json_object *id, const char *arguments)
{
	struct host_flush *f = find_in(&h->flushes, id) ?: find_in(&h->remembered, id);
	struct json_object *again;

	if (!f)
		return false;
	if (strcmp(f->arguments, arguments) != 0) {
		host_send_error(h, "GenericError", "a command with other arguments had this id", id);
		return true;
	}
	if (!f->key)
		return true; /* one answer will do for both */
	again = json_copy(f->answer);
	if (strcmp(f->key, "return") == 0)
		json_add_bool(again, "repeated", true);
	host_send_answer(h, f->key, again, id);
	return true;
}

/* Only the newest command with an id is what a retry means. */
static void disown(struct host *h, struct json_object *id)
{
	struct host_flush *f;

	while ((f = find_in(&h->remembered, id)))
		forget(f);
	while ((f = find_in(&h->flushes, id))) {
		free(f->arguments);
		f->arguments = NULL;
	}
}

static int begin(struct host *h, const struct flush_arguments *a, struct json_object *id, const char *text)
{
	bool one = a->region || a->path || a->uuid;
	char detail[MOUNT_DETAIL_MAX] = "";
	struct host_flush *f;
	int r;

	if (h->n_flushes >= HOST_MAX_FLUSHES) {
		host_send_refusal(h, PMEM_AGENT_BUSY, "too many flush commands wait for their answer", id);
		return 0;
	}
	if (id)
		disown(h, id);
	f = command_new(h, one ? 1 : count_regions(h->manager), id, text);
	if (!f)
		return -ENOMEM;
	r = one ? add_part(f, a->region, a, detail) : add_all(f, a, detail);
	if (r > 0)
		end_refused(f, (enum pmem_agent_answer)r, detail);
	else if (r < 0)
		forget(f);
	return r < 0 ? r : 0;
}

int host_command_flush(struct host *h, struct json_object *arguments, struct json_object *id)
{
	struct flush_arguments a = {};
	const char *text;
	int r = read_arguments(h, arguments, &a);

	if (r == -ENOENT) {
		host_send_refusal(h, PMEM_AGENT_NOT_FOUND, "no such region", id);
		return 0;
	}
	if (r < 0 || (a.retry && !id))
		return -EINVAL;
	/* What the command is, however often it comes. */
	json_object_object_del(arguments, "retry");
	text = json_text(arguments, 0);
	if (a.retry && answer_again(h, id, text))
		return 0;
	return begin(h, &a, id, text);
}
