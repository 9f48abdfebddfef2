/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serve-backing: what is behind the regions of the guest: told to the agent, and flushed for it
 *
 * An error of a flush was reported to our descriptor, and will not be again: it is kept until the agent has answered
 * that it knows.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "region.h"
#include "serve.h"
#include "text.h"

static struct serve_backing *find(struct serve *s, uint64_t address)
{
	struct serve_backing *sb;

	TAILQ_FOREACH (sb, &s->backings, entry)
		if (!sb->gone && backing_get_info(sb->backing)->address == address)
			return sb;
	return NULL;
}

/* ---- telling the agent what it is ---- */

static void add_answer(struct json_object *o, const char *key, enum backing_answer answer)
{
	if (answer != BACKING_UNSAID)
		json_add_bool(o, key, answer == BACKING_YES);
}

static struct json_object *describe(const struct serve_backing *sb)
{
	const struct backing_info *info = backing_get_info(sb->backing);
	struct json_object *o = json_new_object();
	enum backing_state state = backing_get_state(sb->backing);
	bool file = info->path[0] && !backing_is_memory(sb->backing);

	json_add_u64(o, "address", info->address);
	json_add_string(o, "type", file ? "file" : "ram");
	/* Of a file that can't be looked at nobody can say that stores reach it. */
	add_answer(o, "share", state == BACKING_REFUSED && info->share == BACKING_YES ? BACKING_UNSAID : info->share);
	add_answer(o, "pmem", info->pmem);
	add_answer(o, "read-only", info->readonly);
	json_add_bool(o, "served", state == BACKING_READY);
	return o;
}

static void tell(struct serve_backing *sb)
{
	struct serve *s = sb->serve;
	struct call *call;

	if (s->protocol < SERVE_PROTOCOL || sb->gone || backing_get_state(sb->backing) == BACKING_OPENING)
		return;
	if (sb->telling) {
		sb->tell_again = true;
		return;
	}
	call = serve_call(s, CALL_SET_BACKING, "set-backing", describe(sb));
	if (!call)
		return;
	call->backing = sb;
	sb->telling = true;
	sb->tell_again = false;
}

/* `number` 0: it is an error of before. */
static void send_flushed(struct serve_backing *sb, uint64_t number, int error, const char *why)
{
	struct json_object *arguments = json_new_object();
	struct call *call;
	char text[129];

	json_add_u64(arguments, "address", backing_get_info(sb->backing)->address);
	json_add_u64(arguments, "number", number);
	json_add(arguments, "errno", json_object_new_int(error));
	if (why) {
		snprintf(text, sizeof(text), "%s", why);
		json_add_string(arguments, "desc", text);
	}
	call = serve_call(sb->serve, CALL_FLUSHED, "flushed", arguments);
	if (!call || error == 0 || error == EOPNOTSUPP)
		return;
	call->backing = sb;
	call->error = error;
	sb->n_errors++;
}

static void tell_kept(struct serve_backing *sb)
{
	if (sb->kept_errno != 0 && sb->n_errors == 0 && sb->serve->protocol >= SERVE_PROTOCOL)
		send_flushed(sb, 0, sb->kept_errno, "an error of before");
}

void serve_backings_tell(struct serve *s)
{
	struct serve_backing *sb;

	TAILQ_FOREACH (sb, &s->backings, entry) {
		tell_kept(sb);
		tell(sb);
	}
}

void serve_backings_tell_one(struct serve *s, uint64_t address)
{
	struct serve_backing *sb = find(s, address);

	if (!sb)
		return;
	tell_kept(sb);
	tell(sb);
}

void serve_backings_forget(struct serve *s)
{
	struct serve_backing *sb;

	TAILQ_FOREACH (sb, &s->backings, entry) {
		sb->telling = sb->tell_again = false;
		sb->n_errors = 0;
	}
}

void serve_backings_answered(struct serve *s, struct call *call, bool error)
{
	struct serve_backing *sb = call->backing;

	if (!sb)
		return;
	if (call->kind == CALL_FLUSHED) {
		sb->n_errors--;
		if (!error && sb->n_errors == 0) {
			sb->kept_errno = 0;
			backing_forget(sb->backing);
		}
		if (sb->gone && sb->kept_errno == 0)
			serve_backing_free(s, sb);
		return;
	}
	sb->telling = false;
	if (sb->tell_again)
		tell(sb);
}

