/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-run: the verb run: a program with libpmem-agent-preload
 *
 * The dynamic linker ignores a library that it can't preload, some of the time without a word. So who asks for it is
 * told here, before the program begins.
 */
#include <elf.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "ctl.h"
#include "lib/wire.h"

#define LIBRARY          "libpmem-agent-preload.so"
#define MAX_INTERPRETERS 4

/* As those of env(1); any other exit status is the command's. */
enum {
	EXIT_CANT_PRELOAD = 125,
	EXIT_CANT_EXECUTE = 126,
	EXIT_NOT_FOUND = 127,
};

/* ---- files ---- */

struct image {
	const char *bytes;
	size_t size;
	struct stat st;
};

static struct image *image_clear(struct image *i)
{
	if (i->size > 0)
		munmap((void *)i->bytes, i->size);
	i->size = 0;
	return NULL;
}

static void image_clearp(struct image *i)
{
	image_clear(i);
}

/* 0 or a negative errno. */
static int image_open(const char *path, struct image *ret)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	void *bytes;

	*ret = (struct image){ .size = 0 };
	if (fd < 0 || fstat(fd, &ret->st) < 0)
		return -errno;
	if (!S_ISREG(ret->st.st_mode))
		return -EACCES;
	if (ret->st.st_size == 0)
		return 0;
	bytes = mmap(NULL, (size_t)ret->st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	ret->bytes = bytes;
	ret->size = (size_t)ret->st.st_size;
	return 0;
}

/* NULL: it doesn't reach so far. */
static const void *image_at(const struct image *i, uint64_t offset, uint64_t size)
{
	return offset <= i->size && size <= i->size - offset ? i->bytes + offset : NULL;
}

/* Text that ends within the file. */
static const char *image_text(const struct image *i, uint64_t offset)
{
	return offset < i->size && memchr(i->bytes + offset, '\0', i->size - offset) ? i->bytes + offset : NULL;
}

/* ---- ELF ---- */

static const ElfW(Ehdr) * elf_header(const struct image *i)
{
	const ElfW(Ehdr) *e = image_at(i, 0, sizeof(*e));

	return e && memcmp(e->e_ident, ELFMAG, SELFMAG) == 0 ? e : NULL;
}

/* The first header of that type after `after`, NULL: the first of all. */
static const ElfW(Phdr) * elf_find(const struct image *i, uint32_t type, const ElfW(Phdr) * after)
{
	const ElfW(Ehdr) *e = elf_header(i);
	const ElfW(Phdr) *p = e ? image_at(i, e->e_phoff, (uint64_t)e->e_phnum * sizeof(*p)) : NULL;

	for (unsigned int n = 0; p && n < e->e_phnum; n++)
		if (p[n].p_type == type && (!after || &p[n] > after))
			return &p[n];
	return NULL;
}

static const char *elf_interpreter(const struct image *i)
{
	const ElfW(Phdr) *p = elf_find(i, PT_INTERP, NULL);

	return p ? image_text(i, p->p_offset) : NULL;
}

/* Go's linker leaves a note of its own. */
static bool elf_is_go(const struct image *i)
{
	for (const ElfW(Phdr) *p = NULL; (p = elf_find(i, PT_NOTE, p));) {
		const char *note = image_at(i, p->p_offset, sizeof(ElfW(Nhdr)) + 4);

		if (note && ((const ElfW(Nhdr) *)note)->n_namesz == 4 &&
		    memcmp(note + sizeof(ElfW(Nhdr)), "Go\0", 4) == 0)
			return true;
	}
	return false;
}

static uint64_t elf_offset(const struct image *i, uint64_t address)
{
	for (const ElfW(Phdr) *p = NULL; (p = elf_find(i, PT_LOAD, p));)
		if (address >= p->p_vaddr && address - p->p_vaddr < p->p_filesz)
			return address - p->p_vaddr + p->p_offset;
	return UINT64_MAX;
}

