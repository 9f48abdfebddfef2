/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "bus.h"
#include "closer.h"
#include "conf.h"
#include "host.h"
#include "hotplug.h"
#include "lib/wire.h"
#include "log.h"
#include "manager.h"
#include "sock.h"
#include "state.h"

#define MAX_DESCRIPTORS    32768
#define LOCK_PATIENCE_MSEC 1000

struct agent {
	sd_event *event;
	struct manager *manager;
	struct bus *bus;
	struct host *host;
	struct hotplug *hotplug;
	struct sock *sock;
	bool stopping;
	unsigned int n_stopping; /* what the end waits for */
	bool clean;              /* as the manager stopped */
};

static const char *conf_path = PMEM_AGENT_CONF;
static const char *runtime_dir = PMEM_AGENT_RUNTIME_DIR;
static const char *state_dir = STATE_DIR;

static void usage(void)
{
	printf("pmem-agent [--config FILE] [--runtime-dir DIR] [--state-dir DIR]\n\n"
	       "Flushes asynchronous persistent-memory regions for the programs of this guest.\n\n"
	       "  --config FILE      read FILE instead of %s\n"
	       "  --runtime-dir DIR  keep the regions' pages in DIR instead of %s\n"
	       "  --state-dir DIR    record losses in DIR instead of %s\n"
	       "  --version          print the version\n"
	       "  --help             print this\n\n"
	       "See pmem-agent(8).\n",
	       PMEM_AGENT_CONF, PMEM_AGENT_RUNTIME_DIR, STATE_DIR);
}

/* 1 to go on, 0 to end well, or a negative errno. */
static int parse_arguments(int argc, char **argv)
{
	static const struct option options[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "runtime-dir", required_argument, NULL, 'r' },
		{ "state-dir", required_argument, NULL, 's' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{},
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:r:s:Vh", options, NULL)) >= 0)
		switch (c) {
		case 'c':
			conf_path = optarg;
			break;
		case 'r':
			runtime_dir = optarg;
			break;
		case 's':
			state_dir = optarg;
			break;
		case 'V':
			puts("pmem-agent " PMEM_AGENT_VERSION);
			return 0;
		case 'h':
			usage();
			return 0;
		default:
			return -EINVAL;
		}
	if (optind < argc) {
		fprintf(stderr, "pmem-agent: unexpected argument '%s'\n", argv[optind]);
		return -EINVAL;
	}
	return 1;
}

/* ---- stopping ---- */

/* Each of the two parts comes here; after the last one may be told whether all was well until then. */
static void part_stopped(struct agent *a)
{
	struct flush_status status;

	if (--a->n_stopping > 0)
		return;
	for (struct manager_region *mr = NULL; (mr = manager_next_region(a->manager, mr));) {
		manager_region_get_status(mr, &status);
		if (status.loss.number > 0)
			a->clean = false;
	}
	host_shutdown(a->host, a->clean);
	log_daemon(a->clean ? LOG_INFO : LOG_WARNING, LOG_EVENT_STOPPED, "stopping: %s",
		   a->clean ? "every region that the agent flushes has been flushed once more"
			    : "not every region could be flushed once more");
	sd_event_exit(a->event, 0);
}

static void on_sock_stopped(void *userdata)
{
	part_stopped(userdata);
}

static void on_manager_stopped(bool clean, void *userdata)
{
	struct agent *a = userdata;

	a->clean = clean;
	part_stopped(a);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata)
{
	struct agent *a = userdata;

	if (a->stopping)
		return 0;
	a->stopping = true;
	sd_notify(false, "STOPPING=1");
	a->n_stopping = 2;
	/* What is in its queue first, so that it shares the last rounds. */
	sock_stop(a->sock, on_sock_stopped, a);
	manager_stop(a->manager, on_manager_stopped, a);
	return 0;
}

/* ---- starting ---- */

static void report_problems(const struct conf *conf)
{
	for (unsigned int i = 0; i < conf->n_problems; i++)
		log_daemon(LOG_WARNING, LOG_EVENT_CONFIG, "%s:%u: %s", conf->path, conf->problems[i].line,
			   conf->problems[i].text);
}

static int set_up_event(struct agent *a)
{
	static const int signals[] = { SIGTERM, SIGINT };
	int r = sd_event_default(&a->event);

	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, signals[i]);
		if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
			return -errno;
		r = sd_event_add_signal(a->event, NULL, signals[i], on_signal, a);
		if (r < 0)
			return r;
	}
	r = sd_event_set_watchdog(a->event, true);
	return r < 0 ? r : 0;
}

