/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-doctor: the verb doctor: the layers as a tree, what is wrong with them, and the commands that mend it
 */
#include <json-c/json.h>
#include <libsmartcols/libsmartcols.h>
#include <string.h>

#include "answer.h"
#include "bus.h"
#include "conf.h"
#include "ctl.h"
#include "doctor.h"

/* ---- the agent's part of the facts ---- */

/* Whether the agent answers; then what it says of the trace instance and of its state is in `f`. */
static bool ask_agent(struct ctl *c, struct doctor_facts *f)
{
	_cleanup_free_ char *basis = NULL, *problem = NULL;

	if (sd_bus_open_system(&c->bus) < 0 ||
	    sd_bus_get_property_string(c->bus, BUS_NAME, BUS_PATH, BUS_INTERFACE_MANAGER, "Basis", NULL, &basis) < 0)
		return false;
	f->witness = strcmp(basis, "own-flush") != 0;
	problem = ctl_get_problem(c, "StateProblem");
	if (problem)
		snprintf(f->state_problem, sizeof(f->state_problem), "%s", problem);
	return true;
}

static void add_opinion(struct doctor_facts *f, const struct ctl_region *region)
{
	static const char file[] = "file:";
	struct region **place = &f->regions.regions[f->regions.n_regions];

	if (f->n_opinions == SCAN_MAX_REGIONS)
		return;
	f->opinions[f->n_opinions++] = (struct doctor_opinion){
		.name = region->name,
		.method = region->method,
		.state = region->state,
		.attestation = region->attestation,
		.loss = region->loss,
	};
	/* Nothing but the agent's configuration tells of an emulated one. */
	if (region->identity && strncmp(region->identity, file, strlen(file)) == 0 &&
	    f->regions.n_regions < SCAN_MAX_REGIONS &&
	    scan_emulated(region->name, region->identity + strlen(file), place) == 0)
		f->regions.n_regions++;
}

/* ---- printing ---- */

static void unref_tablep(struct libscols_table **t)
{
	scols_unref_table(*t);
}

static const char *name_of(const struct doctor_layer *l)
{
	return l->name[0] ? l->name : "-";
}

/* "unattested, xen": what was found of the layer. */
static char *list_findings(const struct doctor_report *r, int layer)
{
	char *text = NULL;

	for (unsigned int i = 0; i < r->n_findings; i++) {
		char *more;

		if (r->findings[i].layer != layer)
			continue;
		more = ctl_format("%s%s%s", text ?: "", text ? ", " : "", doctor_id_to_string(r->findings[i].id));
		free(text);
		text = more;
	}
	return text;
}

static int add_line(struct libscols_table *t, struct libscols_line **lines, const struct doctor_facts *f,
		    const struct doctor_report *r, unsigned int i)
{
	const struct doctor_layer *l = &f->layers[i];
	char *name = ctl_format("%s %s", doctor_layer_type_to_string(l->type), name_of(l));

	lines[i] = scols_table_new_line(t, l->parent >= 0 ? lines[l->parent] : NULL);
	if (!lines[i]) {
		free(name);
		return -ENOMEM;
	}
	if (scols_line_refer_data(lines[i], 0, name) != 0 || scols_line_set_data(lines[i], 1, l->detail) != 0)
		return -ENOMEM;
	return scols_line_refer_data(lines[i], 2, list_findings(r, (int)i));
}

static int print_tree(const struct doctor_facts *f, const struct doctor_report *r)
{
	_cleanup_(unref_tablep) struct libscols_table *t = scols_new_table();
	struct libscols_line *lines[DOCTOR_MAX_LAYERS];
	int e = 0;

	if (f->n_layers == 0)
		return 0;
	if (!t || !scols_table_new_column(t, "LAYER", 0, SCOLS_FL_TREE) || !scols_table_new_column(t, "WHAT", 0, 0) ||
	    !scols_table_new_column(t, "FOUND", 0, 0))
		return -ENOMEM;
	scols_table_set_termforce(t, SCOLS_TERMFORCE_NEVER);
	for (unsigned int i = 0; e == 0 && i < f->n_layers; i++)
		e = add_line(t, lines, f, r, i);
	return e != 0 ? e : scols_print_table(t);
}

/* Names come from elsewhere; none of them shall speak to a terminal. */
static void print_harmless(const char *text)
{
	for (; *text; text++) {
		/* U+0080 to U+009F are for the terminal, too. */
		bool c1 = (unsigned char)text[0] == 0xc2 && ((unsigned char)text[1] & 0xe0) == 0x80;

		text += c1;
		putchar(c1 || (unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
	}
}

static void print_finding(const struct doctor_facts *f, const struct doctor_finding *n)
{
	printf("%s: %s: ", doctor_severity_to_string(doctor_id_severity(n->id)), doctor_id_to_string(n->id));
	if (n->layer >= 0 && f->layers[n->layer].type != DOCTOR_LAYER_HOST) {
		print_harmless(name_of(&f->layers[n->layer]));
		fputs(": ", stdout);
	}
	print_harmless(n->text);
	putchar('\n');
	if (!n->mend[0])
		return;
	fputs("    ", stdout);
	print_harmless(n->mend);
	putchar('\n');
}

static void print_findings(const struct doctor_facts *f, const struct doctor_report *r)
{
	for (enum doctor_severity s = DOCTOR_ERROR; s > DOCTOR_OK; s--) {
		for (unsigned int i = 0; i < r->n_findings; i++) {
			if (doctor_id_severity(r->findings[i].id) == s)
				print_finding(f, &r->findings[i]);
		}
	}
	if (r->n_findings == 0)
		printf("Nothing was found.\n");
}

static void add_string(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text && text[0] ? json_object_new_string(text) : NULL);
}

static struct json_object *json_layer(const struct doctor_layer *l)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "parent", l->parent >= 0 ? json_object_new_int(l->parent) : NULL);
	add_string(o, "type", doctor_layer_type_to_string(l->type));
	add_string(o, "name", l->name);
	add_string(o, "detail", l->detail);
	return o;
}

