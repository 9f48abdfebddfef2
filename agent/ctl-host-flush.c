/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-host-flush: the verb flush from the host
 *
 * Each target is a command with an id of its own. Where its answer may have been lost, it is given again with that id,
 * so that one which was made already is not made twice.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "answer.h"
#include "ctl-host.h"

#define MAX_TARGETS 64 /* what the agent has wait at once */

struct target {
	struct ctl_result result;
	char *id;
	bool answered;
};

struct flush {
	struct ctl *ctl;
	struct target *targets;
	unsigned int n_targets, n_answered;
	uint64_t until; /* CLOCK_MONOTONIC */
};

static void flush_clear(struct flush *f)
{
	for (unsigned int i = 0; i < f->n_targets; i++) {
		ctl_result_clear(&f->targets[i].result);
		free(f->targets[i].id);
	}
	free(f->targets);
}

static struct json_object *make_arguments(const struct flush *f, const char *name, bool again)
{
	struct json_object *o = json_new_object();
	uint64_t address;
	char *end;

	errno = 0;
	address = strtoull(name, &end, 16);
	if (strncmp(name, "UUID=", 5) == 0)
		json_add(o, "uuid", json_object_new_string(name + 5));
	else if (strncmp(name, "0x", 2) == 0 && *end == '\0' && errno == 0)
		json_add_u64(o, "address", address);
	else
		json_add(o, strchr(name, '/') ? "path" : "region", json_object_new_string(name));
	if (f->ctl->timeout_usec)
		json_add_u64(o, "timeout-usec", f->ctl->timeout_usec);
	if (again)
		json_add_bool(o, "retry", true);
	return o;
}

static void answered(struct flush *f, struct target *t, const char *answer, int exit_status)
{
	ctl_result_set_answer(&t->result, answer, exit_status);
	t->answered = true;
	f->n_answered++;
}

static void fail(struct flush *f, struct target *t, enum pmem_agent_answer answer, const char *message)
{
	const struct answer *a = answer_get(answer);

	ctl_error(t->result.name, "%s", message);
	t->result.message = strdup(message);
	answered(f, t, a->name, a->exit_status);
}

static void fail_all(struct flush *f, enum pmem_agent_answer answer, const char *message)
{
	for (unsigned int i = 0; i < f->n_targets; i++)
		if (!f->targets[i].answered)
			fail(f, &f->targets[i], answer, message);
}

static int send_target(struct flush *f, struct target *t, bool again)
{
	uint64_t protocol = json_get_u64(ctl_host_get_greeting(f->ctl->link), "protocol", 0);

	return ctl_host_send(f->ctl->link, "flush", make_arguments(f, t->result.name, again && protocol >= 2), t->id);
}

static void read_durable(struct flush *f, struct target *t, struct json_object *o)
{
	struct json_object *regions = json_get(o, "regions", json_type_array);
	size_t n = regions ? json_object_array_length(regions) : 0;
	const char *scope = json_get_string(o, "scope", NULL), *basis = json_get_string(o, "basis", NULL);

	for (size_t i = 0; i < n; i++) {
		struct json_object *region = json_object_array_get_idx(regions, i);

		ctl_result_add_epoch(&t->result, json_get_string(region, "region", "?"),
				     json_get_u64(region, "epoch", 0));
	}
	if (n == 0 || !scope || !basis) {
		fail(f, t, PMEM_AGENT_UNKNOWN, "cannot read the agent's answer; is it of another version?");
		return;
	}
	t->result.scope = strdup(scope);
	t->result.basis = strdup(basis);
	t->result.durable_usec = ctl_format("%" PRIu64, json_get_u64(o, "durable-usec", 0));
	answered(f, t, answer_get(PMEM_AGENT_DURABLE)->name, 0);
	if (!f->ctl->quiet && !f->ctl->json)
		ctl_result_print_durable(&t->result);
}

static void take_answer(struct flush *f, struct json_object *o)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	const char *id = ctl_host_get_id(o);
	struct target *t = NULL;

	for (unsigned int i = 0; id && i < f->n_targets; i++)
		if (!f->targets[i].answered && strcmp(f->targets[i].id, id) == 0)
			t = &f->targets[i];
	if (!t)
		return;
	if (json_get(o, "return", json_type_object)) {
		read_durable(f, t, json_get(o, "return", json_type_object));
		return;
	}
	ctl_host_set_error(&error, o);
	t->result.message = strdup(error.message ?: "");
	answered(f, t, json_get_string(json_get(o, "error", json_type_object), "class", "Unknown"),
		 ctl_call_failed(t->result.name, &error));
}

