#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What waits together shares calls: the host's flushes are counted. Then a filesystem that was shut down, whose syncfs
# says success on Linux 6.1 and sends nothing.
. /root/guest/lib.sh

shut_down() {
	python3 -c 'import fcntl, os, struct; fcntl.ioctl(os.open("/mnt", os.O_RDONLY), 0x8004587d, struct.pack("I", 2))'
}

start_agent
mkdax "$(vm dev r0)" /mnt
for i in 0 1 2 3 4 5 6 7; do echo "file $i" >/mnt/file$i; done
sync -f /mnt
before=$(vm fsync count r0)
for i in 0 1 2 3; do pmemctl flush /mnt/file$i; done >/dev/null
check_equal "one after the other, 4 files cost 4 host flushes" "$(($(vm fsync count r0) - before))" 4
check "16 datasyncs of one file: 1 host flush" python3 /root/guest/plans.py one-file
check "sync and datasync of one file share it" python3 /root/guest/plans.py mixed
check "a filesystem's flush serves the region and a file" python3 /root/guest/plans.py filesystem
check "8 files at once: no more than one syncfs" python3 /root/guest/plans.py files
sed 's/^/# /' "$work/out"

# That it is alive is known from the second flush on, without asking it again.
check "a filesystem that is flushed" pmemctl flush /mnt
check "and again" pmemctl flush /mnt
# The kernel's answer is shown first, since the check means something only where it is success.
shut_down
check "a filesystem that was shut down: syncfs says success" sync -f /mnt
use_agent /root/shutdown-unseen
check "control: so does an agent that asks nothing else" pmemctl flush /mnt
use_agent
check_status 3 "ours does not" pmemctl flush /mnt
finish
