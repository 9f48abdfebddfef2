/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-serve: what pmemctl serve tells of the backings, and flushes
 */
#include "selftest/serving.h"

static void test_a_backing_is_told_and_flushed(void **state)
{
	unsigned int before = disk->n;

	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	want(4096, 1);
	flushed(4096, 1, 0);
	assert_int_equal(disk->n, before + 1);
	stop_serve();
}

static void test_what_keeps_nothing_is_said_to_and_never_confirmed(void **state)
{
	char shm[160], missing[160];
	unsigned int before = disk->n;

	snprintf(shm, sizeof(shm), "0x3000=%s,share=on", memory);
	snprintf(missing, sizeof(missing), "0x4000=%s/none,share=on", directory);
	start(backing(0, "0x1000", ",share=off"), backing(1, "0x2000", ",share=on,readonly=on"), shm, missing,
	      backing(2, "0x5000", ""));
	greet_first();
	expect_backing(0x1000, "\"type\":\"file\",\"share\":false,\"served\":false");
	expect_backing(0x2000, "\"type\":\"file\",\"share\":true,\"read-only\":true,\"served\":false");
	expect_backing(0x3000, "\"type\":\"ram\",\"share\":true,\"served\":false");
	expect_backing(0x4000, "\"type\":\"file\",\"served\":false");
	expect_backing(0x5000, "\"type\":\"file\",\"served\":true");
	for (unsigned int i = 1; i <= 4; i++) {
		want(i << 12, i);
		flushed(i << 12, i, EOPNOTSUPP);
	}
	want(0x9000, 9);
	flushed(0x9000, 9, EOPNOTSUPP);
	assert_int_equal(disk->n, before);
	stop_serve();
}

static void test_an_error_is_kept_until_it_is_answered(void **state)
{
	struct json_object *o;

	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	disk->error = EIO;
	want(4096, 1);
	o = expect_flushed(4096, 1, EIO);
	json_object_put(o);
	disk->error = 0;
	/* The connection is lost before the agent has answered, and again. */
	for (unsigned int i = 0; i < 2; i++) {
		end_close(&guest);
		end_accept(&guest, listener);
		greet(i ? AGENT("i2", "0") : AGENT("i2b", "0"));
		o = expect_flushed(4096, 0, EIO);
		json_object_put(o);
	}
	end_close(&guest);
	end_accept(&guest, listener);
	greet(AGENT("i3", "0"));
	flushed(4096, 0, EIO);
	expect_backing(4096, SERVED);
	/* Now it is known, and not said again. */
	end_close(&guest);
	end_accept(&guest, listener);
	greet(AGENT("i4", "0"));
	expect_backing(4096, SERVED);
	want(4096, 1);
	flushed(4096, 1, 0);
	stop_serve();
}

/* What is written down of that file: the errno that nobody was told of. */
static int kept(unsigned int i)
{
	char path[128];
	int error = -1;
	FILE *f;

	snprintf(path, sizeof(path), "%s-%016" PRIx64, state_path, region_identity_hash(files[i]));
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &error), 1);
	fclose(f);
	return error;
}

/* Whoever comes after a serve that was killed knows it, and forgets it when the agent does know. */
static void test_an_error_outlives_serve(void **state)
{
	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	disk->error = EIO;
	want(4096, 1);
	json_object_put(expect_flushed(4096, 1, EIO));
	kill(serve, SIGKILL);
	waitpid(serve, NULL, 0);
	end_close(&guest);
	assert_int_equal(kept(0), EIO);

	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	flushed(4096, 0, EIO);
	expect_backing(4096, SERVED);
	want(4096, 1);
	flushed(4096, 1, 0);
	assert_int_equal(kept(0), 0);
	stop_serve();
}

/* serve, and the child that is in a flush, which takes along what that is about to be told. */
static void kill_all_in_flush(void)
{
	kill(serve, SIGKILL);
	kill(disk->pid, SIGKILL);
	waitpid(serve, NULL, 0);
	end_close(&guest);
}

static void test_an_error_that_nobody_lived_to_see_is_one(void **state)
{
	unsigned int before = disk->n;

	start(backing(1, "0x2000", ",share=on"));
	greet_first();
	expect_backing(8192, SERVED);
	disk->hang = true;
	want(8192, 1);
	while (__atomic_load_n(&disk->n, __ATOMIC_SEQ_CST) == before)
		poll(NULL, 0, 5);
	assert_int_equal(kept(1), EIO);
	kill_all_in_flush();

	start(backing(1, "0x2000", ",share=on"));
	greet_first();
	flushed(8192, 0, EIO);
	expect_backing(8192, SERVED);
	want(8192, 1);
	flushed(8192, 1, 0);
	assert_int_equal(kept(1), 0);
	stop_serve();
}

/* It writes down how it went, and the next serve waits for that. */
static void test_a_flush_outlives_serve(void **state)
{
	for (int error = 0; error <= EIO; error += EIO) {
		unsigned int before = disk->n;

		start(backing(1, "0x2000", ",share=on"));
		greet_first();
		expect_backing(8192, SERVED);
		disk->hang = true;
		disk->error = error;
		want(8192, 1);
		while (__atomic_load_n(&disk->n, __ATOMIC_SEQ_CST) == before)
			poll(NULL, 0, 5);
		stop_serve();

		launch(backing(1, "0x2000", ",share=on"));
		greet_first();
		assert_null(end_read_for(&guest, 200));
		disk->hang = false;
		if (error) {
			flushed(8192, 0, EIO);
			disk->error = 0;
		}
		expect_backing(8192, SERVED);
		want(8192, 1);
		flushed(8192, 1, 0);
		stop_serve();
	}
}

