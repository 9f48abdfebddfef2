/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-ctl-host: the verbs of pmemctl --host, against a guest that the test plays
 */
#include "selftest/guestend.h"

static char directory[] = "/tmp/test-ctl-host-XXXXXX", socket_path[64];
static char out[16384], err[4096];
static int listener;
static struct end guest;
static FILE *to, *errors;
static pid_t pid;

static int set_up_group(void **state)
{
	alarm(120);
	setenv("TZ", "UTC", 1);
	if (!mkdtemp(directory))
		return -1;
	snprintf(socket_path, sizeof(socket_path), "%s/guest", directory);
	listener = end_listen(socket_path);
	return 0;
}

static int tear_down_group(void **state)
{
	unlink(socket_path);
	return rmdir(directory);
}

static void begin_arguments(const char *const *arguments)
{
	const char *all[16] = { "--host", socket_path };

	for (unsigned int i = 0; arguments[i]; i++)
		all[i + 2] = arguments[i];
	to = tmpfile();
	errors = tmpfile();
	pid = end_pmemctl(all, to, errors);
}

#define begin(...) begin_arguments((const char *const[]){ __VA_ARGS__, NULL })

static void read_back(FILE *f, char *text, size_t size)
{
	rewind(f);
	text[fread(text, 1, size - 1, f)] = '\0';
	fclose(f);
}

static void ends_with(int wanted)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	read_back(to, out, sizeof(out));
	read_back(errors, err, sizeof(err));
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) != wanted)
		print_error("status %d: %s%s\n", WEXITSTATUS(status), out, err);
	assert_int_equal(WEXITSTATUS(status), wanted);
}

static void assert_says(const char *text, const char *words)
{
	if (!strstr(text, words))
		print_error("\"%s\" does not say \"%s\"\n", text, words);
	assert_non_null(strstr(text, words));
}

static void greet(void)
{
	end_accept(&guest, listener);
	/* What was meant for who was connected before. */
	end_send(&guest, "{'return':{},'id':'old'}");
	end_send(&guest, "{'pmem-agent':%s}", AGENT("i1", "0"));
}

static void answer(struct json_object *command, const char *key, const char *value)
{
	end_send(&guest, "{'%s':%s,'id':%s}", key, value, end_id(command));
	json_object_put(command);
}

#define DURABLE                                                                                                        \
	"{'regions':[{'region':'region0','address':4096,'epoch':8}],'scope':'filesystem','basis':'watched',"           \
	"'durable-usec':1700000000000000}"

/* ---- */

static void test_list_and_status_look_as_in_the_guest(void **state)
{
	begin("list");
	greet();
	ends_with(0);
	assert_says(out, "REGION  KIND        ASYNCHRONOUS METHOD ATTESTATION SIZE DEVICES MODES EVIDENCE");
	assert_says(out, "region0 virtio-pmem yes          host   attested      1M               one");
	end_close(&guest);

	begin("status");
	greet();
	ends_with(3);
	assert_says(out, "region1 lost      3");
	assert_says(out, "loss 1 at 2023-11-14 22:13:20: Input/output error, noticed by agent");
	end_close(&guest);

	begin("status", "region0", "--json");
	greet();
	ends_with(0);
	assert_says(out, "\"durable_usec\": 1700000000000000");
	end_close(&guest);

	begin("status", "none");
	greet();
	ends_with(15);
	end_close(&guest);
}

static void test_flush_names_what_it_is_told_to(void **state)
{
	static const struct {
		const char *given, *arguments;
	} targets[] = {
		{ "/mnt", "{\"path\":\"/mnt\",\"timeout-usec\":9000000}" },
		{ "region0", "{\"region\":\"region0\",\"timeout-usec\":9000000}" },
		{ "0x1000", "{\"address\":4096,\"timeout-usec\":9000000}" },
		{ "UUID=u-u", "{\"uuid\":\"u-u\",\"timeout-usec\":9000000}" },
	};

	begin("flush", "--timeout=9", "/mnt", "region0", "0x1000", "UUID=u-u");
	greet();
	for (unsigned int i = 0; i < ARRAY_SIZE(targets); i++) {
		struct json_object *o = end_expect(&guest, "flush");

		assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN |
											JSON_C_TO_STRING_NOSLASHESCAPE),
				    targets[i].arguments);
		answer(o, "return", DURABLE);
	}
	ends_with(0);
	assert_says(out, "/mnt: durable (filesystem, region0 epoch 8, watched)");
	end_close(&guest);
}

