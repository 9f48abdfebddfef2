/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-wire: the bytes of the packets and of the region page, for machines of either byte order
 *
 * Both ends are on one machine, so numbers are in its own order; the bytes here are those of a little-endian one, and
 * on a big-endian one each number has them the other way round. Built and run for both: make check-cross.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/util.h"
#include "lib/wire.h"

/*
 * `fields`: the widths of the numbers from the beginning, in bytes; "c" and a number: so many characters. `bytes`: in
 * hexadecimal, blanks are for the reader. What follows in the structure is 0.
 */
static void assert_bytes(const void *data, size_t size, const char *fields, const char *bytes)
{
	const uint8_t *at = data, *end = at + size;

	while (*fields) {
		bool reversed = *fields != 'c' && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
		char *rest;
		int width = (int)strtol(fields + (*fields == 'c'), &rest, 10);

		assert_in_range(width, 1, end - at);
		fields = rest + (*rest == ' ');
		for (int i = 0; i < width; i++) {
			unsigned int byte;
			int used;

			assert_int_equal(sscanf(bytes, " %2x%n", &byte, &used), 1);
			bytes += used;
			assert_int_equal(at[reversed ? width - 1 - i : i], byte);
		}
		at += width;
	}
	assert_string_equal(bytes, "");
	while (at < end)
		assert_int_equal(*at++, 0);
}

static void test_request(void **state)
{
	const struct pmem_agent_request request = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_QUERY,
		.id = 0x1122334455667788,
		.scope = PMEM_AGENT_SCOPE_REGION,
		.flags = 0xa1a2a3a4,
		.timeout_usec = 1000000,
		.kept = 0xb1b2b3b4b5b6b7b8,
		.device = 0x0103000000000008,
		.inode = 0xc1c2c3c4c5c6c7c8,
	};

	assert_bytes(&request, sizeof(request), "4 4 8 4 4 8 8 8 8 8",
		     "01000000 03000000 8877665544332211 04000000 a4a3a2a1 40420f0000000000 b8b7b6b5b4b3b2b1"
		     "0800000000000301 c8c7c6c5c4c3c2c1 0000000000000000");
}

static void test_reply(void **state)
{
	struct pmem_agent_reply reply = {
		.version = PMEM_AGENT_WIRE_VERSION,
		.type = PMEM_AGENT_PACKET_FLUSH,
		.id = 0x1122334455667788,
		.answer = PMEM_AGENT_LOST,
		.error = 5,
		.scope = PMEM_AGENT_SCOPE_FILESYSTEM,
		.basis = PMEM_AGENT_BASIS_WATCHED,
		.durable_usec = 0xd1d2d3d4d5d6d7d8,
		.n_regions = 2,
		.method = PMEM_AGENT_METHOD_DEEP_FLUSH,
		.regions = { { .page = 0xe1e2e3e4e5e6e7e8, .epoch = 7 }, { .epoch = 8 } },
	};

	assert_bytes(&reply, offsetof(struct pmem_agent_reply, detail), "4 4 8 4 4 4 4 8 4 4 8 8 8 8",
		     "01000000 01000000 8877665544332211 01000000 05000000 03000000 02000000 d8d7d6d5d4d3d2d1"
		     "02000000 02000000 e8e7e6e5e4e3e2e1 0700000000000000 0000000000000000 0800000000000000");
	memcpy(reply.detail, "why", 4);
	assert_memory_equal((const char *)&reply + 304, "why", 4);
}

static struct pmem_agent_page page = {
	.magic = PMEM_AGENT_PAGE_MAGIC,
	.version = PMEM_AGENT_PAGE_VERSION,
	.boot_id = "boot id, 16 byte",
	.identity = "file:/x",
	.worker = { .pid = 0x01020304,
		    .start_time = 0x1112131415161718,
		    .started_usec = 0x2122232425262728,
		    .started = 3,
		    .done = 2,
		    .durable = 1,
		    .failed = 2,
		    .error = 5,
		    .peers = 1 },
	.agent = { .instance = "instance 16 byte",
		   .loss = 9,
		   .acknowledged = 8,
		   .loss_usec = 0x3132333435363738,
		   .loss_round = 4,
		   .failed_seen = 2,
		   .epoch = 1,
		   .loss_error = 28,
		   .loss_origin = 6,
		   .reading = 1,
		   .recalled = 1,
		   .loss_epoch = 10,
		   .loss_earlier = 1,
		   .handed = 0x4142434445464748,
		   .answered = 0x5152535455565758 },
};

static void test_page(void **state)
{
	assert_bytes(&page, 32, "8 4 4 c16", "504d454d50414731 01000000 00000000 626f6f742069642c2031362062797465");
	assert_bytes(page.identity, sizeof(page.identity), "c7", "66696c653a2f78");
	assert_bytes(&page.worker, sizeof(page.worker), "4 4 8 8 8 8 8 8 4 4",
		     "04030201 00000000 1817161514131211 2827262524232221 0300000000000000 0200000000000000"
		     "0100000000000000 0200000000000000 05000000 01000000");
	assert_bytes(&page.agent, sizeof(page.agent), "c16 8 8 8 8 8 8 4 4 4 4 8 4 4 8 8",
		     "696e7374616e63652031362062797465 0900000000000000 0800000000000000 3837363534333231"
		     "0400000000000000 0200000000000000 0100000000000000 1c000000 06000000 01000000 01000000"
		     "0a00000000000000 01000000 00000000 4847464544434241 5857565554535251");
}

/* Whoever looks at it from a machine of the other order is told nothing. */
static void test_page_of_the_other_order(void **state)
{
	struct pmem_agent_page p = page, other;

	p.agent.loss = p.agent.acknowledged = 0;
	p.agent.reading = 0;
	assert_int_equal(pmem_agent_page_lost(&p), 0);
	other = p;
	other.magic = __builtin_bswap64(p.magic);
	assert_int_equal(pmem_agent_page_lost(&other), PMEM_AGENT_UNKNOWN);
	other = p;
	other.version = __builtin_bswap32(p.version);
	assert_int_equal(pmem_agent_page_lost(&other), PMEM_AGENT_UNKNOWN);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_request),
		cmocka_unit_test(test_reply),
		cmocka_unit_test(test_page),
		cmocka_unit_test(test_page_of_the_other_order),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
