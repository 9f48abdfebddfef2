/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * conf: pmem-agent.conf
 */
#include <ctype.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "conf.h"

#define TIME_MIN        (100 * USEC_PER_MSEC)
#define TIME_MAX        (3600 * USEC_PER_SEC)
#define QUEUE_DEPTH_MAX 16384
#define PATH_SIZE       256 /* of conf.host_port and conf_region.emulate */

static bool set_time(void *field, const char *value);
static bool set_depth(void *field, const char *value);
static bool set_path(void *field, const char *value);
static bool set_confirm(void *field, const char *value);

#define EXPECTS_TIME    "a time from 100ms to 1h, such as 5, 500ms or 1min"
#define EXPECTS_PATH    "an absolute path"
#define EXPECTS_CONFIRM "no or host"

const struct conf_key conf_keys[] = {
	{ "Agent", "StallSec", "5", EXPECTS_TIME, set_time, offsetof(struct conf, stall_usec) },
	{ "Agent", "StopFlushSec", "10", EXPECTS_TIME, set_time, offsetof(struct conf, stop_usec) },
	{ "Agent", "QueueDepth", "1024", "a number from 1 to 16384", set_depth, offsetof(struct conf, queue_depth) },
	{ "Agent", "HostPort", "/dev/virtio-ports/io.pmem.agent.0", EXPECTS_PATH, set_path,
	  offsetof(struct conf, host_port) },
	{ "Agent", "Confirm", "no", EXPECTS_CONFIRM, set_confirm, offsetof(struct conf, confirm) },
	{ "Region", "Emulate", "", EXPECTS_PATH, set_path, offsetof(struct conf_region, emulate) },
	{ "Region", "Confirm", "", EXPECTS_CONFIRM, set_confirm, offsetof(struct conf_region, confirm) },
};
const unsigned int conf_n_keys = ARRAY_SIZE(conf_keys);

enum section {
	SECTION_NONE,
	SECTION_IGNORED, /* has been named as a problem, so its keys aren't */
	SECTION_AGENT,
	SECTION_REGION, /* the newest of conf->regions */
};

struct reader {
	FILE *file;
	struct conf *conf;
	unsigned int line;
	enum section section;
	unsigned int seen[ARRAY_SIZE(conf_keys)]; /* line of a key in this [Region], or in any [Agent] */
	int error;
};

/* The first digits of `value`; NULL if there are none or too many. */
static const char *parse_number(const char *value, uint64_t *ret)
{
	uint64_t n = 0;
	unsigned int digits;

	for (digits = 0; isdigit((unsigned char)value[digits]); digits++) {
		if (digits == 10)
			return NULL;
		n = n * 10 + (value[digits] - '0');
	}
	if (digits == 0)
		return NULL;
	*ret = n;
	return value + digits;
}

static bool set_time(void *field, const char *value)
{
	static const struct {
		const char *name;
		uint64_t usec;
	} units[] = {
		{ "", USEC_PER_SEC },    { "ms", USEC_PER_MSEC },      { "s", USEC_PER_SEC },
		{ "sec", USEC_PER_SEC }, { "min", 60 * USEC_PER_SEC }, { "h", 3600 * USEC_PER_SEC },
	};
	uint64_t n;

	value = parse_number(value, &n);
	if (!value)
		return false;
	while (*value == ' ')
		value++;
	for (unsigned int i = 0; i < ARRAY_SIZE(units); i++) {
		if (strcmp(value, units[i].name) != 0)
			continue;
		if (n * units[i].usec < TIME_MIN || n * units[i].usec > TIME_MAX)
			return false;
		*(uint64_t *)field = n * units[i].usec;
		return true;
	}
	return false;
}

static bool set_depth(void *field, const char *value)
{
	uint64_t n;

	value = parse_number(value, &n);
	if (!value || *value || n < 1 || n > QUEUE_DEPTH_MAX)
		return false;
	*(unsigned int *)field = n;
	return true;
}

static bool set_path(void *field, const char *value)
{
	char *path = field;

	if (value[0] != '/' || strlen(value) >= PATH_SIZE)
		return false;
	strcpy(path, value);
	return true;
}

static bool set_confirm(void *field, const char *value)
{
	enum conf_confirm *confirm = field;

	static const char *const values[] = {
		[CONF_CONFIRM_UNSET] = "", [CONF_CONFIRM_NO] = "no", [CONF_CONFIRM_HOST] = "host"
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(values); i++) {
		if (strcmp(value, values[i]) == 0) {
			*confirm = i;
			return true;
		}
	}
	return false;
}

