/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * load-cut: writers that note each promise they are given where the host sees it, for power to be cut at any moment
 *
 * usage: load-cut BOARD STORE FLUSH TARGET [p]LANES PROMISES SECONDS
 *        load-cut BOARD clear | note KIND SLOT SEQUENCE | init TARGET SLOTS | verify DIRECTORY PROMISES
 *        load-cut BOARD put TARGET SLOT SEQUENCE | ask TARGET SLOT SEQUENCE
 *
 * BOARD is device-dax memory (or any file): a word of magic, then one word a promise, in the order they were given.
 * STORE says what is stored: direct (a page of TARGET, by O_DIRECT), map (the same through a mapping), fresh (a page at
 * the end of a file of the lane's own below TARGET), meta (names, sizes and modes of such files). FLUSH says who makes
 * it durable: the agent with scope region, file or data, bus (D-Bus, region), persist (libpmem-agent-pmem2), host (the
 * host demands it: `pmemctl --host flush`), or fsync, fdatasync, msync, which `pmemctl run` makes the agent's. Each
 * lane is a thread, or with a p before their number a process, with slots of its own. `ask` has a region flushed, and
 * notes the promise if it is given. It ends after so many promises in all, or so many seconds; `verify` looks for the
 * first so many in what is left of the files. A loss is acknowledged when no lane has anything under way, and
 * everything is stored anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>

#include "agent/util.h"
#include "lib/pmem-agent-pmem2.h"

#define BOARD_MAGIC     0x6472616f42747543ULL
#define BOARD_SIZE      (2UL << 20)
#define DAX_ALIGNMENT   (2UL << 20)
#define PAGE            4096UL
#define SECTOR          512
#define SLOTS           8 /* of a lane */
#define MAX_LANES       64
#define FLUSH_USEC      (20 * USEC_PER_SEC)
#define REST_MSEC       10
#define HESITATION_MSEC 300
#define SECTOR_MAGIC    0x746f6c5365766f72ULL
#define MIX             0x9e3779b97f4a7c15ULL

enum kind { KIND_SLOT, KIND_FRESH, KIND_RENAME, KIND_APPEND, KIND_MODE };

static uint64_t *board;
static const char *target;
static uint64_t wanted, until;
static unsigned int n_lanes;
static bool processes;

/* Of all lanes, whatever they are. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int n_busy;
	bool lost;
	_Atomic uint64_t n_promises, n_refused, n_losses;
	_Atomic int last_error;
} * all;

struct lane {
	pthread_t thread;
	unsigned int number;
	uint64_t sequence;
	int fd, directory, other;
	char *map;
	struct pmem2_map *pmem2;
	struct pmem_agent_map *agent_map;
	struct pmem_agent *agent;
	sd_bus *bus;
	char *page;
	/* Of the newest store. */
	enum kind kind;
	unsigned int slot;
	int flushed;
	size_t offset;
};

/* ---- the board ---- */

static int board_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	board = mmap(NULL, BOARD_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return board == MAP_FAILED ? -errno : 0;
}

static void board_clear(void)
{
	memset(board, 0, BOARD_SIZE);
	__atomic_store_n(&board[0], BOARD_MAGIC, __ATOMIC_SEQ_CST);
}

/* Its place is its time: there is none between two that are there. */
static bool board_note(enum kind kind, uint64_t slot, uint64_t sequence)
{
	uint64_t value = 1ULL << 63 | (uint64_t)kind << 56 | slot << 32 | sequence;

	for (uint64_t i = all->n_promises; i < BOARD_SIZE / sizeof(*board) - 1; i++) {
		uint64_t none = 0;

		if (__atomic_compare_exchange_n(&board[1 + i], &none, value, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST)) {
			all->n_promises = i + 1;
			return true;
		}
	}
	return false;
}

/* ---- stores ---- */

