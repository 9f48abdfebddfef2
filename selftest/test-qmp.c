/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-qmp: what pmemctl serve makes of QEMU's word on the backings, with QEMU and the guest played by the test
 */
#include "selftest/guestend.h"

static char directory[] = "/var/tmp/test-qmp-XXXXXX", guest_path[64], qmp_path[64];
static int guest_listener, qmp_listener;
static pid_t serve;
static struct end guest, qmp;

static int open_file(const char *name)
{
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0 && ftruncate(fd, 4096) == 0);
	return fd;
}

static int set_up(void **state)
{
	alarm(120);
	if (!mkdtemp(directory) || chdir(directory) < 0)
		return -1;
	snprintf(guest_path, sizeof(guest_path), "%s/guest", directory);
	snprintf(qmp_path, sizeof(qmp_path), "%s/qmp", directory);
	guest_listener = end_listen(guest_path);
	qmp_listener = end_listen(qmp_path);
	return 0;
}

static int tear_down(void **state)
{
	static const char *const names[] = { "guest", "qmp", "file", "comma" };

	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++)
		unlink(names[i]);
	return rmdir(directory);
}

/* ---- QEMU ---- */

struct device {
	const char *type, *path; /* NULL: it has no such property */
	const char *share, *readonly;
};

static void answer_qmp(struct json_object *o, const char *value)
{
	if (value)
		end_send(&qmp, "{'return':%s,'id':%s}", value, end_id(o));
	else
		end_send(&qmp, "{'error':{'class':'GenericError','desc':'no such property'},'id':%s}", end_id(o));
	json_object_put(o);
}

/* As its devices are asked for; at 0x1000, 0x2000, … */
static void describe(const struct device *devices, unsigned int n)
{
	struct json_object *o = end_expect(&qmp, "query-memory-devices");
	char list[1024] = "[", path[160];

	for (unsigned int i = 0; i < n; i++)
		snprintf(list + strlen(list), sizeof(list) - strlen(list),
			 "%s{'type':'%s','data':{'id':'d%u','%s':%u,'size':4096,'memdev':'/objects/m%u'}}",
			 i ? "," : "", devices[i].type, i, strcmp(devices[i].type, "nvdimm") == 0 ? "addr" : "memaddr",
			 (i + 1) << 12, i);
	strcat(list, ",{'type':'dimm','data':{'addr':7,'memdev':'/objects/other'}}]");
	answer_qmp(o, list);
	for (unsigned int i = 0; i < 4 * n; i++) {
		o = end_expect(&qmp, "qom-get");
		const char *property = json_get_string(arguments_of(o), "property", "");
		const struct device *d =
		    &devices[atoi(json_get_string(arguments_of(o), "path", "") + strlen("/objects/m"))];

		snprintf(path, sizeof(path), "'%s'", d->path ?: "");
		answer_qmp(o, strcmp(property, "mem-path") == 0   ? (d->path ? path : NULL)
			      : strcmp(property, "share") == 0    ? d->share
			      : strcmp(property, "readonly") == 0 ? d->readonly
								  : NULL);
	}
}

static void start(const struct device *devices, unsigned int n)
{
	serve =
	    end_pmemctl((const char *const[]){ "--host", guest_path, "serve", "--qmp", qmp_path, NULL }, NULL, NULL);
	end_accept(&guest, guest_listener);
	end_accept(&qmp, qmp_listener);
	end_send(&qmp, "{'QMP':{'version':{},'capabilities':[]}}");
	answer_qmp(end_expect(&qmp, "qmp_capabilities"), "{}");
	describe(devices, n);
}

static void stop(void)
{
	int status;

	kill(serve, SIGTERM);
	assert_int_equal(waitpid(serve, &status, 0), serve);
	assert_int_equal(status, 0);
	end_close(&guest);
	end_close(&qmp);
}

