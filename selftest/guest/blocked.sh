#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What others have blocked does not block the daemon: a stalled FUSE file passed to it, a frozen /var.
. /root/guest/lib.sh

answers() {
	timeout 5 pmemctl flush region0 && timeout 5 pmemctl status
}

start_agent
modprobe fuse
python3 /root/guest/stalled-fuse.py /tmp/fuse >"$work/fuse" &
fuse=$!
wait_until 20 grep -q ready "$work/fuse"
python3 /root/guest/pass-descriptor.py /tmp/fuse/file >"$work/passed" 2>&1 &
wait_until 20 grep -q sent "$work/passed"
check "a descriptor of a stalled FUSE file: the daemon answers others" answers
check "FUSE was really asked and did not answer" grep -q stalled "$work/fuse"
check "the descriptor is refused as no persistent memory" wait_until 20 grep -q OrdinaryStorage "$work/passed"
kill $fuse
umount -l /tmp/fuse 2>/dev/null

truncate -s 64M /tmp/var.img
mkfs.ext4 -q -F /tmp/var.img
mount -o loop /tmp/var.img /var/lib/pmem-agent || mount -t tmpfs tmpfs /var/lib/pmem-agent
systemctl restart pmem-agent
fsfreeze -f /var/lib/pmem-agent
check "the state directory frozen: the daemon answers" answers
check "a new one starts as well" timeout 20 systemctl restart pmem-agent
check "and answers" answers

vm fsync fail 1 r0
check_status 3 "a loss is told, though it can't be recorded" timeout 5 pmemctl flush region0
check "which is reported" wait_until 20 sh -c 'pmemctl status 2>&1 | grep -q "/var/lib/pmem-agent cannot be written"'
check "restart returns" timeout 20 systemctl restart pmem-agent
check_status 3 "lost in the next agent" timeout 5 pmemctl flush region0
check "nothing has been recorded" not sh -c 'ls /var/lib/pmem-agent/*.loss'
fsfreeze -u /var/lib/pmem-agent
check "thawed, it is recorded" wait_until 20 sh -c 'ls /var/lib/pmem-agent/*.loss'
check "and nothing is left to report" wait_until 20 sh -c '[ "$(busctl get-property io.pmem.Agent1 /io/pmem/Agent1 io.pmem.Agent1.Manager StateProblem)" = "s \"\"" ]'
check "no state child is left" wait_until 20 not pgrep pmem-state
finish
