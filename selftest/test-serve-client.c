/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-serve-client: other programs of the host, and instances, through pmemctl serve
 */
#include "selftest/serving.h"

static struct end a, b;

/* Greeted, by way of a query to the agent. */
static void connect_client(struct end *e)
{
	_cleanup_(json_unrefp) struct json_object *o = NULL, *greeting = NULL;

	end_connect(e, listen_path);
	o = end_expect(&guest, "query");
	answer(o, AGENT("i1", "40"));
	greeting = end_read(e);
	assert_string_equal(json_get_string(json_get(greeting, "pmem-agent", json_type_object), "instance", ""), "i1");
	assert_int_equal(json_object_array_length(
			     json_get(json_get(greeting, "pmem-agent", json_type_object), "features", json_type_array)),
			 0);
}

/* A guest that is paused answers none of them. */
static void test_clients_that_come_and_go_leave_nothing(void **state)
{
	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	for (unsigned int i = 0; i < 2 * SERVE_MAX_CALLS + 16; i++) {
		end_connect(&a, listen_path);
		json_object_put(end_expect(&guest, "query"));
		end_close(&a);
	}
	connect_client(&a);
	end_close(&a);
	want(4096, 1);
	flushed(4096, 1, 0);
	stop_serve();
}

static void expect_error(struct end *e, const char *class, const char *id)
{
	_cleanup_(json_unrefp) struct json_object *o = end_read(e);

	assert_string_equal(json_get_string(json_get(o, "error", json_type_object), "class", ""), class);
	assert_string_equal(end_id(o), id);
}

static void start_with_clients(void)
{
	start(backing(0, "0x1000", ",share=on"));
	greet_first();
	expect_backing(4096, SERVED);
	connect_client(&a);
	connect_client(&b);
}

static void stop_with_clients(void)
{
	stop_serve();
	end_close(&a);
	end_close(&b);
}

static void test_clients_of_the_same_id_get_their_own_answers(void **state)
{
	struct json_object *first, *second, *o;

	start_with_clients();
	end_send(&a, "{'execute':'flush','arguments':{'path':'/a'},'id':[1]}");
	first = end_expect(&guest, "flush");
	end_send(&b, "{'execute':'flush','arguments':{'path':'/b'},'id':[1]}");
	second = end_expect(&guest, "flush");
	assert_string_equal(json_get_string(arguments_of(first), "path", ""), "/a");
	assert_string_equal(json_get_string(arguments_of(second), "path", ""), "/b");
	assert_string_not_equal(end_id(first), end_id(second));
	answer(second, "{'of':'b'}");
	answer(first, "{'of':'a'}");
	json_object_put(first);
	json_object_put(second);
	o = end_read(&a);
	assert_string_equal(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN),
			    "{\"return\":{\"of\":\"a\"},\"id\":[1]}");
	json_object_put(o);
	o = end_read(&b);
	assert_string_equal(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN),
			    "{\"return\":{\"of\":\"b\"},\"id\":[1]}");
	json_object_put(o);
	stop_with_clients();
}

static void test_clients_may_not_do_what_serve_does(void **state)
{
	start_with_clients();
	end_send(&a, "{'execute':'flushed','arguments':{'address':4096,'number':1,'errno':0},'id':1}");
	expect_error(&a, "AccessDenied", "1");
	end_send(&a, "{'execute':'set-backing','id':2}");
	expect_error(&a, "AccessDenied", "2");
	end_send(&a, "{'id':3}");
	expect_error(&a, "GenericError", "3");
	end_send(&a, "not JSON");
	expect_error(&a, "GenericError", "null");
	/* What the agent wants of its host is not told to clients, and leaves no gap. */
	want(4096, 1);
	flushed(4096, 1, 0);
	end_send(&guest, "{'event':'DURABLE','data':{'region':'region0','sequence':42},'timestamp':{}}");
	for (struct end *e = &a;; e = &b) {
		_cleanup_(json_unrefp) struct json_object *o = end_read(e);

		assert_string_equal(json_get_string(o, "event", ""), "DURABLE");
		assert_int_equal(json_get_u64(json_get(o, "data", json_type_object), "sequence", 0), 2);
		if (e == &b)
			break;
	}
	stop_with_clients();
}

static void test_a_lost_connection_is_unknown_and_then_a_new_instance(void **state)
{
	struct json_object *o;

	start_with_clients();
	end_send(&a, "{'execute':'flush','id':'x'}");
	json_object_put(end_expect(&guest, "flush"));
	end_close(&guest);
	expect_error(&a, "Unknown", "\"x\"");
	end_send(&a, "{'execute':'flush','id':'y'}");
	expect_error(&a, "Unknown", "\"y\"");
	end_accept(&guest, listener);
	greet(AGENT("i2", "0"));
	o = end_read(&b);
	assert_string_equal(json_get_string(json_get(o, "pmem-agent", json_type_object), "instance", ""), "i2");
	json_object_put(o);
	stop_with_clients();
}

