/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * load-rows: what the manual pages say of fsync, fdatasync, syncfs, msync and mmap, a row a case
 *
 * Each prints what came of it, with a file. Printed by a process with libpmem-agent-preload and by one without it, it
 * must be the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE    ((size_t)sysconf(_SC_PAGESIZE))
#define N_PAGES 4

static const char *row_path;
static int row_fd; /* of it */
static char *row_map;

/* ---- descriptors ---- */

static int row_close(int fd, int r)
{
	int saved = errno;

	close(fd);
	errno = saved;
	return r;
}

/* The same call of something that is opened, and closed again. */
#define OPENED(name, open_it, call)                                                                                    \
	static int name(void)                                                                                          \
	{                                                                                                              \
		int fd = open_it;                                                                                      \
                                                                                                                       \
		errno = 77;                                                                                            \
		return row_close(fd, call);                                                                            \
	}

static int open_pipe(void)
{
	int fds[2] = { -1, -1 };

	if (pipe(fds) == 0)
		close(fds[1]);
	return fds[0];
}

OPENED(fsync_file, dup(row_fd), fsync(fd))
OPENED(fsync_read_only, open(row_path, O_RDONLY | O_CLOEXEC), fsync(fd))
OPENED(fsync_path, open(row_path, O_PATH | O_CLOEXEC), fsync(fd))
OPENED(fsync_null, open("/dev/null", O_RDWR | O_CLOEXEC), fsync(fd))
OPENED(fsync_directory, open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC), fsync(fd))
OPENED(fsync_pipe, open_pipe(), fsync(fd))
OPENED(fsync_socket, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fsync(fd))
OPENED(fdatasync_file, dup(row_fd), fdatasync(fd))
OPENED(fdatasync_path, open(row_path, O_PATH | O_CLOEXEC), fdatasync(fd))
OPENED(fdatasync_pipe, open_pipe(), fdatasync(fd))
OPENED(syncfs_file, dup(row_fd), syncfs(fd))
OPENED(syncfs_path, open(row_path, O_PATH | O_CLOEXEC), syncfs(fd))
OPENED(syncfs_pipe, open_pipe(), syncfs(fd))

static int fsync_negative(void)
{
	return fsync(-1);
}

static int fsync_closed(void)
{
	int fd = dup(row_fd);

	close(fd);
	errno = 77;
	return fsync(fd);
}

static int fdatasync_negative(void)
{
	return fdatasync(-1);
}

static int syncfs_negative(void)
{
	return syncfs(-1);
}

/* What the application gets next is what it would have got. */
static int lowest_number(void)
{
	int fd, next;

	fsync(row_fd);
	fd = dup(row_fd);
	next = dup(row_fd);
	return row_close(fd, row_close(next, next - row_fd));
}

/* All but ours is closed, and the numbers are used again: nothing of what the library sends may get there. */
static int close_from(void)
{
	char path[128];
	int low, fds[64], r = 0;

	fsync(row_fd);
	for (int fd = 3; fd < 1024; fd++)
		if (fd != row_fd)
			close(fd);
	snprintf(path, sizeof(path), "%s.other", row_path);
	low = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	for (unsigned int i = 0; i < 64; i++)
		fds[i] = fcntl(low, F_DUPFD_CLOEXEC, 940);
	for (unsigned int i = 0; i < 8; i++)
		r |= fsync(row_fd);
	r |= (int)lseek(low, 0, SEEK_END);
	for (unsigned int i = 0; i < 64; i++)
		r |= fcntl(fds[i], F_GETFD) != FD_CLOEXEC || close(fds[i]) < 0;
	close(low);
	unlink(path);
	errno = 77;
	return r;
}

/* Whether another process finds our lock there. */
static int lock_is_kept(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	int status = -1;
	pid_t pid;

	if (fcntl(row_fd, F_SETLK, &lock) < 0 || fsync(row_fd) < 0 || msync(row_map, PAGE, MS_SYNC) < 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		fcntl(row_fd, F_GETLK, &lock);
		_exit(lock.l_type == F_WRLCK);
	}
	waitpid(pid, &status, 0);
	lock.l_type = F_UNLCK;
	fcntl(row_fd, F_SETLK, &lock);
	return status;
}

