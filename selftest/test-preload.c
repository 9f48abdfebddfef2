/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-preload: libpmem-agent-preload: what becomes of the calls of a program
 */
#include "selftest/preloaded.h"

/* ---- the table ---- */

static char *print_table(bool preloaded, const char *path)
{
	static char texts[4][16384];
	static unsigned int next;
	char *text = texts[next++ % 4];
	struct program p;

	start_program(&p, preloaded, ARGUMENTS("load-rows", path));
	text[fread(text, 1, sizeof(texts[0]) - 1, p.text)] = '\0';
	end_program(&p);
	return text;
}

static void assert_same_table(const char *bare, const char *preloaded)
{
	unsigned int n = 0;

	for (const char *p = bare; *p; p = strchr(p, '\n') + 1)
		n++;
	assert_in_range(n, 60, 1000);
	if (strcmp(bare, preloaded) != 0)
		print_error("without:\n%s\nwith:\n%s\n", bare, preloaded);
	assert_string_equal(bare, preloaded);
}

static void test_ordinary_file(void **state)
{
	uint64_t before = rounds();

	/* It passes addresses that are wrong, which valgrind has something to say about. */
	if (getenv("SELFTEST_VALGRIND"))
		skip();
	assert_same_table(print_table(false, ordinary), print_table(true, ordinary));
	assert_int_equal(rounds(), before);
}

static void test_file_of_region(void **state)
{
	uint64_t before = rounds();
	char *bare;

	if (getenv("SELFTEST_VALGRIND"))
		skip();
	bare = print_table(false, served.session.emulated);
	assert_int_equal(rounds(), before);
	assert_same_table(bare, print_table(true, served.session.emulated));
	assert_true(rounds() > before + 100);
}

/* ---- */

static void test_each_call_is_a_flush(void **state)
{
	static const char *const words[] = { "fsync", "fdatasync", "msync" };

	for (unsigned int i = 0; i < ARRAY_SIZE(words); i++) {
		uint64_t before = rounds();
		struct program p;

		start_program(&p, true, WORDS(words[i]));
		fgetc(p.text);
		end_program(&p);
		assert_int_equal(rounds(), before + 1);
	}
}

/* How many descriptors of the file the agent has. */
static unsigned int count_kept(void)
{
	char pattern[64], to[PATH_MAX];
	glob_t links = { 0 };
	unsigned int n = 0;

	snprintf(pattern, sizeof(pattern), "/proc/%d/fd/*", served.session.agent);
	assert_int_equal(glob(pattern, 0, NULL, &links), 0);
	for (size_t i = 0; i < links.gl_pathc; i++) {
		ssize_t size = readlink(links.gl_pathv[i], to, sizeof(to) - 1);

		to[size > 0 ? size : 0] = '\0';
		n += strcmp(to, served.session.emulated) == 0;
	}
	globfree(&links);
	return n;
}

/* What it only looks at, or flushes, it has closed a moment later; if it hadn't, this would not end. */
static void wait_for_kept(unsigned int n)
{
	while (count_kept() != n)
		sched_yield();
}

/* What has been looked up and kept open is a process's own, and the application may close it. */
static void test_kept_open(void **state)
{
	static const char *const what[] = { "fork", "close960" };

	for (unsigned int i = 0; i < ARRAY_SIZE(what); i++) {
		uint64_t before = rounds();
		struct program p;

		start_program(&p, true, WORDS("msync", "msync", what[i], "elsewhere", "msync", "msync"));
		assert_words(&p, 6, " 0 0");
		end_program(&p);
		assert_int_equal(rounds(), before + 4);
	}
}

/* Where the application has closed it the agent has one, until nothing is mapped of it any more. */
static void test_no_descriptor(void **state)
{
	static const char *const closes[] = { "close", "fclose" };
	static const char *const unmaps[] = { "munmap", "cover" };

	for (unsigned int i = 0; i < 4; i++) {
		uint64_t before = rounds();
		struct program p;

		wait_for_kept(0);
		start_program(&p, true,
			      WORDS(closes[i % 2], "msync", "move", "msync", "pause", unmaps[i / 2], "pause"));
		assert_words(&p, 5, " 0 0");
		wait_for_kept(1);
		go_on(&p);
		/* When it has printed that, it has been dropped. */
		assert_words(&p, 2, " 0 0");
		assert_int_equal(count_kept(), 0);
		go_on(&p);
		end_program(&p);
		assert_int_equal(rounds(), before + 2);
	}
}

