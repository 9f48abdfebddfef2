/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-flush: the verbs flush and wait
 *
 * Every target is tried, so many at a time. What the agent refuses because it isn't persistent memory is synced here
 * in the end, where --fallback asks for it.
 */
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "answer.h"
#include "bus.h"
#include "ctl.h"

#define CTL_MAX_IN_FLIGHT 64
#define CTL_RESULT_TYPE   "a(ot)ssst"

struct item {
	struct flush_run *run;
	struct ctl_result result; /* its name: a path, a region or a ticket */
	const char *region;       /* path of its object; NULL: the name is a path */
	int fd;                   /* kept for the fallback, else -1 */
	bool fall_back;
};

struct flush_run {
	struct ctl *ctl;
	bool tickets; /* what is waited for has been submitted before */
	sd_event *event;
	sd_event_source *progress_source;
	struct item *targets;
	unsigned int n_targets, n_begun, n_answered;
	uint64_t begun_usec; /* CLOCK_MONOTONIC */
	bool progress_shown;
};

/* ---- progress ---- */

static void hide_progress(struct flush_run *run)
{
	if (run->progress_shown)
		fputs("\r\033[K", stderr);
	run->progress_shown = false;
}

static int on_second(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct flush_run *run = userdata;
	uint64_t elapsed = (now_usec(CLOCK_MONOTONIC) - run->begun_usec) / USEC_PER_SEC;

	fprintf(stderr, "\r\033[Kwaiting for the host: %" PRIu64 " s", elapsed);
	if (run->n_targets > 1)
		fprintf(stderr, ", %u of %u answered", run->n_answered, run->n_targets);
	fflush(stderr);
	run->progress_shown = true;
	sd_event_source_set_time_relative(s, USEC_PER_SEC);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static int start_progress(struct flush_run *run)
{
	run->begun_usec = now_usec(CLOCK_MONOTONIC);
	if (run->ctl->quiet || !isatty(STDERR_FILENO))
		return 0;
	return sd_event_add_time_relative(run->event, &run->progress_source, CLOCK_MONOTONIC, USEC_PER_SEC, 0,
					  on_second, run);
}

/* ---- answers ---- */

/* Neither the agent's answer nor a failure of the call: nothing was asked of the agent. */
static void fail(struct item *t, int exit_status, const char *answer, const char *message)
{
	hide_progress(t->run);
	ctl_error(t->result.name, "%s", message);
	t->result.message = strdup(message);
	ctl_result_set_answer(&t->result, answer, exit_status);
}

static int read_epochs(struct item *t, sd_bus_message *m)
{
	uint64_t epoch;
	const char *path;
	int r = sd_bus_message_enter_container(m, 'a', "(ot)");

	while (r >= 0 && (r = sd_bus_message_read(m, "(ot)", &path, &epoch)) > 0) {
		_cleanup_free_ char *name = NULL;

		r = sd_bus_path_decode(path, BUS_PATH "/region", &name);
		if (r >= 0)
			r = ctl_result_add_epoch(&t->result, name ?: path, epoch);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int read_durable(struct item *t, sd_bus_message *reply)
{
	const char *scope, *basis;
	uint64_t usec;
	int r = read_epochs(t, reply);

	if (r >= 0)
		r = sd_bus_message_read(reply, "sst", &scope, &basis, &usec);
	if (r < 0)
		return r;
	t->result.scope = strdup(scope);
	t->result.basis = strdup(basis);
	t->result.durable_usec = ctl_format("%" PRIu64, usec);
	ctl_result_set_answer(&t->result, answer_get(PMEM_AGENT_DURABLE)->name, 0);
	return 0;
}

/* A machine without any region has nothing that the agent would know better. */
static bool machine_has_regions(void)
{
	glob_t found = { 0 };
	bool any = glob("/sys/bus/nd/devices/region*", 0, NULL, &found) != GLOB_NOMATCH;

	globfree(&found);
	return any;
}

/* Whether anybody is there to be asked; who isn't, isn't missed on a machine without regions. */
static bool agent_answers(struct ctl *c)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

	return sd_bus_open_system(&c->bus) >= 0 &&
	       (sd_bus_call_method(c->bus, BUS_NAME, BUS_PATH, "org.freedesktop.DBus.Peer", "Ping", &error, NULL,
				   NULL) >= 0 ||
		!ctl_agent_is_absent(&error));
}

/* Answers after which sync(2) is right: the agent has nothing to say about the target, or nothing to do. */
static bool may_fall_back(const struct item *t, const sd_bus_error *error)
{
	if (!t->run->ctl->fallback || t->fd < 0)
		return false;
	switch (answer_from_dbus_error(error->name)) {
	case PMEM_AGENT_ORDINARY:
	case PMEM_AGENT_SYNCHRONOUS:
	case PMEM_AGENT_FILESYSTEM:
		return true;
	default:
		return false;
	}
}

static void read_error(struct item *t, const sd_bus_error *error)
{
	const char *name = error->name;

	if (may_fall_back(t, error)) {
		t->fall_back = true;
		return;
	}
	t->result.message = strdup(error->message ?: "");
	if (strncmp(name, ANSWER_ERROR_PREFIX, strlen(ANSWER_ERROR_PREFIX)) == 0)
		name += strlen(ANSWER_ERROR_PREFIX);
	ctl_result_set_answer(&t->result, name, ctl_call_failed(t->result.name, error));
}

static int begin_more(struct flush_run *run);

static int answered(struct item *t)
{
	struct flush_run *run = t->run;

	if (!t->fall_back)
		t->fd = safe_close(t->fd);
	if (++run->n_answered == run->n_targets)
		return sd_event_exit(run->event, 0);
	return begin_more(run);
}

/* No promise yet: the ticket is for asking later. */
static int read_ticket(struct item *t, sd_bus_message *reply)
{
	const char *ticket;
	int r = sd_bus_message_read(reply, "s", &ticket);

	if (r < 0)
		return r;
	t->result.ticket = strdup(ticket);
	ctl_result_set_answer(&t->result, "Submitted", 0);
	return t->result.ticket ? 0 : -ENOMEM;
}

static int on_reply(sd_bus_message *reply, void *userdata, sd_bus_error *unused)
{
	struct item *t = userdata;
	const sd_bus_error *error = sd_bus_message_get_error(reply);

	hide_progress(t->run);
	if (error)
		read_error(t, error);
	else if ((t->run->ctl->no_wait ? read_ticket(t, reply) : read_durable(t, reply)) < 0)
		fail(t, answer_get(PMEM_AGENT_UNKNOWN)->exit_status, answer_get(PMEM_AGENT_UNKNOWN)->name,
		     "cannot read the agent's reply; is it of another version?");
	else if (!t->run->ctl->no_wait && !t->run->ctl->quiet && !t->run->ctl->json)
		ctl_result_print_durable(&t->result);
	return answered(t);
}

/* ---- calls ---- */

/* Nothing but the descriptor counts, so write-only access will do. */
static int open_target(const char *path)
{
	int flags = O_NONBLOCK | O_NOCTTY | O_CLOEXEC, fd = open(path, O_RDONLY | flags);

	return fd < 0 && errno == EACCES ? open(path, O_WRONLY | flags) : fd;
}

static int open_failed(struct item *t, int error)
{
	enum pmem_agent_answer answer = PMEM_AGENT_REFUSED;
	const char *message;

	switch (error) {
	case ENOENT:
	case ENOTDIR:
	case ELOOP:
	case ENAMETOOLONG:
		answer = PMEM_AGENT_NOT_FOUND;
		message = strchr(t->result.name, '/')
			      ? "there is no such file or directory; check the path"
			      : "there is no such region, file or directory; \"pmemctl list\" shows the "
				"regions there are";
		break;
	case EACCES:
	case EPERM:
		answer = PMEM_AGENT_DENIED;
		message = "you may neither read nor write it; try it as root";
		break;
	case ENXIO:
	case ENODEV:
		message = "it is nothing that can be flushed; name a file, a directory, a device or a region";
		break;
	default:
		fail(t, CTL_EXIT_FAILURE, "Failure", strerrordesc_np(error));
		return 0;
	}
	fail(t, answer_get(answer)->exit_status, answer_get(answer)->name, message);
	return 0;
}

static int append_options(const struct ctl *c, sd_bus_message *m)
{
	const char *scope = c->scope ?: c->datasync ? "file" : NULL;
	int r = sd_bus_message_open_container(m, 'a', "{sv}");

	if (r >= 0 && scope)
		r = sd_bus_message_append(m, "{sv}", "scope", "s", scope);
	if (r >= 0 && c->datasync)
		r = sd_bus_message_append(m, "{sv}", "datasync", "b", 1);
	if (r >= 0 && c->timeout_usec)
		r = sd_bus_message_append(m, "{sv}", "timeout-usec", "t", c->timeout_usec);
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static int call_agent(struct item *t)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
	struct ctl *c = t->run->ctl;
	const char *method = t->run->tickets ? "Wait" : c->no_wait ? "Submit" : "Flush";
	int r;

	if (t->region)
		r = sd_bus_message_new_method_call(c->bus, &m, BUS_NAME, t->region, BUS_INTERFACE_REGION, method);
	else
		r = sd_bus_message_new_method_call(c->bus, &m, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, method);
	if (r >= 0 && t->run->tickets)
		r = sd_bus_message_append(m, "s", t->result.name);
	else if (r >= 0 && !t->region)
		r = sd_bus_message_append(m, "h", t->fd);
	if (r >= 0)
		r = append_options(c, m);
	if (r >= 0)
		r = sd_bus_message_set_allow_interactive_authorization(m, isatty(STDIN_FILENO));
	/* The host takes the time it takes. */
	return r < 0 ? r : sd_bus_call_async(c->bus, NULL, m, on_reply, t, UINT64_MAX);
}

/* 1: it is under way, 0: it has failed. */
static int begin(struct item *t)
{
	int r;

	if (!t->region && !t->run->tickets) {
		t->fd = open_target(t->result.name);
		if (t->fd < 0)
			return open_failed(t, errno);
	}
	r = call_agent(t);
	if (r >= 0)
		return 1;
	fail(t, CTL_EXIT_FAILURE, "Failure", "cannot ask the agent: no connection to D-Bus");
	return 0;
}

static int begin_more(struct flush_run *run)
{
	while (run->n_begun < run->n_targets && run->n_begun - run->n_answered < CTL_MAX_IN_FLIGHT) {
		struct item *t = &run->targets[run->n_begun++];

		if (begin(t) == 0 && ++run->n_answered == run->n_targets)
			return sd_event_exit(run->event, 0);
	}
	return 0;
}

/* ---- the fallback ---- */

static void fall_back(struct item *t)
{
	const struct ctl *c = t->run->ctl;
	const char *scope = c->scope ?: c->datasync ? "file" : "", *call;
	struct stat st = { .st_mode = 0 };
	int r = fstat(t->fd, &st);
	/* What is in a directory, and not itself, unless that is asked for. */
	bool whole = strcmp(scope, "filesystem") == 0 || (strcmp(scope, "file") != 0 && S_ISDIR(st.st_mode));

	call = whole ? "syncfs" : c->datasync ? "fdatasync" : "fsync";
	if (r == 0)
		r = whole ? syncfs(t->fd) : c->datasync ? fdatasync(t->fd) : fsync(t->fd);
	if (r < 0) {
		bool refused = errno == EINVAL || errno == EROFS || errno == EOPNOTSUPP;
		_cleanup_free_ char *message =
		    ctl_format("%s(2): %s; %s", call, strerrordesc_np(errno),
			       refused ? "it is nothing that can be synced" : "what was stored there may be lost");

		fail(t, CTL_EXIT_FAILURE, "Failure", message ?: call);
		return;
	}
	t->result.message = ctl_format("other storage: synced with %s(2), not through a region", call);
	ctl_result_set_answer(&t->result, "Synced", 0);
	if (!c->quiet && !c->json)
		printf("%s: %s\n", t->result.name, t->result.message ?: call);
}

/* ---- the verb ---- */

static bool needs_regions(const struct ctl *c, char **arguments, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		if (!strchr(arguments[i], '/'))
			return true;
	return c->all;
}

/* What can't be a path names a region, if there is one of that name. */
static int choose_targets(struct flush_run *run, const struct ctl_regions *list, char **arguments, unsigned int n)
{
	unsigned int most = run->ctl->all ? list->n_regions : n;

	run->targets = calloc(most + 1, sizeof(*run->targets));
	if (!run->targets)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; i < most; i++) {
		const struct ctl_region *region =
		    run->ctl->all ? &list->regions[i] : ctl_regions_find(list, arguments[i]);

		if (run->ctl->all && !region->asynchronous)
			continue;
		run->targets[run->n_targets++] = (struct item){
			.run = run,
			.result.name = region ? region->name : arguments[i],
			.region = region ? region->path : NULL,
			.fd = -1,
		};
	}
	return 0;
}

static void print_tickets(const struct flush_run *run)
{
	for (unsigned int i = 0; i < run->n_targets; i++)
		if (run->targets[i].result.ticket)
			printf("%s\n", run->targets[i].result.ticket);
}

static int run_targets(struct flush_run *run)
{
	int r = sd_event_new(&run->event);

	if (r >= 0)
		r = sd_bus_attach_event(run->ctl->bus, run->event, 0);
	if (r >= 0)
		r = start_progress(run);
	if (r >= 0)
		r = begin_more(run);
	if (r >= 0)
		r = sd_event_loop(run->event);
	hide_progress(run);
	if (r < 0) {
		ctl_error(NULL, "cannot wait for the agent: %s", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	r = 0;
	for (unsigned int i = 0; i < run->n_targets; i++) {
		if (run->targets[i].fall_back)
			fall_back(&run->targets[i]);
		r = ctl_worse(r, run->targets[i].result.exit_status);
	}
	if (!run->ctl->quiet && !run->ctl->json)
		print_tickets(run);
	return r;
}

/* Without an agent. */
static int sync_targets(struct flush_run *run)
{
	int r = 0;

	for (unsigned int i = 0; i < run->n_targets; i++) {
		struct item *t = &run->targets[i];

		t->fd = open_target(t->result.name);
		if (t->fd < 0)
			open_failed(t, errno);
		else
			fall_back(t);
		r = ctl_worse(r, t->result.exit_status);
	}
	return r;
}

static int print_results(const struct flush_run *run)
{
	_cleanup_free_ const struct ctl_result **results = calloc(run->n_targets + 1, sizeof(*results));

	for (unsigned int i = 0; results && i < run->n_targets; i++)
		results[i] = &run->targets[i].result;
	return results ? ctl_print_results(results, run->n_targets) : CTL_EXIT_FAILURE;
}

static void run_clear(struct flush_run *run)
{
	for (unsigned int i = 0; i < run->n_targets; i++) {
		ctl_result_clear(&run->targets[i].result);
		safe_close(run->targets[i].fd);
	}
	free(run->targets);
	sd_event_source_disable_unref(run->progress_source);
	if (run->event)
		sd_bus_detach_event(run->ctl->bus);
	sd_event_unref(run->event);
}

int ctl_flush(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_(run_clear) struct flush_run run = { .ctl = c };
	bool alone;
	int r;

	if (c->no_wait && c->fallback) {
		ctl_error(NULL, "--no-wait and --fallback do not go together: what is synced here is waited for");
		return CTL_EXIT_USAGE;
	}
	if (c->all ? n > 0 : n == 0) {
		ctl_error(NULL, "flush takes paths and regions, or --all; see \"pmemctl --help\"");
		return CTL_EXIT_USAGE;
	}
	alone = c->fallback && !machine_has_regions() && !agent_answers(c);
	r = alone ? 0 : ctl_connect(c);
	if (r == 0 && !alone && needs_regions(c, arguments, n))
		r = ctl_get_regions(c, &list);
	if (r != 0)
		return r;
	r = choose_targets(&run, &list, arguments, n);
	if (r != 0)
		return r;
	if (run.n_targets == 0 && !c->json) {
		if (!c->quiet)
			printf("No region is asynchronous: there is nothing to flush.\n");
		return 0;
	}
	if (run.n_targets > 0)
		r = alone ? sync_targets(&run) : run_targets(&run);
	return c->json ? ctl_worse(r, print_results(&run)) : r;
}

int ctl_wait(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(run_clear) struct flush_run run = { .ctl = c, .tickets = true };
	int r;

	if (n == 0) {
		ctl_error(NULL, "wait takes tickets, as \"pmemctl flush --no-wait\" prints them");
		return CTL_EXIT_USAGE;
	}
	r = ctl_connect(c);
	if (r != 0)
		return r;
	run.targets = calloc(n, sizeof(*run.targets));
	if (!run.targets)
		return CTL_EXIT_FAILURE;
	for (unsigned int i = 0; i < n; i++)
		run.targets[run.n_targets++] =
		    (struct item){ .run = &run, .result = { .name = arguments[i], .is_ticket = true }, .fd = -1 };
	r = run_targets(&run);
	return c->json ? ctl_worse(r, print_results(&run)) : r;
}