static void test_who_does_not_read_is_told_how_much_was_missed(void **state)
{
	char line[512];
	unsigned int n_a = 0, n_b = 0;
	uint64_t missed = 0;

	start_with_clients();
	memset(line, 'x', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\0';
	for (unsigned int i = 0; i < 3000; i++) {
		struct json_object *o;

		end_send(&guest, "{'event':'DURABLE','data':{'text':'%s','sequence':1}}", line);
		o = end_read(&a);
		n_a += strcmp(json_get_string(o, "event", ""), "DURABLE") == 0;
		json_object_put(o);
	}
	assert_int_equal(n_a, 3000);
	while (missed == 0) {
		struct json_object *o = end_read_for(&b, 200);

		if (!o) {
			o = end_expect(&guest, "query");
			answer(o, AGENT("i1", "3000"));
		} else if (strcmp(json_get_string(o, "event", ""), "MISSED") == 0) {
			missed = json_get_u64(json_get(o, "data", json_type_object), "count", 0);
		} else {
			n_b++;
		}
		json_object_put(o);
	}
	assert_true(n_b > 100);
	assert_int_equal(n_b + missed, 3000);
	stop_with_clients();
}

/* As it is where the guest was restored, and has seen a host before and after: nobody may hear of its old epochs. */
static void test_an_instance_that_goes_on_is_ended(void **state)
{
	struct json_object *o;

	start_with_clients();
	end_close(&guest);
	end_accept(&guest, listener);
	greet_with(AGENT("i1", "7"), "i2");
	for (struct end *e = &a;; e = &b) {
		o = end_expect(&guest, "query");
		answer(o, AGENT("i2", "1"));
		json_object_put(o);
		if (e == &b)
			break;
	}
	for (struct end *e = &a;; e = &b) {
		o = end_read(e);
		assert_string_equal(json_get_string(json_get(o, "pmem-agent", json_type_object), "instance", ""), "i2");
		json_object_put(o);
		if (e == &b)
			break;
	}
	expect_backing(4096, SERVED);
	stop_with_clients();
}

#define RETRY ",'retry':true"

/* What the agent is asked when `e` asks for a flush. */
static struct json_object *ask_flush(struct end *e, const char *path, const char *id, const char *more)
{
	struct json_object *o;

	end_send(e, "{'execute':'flush','arguments':{'path':'%s'%s},'id':%s}", path, more, id);
	o = end_expect(&guest, "flush");
	assert_string_equal(json_get_string(arguments_of(o), "path", ""), path);
	return o;
}

static void expect_answer(struct end *e, const char *wanted)
{
	_cleanup_(json_unrefp) struct json_object *o = end_read(e);

	assert_string_equal(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN), wanted);
}

/* Whether it is `first` that the agent is asked for once more. */
enum how_asked { ASKED_AGAIN, ASKED_AS_NEW, ASKED_OTHER_AGAIN };

static enum how_asked how_asked(struct json_object *first, struct json_object *o)
{
	bool retry = json_object_get_boolean(json_get(arguments_of(o), "retry", json_type_boolean)),
	     same = strcmp(end_id(first), end_id(o)) == 0;

	answer(o, retry && same ? "{'n':2,'repeated':true}" : "{'n':2}");
	json_object_put(o);
	/* What is new to the agent may have the number of another there, of a serve before. */
	return !retry ? ASKED_AS_NEW : same ? ASKED_AGAIN : ASKED_OTHER_AGAIN;
}

