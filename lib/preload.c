/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload: libpmem-agent-preload, for programs that can't be changed; pmem-agent-preload(7)
 *
 * A call on a file of an asynchronous region goes to the agent, any other to the real one. What the agent can't be
 * asked is left to the real call too, and never made better than that: what a region has lost is looked for before it
 * and after it, and if it fails all later ones in this process do.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

#define EXPORT __attribute__((visibility("default")))

#define N_FLUSHED 8 /* files that one msync() remembers to have flushed already */

typedef int (*sync_call)(int fd);

static struct {
	sync_call fsync, fdatasync, syncfs;
	int (*msync)(void *address, size_t size, int flags);
	void *(*mmap)(void *address, size_t size, int protection, int flags, int fd, off_t offset);
	int (*munmap)(void *address, size_t size);
	void *(*mremap)(void *old, size_t old_size, size_t new_size, int flags, ...);
} real;

/* Before this library is initialised others may call already. */
static int bare_fsync(int fd)
{
	return (int)syscall(SYS_fsync, fd);
}

static int bare_fdatasync(int fd)
{
	return (int)syscall(SYS_fdatasync, fd);
}

static int bare_syncfs(int fd)
{
	return (int)syscall(SYS_syncfs, fd);
}

static int bare_msync(void *address, size_t size, int flags)
{
	return (int)syscall(SYS_msync, address, size, flags);
}

static void *bare_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

static int bare_munmap(void *address, size_t size)
{
	return (int)syscall(SYS_munmap, address, size);
}

static void *bare_mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	va_list arguments;
	void *new;

	va_start(arguments, flags);
	new = va_arg(arguments, void *);
	va_end(arguments);
	return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, new);
}

#define REAL(name) (real.name ? real.name : bare_##name)

/* The agent's own calls would wait for the agent; and where systemd listens for it, so would those of who starts it. */
static bool is_off;

__attribute__((constructor)) static void init(void)
{
	int saved = errno;

	is_off = strcmp(program_invocation_short_name, "pmem-agent") == 0 ||
		 (getpid() == 1 && strcmp(program_invocation_short_name, "systemd") == 0);
	preload_device_init();
	preload_agent_init();
	real.mremap = dlsym(RTLD_NEXT, "mremap");
	real.munmap = dlsym(RTLD_NEXT, "munmap");
	real.mmap = dlsym(RTLD_NEXT, "mmap");
	real.msync = dlsym(RTLD_NEXT, "msync");
	real.syncfs = dlsym(RTLD_NEXT, "syncfs");
	real.fdatasync = dlsym(RTLD_NEXT, "fdatasync");
	real.fsync = dlsym(RTLD_NEXT, "fsync");
	errno = saved;
}

/* ---- one flush ---- */

/* The real call: of a descriptor, or of a piece of memory. */
struct call {
	sync_call sync;
	int fd;
	void *address;
	size_t size;
	bool only_regions; /* of mappings: nothing but what stands for a region */
	bool whole;        /* the agent has flushed all of the file */
};

static int make(const struct call *c)
{
	size_t before = (uintptr_t)c->address & ((uintptr_t)sysconf(_SC_PAGESIZE) - 1); /* of pmem_persist() only */
	int r = c->sync ? c->sync(c->fd) : REAL(msync)((char *)c->address - before, c->size + before, MS_SYNC);

	return r < 0 ? errno : 0;
}

/* Where the agent can't be asked. */
static int make_guarded(const struct call *c, const struct preload_file *file)
{
	int error;

	if (file->kind == PRELOAD_DAX_DEVICE)
		return EIO;
	if (preload_device_is_stuck(file) || preload_device_is_lost(file, false))
		return EIO;
	error = make(c);
	if (error == EIO)
		preload_device_stick(file);
	/* The error may have gone to somebody who made a flush at the same time: also to the worker of a dead agent. */
	return error == 0 && (preload_device_is_stuck(file) || preload_device_is_lost(file, true)) ? EIO : error;
}

static bool is_read_only(int fd)
{
	struct statvfs st;

	return fstatvfs(fd, &st) == 0 && st.f_flag & ST_RDONLY;
}

