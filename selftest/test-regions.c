/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-regions: which regions an agent knows, while who looks for them hangs, fails or dies
 */
#include <poll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "selftest/regions.h"

static unsigned int n_changed;

static void on_event(enum manager_event e, struct manager_region *mr, void *userdata)
{
	n_changed += e == MANAGER_REGION_CHANGED;
}

static struct manager_listener listener = { .notify = on_event };

static void start_agent_here(void)
{
	start_agent();
	manager->conf->stall_usec = 20 * USEC_PER_MSEC;
	manager_add_listener(manager, &listener);
	n_changed = 0;
}

static void test_known_from_the_start(void **state)
{
	start_agent_here();
	assert_null(manager->look.scan);
	assert_non_null(find("region0"));
	assert_non_null(find("region1"));
	assert_string_equal(manager_get_scan_problem(manager), "");
}

static void test_come_change_and_go(void **state)
{
	hide(CLASS1);
	start_agent_here();
	assert_null(find("region1"));
	unhide(CLASS1);
	manager_rescan(manager);
	wait_for_look();
	assert_non_null(find("region1"));

	recorded_change(REGION1 "/read_only", "1");
	manager_rescan(manager);
	wait_for_look();
	assert_int_equal(n_changed, 1);
	assert_true(find("region1")->read_only);

	hide(CLASS1);
	manager_rescan(manager);
	wait_for_look();
	assert_null(find("region1"));
	assert_non_null(find("region0"));
}

static void test_hangs(void **state)
{
	pid_t pid;

	start_agent_here();
	make_hang();
	manager_rescan(manager);
	pid = looking();
	assert_serves();
	wait_for_problem("has not ended for");
	assert_serves();
	assert_non_null(find("region0"));

	/* However often something changes, there is one that hangs. */
	manager_rescan(manager);
	manager_rescan(manager);
	assert_int_equal(looking(), pid);

	end_hang();
	recorded_change(REGION1 "/read_only", "1");
	while (looking() == pid)
		turn();
	wait_for_look();
	assert_string_equal(manager_get_scan_problem(manager), "");
	assert_true(find("region1")->read_only);
	/* It ends, a moment later if it is slow. */
	while (kill(pid, 0) == 0)
		sched_yield();
}

/* It is seen without whom that hangs. */
static void test_gone_while_it_hangs(void **state)
{
	start_agent_here();
	make_hang();
	manager_rescan(manager);
	assert_int_equal(rename(in_tree(REGION1), in_tree("/gone")), 0);
	manager_rescan(manager);
	assert_null(find("region1"));
	assert_non_null(find("region0"));
	assert_non_null(find("emu0"));
	assert_non_null(manager->look.scan);
	assert_int_equal(rename(in_tree("/gone"), in_tree(REGION1)), 0);
	end_hang();
	wait_for_look();
	assert_non_null(find("region1"));
}

/* Who starts then knows no region, and must not say that there is none. */
static void test_hangs_at_the_start(void **state)
{
	const struct leaf pmem = { .devnum = makedev(259, 0), .name = "pmem0" },
			  dax = { .devnum = makedev(252, 0), .name = "dax0.0", .character = true },
			  disk = { .devnum = makedev(8, 0), .name = "sda" };
	char text[160];

	snprintf(text, sizeof(text), "[Agent]\nStallSec=100ms\n[Region emu0]\nEmulate=%s\n", emulated);
	assert_int_equal(write_file(conf_path, text), 0);
	make_hang();
	start_agent_here();
	assert_int_equal(write_conf(), 0);
	assert_null(find("region1"));
	assert_true(regions_is_unseen(manager, &pmem));
	assert_true(regions_is_unseen(manager, &dax));
	assert_false(regions_is_unseen(manager, &disk));
	assert_serves();
	wait_for_problem("has not ended for");
	end_hang();
	wait_for_look();
	assert_non_null(find("region0"));
	assert_non_null(find("region1"));
	assert_false(regions_is_unseen(manager, &pmem));
	assert_string_equal(manager_get_scan_problem(manager), "");
}

