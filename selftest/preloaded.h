/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preloaded: programs with libpmem-agent-preload, in processes of their own, and the real agent with an emulated region
 */
#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "selftest/served.h"

static struct served served;
static char ordinary[96], page_path[160];

static inline int set_up(void **state)
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

static inline int tear_down(void **state)
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
static inline const char *sanitizer(void)
{
	void *init = dlsym(RTLD_DEFAULT, "__tsan_init");
	Dl_info info;

	return init && dladdr(init, &info) ? info.dli_fname : "";
}

/* What it finds wrong is its exit status. The agent, which this process starts, is none of its business. */
static inline void execute_in_valgrind(const char *program, const char *const *arguments)
{
	const char *all[16] = { "valgrind", "-q", "--error-exitcode=99", program };

	for (unsigned int i = 4; i < ARRAY_SIZE(all) - 1 && *arguments; i++)
		all[i] = *arguments++;
	execvp(all[0], (char *const *)all);
}

/* One that was built beside this one. */
static inline _Noreturn void execute(bool preloaded, const char *const *arguments)
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

static inline void start_program(struct program *p, bool preloaded, const char *const *arguments)
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

static inline void end_program(struct program *p)
{
	int status = -1;

	close(p->in);
	fclose(p->text);
	waitpid(p->pid, &status, 0);
	assert_int_equal(status, 0);
}

#define ARGUMENTS(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* The next line of what it prints. */
static inline void assert_prints(struct program *p, const char *wanted)
{
	char line[128] = "";

	assert_non_null(fgets(line, sizeof(line), p->text));
	line[strcspn(line, "\n")] = '\0';
	assert_string_equal(line, wanted);
}

/* Each of the next lines ends so. */
static inline void assert_words(struct program *p, unsigned int n, const char *end)
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
static inline void go_on(struct program *p)
{
	assert_int_equal(write(p->in, "x", 1), 1);
}

/* A call of libpmem, as a program finds it that is linked with it. */
static inline int call_libpmem(const char *name, void *address, size_t size)
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
static inline int go_on_in_child(void)
{
	int status = -1;
	pid_t pid = fork();

	if (pid <= 0)
		return pid;
	waitpid(pid, &status, 0);
	_exit(status);
}

/* Bytes that the real msync() has written, as preload-fail has it. */
static int count_synced(void)
{
	size_t (*count)(void) = (size_t(*)(void))dlsym(RTLD_DEFAULT, "preload_synced");

	return count ? (int)count() : -1;
}

/* The file has another number, and the old one is another file's: by a call that no library sees. */
static inline int renumber(int *fd)
{
	int new = fcntl(*fd, F_DUPFD_CLOEXEC, 0), other = open("/dev/null", O_RDWR | O_CLOEXEC), r;

	r = new < 0 || other < 0 || syscall(SYS_dup3, other, *fd, O_CLOEXEC) < 0 ? -1 : 0;
	*fd = new;
	return r;
}

/* What it does with `path`, one word a time, each with a line. */
static inline int do_words(const char *path, char **words)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	size_t size = 2 * (size_t)sysconf(_SC_PAGESIZE);
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
		else if (strcmp(word, "split") == 0)
			r = mprotect(p + size / 2, size / 2, PROT_READ);
		else if (strcmp(word, "msync-all") == 0)
			r = msync(p, size, MS_SYNC);
		else if (strcmp(word, "halves-synced") == 0)
			r = count_synced() / (int)(size / 2);
		else if (strcmp(word, "close") == 0)
			r = close(fd);
		else if (strcmp(word, "fclose") == 0)
			r = fclose(fdopen(fd, "r+e"));
		else if (strcmp(word, "open") == 0)
			r = open(path, O_RDWR | O_CLOEXEC) == fd ? 0 : -1;
		else if (strcmp(word, "renumber") == 0)
			r = renumber(&fd);
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

/* For who writes there too: an agent that has just started writes what earlier boots lost. */
static inline struct pmem_agent_page *map_page(void)
{
	_cleanup_close_ int fd = open(page_path, O_RDWR | O_CLOEXEC);
	struct pmem_agent_page *page = mmap(NULL, PMEM_AGENT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_true(page != MAP_FAILED);
	while (!__atomic_load_n(&page->agent.recalled, __ATOMIC_ACQUIRE))
		sched_yield();
	return page;
}

static inline uint64_t rounds(void)
{
	struct pmem_agent_page *page = map_page();
	uint64_t n = page->worker.done;

	munmap(page, PMEM_AGENT_PAGE_SIZE);
	return n;
}

#define WORDS(...) ARGUMENTS("test-preload", "words", served.session.emulated, __VA_ARGS__)