/* What the agent has said, as an errno, 0: durable. -1: the real call decides; -2: guarded. */
static int take(const struct preload_reply *reply, int fd, const struct preload_file *file)
{
	bool device = file->kind == PRELOAD_DAX_DEVICE;

	switch (reply->answer) {
	case PMEM_AGENT_DURABLE:
		preload_device_learn(file, reply->page);
		return 0;
	case PMEM_AGENT_FAILED:
		return reply->error == ENOSPC || reply->error == EDQUOT ? reply->error : EIO;
	case PMEM_AGENT_SYNCHRONOUS:
		preload_device_dismiss(file);
		preload_device_learn_synchronous(file);
		return -1;
	case PMEM_AGENT_ORDINARY:
		preload_device_dismiss(file);
		return device ? EIO : -1;
	case PMEM_AGENT_UNFLUSHED:
		/* Nothing is written there; or whatever is does not reach the host, and the real call would not say so.
		 */
		return !device && is_read_only(fd) ? -2 : EIO;
	case PMEM_AGENT_FILESYSTEM:
	case PMEM_AGENT_BUSY:
	case PMEM_AGENT_MIXED:
	case PMEM_AGENT_REFUSED:
	case PMEM_AGENT_DENIED:
	case PMEM_AGENT_NOT_FOUND:
		return -2;
	case PMEM_AGENT_LOST:
	case PMEM_AGENT_UNKNOWN:
	case PMEM_AGENT_GONE:
	case PMEM_AGENT_IMPOSSIBLE:
	case PMEM_AGENT_STALE_LOSS:
	case PMEM_AGENT_TIMEOUT:
	case PMEM_AGENT_N_ANSWERS:
		break;
	}
	return EIO;
}

#define CHANGED (-1)

/* The agent, what has failed without it; EIO or CHANGED. */
static int tell(struct preload_handle h, const struct preload_file *file)
{
	enum preload_outcome told = preload_device_is_to_tell(file) ? preload_tell(h, file) : PRELOAD_UNASKED;

	if (told == PRELOAD_TOLD)
		preload_device_told(file);
	return told == PRELOAD_CHANGED ? CHANGED : EIO;
}

/* 0 or an errno; or CHANGED: `h` is of another file. */
static int flush(struct preload_handle h, enum pmem_agent_scope scope, const struct preload_file *file, struct call *c)
{
	struct preload_reply reply;
	int error;

	if (preload_device_is_stuck(file))
		return tell(h, file);
	if (file->kind == PRELOAD_EMULATED || file->kind == PRELOAD_DAX_DEVICE)
		scope = PMEM_AGENT_SCOPE_AUTO;
	switch (h.fd >= 0 || h.kept ? preload_ask(h, scope, file, &reply) : PRELOAD_UNASKED) {
	case PRELOAD_TOLD:
		error = take(&reply, h.fd, file);
		c->whole = error == 0;
		break;
	case PRELOAD_UNASKED:
		error = -2;
		break;
	case PRELOAD_CHANGED:
		return CHANGED;
	case PRELOAD_UNKNOWN:
	default:
		return EIO;
	}
	if (error == -2)
		return make_guarded(c, file);
	if (error == -1)
		return make(c);
	if (error == 0 && file->kind == PRELOAD_EMULATED) {
		/* The agent flushes it by a descriptor of its own: errors that ours still has are told here. */
		error = make(c);
		if (error == EIO)
			preload_device_stick(file);
	}
	return error;
}

/* ---- descriptors ---- */

static int finish(int error, int saved)
{
	errno = error ? error : saved;
	return error ? -1 : 0;
}

