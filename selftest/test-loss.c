/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-loss: what one agent, or one boot, knows of the losses of the one before
 */
#include <sys/file.h>
#include <sys/stat.h>

#include "agent/scan.h"
#include "selftest/emulated.h"

/* ---- helpers ---- */

static int acknowledge(uint64_t number)
{
	char detail[MOUNT_DETAIL_MAX] = "";
	int answer = manager_acknowledge(manager, emu0(), number, detail);

	assert_int_equal(answer != 0, detail[0] != '\0');
	return answer;
}

static void lose(void)
{
	round_lose(emu0(), EIO, FLUSH_ORIGIN_WITNESS);
}

static void assert_durable(void)
{
	struct answer_of a;

	ask(&a);
	assert_answer(&a, PMEM_AGENT_DURABLE);
	assert_false(pmem_agent_page_lost(page));
}

/* The records have been read, or can't be. */
static void start(void)
{
	start_agent();
	wait_for_state();
}

static void restart(void)
{
	end_agent();
	start();
}

/* Pages are gone with the boot. */
static void reboot(void)
{
	sd_id128_t boot_id;

	end_agent();
	page = worker_close_page(page);
	assert_int_equal(unlink(page_path), 0);
	assert_int_equal(sd_id128_get_boot(&boot_id), 0);
	assert_int_equal(worker_open_page(directory, identity, boot_id, &page), 0);
	start();
}

/* As a boot before this one left it. */
static void record_of_time(const char *of, uint64_t size, uint64_t loss, uint64_t acknowledged, uint64_t usec,
			   char ret_path[static 96])
{
	struct state_record r = { .size = size,
				  .loss = loss,
				  .acknowledged = acknowledged,
				  .usec = usec,
				  .error = ENXIO,
				  .origin = FLUSH_ORIGIN_ROUND };
	struct state_answer answer;
	struct state *s;

	snprintf(r.identity, sizeof(r.identity), "%s", of);
	snprintf(ret_path, 96, "%s/%016" PRIx64 ".loss", directory, region_identity_hash(of));
	assert_int_equal(state_start(directory, &s), 0);
	assert_int_equal(state_save(s, &r), 0);
	while (state_next(s, &answer) == -EAGAIN)
		sched_yield();
	assert_int_equal(answer.error, 0);
	state_free(s);
}

static void record(const char *of, uint64_t size, uint64_t loss, uint64_t acknowledged, char ret_path[static 96])
{
	record_of_time(of, size, loss, acknowledged, 0, ret_path);
}

/* ---- one agent after the other ---- */

