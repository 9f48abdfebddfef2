/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-preload-fail: libpmem-agent-preload where the agent or the host fails
 */
#include "selftest/process.h"
#include "selftest/preloaded.h"

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

/* A file in two mappings: one flush of the agent's is for both, but a real call for what it is made of. */
static void test_split(void **state)
{
	struct program p;

	setenv("PRELOAD_FAIL", "nothing", 1);
	start_program(&p, true, WORDS("split", "msync-all", "pause", "msync-all", "halves-synced"));
	unsetenv("PRELOAD_FAIL");
	assert_words(&p, 3, " 0 0");
	assert_int_equal(served_stop_agent(&served), 0);
	go_on(&p);
	assert_prints(&p, "msync-all 0 0");
	/* With an agent one, since its answer is followed by the real call where a file is an emulated region. */
	assert_prints(&p, "halves-synced 3 0");
	end_program(&p);
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

/* Also where the agent has flushed the region before, by a descriptor of its own. */
static void test_real_call_fails_after_the_agents(void **state)
{
	struct pmem_agent_page *page = map_page();
	struct program p;

	setenv("PRELOAD_FAIL", served.session.emulated, 1);
	start_program(&p, true, WORDS("fsync", "fsync", "pause", "fsync"));
	unsetenv("PRELOAD_FAIL");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(page->agent.loss_origin, FLUSH_ORIGIN_CALLER);
	acknowledge(page->agent.loss);
	go_on(&p);
	assert_prints(&p, "fsync 0 0");
	end_program(&p);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
}

/* It is told so also by who has no number any more of the descriptor by which the memory was mapped. */
static void test_told_of_memory(void **state)
{
	struct pmem_agent_page *page = map_page();
	struct program p;

	assert_int_equal(served_stop_agent(&served), 0);
	setenv("PRELOAD_FAIL", served.session.emulated, 1);
	start_program(&p, true, WORDS("fsync", "renumber", "pause", "msync"));
	unsetenv("PRELOAD_FAIL");
	assert_prints(&p, "fsync -1 5");
	assert_prints(&p, "renumber 0 0");
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_start_agent(&served), 0);
	go_on(&p);
	assert_prints(&p, "msync -1 5");
	assert_int_equal(pmem_agent_page_lost(page), PMEM_AGENT_LOST);
	end_program(&p);
	acknowledge(page->agent.loss);
	assert_words_fail(false);
	munmap(page, PMEM_AGENT_PAGE_SIZE);
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
	stop_process(worker);
	go_on(&p);
	wait_until_in(p.pid, SYSTEM_CALL_OF_RECV);
	served_kill_agent(&served);
	assert_prints(&p, "fsync -1 5");
	end_program(&p);
	kill(worker, SIGKILL);
	assert_int_equal(served_start_agent(&served), 0);
}

/* In the agent's place: says durable to the next request, with another id than that one's if `other`. */
static pid_t answer_once(bool other)
{
	struct pmem_agent_reply reply = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_FLUSH,
		.scope = PMEM_AGENT_SCOPE_REGION,
		.basis = PMEM_AGENT_BASIS_OWN_FLUSH,
		.durable_usec = 1,
		.n_regions = 1,
	};
	struct pmem_agent_request request;
	int listener, connection;
	pid_t child;

	unlink(served.socket);
	listener = served_listen(served.socket);
	child = fork();
	if (child != 0) {
		close(listener);
		return child;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	connection = accept(listener, NULL, NULL);
	if (recv(connection, &request, sizeof(request), 0) != sizeof(request))
		_exit(1);
	reply.id = request.id + other;
	_exit(send(connection, &reply, sizeof(reply), 0) != sizeof(reply));
}

/* The program had closed the line, and its number is that of another thread's. */
static void test_an_answer_to_another_request(void **state)
{
	struct program p;
	int status;

	start_program(&p, true, WORDS("pause", "fsync", "pause", "fsync"));
	assert_prints(&p, "pause 0 0");
	assert_int_equal(served_stop_agent(&served), 0);
	for (unsigned int other = 0; other < 2; other++) {
		pid_t child = answer_once(other);

		go_on(&p);
		assert_prints(&p, other ? "fsync -1 5" : "fsync 0 0");
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
		if (!other)
			assert_prints(&p, "pause 0 0");
	}
	end_program(&p);
	unlink(served.socket);
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
		wait_until_in(p.pid, SYS_clock_nanosleep);
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
		cmocka_unit_test(test_libpmem_fails),
		cmocka_unit_test(test_agent_restarted),
		cmocka_unit_test(test_agent_preloaded),
		cmocka_unit_test(test_no_agent),
		cmocka_unit_test(test_split),
		cmocka_unit_test(test_real_call_fails),
		cmocka_unit_test(test_real_call_fails_after_the_agents),
		cmocka_unit_test(test_told_of_memory),
		cmocka_unit_test(test_agent_killed_in_mid_wait),
		cmocka_unit_test(test_an_answer_to_another_request),
		cmocka_unit_test(test_loss),
		cmocka_unit_test(test_worker),
	};

	if (argc > 2 && strcmp(argv[1], "words") == 0)
		return do_words(argv[2], argv + 3);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
