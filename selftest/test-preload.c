/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-preload: libpmem-agent-preload, in processes of their own, with the real agent and an emulated region
 */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/ptrace.h>

#include <cmocka.h>

#include "selftest/served.h"

static struct served served;
static char ordinary[96], page_path[160];

static int set_up(void **state)
{
	glob_t pages = { 0 };
	const char *missing;
	int fd;

	alarm(300);
	missing = served_start(&served, true);
	snprintf(ordinary, sizeof(ordinary), "%s/ordinary", served.session.directory);
	fd = missing ? -1 : open(ordinary, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (!missing && (fd < 0 || ftruncate(fd, 1 << 20) < 0))
		missing = "a file in /tmp";
	safe_close(fd);
	snprintf(page_path, sizeof(page_path), "%s/*.page", served.session.directory);
	if (!missing && glob(page_path, 0, NULL, &pages) != 0)
		missing = "a page";
	if (missing)
		print_error("test-preload needs %s\n", missing);
	else
		snprintf(page_path, sizeof(page_path), "%s", pages.gl_pathv[0]);
	globfree(&pages);
	return missing ? -1 : 0;
}

static int tear_down(void **state)
{
	unlink(ordinary);
	served_stop(&served);
	return 0;
}

/* ---- programs ---- */

struct program {
	pid_t pid;
	int in, out;
	FILE *text;
};

/* That of threads wants to be there before anything calls: its library, "" in a build without it. */
static const char *sanitizer(void)
{
	void *init = dlsym(RTLD_DEFAULT, "__tsan_init");
	Dl_info info;

	return init && dladdr(init, &info) ? info.dli_fname : "";
}

/* What it finds wrong is its exit status. The agent, which this process starts, is none of its business. */
static void execute_in_valgrind(const char *program, const char *const *arguments)
{
	const char *all[16] = { "valgrind", "-q", "--error-exitcode=99", program };

	for (unsigned int i = 4; i < ARRAY_SIZE(all) - 1 && *arguments; i++)
		all[i] = *arguments++;
	execvp(all[0], (char *const *)all);
}

/* One that was built beside this one. */
static _Noreturn void execute(bool preloaded, const char *const *arguments)
{
	char program[PATH_MAX], library[PATH_MAX], fail[PATH_MAX], all[3 * PATH_MAX];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	served_find("libpmem-agent-preload.so", library, sizeof(library));
	served_find("preload-fail.so", fail, sizeof(fail));
	snprintf(all, sizeof(all), "%s:%s:%s", sanitizer(), preloaded ? library : "",
		 getenv("PRELOAD_FAIL") ? fail : "");
	setenv("LD_PRELOAD", all, 1);
	setenv("PMEM_AGENT_RUNTIME_DIR", served.session.directory, 1);
	/* That of this program comes after ours. */
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
	served_find(arguments[0], program, sizeof(program));
	if (getenv("SELFTEST_VALGRIND"))
		execute_in_valgrind(program, arguments + 1);
	execv(program, (char *const *)arguments);
	_exit(127);
}

static void start_program(struct program *p, bool preloaded, const char *const *arguments)
{
	int in[2], out[2];

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	p->pid = fork();
	if (p->pid == 0) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execute(preloaded, arguments);
	}
	close(in[0]);
	close(out[1]);
	p->in = in[1];
	p->text = fdopen(out[0], "re");
}

static void end_program(struct program *p)
{
	int status = -1;

	close(p->in);
	fclose(p->text);
	waitpid(p->pid, &status, 0);
	assert_int_equal(status, 0);
}

#define ARGUMENTS(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* The next line of what it prints. */
static void assert_prints(struct program *p, const char *wanted)
{
	char line[128] = "";

	assert_non_null(fgets(line, sizeof(line), p->text));
	line[strcspn(line, "\n")] = '\0';
	assert_string_equal(line, wanted);
}

/* Each of the next lines ends so. */
static void assert_words(struct program *p, unsigned int n, const char *end)
{
	char line[128];

	while (n-- > 0) {
		assert_non_null(fgets(line, sizeof(line), p->text));
		line[strcspn(line, "\n")] = '\0';
		if (strlen(line) < strlen(end) || strcmp(line + strlen(line) - strlen(end), end) != 0)
			print_error("%s\n", line);
		assert_string_equal(line + strlen(line) - strlen(end), end);
	}
}