static int route(int fd, enum pmem_agent_scope scope, sync_call call)
{
	struct call c = { .sync = call, .fd = fd };
	struct preload_file file;
	uint32_t second = is_off ? 0 : preload_is_active();
	int saved, cancel, error;
	uint64_t stamp;

	if (second == 0 || (scope != PMEM_AGENT_SCOPE_FILESYSTEM && preload_fd_is_ordinary(fd, second)))
		return call(fd);
	saved = errno;
	stamp = preload_fd_stamp(fd);
	preload_classify(fd, scope == PMEM_AGENT_SCOPE_FILESYSTEM, &file);
	errno = saved;
	if (file.kind == PRELOAD_NONE) {
		if (file.ordinary)
			preload_fd_mark(fd, stamp, second);
		return call(fd);
	}
	/* A point of cancellation, as the real one; but not within. */
	pthread_testcancel();
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	error = flush((struct preload_handle){ .fd = fd }, scope, &file, &c);
	if (error == CHANGED)
		error = make_guarded(&c, &file);
	pthread_setcancelstate(cancel, NULL);
	return finish(error, saved);
}

EXPORT int fsync(int fd)
{
	return route(fd, PMEM_AGENT_SCOPE_FILE, REAL(fsync));
}

EXPORT int fdatasync(int fd)
{
	return route(fd, PMEM_AGENT_SCOPE_FILE_DATA, REAL(fdatasync));
}

EXPORT int syncfs(int fd)
{
	return route(fd, PMEM_AGENT_SCOPE_FILESYSTEM, REAL(syncfs));
}

/* ---- memory ---- */

struct flushed {
	size_t covered, regions; /* bytes in shared mappings of files, and in those of what stands for a region */
	unsigned int n;
	struct {
		uint64_t device, inode;
	} files[N_FLUSHED];
};

static bool is_flushed(const struct flushed *f, const struct preload_mapping *m)
{
	for (unsigned int i = 0; i < f->n; i++)
		if (f->files[i].device == m->device && f->files[i].inode == m->inode)
			return true;
	return false;
}

/* The CPU's flush has been made already. */
static int make_nothing(int fd)
{
	return 0;
}

/* By what is known of who holds it, and if that is wrong by a closer look. 0 or an errno. */
static int flush_mapping(const struct preload_mapping *m, struct call *c)
{
	struct preload_handle h;
	struct preload_file file;
	int error = CHANGED;

	for (unsigned int i = 0; i < 2 && error == CHANGED; i++) {
		h = preload_map_find_handle(m->device, m->inode, &file);
		if (file.kind == PRELOAD_NONE)
			return make(c);
		/* Device-dax has no msync(): it is the agent, or the CPU alone. */
		if (c->only_regions && file.kind == PRELOAD_DAX_DEVICE)
			c->sync = make_nothing;
		error = flush(h, PMEM_AGENT_SCOPE_FILE_DATA, &file, c);
		if (error == CHANGED)
			preload_map_disown(m->device, m->inode, h.fd);
	}
	return error == CHANGED ? make_guarded(c, &file) : error;
}

/* One mapping, of which `c` is the piece that is asked for. 0 or an errno. */
static int sync_mapping(const struct preload_mapping *m, struct call *c, struct flushed *f)
{
	int error;

	f->covered += c->size;
	if (c->only_regions && !preload_device_is_region(m->device, m->inode))
		return 0;
	f->regions += c->size;
	if (is_flushed(f, m))
		return 0;
	if (!preload_device_find(m->device))
		return make(c);
	error = flush_mapping(m, c);
	/* If it isn't the agent who has synced it, this piece alone has been. */
	if (error == 0 && c->whole && f->n < N_FLUSHED) {
		f->files[f->n].device = m->device;
		f->files[f->n++].inode = m->inode;
	}
	return error;
}

/* As the kernel does it: up to the first error, and holes don't count as one of these. 0 or an errno. */
static int sync_mappings(uintptr_t start, uintptr_t end, bool only_regions, struct flushed *f)
{
	bool hole = false;
	struct preload_mapping m;
	struct preload_map map;
	int r = preload_map_open(&map), error = 0;

	if (r < 0) {
		const struct call whole = { .address = (void *)start, .size = end - start };
		const struct preload_file any = { .kind = PRELOAD_NONE };

		return only_regions ? EIO : make_guarded(&whole, &any);
	}
	for (uintptr_t at = start; error == 0 && at < end; at = m.end) {
		r = preload_map_next(&map, at, &m);
		if (r <= 0 || m.start >= end)
			break;
		if (m.start > at)
			at = m.start;

		struct call piece = {
			.address = (void *)at,
			.size = (m.end < end ? m.end : end) - at,
			.only_regions = only_regions,
		};

		error = sync_mapping(&m, &piece, f);
		/* Others have unmapped it meanwhile. */
		if (error == ENOMEM) {
			hole = true;
			error = 0;
		}
	}
	preload_map_close(&map);
	return error ? error : r < 0 ? EIO : hole ? ENOMEM : 0;
}