static void test_a_flush_that_is_asked_for_again_is_the_same(void **state)
{
	struct json_object *first;

	start_with_clients();
	/* In flight: one answer will do, and the agent is not asked. */
	first = ask_flush(&a, "/a", "7", "");
	end_send(&a, "{'execute':'flush','arguments':{'retry':true,'path':'/a'},'id':7}");
	end_send(&a, "{'execute':'flush','arguments':{'retry':true,'path':'/b'},'id':7}");
	expect_error(&a, "GenericError", "7");
	end_send(&a, "{'execute':'flush','arguments':{'retry':true,'path':'/a'}}");
	expect_error(&a, "GenericError", "null");
	answer(first, "{'n':1}");
	expect_answer(&a, "{\"return\":{\"n\":1},\"id\":7}");
	/* It has ended: the agent knows what became of it. */
	assert_int_equal(how_asked(first, ask_flush(&a, "/a", "7", RETRY)), ASKED_AGAIN);
	expect_answer(&a, "{\"return\":{\"n\":2,\"repeated\":true},\"id\":7}");
	/* Another client's 7 is another, and so is one that is not asked for again. */
	assert_int_equal(how_asked(first, ask_flush(&b, "/a", "7", RETRY)), ASKED_AS_NEW);
	expect_answer(&b, "{\"return\":{\"n\":2},\"id\":7}");
	assert_int_equal(how_asked(first, ask_flush(&a, "/a", "7", "")), ASKED_AS_NEW);
	expect_answer(&a, "{\"return\":{\"n\":2},\"id\":7}");
	assert_int_equal(how_asked(first, ask_flush(&a, "/a", "7", RETRY)), ASKED_OTHER_AGAIN);
	json_object_put(first);
	stop_with_clients();
}

/* An id that others may have too does not prove who asks. What one stored since the other's flush is not durable. */
static void test_who_comes_back_is_known_by_an_id_of_its_own(void **state)
{
	struct json_object *flushes[3];

	start_with_clients();
	flushes[0] = ask_flush(&a, "/a", "'short'", "");
	flushes[1] = ask_flush(&a, "/a", "'of-both-clients'", "");
	flushes[2] = ask_flush(&a, "/a", "'of-nobody-else'", "");
	assert_int_equal(how_asked(flushes[1], ask_flush(&b, "/a", "'of-both-clients'", RETRY)), ASKED_AS_NEW);
	expect_answer(&b, "{\"return\":{\"n\":2},\"id\":\"of-both-clients\"}");
	end_close(&b);
	end_close(&a);
	connect_client(&a);
	connect_client(&b);
	assert_int_equal(how_asked(flushes[0], ask_flush(&a, "/a", "'short'", RETRY)), ASKED_AS_NEW);
	expect_answer(&a, "{\"return\":{\"n\":2},\"id\":\"short\"}");
	assert_int_equal(how_asked(flushes[1], ask_flush(&a, "/a", "'of-both-clients'", RETRY)), ASKED_AS_NEW);
	expect_answer(&a, "{\"return\":{\"n\":2},\"id\":\"of-both-clients\"}");
	/* In flight still: now there is somebody to be told. */
	end_send(&a, "{'execute':'flush','arguments':{'path':'/a','retry':true},'id':'of-nobody-else'}");
	end_send(&a, "{'execute':'flush','arguments':{'path':'/b','retry':true},'id':'of-nobody-else'}");
	expect_error(&a, "GenericError", "\"of-nobody-else\"");
	answer(flushes[2], "{'n':1}");
	expect_answer(&a, "{\"return\":{\"n\":1},\"id\":\"of-nobody-else\"}");
	assert_int_equal(how_asked(flushes[2], ask_flush(&a, "/a", "'of-nobody-else'", RETRY)), ASKED_AGAIN);
	for (unsigned int i = 0; i < ARRAY_SIZE(flushes); i++)
		json_object_put(flushes[i]);
	stop_with_clients();
}

static void test_what_was_asked_in_another_instance_is_another_flush(void **state)
{
	struct json_object *first;

	start_with_clients();
	first = ask_flush(&a, "/a", "'a-long-and-unique-id'", "");
	answer(first, "{'n':1}");
	expect_answer(&a, "{\"return\":{\"n\":1},\"id\":\"a-long-and-unique-id\"}");
	end_send(&guest, "{'event':'NEW_INSTANCE','data':{'instance':'i9','sequence':1}}");
	json_object_put(end_expect(&guest, "negotiate"));
	assert_int_equal(how_asked(first, ask_flush(&a, "/a", "'a-long-and-unique-id'", RETRY)), ASKED_AS_NEW);
	json_object_put(first);
	stop_with_clients();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clients_that_come_and_go_leave_nothing),
		cmocka_unit_test(test_clients_of_the_same_id_get_their_own_answers),
		cmocka_unit_test(test_clients_may_not_do_what_serve_does),
		cmocka_unit_test(test_a_lost_connection_is_unknown_and_then_a_new_instance),
		cmocka_unit_test(test_an_instance_that_goes_on_is_ended),
		cmocka_unit_test(test_a_flush_that_is_asked_for_again_is_the_same),
		cmocka_unit_test(test_who_comes_back_is_known_by_an_id_of_its_own),
		cmocka_unit_test(test_what_was_asked_in_another_instance_is_another_flush),
		cmocka_unit_test(test_who_does_not_read_is_told_how_much_was_missed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