static void _printf_(3, 4) problem(struct reader *r, unsigned int line, const char *format, ...)
{
	struct conf *c = r->conf;
	struct conf_problem *p = &c->problems[c->n_problems];
	va_list args;
	int n;

	if (c->n_problems == CONF_MAX_PROBLEMS)
		return;
	p->line = line;
	if (c->n_problems == CONF_MAX_PROBLEMS - 1) {
		n = asprintf(&p->text, "too many problems; what else is wrong is not named");
	} else {
		va_start(args, format);
		n = vasprintf(&p->text, format, args);
		va_end(args);
	}
	if (n < 0) {
		p->text = NULL;
		r->error = -ENOMEM;
		return;
	}
	c->n_problems++;
}

static bool is_region_name(const char *name)
{
	size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");

	return n > 0 && n < REGION_NAME_MAX && !name[n];
}

/* Such names are libndctl's. */
static bool is_kernel_region_name(const char *name)
{
	return strncmp(name, "region", 6) == 0 && name[6] && !name[6 + strspn(name + 6, "0123456789")];
}

/* The region begun last is of no use without a file, unless it is one of the kernel's. */
static void end_region(struct reader *r)
{
	struct conf *c = r->conf;

	if (r->section == SECTION_REGION && !c->regions[c->n_regions - 1].emulate[0] &&
	    !is_kernel_region_name(c->regions[c->n_regions - 1].name)) {
		struct conf_region *region = &c->regions[--c->n_regions];

		problem(r, region->line, "[Region %s] has no valid Emulate=, so there is no such region", region->name);
	}
	r->section = SECTION_NONE;
}

static enum section begin_region(struct reader *r, const char *name)
{
	struct conf *c = r->conf;

	if (!is_region_name(name)) {
		problem(r, r->line, "'%s' can't be the name of a region: 1 to 63 of A-Z a-z 0-9 _ . -", name);
		return SECTION_IGNORED;
	}
	for (unsigned int i = 0; i < c->n_regions; i++) {
		if (strcmp(c->regions[i].name, name) != 0)
			continue;
		problem(r, r->line, "[Region %s] is there twice; the one of line %u stands", name, c->regions[i].line);
		return SECTION_IGNORED;
	}
	if (c->n_regions == CONF_MAX_REGIONS) {
		problem(r, r->line, "more than %d regions; [Region %s] is left out", CONF_MAX_REGIONS, name);
		return SECTION_IGNORED;
	}
	for (unsigned int i = 0; i < conf_n_keys; i++) {
		if (strcmp(conf_keys[i].section, "Region") == 0)
			r->seen[i] = 0;
	}
	strcpy(c->regions[c->n_regions].name, name);
	c->regions[c->n_regions].line = r->line;
	c->n_regions++;
	return SECTION_REGION;
}

/* "[Agent]" or "[Region NAME]"; inih would cut a longer name off and say nothing of an empty section. */
static void begin_section(struct reader *r, char *text)
{
	char *end = strchr(text, ']');

	end_region(r);
	r->section = SECTION_IGNORED;
	if (!end) {
		problem(r, r->line, "'%s' has no closing ']'", text);
		return;
	}
	*end = '\0';
	text++;
	if (strcmp(text, "Agent") == 0)
		r->section = SECTION_AGENT;
	else if (strncmp(text, "Region ", 7) == 0)
		r->section = begin_region(r, text + 7 + strspn(text + 7, " \t"));
	else
		problem(r, r->line, "unknown section [%s]; known: [Agent], [Region NAME]", text);
}

static void unknown_key(struct reader *r, const char *section, const char *key)
{
	char known[256] = "";
	size_t used = 0;

	for (unsigned int i = 0; i < conf_n_keys; i++) {
		if (strcmp(conf_keys[i].section, section) == 0 && used < sizeof(known))
			used +=
			    snprintf(known + used, sizeof(known) - used, "%s%s", used ? ", " : "", conf_keys[i].key);
	}
	problem(r, r->line, "unknown key '%s' in [%s]; known: %s", key, section, known);
}

/* Two regions on one file would not know of each other's losses. */
static const struct conf_region *find_same_file(const struct conf *c, const struct conf_region *region)
{
	for (unsigned int i = 0; i < c->n_regions; i++) {
		if (&c->regions[i] != region && strcmp(c->regions[i].emulate, region->emulate) == 0)
			return &c->regions[i];
	}
	return NULL;
}