/* ---- where calls are made ---- */

static int in_child(bool twice)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		int r = fsync(row_fd) | msync(row_map, PAGE, MS_SYNC);

		_exit(twice ? in_child(false) : r != 0);
	}
	waitpid(pid, &status, 0);
	return status;
}

static int in_forked_child(void)
{
	return fsync(row_fd) | in_child(true) | fsync(row_fd);
}

static int in_vforked_child(void)
{
	volatile int status = -1, r = fsync(row_fd);
	pid_t pid = vfork();

	if (pid == 0)
		_exit(fsync(row_fd) != 0 || fsync(row_fd) != 0);
	waitpid(pid, (int *)&status, 0);
	return status | r | fsync(row_fd);
}

static volatile int in_handler;

static void on_signal(int number)
{
	int saved = errno;

	in_handler = 1000 + fsync(row_fd) + msync(row_map, PAGE, MS_SYNC);
	errno = saved;
}

/* Hundreds of them, in the middle of calls. */
static int in_signal_handler(void)
{
	struct itimerval never = { 0 };
	int r = 0, bad = 0;

	signal(SIGALRM, on_signal);
	for (unsigned int i = 0; i < 200; i++) {
		struct itimerval once = { .it_value.tv_usec = 1 + 5 * i };

		setitimer(ITIMER_REAL, &once, NULL);
		r |= fsync(row_fd) | msync(row_map, PAGE, MS_SYNC);
		bad |= in_handler != 0 && in_handler != 1000;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	signal(SIGALRM, SIG_DFL);
	errno = 77;
	return r | bad;
}

static void *sync_often(void *argument)
{
	for (unsigned int i = 0; i < 50; i++)
		if (fsync(row_fd) < 0 || msync(row_map, N_PAGES * PAGE, MS_SYNC) < 0)
			return argument;
	return NULL;
}

static int in_threads(void)
{
	pthread_t threads[24];
	void *ret;
	int r = 0;

	for (unsigned int i = 0; i < 24; i++)
		pthread_create(&threads[i], NULL, sync_often, &row_fd);
	for (unsigned int i = 0; i < 24; i++) {
		pthread_join(threads[i], &ret);
		r |= ret != NULL;
	}
	errno = 77;
	return r;
}

#ifndef __SANITIZE_ADDRESS__
static void *cancelled(void *argument)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_cancel(pthread_self());
	if (fsync(row_fd) < 0)
		return NULL;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	if (argument)
		msync(row_map, PAGE, MS_SYNC);
	else
		fsync(row_fd);
	return &row_fd;
}

static int is_cancelled(void *argument)
{
	pthread_t thread;
	void *ret = NULL;

	pthread_create(&thread, NULL, cancelled, argument);
	pthread_join(thread, &ret);
	errno = 77;
	return ret == PTHREAD_CANCELED;
}

static int cancelled_in_fsync(void)
{
	return is_cancelled(NULL);
}

static int cancelled_in_msync(void)
{
	return is_cancelled(&row_fd);
}
#endif

/* ---- memory ---- */

#define MSYNC(name, address, size, flags)                                                                              \
	static int name(void)                                                                                          \
	{                                                                                                              \
		return msync(address, size, flags);                                                                    \
	}

MSYNC(msync_all, row_map, N_PAGES *PAGE, MS_SYNC)
MSYNC(msync_nothing, row_map, 0, MS_SYNC)
MSYNC(msync_bytes, row_map, 5, MS_SYNC)
MSYNC(msync_unaligned, row_map + 1, PAGE, MS_SYNC)
MSYNC(msync_no_flag, row_map, PAGE, 0)
MSYNC(msync_both, row_map, PAGE, MS_SYNC | MS_ASYNC)
MSYNC(msync_unknown_flag, row_map, PAGE, MS_SYNC | 0x100)
MSYNC(msync_async, row_map, PAGE, MS_ASYNC)
MSYNC(msync_invalidate, row_map, PAGE, MS_INVALIDATE)
MSYNC(msync_sync_invalidate, row_map, PAGE, MS_SYNC | MS_INVALIDATE)
MSYNC(msync_null, NULL, PAGE, MS_SYNC)
MSYNC(msync_overflow, row_map, (size_t)-1, MS_SYNC)
MSYNC(msync_almost_overflow, row_map, (size_t)-PAGE, MS_SYNC)

