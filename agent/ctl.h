/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl: what the files of pmemctl share
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <systemd/sd-bus.h>

#include "util.h"

/* Exit statuses of pmemctl's own; those from 3 on are the agent's answers, see answer.c. */
#define CTL_EXIT_FAILURE 1
#define CTL_EXIT_USAGE   2

/* What the worst is that doctor has found; a contract, see pmemctl(1). */
#define CTL_EXIT_WARNING 20
#define CTL_EXIT_ERROR   21

#define CTL_MAX_BACKINGS 64

struct ctl {
	bool json, quiet, all, fallback, datasync, no_wait, openmetrics, record, retry;
	const char *scope, *loss, *output;
	const char *host, *qmp, *listen; /* sockets */
	const char *state;               /* the begin of paths */
	const char *backings[CTL_MAX_BACKINGS];
	unsigned int n_backings;
	uint64_t timeout_usec; /* 0: none */
	sd_bus *bus;
	struct ctl_host *link; /* with `host`, instead of the bus */
};

/* ---- the command line ---- */

struct ctl_verb {
	const char *name, *arguments, *help;
	unsigned int max_arguments;
	int (*run)(struct ctl *c, char **arguments, unsigned int n);         /* the exit status */
	int (*run_on_host)(struct ctl *c, char **arguments, unsigned int n); /* with --host; NULL: not there */
};
extern const struct ctl_verb ctl_verbs[];
extern const unsigned int ctl_n_verbs;

/* Long options; the test walks them against the manual page and the completion. */
extern const char *const ctl_options[];
extern const unsigned int ctl_n_options;

int ctl_main(int argc, char **argv);

/* One line on stderr: "pmemctl: SUBJECT: …", the subject left out if NULL. */
void ctl_error(const char *subject, const char *format, ...) _printf_(2, 3);

/* Connects to the system bus, unless it is, and complains if it can't. 0 or the exit status. */
int ctl_connect(struct ctl *c);

/* Says why a call failed, and what to do next; the exit status. `subject` may be NULL. */
int ctl_call_failed(const char *subject, const sd_bus_error *error);

/* Whether the error says that no agent is there: then it hasn't seen the call. */
bool ctl_agent_is_absent(const sd_bus_error *error);

/* The worse of two exit statuses: lost, then unknown, then timed out, then whichever came first. */
int ctl_worse(int a, int b);

/* ---- tables, as text and as JSON ---- */

enum ctl_column_type {
	CTL_STRING,
	CTL_NUMBER,
	CTL_BOOLEAN, /* "yes" or "no" */
	CTL_STRINGS, /* one a line */
	CTL_NUMBERS,
	CTL_DECIMAL, /* "1.500" */
	CTL_COUNTS,  /* "NAME NUMBER", one a line */
};

struct ctl_column {
	const char *name; /* heading; in lower case the key in JSON */
	enum ctl_column_type type;
	unsigned int views; /* in which texts it is; JSON has them all */
};

/* n_rows rows of n_columns cells each; a NULL cell is empty. 0 or a negative errno. */
int ctl_print_table(const struct ctl_column *columns, unsigned int n_columns, unsigned int view, char *const *cells,
		    unsigned int n_rows);

/* The same as JSON: an object with one array, `name`. */
void ctl_print_json(const char *name, const struct ctl_column *columns, unsigned int n_columns, char *const *cells,
		    unsigned int n_rows);

/* One row as one line of JSON. */
void ctl_print_json_line(const struct ctl_column *columns, unsigned int n_columns, char *const *cells);

/* asprintf() that gives NULL without memory. */
char *ctl_format(const char *format, ...) _printf_(1, 2);

/* "2026-11-20 14:00:01"; NULL for 0. */
char *ctl_format_time(uint64_t usec);

/* ---- what became of a flush ---- */

struct ctl_result {
	const char *name; /* as given */
	bool is_ticket;   /* the name is one */
	int exit_status;
	char *ticket; /* what was got with --no-wait */
	char *answer, *scope, *basis, *regions, *epochs, *durable_usec, *message;
};

void ctl_result_set_answer(struct ctl_result *r, const char *answer, int exit_status);

/* 0 or -ENOMEM. */
int ctl_result_add_epoch(struct ctl_result *r, const char *region, uint64_t epoch);
void ctl_result_print_durable(const struct ctl_result *r);

/* As JSON. 0 or the exit status. */
int ctl_print_results(const struct ctl_result *const *results, unsigned int n);
void ctl_result_clear(struct ctl_result *r);

/* ---- regions, as D-Bus tells them ---- */

struct ctl_region {
	char *path, *name, *bus, *provider, *kind, *method, *identity, *state, *loss_origin, *attestation;
	char *evidence, *namespaces, *modes, *devices; /* one a line */
	int asynchronous, loss_earlier_boot;
	uint64_t resource, size, epoch, durable_usec, flushing_since_usec, loss, loss_usec, loss_round, loss_epoch,
	    acknowledged;
	uint32_t waiting;
	int32_t loss_errno;
};

struct ctl_regions {
	struct ctl_region *regions;
	unsigned int n_regions;
};

/* Every region, by name. 0 or the exit status, having said why. */
int ctl_get_regions(struct ctl *c, struct ctl_regions *ret);
void ctl_regions_clear(struct ctl_regions *list);
const struct ctl_region *ctl_regions_find(const struct ctl_regions *list, const char *name);

/* What the agent says is wrong with it, "StateProblem" or "ScanProblem": a sentence; NULL: nothing, or it doesn't say.
 * Free it.
 */
char *ctl_get_problem(struct ctl *c, const char *property);

/* Reads a{sv}. Properties that aren't there stay as they are. 0 or a negative errno. */
int ctl_region_read(struct ctl_region *region, sd_bus_message *m);
void ctl_region_clear(struct ctl_region *region);

/* What the state of a region means, for people: "in flight for 12 s: the host has not answered". NULL: no memory. */
char *ctl_region_describe(const struct ctl_region *region);

/* ---- verbs ---- */

int ctl_list(struct ctl *c, char **arguments, unsigned int n);
int ctl_status(struct ctl *c, char **arguments, unsigned int n);
int ctl_flush(struct ctl *c, char **arguments, unsigned int n);
int ctl_wait(struct ctl *c, char **arguments, unsigned int n);
int ctl_stats(struct ctl *c, char **arguments, unsigned int n);
int ctl_watch(struct ctl *c, char **arguments, unsigned int n);
int ctl_run(struct ctl *c, char **arguments, unsigned int n);
int ctl_acknowledge(struct ctl *c, char **arguments, unsigned int n);
int ctl_doctor(struct ctl *c, char **arguments, unsigned int n);