static void test_child_dies(void **state)
{
	start_agent_here();
	make_hang();
	manager_rescan(manager);
	assert_int_equal(kill(looking(), SIGKILL), 0);
	wait_for_look();
	assert_non_null(strstr(manager_get_scan_problem(manager), "could not look for regions"));
	assert_non_null(find("region0"));
	assert_non_null(find("region1"));
	restore_mode();
	manager_rescan(manager);
	wait_for_look();
	assert_string_equal(manager_get_scan_problem(manager), "");
}

/* Now, and not in half a minute. */
/* It is tried again also if nothing happens any more. */
static void test_failed_is_tried_again(void **state)
{
	start_agent_here();
	make_hang();
	manager_rescan(manager);
	assert_int_equal(kill(looking(), SIGKILL), 0);
	wait_for_look();
	restore_mode();
	retry_now();
}

/* There is no room for pages: the regions are not known until there is. */
static void test_no_room_for_pages(void **state)
{
	const struct leaf pmem = { .devnum = makedev(259, 0), .name = "pmem0" };
	char full[64], filler[80], block[4096] = "";
	struct conf *conf;
	int fd;

	if (recorded_preloaded)
		skip();
	snprintf(full, sizeof(full), "%s/full", directory);
	snprintf(filler, sizeof(filler), "%s/filler", full);
	assert_int_equal(mkdir(full, 0700), 0);
	assert_int_equal(mount("none", full, "tmpfs", 0, "size=64k"), 0);
	fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	while (write(fd, block, sizeof(block)) > 0)
		;
	assert_int_equal(errno, ENOSPC);
	close(fd);

	assert_int_equal(conf_load(conf_path, &conf), 0);
	assert_int_equal(manager_new(event, conf, full, directory, &manager), 0);
	assert_null(find("emu0"));
	assert_null(find("region0"));
	assert_non_null(strstr(manager_get_scan_problem(manager), "cannot be served: No space left on device"));
	assert_true(regions_is_unseen(manager, &pmem));

	assert_int_equal(unlink(filler), 0);
	retry_now();
	assert_non_null(find("region0"));
	assert_non_null(find("region1"));
	assert_serves();
	end_agent();
	assert_int_equal(umount2(full, MNT_DETACH), 0);
	assert_int_equal(rmdir(full), 0);
}

/* A device has the number that one of a known region had, who is not known to have gone. */
static void test_number_of_another(void **state)
{
	struct manager_region *mr;
	struct leaf leaf = { .character = false };

	start_agent_here();
	wait_for_look();
	mr = manager_find_region(manager, "region0");
	leaf.devnum = mr->region->namespaces[0].devnum;
	snprintf(leaf.name, sizeof(leaf.name), "%s", mr->region->namespaces[0].device);
	assert_ptr_equal(regions_find_leaf(manager, &leaf), mr);
	assert_null(manager->look.scan);
	strcpy(leaf.name, "pmem7");
	assert_null(regions_find_leaf(manager, &leaf));
	assert_non_null(manager->look.scan);
	assert_true(regions_is_unseen(manager, &leaf));
	wait_for_look();
	/* Nor is it the region's if one is told of that has another number. */
	leaf.devnum = makedev(1, 1);
	assert_null(regions_find_leaf(manager, &leaf));
	assert_null(manager->look.scan);
}

/* The agent ends while it hangs, and isn't waited for by whom that hangs. */
static void test_agent_ends(void **state)
{
	struct pollfd p = { .events = POLLIN };

	start_agent_here();
	make_hang();
	manager_rescan(manager);
	p.fd = (int)syscall(SYS_pidfd_open, looking(), 0);
	assert_true(p.fd >= 0);
	end_agent();
	end_hang();
	assert_int_equal(poll(&p, 1, -1), 1);
	close(p.fd);
}

#define TEST_HERE(name) cmocka_unit_test_setup_teardown(name, set_up_here, tear_down_here)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST_HERE(test_known_from_the_start),
		TEST_HERE(test_come_change_and_go),
		TEST_HERE(test_hangs),
		TEST_HERE(test_gone_while_it_hangs),
		TEST_HERE(test_hangs_at_the_start),
		TEST_HERE(test_child_dies),
		TEST_HERE(test_failed_is_tried_again),
		TEST_HERE(test_no_room_for_pages),
		TEST_HERE(test_number_of_another),
		TEST_HERE(test_agent_ends),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (!recorded_enter(argv))
		return 0;
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