static void test_acknowledged(void **state)
{
	start();
	assert_durable();
	assert_int_equal(acknowledge(1), PMEM_AGENT_STALE_LOSS);
	lose();
	lose();
	assert_true(pmem_agent_page_lost(page));
	assert_int_equal(acknowledge(1), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(acknowledge(3), PMEM_AGENT_STALE_LOSS);
	assert_refused(PMEM_AGENT_LOST);
	assert_int_equal(acknowledge(2), 0);
	assert_int_equal(acknowledge(2), PMEM_AGENT_STALE_LOSS);
	assert_durable();

	restart();
	assert_true(status().loss.number == 0 && status().acknowledged == 2);
	assert_durable();
	lose();
	assert_true(status().loss.number == 3);
}

static void test_outlives_the_boot(void **state)
{
	start();
	assert_durable();
	lose();
	reboot();
	assert_true(status().loss.number == 1 && status().loss.epoch == 1 && status().loss.round == 1);
	assert_int_equal(status().loss.origin, FLUSH_ORIGIN_WITNESS);
	assert_true(pmem_agent_page_lost(page));
	assert_refused(PMEM_AGENT_LOST);
	assert_int_equal(acknowledge(1), 0);
	assert_durable();

	reboot();
	assert_durable();
	assert_true(status().acknowledged == 1);
	lose();
	assert_true(status().loss.number == 2);

	/* Without its record it would not know. */
	wait_for_state();
	assert_int_equal(unlink(record_path), 0);
	reboot();
	assert_true(status().loss.number == 0);
	assert_durable();
}

/* Killed between its page and its record: the next agent catches up. */
static void test_record_is_made_up_for(void **state)
{
	start();
	lose();
	wait_for_state();
	assert_int_equal(unlink(record_path), 0);
	restart();
	assert_int_equal(access(record_path, F_OK), 0);
}

/* A loss in this boot, before it is known what went before. */
static void test_lost_before_the_records_are_read(void **state)
{
	char path[96];

	record(identity, 1, 3, 3, path);
	start_agent();
	lose();
	assert_true(page->agent.loss == 1);
	assert_true(pmem_agent_page_lost(page));
	assert_int_equal(acknowledge(1), PMEM_AGENT_UNKNOWN);
	wait_for_state();
	assert_true(page->agent.loss == 4);
	assert_int_equal(acknowledge(1), PMEM_AGENT_STALE_LOSS);
	assert_int_equal(acknowledge(4), 0);
	assert_durable();
}

/* A failure that the worker has written of, and nobody here has counted yet. */
static void test_uncounted_failure_is_not_acknowledged(void **state)
{
	start();
	lose();
	page->worker.failed = 1;
	assert_int_equal(acknowledge(1), PMEM_AGENT_STALE_LOSS);
	assert_true(pmem_agent_page_lost(page));
}

/* The worker has written of it, and the loop has not come to its result: a loss noticed now does not count it. */
static void test_failure_in_flight_is_another_loss(void **state)
{
	struct answer_of a;
	pid_t pid;

	start();
	pid = stop_worker();
	begin(&a);
	page->worker.failed = status().started;
	lose();
	assert_int_equal(acknowledge(1), PMEM_AGENT_STALE_LOSS);
	assert_true(pmem_agent_page_lost(page));
	kill(pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_LOST);
	while (status().loss.number != 2)
		turn();
	assert_int_equal(acknowledge(2), 0);
	assert_durable();
}

/* Rounds are counted anew in each boot: one of an earlier boot is not the one that was in flight here. */
static void test_dead_in_flight_after_a_loss_of_an_earlier_boot(void **state)
{
	char path[96];

	record(identity, 1, 1, 0, path);
	start();
	assert_int_equal(acknowledge(1), 0);
	assert_durable();
	assert_true(page->agent.loss_earlier == 1);
	page->agent.loss_origin = FLUSH_ORIGIN_WORKER;
	page->agent.loss_round = 1000;
	end_agent();
	kill((pid_t)page->worker.pid, SIGKILL);
	page->worker.started++;
	start();
	while (status().state != FLUSH_IDLE)
		turn();
	assert_true(status().loss.number == 2 && status().started < 1000);
}

/* What was in flight when it was lost and acknowledged proves nothing, and if it fails that is another loss. */
static void test_acknowledged_in_mid_round(void **state)
{
	struct answer_of a, b;
	pid_t pid;

	start();
	pid = stop_worker();
	begin(&a);
	lose();
	assert_int_equal(acknowledge(1), 0);
	assert_false(pmem_agent_page_lost(page));
	ask(&b);
	kill(pid, SIGCONT);
	assert_answer(&a, PMEM_AGENT_LOST);
	assert_answer(&b, PMEM_AGENT_DURABLE);
	assert_true(b.result.epochs[0].epoch == 3);

	stop_process(pid);
	begin(&a);
	lose();
	assert_int_equal(acknowledge(2), 0);
	kill(pid, SIGKILL);
	assert_answer(&a, PMEM_AGENT_LOST);
	while (status().loss.number != 3)
		turn();
	assert_refused(PMEM_AGENT_LOST);
}

/* ---- whose it is ---- */

static void assert_emu0_after(const char *of, uint64_t size, bool damaged, uint64_t loss)
{
	char path[96];

	record(of, size, 7, 6, path);
	if (damaged)
		assert_int_equal(truncate(path, 1), 0);
	start();
	assert_true(loss == UINT64_MAX ? status().loss.number > 7 : status().loss.number == loss);
	assert_int_equal(status().loss.earlier_boot, loss != 0);
	end_agent();
	page->agent.loss = page->agent.acknowledged = page->agent.recalled = 0;
	unlink(path);
	unlink(record_path);
}

static void test_identity(void **state)
{
	assert_emu0_after(identity, 1, false, 7);
	assert_emu0_after(identity, 1, true, UINT64_MAX);
	/* The path of its file is what it is. */
	assert_emu0_after("file:/other", 1, false, 0);
	assert_emu0_after("at:1000+1:/sys/devices/x", 1, true, 0);
}

enum kind { LATCHED, ACKNOWLEDGED, DAMAGED };

static void assert_claimed(const char *of, uint64_t record_size, enum kind kind, const char *by, bool claimed)
{
	char path[96], detail[MOUNT_DETAIL_MAX];
	struct manager_region *mr;
	struct region *region;

	record(of, record_size, 7, kind == ACKNOWLEDGED ? 7 : 6, path);
	if (kind == DAMAGED)
		assert_int_equal(truncate(path, 1), 0);
	assert_int_equal(scan_emulated("other", emulated, &region), 0);
	snprintf(region->identity, sizeof(region->identity), "%s", by);
	start();
	region->size = 4096;
	assert_int_equal(round_region_new(manager, region, &mr), 0);
	assert_true(kind == DAMAGED ? mr->page->agent.loss > 7 : mr->page->agent.loss == (claimed ? 7 : 0));
	assert_int_equal(mr->page->agent.loss_origin, claimed ? FLUSH_ORIGIN_RECORD : 0);
	assert_true(!claimed || manager_acknowledge(manager, mr, mr->page->agent.loss, detail) == 0);
	wait_for_state();
	unlink(path);
	worker_page_path(directory, by, path, sizeof(path));
	unlink(path);
	snprintf(path, sizeof(path), "%s/%016" PRIx64 ".loss", directory, region_identity_hash(by));
	assert_int_equal(unlink(path) == 0, claimed);
	round_region_free(mr);
	end_agent();
}

/* A record of a region that is not there: whoever may have been it has lost what it lost. */
static void test_every_candidate_is_lost(void **state)
{
	assert_claimed("at:1000+1000:/sys/x", 4096, LATCHED, "at:2000+1000:/sys/x", true);
	assert_claimed("at:1000+1000:/sys/x", 4096, LATCHED, "uuid:1", true);
	assert_claimed("uuid:1", 4096, LATCHED, "at:1000+1000:/sys/x", true);
	assert_claimed("at:1000+1000:/sys/x", 4096, ACKNOWLEDGED, "at:2000+1000:/sys/x", false);
	assert_claimed("at:1000+1000:/sys/x", 8192, LATCHED, "at:2000+1000:/sys/x", false);
	assert_claimed("uuid:1", 4096, LATCHED, "uuid:2", false);
	/* Namespaces were made and destroyed, and one is still there. */
	assert_claimed("uuid:1", 4096, LATCHED, "uuid:1,2", true);
	assert_claimed("uuid:1,2", 4096, LATCHED, "uuid:1", true);
	assert_claimed("uuid:1,2", 4096, LATCHED, "uuid:2,1", true);
	assert_claimed("uuid:1,2", 8192, LATCHED, "uuid:2,3", true);
	assert_claimed("uuid:1,2", 4096, ACKNOWLEDGED, "uuid:2,3", false);
	assert_claimed("uuid:1,22", 4096, LATCHED, "uuid:2,11", false);
	assert_claimed("file:/x", 4096, LATCHED, "uuid:2", false);
	assert_claimed("uuid:1", 4096, DAMAGED, "uuid:2", true);
}

#define AT_1000 "at:1000+1000:/sys/x"
#define AT_2000 "at:2000+1000:/sys/x"

/* The number of the loss of a region of 4096 bytes at 1000, which is acknowledged then if that is asked for. */
static uint64_t join_at_1000(bool acknowledged)
{
	char detail[MOUNT_DETAIL_MAX];
	struct manager_region *mr;
	struct flush_status s;
	struct region *region;

	start();
	assert_int_equal(scan_emulated("other", emulated, &region), 0);
	snprintf(region->identity, sizeof(region->identity), AT_1000);
	region->size = 4096;
	assert_int_equal(round_region_new(manager, region, &mr), 0);
	manager_region_get_status(mr, &s);
	assert_int_equal(pmem_agent_page_lost(mr->page), s.loss.number > 0 ? PMEM_AGENT_LOST : 0);
	if (acknowledged)
		assert_int_equal(manager_acknowledge(manager, mr, s.loss.number, detail), 0);
	wait_for_state();
	round_region_free(mr);
	end_agent();
	return s.loss.number;
}

static void forget_page_of(const char *of)
{
	char path[96];

	worker_page_path(directory, of, path, sizeof(path));
	assert_int_equal(unlink(path), 0);
}

/* A region that has a record of its own may have lost more since, under another identity; and then only once. */
static void test_newer_loss_of_another_identity(void **state)
{
	static const struct {
		uint64_t loss, usec, expected;
	} rows[] = { { 1, 1, 7 }, { 9, 1, 10 }, { 1, 2, 0 }, { 1, 3, 0 } };
	char own[96], other[96];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		record_of_time(AT_1000, 4096, rows[i].loss, rows[i].loss, rows[i].usec, own);
		record_of_time(AT_2000, 4096, 7, 6, 2, other);
		assert_int_equal(join_at_1000(rows[i].expected > 0), rows[i].expected);
		assert_int_equal(join_at_1000(false), 0);
		forget_page_of(AT_1000);
		assert_int_equal(join_at_1000(false), 0);
		assert_int_equal(join_at_1000(false), 0);
		forget_page_of(AT_1000);
		unlink(own);
		unlink(other);
	}
}

