#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine without any region: nothing to do, and an emulated region does what a real one does.
. /root/guest/lib.sh

check "the service starts" start_agent
check "and says that there is nothing to do" sh -c 'journalctl -q -u pmem-agent | grep -q "nothing to do"'
check "list is empty" pmemctl list

mkdir -p /srv
truncate -s 16M /srv/region
printf '[Agent]\nStallSec=1\nNonsense=1\n[Region laptop]\nEmulate=/srv/region\n' >/etc/pmem-agent.conf
systemctl restart pmem-agent
check "a wrong key is named with file and line" sh -c \
	'journalctl -q -u pmem-agent | grep -q "pmem-agent.conf:3.*Nonsense"'
check "an emulated region" pmemctl list
check_output "is a region" 'laptop'
since=$(vm host count)
check "is flushed by name" pmemctl flush laptop
check "and by its file" pmemctl flush /srv/region
check_output "as a region" 'region'
check "the host reads DURABLE" vm host wait '"DURABLE".*"laptop"' --since "$since" --timeout 20
check_status 7 "another file of that filesystem is ordinary storage, or hidden" sh -c \
	'pmemctl flush /dev/shm'

# A failure: of the worker, since this machine's disk has no faults to inject.
systemctl stop pmem-agent
systemctl start pmem-agent
pmemctl flush -q laptop
pkill -STOP pmem-worker
pmemctl flush laptop >"$work/killed" 2>&1 &
waiting=$!
check "a stalled flush is reported" vm host wait '"STALLED".*"laptop"' --since "$since" --timeout 20
check_status 4 "status says so" pmemctl status
pkill -KILL pmem-worker
wait $waiting
status=$?
check_equal "its worker killed before the call began: unknown or lost, never durable" "$((status == 3 || status == 4))" 1
check "idle: RSS of the daemon at most 10 MiB" test \
	"$(awk '/^VmRSS/ { print $2 }' "/proc/$(systemctl show -P MainPID pmem-agent)/status")" -le 10240
finish
