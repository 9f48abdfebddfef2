/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-flush: many callers who want the same thing durable, each in one of four ways
 *
 * usage: bench-flush MODE SCOPE CALLERS SECONDS FILE
 *
 *   plain   each caller its own fdatasync
 *   ideal   no agent: who finds no flush in flight leads one for all that wait by then, within this process
 *   socket  each caller its own connection to the agent, by the C library
 *   dbus    each caller its own connection to the bus
 *
 * SCOPE is region (FILE is its block device, or the file of an emulated region) or file, where every caller stores to
 * a page of its own first. Each caller has its own descriptor. Prints one line of JSON, with times in microseconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <systemd/sd-bus.h>

#include "agent/util.h"
#include "lib/pmem-agent.h"

#define MAX_CALLERS 256
#define MAX_SAMPLES (1 << 17)
#define PAGE        4096

static struct {
	const char *mode, *path;
	bool file;
	unsigned int n;
	uint64_t until; /* CLOCK_MONOTONIC */
	char *pages;    /* of the file */
	pthread_barrier_t ready;
	_Atomic unsigned int failures;
} bench;

struct caller {
	pthread_t thread;
	unsigned int number;
	int fd;
	struct pmem_agent *agent;
	sd_bus *bus;
	uint32_t *samples;
	unsigned int n_samples;
};

/* ---- the ways ---- */

static int flush_plain(struct caller *c)
{
	return fdatasync(c->fd) < 0 ? -errno : 0;
}

static struct {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool in_flight;
	uint64_t requested, durable;
	int error;
} group = { .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER };

static int flush_ideal(struct caller *c)
{
	uint64_t ticket, started;
	int r;

	pthread_mutex_lock(&group.lock);
	ticket = ++group.requested;
	while (group.durable < ticket && !group.error) {
		if (group.in_flight) {
			pthread_cond_wait(&group.ended, &group.lock);
			continue;
		}
		group.in_flight = true;
		started = group.requested;
		pthread_mutex_unlock(&group.lock);
		r = flush_plain(c);
		pthread_mutex_lock(&group.lock);
		group.in_flight = false;
		group.durable = started;
		group.error = r;
		pthread_cond_broadcast(&group.ended);
	}
	r = group.error;
	pthread_mutex_unlock(&group.lock);
	return r;
}

static int flush_socket(struct caller *c)
{
	return pmem_agent_flush(c->agent, c->fd, bench.file ? PMEM_AGENT_SCOPE_FILE_DATA : PMEM_AGENT_SCOPE_REGION,
				PMEM_AGENT_NO_TIMEOUT, NULL);
}

static int flush_dbus(struct caller *c)
{
	return sd_bus_call_method(c->bus, "io.pmem.Agent1", "/io/pmem/Agent1", "io.pmem.Agent1.Manager", "Flush", NULL,
				  NULL, "ha{sv}", c->fd, 2, "scope", "s", bench.file ? "file" : "region", "datasync",
				  "b", (int)bench.file);
}

static const struct way {
	const char *name;
	int (*flush)(struct caller *c);
} ways[] = {
	{ "plain", flush_plain },
	{ "ideal", flush_ideal },
	{ "socket", flush_socket },
	{ "dbus", flush_dbus },
};

static const struct way *find_way(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		if (strcmp(ways[i].name, name) == 0)
			return &ways[i];
	return NULL;
}

/* ---- callers ---- */

static int caller_open(struct caller *c)
{
	c->samples = calloc(MAX_SAMPLES, sizeof(*c->samples));
	c->fd = open(bench.path, O_RDWR | O_CLOEXEC);
	if (!c->samples || c->fd < 0)
		return -errno;
	if (strcmp(bench.mode, "socket") == 0)
		return pmem_agent_connect(getenv("BENCH_SOCKET"), &c->agent);
	return strcmp(bench.mode, "dbus") == 0 ? sd_bus_open_system(&c->bus) : 0;
}

static void *call(void *userdata)
{
	struct caller *c = userdata;
	const struct way *way = find_way(bench.mode);
	uint64_t begun, ended;

	pthread_barrier_wait(&bench.ready);
	do {
		if (bench.file)
			__atomic_add_fetch((uint64_t *)(bench.pages + c->number * PAGE), 1, __ATOMIC_RELAXED);
		begun = now_usec(CLOCK_MONOTONIC);
		if (way->flush(c) < 0)
			bench.failures++;
		ended = now_usec(CLOCK_MONOTONIC);
		c->samples[c->n_samples++] = (uint32_t)(ended - begun);
	} while (ended < bench.until && c->n_samples < MAX_SAMPLES);
	return NULL;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void report(struct caller *callers, uint64_t took)
{
	uint32_t *all = NULL;
	size_t n = 0;

	for (unsigned int i = 0; i < bench.n; i++)
		n += callers[i].n_samples;
	all = calloc(n, sizeof(*all));
	if (!all)
		exit(1);
	n = 0;
	for (unsigned int i = 0; i < bench.n; i++) {
		memcpy(all + n, callers[i].samples, callers[i].n_samples * sizeof(*all));
		n += callers[i].n_samples;
	}
	qsort(all, n, sizeof(*all), compare);
	printf("{\"mode\": \"%s\", \"scope\": \"%s\", \"callers\": %u, \"requests\": %zu, \"failures\": %u, "
	       "\"usec\": %" PRIu64 ", \"p50\": %u, \"p99\": %u}\n",
	       bench.mode, bench.file ? "file" : "region", bench.n, n, bench.failures, took, all[n / 2],
	       all[n - 1 - n / 100]);
	free(all);
}

int main(int argc, char **argv)
{
	static struct caller callers[MAX_CALLERS];
	uint64_t begun;
	int r;

	if (argc != 6 || !find_way(argv[1])) {
		fprintf(stderr, "usage: bench-flush plain|ideal|socket|dbus region|file CALLERS SECONDS FILE\n");
		return 2;
	}
	bench.mode = argv[1];
	bench.file = strcmp(argv[2], "file") == 0;
	bench.n = (unsigned int)atoi(argv[3]);
	bench.path = argv[5];
	if (bench.n < 1 || bench.n > MAX_CALLERS)
		return 2;

	for (unsigned int i = 0; i < bench.n; i++) {
		callers[i].number = i;
		r = caller_open(&callers[i]);
		if (r < 0) {
			fprintf(stderr, "%s %s: %s\n", bench.mode, bench.path, strerror(-r));
			return 1;
		}
	}
	if (bench.file) {
		bench.pages = mmap(NULL, (size_t)bench.n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, callers[0].fd, 0);
		if (bench.pages == MAP_FAILED) {
			perror("mmap");
			return 1;
		}
	}

	pthread_barrier_init(&bench.ready, NULL, bench.n + 1);
	for (unsigned int i = 0; i < bench.n; i++)
		if (pthread_create(&callers[i].thread, NULL, call, &callers[i]) != 0)
			return 1;
	begun = now_usec(CLOCK_MONOTONIC);
	bench.until = begun + (uint64_t)(atof(argv[4]) * USEC_PER_SEC);
	pthread_barrier_wait(&bench.ready);
	for (unsigned int i = 0; i < bench.n; i++)
		pthread_join(callers[i].thread, NULL);
	report(callers, now_usec(CLOCK_MONOTONIC) - begun);
	return 0;
}
