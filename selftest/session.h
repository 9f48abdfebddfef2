/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session: a private message bus and an agent on it with one emulated region, emu0, all of them children of the test
 */
#pragma once

#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "agent/bus.h"
#include "agent/closer.h"
#include "agent/manager.h"
#include "agent/util.h"
#include "agent/worker.h"
#include "lib/wire.h"

/* The bus has room for so many of one connection. */
#define SESSION_MAX_MATCHES "96"

struct session {
	char directory[64];
	char emulated[96]; /* the file that is emu0; "": there is no such region */
	pid_t bus, agent;
};

static inline int session_write(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	if (!f)
		return -errno;
	fputs(text, f);
	return fclose(f) == 0 ? 0 : -errno;
}

static inline int session_start_bus(struct session *s)
{
	char path[128], option[160], text[1024], address[256] = "";
	int pipes[2];
	ssize_t n;

	snprintf(path, sizeof(path), "%s/bus.conf", s->directory);
	snprintf(text, sizeof(text),
		 "<busconfig><type>system</type><listen>unix:path=%s/bus</listen><auth>EXTERNAL</auth>"
		 "<policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>"
		 "<allow send_type=\"signal\"/><allow send_type=\"method_return\"/><allow send_type=\"error\"/>"
		 "<allow receive_type=\"method_call\"/><allow receive_type=\"method_return\"/>"
		 "<allow receive_type=\"error\"/><allow receive_type=\"signal\"/></policy>"
		 "<limit name=\"max_match_rules_per_connection\">" SESSION_MAX_MATCHES "</limit></busconfig>",
		 s->directory);
	if (session_write(path, text) < 0 || pipe(pipes) < 0)
		return -errno;
	s->bus = fork();
	if (s->bus == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* It complains of limits that it can't have. */
		dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
		snprintf(option, sizeof(option), "--config-file=%s", path);
		snprintf(text, sizeof(text), "--print-address=%d", pipes[1]);
		execlp("dbus-daemon", "dbus-daemon", "--nofork", "--nopidfile", option, text, NULL);
		_exit(127);
	}
	close(pipes[1]);
	n = read(pipes[0], address, sizeof(address) - 1);
	close(pipes[0]);
	if (n <= 0)
		return -ENOENT;
	address[strcspn(address, "\n")] = '\0';
	setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1);
	return 0;
}

/* The agent without its other doors. */
static inline int session_run_agent(const char *conf_path, const char *runtime_dir, int ready)
{
	struct conf *conf;
	struct manager *m;
	struct bus *b;
	sd_event *event;

	signal(SIGCHLD, SIG_IGN);
	if (conf_load(conf_path, &conf) < 0 || sd_event_new(&event) < 0 || closer_start(event) < 0 ||
	    manager_new(event, conf, runtime_dir, runtime_dir, &m) < 0 || bus_new(m, &b) < 0 ||
	    write(ready, "R", 1) != 1)
		return 1;
	close(ready);
	return sd_event_loop(event) != 0;
}

/* `settings`: lines of its section [Agent]. */
static inline int session_start_agent(struct session *s, const char *settings)
{
	char conf[128], text[256], c;
	int pipes[2];
	ssize_t n;

	snprintf(conf, sizeof(conf), "%s/pmem-agent.conf", s->directory);
	snprintf(text, sizeof(text), "[Agent]\n%s%s%s\n", settings, s->emulated[0] ? "[Region emu0]\nEmulate=" : "",
		 s->emulated);
	if (session_write(conf, text) < 0 || pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	s->agent = fork();
	if (s->agent == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pipes[0]);
		_exit(session_run_agent(conf, s->directory, pipes[1]));
	}
	close(pipes[1]);
	n = read(pipes[0], &c, 1);
	close(pipes[0]);
	return n == 1 ? 0 : -ECHILD;
}

/* NULL, or what is missing here. */
static inline const char *session_start_with(struct session *s, const char *settings)
{
	int fd;

	*s = (struct session){ .directory = "/tmp/test-session-XXXXXX" };
	if (!mkdtemp(s->directory))
		return "a directory in /tmp";
	snprintf(s->emulated, sizeof(s->emulated), "%s/emulated", s->directory);
	fd = open(s->emulated, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
		return "a file in /tmp";
	close(fd);
	if (session_start_bus(s) < 0)
		return "dbus-daemon";
	return session_start_agent(s, settings) < 0 ? "an agent that starts" : NULL;
}

static inline const char *session_start(struct session *s)
{
	return session_start_with(s, "");
}

static inline void session_kill(pid_t *pid)
{
	if (*pid <= 0)
		return;
	kill(*pid, SIGKILL);
	waitpid(*pid, NULL, 0);
	*pid = 0;
}

static inline void session_stop(struct session *s)
{
	static const char *const names[] = { "bus.conf", "bus", "pmem-agent.conf", "emulated" };
	char path[160];
	glob_t pages = { 0 };

	session_kill(&s->agent);
	session_kill(&s->bus);
	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", s->directory, names[i]);
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/*.page", s->directory);
	glob(path, 0, NULL, &pages);
	snprintf(path, sizeof(path), "%s/*.loss", s->directory);
	glob(path, GLOB_APPEND, NULL, &pages);
	for (size_t i = 0; i < pages.gl_pathc; i++)
		unlink(pages.gl_pathv[i]);
	globfree(&pages);
	rmdir(s->directory);
}

/* The process that makes emu0's rounds; 0: none yet. */
static inline pid_t session_worker(const struct session *s)
{
	struct pmem_agent_page page = { 0 };
	char identity[sizeof(s->emulated) + sizeof("file:")], path[160];
	int fd;

	snprintf(identity, sizeof(identity), "file:%s", s->emulated);
	worker_page_path(s->directory, identity, path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, &page, sizeof(page)) != sizeof(page))
		page.worker.pid = 0;
	safe_close(fd);
	return (pid_t)page.worker.pid;
}
