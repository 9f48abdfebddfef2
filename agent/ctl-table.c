/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-table: rows of cells as text and as JSON, by one table of columns
 */
#include <ctype.h>
#include <json-c/json.h>
#include <libsmartcols/libsmartcols.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ctl.h"

static void unref_tablep(struct libscols_table **t)
{
	scols_unref_table(*t);
}

static const int json_types[] = {
    [CTL_STRING] = SCOLS_JSON_STRING,        [CTL_NUMBER] = SCOLS_JSON_NUMBER,
    [CTL_BOOLEAN] = SCOLS_JSON_BOOLEAN,      [CTL_STRINGS] = SCOLS_JSON_ARRAY_STRING,
    [CTL_NUMBERS] = SCOLS_JSON_ARRAY_NUMBER,
};

static int add_column(struct libscols_table *t, const struct ctl_column *column)
{
	bool lines = column->type == CTL_STRINGS || column->type == CTL_NUMBERS;
	struct libscols_column *cl = scols_table_new_column(
	    t, column->name, 0, (lines ? SCOLS_FL_WRAP : 0) | (column->type == CTL_NUMBER ? SCOLS_FL_RIGHT : 0));

	if (!cl)
		return -ENOMEM;
	scols_column_set_json_type(cl, json_types[column->type]);
	return lines ? scols_column_set_wrapfunc(cl, scols_wrapnl_chunksize, scols_wrapnl_nextchunk, NULL) : 0;
}

int ctl_print_table(const char *name, const struct ctl_column *columns, unsigned int n_columns, unsigned int view,
		    bool json, char *const *cells, unsigned int n_rows)
{
	_cleanup_(unref_tablep) struct libscols_table *t = scols_new_table();
	int r = 0;

	if (!t)
		return -ENOMEM;
	scols_table_set_name(t, name);
	scols_table_enable_json(t, json);
	/* Lines are never cut to the width of a terminal. */
	scols_table_set_termforce(t, SCOLS_TERMFORCE_NEVER);
	for (unsigned int i = 0; r == 0 && i < n_columns; i++)
		if (json || columns[i].views & view)
			r = add_column(t, &columns[i]);
	for (unsigned int row = 0; r == 0 && row < n_rows; row++) {
		struct libscols_line *line = scols_table_new_line(t, NULL);
		size_t n = 0;

		if (!line)
			return -ENOMEM;
		for (unsigned int i = 0; r == 0 && i < n_columns; i++)
			if (json || columns[i].views & view)
				r = scols_line_set_data(line, n++, cells[row * n_columns + i]);
	}
	return r != 0 ? r : scols_print_table(t);
}

static struct json_object *json_cell(const struct ctl_column *column, const char *cell)
{
	if (!cell)
		return NULL;
	switch (column->type) {
	case CTL_NUMBER:
		return json_object_new_uint64(strtoull(cell, NULL, 10));
	case CTL_BOOLEAN:
		return json_object_new_boolean(strcmp(cell, "yes") == 0);
	case CTL_STRING:
	case CTL_STRINGS:
	case CTL_NUMBERS:
		break;
	}
	return json_object_new_string(cell);
}

int ctl_print_json_line(const struct ctl_column *columns, unsigned int n_columns, char *const *cells)
{
	struct json_object *o = json_object_new_object();
	int r = o ? 0 : -ENOMEM;

	for (unsigned int i = 0; r == 0 && i < n_columns; i++) {
		char key[32];
		unsigned int n = 0;

		for (const char *s = columns[i].name; *s && n < sizeof(key) - 1; s++)
			key[n++] = (char)tolower((unsigned char)*s);
		key[n] = '\0';
		r = json_object_object_add(o, key, json_cell(&columns[i], cells[i])) < 0 ? -ENOMEM : 0;
	}
	if (r == 0)
		puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
	return r;
}

char *ctl_format(const char *format, ...)
{
	va_list arguments;
	char *text;
	int n;

	va_start(arguments, format);
	n = vasprintf(&text, format, arguments);
	va_end(arguments);
	return n < 0 ? NULL : text;
}

char *ctl_format_time(uint64_t usec)
{
	time_t seconds = (time_t)(usec / USEC_PER_SEC);
	char text[32];
	struct tm tm;

	if (usec == 0 || !localtime_r(&seconds, &tm) || strftime(text, sizeof(text), "%F %T", &tm) == 0)
		return NULL;
	return strdup(text);
}