static void fill_page(char *page, unsigned int slot, uint64_t sequence)
{
	for (unsigned int i = 0; i < PAGE / SECTOR; i++) {
		uint64_t *words = (uint64_t *)(page + i * SECTOR);

		words[0] = SECTOR_MAGIC;
		words[1] = (uint64_t)i << 32 | slot;
		words[2] = sequence;
		for (unsigned int k = 3; k < SECTOR / sizeof(*words); k++)
			words[k] = (sequence + k) * MIX;
	}
}

static void choose_slot(struct lane *l)
{
	l->kind = KIND_SLOT;
	l->slot = l->number * SLOTS + l->sequence % SLOTS;
	l->offset = l->slot * PAGE;
	l->flushed = l->fd;
}

static int store_direct(struct lane *l)
{
	choose_slot(l);
	fill_page(l->page, l->slot, l->sequence);
	return pwrite(l->fd, l->page, PAGE, (off_t)l->offset) == PAGE ? 0 : -errno;
}

static int store_map(struct lane *l)
{
	choose_slot(l);
	fill_page(l->page, l->slot, l->sequence);
	memcpy(l->map + l->offset, l->page, PAGE);
	return 0;
}

static int open_own(struct lane *l, const char *prefix, int flags)
{
	char name[64];

	snprintf(name, sizeof(name), "%s-%u", prefix, l->number);
	return openat(l->directory, name, flags | O_RDWR | O_CREAT | O_CLOEXEC, 0644);
}

/* Page N of the file has sequence number N + 1: whatever else it holds isn't what was stored. */
static int store_fresh(struct lane *l)
{
	off_t at = (off_t)((l->sequence - 1) * PAGE);
	char *map;

	if (l->map)
		munmap(l->map, PAGE);
	l->map = NULL;
	l->kind = KIND_FRESH;
	l->slot = l->number;
	l->flushed = l->fd;
	if (fallocate(l->fd, 0, at, PAGE) < 0)
		return -errno;
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, at);
	if (map == MAP_FAILED)
		return -errno;
	fill_page(map, l->slot, l->sequence);
	l->map = map;
	l->offset = 0;
	return 0;
}

/* A new file takes the place of the old one: its own content is made durable before. */
static int store_rename(struct lane *l, int (*flush)(struct lane *))
{
	_cleanup_close_ int fd = open_own(l, "new", O_TRUNC);
	char from[64], to[64];
	int r;

	if (fd < 0)
		return -errno;
	fill_page(l->page, l->number, l->sequence);
	if (pwrite(fd, l->page, PAGE, 0) != PAGE)
		return -errno;
	l->flushed = fd;
	r = flush(l);
	if (r < 0)
		return r;
	snprintf(from, sizeof(from), "new-%u", l->number);
	snprintf(to, sizeof(to), "renamed-%u", l->number);
	l->flushed = l->directory;
	return renameat(l->directory, from, l->directory, to) < 0 ? -errno : 0;
}

static int store_meta(struct lane *l, int (*flush)(struct lane *))
{
	l->slot = l->number;
	switch (l->sequence % 3) {
	case 0:
		l->kind = KIND_RENAME;
		return store_rename(l, flush);
	case 1:
		l->kind = KIND_APPEND;
		l->flushed = l->fd;
		fill_page(l->page, l->slot, l->sequence);
		return pwrite(l->fd, l->page, SECTOR, (off_t)(l->sequence / 3) * SECTOR) == SECTOR ? 0 : -errno;
	default:
		l->kind = KIND_MODE;
		l->flushed = l->other;
		return fchmod(l->other, l->sequence & 0777) < 0 ? -errno : 0;
	}
}

/* ---- flushes ---- */

static int flush_agent(struct lane *l, enum pmem_agent_scope scope)
{
	int r = l->agent ? 0 : pmem_agent_connect(NULL, &l->agent);

	return r < 0 ? r : pmem_agent_flush(l->agent, l->flushed, scope, FLUSH_USEC, NULL);
}

static int flush_region(struct lane *l)
{
	return flush_agent(l, PMEM_AGENT_SCOPE_REGION);
}

static int flush_file(struct lane *l)
{
	return flush_agent(l, PMEM_AGENT_SCOPE_FILE);
}

