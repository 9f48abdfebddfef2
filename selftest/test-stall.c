/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-stall: a host that takes too long, and what its late answer is told as: to the listeners, which the doors are,
 * in the journal, and in the numbers
 */
#include <sys/socket.h>
#include <sys/un.h>

#include "agent/log.h"
#include "selftest/emulated.h"

static unsigned int events[MANAGER_INSTANCE + 1];
static int journal = -1;
static char journal_path[80];

static void on_event(enum manager_event e, struct manager_region *mr, void *userdata)
{
	events[e]++;
}

static struct manager_listener listener = { .notify = on_event };

static int set_up_journal(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char stream[64];
	struct stat st;

	if (set_up_group(state) < 0)
		return -1;
	snprintf(journal_path, sizeof(journal_path), "%s/journal", directory);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", journal_path);
	journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (journal < 0 || bind(journal, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -1;
	/* As if a service manager had made it. */
	if (fstat(STDERR_FILENO, &st) < 0)
		return -1;
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	log_open_at(journal_path);
	return 0;
}

static int tear_down_journal(void **state)
{
	log_close();
	close(journal);
	unlink(journal_path);
	return tear_down_group(state);
}

/* How many entries of this event there are by now; they are taken. */
static unsigned int count_entries(enum log_event wanted)
{
	char entry[4096];
	unsigned int n = 0;
	ssize_t size;

	while ((size = recv(journal, entry, sizeof(entry), 0)) > 0)
		if (memmem(entry, (size_t)size, log_event_id(wanted), strlen(log_event_id(wanted))))
			n++;
	return n;
}

static struct stats stats(void)
{
	struct stats s;

	manager_region_get_stats(emu0(), &s);
	return s;
}

static void start_listening(void)
{
	start_agent();
	manager_add_listener(manager, &listener);
	memset(events, 0, sizeof(events));
}

/* A round that is stalled, for one who waits. */
static pid_t stall(struct answer_of *a)
{
	pid_t worker = stop_worker();

	/* Only now: the round before is not to stall, however busy the machine. */
	manager->conf->stall_usec = 20 * USEC_PER_MSEC;
	begin(a);
	while (events[MANAGER_STALLED] == 0)
		turn();
	assert_int_equal(status().state, FLUSH_STALLED);
	assert_int_equal(count_entries(LOG_EVENT_STALLED), 1);
	assert_int_equal(stats().stalls, 1);
	return worker;
}

static void test_late_success_recovers(void **state)
{
	struct answer_of a;
	pid_t worker;

	start_listening();
	worker = stall(&a);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_equal(events[MANAGER_RECOVERED], 1);
	assert_int_equal(events[MANAGER_LOST], 0);
	assert_int_equal(count_entries(LOG_EVENT_RECOVERED), 1);
	assert_int_equal(stats().stall_began_usec, 0);
	assert_true(stats().stalled_usec > 0);
	/* The next one is as quick as ever. */
	manager->conf->stall_usec = 5 * USEC_PER_SEC;
	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_int_equal(events[MANAGER_STALLED], 1);
	assert_int_equal(events[MANAGER_RECOVERED], 1);
}

/* A loss is no recovery, whatever has ended with it. */
static void test_late_error_does_not(void **state)
{
	struct answer_of a;
	pid_t worker;

	start_listening();
	worker = stall(&a);
	assert_int_equal(kill(worker, SIGKILL), 0);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_int_equal(events[MANAGER_LOST], 1);
	assert_int_equal(events[MANAGER_RECOVERED], 0);
	assert_int_equal(count_entries(LOG_EVENT_RECOVERED), 0);
	assert_int_equal(stats().stall_began_usec, 0);
	assert_int_equal(stats().losses, 1);
	assert_int_equal(stats().rounds_failed, 1);
}

/* The next agent says so too, and when it is over. */
static void test_of_the_agent_before(void **state)
{
	_cleanup_close_ int reader = -1;

	leave_hanging_worker();
	count_entries(LOG_EVENT_STALLED);
	start_listening();
	assert_int_equal(count_entries(LOG_EVENT_STALLED), 1);
	assert_int_equal(status().state, FLUSH_STALLED);
	assert_int_equal(stats().stalls, 1);
	settle();
	assert_int_equal(events[MANAGER_RECOVERED], 0);

	reader = open(fifo, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	assert_true(reader >= 0);
	while (events[MANAGER_RECOVERED] == 0)
		turn();
	assert_int_equal(events[MANAGER_LOST], 0);
	assert_int_equal(count_entries(LOG_EVENT_RECOVERED), 1);
	assert_int_equal(stats().stall_began_usec, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_late_success_recovers),
		TEST(test_late_error_does_not),
		TEST(test_of_the_agent_before),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("stall", tests, set_up_journal, tear_down_journal);
}
