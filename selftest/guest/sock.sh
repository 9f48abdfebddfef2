#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The socket: systemd listens, the agent answers, and whoever asks doesn't notice that the agent is restarted.
. /root/guest/lib.sh

socket=/run/pmem-agent/socket
stress() {
	setpriv --reuid=65534 --clear-groups /root/stress-sock "$@"
}
is_active() {
	systemctl is-active --quiet "$1"
}
wakeups() {
	awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$1/status"
}

check "the service starts" start_agent
check "and its socket with it" is_active pmem-agent.socket
ls -ld /run/pmem-agent $socket >"$work/modes"
cat "$work/modes" | sed 's/^/# /'
finish