/* So it may have since its page was told of earlier boots. */
static void test_newer_loss_in_the_same_boot(void **state)
{
	char own[96], other[96];

	assert_int_equal(join_at_1000(false), 0);
	record_of_time(AT_2000, 4096, 7, 6, 2, other);
	assert_int_equal(join_at_1000(true), 7);
	assert_int_equal(join_at_1000(false), 0);
	record_of_time(AT_2000, 4096, 8, 6, 3, other);
	assert_int_equal(join_at_1000(false), 8);
	assert_int_equal(join_at_1000(true), 8);
	assert_int_equal(join_at_1000(false), 0);
	forget_page_of(AT_1000);
	unlink(other);
	snprintf(own, sizeof(own), "%s/%016" PRIx64 ".loss", directory, region_identity_hash(AT_1000));
	assert_int_equal(unlink(own), 0);
}

/* ---- a state directory that is of no use ---- */

static void start_with(const char *state_dir)
{
	struct conf *conf;

	assert_int_equal(conf_load(conf_path, &conf), 0);
	assert_int_equal(manager_new(event, conf, directory, state_dir, &manager), 0);
}

static void test_unreadable(void **state)
{
	struct answer_of a;

	start_with("/proc/self/stat");
	ask(&a);
	assert_answer(&a, PMEM_AGENT_UNKNOWN);
	assert_non_null(strstr(a.result.detail, "/proc/self/stat cannot be read: Not a directory"));
	assert_refused(PMEM_AGENT_UNKNOWN);
	assert_true(pmem_agent_page_lost(page));
	assert_string_equal(manager_get_state_problem(manager), "/proc/self/stat cannot be read: Not a directory");
	wait_for_state();

	/* What this boot knows, it knows. */
	restart();
	assert_durable();
	end_agent();
	start_with("/proc/self/stat");
	assert_durable();
	wait_for_state();
}

