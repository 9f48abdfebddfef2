#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# every.py, with the thief= and last= of the kernel's command line; then the machine is switched off, and it is still
# lost.
systemctl start pmem-agent || exit 1
if [ -e /root/rebooted ]; then
	exec /root/guest/every.py after-reboot
fi
touch /root/rebooted
given() {
	grep -o "$1=[a-z0-9]*" /proc/cmdline | cut -d= -f2
}
/root/guest/every.py "$(given thief)" 1 "$(given last)" || exit 1
vm poweroff