static bool elf_needs(const struct image *i, const char *library)
{
	const ElfW(Phdr) *p = elf_find(i, PT_DYNAMIC, NULL);
	const ElfW(Dyn) *d = p ? image_at(i, p->p_offset, p->p_filesz) : NULL;
	uint64_t n = d ? p->p_filesz / sizeof(*d) : 0, strings = UINT64_MAX;

	for (uint64_t k = 0; k < n; k++)
		if (d[k].d_tag == DT_STRTAB)
			strings = elf_offset(i, d[k].d_un.d_ptr);
	for (uint64_t k = 0; k < n && strings < i->size; k++) {
		const char *name = d[k].d_tag == DT_NEEDED ? image_text(i, strings + d[k].d_un.d_val) : NULL;

		if (name && strncmp(name, library, strlen(library)) == 0)
			return true;
	}
	return false;
}

/* ---- whether it can work ---- */

/* Why the dynamic linker would ignore the library; NULL: it won't. */
static const char *check_linker(const struct image *i)
{
	_cleanup_(image_clearp) struct image own = { .size = 0 };
	const ElfW(Ehdr) *e = elf_header(i), *mine;
	const char *interpreter, *own_interpreter;

	if (image_open("/proc/self/exe", &own) < 0 || !(mine = elf_header(&own)) ||
	    !(own_interpreter = elf_interpreter(&own)))
		return "it can't be told which dynamic linker it needs";
	if (memcmp(e->e_ident, mine->e_ident, EI_VERSION) != 0 || e->e_machine != mine->e_machine)
		return "it is for another architecture than pmemctl";
	interpreter = elf_interpreter(i);
	if (!interpreter)
		return "it is linked statically";
	return strcmp(basename((char *)interpreter), basename((char *)own_interpreter)) == 0
		   ? NULL
		   : "it has another C library than pmemctl";
}

static const char *check_privilege(const char *path, const struct image *i)
{
	if (i->st.st_mode & S_ISUID && i->st.st_uid != geteuid())
		return "it is set-user-ID";
	if (i->st.st_mode & S_ISGID && i->st.st_mode & S_IXGRP && i->st.st_gid != getegid())
		return "it is set-group-ID";
	if (geteuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0)
		return "it has file capabilities";
	return NULL;
}

static int check_program(const struct ctl *c, const char *name, const char *path, unsigned int depth);

static int find_program(const char *name, char ret[static PATH_MAX])
{
	const char *list = getenv("PATH") ?: "/usr/bin:/bin";
	int status = EXIT_NOT_FOUND;

	if (strchr(name, '/')) {
		snprintf(ret, PATH_MAX, "%s", name);
		return access(ret, X_OK) == 0                ? 0
		       : errno == ENOENT || errno == ENOTDIR ? EXIT_NOT_FOUND
							     : EXIT_CANT_EXECUTE;
	}
	for (const char *end; *list; list = end + (*end == ':')) {
		end = strchrnul(list, ':');
		snprintf(ret, PATH_MAX, "%.*s%s%s", (int)(end - list), list, end > list ? "/" : "", name);
		if (access(ret, X_OK) == 0)
			return 0;
		if (errno == EACCES)
			status = EXIT_CANT_EXECUTE;
	}
	return status;
}

/* What runs a script is what it must work for. */
static int check_script(const struct ctl *c, const char *name, const struct image *i, unsigned int depth)
{
	char line[PATH_MAX + 1], path[PATH_MAX], *save = NULL, *interpreter, *argument;

	snprintf(line, sizeof(line), "%.*s", (int)(i->size - 2 < PATH_MAX ? i->size - 2 : PATH_MAX), i->bytes + 2);
	line[strcspn(line, "\n")] = '\0';
	interpreter = strtok_r(line, " \t", &save);
	argument = strtok_r(NULL, " \t", &save);
	if (!interpreter || depth >= MAX_INTERPRETERS)
		return 0;
	if (argument && argument[0] != '-' && strcmp(basename(interpreter), "env") == 0 &&
	    find_program(argument, path) == 0)
		return check_program(c, name, path, depth + 1);
	return check_program(c, name, interpreter, depth + 1);
}