/* We have not read for so long that there was no room for an answer. */
static bool misses_answers(struct json_object *o)
{
	return strcmp(json_get_string(o, "event", ""), "MISSED") == 0 &&
	       json_get_u64(json_get(o, "data", json_type_object), "answers", 0) > 0;
}

/* What is still to be answered: the answer may have been lost. */
static void send_again(struct flush *f)
{
	for (unsigned int i = 0; i < f->n_targets; i++)
		if (!f->targets[i].answered)
			send_target(f, &f->targets[i], true);
}

static void run(struct flush *f)
{
	bool lost = false;

	while (f->n_answered < f->n_targets) {
		_cleanup_(json_unrefp) struct json_object *o = NULL;
		int r = ctl_host_next(f->ctl->link, f->until, &o);

		if (r == -ETIMEDOUT) {
			fail_all(f, PMEM_AGENT_TIMEOUT,
				 "the agent has not answered in time; flush again, or wait for longer");
		} else if (r == -ECONNRESET && f->ctl->retry) {
			lost = true;
		} else if (r < 0) {
			fail_all(f, PMEM_AGENT_UNKNOWN,
				 "the connection to the agent is gone: nobody can tell whether it is durable");
		} else if (misses_answers(o)) {
			send_again(f);
		} else {
			take_answer(f, o);
		}
		if (lost && ctl_host_get_greeting(f->ctl->link)) {
			lost = false;
			send_again(f);
		}
	}
}

/* With --all, each region that a flush of all would take, so that each has its own answer. */
static int choose_targets(struct flush *f, const struct ctl_regions *list, char **arguments, unsigned int n)
{
	unsigned int most = f->ctl->all ? list->n_regions : n;

	f->targets = calloc(most + 1, sizeof(*f->targets));
	if (!f->targets)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; i < most; i++) {
		struct target *t = &f->targets[f->n_targets];

		if (f->ctl->all && !list->regions[i].asynchronous)
			continue;
		f->n_targets++;
		t->result.name = f->ctl->all ? list->regions[i].name : arguments[i];
		t->id = ctl_host_new_id(f->ctl->link);
		if (!t->id)
			return CTL_EXIT_FAILURE;
	}
	return 0;
}

static int print(const struct flush *f)
{
	_cleanup_free_ const struct ctl_result **results = calloc(f->n_targets + 1, sizeof(*results));

	for (unsigned int i = 0; results && i < f->n_targets; i++)
		results[i] = &f->targets[i].result;
	return results ? ctl_print_results(results, f->n_targets) : CTL_EXIT_FAILURE;
}

int ctl_host_flush(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_(flush_clear) struct flush f = { .ctl = c, .until = UINT64_MAX };
	int r = ctl_host_get_regions(c, &list);

	if (r != 0)
		return r;
	if (c->all ? n > 0 : n == 0 || n > MAX_TARGETS) {
		ctl_error(NULL, "flush takes up to %d paths and regions, or --all; see \"pmemctl --help\"",
			  MAX_TARGETS);
		return CTL_EXIT_USAGE;
	}
	r = choose_targets(&f, &list, arguments, n);
	if (r != 0)
		return r;
	if (f.n_targets == 0 && !c->json) {
		if (!c->quiet)
			printf("No region is asynchronous: there is nothing to flush.\n");
		return 0;
	}
	/* The agent's own answer comes first. */
	if (c->timeout_usec)
		f.until = now_usec(CLOCK_MONOTONIC) + c->timeout_usec + USEC_PER_SEC;
	for (unsigned int i = 0; i < f.n_targets; i++)
		if (send_target(&f, &f.targets[i], false) < 0 && !c->retry)
			fail(&f, &f.targets[i], PMEM_AGENT_UNKNOWN, "the connection to the agent is gone");
	run(&f);
	for (unsigned int i = 0; i < f.n_targets; i++)
		r = ctl_worse(r, f.targets[i].result.exit_status);
	return c->json ? ctl_worse(r, print(&f)) : r;
}