/* ---- flushing it for the agent ---- */

/* The agent gets an answer in any case: 95 says that nothing was flushed and nothing is known to be lost. */
static void refuse_unknown(struct serve *s, struct json_object *data)
{
	struct json_object *arguments = json_new_object(), *address = json_get(data, "address", json_type_int);

	if (address)
		json_add(arguments, "address", json_object_get(address));
	else
		json_add(arguments, "region", json_object_new_string(json_get_string(data, "region", "")));
	json_add_u64(arguments, "number", json_get_u64(data, "number", 0));
	json_add(arguments, "errno", json_object_new_int(EOPNOTSUPP));
	json_add_string(arguments, "desc", "the host knows of no such backing");
	serve_call(s, CALL_FLUSHED, "flushed", arguments);
}

void serve_backings_wanted(struct serve *s, struct json_object *data)
{
	struct serve_backing *sb = find(s, json_get_u64(data, "address", UINT64_MAX));
	uint64_t number = json_get_u64(data, "number", 0);
	unsigned int i = 0;
	int r;

	if (!sb) {
		refuse_unknown(s, data);
		return;
	}
	while (i < SERVE_MAX_WANTED && sb->wanted[i].used)
		i++;
	r = i == SERVE_MAX_WANTED ? -EBUSY : backing_flush(sb->backing, i);
	if (r < 0) {
		send_flushed(sb, number, EOPNOTSUPP,
			     r == -EBUSY ? "too many are under way" : backing_get_problem(sb->backing));
		return;
	}
	sb->wanted[i] = (struct wanted){ .used = true, .connection = s->instances, .number = number };
}

static void on_flushed(struct backing *b, uint64_t i, int error, uint64_t usec, void *userdata)
{
	struct serve_backing *sb = userdata;
	struct serve *s = sb->serve;
	bool current = sb->wanted[i].connection == s->instances;

	if (backing_is_unkept(b) && !sb->unkept)
		serve_log(s, LOG_WARNING, "%s can't be written: if a flush is cut short, its error is known to nobody",
			  backing_get_info(b)->state);
	sb->unkept = backing_is_unkept(b);

	sb->wanted[i].used = false;
	if (error != 0 && error != EOPNOTSUPP) {
		sb->kept_errno = error;
		serve_log(s, LOG_ERR, "%s: the flush has failed: %s; the guest has lost stores",
			  backing_get_info(b)->path, strerrordesc_np(error));
	}
	if (current)
		send_flushed(sb, sb->wanted[i].number, error, error == EOPNOTSUPP ? backing_get_problem(b) : NULL);
	else
		tell_kept(sb);
}

/* ---- what there is ---- */

static void on_state(struct backing *b, void *userdata)
{
	struct serve_backing *sb = userdata;
	const struct backing_info *info = backing_get_info(b);

	if (backing_get_state(b) != BACKING_READY && sb->quiet)
		;
	else if (backing_get_state(b) != BACKING_READY)
		serve_log(sb->serve, LOG_WARNING, "%s at 0x%" PRIx64 " can't be flushed for the guest: %s",
			  info->path[0] ? info->path : "memory", info->address, backing_get_problem(b));
	else if (!backing_is_verified(b))
		serve_log(sb->serve, LOG_NOTICE,
			  "%s at 0x%" PRIx64 ": whether the virtual machine has this very file open can't be seen",
			  info->path, info->address);
	if (backing_get_kept(b) != 0 && sb->kept_errno == 0) {
		sb->kept_errno = backing_get_kept(b);
		serve_log(sb->serve, LOG_WARNING,
			  "%s: a flush has failed before this start, which the guest may not know", info->path);
	}
	tell_kept(sb);
	tell(sb);
}

static const struct backing_callbacks callbacks = { .state = on_state, .flushed = on_flushed };

