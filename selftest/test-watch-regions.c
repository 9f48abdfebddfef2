/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-watch-regions: which regions the witness's entries hit, as regions and what is made of their disks come and go
 */
#include "selftest/regions.h"

/* ---- errors of disks whose regions are yet to be seen ---- */

#define OVERRUN   "CPU:0 [LOST 3 EVENTS]\n"
#define UNRELATED " a-1 [000] 1.0: block_bio_complete: 1,0 W () 0 + 8 [-5]\n"
#define ERROR1    " a-1 [000] 1.0: block_bio_complete: 259,1 FR () 0 + 8 [-5]\n"

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

/* Nor is a disk nobody's whose region is seen and can't be served. */
static void test_error_before_it_can_be_served(void **state)
{
	char identity1[REGION_IDENTITY_MAX], path[128];

	start_watched();
	snprintf(identity1, sizeof(identity1), "%s", find("region1")->identity);
	hide(CLASS1);
	manager_rescan(manager);
	wait_for_look();
	assert_null(find("region1"));
	worker_page_path(directory, identity1, path, sizeof(path) - 4);
	assert_int_equal(unlink(path), 0);
	strcat(path, ".new");
	assert_int_equal(mkdir(path, 0700), 0);

	unhide(CLASS1);
	say(ERROR1);
	assert_serves();
	wait_for_look();
	assert_null(find("region1"));
	assert_non_null(strstr(manager_get_scan_problem(manager), "region1 cannot be served: Is a directory"));
	assert_int_equal(manager->watch.n_strangers, 1);

	assert_int_equal(rmdir(path), 0);
	retry_now();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	assert_int_equal(manager->watch.n_strangers, 0);
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

/* What went unseen may have been of a region that is not known yet; those that are known are not lost twice. */
static void test_overrun_while_it_hangs(void **state)
{
	int fd;

	hide(CLASS1);
	start_watched();
	make_hang();
	manager_rescan(manager);
	fd = wait_for_hang();
	say(OVERRUN);
	watch_read(manager, NULL);
	assert_int_equal(losses_of("region0"), 1);
	/* It ends without it, and there is another. */
	unhide(CLASS1);
	manager_rescan(manager);
	end_hang_of(fd);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 1);
	assert_int_equal(manager->watch.n_strangers, 0);
}

static void test_overrun_at_the_end_of_a_look(void **state)
{
	int fd;

	hide(CLASS1);
	start_watched();
	unhide(CLASS1);
	make_hang();
	manager_rescan(manager);
	fd = wait_for_hang();
	say(OVERRUN);
	end_hang_of(fd);
	wait_for_look();
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 1);
}

/* ---- errors while the region can't be flushed ---- */

static void refuse(const char *name, bool refused)
{
	const struct region_backing backing = { .type = REGION_BACKING_FILE,
						.share = refused ? REGION_FACT_NO : REGION_FACT_YES };

	assert_non_null(manager_set_backing(manager, manager_find_region(manager, name), &backing));
	assert_int_equal(region_can_flush(find(name)), !refused);
}

static void test_error_while_refused(void **state)
{
	start_watched();
	refuse("region1", true);
	say(ERROR1 ERROR1);
	watch_read(manager, NULL);
	assert_string_equal(manager_get_basis(manager), "watched");
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 0);
	/* It has been counted. */
	refuse("region1", true);
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 1);
}

/* Another agent has it back. */
static void test_error_while_refused_before_a_restart(void **state)
{
	start_watched();
	refuse("region1", true);
	say(ERROR1);
	watch_read(manager, NULL);
	end_agent();
	start_agent();
	assert_false(region_can_flush(find("region1")));
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 1);
}

static struct pmem_agent_page *watched_page;
static unsigned int n_taken, n_unmarked;

int __real_witness_next(struct witness *w, struct witness_entry *ret);
int __wrap_witness_next(struct witness *w, struct witness_entry *ret);

/* The agent could be killed right after it. */
int __wrap_witness_next(struct witness *w, struct witness_entry *ret)
{
	n_taken++;
	n_unmarked += watched_page && pmem_agent_page_lost(watched_page) == 0;
	return __real_witness_next(w, ret);
}

