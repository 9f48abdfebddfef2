/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-closer: descriptors whose close hangs, on a FUSE filesystem that does not answer
 */
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/closer.h"
#include "agent/util.h"

#define MAX_HANGING 64

static char mount_point[] = "/tmp/test-closer-XXXXXX";
static const char *missing; /* why there is no FUSE here */
static int flushes = -1;    /* a byte for each FLUSH that the server has got, and does not answer */
static pid_t server;

/* ---- a filesystem of one file that never answers a FLUSH ---- */

static void answer(int fuse, const struct fuse_in_header *in, const void *data, size_t size)
{
	struct {
		struct fuse_out_header header;
		char data[256];
	} out = {.header = {.len = (uint32_t)(sizeof(out.header) + size), .unique = in->unique}};

	memcpy(out.data, data, size);
	if (write(fuse, &out, out.header.len) < 0 && errno != ENOENT)
		_exit(1);
}

static void serve(int fuse, int report)
{
	static char buffer[1 << 17];
	const struct fuse_in_header *in = (const void *)buffer;
	struct fuse_init_out init = {
	    .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = 4096};
	struct fuse_attr_out attr = {.attr = {.ino = 1, .mode = S_IFREG | 0644, .nlink = 1}};
	struct fuse_open_out opened = {.fh = 1};

	while (read(fuse, buffer, sizeof(buffer)) > 0) {
		switch (in->opcode) {
		case FUSE_INIT:
			answer(fuse, in, &init, sizeof(init));
			break;
		case FUSE_GETATTR:
			answer(fuse, in, &attr, sizeof(attr));
			break;
		case FUSE_OPEN:
			answer(fuse, in, &opened, sizeof(opened));
			break;
		case FUSE_FLUSH:
			if (write(report, "F", 1) != 1)
				_exit(1);
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			answer(fuse, in, NULL, 0);
		}
	}
	_exit(0);
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	safe_close(fd);
	return ok;
}

/* Its own mount namespace, so that nothing stays mounted; as root of a user namespace where we aren't root. */
static const char *enter_namespace(void)
{
	char map[64];

	snprintf(map, sizeof(map), "0 %u 1", geteuid());
	if (geteuid() == 0)
		return unshare(CLONE_NEWNS) < 0 ? "mount namespaces" : NULL;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 || !write_file("/proc/self/setgroups", "deny") ||
	    !write_file("/proc/self/uid_map", map))
		return "user namespaces";
	snprintf(map, sizeof(map), "0 %u 1", getegid());
	return write_file("/proc/self/gid_map", map) ? NULL : "user namespaces";
}

static const char *start_server(void)
{
	char options[128];
	int fuse, pipes[2];

	missing = enter_namespace();
	if (missing)
		return missing;
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse < 0)
		return "/dev/fuse";
	snprintf(options, sizeof(options), "fd=%d,rootmode=100644,user_id=0,group_id=0", fuse);
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("test-closer", mount_point, "fuse", MS_NOSUID | MS_NODEV, options) < 0)
		return "mounting FUSE";
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return "a pipe";
	server = fork();
	if (server == 0)
		serve(fuse, pipes[1]);
	close(fuse);
	close(pipes[1]);
	flushes = pipes[0];
	return NULL;
}

static int set_up(void **state)
{
	int fd = mkstemp(mount_point);

	if (fd < 0)
		return -1;
	close(fd);
	/* As in the agent: children go by themselves. A close that does hang must not hang the test for ever. */
	signal(SIGCHLD, SIG_IGN);
	alarm(60);
	missing = start_server();
	if (missing)
		print_message("# no stalled close without %s\n", missing);
	return 0;
}

static int tear_down(void **state)
{
	if (server > 0)
		kill(server, SIGKILL);
	umount2(mount_point, MNT_DETACH);
	unlink(mount_point);
	return 0;
}

static int open_stalled(void)
{
	int fd;

	if (missing)
		skip();
	fd = open(mount_point, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void wait_for_flush(void)
{
	char c;

	assert_int_equal(read(flushes, &c, 1), 1);
}

/* ---- */

/* The control: without the closer this is where we would hang. */
static void test_close_itself_hangs(void **state)
{
	int fd = open_stalled(), pidfd;
	struct pollfd p = {.events = POLLIN};
	pid_t child = fork();

	if (child == 0) {
		close(fd);
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	assert_true(pidfd >= 0);
	wait_for_flush();
	p.fd = pidfd;
	assert_int_equal(poll(&p, 1, 0), 0);
	close(pidfd);
	closer_close(fd);
	wait_for_flush();
}

static void test_close_does_not_hang(void **state)
{
	int fd = open_stalled();

	closer_close(fd);
	wait_for_flush();
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void test_defused_can_be_closed(void **state)
{
	int fd = open_stalled();

	assert_int_equal(closer_defuse(fd), 0);
	wait_for_flush();
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(close(fd), 0);
}

/* A hanging child must not keep alive what we close, our bus name and the workers' sockets among it. */
static void test_hanging_child_keeps_nothing(void **state)
{
	int fd = open_stalled(), pipes[2];
	struct pollfd p = {.events = POLLIN};

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	closer_close(fd);
	wait_for_flush();
	close(pipes[1]);
	p.fd = pipes[0];
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_true(p.revents & POLLHUP);
	close(pipes[0]);
}

static void test_ordinary_descriptor_is_closed(void **state)
{
	struct pollfd p = {.events = POLLIN};
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	closer_close(pipes[1]);
	p.fd = pipes[0];
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_true(p.revents & POLLHUP);
	close(pipes[0]);
	closer_close(-1);
}

static void test_copy_is_defused_at_once(void **state)
{
	char name[64], target[64] = "";
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(closer_defuse_copy(pipes[1]), 0);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", pipes[1]);
	assert_true(readlink(name, target, sizeof(target) - 1) > 0);
	assert_memory_equal(target, "anon_inode:", 11);
	close(pipes[0]);
	close(pipes[1]);
}

/* Beyond the bound the descriptor stays as it was, and once the others have ended it goes on. */
static void test_bound(void **state)
{
	unsigned int n = 0;
	int fd = -1, r = 0;

	while (r == 0 && n <= MAX_HANGING) {
		fd = open_stalled();
		r = closer_defuse(fd);
		if (r == 0) {
			close(fd);
			n++;
		}
	}
	assert_int_equal(r, -EBUSY);
	kill(server, SIGKILL);
	server = 0;
	/* With SIGCHLD ignored this waits for all children. */
	assert_int_equal(wait(NULL), -1);
	assert_int_equal(closer_defuse(fd), 0);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_ordinary_descriptor_is_closed),
	    cmocka_unit_test(test_copy_is_defused_at_once),
	    cmocka_unit_test(test_close_itself_hangs),
	    cmocka_unit_test(test_close_does_not_hang),
	    cmocka_unit_test(test_defused_can_be_closed),
	    cmocka_unit_test(test_hanging_child_keeps_nothing),
	    cmocka_unit_test(test_bound),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