static int flush_data(struct lane *l)
{
	return flush_agent(l, PMEM_AGENT_SCOPE_FILE_DATA);
}

static int flush_bus(struct lane *l)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = l->bus ? 0 : sd_bus_open_system(&l->bus);

	if (r < 0)
		return r;
	r = sd_bus_call_method(l->bus, "io.pmem.Agent1", "/io/pmem/Agent1", "io.pmem.Agent1.Manager", "Flush", &error,
			       NULL, "ha{sv}", l->flushed, 1, "scope", "s", "region");
	if (r < 0 && error.name && strstr(error.name, "Lost"))
		return -EIO;
	if (r < 0 && !sd_bus_is_open(l->bus))
		l->bus = sd_bus_unref(l->bus);
	return r < 0 ? r : 0;
}

/* As a process of the host asks for it; what it names is a region or a mount point. */
static int flush_host(struct lane *l)
{
	const char *what = strncmp(target, "/dev/", 5) == 0 ? "region0" : target;
	char command[160];
	int status;

	snprintf(command, sizeof(command), "vm pmemctl flush %.*s >/dev/null 2>&1", 1 + (int)strcspn(what + 1, "/"),
		 what);
	status = system(command);
	if (status == 0)
		return 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 3 ? -EIO : -EAGAIN;
}

static int flush_persist(struct lane *l)
{
	return pmem_agent_persist(l->agent_map, l->map + l->offset, PAGE);
}

static int flush_fsync(struct lane *l)
{
	return fsync(l->flushed) < 0 ? -errno : 0;
}

static int flush_fdatasync(struct lane *l)
{
	return fdatasync(l->flushed) < 0 ? -errno : 0;
}

static int flush_msync(struct lane *l)
{
	return msync(l->map + l->offset, PAGE, MS_SYNC) < 0 ? -errno : 0;
}

static const struct {
	const char *name;
	int (*flush)(struct lane *);
} flushes[] = {
	{ "region", flush_region }, { "file", flush_file },       { "data", flush_data },
	{ "bus", flush_bus },       { "fsync", flush_fsync },     { "fdatasync", flush_fdatasync },
	{ "msync", flush_msync },   { "persist", flush_persist }, { "host", flush_host },
};

static int (*flush)(struct lane *);

static int meta(struct lane *l)
{
	return store_meta(l, flush);
}

static const struct {
	const char *name;
	int (*store)(struct lane *);
} stores[] = { { "direct", store_direct }, { "map", store_map }, { "fresh", store_fresh }, { "meta", meta } };

static int (*store)(struct lane *);

/* ---- losses: nobody acknowledges one with a store under way that it may have taken ---- */

static bool enough(void)
{
	return all->n_promises >= wanted || now_usec(CLOCK_MONOTONIC) >= until;
}

static void acknowledge(void)
{
	glob_t pages;

	if (glob(PMEM_AGENT_RUNTIME_DIR "/*.page", 0, NULL, &pages) == 0) {
		for (size_t i = 0; i < pages.gl_pathc; i++) {
			_cleanup_close_ int fd = open(pages.gl_pathv[i], O_RDONLY | O_CLOEXEC);
			struct pmem_agent_page page;
			char command[128];

			if (fd < 0 || read(fd, &page, sizeof(page)) != sizeof(page) ||
			    page.agent.loss <= page.agent.acknowledged)
				continue;
			all->n_losses++;
			/* Whose page it is it doesn't say; a region without a loss of that number refuses. */
			snprintf(command, sizeof(command),
				 "for i in 0 3 4; do pmemctl acknowledge region$i --loss=%" PRIu64
				 " && s=0; done >/dev/null 2>&1; exit ${s-1}",
				 page.agent.loss);
			if (system(command) != 0)
				poll(NULL, 0, REST_MSEC);
		}
		globfree(&pages);
	}
}

static void enter(void)
{
	pthread_mutex_lock(&all->lock);
	while (all->lost) {
		if (all->n_busy > 0) {
			pthread_cond_wait(&all->changed, &all->lock);
			continue;
		}
		acknowledge();
		all->lost = false;
		pthread_cond_broadcast(&all->changed);
	}
	all->n_busy++;
	pthread_mutex_unlock(&all->lock);
}

