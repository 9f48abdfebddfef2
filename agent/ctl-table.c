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

static int add_column(struct libscols_table *t, const struct ctl_column *column)
{
	bool lines = column->type == CTL_STRINGS || column->type == CTL_NUMBERS;
	struct libscols_column *cl = scols_table_new_column(
	    t, column->name, 0, (lines ? SCOLS_FL_WRAP : 0) | (column->type == CTL_NUMBER ? SCOLS_FL_RIGHT : 0));

	if (!cl)
		return -ENOMEM;
	if (!lines)
		return 0;
	/* Without this a newline is printed as \x0a. */
	scols_column_set_safechars(cl, "\n");
	return scols_column_set_wrapfunc(cl, scols_wrapnl_chunksize, scols_wrapnl_nextchunk, NULL);
}

int ctl_print_table(const struct ctl_column *columns, unsigned int n_columns, unsigned int view, char *const *cells,
		    unsigned int n_rows)
{
	_cleanup_(unref_tablep) struct libscols_table *t = scols_new_table();
	int r = 0;

	if (!t)
		return -ENOMEM;
	/* Lines are never cut to the width of a terminal. */
	scols_table_set_termforce(t, SCOLS_TERMFORCE_NEVER);
	for (unsigned int i = 0; r == 0 && i < n_columns; i++)
		if (columns[i].views & view)
			r = add_column(t, &columns[i]);
	for (unsigned int row = 0; r == 0 && row < n_rows; row++) {
		struct libscols_line *line = scols_table_new_line(t, NULL);
		size_t n = 0;

		if (!line)
			return -ENOMEM;
		for (unsigned int i = 0; r == 0 && i < n_columns; i++)
			if (columns[i].views & view)
				r = scols_line_set_data(line, n++, cells[row * n_columns + i]);
	}
	return r != 0 ? r : scols_print_table(t);
}

static struct json_object *json_scalar(enum ctl_column_type type, const char *text)
{
	if (type == CTL_NUMBER || type == CTL_NUMBERS)
		return json_object_new_uint64(strtoull(text, NULL, 10));
	if (type == CTL_DECIMAL)
		return json_object_new_double_s(0, text);
	if (type == CTL_BOOLEAN)
		return json_object_new_boolean(strcmp(text, "yes") == 0);
	return json_object_new_string(text);
}

static struct json_object *json_lines(enum ctl_column_type type, const char *cell)
{
	_cleanup_free_ char *copy = cell ? strdup(cell) : NULL;
	struct json_object *array = json_object_new_array();
	char *rest = copy, *line;

	while ((line = strsep(&rest, "\n")))
		json_object_array_add(array, json_scalar(type, line));
	return array;
}

static struct json_object *json_counts(const char *cell)
{
	_cleanup_free_ char *copy = cell ? strdup(cell) : NULL;
	struct json_object *o = json_object_new_object();
	char *rest = copy, *line;

	while ((line = strsep(&rest, "\n"))) {
		char *name = strsep(&line, " ");

		json_object_object_add(o, name, line ? json_scalar(CTL_NUMBER, line) : NULL);
	}
	return o;
}

static struct json_object *json_cell(enum ctl_column_type type, const char *cell)
{
	if (type == CTL_STRINGS || type == CTL_NUMBERS)
		return json_lines(type, cell);
	if (type == CTL_COUNTS)
		return json_counts(cell);
	return cell ? json_scalar(type, cell) : NULL;
}

static struct json_object *json_row(const struct ctl_column *columns, unsigned int n_columns, char *const *cells)
{
	struct json_object *o = json_object_new_object();

	for (unsigned int i = 0; i < n_columns; i++) {
		char key[32];
		size_t n;

		for (n = 0; columns[i].name[n] && n < sizeof(key) - 1; n++)
			key[n] = (char)tolower((unsigned char)columns[i].name[n]);
		key[n] = '\0';
		json_object_object_add(o, key, json_cell(columns[i].type, cells[i]));
	}
	return o;
}

static void json_print(struct json_object *o, int flags)
{
	puts(json_object_to_json_string_ext(o, flags | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

void ctl_print_json(const char *name, const struct ctl_column *columns, unsigned int n_columns, char *const *cells,
		    unsigned int n_rows)
{
	struct json_object *o = json_object_new_object(), *array = json_object_new_array();

	for (unsigned int i = 0; i < n_rows; i++)
		json_object_array_add(array, json_row(columns, n_columns, cells + i * n_columns));
	json_object_object_add(o, name, array);
	json_print(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED);
}

void ctl_print_json_line(const struct ctl_column *columns, unsigned int n_columns, char *const *cells)
{
	json_print(json_row(columns, n_columns, cells), JSON_C_TO_STRING_PLAIN);
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
