/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor-private: what doctor.c judges with
 */
#pragma once

#include "doctor.h"

struct examination {
	const struct doctor_facts *facts;
	struct doctor_report *report;
};

/* Of a layer's name; four bytes for one, and two quotation marks. */
struct finding_word {
	char text[4 * sizeof((struct doctor_layer){}.name) + 2];
};

/* NULL: this was found of the same thing before (a region may be below several layers), or there is no room. */
struct doctor_finding *finding_add(const struct examination *e, enum doctor_id id, int layer);

/* What is wrong; nothing is said of a finding that is NULL. */
void finding_say(struct doctor_finding *f, const char *format, ...) _printf_(2, 3);

/* What mends it: left out if it is too long, since a command that was cut off would be another one. */
void finding_mend(struct doctor_finding *f, const char *format, ...) _printf_(2, 3);

/* As a shell takes it for one word: mount points are named by root, but programs by anybody. */
struct finding_word finding_quote(const char *name);