static void leave(int r)
{
	pthread_mutex_lock(&all->lock);
	all->n_busy--;
	all->lost |= r == -EIO;
	pthread_cond_broadcast(&all->changed);
	pthread_mutex_unlock(&all->lock);
}

/* ---- lanes ---- */

/* What is stored and not asked for yet: a flush may take it, and fail, and nobody who asks then has been told of it. */
static void hesitate(void)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_nsec += HESITATION_MSEC * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000;
	end.tv_nsec %= 1000000000;
	pthread_mutex_lock(&all->lock);
	while (!all->lost && pthread_cond_timedwait(&all->changed, &all->lock, &end) == 0)
		;
	pthread_mutex_unlock(&all->lock);
}

static void *run_lane(void *userdata)
{
	struct lane *l = userdata;
	bool room = true;

	while (room && !enough()) {
		int r;

		/* Else all lanes would come at once, and none while a flush is under way. */
		if (l->sequence * MIX >> 61 == l->number % 8)
			poll(NULL, 0, 1 + (int)(l->number % 4));
		enter();
		/* Its own file is written page by page, none twice. */
		l->sequence++;
		r = store(l);
		if (n_lanes > 1 && (l->sequence + l->number) % 8 == 3)
			hesitate();
		if (r == 0)
			r = flush(l);
		if (r == 0)
			room = board_note(l->kind, l->slot, l->sequence);
		leave(r);
		if (r < 0) {
			all->n_refused++;
			all->last_error = -r;
			poll(NULL, 0, REST_MSEC);
		}
	}
	return NULL;
}

/* Device-dax is mapped in whole pieces, and never read or written. */
static int map_slots(int fd, unsigned int n, char **ret)
{
	struct stat st;
	size_t size = n * PAGE;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISCHR(st.st_mode))
		size = (size + DAX_ALIGNMENT - 1) & ~(DAX_ALIGNMENT - 1);
	*ret = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return *ret == MAP_FAILED ? -errno : 0;
}

static int map_by_pmem2(struct lane *l)
{
	struct pmem2_config *config;
	struct pmem2_source *source;
	int r = pmem2_config_new(&config) < 0 || pmem2_source_from_fd(&source, l->fd) < 0 ? -EIO : 0;

	if (r == 0 && (pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE) < 0 ||
		       pmem2_map_new(&l->pmem2, config, source) < 0))
		r = -EIO;
	if (r == 0)
		r = pmem_agent_connect(NULL, &l->agent);
	if (r == 0)
		r = pmem_agent_map_new(l->agent, l->fd, l->pmem2, 0, &l->agent_map);
	if (r < 0) {
		fprintf(stderr, "load-cut: pmem2: %s, %s\n", strerror(-r), pmem2_errormsg());
		errno = -r;
		return r;
	}
	l->map = pmem2_map_get_address(l->pmem2);
	return 0;
}

static int lane_open(struct lane *l)
{
	bool own = store == store_fresh || store == meta;

	l->page = aligned_alloc(PAGE, PAGE);
	l->directory = own ? open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	l->fd = own ? open_own(l, store == meta ? "appended" : "fresh", 0)
		    : open(target, O_RDWR | O_CLOEXEC | (store == store_direct ? O_DIRECT : 0));
	l->other = store == meta ? open_own(l, "mode", 0) : -1;
	if (!l->page || l->fd < 0)
		return -errno;
	if (store != store_map)
		return 0;
	if (flush == flush_persist ? map_by_pmem2(l) < 0 : map_slots(l->fd, (l->number + 1) * SLOTS, &l->map) < 0)
		return -errno;
	/* What an earlier run has stored there has lower numbers. */
	for (unsigned int i = 0; i < SLOTS; i++) {
		const uint64_t *words = (const uint64_t *)(l->map + (l->number * SLOTS + i) * PAGE);

		if (words[2] > l->sequence)
			l->sequence = words[2];
	}
	return 0;
}