/* Lets it go on after "pause". */
static void go_on(struct program *p)
{
	assert_int_equal(write(p->in, "x", 1), 1);
}

/* A call of libpmem, as a program finds it that is linked with it. */
static int call_libpmem(const char *name, void *address, size_t size)
{
	void *call;

	if (!dlopen("libpmem.so.1", RTLD_NOW | RTLD_GLOBAL) || !(call = dlsym(RTLD_DEFAULT, name)))
		return -77;
	if (strcmp(name, "pmem_drain") == 0)
		((void (*)(void))call)();
	else if (strncmp(name, "pmem_deep", 9) == 0)
		return ((int (*)(const void *, size_t))call)(address, size);
	else if (strcmp(name, "pmem_memset_persist") == 0)
		((void *(*)(void *, int, size_t))call)(address, 'x', size);
	else
		((void (*)(const void *, size_t))call)(address, size);
	return 0;
}

/* The parent ends as the child does. */
static int go_on_in_child(void)
{
	int status = -1;
	pid_t pid = fork();

	if (pid <= 0)
		return pid;
	waitpid(pid, &status, 0);
	_exit(status);
}

/* What it does with `path`, one word a time, each with a line. */
static int do_words(const char *path, char **words)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	size_t size = 8192;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), c;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (; *words; words++) {
		const char *word = *words;
		int r = 0;

		errno = 0;
		if (strcmp(word, "fsync") == 0)
			r = fsync(fd);
		else if (strcmp(word, "fdatasync") == 0)
			r = fdatasync(fd);
		else if (strcmp(word, "msync") == 0)
			r = msync(p, 4096, MS_SYNC);
		else if (strcmp(word, "close") == 0)
			r = close(fd);
		else if (strcmp(word, "fclose") == 0)
			r = fclose(fdopen(fd, "r+e"));
		else if (strcmp(word, "open") == 0)
			r = open(path, O_RDWR | O_CLOEXEC) == fd ? 0 : -1;
		else if (strcmp(word, "munmap") == 0)
			r = munmap(p, size);
		else if (strcmp(word, "move") == 0)
			r = (p = mremap(p, size, 2 * size, MREMAP_MAYMOVE)) == MAP_FAILED ? -1 : ((size *= 2), 0);
		else if (strcmp(word, "cover") == 0)
			r = mmap(p, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p ? 0 : -1;
		else if (strcmp(word, "elsewhere") == 0)
			r = (p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED ? -1 : 0;
		else if (strcmp(word, "fork") == 0)
			r = go_on_in_child();
		else if (strcmp(word, "close960") == 0)
			r = close_range(960, ~0U, 0);
		else if (strcmp(word, "chroot") == 0)
			r = chroot("/proc/self/fdinfo");
		else if (strncmp(word, "pmem_", 5) == 0)
			r = call_libpmem(word, p + 100, 100);
		printf("%s %d %d\n", word, r, errno);
		if (strcmp(word, "pause") == 0 && read(STDIN_FILENO, &c, 1) != 1)
			return 1;
	}
	return 0;
}

/* ---- the agent, as the page shows it ---- */

static struct pmem_agent_page *map_page(void)
{
	_cleanup_close_ int fd = open(page_path, O_RDWR | O_CLOEXEC);
	void *page = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_true(page != MAP_FAILED);
	return page;
}

static uint64_t rounds(void)
{
	struct pmem_agent_page *page = map_page();
	uint64_t n = page->worker.done;

	munmap(page, PMEM_AGENT_PAGE_SIZE);
	return n;
}

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

#define WORDS(...) ARGUMENTS("test-preload", "words", served.session.emulated, __VA_ARGS__)

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

/* Where the application has closed it the agent has one, until nothing is mapped of it any more. */
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

/* ---- */

static void test_agent_restarted(void **state)
{
	struct program p;

	start_program(&p, true, WORDS("fsync", "pause", "fsync", "msync"));
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_stop_agent(&served), 0);
	assert_int_equal(served_start_agent(&served), 0);
	go_on(&p);
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "msync 0 0");
	end_program(&p);
}

