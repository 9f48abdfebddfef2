/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stress-sock: many clients at the agent's socket, each with a connection and a thread of its own
 *
 * Asks for flushes of FILE in every scope, with and without a timeout, one at a time and many at once; leaves in
 * mid-wait; sends garbage. Each request must get its one answer, and the right one: what a scope's answer is here is
 * found out first. With --steady each client flushes FILE again and again, and whatever is not durable is wrong: for an
 * agent that is restarted or replaced meanwhile.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "agent/util.h"
#include "lib/pmem-agent.h"
#include "selftest/raw.h"

#define MISSING_USEC (60 * USEC_PER_SEC)
#define MAX_BATCH    32
#define MAX_GARBAGE  160

enum count {
	COUNT_DURABLE,
	COUNT_TIMEOUT,
	COUNT_REFUSED, /* as it should */
	COUNT_GARBAGE, /* answered as such */
	COUNT_LEFT,    /* we did, before the answer */
	COUNT_BUSY,
	COUNT_WRONG,
	COUNT_MISSING,
	N_COUNTS,
};

static const char *const count_names[] = {
	[COUNT_DURABLE] = "durable", [COUNT_TIMEOUT] = "timeout", [COUNT_REFUSED] = "refused",
	[COUNT_GARBAGE] = "garbage", [COUNT_LEFT] = "left",       [COUNT_BUSY] = "busy",
	[COUNT_WRONG] = "wrong",     [COUNT_MISSING] = "missing",
};

static const char *socket_path = PMEM_AGENT_RUNTIME_DIR "/" PMEM_AGENT_SOCKET_NAME, *log_path, *file_path;
static unsigned long n_clients = 16, n_requests = ULONG_MAX, seed;
static uint64_t run_usec = 10 * USEC_PER_SEC, end_usec;
static bool steady, json;
static int expected[PMEM_AGENT_N_SCOPES]; /* what is returned for each scope */
static int target = -1;
static FILE *answers;

struct client {
	pthread_t thread;
	unsigned int number;
	unsigned int random;
	struct pmem_agent *agent; /* NULL: not connected */
	unsigned long n_asked;
	uint64_t longest_usec;
	uint64_t counts[N_COUNTS];
};

static uint64_t now(void)
{
	return now_usec(CLOCK_MONOTONIC);
}

static unsigned int below(struct client *c, unsigned int n)
{
	return (unsigned int)rand_r(&c->random) % n;
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
	interrupted = 1;
}

static bool goes_on(const struct client *c)
{
	return !interrupted && c->n_asked < n_requests && now() < end_usec;
}

/* ---- answers ---- */

static void complain(struct client *c, const char *what, int r, const char *detail)
{
	c->counts[COUNT_WRONG]++;
	fprintf(stderr, "client %u: %s: %s%s%s\n", c->number, what, r < 0 ? strerrorname_np(-r) : "0",
		detail[0] ? ": " : "", detail);
}

static void note(struct client *c, uint64_t began, int r)
{
	uint64_t ended = now();

	if (ended - began > c->longest_usec)
		c->longest_usec = ended - began;
	if (answers)
		fprintf(answers, "%" PRIu64 " %" PRIu64 " %u %s\n", began, ended, c->number,
			r < 0 ? strerrorname_np(-r) : "durable");
}

/* `r` is what the library returned for a request of this scope. */
static void judge(struct client *c, enum pmem_agent_scope scope, bool timed, int r,
		  const struct pmem_agent_result *result)
{
	if ((r == 0) != (result->answer == PMEM_AGENT_DURABLE))
		complain(c, "return value and answer don't fit", r, result->detail);
	else if (r == 0 && expected[scope] == 0)
		c->counts[COUNT_DURABLE]++;
	else if (r == -ETIMEDOUT && timed && result->answer == PMEM_AGENT_TIMEOUT)
		c->counts[COUNT_TIMEOUT]++;
	else if (r == -EBUSY && !steady)
		c->counts[COUNT_BUSY]++;
	else if (r < 0 && r == expected[scope])
		c->counts[COUNT_REFUSED]++;
	else
		complain(c, "wrong answer", r, result->detail);
}