#define MAPPED(name, prepare, address, size, flags)                                                                    \
	static int name(void)                                                                                          \
	{                                                                                                              \
		char *p = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, row_fd, 0);                   \
		int r, saved;                                                                                          \
                                                                                                                       \
		prepare;                                                                                               \
		errno = 77;                                                                                            \
		r = msync(address, size, flags);                                                                       \
		saved = errno;                                                                                         \
		munlock(p, N_PAGES *PAGE);                                                                             \
		munmap(p, N_PAGES *PAGE);                                                                              \
		errno = saved;                                                                                         \
		return r;                                                                                              \
	}

static void *anonymous(char *at, int protection, int type)
{
	return mmap(at, PAGE, protection, type | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

MAPPED(msync_hole, munmap(p + PAGE, PAGE), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_holes, (munmap(p, PAGE), munmap(p + 2 * PAGE, PAGE)), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_unmapped, munmap(p, N_PAGES *PAGE), p, PAGE, MS_SYNC)
MAPPED(msync_locked, mlock(p, PAGE), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_locked_invalidate, mlock(p + PAGE, PAGE), p, N_PAGES *PAGE, MS_SYNC | MS_INVALIDATE)
MAPPED(msync_locked_hole, (mlock(p + 2 * PAGE, PAGE), munmap(p + PAGE, PAGE)), p, N_PAGES *PAGE,
       MS_SYNC | MS_INVALIDATE)
MAPPED(msync_read_only, mprotect(p, N_PAGES *PAGE, PROT_READ), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_no_access, mprotect(p + PAGE, PAGE, PROT_NONE), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_fixed_over, anonymous(p + PAGE, PROT_READ, MAP_PRIVATE), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_fixed_shared, anonymous(p + PAGE, PROT_READ, MAP_SHARED), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_moved, p = mremap(p, N_PAGES *PAGE, (N_PAGES + 1) * PAGE, MREMAP_MAYMOVE), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_shrunk, p = mremap(p, N_PAGES *PAGE, PAGE, 0), p, N_PAGES *PAGE, MS_SYNC)
MAPPED(msync_wraps_hole, munmap(p + 3 * PAGE, PAGE), p + PAGE, 2 * PAGE + 1, MS_SYNC)

static int msync_private(void)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, row_fd, 0);
	int r;

	p[0] = 1;
	errno = 77;
	r = msync(p, PAGE, MS_SYNC);
	munmap(p, PAGE);
	return r;
}

/* By a descriptor that is closed at once, as many programs do. */
static int msync_descriptor_closed(void)
{
	int fd = open(row_path, O_RDWR | O_CLOEXEC), r;
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	p[0] = 1;
	errno = 77;
	r = msync(p, PAGE, MS_SYNC);
	munmap(p, PAGE);
	return r;
}

/* Its number stands for another file since. */
static int msync_descriptor_reused(void)
{
	int fd = open(row_path, O_RDWR | O_CLOEXEC), other = open("/dev/null", O_RDWR | O_CLOEXEC), r;
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	dup3(other, fd, O_CLOEXEC);
	errno = 77;
	r = msync(p, PAGE, MS_SYNC);
	munmap(p, PAGE);
	close(other);
	return row_close(fd, r);
}

/* By calls that no library sees. */
static int msync_descriptor_reused_raw(void)
{
	int fd = open(row_path, O_RDWR | O_CLOEXEC), other = open("/dev/null", O_RDWR | O_CLOEXEC), r;
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	syscall(SYS_dup3, other, fd, O_CLOEXEC);
	p[0] = 1;
	errno = 77;
	r = msync(p, PAGE, MS_SYNC);
	munmap(p, PAGE);
	close(other);
	return row_close(fd, r);
}

static int msync_descriptor_closed_raw(void)
{
	int fd = open(row_path, O_RDWR | O_CLOEXEC), r;
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	syscall(SYS_close, fd);
	p[0] = 1;
	errno = 77;
	r = msync(p, PAGE, MS_SYNC);
	munmap(p, PAGE);
	return r;
}