/* A child of an agent that has just been killed may have the lock for a moment. */
static int lock_patiently(int fd)
{
	for (unsigned int msec = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; msec++)
		if (errno != EWOULDBLOCK || msec >= LOCK_PATIENCE_MSEC)
			return -errno;
		else
			poll(NULL, 0, 1);
	return 0;
}

/*
 * One agent at a time has the pages. The name on the bus comes too late for that. Held until the end of this process.
 */
static int lock_runtime_dir(void)
{
	int fd, r;

	if (mkdir(runtime_dir, 0755) < 0 && errno != EEXIST)
		return -errno;
	fd = open(runtime_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = lock_patiently(fd);
	if (r < 0) {
		if (r == -EWOULDBLOCK)
			log_daemon(LOG_ERR, LOG_EVENT_NONE, "another pmem-agent is running, with its pages in %s",
				   runtime_dir);
		safe_close(fd);
		return r;
	}
	return 0;
}

/* Each connection and each request that waits holds a descriptor. The service has its LimitNOFILE=. */
static void allow_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= MAX_DESCRIPTORS)
		return;
	limit.rlim_cur = limit.rlim_max < MAX_DESCRIPTORS ? limit.rlim_max : MAX_DESCRIPTORS;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int start(struct agent *a)
{
	struct conf *conf;
	int r = conf_load(conf_path, &conf);

	allow_descriptors();
	if (r < 0) {
		log_daemon(LOG_ERR, LOG_EVENT_CONFIG, "%s cannot be read: %s", conf_path, strerrordesc_np(-r));
		return r;
	}
	report_problems(conf);
	r = lock_runtime_dir();
	if (r >= 0)
		r = set_up_event(a);
	if (r < 0) {
		conf_free(conf);
		return r;
	}
	r = closer_start(a->event);
	if (r < 0) {
		conf_free(conf);
		return r;
	}
	r = manager_new(a->event, conf, runtime_dir, state_dir, &a->manager);
	if (r < 0)
		return r;
	r = host_new(a->manager, &a->host);
	if (r < 0)
		return r;
	r = hotplug_new(a->manager, a->host, &a->hotplug);
	if (r < 0)
		return r;
	r = sock_new(a->manager, runtime_dir, &a->sock);
	if (r < 0)
		return r;
	r = bus_new(a->manager, &a->bus);
	if (r < 0)
		return r;
	manager_watch(a->manager);
	return 0;
}

static void report_start(struct agent *a)
{
	struct manager_region *mr = NULL;

	while ((mr = manager_next_region(a->manager, mr)) && !manager_region_get(mr)->asynchronous)
		;
	if (!mr)
		log_daemon(LOG_NOTICE, LOG_EVENT_STARTED,
			   "no asynchronous region yet: nothing to do until one is plugged in or configured");
	sd_notify(false, "READY=1");
}

static void tear_down(struct agent *a)
{
	bus_free(a->bus);
	sock_free(a->sock);
	hotplug_free(a->hotplug);
	host_free(a->host);
	manager_free(a->manager);
	sd_event_unref(a->event);
}

int main(int argc, char **argv)
{
	struct agent agent = {};
	int r = parse_arguments(argc, argv);

	if (r <= 0)
		return r < 0 ? 2 : 0;

	/* Children are reaped by the kernel: that a worker has died shows on its socket. */
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	log_open();
	r = start(&agent);
	if (r >= 0) {
		report_start(&agent);
		r = sd_event_loop(agent.event);
	}
	if (r < 0)
		log_daemon(LOG_ERR, LOG_EVENT_STOPPED, "cannot go on: %s", strerrordesc_np(-r));
	tear_down(&agent);
	log_close();
	closer_stop();
	return r < 0 ? 1 : 0;
}