static void test_errors_have_the_status_of_their_class(void **state)
{
	static const struct {
		const char *class;
		int status;
	} classes[] = { { "Lost", 3 }, { "Impossible", 12 }, { "TimedOut", 18 }, { "GenericError", 4 }, { "x", 4 } };

	for (unsigned int i = 0; i < ARRAY_SIZE(classes); i++) {
		char error[64];

		begin("flush", "--json", "/mnt");
		greet();
		snprintf(error, sizeof(error), "{'class':'%s','desc':'why'}", classes[i].class);
		answer(end_expect(&guest, "flush"), "error", error);
		ends_with(classes[i].status);
		assert_says(err, "pmemctl: /mnt: why");
		assert_says(out, "\"message\": \"why\"");
		end_close(&guest);
	}
}

/* Nobody but the agent may say durable, and it must be readable. */
static void test_half_an_answer_is_unknown(void **state)
{
	begin("flush", "/mnt");
	greet();
	answer(end_expect(&guest, "flush"), "return", "{'scope':'filesystem','basis':'watched','regions':[]}");
	ends_with(4);
	end_close(&guest);

	begin("flush", "/mnt");
	greet();
	json_object_put(end_expect(&guest, "flush"));
	end_close(&guest);
	ends_with(4);
	assert_says(err, "the connection to the agent is gone: nobody can tell");

	/* Another instance does not know of it. */
	begin("flush", "/mnt");
	greet();
	json_object_put(end_expect(&guest, "flush"));
	end_send(&guest, "{'pmem-agent':%s}", AGENT("i2", "0"));
	ends_with(4);
	end_close(&guest);
}

static void test_retry_asks_again_with_the_same_id(void **state)
{
	struct json_object *first, *again;

	begin("--retry", "flush", "/mnt");
	greet();
	first = end_expect(&guest, "flush");
	end_close(&guest);
	greet();
	again = end_expect(&guest, "flush");
	assert_string_equal(end_id(first), end_id(again));
	json_object_put(first);
	assert_string_equal(json_object_to_json_string_ext(arguments_of(again),
							   JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
			    "{\"path\":\"/mnt\",\"retry\":true}");
	answer(again, "return", DURABLE);
	ends_with(0);
	end_close(&guest);
}

static void test_acknowledge(void **state)
{
	struct json_object *o;

	begin("acknowledge", "region1", "--loss=1");
	greet();
	o = end_expect(&guest, "acknowledge");
	assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN),
			    "{\"region\":\"region1\",\"loss\":1}");
	answer(o, "return", "{'acknowledged':1}");
	ends_with(0);
	assert_says(out, "loss 1 is acknowledged");
	end_close(&guest);

	begin("acknowledge", "region1", "--loss=2");
	greet();
	answer(end_expect(&guest, "acknowledge"), "error", "{'class':'StaleLoss','desc':'no'}");
	ends_with(17);
	end_close(&guest);

	begin("acknowledge", "region1", "--loss=1");
	greet();
	answer(end_expect(&guest, "acknowledge"), "error", "{'class':'CommandNotFound','desc':'no'}");
	ends_with(1);
	assert_says(err, "too old");
	end_close(&guest);
}

static void test_an_answer_that_was_missed_is_asked_for_again(void **state)
{
	_cleanup_free_ char *id = NULL;
	struct json_object *o;

	begin("flush", "/mnt");
	greet();
	o = end_expect(&guest, "flush");
	id = strdup(end_id(o));
	json_object_put(o);
	end_send(&guest, "{'event':'MISSED','data':{'count':1,'answers':0},'timestamp':{}}");
	end_send(&guest, "{'event':'MISSED','data':{'count':0,'answers':1},'timestamp':{}}");
	o = end_expect(&guest, "flush");
	assert_string_equal(end_id(o), id);
	assert_string_equal(
	    json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
	    "{\"path\":\"/mnt\",\"retry\":true}");
	answer(o, "return", DURABLE);
	ends_with(0);
	end_close(&guest);
}

