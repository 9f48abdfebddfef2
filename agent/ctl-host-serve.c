/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ctl-host-serve: the verb serve
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "ctl-host.h"
#include "log.h"
#include "serve.h"

static int parse_answer(const char *text, enum backing_answer *ret)
{
	if (strcmp(text, "on") == 0)
		*ret = BACKING_YES;
	else if (strcmp(text, "off") == 0)
		*ret = BACKING_NO;
	else
		return -EINVAL;
	return 0;
}

/* ADDRESS=FILE[,share=on|off][,pmem=on|off][,readonly=on|off], with two commas for one in the name as for QEMU. */
static int parse_backing(const char *text, struct backing_info *info)
{
	size_t n = 0;
	char *end;
	int r = 0;

	*info = (struct backing_info){ .name = "" };
	errno = 0;
	info->address = strtoull(text, &end, 0);
	if (errno != 0 || end == text || *end != '=' || end[1] == '\0')
		return -EINVAL;
	for (text = end + 1; *text && n < sizeof(info->path) - 1; text++) {
		if (*text == ',' && *++text != ',')
			break;
		info->path[n++] = *text;
	}
	while (r == 0 && *text) {
		char option[32];
		size_t length = strcspn(text, ",");

		snprintf(option, sizeof(option), "%.*s", (int)length, text);
		if (strncmp(option, "share=", 6) == 0)
			r = parse_answer(option + 6, &info->share);
		else if (strncmp(option, "pmem=", 5) == 0)
			r = parse_answer(option + 5, &info->pmem);
		else if (strncmp(option, "readonly=", 9) == 0)
			r = parse_answer(option + 9, &info->readonly);
		else
			r = -EINVAL;
		text += length + (text[length] == ',');
	}
	return info->path[0] ? r : -EINVAL;
}

static int add_backings(const struct ctl *c, struct serve *s)
{
	uint64_t addresses[CTL_MAX_BACKINGS];

	for (unsigned int i = 0; i < c->n_backings; i++) {
		struct backing_info info;
		int r = parse_backing(c->backings[i], &info);

		if (r == -EINVAL) {
			ctl_error(c->backings[i],
				  "--backing is ADDRESS=FILE[,share=on|off][,pmem=on|off][,readonly=on|off]");
			return CTL_EXIT_USAGE;
		}
		addresses[i] = info.address;
		for (unsigned int k = 0; k < i; k++) {
			if (addresses[k] == info.address) {
				ctl_error(c->backings[i], "there is another --backing at this address");
				return CTL_EXIT_USAGE;
			}
		}
		r = serve_backing_add(s, &info);
		if (r < 0) {
			ctl_error(c->backings[i], "%s", strerrordesc_np(-r));
			return CTL_EXIT_FAILURE;
		}
	}
	return 0;
}

static int add_signals(sd_event *event)
{
	static const int signals[] = { SIGTERM, SIGINT };
	sigset_t set;

	sigemptyset(&set);
	for (unsigned int i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	for (unsigned int i = 0; i < ARRAY_SIZE(signals); i++) {
		int r = sd_event_add_signal(event, NULL, signals[i], NULL, NULL);

		if (r < 0)
			return r;
	}
	signal(SIGPIPE, SIG_IGN);
	/* Children go by themselves. */
	signal(SIGCHLD, SIG_IGN);
	return 0;
}

static int run(struct ctl *c, sd_event *event)
{
	_cleanup_(serve_freep) struct serve *s = NULL;
	int r = add_signals(event);

	if (r >= 0)
		r = sd_event_set_watchdog(event, true);
	if (r >= 0)
		r = serve_new(event, c->host, c->qmp, c->state, &s);
	if (r < 0) {
		ctl_error(NULL, "%s", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	r = add_backings(c, s);
	if (r != 0)
		return r;
	r = c->listen ? serve_listen(s, c->listen) : 0;
	if (r < 0) {
		ctl_error(c->listen, "cannot listen there: %s", strerrordesc_np(-r));
		return CTL_EXIT_FAILURE;
	}
	sd_notify(false, "READY=1\nSTATUS=waiting for the guest");
	r = sd_event_loop(event);
	sd_notify(false, "STOPPING=1");
	if (c->listen)
		unlink(c->listen);
	if (r < 0)
		ctl_error(NULL, "%s", strerrordesc_np(-r));
	return r < 0 ? CTL_EXIT_FAILURE : 0;
}

int ctl_host_serve(struct ctl *c, char **arguments, unsigned int n)
{
	sd_event *event = NULL;
	int r;

	if (c->qmp && c->n_backings > 0) {
		ctl_error(NULL, "--qmp and --backing do not go together: QEMU knows better");
		return CTL_EXIT_USAGE;
	}
	if (c->json || c->retry || c->timeout_usec) {
		ctl_error(NULL, "--json, --retry and --timeout are not for serve");
		return CTL_EXIT_USAGE;
	}
	if (sd_event_new(&event) < 0)
		return CTL_EXIT_FAILURE;
	log_open();
	r = run(c, event);
	log_close();
	sd_event_unref(event);
	return r;
}
