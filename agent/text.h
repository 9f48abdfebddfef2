/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * text: names that others have made up, for doors that take UTF-8 only
 */
#pragma once

/*
 * Each byte that is of no whole character becomes '?', in place: of a name that isn't UTF-8, or that was cut. D-Bus
 * disconnects who sends such a byte, and a strict reader of JSON drops the line. Returns `text`.
 */
char *text_make_utf8(char *text);