static void test_unwritable(void **state)
{
	start_with("/proc/self/task");
	wait_for_state();
	assert_durable();
	lose();
	wait_for_state();
	assert_non_null(strstr(manager_get_state_problem(manager), "/proc/self/task cannot be written: "));
	assert_refused(PMEM_AGENT_LOST);
}

/* What could not be saved is tried again. */
static void test_unwritable_for_a_while(void **state)
{
	char new[96];

	snprintf(new, sizeof(new), "%.*s.new", (int)strlen(record_path) - 5, record_path);
	assert_int_equal(mkdir(new, 0700), 0);
	start();
	lose();
	wait_for_state();
	assert_non_null(strstr(manager_get_state_problem(manager), "cannot be written: Is a directory"));
	assert_int_not_equal(access(record_path, F_OK), 0);
	assert_int_equal(rmdir(new), 0);
	/* Now, and not in half a minute. */
	assert_int_equal(sd_event_source_set_time(manager->memory.timer, 0), 0);
	turn();
	wait_for_state();
	assert_string_equal(manager_get_state_problem(manager), "");
	assert_int_equal(access(record_path, F_OK), 0);
}

/* The filesystem takes its time: a loss is told and refused meanwhile, and an acknowledgement taken. */
static void test_slow(void **state)
{
	int dir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	start();
	assert_int_equal(flock(dir, LOCK_EX), 0);
	lose();
	assert_refused(PMEM_AGENT_LOST);
	assert_int_equal(acknowledge(1), 0);
	assert_durable();
	assert_int_not_equal(access(record_path, F_OK), 0);
	while (!manager_get_state_problem(manager)[0])
		turn();
	assert_non_null(
	    strstr(manager_get_state_problem(manager), "cannot be written: its filesystem does not answer"));
	assert_int_equal(flock(dir, LOCK_UN), 0);
	close(dir);
	wait_for_state();
	assert_string_equal(manager_get_state_problem(manager), "");
	reboot();
	assert_durable();
	assert_true(status().acknowledged == 1);
}

/* Its death is as good as a directory that can't be read. */
static void test_child_dies(void **state)
{
	struct answer_of a;

	start_agent();
	ask(&a);
	kill(*(pid_t *)manager->memory.child, SIGKILL);
	while (!a.told)
		turn();
	if (a.result.answer != PMEM_AGENT_DURABLE) {
		assert_int_equal(a.result.answer, PMEM_AGENT_UNKNOWN);
		assert_refused(PMEM_AGENT_UNKNOWN);
	}
	restart();
	assert_durable();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_acknowledged),
		TEST(test_outlives_the_boot),
		TEST(test_record_is_made_up_for),
		TEST(test_lost_before_the_records_are_read),
		TEST(test_uncounted_failure_is_not_acknowledged),
		TEST(test_failure_in_flight_is_another_loss),
		TEST(test_dead_in_flight_after_a_loss_of_an_earlier_boot),
		TEST(test_acknowledged_in_mid_round),
		TEST(test_identity),
		TEST(test_every_candidate_is_lost),
		TEST(test_newer_loss_of_another_identity),
		TEST(test_newer_loss_in_the_same_boot),
		TEST(test_unreadable),
		TEST(test_unwritable),
		TEST(test_unwritable_for_a_while),
		TEST(test_slow),
		TEST(test_child_dies),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("loss", tests, set_up_group, tear_down_group);
}
