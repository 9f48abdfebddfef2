/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-flush: many callers who want the same thing durable, each in one of four ways
 *
 * usage: bench-flush MODE SCOPE CALLERS SECONDS FILE
 *
 *   plain   each caller its own fdatasync or msync; which is the agent's where libpmem-agent-preload is
 *   ideal   no agent: who finds no flush in flight leads one for all that wait by then
 *   socket  each caller its own connection to the agent, by the C library
 *   dbus    each caller its own connection to the bus
 *
 * SCOPE is region (FILE is its block device, or the file of an emulated region), or file or msync, where every caller
 * stores to a page of its own first, and with msync wants that page rather than the file. CALLERS are threads, or with
 * a "p" after their number processes, each with its own mapping. Each caller has its own descriptor, and has made one
 * flush before the time begins: to connect, and to fork 256 processes and see them off, isn't what is measured. Prints
 * one line of JSON, with times in microseconds; `flushes_asked` has those first ones too.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>

#include "agent/util.h"
#include "lib/pmem-agent.h"

#define MAX_CALLERS 256
#define MAX_SAMPLES (1 << 17)
#define PAGE        4096

struct caller {
	pthread_t thread;
	unsigned int number;
	int fd;
	char *pages; /* of the file, mapped */
	struct pmem_agent *agent;
	sd_bus *bus;
	uint32_t *samples;
	unsigned int n_samples;
	uint64_t ended;
};

static struct {
	const char *mode, *path;
	bool stores, msync, processes;
	unsigned int n;
	char *pages; /* of all threads */
} bench;

/* By processes too. */
static struct shared {
	pthread_barrier_t ready; /* once when all are, once when they may begin */
	uint64_t until;          /* CLOCK_MONOTONIC */
	_Atomic unsigned int failures;
	struct {
		pthread_mutex_t lock;
		pthread_cond_t ended;
		bool in_flight;
		uint64_t requested, durable;
		int error;
	} group;
	struct caller callers[MAX_CALLERS];
} * shared;

/* ---- the ways ---- */

static int flush_plain(struct caller *c)
{
	int r = bench.msync ? msync(c->pages + c->number * PAGE, PAGE, MS_SYNC) : fdatasync(c->fd);

	return r < 0 ? -errno : 0;
}

/* For all of them. */
static int flush_whole(struct caller *c)
{
	int r = bench.msync ? msync(c->pages, (size_t)bench.n * PAGE, MS_SYNC) : fdatasync(c->fd);

	return r < 0 ? -errno : 0;
}

static int flush_ideal(struct caller *c)
{
	uint64_t ticket, started;
	int r;

	pthread_mutex_lock(&shared->group.lock);
	ticket = ++shared->group.requested;
	while (shared->group.durable < ticket && !shared->group.error) {
		if (shared->group.in_flight) {
			pthread_cond_wait(&shared->group.ended, &shared->group.lock);
			continue;
		}
		shared->group.in_flight = true;
		started = shared->group.requested;
		pthread_mutex_unlock(&shared->group.lock);
		r = flush_whole(c);
		pthread_mutex_lock(&shared->group.lock);
		shared->group.in_flight = false;
		shared->group.durable = started;
		shared->group.error = r;
		pthread_cond_broadcast(&shared->group.ended);
	}
	r = shared->group.error;
	pthread_mutex_unlock(&shared->group.lock);
	return r;
}

static int flush_socket(struct caller *c)
{
	return pmem_agent_flush(c->agent, c->fd, bench.stores ? PMEM_AGENT_SCOPE_FILE_DATA : PMEM_AGENT_SCOPE_REGION,
				PMEM_AGENT_NO_TIMEOUT, NULL);
}

