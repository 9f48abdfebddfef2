/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-regions: which regions an agent knows, while who looks for them hangs, fails or dies
 *
 * A FIFO in the place of an attribute hangs as the kernel does where a driver that is being unbound holds the lock of
 * its device: whoever opens it waits.
 */
#include <poll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "selftest/recorded.h"
#include "selftest/watched.h"

#define BUS0    "/sys/devices/pci0000:00/0000:00:03.0/virtio2/ndbus0"
#define BUS1    "/sys/devices/pci0000:00/0000:00:04.0/virtio3/ndbus1"
#define MODE0   BUS0 "/region0/namespace0.0/mode"
#define CLASS1  "/sys/class/nd/ndctl1"
#define REGION1 BUS1 "/region1"

static unsigned int n_changed;

static void on_event(enum manager_event e, struct manager_region *mr, void *userdata)
{
	n_changed += e == MANAGER_REGION_CHANGED;
}

static struct manager_listener listener = { .notify = on_event };

/* ---- the tree ---- */

static const char *in_tree(const char *name)
{
	static char path[2][512];
	static unsigned int i;

	i = !i;
	snprintf(path[i], sizeof(path[i]), "%s%s", recorded_root, name);
	return path[i];
}

/* Out of the tree, and back again. */
static void hide(const char *name)
{
	assert_int_equal(rename(in_tree(name), in_tree("/hidden")), 0);
}

static void unhide(const char *name)
{
	assert_int_equal(rename(in_tree("/hidden"), in_tree(name)), 0);
}

static void make_hang(void)
{
	assert_int_equal(rename(in_tree(MODE0), in_tree("/mode")), 0);
	assert_int_equal(mkfifo(in_tree(MODE0), 0600), 0);
}

static void restore_mode(void)
{
	assert_int_equal(unlink(in_tree(MODE0)), 0);
	assert_int_equal(rename(in_tree("/mode"), in_tree(MODE0)), 0);
}

