/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-rename: a region that is seen under another identity while the agent runs, as when a namespace is made on it
 */
#include "selftest/recorded.h"
#include "selftest/emulated.h"

#define UUID   "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0/region0/pfn0.0/uuid"
#define UUID_A "00000000-0000-4000-8000-00000000000a"
#define UUID_B "00000000-0000-4000-8000-00000000000b"

/* ---- the agent ---- */

static struct manager_region *region0(void)
{
	return manager_find_region(manager, "region0");
}

static uint64_t losses(void)
{
	struct flush_status s;

	manager_region_get_status(region0(), &s);
	return s.loss.number;
}

static void look(void)
{
	manager_rescan(manager);
	while (manager->look.scan)
		turn();
}

static void start(void)
{
	start_agent();
	wait_for_state();
	assert_non_null(region0());
}

/* Whether it is served as such then. */
static bool see_as(const char *uuid)
{
	recorded_change(UUID, uuid);
	look();
	assert_true(!region0() || strstr(region0()->region->identity, uuid));
	return region0();
}

static int set_up_here(void **state)
{
	if (recorded_set_up(state) < 0 || set_up(state) < 0)
		return -1;
	recorded_restore("virtio-pmem-fsdax-info");
	recorded_show();
	return 0;
}

static int remove_traces(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	const char *suffix = strrchr(path, '.');
	bool foreign_page = suffix && strcmp(suffix, ".page") == 0 && strcmp(path, page_path) != 0;

	return foreign_page || (suffix && strcmp(suffix, ".loss") == 0) ? remove(path) : 0;
}

static int tear_down_here(void **state)
{
	end_agent();
	return nftw(directory, remove_traces, 4, FTW_PHYS) < 0 || tear_down(state) < 0 || recorded_tear_down(state) < 0
		   ? -1
		   : 0;
}

/* ---- tests ---- */

static void test_loss_goes_with_it(void **state)
{
	char detail[MOUNT_DETAIL_MAX];

	start();
	assert_true(see_as(UUID_A));
	assert_int_equal(losses(), 0);
	settle();
	assert_true(TAILQ_EMPTY(&manager->removed));

	round_lose(region0(), EIO, FLUSH_ORIGIN_WITNESS);
	assert_true(see_as(UUID_B));
	assert_int_equal(losses(), 1);
	assert_int_equal(pmem_agent_page_lost(region0()->page), PMEM_AGENT_LOST);
	assert_int_equal(manager_acknowledge(manager, region0(), 1, detail), 0);

	/* Under each it is one of its own; where it was acknowledged it is another one. */
	assert_true(see_as(UUID_A));
	assert_int_equal(losses(), 1);
	assert_true(see_as(UUID_B));
	assert_int_equal(losses(), 2);
	settle();
	assert_true(TAILQ_EMPTY(&manager->removed));
}

/* So does what its last round loses; before that is known there is nothing to be flushed in its place. */
static void test_held_up_by_its_last_round(void **state)
{
	struct manager_region *before;

	start();
	before = region0();
	flush_adopt(before->flush, 1);
	assert_false(see_as(UUID_A));
	assert_non_null(strstr(manager_get_scan_problem(manager), "region0 cannot be served: it is not known yet"));
	settle();
	round_lose(before, EIO, FLUSH_ORIGIN_ROUND);
	flush_adopted(before->flush, 1);
	assert_int_equal(sd_event_source_set_time_accuracy(manager->look.retry, 1), 0);
	assert_int_equal(sd_event_source_set_time_relative(manager->look.retry, 0), 0);
	while (!region0())
		turn();
	assert_int_equal(losses(), 1);
	settle();
	assert_true(TAILQ_EMPTY(&manager->removed));
}

/* It is gone, and so is what held up what was in its place. */
static void test_gone_while_held_up(void **state)
{
	char class[96], hidden[96];

	snprintf(class, sizeof(class), "%s/sys/class/nd/ndctl0", recorded_root);
	snprintf(hidden, sizeof(hidden), "%s/hidden", recorded_root);
	start();
	flush_adopt(region0()->flush, 1);
	assert_false(see_as(UUID_A));
	assert_int_equal(rename(class, hidden), 0);
	look();
	assert_string_equal(manager_get_scan_problem(manager), "");
	assert_int_equal(rename(hidden, class), 0);
	look();
	assert_non_null(region0());
	assert_int_equal(losses(), 0);
}

#define TEST_HERE(name) cmocka_unit_test_setup_teardown(name, set_up_here, tear_down_here)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST_HERE(test_loss_goes_with_it),
		TEST_HERE(test_held_up_by_its_last_round),
		TEST_HERE(test_gone_while_held_up),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (!recorded_enter(argv))
		return 0;
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