/* One that dies, or whose agent does, has nothing kept; then the real call does it. */
static void test_keeper_dies(void **state)
{
	struct program p;
	uint64_t before;

	start_program(&p, true, WORDS("close", "pause", "msync"));
	assert_prints(&p, "close 0 0");
	wait_for_kept(1);
	kill(p.pid, SIGKILL);
	wait_for_kept(0);
	waitpid(p.pid, NULL, 0);
	close(p.in);
	fclose(p.text);

	start_program(&p, true, WORDS("close", "pause", "msync"));
	assert_prints(&p, "close 0 0");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_stop_agent(&served), 0);
	assert_int_equal(served_start_agent(&served), 0);
	before = rounds();
	go_on(&p);
	assert_prints(&p, "msync 0 0");
	end_program(&p);
	assert_int_equal(rounds(), before);
}

/* ---- libpmem ---- */

static void test_libpmem(void **state)
{
	static const char *const words[] = { "pmem_persist", "pmem_drain", "pmem_deep_persist", "pmem_memset_persist" };
	char wanted[64];

	if (!dlopen("libpmem.so.1", RTLD_NOW)) {
		print_message("# libpmem.so.1 is not here\n");
		skip();
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(words); i++) {
		uint64_t before = rounds();
		struct program p;

		start_program(&p, true, WORDS("close", words[i], "munmap", "pmem_drain"));
		assert_prints(&p, "close 0 0");
		snprintf(wanted, sizeof(wanted), "%s 0 0", words[i]);
		assert_prints(&p, wanted);
		assert_words(&p, 2, " 0 0");
		end_program(&p);
		assert_int_equal(rounds(), ++before);

		/* The control: what it does by itself. */
		start_program(&p, false, WORDS(words[i]));
		assert_prints(&p, wanted);
		end_program(&p);
		assert_int_equal(rounds(), before);
	}
}

/* ---- */

/* The pages that it has seen it still sees. */
static void test_chroot(void **state)
{
	struct pmem_agent_page *page = map_page();
	struct program p;

	if (geteuid() != 0)
		skip();
	assert_int_equal(served_stop_agent(&served), 0);
	for (unsigned int lost = 0; lost < 2; lost++) {
		start_program(&p, true, WORDS("fsync", "chroot", "pause", "fsync", "msync"));
		assert_prints(&p, "fsync 0 0");
		assert_prints(&p, "chroot 0 0");
		assert_prints(&p, "pause 0 0");
		page->agent.loss = page->agent.acknowledged + lost;
		go_on(&p);
		assert_prints(&p, lost ? "fsync -1 5" : "fsync 0 0");
		assert_prints(&p, lost ? "msync -1 5" : "msync 0 0");
		end_program(&p);
	}
	page->agent.acknowledged = page->agent.loss;
	assert_int_equal(served_start_agent(&served), 0);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
}

/* ---- many threads ---- */

#define N_THREADS 64
#define N_TURNS   40

static char *shared_map;
static const char *shared_path;
static int shared_fd;

/* Some flush by what all have; the others map, flush, close and unmap what is their own. */
static void *run_thread(void *userdata)
{
	uintptr_t number = (uintptr_t)userdata, bad = 0;
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);

	for (unsigned int i = 0; i < N_TURNS; i++) {
		int fd = number % 2 ? open(shared_path, O_RDWR | O_CLOEXEC) : -1;
		char *map = number % 2 ? mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;

		switch (number % 4) {
		case 0:
			bad += msync(shared_map + page * (number % 16), page, MS_SYNC) != 0;
			break;
		case 1:
			bad += msync(map, page, MS_SYNC) != 0 || close(fd) != 0;
			break;
		case 2:
			bad += fsync(shared_fd) != 0;
			break;
		case 3:
			bad += close(fd) != 0 || msync(map, page, MS_SYNC) != 0;
			break;
		}
		if (map)
			bad += munmap(map, page) != 0;
	}
	return (void *)bad;
}