static int mapping(int flags, int fd, off_t offset, size_t size)
{
	void *p = mmap(NULL, size, PROT_READ, flags, fd, offset);

	if (p == MAP_FAILED)
		return -1;
	munmap(p, size);
	return 0;
}

#define MMAP(name, flags, fd, offset, size)                                                                            \
	static int name(void)                                                                                          \
	{                                                                                                              \
		return mapping(flags, fd, offset, size);                                                               \
	}

MMAP(mmap_shared, MAP_SHARED, row_fd, 0, PAGE)
MMAP(mmap_bad_descriptor, MAP_SHARED, -1, 0, PAGE)
MMAP(mmap_nothing, MAP_SHARED, row_fd, 0, 0)
MMAP(mmap_unaligned, MAP_SHARED, row_fd, 1, PAGE)
MMAP(mmap_no_type, 0, row_fd, 0, PAGE)
MMAP(mmap_unknown_flag, MAP_SHARED_VALIDATE | 0x40000000, row_fd, 0, PAGE)
MMAP(mmap_anonymous, MAP_SHARED | MAP_ANONYMOUS, -1, 0, PAGE)

/* ---- what closes and unmaps ---- */

/* A mapping by a descriptor of its own, which `close_it` closes; then `call`. */
#define CLOSED(name, close_it, call)                                                                                   \
	static int name(void)                                                                                          \
	{                                                                                                              \
		int fd = open(row_path, O_RDWR | O_CLOEXEC), r, saved;                                                 \
		char *p = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);                       \
                                                                                                                       \
		p[0] = 1;                                                                                              \
		close_it;                                                                                              \
		errno = 77;                                                                                            \
		r = call;                                                                                              \
		saved = errno;                                                                                         \
		munmap(p, N_PAGES *PAGE);                                                                              \
		errno = saved;                                                                                         \
		return r;                                                                                              \
	}

/* By another open file: -1 as long as the first holds it. */
static int lock_anew(void)
{
	int fd = open(row_path, O_RDWR | O_CLOEXEC);

	return row_close(fd, flock(fd, LOCK_EX | LOCK_NB));
}

static int close_in_vforked(int fd)
{
	pid_t child = vfork();

	if (child == 0) {
		close(fd);
		_exit(0);
	}
	return waitpid(child, NULL, 0) == child ? fcntl(fd, F_GETFD) >= 0 && close(fd) == 0 ? 0 : -2 : -3;
}

CLOSED(msync_after_close, close(fd), msync(p, N_PAGES *PAGE, MS_SYNC))
CLOSED(msync_after_dup2, (dup2(STDOUT_FILENO, fd), close(fd)), msync(p, PAGE, MS_SYNC))
CLOSED(msync_after_fclose, fclose(fdopen(fd, "r+")), msync(p + PAGE, PAGE, MS_SYNC | MS_INVALIDATE))
CLOSED(msync_after_part, (close(fd), munmap(p, PAGE)), msync(p + PAGE, PAGE, MS_SYNC))
CLOSED(msync_after_part_hole, (close(fd), munmap(p + PAGE, PAGE)), msync(p, N_PAGES *PAGE, MS_SYNC))
CLOSED(msync_after_move, (close(fd), p = mremap(p, N_PAGES *PAGE, 2 * N_PAGES * PAGE, MREMAP_MAYMOVE)),
       msync(p, N_PAGES *PAGE, MS_SYNC))
CLOSED(msync_in_vforked_closed, close_in_vforked(fd), msync(p, PAGE, MS_SYNC))
CLOSED(flock_while_mapped, (flock(fd, LOCK_EX), close(fd)), lock_anew())
CLOSED(flock_when_unmapped, (flock(fd, LOCK_EX), close(fd), munmap(p, N_PAGES *PAGE)), lock_anew())
CLOSED(flock_when_covered,
       (flock(fd, LOCK_EX), close(fd),
	mmap(p, N_PAGES *PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)),
       lock_anew())