static int write_slots(const char *path, unsigned int n)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	char page[PAGE], *map;
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode)) {
		if (map_slots(fd, n, &map) < 0)
			return 1;
		for (unsigned int i = 0; i < n; i++)
			fill_page(map + i * PAGE, i, 0);
		return 0;
	}
	for (unsigned int i = 0; i < n; i++) {
		fill_page(page, i, 0);
		if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
			return 1;
	}
	return fsync(fd) < 0;
}

/* ---- what is left ---- */

static bool is_whole(const char *page, size_t size, unsigned int slot, uint64_t least)
{
	char expected[PAGE];

	for (size_t at = 0; at < size; at += SECTOR) {
		uint64_t found = ((const uint64_t *)(page + at))[2];

		fill_page(expected, slot, found);
		if (found < least || memcmp(page + at, expected + at, SECTOR) != 0)
			return false;
	}
	return true;
}

static bool holds(int directory, const char *name, off_t at, size_t size, unsigned int slot, uint64_t least)
{
	_cleanup_close_ int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
	char page[PAGE];

	return fd >= 0 && pread(fd, page, size, at) == (ssize_t)size && is_whole(page, size, slot, least);
}

static bool is_kept(int directory, enum kind kind, unsigned int slot, uint64_t sequence)
{
	static const char *const prefixes[] = { "slots", "fresh", "renamed", "appended", "mode" };
	struct stat st;
	char name[64];

	snprintf(name, sizeof(name), kind == KIND_SLOT ? "%s" : "%s-%u", prefixes[kind], slot);
	switch (kind) {
	case KIND_SLOT:
		return holds(directory, name, (off_t)(slot * PAGE), PAGE, slot, sequence);
	case KIND_FRESH:
		return holds(directory, name, (off_t)((sequence - 1) * PAGE), PAGE, slot, sequence);
	case KIND_RENAME:
		return holds(directory, name, 0, PAGE, slot, sequence);
	case KIND_APPEND:
		return holds(directory, name, (off_t)(sequence / 3 * SECTOR), SECTOR, slot, sequence);
	default: /* no more than so many were under way when power was cut */
		return fstatat(directory, name, &st, 0) == 0 && ((st.st_mode - sequence) & 0777) < 0400;
	}
}

static int verify(const char *path, uint64_t n)
{
	_cleanup_close_ int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint64_t newest[KIND_MODE + 1][MAX_LANES * SLOTS] = {}, n_gone = 0;

	for (uint64_t i = 0; i < n; i++)
		newest[board[1 + i] >> 56 & 0x7f][board[1 + i] >> 32 & 0xffff] = i;
	for (uint64_t i = 0; i < n; i++) {
		enum kind kind = (enum kind)(board[1 + i] >> 56 & 0x7f);
		unsigned int slot = board[1 + i] >> 32 & 0xffff;

		/* What was promised later of the same takes its place; pages at the end of a file stay. */
		if ((kind == KIND_FRESH || kind == KIND_APPEND || newest[kind][slot] == i) &&
		    !is_kept(directory, kind, slot, (uint32_t)board[1 + i]) && n_gone++ < 3)
			printf("promise %" PRIu64 ", kind %d, slot %u, number %" PRIu32 " is gone\n", i, (int)kind,
			       slot, (uint32_t)board[1 + i]);
	}
	if (n_gone > 0)
		printf("%" PRIu64 " of %" PRIu64 " promises are broken\n", n_gone, n);
	return n_gone > 0;
}

static int put(const char *path, unsigned int slot, uint64_t sequence)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	char *page = aligned_alloc(PAGE, PAGE);

	if (fd < 0 || !page)
		return 1;
	fill_page(page, slot, sequence);
	return pwrite(fd, page, PAGE, (off_t)(slot * PAGE)) != PAGE;
}

static int ask(const char *path, unsigned int slot, uint64_t sequence)
{
	struct lane l = { .flushed = open(path, O_RDWR | O_CLOEXEC) };
	int r = flush_region(&l);

	printf("%s\n", r == 0 ? "durable" : strerrorname_np(-r));
	return r == 0 && !board_note(KIND_SLOT, slot, sequence);
}

