/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl: the command line of pmemctl, and what it says when something fails
 */
#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdarg.h>
#include <string.h>

#include "answer.h"
#include "ctl-host.h"

const struct ctl_verb ctl_verbs[] = {
	{ "list", "", "List the regions, and how each is flushed", 0, ctl_list, ctl_list },
	{ "status", "[REGION...]", "Show what state regions are in", UINT32_MAX, ctl_status, ctl_status },
	{ "flush", "PATH...|REGION...|--all", "Make what was stored before durable, and wait for it", UINT32_MAX,
	  ctl_flush, ctl_host_flush },
	{ "wait", "TICKET...", "Wait for what was flushed with --no-wait", UINT32_MAX, ctl_wait, NULL },
	{ "stats", "[REGION...]", "Show how many flushes there were, and how long they took", UINT32_MAX, ctl_stats,
	  NULL },
	{ "acknowledge", "REGION --loss=N", "Say that what this loss took has been made good", UINT32_MAX,
	  ctl_acknowledge, ctl_acknowledge },
	{ "watch", "", "Print a line for each event until interrupted", 0, ctl_watch, ctl_host_watch },
	{ "doctor", "[PATH|REGION]", "Show what a path rests on, what is wrong there, and what mends it", 1, ctl_doctor,
	  NULL },
	{ "run", "-- COMMAND...", "Run a program whose fsync and msync go to the agent", UINT32_MAX, ctl_run, NULL },
	{ "serve", "", "On the host: flush for the guest what it can't flush", 0, NULL, ctl_host_serve },
};
const unsigned int ctl_n_verbs = ARRAY_SIZE(ctl_verbs);

enum option_value {
	OPTION_ALL = 0x100,
	OPTION_BACKING,
	OPTION_DATASYNC,
	OPTION_FALLBACK,
	OPTION_HOST,
	OPTION_LISTEN,
	OPTION_LOSS,
	OPTION_NO_WAIT,
	OPTION_OPENMETRICS,
	OPTION_OUTPUT,
	OPTION_QMP,
	OPTION_RECORD,
	OPTION_RETRY,
	OPTION_SCOPE,
	OPTION_STATE,
	OPTION_TIMEOUT,
};

/* A row an option: its number below is its place in `options`. */
static const struct option options[] = {
	{ "all", no_argument, NULL, OPTION_ALL },
	{ "backing", required_argument, NULL, OPTION_BACKING },
	{ "datasync", no_argument, NULL, OPTION_DATASYNC },
	{ "fallback", no_argument, NULL, OPTION_FALLBACK },
	{ "host", required_argument, NULL, OPTION_HOST },
	{ "listen", required_argument, NULL, OPTION_LISTEN },
	{ "loss", required_argument, NULL, OPTION_LOSS },
	{ "no-wait", no_argument, NULL, OPTION_NO_WAIT },
	{ "openmetrics", no_argument, NULL, OPTION_OPENMETRICS },
	{ "output", required_argument, NULL, OPTION_OUTPUT },
	{ "qmp", required_argument, NULL, OPTION_QMP },
	{ "record", no_argument, NULL, OPTION_RECORD },
	{ "retry", no_argument, NULL, OPTION_RETRY },
	{ "scope", required_argument, NULL, OPTION_SCOPE },
	{ "state", required_argument, NULL, OPTION_STATE },
	{ "timeout", required_argument, NULL, OPTION_TIMEOUT },
	{ "json", no_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ 0 },
};

const char *const ctl_options[] = {
	"all", "backing", "datasync", "fallback", "host",  "listen",  "loss", "no-wait", "openmetrics", "output",
	"qmp", "record",  "retry",    "scope",    "state", "timeout", "json", "quiet",   "help",        "version",
};
const unsigned int ctl_n_options = ARRAY_SIZE(ctl_options);
_Static_assert(ARRAY_SIZE(ctl_options) + 1 == ARRAY_SIZE(options), "a name for every option");

/* ---- errors ---- */

void ctl_error(const char *subject, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, subject ? "pmemctl: %s: " : "pmemctl: ", subject);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

