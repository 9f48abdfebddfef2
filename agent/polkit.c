/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * polkit: may the sender of a message do something? Asked without waiting
 */
#include <unistd.h>

#include "polkit.h"
#include "share.h"

#define POLKIT_ALLOW_INTERACTION 1U

struct polkit {
	sd_bus_message *message;
	const char *action;
	polkit_done_t done;
	void *userdata;
	sd_bus_slot *slot;
};

static int on_authority(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	struct polkit *p = userdata;
	int yes = false, challenge = false;

	if (sd_bus_message_is_method_error(reply, NULL))
		p->done(PMEM_AGENT_DENIED, "polkit could not be asked; only root may do this now", p->userdata);
	else if (sd_bus_message_enter_container(reply, 'r', "bba{ss}") < 0 ||
		 sd_bus_message_read(reply, "bb", &yes, &challenge) < 0 || !yes)
		p->done(PMEM_AGENT_DENIED,
			challenge ? "polkit wants authentication; repeat it where you can be asked for a password"
				  : "polkit does not allow it",
			p->userdata);
	else
		p->done(PMEM_AGENT_DURABLE, "", p->userdata);
	return 1;
}

static int ask_authority(struct polkit *p)
{
	_cleanup_(sd_bus_message_unrefp) sd_bus_message *call = NULL;
	sd_bus *bus = sd_bus_message_get_bus(p->message);
	int interactive = sd_bus_message_get_allow_interactive_authorization(p->message), r;

	r = sd_bus_message_new_method_call(bus, &call, "org.freedesktop.PolicyKit1",
					   "/org/freedesktop/PolicyKit1/Authority",
					   "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization");
	if (r < 0)
		return r;
	r = sd_bus_message_append(call, "(sa{sv})sa{ss}us", "system-bus-name", 1, "name", "s",
				  sd_bus_message_get_sender(p->message), p->action, 0,
				  interactive > 0 ? POLKIT_ALLOW_INTERACTION : 0, "");
	if (r < 0)
		return r;
	/* People take their time over a password. */
	return sd_bus_call_async(bus, &p->slot, call, on_authority, p, interactive > 0 ? UINT64_MAX : 0);
}

bool polkit_trusts(uid_t uid)
{
	return share_is_kept_for(uid);
}

int polkit_check(sd_bus_message *m, const char *action, polkit_done_t done, void *userdata, struct polkit **ret)
{
	_cleanup_(polkit_freep) struct polkit *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->message = sd_bus_message_ref(m);
	p->action = action;
	p->done = done;
	p->userdata = userdata;
	r = ask_authority(p);
	if (r < 0)
		return r;
	*ret = p;
	p = NULL;
	return 0;
}

struct polkit *polkit_free(struct polkit *p)
{
	if (!p)
		return NULL;
	sd_bus_slot_unref(p->slot);
	sd_bus_message_unref(p->message);
	free(p);
	return NULL;
}