CLOSED(close_again, close(fd), close(fd))
CLOSED(dup2_same, (void)0, row_close(fd, dup2(fd, fd) == fd ? 0 : -1))
CLOSED(dup2_bad, close(fd), dup2(fd, fd))
CLOSED(dup3_same, (void)0, row_close(fd, dup3(fd, fd, O_CLOEXEC)))
CLOSED(munmap_unaligned, close(fd), munmap(p + 1, PAGE))
CLOSED(munmap_nothing, close(fd), munmap(p, 0))
CLOSED(mremap_bad_flags, close(fd), mremap(p, PAGE, PAGE, MREMAP_FIXED, p) == MAP_FAILED ? -1 : 0)

static int close_negative(void)
{
	return close(-1);
}

#define ROW(name)                                                                                                      \
	{                                                                                                              \
#name, name                                                                                            \
	}
static const struct {
	const char *name;
	int (*run)(void);
} rows[] = {
	ROW(fsync_file),
	ROW(fsync_read_only),
	ROW(fsync_path),
	ROW(fsync_null),
	ROW(fsync_directory),
	ROW(fsync_pipe),
	ROW(fsync_socket),
	ROW(fsync_negative),
	ROW(fsync_closed),
	ROW(fdatasync_file),
	ROW(fdatasync_path),
	ROW(fdatasync_pipe),
	ROW(fdatasync_negative),
	ROW(syncfs_file),
	ROW(syncfs_path),
	ROW(syncfs_pipe),
	ROW(syncfs_negative),
	ROW(lowest_number),
	ROW(lock_is_kept),
	ROW(msync_all),
	ROW(msync_nothing),
	ROW(msync_bytes),
	ROW(msync_unaligned),
	ROW(msync_no_flag),
	ROW(msync_both),
	ROW(msync_unknown_flag),
	ROW(msync_async),
	ROW(msync_invalidate),
	ROW(msync_sync_invalidate),
	ROW(msync_null),
	ROW(msync_overflow),
	ROW(msync_almost_overflow),
	ROW(msync_hole),
	ROW(msync_holes),
	ROW(msync_unmapped),
	ROW(msync_locked),
	ROW(msync_locked_invalidate),
	ROW(msync_locked_hole),
	ROW(msync_read_only),
	ROW(msync_no_access),
	ROW(msync_fixed_over),
	ROW(msync_fixed_shared),
	ROW(msync_moved),
	ROW(msync_shrunk),
	ROW(msync_wraps_hole),
	ROW(msync_private),
	ROW(msync_descriptor_closed),
	ROW(msync_descriptor_reused),
	ROW(msync_descriptor_reused_raw),
	ROW(msync_descriptor_closed_raw),
	ROW(mmap_shared),
	ROW(mmap_bad_descriptor),
	ROW(mmap_nothing),
	ROW(mmap_unaligned),
	ROW(mmap_no_type),
	ROW(mmap_unknown_flag),
	ROW(mmap_anonymous),
	ROW(msync_after_close),
	ROW(msync_after_dup2),
	ROW(msync_after_fclose),
	ROW(msync_after_part),
	ROW(msync_after_part_hole),
	ROW(msync_after_move),
	ROW(msync_in_vforked_closed),
	ROW(flock_while_mapped),
	ROW(flock_when_unmapped),
	ROW(flock_when_covered),
	ROW(close_again),
	ROW(close_negative),
	ROW(dup2_same),
	ROW(dup2_bad),
	ROW(dup3_same),
	ROW(munmap_unaligned),
	ROW(munmap_nothing),
	ROW(mremap_bad_flags),
	ROW(in_forked_child),
	ROW(in_vforked_child),
	ROW(in_signal_handler),
	ROW(in_threads),
#ifndef __SANITIZE_ADDRESS__ /* which does not bear the end of a cancelled thread */
	ROW(cancelled_in_fsync),
	ROW(cancelled_in_msync),
#endif
	ROW(close_from),
};

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: load-rows FILE, of %zu bytes at least\n", N_PAGES * PAGE);
		return 2;
	}
	row_path = argv[1];
	row_fd = open(row_path, O_RDWR | O_CLOEXEC);
	row_map = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, row_fd, 0);
	if (row_fd < 0 || row_map == MAP_FAILED) {
		perror(row_path);
		return 1;
	}
	for (unsigned int i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int r;

		errno = 77;
		r = rows[i].run();
		printf("%s: %d, errno %d\n", rows[i].name, r, errno);
	}
	return fflush(stdout) != 0;
}