/* What to do next. */
static const char *const hints[PMEM_AGENT_N_ANSWERS] = {
	[PMEM_AGENT_DURABLE] = "",
	[PMEM_AGENT_LOST] = "; do not trust what was stored since the last epoch, \"pmemctl status\" tells more",
	[PMEM_AGENT_UNKNOWN] = "; do not rely on it: flush again, and see \"pmemctl status\"",
	[PMEM_AGENT_BUSY] = "; try again later",
	[PMEM_AGENT_GONE] = "; \"pmemctl list\" shows the regions there are",
	[PMEM_AGENT_ORDINARY] = "; use sync(1), or add --fallback",
	[PMEM_AGENT_MIXED] = "; use sync(1), the agent can't speak for the other part",
	[PMEM_AGENT_SYNCHRONOUS] = "; use sync(1) for files, or add --fallback",
	[PMEM_AGENT_FILESYSTEM] = "; use sync(1), or add --fallback",
	[PMEM_AGENT_UNFLUSHED] = "",
	[PMEM_AGENT_IMPOSSIBLE] = "; see \"pmemctl list\" for how regions are flushed",
	[PMEM_AGENT_FAILED] = "; make room, write again, flush again",
	[PMEM_AGENT_REFUSED] = "",
	[PMEM_AGENT_NOT_FOUND] = "; \"pmemctl list\" shows the regions there are",
	[PMEM_AGENT_DENIED] = "; try it as root",
	[PMEM_AGENT_STALE_LOSS] = "; see \"pmemctl status\", and look at the data once more",
	[PMEM_AGENT_TIMEOUT] = "; do not rely on it: flush again, or wait for longer",
};

/* Errors that are not the agent's own, and what they amount to. */
static const struct {
	const char *name;
	int exit_status;
	const char *hint;
} foreign_errors[] = {
	{ SD_BUS_ERROR_INVALID_ARGS, CTL_EXIT_USAGE, "" },
	{ SD_BUS_ERROR_LIMITS_EXCEEDED, 5, "" },
	{ SD_BUS_ERROR_UNKNOWN_OBJECT, 6, "; the region is gone" },
	{ SD_BUS_ERROR_UNKNOWN_METHOD, CTL_EXIT_FAILURE, "; see its version with \"pmemctl --version\" there" },
	{ SD_BUS_ERROR_ACCESS_DENIED, 16, "; try it as root" },
	{ SD_BUS_ERROR_NO_REPLY, 4, "; the agent ended before it answered: nobody can tell whether it is durable" },
	{ SD_BUS_ERROR_DISCONNECTED, 4, "; the agent ended before it answered: nobody can tell whether it is durable" },
};

