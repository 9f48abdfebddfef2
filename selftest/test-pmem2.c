/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-pmem2: persist for maps of pmem2, against the real agent with an emulated region
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "lib/pmem-agent-pmem2.h"
#include "selftest/process.h"
#include "selftest/served.h"

static struct served served;
static struct pmem_agent *agent;
static struct pmem2_map *map;
static int fd = -1;

static int set_up_group(void **state)
{
	const char *missing;

	alarm(60);
	missing = served_start(&served, false);
	if (missing)
		print_error("test-pmem2 needs %s\n", missing);
	return missing ? -1 : 0;
}

static int tear_down_group(void **state)
{
	served_stop(&served);
	return 0;
}

static void open_map_as(const char *path, enum pmem2_sharing_type sharing)
{
	struct pmem2_config *config;
	struct pmem2_source *source;

	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pmem2_config_new(&config), 0);
	assert_int_equal(pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE), 0);
	assert_int_equal(pmem2_config_set_sharing(config, sharing), 0);
	assert_int_equal(pmem2_source_from_fd(&source, fd), 0);
	assert_int_equal(pmem2_map_new(&map, config, source), 0);
	pmem2_source_delete(&source);
	pmem2_config_delete(&config);
	assert_int_equal(pmem_agent_connect(served.socket, &agent), 0);
}

static void open_map(const char *path)
{
	open_map_as(path, PMEM2_SHARED);
}

static void close_map(void)
{
	agent = pmem_agent_close(agent);
	pmem2_map_delete(&map);
	fd = safe_close(fd);
}

static uint64_t get_epoch(void)
{
	struct pmem_agent_info info;
	uint64_t epoch;

	pmem_agent_query(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &info);
	assert_int_equal(pmem_agent_epoch(agent, info.regions[0].page, &epoch), 0);
	return epoch;
}

static void test_by_the_agent(void **state)
{
	struct pmem_agent_map *m;
	uint64_t before;
	char *address;
	size_t size;

	open_map(served.session.emulated);
	address = pmem2_map_get_address(map);
	size = pmem2_map_get_size(map);
	assert_int_equal(pmem_agent_map_new(agent, fd, map, 2, &m), -EINVAL);
	for (unsigned int flags = 0; flags <= PMEM_AGENT_MAP_FIXED_LAYOUT; flags++) {
		assert_int_equal(pmem_agent_map_new(agent, fd, map, flags, &m), 0);
		assert_int_equal(pmem_agent_map_get_store_granularity(m), PMEM2_GRANULARITY_PAGE);
		before = get_epoch();
		address[17] = 'x';
		assert_int_equal(pmem_agent_persist(m, address + 17, 1), 0);
		assert_true(get_epoch() == before + 1);
		pmem_agent_persist_or_abort(address, size);
		assert_true(get_epoch() == before + 2);
		assert_int_equal(pmem_agent_persist(m, address, size + 1), -EINVAL);
		assert_int_equal(pmem_agent_persist(m, address - 1, 1), -EINVAL);
		assert_int_equal(pmem_agent_persist(m, address + 1, SIZE_MAX), -EINVAL);
		assert_int_equal(pmem_agent_persist(m, address + size, 1), -EINVAL);
		assert_true(get_epoch() == before + 2);
		assert_null(pmem_agent_map_delete(m));
	}
	assert_null(pmem_agent_map_delete(NULL));
	close_map();
}

/* Stores there reach no file, whatever is flushed. */
static void test_private(void **state)
{
	struct pmem_agent_map *m;

	open_map_as(served.session.emulated, PMEM2_PRIVATE);
	assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &m), -EINVAL);
	close_map();
}

/* There are places for 256, which are free again. */
static void test_many(void **state)
{
	struct pmem_agent_map *maps[256], *m;
	char *address;

	open_map(served.session.emulated);
	address = pmem2_map_get_address(map);
	for (unsigned int round = 0; round < 2; round++) {
		for (unsigned int i = 0; i < ARRAY_SIZE(maps); i++)
			assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &maps[i]), 0);
		assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &m), -ENOSPC);
		for (unsigned int i = 0; i < ARRAY_SIZE(maps) - 1; i++)
			pmem_agent_map_delete(maps[i]);
		pmem_agent_persist_or_abort(address, 1);
		pmem_agent_map_delete(maps[ARRAY_SIZE(maps) - 1]);
	}
	close_map();
}

static void test_ordinary(void **state)
{
	struct pmem_agent_map *m;
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char path[160], *address;

	snprintf(path, sizeof(path), "%s/ordinary", served.session.directory);
	close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	assert_int_equal(truncate(path, (off_t)(4 * page)), 0);
	open_map(path);
	unlink(path);
	address = pmem2_map_get_address(map);
	assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &m), 0);
	address[5000] = 'x';
	assert_int_equal(pmem_agent_persist(m, address + 5000, 1), 0);
	/* It is the kernel's word, and not a constant. */
	assert_int_equal(munmap(address + 2 * page, page), 0);
	assert_int_equal(pmem_agent_persist(m, address + 2 * page, 1), -ENOMEM);
	assert_true(mmap(address + 2 * page, page, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)(2 * page)) !=
		    MAP_FAILED);
	pmem_agent_map_delete(m);
	close_map();
}

static int status_of_persist(const void *address)
{
	pid_t child = fork();
	int status = 0;

	if (child == 0) {
		dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
		signal(SIGABRT, SIG_DFL);
		pmem_agent_persist_or_abort(address, 1);
		_exit(0);
	}
	waitpid(child, &status, 0);
	return status;
}

/* A child has the map too, and no other memory. The last one: the region stays lost. */
static void test_loss(void **state)
{
	struct pmem_agent_map *m;
	char *address;
	pid_t worker;
	uint64_t id;
	int r;

	open_map(served.session.emulated);
	address = pmem2_map_get_address(map);
	assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &m), 0);
	assert_int_equal(status_of_persist(address), 0);
	assert_int_equal(WTERMSIG(status_of_persist(&served)), SIGABRT);

	/* Killed in a round; it may have been killed before that began, and then another made it. */
	do {
		assert_int_equal(pmem_agent_persist(m, address, 1), 0);
		worker = session_worker(&served.session);
		stop_process(worker);
		assert_int_equal(pmem_agent_submit(agent, fd, PMEM_AGENT_SCOPE_AUTO, PMEM_AGENT_NO_TIMEOUT, &id), 0);
		r = pmem_agent_wait(agent, id, 10000, NULL);
		kill(worker, SIGKILL);
		if (r == -EAGAIN)
			r = pmem_agent_wait(agent, id, PMEM_AGENT_NO_TIMEOUT, NULL);
	} while (r == 0);
	assert_int_equal(r, -EIO);

	assert_int_equal(pmem_agent_persist(m, address, 1), -EIO);
	assert_int_equal(WTERMSIG(status_of_persist(address)), SIGABRT);
	pmem_agent_map_delete(m);
	assert_int_equal(pmem_agent_map_new(agent, fd, map, 0, &m), -EIO);
	close_map();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_by_the_agent), cmocka_unit_test(test_private), cmocka_unit_test(test_many),
		cmocka_unit_test(test_ordinary),     cmocka_unit_test(test_loss),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("pmem2", tests, set_up_group, tear_down_group);
}