static int do_threads(const char *path)
{
	pthread_t threads[N_THREADS];
	uintptr_t bad = 0;
	void *result;

	shared_path = path;
	shared_fd = open(path, O_RDWR | O_CLOEXEC);
	shared_map = mmap(NULL, 16 * (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
	for (uintptr_t i = 0; i < N_THREADS; i++)
		if (pthread_create(&threads[i], NULL, run_thread, (void *)i) != 0)
			return 1;
	for (unsigned int i = 0; i < N_THREADS; i++) {
		pthread_join(threads[i], &result);
		bad += (uintptr_t)result;
	}
	printf("%lu\n", (unsigned long)bad);
	return 0;
}

static void test_threads(void **state)
{
	uint64_t before = rounds();
	struct program p;

	start_program(&p, true, ARGUMENTS("test-preload", "threads", served.session.emulated));
	assert_prints(&p, "0");
	end_program(&p);
	assert_true(rounds() > before);
	wait_for_kept(0);
}

/* ---- */

/* How many looks preload-fail has counted at N_CALLS calls on the file, whose descriptor is made anew at times. */
static unsigned int count_looks(const char *path, const char *way)
{
	struct program p;
	unsigned int n = 0;

	setenv("PRELOAD_FAIL", "nothing", 1);
	start_program(&p, true, ARGUMENTS("test-preload", "looks", path, way));
	unsetenv("PRELOAD_FAIL");
	assert_int_equal(fscanf(p.text, "%u", &n), 1);
	end_program(&p);
	return n;
}

#define N_CALLS 1000

static int do_looks(const char *path, const char *way)
{
	unsigned int (*looks)(void) = (unsigned int (*)(void))dlsym(RTLD_DEFAULT, "preload_looks"), before = 0;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (!looks)
		return 1;
	for (unsigned int i = 0; i < N_CALLS; i++) {
		if (i == 1)
			before = looks();
		if (fsync(fd) < 0)
			return 1;
		if (strcmp(way, "reopened") == 0) {
			close(fd);
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
	}
	printf("%u\n", looks() - before);
	return 0;
}

static void test_ordinary_costs_nothing(void **state)
{
	unsigned int n = count_looks(ordinary, "kept");

	/* One in a second. */
	print_message("# %u looks at %u calls\n", n, N_CALLS);
	assert_in_range(n, 0, N_CALLS / 10);
	/* The controls: a number that has been closed, and a file that is to be flushed. */
	assert_in_range(count_looks(ordinary, "reopened"), N_CALLS - 1, 2 * N_CALLS);
	assert_in_range(count_looks(served.session.emulated, "kept"), N_CALLS - 1, 4 * N_CALLS);
}

/* Syncs memory of one of two files that it has mapped; whoever traces it counts between the two stops. */
static int do_calls(const char *path, const char *other)
{
	int fds[] = { open(path, O_RDWR | O_CLOEXEC), open(other, O_RDWR | O_CLOEXEC) };
	char *p[2];

	for (unsigned int i = 0; i < 2; i++)
		p[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
	if (p[0] == MAP_FAILED || p[1] == MAP_FAILED || ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		return 1;
	raise(SIGSTOP);
	for (unsigned int i = 0; i < N_CALLS; i++)
		if (msync(p[0], 4096, MS_SYNC) < 0)
			return 1;
	raise(SIGSTOP);
	return 0;
}

/* System calls of N_CALLS msync(). */
static unsigned int count_calls(const char *path, const char *other)
{
	struct program p;
	unsigned int n_stops = 0;
	int status = 0;

	start_program(&p, true, ARGUMENTS("test-preload", "calls", path, other));
	assert_int_equal(waitpid(p.pid, &status, 0), p.pid);
	assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	assert_int_equal(ptrace(PTRACE_SETOPTIONS, p.pid, NULL, PTRACE_O_TRACESYSGOOD), 0);
	for (;; n_stops++) {
		assert_int_equal(ptrace(PTRACE_SYSCALL, p.pid, NULL, NULL), 0);
		assert_int_equal(waitpid(p.pid, &status, 0), p.pid);
		assert_true(WIFSTOPPED(status));
		if (WSTOPSIG(status) == SIGSTOP)
			break;
	}
	assert_int_equal(ptrace(PTRACE_DETACH, p.pid, NULL, NULL), 0);
	end_program(&p);
	/* One when it begins, one when it ends. */
	return n_stops / 2;
}

/* Where a process has mapped a file that is to be flushed, what else it has mapped costs no call more than before. */
static void test_other_memory_costs_nothing(void **state)
{
	if (getenv("SELFTEST_VALGRIND"))
		skip();
	assert_in_range(count_calls(ordinary, served.session.emulated), N_CALLS, N_CALLS + N_CALLS / 20);
	/* The control. */
	assert_in_range(count_calls(served.session.emulated, ordinary), 4 * N_CALLS, 12 * N_CALLS);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ordinary_file),
		cmocka_unit_test(test_file_of_region),
		cmocka_unit_test(test_each_call_is_a_flush),
		cmocka_unit_test(test_kept_open),
		cmocka_unit_test(test_no_descriptor),
		cmocka_unit_test(test_keeper_dies),
		cmocka_unit_test(test_libpmem),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_chroot),
		cmocka_unit_test(test_ordinary_costs_nothing),
		cmocka_unit_test(test_other_memory_costs_nothing),
	};

	if (argc > 2 && strcmp(argv[1], "words") == 0)
		return do_words(argv[2], argv + 3);
	if (argc == 4 && strcmp(argv[1], "calls") == 0)
		return do_calls(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "looks") == 0)
		return do_looks(argv[2], argv[3]);
	if (argc == 3 && strcmp(argv[1], "threads") == 0)
		return do_threads(argv[2]);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