int serve_backing_add(struct serve *s, const struct backing_info *info)
{
	struct backing_info ours = *info;
	struct serve_backing *sb;
	unsigned int n = 0;
	int r;

	TAILQ_FOREACH (sb, &s->backings, entry)
		n++;
	sb = n < 2 * SERVE_MAX_BACKINGS ? calloc(1, sizeof(*sb)) : NULL;
	if (!sb)
		return -ENOMEM;
	sb->serve = s;
	sb->connection = s->connections;
	if (s->state)
		snprintf(ours.state, sizeof(ours.state), "%.*s-%016" PRIx64, PATH_MAX - 32, s->state,
			 region_identity_hash(info->path));
	r = backing_new(s->event, &ours, &callbacks, sb, &sb->backing);
	if (r < 0) {
		free(sb);
		return r;
	}
	TAILQ_INSERT_TAIL(&s->backings, sb, entry);
	return 0;
}

void serve_backing_free(struct serve *s, struct serve_backing *sb)
{
	struct call *call;

	TAILQ_FOREACH (call, &s->calls, entry)
		if (call->backing == sb)
			call->backing = NULL;
	TAILQ_REMOVE(&s->backings, sb, entry);
	backing_free(sb->backing);
	free(sb);
}

/* The descriptor that has seen all since then is kept as long as nothing has changed. */
static bool is_same(const struct serve_backing *sb, const struct backing_info *info)
{
	const struct backing_info *ours = backing_get_info(sb->backing);

	return !sb->gone && backing_get_state(sb->backing) != BACKING_REFUSED && ours->address == info->address &&
	       ours->size == info->size && ours->pid == info->pid && ours->share == info->share &&
	       ours->pmem == info->pmem && ours->readonly == info->readonly && strcmp(ours->path, info->path) == 0;
}

/* An error that the agent does not know yet outlives its backing. */
static void drop(struct serve *s, struct serve_backing *sb)
{
	bool waiting = false;

	for (unsigned int i = 0; i < SERVE_MAX_WANTED; i++)
		waiting |= sb->wanted[i].used;
	sb->gone = true;
	if (sb->kept_errno == 0 && !waiting)
		serve_backing_free(s, sb);
}

void serve_backings_found(const struct backing_info *infos, unsigned int n, void *userdata)
{
	struct serve *s = userdata;
	struct serve_backing *sb, *next;

	for (sb = TAILQ_FIRST(&s->backings); sb; sb = next) {
		bool found = false;

		next = TAILQ_NEXT(sb, entry);
		for (unsigned int i = 0; i < n; i++)
			found |= is_same(sb, &infos[i]);
		if (!found)
			drop(s, sb);
	}
	for (unsigned int i = 0; i < n; i++) {
		bool known = false;

		TAILQ_FOREACH (sb, &s->backings, entry)
			known |= is_same(sb, &infos[i]);
		if (!known && serve_backing_add(s, &infos[i]) < 0)
			serve_log(s, LOG_ERR, "%s: no process can be had to flush it", infos[i].path);
	}
}

/* As long as the virtual machine runs it has the file that was replaced open, if nobody can see what it has. */
static bool may_be_another_machines(const struct serve_backing *sb)
{
	return backing_is_replaced(sb->backing) && backing_get_info(sb->backing)->pid == 0 &&
	       sb->connection == sb->serve->connections;
}

void serve_backings_retry(struct serve *s)
{
	struct serve_backing *sb, *next, *again;

	for (sb = TAILQ_FIRST(&s->backings); sb; sb = next) {
		next = TAILQ_NEXT(sb, entry);
		if (sb->gone || sb->n_errors > 0 || backing_get_state(sb->backing) != BACKING_REFUSED ||
		    may_be_another_machines(sb) || serve_backing_add(s, backing_get_info(sb->backing)) < 0)
			continue;
		/* It is the last one now. */
		again = TAILQ_LAST(&s->backings, serve_backing_list);
		again->quiet = true;
		again->kept_errno = sb->kept_errno;
		sb->kept_errno = 0;
		drop(s, sb);
	}
}

void serve_backings_status(struct serve *s, char *text, size_t size)
{
	unsigned int n = 0, ready = 0;
	struct serve_backing *sb;
	uint64_t flushes = 0, usec, all_usec = 0;

	TAILQ_FOREACH (sb, &s->backings, entry) {
		n++;
		ready += backing_get_state(sb->backing) == BACKING_READY;
		flushes += backing_get_flushes(sb->backing, &usec);
		all_usec += usec;
	}
	snprintf(text, size, "%u of %u backings served, %" PRIu64 " flushes, %" PRIu64 " us each", ready, n, flushes,
		 flushes ? all_usec / flushes : 0);
}