static void greet(void)
{
	struct json_object *o;

	end_send(&guest, "{'pmem-agent':%s}", AGENT("i1", "0"));
	end_new_instance(&guest, "i2");
	o = end_expect(&guest, "negotiate");
	end_send(&guest, "{'return':{'protocol':2,'features':['serve-flush']},'id':%s}", end_id(o));
	json_object_put(o);
}

/* What is said of `n` regions, by their number. */
static void expect_backings(const char *const *said, unsigned int n)
{
	bool seen[8] = { false };

	for (unsigned int i = 0; i < n; i++) {
		_cleanup_(json_unrefp) struct json_object *o = end_expect(&guest, "set-backing");
		uint64_t number = json_get_u64(arguments_of(o), "address", 0) >> 12;

		assert_in_range(number, 1, n);
		assert_false(seen[number]);
		seen[number] = true;
		json_object_object_del(arguments_of(o), "address");
		assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN),
				    said[number - 1]);
		end_send(&guest, "{'return':{},'id':%s}", end_id(o));
	}
}

static void test_what_is_said_of_each(void **state)
{
	static const struct device devices[] = {
		{ "virtio-pmem", "file", "true", "false" }, /* relative: to QEMU's directory */
		{ "nvdimm", "file", "true", "true" },       { "virtio-pmem", "file", "false", "false" },
		{ "virtio-pmem", NULL, "true", NULL },      { "virtio-pmem", "/dev/shm", "true", NULL },
	};
	static const char *const said[] = {
		"{\"type\":\"file\",\"share\":true,\"read-only\":false,\"served\":true}",
		"{\"type\":\"file\",\"share\":true,\"read-only\":true,\"served\":false}",
		"{\"type\":\"file\",\"share\":false,\"read-only\":false,\"served\":false}",
		"{\"type\":\"ram\",\"share\":true,\"served\":false}",
		"{\"type\":\"ram\",\"share\":true,\"served\":false}",
	};
	_cleanup_close_ int fd = open_file("file");

	start(devices, ARRAY_SIZE(devices));
	greet();
	expect_backings(said, ARRAY_SIZE(said));
	stop();
}

/* A flush of the file that has its name now would flush nothing of what the guest has stored. */
static void test_a_file_that_was_replaced_is_not_served(void **state)
{
	static const struct device device = { "virtio-pmem", "file", "true", "false" };
	static const char *const said = "{\"type\":\"file\",\"read-only\":false,\"served\":false}";
	_cleanup_close_ int fd = open_file("file"), other = -1;
	struct json_object *o;

	unlink("file");
	other = safe_close(open_file("file"));
	start(&device, 1);
	greet();
	expect_backings(&said, 1);
	end_send(&guest, "{'event':'FLUSH_WANTED','data':{'address':4096,'number':1}}");
	o = end_expect(&guest, "flushed");
	assert_int_equal(json_get_u64(arguments_of(o), "errno", 0), EOPNOTSUPP);
	json_object_put(o);
	stop();
}

static void test_what_is_plugged_in_is_asked_for(void **state)
{
	static const struct device devices[] = {
		{ "virtio-pmem", "file", "true", "false" },
		{ "virtio-pmem", "comma", "true", "false" },
	};
	static const char *const said = "{\"type\":\"file\",\"share\":true,\"read-only\":false,\"served\":true}";
	_cleanup_close_ int fd = open_file("file"), second = open_file("comma");
	struct json_object *o;

	start(devices, 1);
	greet();
	expect_backings(&said, 1);
	/* After a greeting too. */
	describe(devices, 1);
	end_send(&guest, "{'event':'REGION_ADDED','data':{'address':8192}}");
	describe(devices, 2);
	o = end_expect(&guest, "set-backing");
	assert_int_equal(json_get_u64(arguments_of(o), "address", 0), 8192);
	json_object_put(o);
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_said_of_each),
		cmocka_unit_test(test_a_file_that_was_replaced_is_not_served),
		cmocka_unit_test(test_what_is_plugged_in_is_asked_for),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
