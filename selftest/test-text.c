/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-text: what D-Bus and JSON take of names that others have made up
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/text.h"
#include "agent/util.h"

static void test_kept(void **state)
{
	static const char *const texts[] = { "",
					     "/mnt/db",
					     "\x7f",
					     "\xc2\x80",
					     "\xdf\xbf",
					     "\xe0\xa0\x80",
					     "\xed\x9f\xbf",
					     "\xee\x80\x80",
					     "\xef\xbf\xbf",
					     "\xf0\x90\x80\x80",
					     "\xf4\x8f\xbf\xbf",
					     "/home/\xc3\xa9l\xc3\xa9" };
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		snprintf(text, sizeof(text), "%s", texts[i]);
		assert_string_equal(text_make_utf8(text), texts[i]);
	}
}

static void test_mended(void **state)
{
	static const struct {
		const char *text, *wanted;
	} rows[] = {
		{ "/mnt/\xff", "/mnt/?" },
		{ "a\x80z", "a?z" },
		{ "cut \xc3", "cut ?" },
		{ "cut \xe2\x82", "cut ??" },
		{ "\xf0\x9f\x98", "???" },
		{ "\xc3\xa9\xc3", "\xc3\xa9?" },
		{ "\xc0\xaf", "??" },
		{ "\xe0\x9f\xbf", "???" },
		{ "\xed\xa0\x80", "???" },
		{ "\xf0\x8f\xbf\xbf", "????" },
		{ "\xf4\x90\x80\x80", "????" },
		{ "\xf5\x80", "??" },
		{ "\xe2\xc3\xa9", "?\xc3\xa9" },
	};
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		snprintf(text, sizeof(text), "%s", rows[i].text);
		assert_string_equal(text_make_utf8(text), rows[i].wanted);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_mended),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
