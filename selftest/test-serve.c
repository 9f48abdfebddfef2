/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-serve: pmemctl serve between a guest that the test plays, a disk that fails as it is told, and clients
 */
#include <glob.h>
#include <inttypes.h>

#include "agent/region.h"
#include "agent/serve.h"
#include "selftest/guestend.h"

/* What the next fsync of a file is to do, in the children of serve too. */
static struct {
	int error;
	bool hang;
	unsigned int n;
} * disk;

static ino_t slow_inode;

int fsync(int fd)
{
	struct stat st;

	__atomic_add_fetch(&disk->n, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&disk->hang, __ATOMIC_SEQ_CST) && fstat(fd, &st) == 0 && st.st_ino == slow_inode)
		poll(NULL, 0, 5);
	errno = __atomic_load_n(&disk->error, __ATOMIC_SEQ_CST);
	return errno ? -1 : fdatasync(fd);
}

static char directory[] = "/var/tmp/test-serve-XXXXXX", socket_path[64], listen_path[64], files[3][96], memory[96],
	    state_path[64];
static int listener;
static pid_t serve;
static struct end guest, a, b;

static void make_file(char *path, const char *where, int i)
{
	struct stat st;
	int fd;

	snprintf(path, 96, "%.40s/test-serve-%d-%d", where, getpid(), i);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0 && ftruncate(fd, 1 << 20) == 0 && fstat(fd, &st) == 0);
	close(fd);
	if (i == 1)
		slow_inode = st.st_ino;
}

static int set_up_group(void **state)
{
	alarm(240);
	disk = mmap(NULL, sizeof(*disk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (disk == MAP_FAILED || !mkdtemp(directory))
		return -1;
	snprintf(socket_path, sizeof(socket_path), "%s/guest", directory);
	snprintf(listen_path, sizeof(listen_path), "%s/serve", directory);
	for (int i = 0; i < 3; i++)
		make_file(files[i], directory, i);
	make_file(memory, "/dev/shm", 3);
	snprintf(state_path, sizeof(state_path), "%s/state", directory);
	listener = end_listen(socket_path);
	return 0;
}

static int tear_down_group(void **state)
{
	char pattern[80];
	glob_t records = { 0 };

	snprintf(pattern, sizeof(pattern), "%s-*", state_path);
	if (glob(pattern, 0, NULL, &records) == 0)
		for (size_t i = 0; i < records.gl_pathc; i++)
			unlink(records.gl_pathv[i]);
	globfree(&records);
	for (int i = 0; i < 3; i++)
		unlink(files[i]);
	unlink(memory);
	unlink(socket_path);
	unlink(listen_path);
	return rmdir(directory);
}

/* ---- steps ---- */

static void start_serve(const char *const *backings)
{
	const char *arguments[20] = { "--host", socket_path, "serve", "--listen", listen_path, "--state", state_path };
	unsigned int n = 7;

	disk->error = 0;
	disk->hang = false;
	for (; *backings; backings++) {
		arguments[n++] = "--backing";
		arguments[n++] = *backings;
	}
	serve = end_pmemctl(arguments, NULL, NULL);
	end_accept(&guest, listener);
}

#define start(...) start_serve((const char *const[]){ __VA_ARGS__, NULL })

static char *backing(int i, const char *address, const char *options)
{
	static char text[4][192];

	snprintf(text[i], sizeof(text[i]), "%s=%s%s", address, files[i], options);
	return text[i];
}

static void stop_serve(void)
{
	int status;

	kill(serve, SIGTERM);
	assert_int_equal(waitpid(serve, &status, 0), serve);
	assert_int_equal(status, 0);
	end_close(&guest);
}

static void answer(struct json_object *command, const char *value)
{
	end_send(&guest, "{'return':%s,'id':%s}", value, end_id(command));
}

/* As far as negotiate; with `instance`, that one is begun. */
static void greet_with(const char *agent, const char *instance)
{
	_cleanup_(json_unrefp) struct json_object *o = NULL;

	end_send(&guest, "{'pmem-agent':%s}", agent);
	if (instance)
		end_new_instance(&guest, instance);
	o = end_expect(&guest, "negotiate");
	assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN),
			    "{\"protocol\":2,\"features\":[\"serve-flush\",\"serve-confirm\"]}");
	answer(o, "{'protocol':2,'features':['serve-flush','serve-confirm']}");
}

static void greet(const char *agent)
{
	greet_with(agent, NULL);
}

static void greet_first(void)
{
	greet_with(AGENT("i0", "0"), "i1");
}

static struct json_object *told[8]; /* of other backings, which came before */

static struct json_object *next_backing(uint64_t address)
{
	struct json_object *o;

	for (unsigned int i = 0; i < ARRAY_SIZE(told); i++) {
		o = told[i];
		if (o && json_get_u64(arguments_of(o), "address", 0) == address) {
			told[i] = NULL;
			return o;
		}
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(told); i++) {
		o = end_expect(&guest, "set-backing");
		answer(o, REGION);
		if (json_get_u64(arguments_of(o), "address", 0) == address)
			return o;
		assert_null(told[i]);
		told[i] = o;
	}
	return NULL;
}

/* In any order: each is told of when it has been looked at. */
static void expect_backing(uint64_t address, const char *said)
{
	_cleanup_(json_unrefp) struct json_object *o = next_backing(address);
	char wanted[256];

	snprintf(wanted, sizeof(wanted), "{\"address\":%lu,%s}", address, said);
	assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN), wanted);
}

static void want(uint64_t address, unsigned int number)
{
	end_send(&guest,
		 "{'event':'FLUSH_WANTED','data':{'region':'r','address':%lu,'number':%u,'purpose':'flush',"
		 "'sequence':1},'timestamp':{}}",
		 address, number);
}

/* Not answered yet. */
static struct json_object *expect_flushed(uint64_t address, uint64_t number, int error)
{
	struct json_object *o = end_expect(&guest, "flushed");

	assert_int_equal(json_get_u64(arguments_of(o), "address", 0), address);
	assert_int_equal(json_get_u64(arguments_of(o), "number", 77), number);
	assert_int_equal(json_get_u64(arguments_of(o), "errno", 77), error);
	return o;
}

static void flushed(uint64_t address, uint64_t number, int error)
{
	_cleanup_(json_unrefp) struct json_object *o = expect_flushed(address, number, error);

	answer(o, "{'current':true}");
}

#define SERVED "\"type\":\"file\",\"share\":true,\"served\":true"

/* ---- backings ---- */

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
	char path[64];
	int child;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", serve, serve);
	f = fopen(path, "re");
	assert_non_null(f);
	kill(serve, SIGKILL);
	while (fscanf(f, "%d", &child) == 1)
		kill(child, SIGKILL);
	fclose(f);
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

/* ---- clients ---- */

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
		cmocka_unit_test(test_a_backing_is_told_and_flushed),
		cmocka_unit_test(test_what_keeps_nothing_is_said_to_and_never_confirmed),
		cmocka_unit_test(test_an_error_is_kept_until_it_is_answered),
		cmocka_unit_test(test_an_error_outlives_serve),
		cmocka_unit_test(test_an_error_that_nobody_lived_to_see_is_one),
		cmocka_unit_test(test_a_file_that_was_replaced_is_not_flushed_for_another),
		cmocka_unit_test(test_what_an_instance_before_wanted_is_no_answer_to_this_one),
		cmocka_unit_test(test_a_disk_that_hangs_holds_up_its_own_backing_only),
		cmocka_unit_test(test_a_guest_that_asks_without_end_is_bounded),
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