/* The machine that runs has the one open that is gone; the next one has the other. */
static void test_a_file_that_was_replaced_is_not_flushed_for_another(void **state)
{
	unsigned int before = disk->n;
	char other[96];

	start(backing(2, "0x3000", ",share=on"));
	greet_first();
	expect_backing(0x3000, SERVED);
	make_file(other, directory, 4);
	assert_int_equal(rename(other, files[2]), 0);
	want(0x3000, 1);
	expect_backing(0x3000, "\"type\":\"file\",\"served\":false");
	flushed(0x3000, 1, EOPNOTSUPP);
	want(0x3000, 2);
	flushed(0x3000, 2, EOPNOTSUPP);
	assert_int_equal(disk->n, before);

	end_close(&guest);
	end_accept(&guest, listener);
	greet(AGENT("i2", "0"));
	expect_backing(0x3000, SERVED);
	want(0x3000, 1);
	flushed(0x3000, 1, 0);
	assert_int_equal(disk->n, before + 1);
	stop_serve();
}

static void test_what_an_instance_before_wanted_is_no_answer_to_this_one(void **state)
{
	start(backing(1, "0x2000", ",share=on"));
	greet_first();
	expect_backing(8192, SERVED);
	disk->hang = true;
	want(8192, 5);
	end_close(&guest);
	end_accept(&guest, listener);
	greet(AGENT("i2", "0"));
	expect_backing(8192, SERVED);
	want(8192, 1);
	disk->hang = false;
	flushed(8192, 1, 0);
	assert_null(end_read_for(&guest, 200));
	stop_serve();
}

/* Else what was confirmed before a restore would stand. */
static void test_a_new_instance_that_comes_too_soon_is_said_again(void **state)
{
	struct json_object *o;

	start(backing(0, "0x1000", ",share=on"));
	end_send(&guest, "{'pmem-agent':%s}", AGENT("i0", "0"));
	o = end_expect(&guest, "new-instance");
	end_send(&guest, "{'error':{'class':'Busy','desc':'say it again'},'id':%s}", end_id(o));
	json_object_put(o);
	end_new_instance(&guest, "i1");
	negotiate();
	expect_backing(4096, SERVED);
	stop_serve();
}

/* Which one is not known: whoever connects anew is told all. */
static void test_an_answer_that_was_missed_ends_the_connection(void **state)
{
	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	disk->error = EIO;
	want(4096, 1);
	json_object_put(expect_flushed(4096, 1, EIO));
	end_send(&guest, "{'event':'MISSED','data':{'count':0,'answers':1,'sequence':2},'timestamp':{}}");
	end_accept(&guest, listener);
	greet(AGENT("i2", "0"));
	flushed(4096, 0, EIO);
	expect_backing(4096, SERVED);
	stop_serve();
}

static void test_a_disk_that_hangs_holds_up_its_own_backing_only(void **state)
{
	start(backing(0, "0x1000", ",share=on"), backing(1, "0x2000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	expect_backing(8192, SERVED);
	disk->hang = true;
	want(8192, 1);
	for (unsigned int i = 2; i < 5; i++) {
		want(4096, i);
		flushed(4096, i, 0);
	}
	disk->hang = false;
	flushed(8192, 1, 0);
	stop_serve();
}

/* Those that wait share a flush; more than may wait are refused. */
static void test_a_guest_that_asks_without_end_is_bounded(void **state)
{
	unsigned int before = disk->n, n_ok = 0, n_refused = 0;

	start(backing(1, "0x2000", ",share=on"));
	greet_first();
	expect_backing(8192, SERVED);
	disk->hang = true;
	for (unsigned int i = 1; i <= 100; i++)
		want(8192, i);
	for (unsigned int i = 1; i <= 84; i++) {
		_cleanup_(json_unrefp) struct json_object *o = end_expect(&guest, "flushed");

		assert_int_equal(json_get_u64(arguments_of(o), "errno", 0), EOPNOTSUPP);
		answer(o, "{'current':false}");
		n_refused++;
	}
	disk->hang = false;
	for (unsigned int i = 1; i <= 16; i++, n_ok++)
		flushed(8192, i, 0);
	assert_int_equal(n_ok + n_refused, 100);
	assert_in_range(disk->n - before, 1, 2);
	stop_serve();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_backing_is_told_and_flushed),
		cmocka_unit_test(test_what_keeps_nothing_is_said_to_and_never_confirmed),
		cmocka_unit_test(test_an_error_is_kept_until_it_is_answered),
		cmocka_unit_test(test_an_error_outlives_serve),
		cmocka_unit_test(test_an_error_that_nobody_lived_to_see_is_one),
		cmocka_unit_test(test_a_flush_outlives_serve),
		cmocka_unit_test(test_a_file_that_was_replaced_is_not_flushed_for_another),
		cmocka_unit_test(test_what_an_instance_before_wanted_is_no_answer_to_this_one),
		cmocka_unit_test(test_a_new_instance_that_comes_too_soon_is_said_again),
		cmocka_unit_test(test_an_answer_that_was_missed_ends_the_connection),
		cmocka_unit_test(test_a_disk_that_hangs_holds_up_its_own_backing_only),
		cmocka_unit_test(test_a_guest_that_asks_without_end_is_bounded),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