static int flush_dbus(struct caller *c)
{
	return sd_bus_call_method(c->bus, "io.pmem.Agent1", "/io/pmem/Agent1", "io.pmem.Agent1.Manager", "Flush", NULL,
				  NULL, "ha{sv}", c->fd, 2, "scope", "s", bench.stores ? "file" : "region", "datasync",
				  "b", (int)bench.stores);
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

static char *map_pages(int fd)
{
	char *pages = mmap(NULL, (size_t)bench.n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return pages == MAP_FAILED ? NULL : pages;
}

static int caller_open(struct caller *c)
{
	c->fd = open(bench.path, O_RDWR | O_CLOEXEC);
	if (c->fd < 0)
		return -errno;
	c->pages = bench.pages;
	if (bench.stores && bench.processes && !(c->pages = map_pages(c->fd)))
		return -errno;
	if (strcmp(bench.mode, "socket") == 0)
		return pmem_agent_connect(getenv("BENCH_SOCKET"), &c->agent);
	return strcmp(bench.mode, "dbus") == 0 ? sd_bus_open_system(&c->bus) : 0;
}

static int store_and_flush(struct caller *c, const struct way *way, uint64_t *ret_begun)
{
	if (bench.stores)
		__atomic_add_fetch((uint64_t *)(c->pages + c->number * PAGE), 1, __ATOMIC_RELAXED);
	*ret_begun = now_usec(CLOCK_MONOTONIC);
	return way->flush(c);
}

static void *call(void *userdata)
{
	struct caller *c = userdata;
	const struct way *way = find_way(bench.mode);
	uint64_t begun;
	int r = caller_open(c);

	if (r >= 0)
		r = store_and_flush(c, way, &begun);
	if (r < 0) {
		fprintf(stderr, "%s %s: %s\n", bench.mode, bench.path, strerror(-r));
		shared->failures++;
	}
	pthread_barrier_wait(&shared->ready);
	pthread_barrier_wait(&shared->ready);
	if (r < 0)
		return NULL;
	do {
		if (store_and_flush(c, way, &begun) < 0)
			shared->failures++;
		c->ended = now_usec(CLOCK_MONOTONIC);
		c->samples[c->n_samples++] = (uint32_t)(c->ended - begun);
	} while (c->ended < shared->until && c->n_samples < MAX_SAMPLES);
	return NULL;
}

static int start(struct caller *c)
{
	pid_t pid;

	if (!bench.processes)
		return -pthread_create(&c->thread, NULL, call, c);
	pid = fork();
	if (pid != 0)
		return pid < 0 ? -errno : 0;
	call(c);
	_exit(0);
}

static void end(struct caller *c)
{
	int status;

	if (!bench.processes)
		pthread_join(c->thread, NULL);
	else if (wait(&status) < 0 || status != 0)
		shared->failures++;
}

static void *map_shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* What callers use in common; 0 or a negative errno. */
static int prepare(void)
{
	pthread_barrierattr_t barrier;
	pthread_mutexattr_t mutex;
	pthread_condattr_t condition;
	uint32_t *samples = map_shared(sizeof(*samples) * MAX_SAMPLES * bench.n);

	shared = map_shared(sizeof(*shared));
	if (!samples || !shared)
		return -ENOMEM;
	pthread_barrierattr_init(&barrier);
	pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->ready, &barrier, bench.n + 1);
	pthread_mutexattr_init(&mutex);
	pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&shared->group.lock, &mutex);
	pthread_condattr_init(&condition);
	pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&shared->group.ended, &condition);
	for (unsigned int i = 0; i < bench.n; i++) {
		shared->callers[i].number = i;
		shared->callers[i].samples = samples + (size_t)i * MAX_SAMPLES;
	}
	if (bench.stores && !bench.processes) {
		int fd = open(bench.path, O_RDWR | O_CLOEXEC);

		if (fd < 0 || !(bench.pages = map_pages(fd)))
			return -errno;
	}
	return 0;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void report(uint64_t begun)
{
	const struct caller *callers = shared->callers;
	uint64_t ended = begun;
	uint32_t *all = NULL;
	size_t n = 0;

	for (unsigned int i = 0; i < bench.n; i++) {
		n += callers[i].n_samples;
		if (callers[i].ended > ended)
			ended = callers[i].ended;
	}
	all = calloc(n, sizeof(*all));
	if (!all || n == 0)
		exit(1);
	n = 0;
	for (unsigned int i = 0; i < bench.n; i++) {
		memcpy(all + n, callers[i].samples, callers[i].n_samples * sizeof(*all));
		n += callers[i].n_samples;
	}
	qsort(all, n, sizeof(*all), compare);
	printf("{\"callers\": %u, \"requests\": %zu, \"flushes_asked\": %zu, \"failures\": %u, \"usec\": %" PRIu64
	       ", \"p50\": %u, \"p99\": %u}\n",
	       bench.n, n, n + bench.n, shared->failures, ended - begun, all[n / 2], all[n - 1 - n / 100]);
	free(all);
}

int main(int argc, char **argv)
{
	uint64_t begun;
	int r;

	if (argc != 6 || !find_way(argv[1])) {
		fprintf(stderr,
			"usage: bench-flush plain|ideal|socket|dbus region|file|msync CALLERS[p] SECONDS FILE\n");
		return 2;
	}
	bench.mode = argv[1];
	bench.msync = strcmp(argv[2], "msync") == 0;
	bench.stores = bench.msync || strcmp(argv[2], "file") == 0;
	bench.n = (unsigned int)atoi(argv[3]);
	bench.processes = strchr(argv[3], 'p') != NULL;
	bench.path = argv[5];
	if (bench.n < 1 || bench.n > MAX_CALLERS)
		return 2;
	r = prepare();
	for (unsigned int i = 0; r == 0 && i < bench.n; i++)
		r = start(&shared->callers[i]);
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", bench.path, strerror(-r));
		return 1;
	}
	pthread_barrier_wait(&shared->ready);
	begun = now_usec(CLOCK_MONOTONIC);
	shared->until = begun + (uint64_t)(atof(argv[4]) * USEC_PER_SEC);
	pthread_barrier_wait(&shared->ready);
	for (unsigned int i = 0; i < bench.n; i++)
		end(&shared->callers[i]);
	report(begun);
	return 0;
}
