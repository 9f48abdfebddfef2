/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "child.h"
#include "state.h"

#define FILE_MAGIC   0x31534f4c4d454d50ULL /* "PMEMLOS1" when little-endian */
#define FILE_VERSION 1
#define FILE_SUFFIX  ".loss"

struct state {
	pid_t pid;
	int socket;
};

struct order {
	bool save; /* else: load */
	struct state_record record;
};

struct file {
	uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	struct state_record record;
	uint64_t checksum; /* of all before */
};

/* ---- files ---- */

static uint64_t checksum(const struct file *file)
{
	const uint8_t *p = (const uint8_t *)file;
	uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

	for (size_t i = 0; i < offsetof(struct file, checksum); i++)
		hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
	return hash;
}

static bool is_sound(const struct file *file, uint64_t hash)
{
	const struct state_record *r = &file->record;

	return file->magic == FILE_MAGIC && file->version == FILE_VERSION && file->checksum == checksum(file) &&
	       r->identity[sizeof(r->identity) - 1] == '\0' && region_identity_hash(r->identity) == hash &&
	       r->loss > 0 && r->acknowledged <= r->loss;
}

/* 0, -ENOENT, or another negative errno: there is one, and nobody knows what it says. */
static int read_file(int dir, const char *name, uint64_t hash, struct state_record *ret)
{
	_cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct file file;
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != sizeof(file))
		return -EBADMSG;
	n = read(fd, &file, sizeof(file));
	if (n < 0)
		return -errno;
	if (n != sizeof(file) || !is_sound(&file, hash))
		return -EBADMSG;
	*ret = file.record;
	return 0;
}

static int write_file(int dir, const char *name, const struct file *file)
{
	_cleanup_close_ int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = write(fd, file, sizeof(*file));
	if (n != sizeof(*file))
		return n < 0 ? -errno : -ENOSPC;
	return fsync(fd) < 0 ? -errno : 0;
}

/* Under the lock of the directory, since it reads what it replaces. */
static int merge_file(int dir, const struct state_record *record)
{
	const uint64_t hash = region_identity_hash(record->identity);
	struct file file = { .magic = FILE_MAGIC, .version = FILE_VERSION, .record = *record };
	char name[32], new[32];
	struct state_record old;
	int r;

	snprintf(name, sizeof(name), "%016" PRIx64 FILE_SUFFIX, hash);
	snprintf(new, sizeof(new), "%016" PRIx64 ".new", hash);
	if (read_file(dir, name, hash, &old) == 0) {
		if (strcmp(old.identity, record->identity) != 0)
			return -EEXIST;
		if (old.loss > file.record.loss)
			file.record = old;
		if (file.record.acknowledged < old.acknowledged)
			file.record.acknowledged = old.acknowledged;
		if (file.record.acknowledged < record->acknowledged)
			file.record.acknowledged = record->acknowledged;
	}
	file.checksum = checksum(&file);

	/* Whoever opens the file finds a whole one, and after a crash the old or the new. */
	r = write_file(dir, new, &file);
	if (r >= 0 && renameat(dir, new, dir, name) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dir, new, 0);
		return r;
	}
	return fsync(dir) < 0 ? -errno : 0;
}

/* mkdir() waits while the filesystem is frozen, also for a directory that is there. */
static int open_directory(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT && mkdir(path, 0755) == 0)
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* ---- the child ---- */

static int save(const char *path, const struct state_record *record)
{
	_cleanup_close_ int dir = open_directory(path);

	if (dir < 0)
		return dir;
	if (flock(dir, LOCK_EX) < 0)
		return -errno;
	return merge_file(dir, record);
}

static bool parse_name(const char *name, uint64_t *ret_hash)
{
	int end = 0;

	return sscanf(name, "%16" SCNx64 "%n", ret_hash, &end) == 1 && end == 16 &&
	       strcmp(name + end, FILE_SUFFIX) == 0;
}

static DIR *dir_close(DIR *d)
{
	closedir(d);
	return NULL;
}
DEFINE_CLEANUP(DIR *, dir_close)

/* 0 or a negative errno. */
static int load(const char *path, int sock, int *ret_write_error)
{
	_cleanup_(dir_closep) DIR *d = NULL;
	_cleanup_close_ int fd = open_directory(path);
	unsigned int n = 0;
	struct dirent *entry;

	if (fd < 0)
		return fd;
	*ret_write_error = faccessat(fd, ".", W_OK, AT_EACCESS) < 0 ? errno : 0;
	d = fdopendir(fd);
	if (!d)
		return -errno;
	fd = -1;

	while (errno = 0, (entry = readdir(d))) {
		struct state_answer answer = {};

		if (!parse_name(entry->d_name, &answer.hash))
			continue;
		if (++n > STATE_MAX_RECORDS)
			return -EFBIG;
		answer.error = -read_file(dirfd(d), entry->d_name, answer.hash, &answer.record);
		if (answer.error == ENOENT)
			continue;
		answer.type = answer.error == 0 ? STATE_RECORD : STATE_DAMAGED;
		send(sock, &answer, sizeof(answer), MSG_NOSIGNAL);
	}
	return -errno;
}

static void serve(int sock, void *userdata)
{
	const char *path = userdata;
	struct order order;

	while (recv(sock, &order, sizeof(order), 0) == sizeof(order)) {
		struct state_answer answer = { .type = order.save ? STATE_SAVED : STATE_LOADED };

		if (order.save) {
			answer.hash = region_identity_hash(order.record.identity);
			answer.error = -save(path, &order.record);
		} else {
			answer.error = -load(path, sock, &answer.write_error);
		}
		send(sock, &answer, sizeof(answer), MSG_NOSIGNAL);
	}
}

/* ---- the agent's side ---- */

int state_start(const char *dir, struct state **ret)
{
	struct state *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = child_start("pmem-state", serve, (void *)dir, &s->pid, &s->socket);
	if (r < 0) {
		free(s);
		return r;
	}
	*ret = s;
	return 0;
}

struct state *state_free(struct state *s)
{
	if (s) {
		safe_close(s->socket);
		free(s);
	}
	return NULL;
}

int state_get_fd(const struct state *s)
{
	return s->socket;
}

static int give(struct state *s, const struct order *order)
{
	return send(s->socket, order, sizeof(*order), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int state_load(struct state *s)
{
	return give(s, &(struct order){ .save = false });
}

int state_save(struct state *s, const struct state_record *record)
{
	return give(s, &(struct order){ .save = true, .record = *record });
}

int state_next(struct state *s, struct state_answer *ret)
{
	struct state_answer answer;
	ssize_t n = recv(s->socket, &answer, sizeof(answer), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n != sizeof(answer))
		return -EPIPE;
	*ret = answer;
	return 0;
}