/* ---- what a client does ---- */

static bool be_connected(struct client *c)
{
	int r = c->agent ? 0 : pmem_agent_connect(socket_path, &c->agent);

	if (r == 0)
		return true;
	complain(c, "cannot connect", r, "");
	/* Not as fast as it can; whoever starts the agent again takes longer. */
	poll(NULL, 0, 10);
	return false;
}

static uint64_t some_timeout(struct client *c)
{
	return below(c, 2) ? PMEM_AGENT_NO_TIMEOUT : 1 + below(c, 50000);
}

static void flush_one(struct client *c, enum pmem_agent_scope scope, uint64_t timeout)
{
	struct pmem_agent_result result = { .detail = "" };
	uint64_t began = now();
	int r;

	c->n_asked++;
	r = pmem_agent_flush(c->agent, target, scope, timeout, &result);
	note(c, began, r);
	/* The time was over before it could be sent. */
	if (r == -ETIMEDOUT && result.answer == PMEM_AGENT_UNKNOWN && result.id == 0)
		result.answer = PMEM_AGENT_TIMEOUT;
	judge(c, scope, timeout != PMEM_AGENT_NO_TIMEOUT, r, &result);
}

static void flush_many(struct client *c, bool leave)
{
	struct {
		uint64_t id;
		enum pmem_agent_scope scope;
		bool timed;
	} asked[MAX_BATCH];
	unsigned int n = 0, wanted = 1 + below(c, MAX_BATCH);
	struct pmem_agent_result result;
	int r;

	while (n < wanted) {
		uint64_t timeout = some_timeout(c);

		asked[n].scope = (enum pmem_agent_scope)below(c, PMEM_AGENT_N_SCOPES);
		asked[n].timed = timeout != PMEM_AGENT_NO_TIMEOUT;
		r = pmem_agent_submit(c->agent, target, asked[n].scope, timeout, &asked[n].id);
		if (r == -ETIMEDOUT || r == -EBUSY)
			break;
		if (r < 0) {
			complain(c, "cannot submit", r, "");
			break;
		}
		n++;
	}
	c->n_asked += n;
	if (leave) {
		c->counts[COUNT_LEFT] += n;
		c->agent = pmem_agent_close(c->agent);
		return;
	}
	while (n > 0) {
		unsigned int i = 0;

		r = pmem_agent_wait(c->agent, 0, MISSING_USEC, &result);
		if (r == -EAGAIN || r == -ESRCH) {
			fprintf(stderr, "client %u: %u answers are missing\n", c->number, n);
			c->counts[COUNT_MISSING] += n;
			c->agent = pmem_agent_close(c->agent);
			return;
		}
		while (i < n && asked[i].id != result.id)
			i++;
		if (i == n) {
			complain(c, "an answer to nothing", r, "");
			return;
		}
		judge(c, asked[i].scope, asked[i].timed, r, &result);
		asked[i] = asked[--n];
	}
}

/* ---- garbage ---- */

/* A request in which one thing at least is wrong. */
static size_t make_garbage(struct client *c, char *packet, unsigned int *n_fds)
{
	struct pmem_agent_request request = raw_request(1 + below(c, 1000000));
	size_t size = sizeof(request);

	*n_fds = 1;
	switch (below(c, 8)) {
	case 0:
		request.version += 1 + below(c, 9);
		break;
	case 1:
		request.type = PMEM_AGENT_PACKET_REPORT + 1 + below(c, 9);
		break;
	case 2:
		request.scope = PMEM_AGENT_N_SCOPES + below(c, 9);
		break;
	case 3:
		request.flags = 1U << below(c, 32);
		break;
	case 4:
		if (below(c, 4) == 0)
			request.kept = 1;
		else
			request.reserved = 1;
		break;
	case 5:
		size = below(c, sizeof(request));
		break;
	case 6:
		size = sizeof(request) + 1 + below(c, MAX_GARBAGE - sizeof(request));
		break;
	default:
		*n_fds = below(c, 2) * (2 + below(c, 9));
	}
	memset(packet, 0, MAX_GARBAGE);
	memcpy(packet, &request, sizeof(request));
	return size;
}