static int run_command(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[2], "clear") == 0)
		board_clear();
	else if (argc == 5 && strcmp(argv[2], "init") == 0)
		return write_slots(argv[3], (unsigned int)atoi(argv[4]));
	else if (argc == 6 && strcmp(argv[2], "note") == 0)
		return !board_note((enum kind)atoi(argv[3]), strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10));
	else if (argc == 5 && strcmp(argv[2], "verify") == 0)
		return verify(argv[3], strtoull(argv[4], NULL, 10));
	else if (argc == 6 && strcmp(argv[2], "put") == 0)
		return put(argv[3], (unsigned int)atoi(argv[4]), strtoull(argv[5], NULL, 10));
	else if (argc == 6 && strcmp(argv[2], "ask") == 0)
		return ask(argv[3], (unsigned int)atoi(argv[4]), strtoull(argv[5], NULL, 10));
	else
		return 2;
	return 0;
}

static int share(void)
{
	pthread_mutexattr_t lock;
	pthread_condattr_t changed;

	all = mmap(NULL, sizeof(*all), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return -errno;
	pthread_mutexattr_init(&lock);
	pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&all->lock, &lock);
	pthread_condattr_init(&changed);
	pthread_condattr_setpshared(&changed, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&all->changed, &changed);
	return 0;
}

/* It opens what it uses by itself, as programs that know nothing of each other do. */
static void run_process(struct lane *l)
{
	if (fork() != 0)
		return;
	if (lane_open(l) < 0) {
		perror(target);
		_exit(1);
	}
	run_lane(l);
	_exit(0);
}

static int run_processes(struct lane *lanes)
{
	int status, r = 0;

	for (unsigned int i = 0; i < n_lanes; i++)
		run_process(&lanes[i]);
	while (wait(&status) > 0)
		r |= status != 0;
	return r;
}

static int run_threads(struct lane *lanes)
{
	for (unsigned int i = 0; i < n_lanes; i++) {
		if (lane_open(&lanes[i]) < 0) {
			perror(target);
			return 1;
		}
	}
	for (unsigned int i = 0; i < n_lanes; i++)
		if (pthread_create(&lanes[i].thread, NULL, run_lane, &lanes[i]) != 0)
			return 1;
	for (unsigned int i = 0; i < n_lanes; i++)
		pthread_join(lanes[i].thread, NULL);
	return 0;
}

static int run(void)
{
	static struct lane lanes[MAX_LANES];
	int r;

	for (unsigned int i = 0; i < n_lanes; i++)
		lanes[i].number = i;
	r = processes ? run_processes(lanes) : run_threads(lanes);
	printf("%" PRIu64 " promises, %" PRIu64 " refused, %" PRIu64 " losses, last error: %s\n", all->n_promises,
	       all->n_refused, all->n_losses, strerrordesc_np(all->last_error));
	return r;
}

int main(int argc, char **argv)
{
	int r = argc > 2 ? board_open(argv[1]) : -EINVAL;

	if (r == 0)
		r = share();
	if (r < 0) {
		fprintf(stderr, "load-cut: %s\n", strerror(-r));
		return 2;
	}
	if (argc != 8)
		return run_command(argc, argv);
	for (size_t i = 0; i < ARRAY_SIZE(stores); i++)
		if (strcmp(stores[i].name, argv[2]) == 0)
			store = stores[i].store;
	for (size_t i = 0; i < ARRAY_SIZE(flushes); i++)
		if (strcmp(flushes[i].name, argv[3]) == 0)
			flush = flushes[i].flush;
	processes = argv[5][0] == 'p';
	n_lanes = (unsigned int)atoi(argv[5] + processes);
	if (!store || !flush || n_lanes < 1 || n_lanes > MAX_LANES)
		return 2;
	target = argv[4];
	wanted = strtoull(argv[6], NULL, 10);
	until = now_usec(CLOCK_MONOTONIC) + strtoull(argv[7], NULL, 10) * USEC_PER_SEC;
	return run();
}
