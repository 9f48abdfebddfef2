/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stddef.h>

#include "text.h"

/* The bytes of the character there; 0: it is none, or not a whole one (RFC 3629). */
static size_t character(const unsigned char *p)
{
	size_t size = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < size; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* What a shorter one stands for, a half of a UTF-16 pair, and what is beyond the last character. */
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) || (p[0] == 0xf0 && p[1] < 0x90) ||
	    (p[0] == 0xf4 && p[1] >= 0x90))
		return 0;
	return size;
}

char *text_make_utf8(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p;) {
		size_t size = character(p);

		if (size == 0)
			*p++ = '?';
		else
			p += size;
	}
	return text;
}