/* 0 or the exit status, having said why. What can't be read, and what the kernel runs by other means, may work. */
static int check_program(const struct ctl *c, const char *name, const char *path, unsigned int depth)
{
	_cleanup_(image_clearp) struct image i = { .size = 0 };
	const char *why;
	int r = image_open(path, &i);

	if (r < 0 && !c->quiet)
		ctl_error(name, "can't tell whether it can be preloaded (%s)", strerrordesc_np(-r));
	if (r < 0)
		return 0;
	if (i.size > 2 && memcmp(i.bytes, "#!", 2) == 0)
		return check_script(c, name, &i, depth);
	if (!elf_header(&i))
		return 0;
	why = check_linker(&i) ?: check_privilege(path, &i);
	if (why) {
		ctl_error(name, "no library can be preloaded: %s (%s); it was not started", why, path);
		return EXIT_CANT_PRELOAD;
	}
	if (!c->quiet && elf_is_go(&i))
		ctl_error(name, "a Go program makes system calls by itself: they go to the kernel, not to the agent");
	if (!c->quiet && elf_needs(&i, "liburing."))
		ctl_error(name, "what it asks of io_uring goes to the kernel, not to the agent");
	return 0;
}

/* ---- the library ---- */

/* Beside this program, as built; or where it was installed. 0 or the exit status. */
static int find_library(char ret[static PATH_MAX])
{
	static const char *const places[] = { "", PMEM_AGENT_LIBDIR "/", "../lib/" };
	char self[PATH_MAX] = "", path[2 * PATH_MAX];

	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		self[0] = '\0';
	dirname(self);
	for (unsigned int i = 0; i < ARRAY_SIZE(places); i++) {
		bool relative = places[i][0] != '/';

		snprintf(path, sizeof(path), "%s%s%s" LIBRARY, relative ? self : "", relative ? "/" : "", places[i]);
		if (realpath(path, ret) && !strpbrk(ret, ": \t"))
			return 0;
	}
	ctl_error(NULL, "there is no " LIBRARY " in " PMEM_AGENT_LIBDIR);
	return EXIT_CANT_PRELOAD;
}

static int set_environment(const char *library)
{
	const char *before = getenv("LD_PRELOAD");
	_cleanup_free_ char *value = ctl_format("%s%s%s", library, before && *before ? ":" : "", before ?: "");

	if (value && setenv("LD_PRELOAD", value, 1) == 0)
		return 0;
	ctl_error(NULL, "no memory");
	return EXIT_CANT_PRELOAD;
}

static bool is_agent_there(void)
{
	const char *directory = getenv("PMEM_AGENT_RUNTIME_DIR") ?: PMEM_AGENT_RUNTIME_DIR;
	_cleanup_free_ char *path = ctl_format("%s/" PMEM_AGENT_SOCKET_NAME, directory);

	return path && access(path, F_OK) == 0;
}

int ctl_run(struct ctl *c, char **arguments, unsigned int n)
{
	char program[PATH_MAX], library[PATH_MAX];
	int r;

	if (n == 0) {
		ctl_error(NULL, "run what? As in: pmemctl run -- COMMAND...");
		return CTL_EXIT_USAGE;
	}
	r = find_program(arguments[0], program);
	if (r != 0) {
		ctl_error(arguments[0], "%s",
			  r == EXIT_NOT_FOUND ? "there is no such program" : "it can't be executed");
		return r;
	}
	r = check_program(c, arguments[0], program, 0);
	if (r == 0)
		r = find_library(library);
	if (r == 0)
		r = set_environment(library);
	if (r != 0)
		return r;
	if (!c->quiet && !is_agent_there())
		ctl_error(NULL, "there is no agent: calls go to the kernel until there is one; "
				"see \"systemctl status pmem-agent\"");
	execv(program, arguments);
	ctl_error(arguments[0], "%s", strerrordesc_np(errno));
	return EXIT_CANT_EXECUTE;
}