static void babble(struct client *c)
{
	_cleanup_close_ int fd = raw_connect(socket_path);
	unsigned int n = 1 + below(c, 20), n_fds;
	struct pmem_agent_reply reply;
	char packet[MAX_GARBAGE];
	ssize_t got;

	if (fd < 0) {
		complain(c, "cannot connect", -errno, "");
		return;
	}
	for (unsigned int i = 0; i < n; i++) {
		size_t size = make_garbage(c, packet, &n_fds);
		int r = raw_send(fd, packet, size, target, n_fds);

		if (r < 0) {
			complain(c, "cannot send garbage", r, "");
			return;
		}
		c->n_asked++;
		if (below(c, 10) == 0) {
			c->counts[COUNT_LEFT]++;
			return;
		}
		got = raw_receive(fd, &reply);
		if (got == -ETIMEDOUT) {
			c->counts[COUNT_MISSING]++;
			return;
		}
		if (got == sizeof(reply) && reply.version == PMEM_AGENT_WIRE_VERSION &&
		    reply.type == PMEM_AGENT_PACKET_ERROR && reply.answer == PMEM_AGENT_REFUSED && reply.detail[0])
			c->counts[COUNT_GARBAGE]++;
		else if (got == sizeof(reply) && reply.answer == PMEM_AGENT_BUSY && reply.id == 0) {
			c->counts[COUNT_BUSY]++;
			return;
		} else
			complain(c, "wrong answer to garbage", got < 0 ? (int)got : 0,
				 got == sizeof(reply) ? reply.detail : "");
	}
}

/* ---- */

static void *run_client(void *userdata)
{
	struct client *c = userdata;

	while (goes_on(c) && c->counts[COUNT_MISSING] == 0) {
		if (!be_connected(c))
			continue;
		if (steady) {
			flush_one(c, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT);
			continue;
		}
		switch (below(c, 8)) {
		case 0:
			babble(c);
			break;
		case 1:
		case 2:
			flush_many(c, below(c, 4) == 0);
			break;
		default:
			flush_one(c, (enum pmem_agent_scope)below(c, PMEM_AGENT_N_SCOPES), some_timeout(c));
		}
	}
	pmem_agent_close(c->agent);
	return NULL;
}

/* What is asked for in each scope of FILE is what it is, before there is any load. */
static int find_expected(void)
{
	struct pmem_agent *agent;
	int r = pmem_agent_connect(socket_path, &agent);

	if (r < 0) {
		fprintf(stderr, "stress-sock: %s: %s\n", socket_path, strerror(-r));
		return r;
	}
	for (unsigned int i = 0; i < PMEM_AGENT_N_SCOPES; i++)
		expected[i] = pmem_agent_flush(agent, target, (enum pmem_agent_scope)i, PMEM_AGENT_NO_TIMEOUT, NULL);
	pmem_agent_close(agent);
	if (expected[PMEM_AGENT_SCOPE_AUTO] < 0)
		fprintf(stderr, "stress-sock: %s cannot be flushed: %s\n", file_path,
			strerror(-expected[PMEM_AGENT_SCOPE_AUTO]));
	return expected[PMEM_AGENT_SCOPE_AUTO];
}

