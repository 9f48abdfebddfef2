/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guestend: the agent's side of the channel to the host as the test plays it, and whoever connects to it
 */
#pragma once

#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/ctl.h"
#include "agent/json-get.h"

#define ANSWER_MSEC 20000 /* nothing takes that long that works */

struct end {
	int fd;
	char text[1 << 20];
	size_t size;
};

static inline struct sockaddr_un end_address(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof(address.sun_path), "%.100s", path);
	return address;
}

static inline int end_listen(const char *path)
{
	struct sockaddr_un address = end_address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 1), 0);
	return fd;
}

static inline void end_accept(struct end *e, int listener)
{
	struct pollfd p = { .fd = listener, .events = POLLIN };

	assert_int_equal(poll(&p, 1, ANSWER_MSEC), 1);
	e->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	e->size = 0;
	assert_true(e->fd >= 0);
}

/* It may not listen yet. */
static inline void end_connect(struct end *e, const char *path)
{
	struct sockaddr_un address = end_address(path);

	e->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	e->size = 0;
	for (unsigned int i = 0; connect(e->fd, (struct sockaddr *)&address, sizeof(address)) < 0; i++) {
		assert_true(i < ANSWER_MSEC / 10);
		poll(NULL, 0, 10);
	}
}

static inline void end_close(struct end *e)
{
	close(e->fd);
	e->fd = -1;
}

static inline void end_write(struct end *e, const void *bytes, size_t size)
{
	assert_int_equal(send(e->fd, bytes, size, MSG_NOSIGNAL), size);
}

/* A line; ' stands for ". */
static inline void _printf_(2, 3) end_send(struct end *e, const char *format, ...)
{
	char text[8192];
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vsnprintf(text, sizeof(text) - 1, format, arguments);
	va_end(arguments);
	assert_true(n > 0 && n < (int)sizeof(text) - 1);
	for (int i = 0; i < n; i++)
		if (text[i] == '\'')
			text[i] = '"';
	text[n++] = '\n';
	end_write(e, text, (size_t)n);
}

/* The next object; NULL: none within that time, or no more will come. */
static inline struct json_object *end_read_for(struct end *e, int msec)
{
	for (;;) {
		struct pollfd p = { .fd = e->fd, .events = POLLIN };
		char *newline = memchr(e->text, '\n', e->size);
		ssize_t n;

		if (newline) {
			char *start = e->text + strspn(e->text, "\xff");
			struct json_object *o = NULL;

			*newline = '\0';
			if (start < newline) {
				o = json_tokener_parse(start);
				assert_non_null(o);
			}
			e->size -= (size_t)(newline + 1 - e->text);
			memmove(e->text, newline + 1, e->size);
			if (o)
				return o;
			continue;
		}
		assert_true(e->size < sizeof(e->text));
		if (poll(&p, 1, msec) <= 0)
			return NULL;
		n = recv(e->fd, e->text + e->size, sizeof(e->text) - e->size, 0);
		if (n <= 0)
			return NULL;
		e->size += (size_t)n;
	}
}

static inline struct json_object *end_read(struct end *e)
{
	struct json_object *o = end_read_for(e, ANSWER_MSEC);

	assert_non_null(o);
	return o;
}

/* The next command must be that one. */
static inline struct json_object *end_expect(struct end *e, const char *command)
{
	struct json_object *o = end_read(e);

	if (strcmp(json_get_string(o, "execute", ""), command) != 0)
		print_error("not %s but %s\n", command, json_object_to_json_string(o));
	assert_string_equal(json_get_string(o, "execute", ""), command);
	return o;
}

static inline const char *end_id(struct json_object *command)
{
	struct json_object *id = NULL;

	json_object_object_get_ex(command, "id", &id);
	return json_object_to_json_string(id);
}

static inline struct json_object *arguments_of(struct json_object *command)
{
	return json_get(command, "arguments", json_type_object);
}

/* After the first connection, or one that has the same instance as before: it is ended first, to be sure. */
static inline void end_new_instance(struct end *e, const char *instance)
{
	_cleanup_(json_unrefp) struct json_object *o = end_expect(e, "new-instance");

	end_send(e, "{'event':'NEW_INSTANCE','data':{'instance':'%s','sequence':1}}", instance);
	end_send(e, "{'return':{'instance':'%s'},'id':%s}", instance, end_id(o));
}

#define REGION                                                                                                         \
	"{'region':'region0','address':4096,'size':1048576,'kind':'virtio-pmem','asynchronous':true,'method':'host','" \
	"attestation':'attested',"                                                                                     \
	"'evidence':['one','two'],'state':'idle','epoch':7,'durable-usec':1700000000000000,'flushing-since-usec':0,"   \
	"'acknowledged':0,'loss':0}"
#define LOST_REGION                                                                                                    \
	"{'region':'region1','address':8192,'size':1048576,'kind':'virtio-pmem','asynchronous':true,'method':'block'," \
	"'evidence':[],'state':'lost','epoch':3,'durable-usec':1700000000000000,'flushing-since-usec':0,"              \
	"'acknowledged':0,'loss':1,'errno':5,'error':'EIO','origin':'agent','loss-usec':1700000000000000,"             \
	"'loss-epoch':3,'loss-round':4,'loss-earlier-boot':false}"
#define AGENT(instance, sequence)                                                                                      \
	"{'version':'test','protocol':2,'features':['serve-flush','serve-confirm'],'boot-id':'b','instance':"          \
	"'" instance "','basis':'watched','sequence':" sequence ",'missed':0,'regions':[" REGION "," LOST_REGION "]}"

/* pmemctl in a process of its own. */
static inline pid_t end_pmemctl(const char *const *arguments, FILE *to, FILE *errors)
{
	char *argv[24] = { (char *)"pmemctl" };
	int argc = 1;
	pid_t pid;

	while (arguments[argc - 1]) {
		argv[argc] = (char *)arguments[argc - 1];
		argc++;
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGPIPE, SIG_DFL);
		if (to)
			dup2(fileno(to), STDOUT_FILENO);
		if (errors)
			dup2(fileno(errors), STDERR_FILENO);
		unsetenv("NOTIFY_SOCKET");
		exit(ctl_main(argc, argv));
	}
	return pid;
}