/* Its own flushes must not wait for itself. */
static void test_agent_preloaded(void **state)
{
	char library[PATH_MAX], both[2 * PATH_MAX];
	struct program p;

	served_find("libpmem-agent-preload.so", library, sizeof(library));
	snprintf(both, sizeof(both), "%s:%s", sanitizer(), library);
	assert_int_equal(served_stop_agent(&served), 0);
	setenv("LD_PRELOAD", both, 1);
	setenv("PMEM_AGENT_RUNTIME_DIR", served.session.directory, 1);
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
	assert_int_equal(served_start_agent(&served), 0);
	unsetenv("LD_PRELOAD");
	unsetenv("PMEM_AGENT_RUNTIME_DIR");
	unsetenv("ASAN_OPTIONS");
	start_program(&p, true, WORDS("fsync", "msync"));
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "msync 0 0");
	end_program(&p);
}

static void test_no_agent(void **state)
{
	struct program p;
	uint64_t before;

	start_program(&p, true, WORDS("fsync", "pause", "fsync", "msync"));
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_stop_agent(&served), 0);
	before = rounds();
	go_on(&p);
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "msync 0 0");
	end_program(&p);

	start_program(&p, true, WORDS("fsync", "msync"));
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "msync 0 0");
	end_program(&p);
	assert_int_equal(rounds(), before);
	assert_int_equal(served_start_agent(&served), 0);
}

static void assert_words_fail(bool fail)
{
	static const char *const words[] = { "fsync", "fdatasync", "msync" };
	char wanted[32];
	struct program p;

	start_program(&p, true, WORDS("fsync", "fdatasync", "msync"));
	for (unsigned int i = 0; i < ARRAY_SIZE(words); i++) {
		snprintf(wanted, sizeof(wanted), fail ? "%s -1 5" : "%s 0 0", words[i]);
		assert_prints(&p, wanted);
	}
	end_program(&p);
}

static void acknowledge(uint64_t number)
{
	_cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;

	assert_true(sd_bus_open_system(&bus) >= 0);
	assert_true(sd_bus_call_method(bus, BUS_NAME, BUS_PATH "/region/emu0", BUS_INTERFACE_REGION, "AcknowledgeLoss",
				       NULL, NULL, "t", number) >= 0);
}

/* An error that only this process has seen stays, whatever the kernel says next. */
static void test_real_call_fails(void **state)
{
	struct pmem_agent_page *page = map_page();
	struct program p;

	assert_int_equal(served_stop_agent(&served), 0);
	setenv("PRELOAD_FAIL", served.session.emulated, 1);
	start_program(&p, false, WORDS("fsync", "fsync"));
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "fsync 0 0");
	end_program(&p);
	start_program(&p, true, WORDS("fsync", "fsync", "msync", "pause", "fdatasync", "pause", "fsync"));
	unsetenv("PRELOAD_FAIL");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "msync -1 5");
	assert_prints(&p, "pause 0 0");
	/* The agent did not know; the next call tells it, and then everybody knows. */
	assert_int_equal(served_start_agent(&served), 0);
	assert_words_fail(false);
	go_on(&p);
	assert_prints(&p, "fdatasync -1 5");
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_CALLER);
	assert_words_fail(true);
	assert_prints(&p, "pause 0 0");
	acknowledge(page->agent.loss);
	go_on(&p);
	assert_prints(&p, "fsync 0 0");
	end_program(&p);
	assert_words_fail(false);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
}

/* Where its only thread waits, says the kernel. */
static void wait_until_in(const struct program *p, int number)
{
	char path[64], text[256] = "", wanted[16];

	snprintf(path, sizeof(path), "/proc/%d/syscall", p->pid);
	snprintf(wanted, sizeof(wanted), "%d ", number);
	while (strncmp(text, wanted, strlen(wanted)) != 0) {
		_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = read(fd, text, sizeof(text) - 1);

		assert_true(n > 0);
		text[n] = '\0';
		sched_yield();
	}
}

/* What became of it nobody knows: calling the real one then would prove nothing. */
static void test_agent_killed_in_mid_wait(void **state)
{
	struct program p;
	pid_t worker;

	start_program(&p, true, WORDS("fsync", "pause", "fsync"));
	assert_prints(&p, "fsync 0 0");
	assert_prints(&p, "pause 0 0");
	worker = session_worker(&served.session);
	kill(worker, SIGSTOP);
	go_on(&p);
	wait_until_in(&p, SYS_recvfrom);
	served_kill_agent(&served);
	assert_prints(&p, "fsync -1 5");
	end_program(&p);
	kill(worker, SIGKILL);
	assert_int_equal(served_start_agent(&served), 0);
}

