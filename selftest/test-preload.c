/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-preload: libpmem-agent-preload, in processes of their own, with the real agent and an emulated region
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

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

/* One that was built beside this one. */
static _Noreturn void execute(bool preloaded, const char *const *arguments)
{
	char program[PATH_MAX], library[PATH_MAX], fail[PATH_MAX], both[2 * PATH_MAX + 2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	served_find("libpmem-agent-preload.so", library, sizeof(library));
	served_find("preload-fail.so", fail, sizeof(fail));
	snprintf(both, sizeof(both), "%s%s%s", preloaded ? library : "", preloaded && getenv("PRELOAD_FAIL") ? ":" : "",
		 getenv("PRELOAD_FAIL") ? fail : "");
	setenv("LD_PRELOAD", both, 1);
	setenv("PMEM_AGENT_RUNTIME_DIR", served.session.directory, 1);
	/* That of this program comes after ours. */
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
	served_find(arguments[0], program, sizeof(program));
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

/* Lets it go on after "pause". */
static void go_on(struct program *p)
{
	assert_int_equal(write(p->in, "x", 1), 1);
}

/* What it does with `path`, one word a time, each with a line. */
static int do_words(const char *path, char **words)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), c;

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

	assert_same_table(print_table(false, ordinary), print_table(true, ordinary));
	assert_int_equal(rounds(), before);
}

static void test_file_of_region(void **state)
{
	uint64_t before = rounds();
	char *bare = print_table(false, served.session.emulated);

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

/* Where the application has closed it nothing can be passed; the real call does it. */
static void test_no_descriptor(void **state)
{
	uint64_t before = rounds();
	struct program p;

	start_program(&p, true, WORDS("close", "msync"));
	assert_prints(&p, "close 0 0");
	assert_prints(&p, "msync 0 0");
	end_program(&p);
	assert_int_equal(rounds(), before);
}

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
	char library[PATH_MAX];
	struct program p;

	served_find("libpmem-agent-preload.so", library, sizeof(library));
	assert_int_equal(served_stop_agent(&served), 0);
	setenv("LD_PRELOAD", library, 1);
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

/* An error that only this process has seen stays, whatever the kernel says next. */
static void test_real_call_fails(void **state)
{
	struct program p;

	assert_int_equal(served_stop_agent(&served), 0);
	setenv("PRELOAD_FAIL", served.session.emulated, 1);
	start_program(&p, false, WORDS("fsync", "fsync"));
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "fsync 0 0");
	end_program(&p);
	start_program(&p, true, WORDS("fsync", "fsync", "msync", "pause", "fdatasync"));
	unsetenv("PRELOAD_FAIL");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "msync -1 5");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_start_agent(&served), 0);
	go_on(&p);
	assert_prints(&p, "fdatasync -1 5");
	end_program(&p);
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
		cmocka_unit_test(test_no_descriptor),
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
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