static void report(const uint64_t *counts, uint64_t longest_usec, uint64_t usec)
{
	printf(json ? "{\"clients\": %lu, \"seed\": %lu, \"seconds\": %.3f, \"longest-usec\": %" PRIu64
		    : "%lu clients, seed %lu, %.3f s, longest %" PRIu64 " us",
	       n_clients, seed, (double)usec / USEC_PER_SEC, longest_usec);
	for (unsigned int i = 0; i < N_COUNTS; i++)
		printf(json ? ", \"%s\": %" PRIu64 : ", %s %" PRIu64, count_names[i], counts[i]);
	puts(json ? "}" : "");
}

static int run(void)
{
	struct client *clients = calloc(n_clients, sizeof(*clients));
	uint64_t counts[N_COUNTS] = { 0 }, longest = 0, began = now();

	if (!clients)
		return 1;
	end_usec = began + run_usec;
	for (unsigned int i = 0; i < n_clients; i++) {
		clients[i].number = i;
		clients[i].random = (unsigned int)seed + i;
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) != 0)
			return 1;
	}
	for (unsigned int i = 0; i < n_clients; i++) {
		pthread_join(clients[i].thread, NULL);
		for (unsigned int k = 0; k < N_COUNTS; k++)
			counts[k] += clients[i].counts[k];
		if (clients[i].longest_usec > longest)
			longest = clients[i].longest_usec;
	}
	free(clients);
	report(counts, longest, now() - began);
	return counts[COUNT_WRONG] > 0 || counts[COUNT_MISSING] > 0 || counts[COUNT_DURABLE] == 0;
}

static const char usage[] =
    "stress-sock [options] FILE\n\n"
    "  --clients N     that many at a time (16)\n"
    "  --seconds S     for so long (10), or until SIGINT\n"
    "  --requests N    each client ends after so many\n"
    "  --steady        only flush FILE, again and again; whatever is not durable is wrong\n"
    "  --log PATH      a line for each flush: start and end (CLOCK_MONOTONIC, microseconds), client, answer\n"
    "  --socket PATH   of the agent (" PMEM_AGENT_RUNTIME_DIR "/" PMEM_AGENT_SOCKET_NAME ")\n"
    "  --seed N        of the random choices\n"
    "  --json          the counts as JSON\n\n"
    "Exit status 0: every request had its answer, and the right one; 1: not so; 2: it could not begin.\n";

static bool parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "clients", required_argument, NULL, 'c' },
		{ "seconds", required_argument, NULL, 's' },
		{ "requests", required_argument, NULL, 'n' },
		{ "steady", no_argument, NULL, 'S' },
		{ "log", required_argument, NULL, 'l' },
		{ "socket", required_argument, NULL, 'p' },
		{ "seed", required_argument, NULL, 'r' },
		{ "json", no_argument, NULL, 'j' },
		{ NULL },
	};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (o) {
		case 'c':
			n_clients = strtoul(optarg, NULL, 10);
			break;
		case 's':
			run_usec = (uint64_t)(strtod(optarg, NULL) * USEC_PER_SEC);
			break;
		case 'n':
			n_requests = strtoul(optarg, NULL, 10);
			break;
		case 'S':
			steady = true;
			break;
		case 'l':
			log_path = optarg;
			break;
		case 'p':
			socket_path = optarg;
			break;
		case 'r':
			seed = strtoul(optarg, NULL, 10);
			break;
		case 'j':
			json = true;
			break;
		default:
			return false;
		}
	file_path = optind == argc - 1 ? argv[optind] : NULL;
	return file_path && n_clients > 0;
}

int main(int argc, char **argv)
{
	int r;

	seed = (unsigned long)now() % 1000000;
	if (!parse(argc, argv)) {
		fputs(usage, stderr);
		return 2;
	}
	target = open(file_path, O_RDONLY | O_CLOEXEC);
	answers = log_path ? fopen(log_path, "we") : NULL;
	if (target < 0 || (log_path && !answers)) {
		perror(target < 0 ? file_path : log_path);
		return 2;
	}
	signal(SIGINT, on_interrupt);
	r = find_expected() < 0 ? 2 : run();
	if (answers && fclose(answers) != 0)
		r = 1;
	return r;
}
