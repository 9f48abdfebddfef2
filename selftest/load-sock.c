/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * load-sock: clients that flush files again and again, and tell what each was told
 *
 * usage: load-sock CLIENTS SCOPE FILE...
 *
 * The files are given to the clients in turn. SCOPE: region, file, file-data or filesystem. One line an answer is
 * printed as soon as it is there, with times of CLOCK_REALTIME in microseconds:
 *
 *   BEGUN ENDED durable EPOCH BEFORE     or     BEGUN ENDED ERRNO-NAME 0 0
 *
 * BEFORE: what was stored before that is durable, says the answer, which is when the agent began the flush.
 *
 * It ends in order on SIGTERM, when every client has its last answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "agent/util.h"
#include "lib/pmem-agent.h"

#define MAX_CLIENTS 512
/* Of a client that was refused, so that it doesn't fill the log; and so that refusing isn't all the agent gets to do.
 */
#define REST_MSEC 100

static enum pmem_agent_scope scope;
static volatile sig_atomic_t enough;

static int find_scope(const char *name)
{
	static const char *const names[PMEM_AGENT_N_SCOPES] = {
		[PMEM_AGENT_SCOPE_AUTO] = "auto",           [PMEM_AGENT_SCOPE_FILE] = "file",
		[PMEM_AGENT_SCOPE_FILE_DATA] = "file-data", [PMEM_AGENT_SCOPE_FILESYSTEM] = "filesystem",
		[PMEM_AGENT_SCOPE_REGION] = "region",
	};

	for (int i = 0; i < PMEM_AGENT_N_SCOPES; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return -1;
}

static void on_signal(int number)
{
	enough = 1;
}

static int flush(struct pmem_agent **agent, int fd, struct pmem_agent_result *result)
{
	int r = *agent ? 0 : pmem_agent_connect(NULL, agent);

	return r < 0 ? r : pmem_agent_flush(*agent, fd, scope, PMEM_AGENT_NO_TIMEOUT, result);
}

static void *client(void *userdata)
{
	const char *path = userdata;
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct pmem_agent *agent = NULL;

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	while (!enough) {
		struct pmem_agent_result result = { .n_regions = 0 };
		uint64_t begun = now_usec(CLOCK_REALTIME);
		int r = flush(&agent, fd, &result);

		printf("%" PRIu64 " %" PRIu64 " %s %" PRIu64 " %" PRIu64 "\n", begun, now_usec(CLOCK_REALTIME),
		       r < 0 ? strerrorname_np(-r) : "durable", r < 0 ? 0 : result.regions[0].epoch,
		       r < 0 ? 0 : result.durable_usec);
		if (r < 0)
			poll(NULL, 0, REST_MSEC);
	}
	pmem_agent_close(agent);
	return NULL;
}

int main(int argc, char **argv)
{
	int n = argc >= 4 ? atoi(argv[1]) : 0, found = argc >= 4 ? find_scope(argv[2]) : -1;
	pthread_t threads[MAX_CLIENTS];

	if (n < 1 || n > MAX_CLIENTS || found < 0) {
		fprintf(stderr, "usage: load-sock CLIENTS region|file|file-data|filesystem FILE...\n");
		return 2;
	}
	scope = (enum pmem_agent_scope)found;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGTERM, on_signal);
	for (int i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, client, argv[3 + i % (argc - 3)]) != 0)
			return 1;
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return fclose(stdout) == 0 ? 0 : 1;
}
