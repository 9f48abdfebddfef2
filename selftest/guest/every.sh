#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# every.py, with the thief= of the kernel's command line; then the machine is switched off, and it is still lost.
systemctl start pmem-agent || exit 1
if [ -e /root/rebooted ]; then
	exec /root/guest/every.py after-reboot
fi
touch /root/rebooted
thief=$(grep -o 'thief=[a-z]*' /proc/cmdline)
/root/guest/every.py "${thief#thief=}" 1 50 || exit 1
vm poweroff
