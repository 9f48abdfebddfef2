/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * serving: pmemctl serve between a guest that the test plays and a disk that fails as it is told
 */
#pragma once

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
	pid_t pid; /* whose was the last one */
} * disk;

static ino_t slow_inode;

int fsync(int fd)
{
	struct stat st;

	disk->pid = getpid();
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
static struct end guest;

static inline void make_file(char *path, const char *where, int i)
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

static inline int set_up_group(void **state)
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

static inline int tear_down_group(void **state)
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

/* On a disk as it is. */
static inline void launch_serve(const char *const *backings)
{
	const char *arguments[20] = { "--host", socket_path, "serve", "--listen", listen_path, "--state", state_path };
	unsigned int n = 7;

	for (; *backings; backings++) {
		arguments[n++] = "--backing";
		arguments[n++] = *backings;
	}
	serve = end_pmemctl(arguments, NULL, NULL);
	end_accept(&guest, listener);
}

#define launch(...) launch_serve((const char *const[]){ __VA_ARGS__, NULL })
#define start(...)                                                                                                     \
	do {                                                                                                           \
		disk->error = 0;                                                                                       \
		disk->hang = false;                                                                                    \
		launch(__VA_ARGS__);                                                                                   \
	} while (0)

static inline char *backing(int i, const char *address, const char *options)
{
	static char text[4][192];

	snprintf(text[i], sizeof(text[i]), "%s=%s%s", address, files[i], options);
	return text[i];
}

static inline void stop_serve(void)
{
	int status;

	kill(serve, SIGTERM);
	assert_int_equal(waitpid(serve, &status, 0), serve);
	assert_int_equal(status, 0);
	end_close(&guest);
}

static inline void answer(struct json_object *command, const char *value)
{
	end_send(&guest, "{'return':%s,'id':%s}", value, end_id(command));
}

static inline void negotiate(void)
{
	_cleanup_(json_unrefp) struct json_object *o = end_expect(&guest, "negotiate");

	assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN),
			    "{\"protocol\":2,\"features\":[\"serve-flush\",\"serve-confirm\"]}");
	answer(o, "{'protocol':2,'features':['serve-flush','serve-confirm']}");
}

/* As far as negotiate; with `instance`, that one is begun. */
static inline void greet_with(const char *agent, const char *instance)
{
	end_send(&guest, "{'pmem-agent':%s}", agent);
	if (instance)
		end_new_instance(&guest, instance);
	negotiate();
}

static inline void greet(const char *agent)
{
	greet_with(agent, NULL);
}

static inline void greet_first(void)
{
	greet_with(AGENT("i0", "0"), "i1");
}

static struct json_object *told[8]; /* of other backings, which came before */

static inline struct json_object *next_backing(uint64_t address)
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
static inline void expect_backing(uint64_t address, const char *said)
{
	_cleanup_(json_unrefp) struct json_object *o = next_backing(address);
	char wanted[256];

	snprintf(wanted, sizeof(wanted), "{\"address\":%lu,%s}", address, said);
	assert_string_equal(json_object_to_json_string_ext(arguments_of(o), JSON_C_TO_STRING_PLAIN), wanted);
}

static inline void want(uint64_t address, unsigned int number)
{
	end_send(&guest,
		 "{'event':'FLUSH_WANTED','data':{'region':'r','address':%lu,'number':%u,'purpose':'flush',"
		 "'sequence':1},'timestamp':{}}",
		 address, number);
}

/* Not answered yet. */
static inline struct json_object *expect_flushed(uint64_t address, uint64_t number, int error)
{
	struct json_object *o = end_expect(&guest, "flushed");

	assert_int_equal(json_get_u64(arguments_of(o), "address", 0), address);
	assert_int_equal(json_get_u64(arguments_of(o), "number", 77), number);
	assert_int_equal(json_get_u64(arguments_of(o), "errno", 77), error);
	return o;
}

static inline void flushed(uint64_t address, uint64_t number, int error)
{
	_cleanup_(json_unrefp) struct json_object *o = expect_flushed(address, number, error);

	answer(o, "{'current':true}");
}

#define SERVED "\"type\":\"file\",\"share\":true,\"served\":true"