static void test_watch_tells_what_comes(void **state)
{
	begin("watch");
	greet();
	end_send(&guest, "{'event':'DURABLE','data':{'region':'region0','scope':'filesystem','target':'/mnt','epoch':9,"
			 "'basis':'watched','sequence':1},'timestamp':{'seconds':1700000000,'microseconds':0}}");
	end_send(&guest, "{'event':'LOST','data':{'region':'region0','epoch':9,'loss':2,'errno':5,'error':'EIO',"
			 "'origin':'host','loss-usec':1700000000000000,'loss-epoch':9,'loss-round':10,'sequence':2},"
			 "'timestamp':{'seconds':1700000000,'microseconds':0}}");
	end_send(&guest, "{'event':'MISSED','data':{'count':3},'timestamp':{'seconds':1700000000,'microseconds':0}}");
	end_close(&guest);
	ends_with(1);
	assert_says(out, "agent test, instance i1\n");
	assert_says(out, "region0: present: idle, epoch 7, durable: what was stored before 2023-11-14 22:13:20\n");
	assert_says(out, "2023-11-14 22:13:20  region0: durable: filesystem /mnt, epoch 9, watched\n");
	assert_says(out, "2023-11-14 22:13:20  region0: lost: loss 2 at 2023-11-14 22:13:20: Input/output error");
	assert_says(out, "2023-11-14 22:13:20  missed: 3 events\n");

	begin("watch", "--json", "--retry");
	greet();
	end_close(&guest);
	end_accept(&guest, listener);
	end_send(&guest, "{'pmem-agent':%s}", AGENT("i2", "0"));
	end_send(&guest, "{'event':'NEW','data':{'of':['the','future']}}");
	for (unsigned int i = 0; i < ANSWER_MSEC / 10; i++) {
		ssize_t size = pread(fileno(to), out, sizeof(out) - 1, 0);

		out[size < 0 ? 0 : size] = '\0';
		if (strstr(out, "future"))
			break;
		poll(NULL, 0, 10);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	fclose(to);
	fclose(errors);
	assert_says(out, "{\"event\":\"NEW\",\"data\":{\"of\":[\"the\",\"future\"]}}\n");
	assert_says(out, "\"instance\":\"i1\"");
	assert_says(out, "\"instance\":\"i2\"");
	end_close(&guest);
}

static void test_who_is_not_there_is_told_apart(void **state)
{
	struct end first;
	char none[96];

	snprintf(none, sizeof(none), "%s/none", directory);
	to = tmpfile();
	errors = tmpfile();
	pid = end_pmemctl((const char *const[]){ "--host", none, "list", NULL }, to, errors);
	ends_with(1);
	assert_says(err, "there is no such socket");

	begin("list", "--timeout=0.2");
	end_accept(&guest, listener);
	ends_with(1);
	assert_says(err, "no agent answers in the guest");
	end_close(&guest);

	/* As QEMU has it: the second one is not accepted. */
	end_connect(&first, socket_path);
	end_accept(&guest, listener);
	begin("list", "--timeout=0.2");
	ends_with(1);
	assert_says(err, "busy: another program is connected");
	end_close(&guest);
	end_close(&first);
	end_accept(&guest, listener);
	end_close(&guest);

	begin("list", "--timeout=0.2");
	end_accept(&guest, listener);
	end_send(&guest, "{'QMP':{'version':{}}}");
	ends_with(1);
	assert_says(err, "no pmem-agent");
	end_close(&guest);

	begin("list");
	end_accept(&guest, listener);
	end_send(&guest, "{'pmem-agent':{'version':'test'}}");
	ends_with(1);
	assert_says(err, "which protocol");
	end_close(&guest);

	begin("flush", "--timeout=0.2", "/mnt");
	greet();
	json_object_put(end_expect(&guest, "flush"));
	ends_with(18);
	end_close(&guest);
}

static void test_options_that_do_not_go_together(void **state)
{
	static const char *const wrong[][6] = {
		{ "--host=x", "stats" },
		{ "--host=x", "run", "--", "true" },
		{ "serve" },
		{ "--retry", "list" },
		{ "--host=x", "--qmp=y", "list" },
		{ "--host=x", "--datasync", "flush", "/mnt" },
		{ "--host=x", "--qmp=y", "--backing=0=z", "serve" },
		{ "--host=x", "--backing=nowhere", "serve" },
		{ "--host=x", "--backing=0x1000=/f,share=perhaps", "serve" },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(wrong); i++) {
		to = tmpfile();
		errors = tmpfile();
		pid = end_pmemctl(wrong[i], to, errors);
		ends_with(CTL_EXIT_USAGE);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_list_and_status_look_as_in_the_guest),
		cmocka_unit_test(test_flush_names_what_it_is_told_to),
		cmocka_unit_test(test_errors_have_the_status_of_their_class),
		cmocka_unit_test(test_half_an_answer_is_unknown),
		cmocka_unit_test(test_retry_asks_again_with_the_same_id),
		cmocka_unit_test(test_an_answer_that_was_missed_is_asked_for_again),
		cmocka_unit_test(test_acknowledge),
		cmocka_unit_test(test_watch_tells_what_comes),
		cmocka_unit_test(test_who_is_not_there_is_told_apart),
		cmocka_unit_test(test_options_that_do_not_go_together),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up_group, tear_down_group);
}