/* By whom whoever looks is let go on. */
static int wait_for_hang(void)
{
	int fd;

	while ((fd = open(in_tree(MODE0), O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0) {
		assert_int_equal(errno, ENXIO);
		sched_yield();
	}
	return fd;
}

/* Whoever looks goes on, and whoever looks from here on finds it as it was. */
static void end_hang_of(int fd)
{
	restore_mode();
	assert_int_equal(write(fd, "memory\n", 7), 7);
	close(fd);
}

static void end_hang(void)
{
	end_hang_of(wait_for_hang());
}

/* ---- the agent ---- */

static const struct region *find(const char *name)
{
	const struct manager_region *mr = manager_find_region(manager, name);

	return mr ? manager_region_get(mr) : NULL;
}

static pid_t looking(void)
{
	return scan_get_pid(manager->look.scan);
}

static void wait_for_look(void)
{
	while (manager->look.scan)
		turn();
}

static void wait_for_problem(const char *text)
{
	while (!strstr(manager_get_scan_problem(manager), text))
		turn();
}

static void assert_serves(void)
{
	struct answer_of a;

	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
}

static void start_agent_here(void)
{
	start_agent();
	manager->conf->stall_usec = 20 * USEC_PER_MSEC;
	manager_add_listener(manager, &listener);
	n_changed = 0;
}

static int set_up_here(void **state)
{
	if (recorded_set_up(state) < 0 || set_up(state) < 0)
		return -1;
	recorded_restore("virtio-pmem-fsdax");
	recorded_show();
	return 0;
}

/* The regions of the tree have pages and records too. */
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

/* It is tried again also if nothing happens any more. */
static void test_failed_is_tried_again(void **state)
{
	start_agent_here();
	make_hang();
	manager_rescan(manager);
	assert_int_equal(kill(looking(), SIGKILL), 0);
	wait_for_look();
	restore_mode();
	assert_non_null(manager->look.retry);
	assert_int_equal(sd_event_source_set_time_accuracy(manager->look.retry, 1), 0);
	assert_int_equal(sd_event_source_set_time_relative(manager->look.retry, 0), 0);
	while (manager_get_scan_problem(manager)[0])
		turn();
	assert_null(manager->look.retry);
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

/* ---- errors of disks whose regions are yet to be seen ---- */

#define ERROR1 " a-1 [000] 1.0: block_bio_complete: 259,1 FR () 0 + 8 [-5]\n"

static int tear_down_watched_here(void **state)
{
	end_agent();
	return nftw(directory, remove_traces, 4, FTW_PHYS) < 0 || tear_down_watched(state) < 0 ||
		       recorded_tear_down(state) < 0
		   ? -1
		   : 0;
}

static uint64_t losses_of(const char *name)
{
	struct flush_status s;

	manager_region_get_status(manager_find_region(manager, name), &s);
	return s.loss.number;
}

static void test_error_before_it_is_seen(void **state)
{
	hide(CLASS1);
	start_watched();
	assert_null(find("region1"));
	unhide(CLASS1);
	say(ERROR1 ERROR1);
	assert_serves();
	assert_non_null(manager->look.scan);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	assert_int_equal(manager->watch.n_strangers, 0);
}

/* It is kept for as long as nobody can tell whose it is. */
static void test_error_while_it_hangs(void **state)
{
	hide(CLASS1);
	start_watched();
	unhide(CLASS1);
	make_hang();
	manager_rescan(manager);
	say(ERROR1);
	assert_serves();
	assert_int_equal(manager->watch.n_strangers, 1);
	end_hang();
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	assert_int_equal(manager->watch.n_strangers, 0);
}

/* It is read when the look that has missed its region ends. */
static void test_error_at_the_end_of_a_look(void **state)
{
	int fd;

	hide(CLASS1);
	start_watched();
	make_hang();
	manager_rescan(manager);
	fd = wait_for_hang();
	unhide(CLASS1);
	say(ERROR1);
	end_hang_of(fd);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	assert_int_equal(manager->watch.n_strangers, 0);
}

/* A disk that turns out to be nobody's is forgotten. */
static void test_error_of_nobody(void **state)
{
	hide(CLASS1);
	start_watched();
	say(ERROR1);
	assert_serves();
	wait_for_look();
	assert_int_equal(manager->watch.n_strangers, 0);
	unhide(CLASS1);
	manager_rescan(manager);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 0);
}

/* Too many to keep: whatever is seen has lost something. */
static void test_errors_of_many(void **state)
{
	hide(CLASS1);
	start_watched();
	unhide(CLASS1);
	for (unsigned int i = 0; i <= WATCH_MAX_STRANGERS; i++)
		say(ERROR1);
	assert_serves();
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 1);
}

/* ---- errors of what is made of disks ---- */

#define ERROR_MAPPED " a-1 [000] 1.0: block_bio_complete: 253,0 WS () 8 + 8 [-5]\n"
#define MAPPED       "/sys/devices/virtual/block/dm-0"

static void make_disk(const char *path, const char *number)
{
	char slaves[512], text[32];

	snprintf(slaves, sizeof(slaves), "%s%s/slaves/", recorded_root, path);
	recorded_make_parents(slaves);
	snprintf(text, sizeof(text), "%s\n", number);
	snprintf(slaves, sizeof(slaves), "%s%s/dev", recorded_root, path);
	assert_int_equal(write_file(slaves, text), 0);
	snprintf(text, sizeof(text), "/sys/dev/block/%s", number);
	snprintf(slaves, sizeof(slaves), "../..%s", path + strlen("/sys"));
	assert_int_equal(symlink(slaves, in_tree(text)), 0);
}

static void put_below(const char *slave)
{
	char target[512];

	snprintf(target, sizeof(target), "../../../../..%s", slave + strlen("/sys"));
	assert_int_equal(symlink(target, in_tree(MAPPED "/slaves/below")), 0);
}

/* It is full, say: it fails what was written to it, and the disk below never gets to see it. */
static void test_error_of_mapping(void **state)
{
	start_watched();
	make_disk(MAPPED, "253:0");
	put_below("/sys/class/block/pmem1");
	say(ERROR_MAPPED ERROR_MAPPED);
	assert_serves();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	assert_null(manager->look.scan);
}

static void test_error_of_mapping_before_it_is_seen(void **state)
{
	hide(CLASS1);
	start_watched();
	unhide(CLASS1);
	make_disk(MAPPED, "253:0");
	put_below("/sys/class/block/pmem1");
	say(ERROR_MAPPED);
	assert_serves();
	assert_non_null(manager->look.scan);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
}

static void test_error_of_mapping_elsewhere(void **state)
{
	start_watched();
	make_disk(MAPPED, "253:0");
	make_disk("/sys/devices/virtual/block/vda", "254:0");
	put_below("/sys/devices/virtual/block/vda");
	say(ERROR_MAPPED " a-1 [000] 1.0: block_bio_complete: 254,0 WS () 8 + 8 [-5]\n");
	assert_serves();
	assert_int_equal(losses_of("region0") + losses_of("region1"), 0);
	assert_null(manager->look.scan);
}

/* It may have been on any disk. */
static void test_error_of_mapping_that_is_gone(void **state)
{
	if (recorded_preloaded)
		skip();
	start_watched();
	assert_int_equal(write_file(in_tree("/devices"), "Character devices:\n254 md\n\nBlock devices:\n"
							 "253 device-mapper\n254 virtblk\n259 blkext\n"),
			 0);
	assert_int_equal(mount(in_tree("/devices"), "/proc/devices", NULL, MS_BIND, NULL), 0);
	say(" a-1 [000] 1.0: block_bio_complete: 254,0 WS () 8 + 8 [-5]\n");
	assert_serves();
	assert_int_equal(losses_of("region0") + losses_of("region1"), 0);
	say(ERROR_MAPPED);
	assert_serves();
	umount2("/proc/devices", MNT_DETACH);
	assert_int_equal(losses_of("region0"), 1);
	assert_int_equal(losses_of("region1"), 1);
}

#define TEST_WATCHED(name) cmocka_unit_test_setup_teardown(name, set_up_here, tear_down_watched_here)
#define TEST_HERE(name)    cmocka_unit_test_setup_teardown(name, set_up_here, tear_down_here)

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
		TEST_HERE(test_number_of_another),
		TEST_HERE(test_agent_ends),
		TEST_WATCHED(test_error_before_it_is_seen),
		TEST_WATCHED(test_error_while_it_hangs),
		TEST_WATCHED(test_error_at_the_end_of_a_look),
		TEST_WATCHED(test_error_of_nobody),
		TEST_WATCHED(test_errors_of_many),
		TEST_WATCHED(test_error_of_mapping),
		TEST_WATCHED(test_error_of_mapping_before_it_is_seen),
		TEST_WATCHED(test_error_of_mapping_elsewhere),
		TEST_WATCHED(test_error_of_mapping_that_is_gone),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (!recorded_enter(argv))
		return 0;
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
