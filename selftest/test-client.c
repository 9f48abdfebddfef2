/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-client: the client library, against the real agent with an emulated region, and against a false one
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "lib/pmem-agent.h"
#include "selftest/served.h"

static struct served served;

static int set_up(void **state)
{
	const char *missing;

	alarm(120);
	missing = served_start(&served, false);
	if (missing)
		print_error("test-client needs %s\n", missing);
	return missing ? -1 : 0;
}

static int tear_down(void **state)
{
	served_stop(&served);
	return 0;
}

static struct pmem_agent *connect_agent(void)
{
	struct pmem_agent *agent;

	assert_int_equal(pmem_agent_connect(served.socket, &agent), 0);
	return agent;
}

static int open_emulated(void)
{
	int fd = open(served.session.emulated, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void test_flush(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated();
	struct pmem_agent_result result;

	assert_int_equal(pmem_agent_flush(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &result), 0);
	assert_int_equal(result.answer, PMEM_AGENT_DURABLE);
	assert_int_equal(result.scope, PMEM_AGENT_SCOPE_REGION);
	assert_int_equal(result.basis, PMEM_AGENT_BASIS_OWN_FLUSH);
	assert_int_equal(result.n_regions, 1);
	assert_true(result.durable_usec > 0);
	assert_string_equal(result.detail, "");
	pmem_agent_close(agent);
}

/* Nothing fails, whoever was in the middle of what: what was sent is answered, what was not goes to the next agent. */
static void test_restart(void **state)
{
	struct pmem_agent *agent = connect_agent();
	_cleanup_close_ int fd = open_emulated();
	uint64_t id;

	for (unsigned int i = 0; i < 5; i++) {
		assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
		assert_int_equal(served_stop_agent(&served), 0);
		assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
		assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
		assert_int_equal(pmem_agent_wait(agent, id, 0, NULL), -EAGAIN);
		assert_int_equal(served_start_agent(&served), 0);
		assert_int_equal(pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL), 0);
	}
	pmem_agent_close(agent);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flush),
		cmocka_unit_test(test_restart),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