int preload_flush_regions(uintptr_t start, uintptr_t end, bool *ret_all)
{
	struct flushed flushed = { .n = 0 };
	int saved = errno, cancel, error = 0;

	if (!is_off) {
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
		error = sync_mappings(start, end, true, &flushed);
		pthread_setcancelstate(cancel, NULL);
	}
	if (ret_all)
		*ret_all = flushed.regions == end - start;
	errno = saved;
	return error == ENOMEM ? 0 : error;
}

/* Writes nothing, and says what is wrong with the range: 0 or an errno. */
static int probe(void *address, size_t size, int flags)
{
	return REAL(msync)(address, size, (flags & MS_INVALIDATE) | MS_ASYNC) < 0 ? errno : 0;
}

EXPORT int msync(void *address, size_t size, int flags)
{
	const uintptr_t start = (uintptr_t)address, page = (uintptr_t)sysconf(_SC_PAGESIZE);
	const size_t whole = (size + page - 1) & ~(page - 1);
	struct flushed flushed = { .n = 0 };
	int saved = errno, cancel, error;

	if ((flags & ~MS_INVALIDATE) != MS_SYNC || is_off || start % page != 0 || start + whole <= start ||
	    !preload_map_concerns(start, start + whole))
		return REAL(msync)(address, size, flags);
	/* With this flag it fails where memory is locked. */
	error = flags & MS_INVALIDATE ? probe(address, size, flags) : 0;
	errno = saved;
	if (error != 0 && error != ENOMEM)
		return REAL(msync)(address, size, flags);
	pthread_testcancel();
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	error = sync_mappings(start, start + whole, false, &flushed);
	/* Holes are told after the rest has been synced. */
	if (error == 0 && flushed.covered < whole)
		error = probe(address, size, flags);
	pthread_setcancelstate(cancel, NULL);
	return finish(error, saved);
}

static void unmapped(const void *address, size_t size)
{
	int saved = errno, cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	preload_kept_unmapped((uintptr_t)address, (uintptr_t)address + size);
	pthread_setcancelstate(cancel, NULL);
	errno = saved;
}

EXPORT int munmap(void *address, size_t size)
{
	int r = REAL(munmap)(address, size);

	if (r == 0)
		unmapped(address, size);
	return r;
}

EXPORT void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	const uintptr_t start = (uintptr_t)old, end = start + (old_size ?: 1);
	void *new = NULL, *p;
	va_list arguments;

	if (flags & MREMAP_FIXED) {
		va_start(arguments, flags);
		new = va_arg(arguments, void *);
		va_end(arguments);
	}
	p = REAL(mremap)(old, old_size, new_size, flags, new);
	if (p != MAP_FAILED) {
		if (preload_map_concerns(start, end))
			preload_map_add((uintptr_t)p, (uintptr_t)p + new_size);
		preload_kept_moved(start, end, (uintptr_t)p, (uintptr_t)p + new_size);
		unmapped(old, old_size);
		unmapped(p, new_size);
	}
	return p;
}

EXPORT void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	void *p = REAL(mmap)(address, size, protection, flags, fd, offset);

	if (p != MAP_FAILED && flags & MAP_FIXED)
		unmapped(p, size);
	/* MAP_SHARED_VALIDATE has this bit too. */
	if (p != MAP_FAILED && fd >= 0 && flags & MAP_SHARED && !(flags & MAP_ANONYMOUS))
		preload_map_note(fd, (uintptr_t)p, (uintptr_t)p + size);
	return p;
}

EXPORT void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
