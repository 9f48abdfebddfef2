/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmemctl: runs pmemctl on the private bus of a session, and keeps what it prints
 */
#pragma once

#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/ctl.h"
#include "selftest/session.h"

__attribute__((unused)) static struct session session;
static bool as_nobody;
static char out[65536], err[4096];

static inline void read_back(FILE *f, char *text, size_t size)
{
	size_t n;

	rewind(f);
	n = fread(text, 1, size - 1, f);
	text[n] = '\0';
	fclose(f);
}

static inline pid_t start(FILE *to, FILE *errors, const char *const *arguments)
{
	char *argv[16] = { (char *)"pmemctl" };
	int argc = 1;
	pid_t pid;

	while (arguments[argc - 1]) {
		argv[argc] = (char *)arguments[argc - 1];
		argc++;
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		if (as_nobody && (setgid(65534) < 0 || setuid(65534) < 0))
			_exit(127);
		dup2(fileno(to), STDOUT_FILENO);
		dup2(fileno(errors), STDERR_FILENO);
		exit(ctl_main(argc, argv));
	}
	return pid;
}

/* The exit status; what it printed is in `out` and `err`. */
static inline int run_arguments(const char *const *arguments)
{
	FILE *to = tmpfile(), *errors = tmpfile();
	int status;

	assert_non_null(to);
	assert_non_null(errors);
	waitpid(start(to, errors, arguments), &status, 0);
	read_back(to, out, sizeof(out));
	read_back(errors, err, sizeof(err));
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#define run(...) run_arguments((const char *const[]){ __VA_ARGS__, NULL })

static inline void assert_says(const char *text, const char *words)
{
	if (!strstr(text, words))
		print_error("\"%s\" does not say \"%s\"\n", text, words);
	assert_non_null(strstr(text, words));
}

static inline struct json_object *parse(const char *name, unsigned int n)
{
	struct json_object *whole = json_tokener_parse(out), *array;

	assert_non_null(whole);
	assert_true(json_object_object_get_ex(whole, name, &array));
	assert_int_equal(json_object_array_length(array), n);
	return whole;
}

static inline const char *get(struct json_object *whole, const char *name, unsigned int i, const char *key)
{
	struct json_object *array, *value;

	json_object_object_get_ex(whole, name, &array);
	assert_true(json_object_object_get_ex(json_object_array_get_idx(array, i), key, &value));
	return value ? json_object_get_string(value) : "null";
}

static inline void wait_until_state(const char *state)
{
	do
		run("status", "--json");
	while (!strstr(out, state));
}