static void test_died_reading_while_refused(void **state)
{
	start_watched();
	/* What earlier boots lost has been read by then. */
	while (manager->memory.child)
		turn();
	refuse("region1", true);
	assert_int_equal(worker_open_page(directory, find("region1")->identity, manager->boot_id, &watched_page), 0);
	assert_int_equal(pmem_agent_page_lost(watched_page), 0);
	n_taken = n_unmarked = 0;
	say(UNRELATED);
	watch_read(manager, NULL);
	assert_true(n_taken > 0 && n_unmarked == 0);
	assert_int_equal(pmem_agent_page_lost(watched_page), 0);
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 0);

	/* As it would have left it; whoever comes after it reads on, and may not see that it can be flushed. */
	refuse("region1", true);
	watched_page->agent.reading = 1;
	say(UNRELATED);
	watch_read(manager, NULL);
	assert_int_equal(pmem_agent_page_lost(watched_page), PMEM_AGENT_UNKNOWN);
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 1);
	watched_page = worker_close_page(watched_page);
}

static void test_overrun_while_refused(void **state)
{
	start_watched();
	refuse("region1", true);
	say(OVERRUN);
	watch_read(manager, NULL);
	refuse("region1", false);
	assert_int_equal(losses_of("region1"), 1);
	assert_int_equal(losses_of("region0"), 1);
}

/* Of two copies of one image the other is flushed, by the same page. */
static void test_error_of_a_copy(void **state)
{
	start_watched();
	refuse("region1", true);
	strcpy(manager_find_region(manager, "region1")->region->identity, find("region0")->identity);
	say(ERROR1);
	watch_read(manager, NULL);
	assert_int_equal(losses_of("region0"), 1);
	say(OVERRUN);
	watch_read(manager, NULL);
	assert_int_equal(losses_of("region0"), 2);
}

/* What never will be flushed would keep it for ever. */
static void test_error_of_synchronous(void **state)
{
	struct pmem_agent_page *kept;
	struct region *r;

	start_watched();
	refuse("region1", true);
	r = manager_find_region(manager, "region1")->region;
	r->unattested.method = REGION_METHOD_CPU_FLUSH;
	assert_int_equal(worker_open_page(directory, r->identity, manager->boot_id, &kept), 0);
	r->deep_flush = 0;
	say(ERROR1);
	watch_read(manager, NULL);
	assert_int_equal(kept->agent.reading, 0);
	/* It has flush hints, only that udev has not been there yet. */
	r->deep_flush = 1;
	say(ERROR1);
	watch_read(manager, NULL);
	assert_int_not_equal(kept->agent.reading, 0);
	worker_close_page(kept);
}

/* Then nobody is told any more that errors are watched for. */
static void test_error_that_cannot_be_kept(void **state)
{
	char path[128];

	start_watched();
	refuse("region1", true);
	worker_page_path(directory, find("region1")->identity, path, sizeof(path));
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	say(ERROR1);
	watch_read(manager, NULL);
	assert_string_equal(manager_get_basis(manager), "own-flush");
	assert_int_equal(rmdir(path), 0);
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
	start_watched();
	if (recorded_preloaded)
		skip(); /* libumockdev shows no other /proc */
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

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST_WATCHED(test_error_before_it_is_seen),
		TEST_WATCHED(test_error_while_it_hangs),
		TEST_WATCHED(test_error_at_the_end_of_a_look),
		TEST_WATCHED(test_error_of_nobody),
		TEST_WATCHED(test_error_before_it_can_be_served),
		TEST_WATCHED(test_errors_of_many),
		TEST_WATCHED(test_overrun_while_it_hangs),
		TEST_WATCHED(test_overrun_at_the_end_of_a_look),
		TEST_WATCHED(test_error_while_refused),
		TEST_WATCHED(test_error_while_refused_before_a_restart),
		TEST_WATCHED(test_died_reading_while_refused),
		TEST_WATCHED(test_overrun_while_refused),
		TEST_WATCHED(test_error_of_a_copy),
		TEST_WATCHED(test_error_of_synchronous),
		TEST_WATCHED(test_error_that_cannot_be_kept),
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