bool ctl_agent_is_absent(const sd_bus_error *error)
{
	static const char *const names[] = {
		SD_BUS_ERROR_SERVICE_UNKNOWN,
		SD_BUS_ERROR_NAME_HAS_NO_OWNER,
		"org.freedesktop.DBus.Error.Spawn.ChildExited",
		"org.freedesktop.DBus.Error.Spawn.ChildSignaled",
		"org.freedesktop.DBus.Error.Spawn.ExecFailed",
		"org.freedesktop.DBus.Error.Spawn.Failed",
		"org.freedesktop.systemd1.NoSuchUnit",
		"org.freedesktop.systemd1.UnitMasked",
		"org.freedesktop.systemd1.ShuttingDown",
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
		if (sd_bus_error_has_name(error, names[i]))
			return true;
	return false;
}

int ctl_call_failed(const char *subject, const sd_bus_error *error)
{
	enum pmem_agent_answer answer;

	if (ctl_agent_is_absent(error)) {
		ctl_error(subject, "the agent does not answer: see \"systemctl status pmem-agent\"");
		return CTL_EXIT_FAILURE;
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(foreign_errors); i++) {
		if (sd_bus_error_has_name(error, foreign_errors[i].name)) {
			ctl_error(subject, "%s%s", error->message, foreign_errors[i].hint);
			return foreign_errors[i].exit_status;
		}
	}
	answer = answer_from_dbus_error(error->name);
	ctl_error(subject, "%s%s", error->message, hints[answer]);
	return answer_get(answer)->exit_status;
}

int ctl_worse(int a, int b)
{
	static const enum pmem_agent_answer worst[] = { PMEM_AGENT_LOST, PMEM_AGENT_UNKNOWN, PMEM_AGENT_TIMEOUT };

	for (unsigned int i = 0; i < ARRAY_SIZE(worst); i++) {
		int status = answer_get(worst[i])->exit_status;

		if (a == status || b == status)
			return status;
	}
	return a != 0 ? a : b;
}

int ctl_connect(struct ctl *c)
{
	int r = c->bus ? 0 : sd_bus_open_system(&c->bus);

	if (r >= 0)
		return 0;
	ctl_error(NULL, "no connection to D-Bus: %s; see \"systemctl status dbus\"", strerrordesc_np(-r));
	return CTL_EXIT_FAILURE;
}

/* ---- the command line ---- */

static void print_help(void)
{
	printf("pmemctl [OPTION...] VERB [ARGUMENT...]\n\n"
	       "Ask pmem-agent about persistent memory that only its host makes durable.\n\n");
	for (unsigned int i = 0; i < ctl_n_verbs; i++) {
		char usage[64];

		snprintf(usage, sizeof(usage), "%s %s", ctl_verbs[i].name, ctl_verbs[i].arguments);
		printf("  %-30s %s\n", usage, ctl_verbs[i].help);
	}
	printf("\n"
	       "  --all                          flush: every asynchronous region\n"
	       "  --scope=SCOPE                  flush: file, filesystem or region, whatever the path is\n"
	       "  --datasync                     flush: a file's data, without its times and mode\n"
	       "  --no-wait                      flush: print a ticket to wait for later\n"
	       "  --timeout=SEC                  flush, wait: wait for so many seconds at most\n"
	       "  --fallback                     flush: on other storage do what sync does, and say so\n"
	       "  --loss=N                       acknowledge: the number of the loss\n"
	       "  --openmetrics                  stats: for Prometheus and its like\n"
	       "  --output=FILE                  stats: replace this file, as a whole\n"
	       "  --host=SOCKET                  on the host: ask the agent of the guest with this socket\n"
	       "  --retry                        --host: connect again, and ask again, until it succeeds\n"
	       "  --qmp=SOCKET                   serve: ask QEMU there what is behind each region\n"
	       "  --backing=ADDRESS=FILE         serve: what is behind the region at this address\n"
	       "  --listen=SOCKET                serve: talk to other programs there\n"
	       "  --state=PREFIX                 serve: where errors that the guest does not know yet are kept\n"
	       "  --record                       doctor: print what sysfs has of this machine's regions\n"
	       "  -j --json                      print JSON\n"
	       "  -q --quiet                     print errors only\n"
	       "  -h --help                      print this\n"
	       "  -V --version                   print the version\n"
	       "\nThe exit status tells what became of it: see pmemctl(1).\n");
}

static int usage_error(const char *what, const char *value)
{
	ctl_error(NULL, "%s%s; see \"pmemctl --help\"", what, value);
	return CTL_EXIT_USAGE;
}

/* Seconds, with up to six decimals, as microseconds; 0: it is none, or no time at all. */
static uint64_t parse_seconds(const char *text)
{
	uint64_t usec = 0, unit = USEC_PER_SEC;
	const char *p = text;

	for (; *p >= '0' && *p <= '9' && p - text < 9; p++)
		usec = usec * 10 + (uint64_t)(*p - '0') * USEC_PER_SEC;
	if (p > text && *p == '.')
		for (p++; *p >= '0' && *p <= '9' && unit > 1; p++)
			usec += (uint64_t)(*p - '0') * (unit /= 10);
	return *p ? 0 : usec;
}

/* Those that are for --host. 0 or the exit status. */
static int parse_host_option(struct ctl *c, int value)
{
	switch (value) {
	case OPTION_BACKING:
		if (c->n_backings == CTL_MAX_BACKINGS)
			return usage_error("too many times --backing", "");
		c->backings[c->n_backings++] = optarg;
		return 0;
	case OPTION_HOST:
		c->host = optarg;
		return 0;
	case OPTION_LISTEN:
		c->listen = optarg;
		return 0;
	case OPTION_QMP:
		c->qmp = optarg;
		return 0;
	case OPTION_RETRY:
		c->retry = true;
		return 0;
	case OPTION_STATE:
		c->state = optarg;
		return 0;
	}
	/* getopt has said what is wrong. */
	return CTL_EXIT_USAGE;
}

/* 0, a negative value to end with success, or the exit status. */
static int parse_option(struct ctl *c, int value)
{
	switch (value) {
	case OPTION_ALL:
		c->all = true;
		return 0;
	case OPTION_DATASYNC:
		c->datasync = true;
		return 0;
	case OPTION_FALLBACK:
		c->fallback = true;
		return 0;
	case OPTION_LOSS:
		c->loss = optarg;
		return 0;
	case OPTION_NO_WAIT:
		c->no_wait = true;
		return 0;
	case OPTION_OPENMETRICS:
		c->openmetrics = true;
		return 0;
	case OPTION_OUTPUT:
		c->output = optarg;
		return 0;
	case OPTION_RECORD:
		c->record = true;
		return 0;
	case OPTION_SCOPE:
		c->scope = optarg;
		return 0;
	case OPTION_TIMEOUT:
		c->timeout_usec = parse_seconds(optarg);
		return c->timeout_usec ? 0
				       : usage_error("--timeout is a number of seconds, as 10 or 0.5, not ", optarg);
	case 'j':
		c->json = true;
		return 0;
	case 'q':
		c->quiet = true;
		return 0;
	case 'h':
		print_help();
		return -1;
	case 'V':
		printf("pmemctl " PMEM_AGENT_VERSION "\n");
		return -1;
	}
	return parse_host_option(c, value);
}

/* Which sockets and files there are to be, and for whom. */
static int check_host_options(const struct ctl *c, const struct ctl_verb *verb)
{
	if (c->host ? !verb->run_on_host : !verb->run)
		return usage_error(c->host ? "not with --host: " : "only with --host=SOCKET: ", verb->name);
	if (c->host && !c->host[0])
		return usage_error("--host=SOCKET is empty; for pmem-agent-host@.service AGENT= in its file says it",
				   "");
	if (!c->host && c->retry)
		return usage_error("--retry is for --host", "");
	if (verb->run_on_host != ctl_host_serve && (c->qmp || c->n_backings > 0 || c->listen || c->state))
		return usage_error("--qmp, --backing, --listen and --state are for serve, not for ", verb->name);
	if (c->host && (c->datasync || c->fallback || c->no_wait || c->scope))
		return usage_error("--datasync, --fallback, --no-wait and --scope are not for --host", "");
	return 0;
}

static int check_options(const struct ctl *c, const struct ctl_verb *verb)
{
	static const char *const scopes[] = { "file", "filesystem", "region" };
	bool known = !c->scope;

	if (verb->run != ctl_flush && (c->all || c->datasync || c->fallback || c->no_wait || c->scope))
		return usage_error("--all, --datasync, --fallback, --no-wait and --scope are for flush, not for ",
				   verb->name);
	if (!c->host && verb->run != ctl_flush && verb->run != ctl_wait && c->timeout_usec)
		return usage_error("--timeout is for flush, wait and --host, not for ", verb->name);
	if (verb->run != ctl_stats && (c->openmetrics || c->output))
		return usage_error("--openmetrics and --output are for stats, not for ", verb->name);
	if (c->openmetrics && c->json)
		return usage_error("--openmetrics and --json are two formats: choose one", "");
	if (c->output && !c->openmetrics)
		return usage_error("--output is for --openmetrics", "");
	if (verb->run != ctl_acknowledge && c->loss)
		return usage_error("--loss is for acknowledge, not for ", verb->name);
	if (verb->run == ctl_run && c->json)
		return usage_error("--json is not for run: what is printed is the command's", "");
	if (verb->run != ctl_doctor && c->record)
		return usage_error("--record is for doctor, not for ", verb->name);
	for (unsigned int i = 0; c->scope && i < ARRAY_SIZE(scopes); i++)
		known |= strcmp(c->scope, scopes[i]) == 0;
	if (!known)
		return usage_error("--scope is file, filesystem or region, not ", c->scope);
	if (c->datasync && c->scope && strcmp(c->scope, "file") != 0)
		return usage_error("--datasync is for files, not with --scope=", c->scope);
	return check_host_options(c, verb);
}

static const struct ctl_verb *find_verb(const char *name)
{
	for (unsigned int i = 0; i < ctl_n_verbs; i++)
		if (strcmp(ctl_verbs[i].name, name) == 0)
			return &ctl_verbs[i];
	return NULL;
}

static int run_verb(struct ctl *c, const struct ctl_verb *verb, char **arguments, unsigned int n)
{
	int r = 0;

	if (c->host) {
		/* It connects by itself, again and again. */
		if (verb->run_on_host != ctl_host_serve)
			r = ctl_host_open(c);
		if (r == 0)
			r = verb->run_on_host(c, arguments, n);
		ctl_host_close(c);
		return r;
	}
	r = verb->run(c, arguments, n);
	sd_bus_flush_close_unref(c->bus);
	return r;
}

int ctl_main(int argc, char **argv)
{
	const struct ctl_verb *verb;
	struct ctl c = { 0 };
	unsigned int n;
	int value, r;

	setlocale(LC_ALL, "");
	argv[0] = program_invocation_short_name;
	while ((value = getopt_long(argc, argv, "jqhV", options, NULL)) >= 0) {
		r = parse_option(&c, value);
		if (r != 0)
			return r < 0 ? 0 : r;
	}
	if (optind >= argc)
		return usage_error("what is to be done? Known: list, status, flush, wait, stats, acknowledge, watch, "
				   "doctor, run, serve",
				   "");
	verb = find_verb(argv[optind]);
	if (!verb)
		return usage_error("unknown verb ", argv[optind]);
	r = check_options(&c, verb);
	if (r != 0)
		return r;
	n = (unsigned int)(argc - optind - 1);
	if (n > verb->max_arguments)
		return usage_error("too many arguments for ", verb->name);

	r = run_verb(&c, verb, argv + optind + 1, n);
	/* What was printed must have got out. */
	if (fflush(stdout) != 0 && r == 0) {
		ctl_error(NULL, "cannot write: %s", strerrordesc_np(errno));
		r = CTL_EXIT_FAILURE;
	}
	return r;
}
