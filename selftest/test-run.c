/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-run: `pmemctl run`: what it starts, and what it says of programs that it can't work for
 *
 * Those are copies of this very program, with a byte or two changed.
 */
#include <elf.h>
#include <link.h>

#include "selftest/pmemctl.h"

static char directory[] = "/tmp/test-run-XXXXXX", copy[64], script[64];

static int set_up(void **state)
{
	alarm(60);
	if (!mkdtemp(directory) || chmod(directory, 0755) < 0)
		return -1;
	snprintf(copy, sizeof(copy), "%s/copy", directory);
	snprintf(script, sizeof(script), "%s/script", directory);
	unsetenv("LD_PRELOAD");
	/* What is started isn't built with it, and the library may be. */
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
	return 0;
}

static int tear_down(void **state)
{
	unlink(copy);
	unlink(script);
	return rmdir(directory);
}

static void write_bytes(const char *path, const void *bytes, size_t size, mode_t mode)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, size, f), size);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, mode), 0);
}

/* /bin/true, changed by `change`. */
static void write_copy(void (*change)(char *bytes, size_t size), mode_t mode)
{
	static char bytes[1 << 20];
	FILE *f = fopen("/bin/true", "re");
	size_t n;

	assert_non_null(f);
	n = fread(bytes, 1, sizeof(bytes), f);
	fclose(f);
	assert_true(n > sizeof(ElfW(Ehdr)) && n < sizeof(bytes));
	if (change)
		change(bytes, n);
	unlink(copy);
	write_bytes(copy, bytes, n, mode);
}

static ElfW(Phdr) * find_header(char *bytes, uint32_t type)
{
	ElfW(Ehdr) *e = (void *)bytes;
	ElfW(Phdr) *p = (void *)(bytes + e->e_phoff);

	while (p->p_type != type)
		assert_true(++p < (ElfW(Phdr) *)(bytes + e->e_phoff) + e->e_phnum);
	return p;
}

static void make_static(char *bytes, size_t size)
{
	find_header(bytes, PT_INTERP)->p_type = PT_NULL;
}

static void make_foreign(char *bytes, size_t size)
{
	((ElfW(Ehdr) *)(void *)bytes)->e_machine ^= 1;
}

static void make_other_libc(char *bytes, size_t size)
{
	strcpy(bytes + find_header(bytes, PT_INTERP)->p_offset, "/lib/ld-musl.so.1");
}

/* As Go's linker names its note. */
static void make_go(char *bytes, size_t size)
{
	const ElfW(Phdr) *p = find_header(bytes, PT_NOTE);

	memcpy(bytes + p->p_offset + sizeof(ElfW(Nhdr)), "Go\0", 4);
}

/* The name of a library that it needs, in all places. */
static void make_uring(char *bytes, size_t size)
{
	char *p = memmem(bytes, size, "libc.so.6", 10);

	assert_non_null(p);
	memcpy(p, "liburing.", 10);
}

static void cut_short(char *bytes, size_t size)
{
	((ElfW(Ehdr) *)(void *)bytes)->e_phoff = size - 8;
}

/* ---- */

static void test_starts_it(void **state)
{
	assert_int_equal(run("run", "--", "sh", "-c", "echo \"<$LD_PRELOAD> $0 $1\"; exit 7", "-a", "b c"), 7);
	assert_says(out, "/libpmem-agent-preload.so> -a b c\n");
	setenv("LD_PRELOAD", "", 1);
	assert_int_equal(run("-q", "run", "--", "/bin/sh", "-c", "grep -c libpmem-agent-preload /proc/self/maps"), 0);
	assert_string_equal(err, "");
	unsetenv("LD_PRELOAD");
}

static void test_keeps_what_is_preloaded(void **state)
{
	setenv("LD_PRELOAD", "libm.so.6", 1);
	assert_int_equal(run("run", "--", "sh", "-c", "echo \"<$LD_PRELOAD>\""), 0);
	assert_says(out, "/libpmem-agent-preload.so:libm.so.6>\n");
	unsetenv("LD_PRELOAD");
}

static void test_not_found(void **state)
{
	assert_int_equal(run("run"), 2);
	assert_int_equal(run("run", "--", "there-is-no-such-program"), 127);
	assert_says(err, "there-is-no-such-program: there is no such program");
	assert_int_equal(run("run", "--", "/etc/passwd"), 126);
	assert_int_equal(run("run", "--", "/etc/passwd/x"), 127);
}

static const struct {
	void (*change)(char *bytes, size_t size);
	int status;
	const char *says;
} kinds[] = {
	{ NULL, 0, "" },
	{ make_static, 125, "no library can be preloaded: it is linked statically" },
	{ make_foreign, 125, "it is for another architecture" },
	{ make_other_libc, 125, "it has another C library" },
	{ cut_short, 125, "it is linked statically" },
	{ make_go, 0, "a Go program makes system calls by itself" },
};

static void test_kinds_of_programs(void **state)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++) {
		write_copy(kinds[i].change, 0755);
		assert_int_equal(run("run", "--", copy), kinds[i].status);
		assert_says(err, kinds[i].says);
	}
	/* It could not start: but what it was said of it comes before. */
	write_copy(make_uring, 0755);
	run("run", "--", copy);
	assert_says(err, "what it asks of io_uring goes to the kernel");
}

static void test_scripts(void **state)
{
	char text[128];

	write_copy(make_static, 0755);
	snprintf(text, sizeof(text), "#! %s -x\n", copy);
	write_bytes(script, text, strlen(text), 0755);
	assert_int_equal(run("run", "--", script), 125);
	assert_says(err, "it is linked statically");
	snprintf(text, sizeof(text), "#!/usr/bin/env %s\n", copy);
	write_bytes(script, text, strlen(text), 0755);
	assert_int_equal(run("run", "--", script), 125);
	write_bytes(script, "#!/bin/sh\nexit 9\n", 17, 0755);
	assert_int_equal(run("run", "--", script), 9);
	/* Itself, and so on. */
	snprintf(text, sizeof(text), "#!%s\n", script);
	write_bytes(script, text, strlen(text), 0755);
	assert_int_equal(run("run", "--", script), 126);
}

static void test_privileged(void **state)
{
	if (geteuid() != 0)
		skip();
	write_copy(NULL, 04755);
	/* root's program, started by root, gains nothing. */
	assert_int_equal(run("run", "--", copy), 0);
	assert_int_equal(chown(copy, 65534, 0), 0);
	assert_int_equal(chmod(copy, 04755), 0);
	assert_int_equal(run("run", "--", copy), 125);
	assert_says(err, "it is set-user-ID");
	assert_int_equal(chown(copy, 0, 65534), 0);
	assert_int_equal(chmod(copy, 02755), 0);
	assert_int_equal(run("run", "--", copy), 125);
	assert_says(err, "it is set-group-ID");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_starts_it), cmocka_unit_test(test_keeps_what_is_preloaded),
		cmocka_unit_test(test_not_found), cmocka_unit_test(test_kinds_of_programs),
		cmocka_unit_test(test_scripts),   cmocka_unit_test(test_privileged),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
