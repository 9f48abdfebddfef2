/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pmem2: stores by libpmem2, made durable by what the memory below really needs
 *
 * usage: pmem2 FILE TEXT       FILE is there already, or is a device-dax
 *
 * cc pmem2.c $(pkg-config --cflags --libs libpmem-agent-pmem2)
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <pmem-agent/pmem-agent-pmem2.h>

static const char *name_of(enum pmem2_granularity granularity)
{
	switch (granularity) {
	case PMEM2_GRANULARITY_BYTE:
		return "byte";
	case PMEM2_GRANULARITY_CACHE_LINE:
		return "cache line";
	case PMEM2_GRANULARITY_PAGE:
		break;
	}
	return "page";
}

static int map_file(int fd, struct pmem2_map **ret)
{
	struct pmem2_config *config;
	struct pmem2_source *source;
	int r = pmem2_config_new(&config);

	if (r < 0)
		return r;
	pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE);
	r = pmem2_source_from_fd(&source, fd);
	if (r >= 0) {
		r = pmem2_map_new(ret, config, source);
		pmem2_source_delete(&source);
	}
	pmem2_config_delete(&config);
	return r;
}

static int store(struct pmem_agent *agent, int fd, struct pmem2_map *map, const char *text)
{
	size_t size = strlen(text) + 1;
	struct pmem_agent_map *m;
	char *address = pmem2_map_get_address(map);
	int r = pmem_agent_map_new(agent, fd, map, 0, &m);

	printf("granularity by pmem2: %s\n", name_of(pmem2_map_get_store_granularity(map)));
	if (r < 0) {
		printf("can't be made durable: %s\n", strerror(-r));
		return r;
	}
	printf("granularity by the agent: %s\n", name_of(pmem_agent_map_get_store_granularity(m)));
	memcpy(address, text, size);
	r = pmem_agent_persist(m, address, size);
	printf(r == 0 ? "durable\n" : "no promise: %s\n", strerror(-r));
	pmem_agent_map_delete(m);
	return r;
}

int main(int argc, char **argv)
{
	struct pmem_agent *agent;
	struct pmem2_map *map;
	int fd, r;

	if (argc != 3) {
		fprintf(stderr, "usage: pmem2 FILE TEXT\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	if (map_file(fd, &map) < 0) {
		fprintf(stderr, "pmem2: %s\n", pmem2_errormsg());
		return 1;
	}
	r = pmem_agent_connect(NULL, &agent);
	if (r < 0) {
		fprintf(stderr, "no agent: %s\n", strerror(-r));
		return 1;
	}
	r = store(agent, fd, map, argv[2]);
	pmem_agent_close(agent);
	pmem2_map_delete(&map);
	close(fd);
	return r < 0;
}