static struct json_object *json_finding(const struct doctor_finding *n)
{
	struct json_object *o = json_object_new_object();

	add_string(o, "id", doctor_id_to_string(n->id));
	add_string(o, "severity", doctor_severity_to_string(doctor_id_severity(n->id)));
	json_object_object_add(o, "layer", n->layer >= 0 ? json_object_new_int(n->layer) : NULL);
	add_string(o, "text", n->text);
	add_string(o, "mend", n->mend);
	return o;
}

static void print_json(const struct doctor_facts *f, const struct doctor_report *r)
{
	struct json_object *o = json_object_new_object(), *layers = json_object_new_array(),
			   *findings = json_object_new_array();

	for (unsigned int i = 0; i < f->n_layers; i++)
		json_object_array_add(layers, json_layer(&f->layers[i]));
	for (unsigned int i = 0; i < r->n_findings; i++)
		json_object_array_add(findings, json_finding(&r->findings[i]));
	add_string(o, "worst", doctor_severity_to_string(r->worst));
	json_object_object_add(o, "layers", layers);
	json_object_object_add(o, "findings", findings);
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
						   JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

/* ---- the verb ---- */

static int report(const struct ctl *c, const struct doctor_facts *f)
{
	static const int statuses[] = {
		[DOCTOR_OK] = 0,
		[DOCTOR_NOTE] = 0,
		[DOCTOR_WARNING] = CTL_EXIT_WARNING,
		[DOCTOR_ERROR] = CTL_EXIT_ERROR,
	};
	_cleanup_free_ struct doctor_report *r = malloc(sizeof(*r));

	if (!r)
		return CTL_EXIT_FAILURE;
	doctor_examine(f, r);
	if (c->json) {
		print_json(f, r);
	} else if (!c->quiet) {
		if (print_tree(f, r) != 0)
			return CTL_EXIT_FAILURE;
		if (f->n_layers > 0)
			putchar('\n');
		print_findings(f, r);
	}
	return statuses[r->worst];
}

static int collect_failed(const char *path, int r, const char *detail)
{
	enum pmem_agent_answer answer = r == -ENOENT || r == -ENOTDIR ? PMEM_AGENT_NOT_FOUND
					: r == -EACCES || r == -EPERM ? PMEM_AGENT_DENIED
								      : PMEM_AGENT_UNKNOWN;

	ctl_error(path, "%s", r < 0 ? strerrordesc_np(-r) : detail);
	if (r < 0 && answer == PMEM_AGENT_UNKNOWN)
		return CTL_EXIT_FAILURE;
	return answer_get(r < 0 ? answer : (enum pmem_agent_answer)r)->exit_status;
}

static int record(void)
{
	int r = doctor_record(stdout);

	if (r >= 0)
		return 0;
	ctl_error(NULL, "cannot record: %s",
		  r == -ENODEV ? "sysfs has no bus of libnvdimm; is the module libnvdimm there?" : strerrordesc_np(-r));
	return CTL_EXIT_FAILURE;
}

int ctl_doctor(struct ctl *c, char **arguments, unsigned int n)
{
	_cleanup_(ctl_regions_clear) struct ctl_regions list = { 0 };
	_cleanup_(doctor_facts_freep) struct doctor_facts *f = doctor_facts_new();
	_cleanup_(conf_freep) struct conf *conf = NULL;
	char detail[MOUNT_DETAIL_MAX] = "";
	int r;

	if (c->record)
		return n > 0 || c->json ? CTL_EXIT_USAGE : record();
	if (!f || conf_load(PMEM_AGENT_CONF, &conf) < 0)
		return CTL_EXIT_FAILURE;
	r = scan_regions(&f->regions);
	if (r < 0) {
		ctl_error(NULL, "cannot look at the regions: %s", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	doctor_collect_machine(f, conf->host_port);
	f->agent = ask_agent(c, f);
	if (f->agent) {
		r = ctl_get_regions(c, &list);
		if (r != 0)
			return r;
	}
	for (unsigned int i = 0; i < list.n_regions; i++)
		add_opinion(f, &list.regions[i]);
	r = doctor_collect(f, n > 0 ? arguments[0] : NULL, detail);
	if (r != 0)
		return collect_failed(arguments[0], r, detail);
	doctor_collect_mappers(f);
	return report(c, f);
}