static void test_loss(void **state)
{
	struct pmem_agent_page *page = map_page();

	assert_int_equal(served_stop_agent(&served), 0);
	assert_words_fail(false);
	page->agent.loss = page->agent.acknowledged + 1;
	page->agent.loss_error = EIO;
	assert_words_fail(true);
	assert_int_equal(served_start_agent(&served), 0);
	assert_words_fail(true);
	assert_int_equal(served_stop_agent(&served), 0);
	assert_words_fail(true);
	page->agent.acknowledged = page->agent.loss;
	assert_words_fail(false);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
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

/* It can't be returned: the program ends. */
static void test_libpmem_fails(void **state)
{
	struct pmem_agent_page *page = map_page();
	struct program p;
	int status;

	if (!dlopen("libpmem.so.1", RTLD_NOW))
		skip();
	page->agent.loss = page->agent.acknowledged + 1;
	page->agent.loss_error = EIO;
	assert_int_equal(served_stop_agent(&served), 0);
	assert_int_equal(served_start_agent(&served), 0);
	start_program(&p, true, WORDS("pmem_deep_persist", "pmem_persist", "fsync"));
	assert_prints(&p, "pmem_deep_persist -1 5");
	assert_null(fgets((char[64]){ 0 }, 64, p.text));
	waitpid(p.pid, &status, 0);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	close(p.in);
	fclose(p.text);
	assert_int_equal(served_stop_agent(&served), 0);
	page->agent.acknowledged = page->agent.loss;
	assert_int_equal(served_start_agent(&served), 0);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
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

	for (unsigned int i = 0; i < N_TURNS; i++) {
		int fd = number % 2 ? open(shared_path, O_RDWR | O_CLOEXEC) : -1;
		char *map = number % 2 ? mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;

		switch (number % 4) {
		case 0:
			bad += msync(shared_map + 4096 * (number % 16), 4096, MS_SYNC) != 0;
			break;
		case 1:
			bad += msync(map, 4096, MS_SYNC) != 0 || close(fd) != 0;
			break;
		case 2:
			bad += fsync(shared_fd) != 0;
			break;
		case 3:
			bad += close(fd) != 0 || msync(map, 4096, MS_SYNC) != 0;
			break;
		}
		if (map)
			bad += munmap(map, 4096) != 0;
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
	shared_map = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
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

/* Of this process: field 22. */
static uint64_t own_start_time(void)
{
	char text[1024] = "", *p;
	_cleanup_close_ int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);

	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	p = strrchr(text, ')');
	for (unsigned int i = 0; i < 20; i++)
		p = strchr(p + 1, ' ');
	return strtoull(p, NULL, 10);
}

/* Left over by an agent that was killed. */
static void test_worker(void **state)
{
	struct pmem_agent_page *page = map_page(), saved = *page;
	struct program p;

	/* It died in its round: it may have taken an error. */
	page->worker.started = page->worker.done + 1;
	page->worker.pid = 1;
	page->worker.start_time = 0;
	assert_words_fail(true);

	/* It is in its round still: what else is flushed meanwhile waits for what that one says. */
	page->worker.pid = (uint32_t)getpid();
	page->worker.start_time = own_start_time();
	for (unsigned int failed = 0; failed < 2; failed++) {
		page->worker.started = page->worker.done + 1;
		start_program(&p, true, WORDS("fsync"));
		wait_until_in(&p, SYS_clock_nanosleep);
		page->worker.failed = failed ? page->worker.started : page->worker.failed;
		__atomic_store_n(&page->worker.done, page->worker.started, __ATOMIC_RELEASE);
		assert_prints(&p, failed ? "fsync -1 5" : "fsync 0 0");
		end_program(&p);
	}
	*page = saved;
	assert_words_fail(false);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
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
		cmocka_unit_test(test_libpmem_fails),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_chroot),
		cmocka_unit_test(test_ordinary_costs_nothing),
		cmocka_unit_test(test_other_memory_costs_nothing),
		cmocka_unit_test(test_agent_restarted),
		cmocka_unit_test(test_agent_preloaded),
		cmocka_unit_test(test_no_agent),
		cmocka_unit_test(test_real_call_fails),
		cmocka_unit_test(test_agent_killed_in_mid_wait),
		cmocka_unit_test(test_loss),
		cmocka_unit_test(test_worker),
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