static void set_key(struct reader *r, const char *key, const char *value)
{
	struct conf *c = r->conf;
	bool agent = r->section == SECTION_AGENT;
	const char *section = agent ? "Agent" : "Region";
	struct conf_region *region = agent ? NULL : &c->regions[c->n_regions - 1];
	char *base = agent ? (char *)c : (char *)region;
	const struct conf_region *same;

	for (unsigned int i = 0; i < conf_n_keys; i++) {
		const struct conf_key *k = &conf_keys[i];

		if (strcmp(k->section, section) != 0 || strcmp(k->key, key) != 0)
			continue;
		if (r->seen[i]) {
			problem(r, r->line, "%s= is there twice; the one of line %u stands", key, r->seen[i]);
			return;
		}
		r->seen[i] = r->line;
		if (!k->set(base + k->offset, value))
			problem(r, r->line, "%s=%s is not %s%s%s", key, value, k->expects,
				k->default_text[0] ? "; the default stands: " : "", k->default_text);
		if (region && region->emulate[0] && is_kernel_region_name(region->name)) {
			problem(r, r->line,
				"'%s' can't be the name of an emulated region: the kernel names its own like that",
				region->name);
			region->emulate[0] = '\0';
		}
		same = region ? find_same_file(c, region) : NULL;
		if (same && region->emulate[0]) {
			problem(r, r->line, "%s is [Region %s] already", region->emulate, same->name);
			region->emulate[0] = '\0';
		}
		return;
	}
	unknown_key(r, section, key);
}

static int handle(void *userdata, const char *section, const char *key, const char *value)
{
	struct reader *r = userdata;

	switch (r->section) {
	case SECTION_NONE:
		problem(r, r->line, "'%s' stands before any section; begin with [Agent]", key);
		break;
	case SECTION_IGNORED:
		break;
	case SECTION_AGENT:
	case SECTION_REGION:
		set_key(r, key, value);
		break;
	}
	return 1;
}

/* What is no key is handled here, and what inih would pass over in silence; it sees an empty line instead. */
static void filter_line(struct reader *r, char *line)
{
	char *text = line + strspn(line, " \t\r\n\v\f");
	size_t n = strlen(text);

	while (n > 0 && isspace((unsigned char)text[n - 1]))
		text[--n] = '\0';
	/* An indented line would go on with the value before it. */
	memmove(line, text, n + 1);
	if (n == 0 || strchr("#;", line[0]))
		line[0] = '\0';
	else if (line[0] == '[')
		begin_section(r, line);
	else if (line[0] == '=' || !strchr(line, '='))
		problem(r, r->line, "'%s' is neither [Section] nor Key=value", line);
	else
		return;
	line[0] = '\0';
}

static char *read_line(char *line, int size, void *stream)
{
	struct reader *r = stream;
	bool has_nul = false;
	int n = 0, c;

	while ((c = getc(r->file)) != EOF && c != '\n') {
		has_nul |= c == '\0';
		if (n < size - 1)
			line[n] = c;
		n += n < size;
	}
	if (c == EOF && ferror(r->file))
		r->error = -errno;
	if (c == EOF && n == 0)
		return NULL;
	r->line++;
	if (n >= size) {
		problem(r, r->line, "the line is longer than %d bytes", size - 1);
		n = 0;
	} else if (has_nul) {
		problem(r, r->line, "the line has a NUL byte");
		n = 0;
	}
	line[n] = '\0';
	filter_line(r, line);
	return line;
}

static void set_defaults(struct conf *c)
{
	for (unsigned int i = 0; i < conf_n_keys; i++) {
		if (strcmp(conf_keys[i].section, "Agent") == 0)
			conf_keys[i].set((char *)c + conf_keys[i].offset, conf_keys[i].default_text);
	}
}

static int load_file(struct conf *c)
{
	struct reader r = { .conf = c };

	r.file = fopen(c->path, "re");
	if (!r.file)
		return errno == ENOENT && strcmp(c->path, PMEM_AGENT_CONF) == 0 ? 0 : -errno;
	/* "Emulate=/srv/a ;b" is a path, as in systemd's files; inih would fall silent about "Emulate ;=". */
	ini_allow_inline_comments = false;
	ini_parse_stream(read_line, &r, handle, &r);
	end_region(&r);
	fclose(r.file);
	return r.error;
}

int conf_load(const char *path, struct conf **ret)
{
	_cleanup_(conf_freep) struct conf *c = NULL;
	int e;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	if (strlen(path) >= sizeof(c->path))
		return -ENAMETOOLONG;
	strcpy(c->path, path);
	set_defaults(c);
	e = load_file(c);
	if (e < 0)
		return e;
	*ret = c;
	c = NULL;
	return 0;
}

bool conf_wants_confirm(const struct conf *c, const char *region)
{
	enum conf_confirm confirm = c->confirm;

	for (unsigned int i = 0; i < c->n_regions; i++)
		if (strcmp(c->regions[i].name, region) == 0 && c->regions[i].confirm != CONF_CONFIRM_UNSET)
			confirm = c->regions[i].confirm;
	return confirm == CONF_CONFIRM_HOST;
}

struct conf *conf_free(struct conf *c)
{
	for (unsigned int i = 0; c && i < c->n_problems; i++)
		free(c->problems[i].text);
	free(c);
	return NULL;
}
