#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What `make demo` shows: the guest's side and the host's, as it happens.
. /root/guest/lib.sh

guest() {
	echo
	echo "guest# $*"
	"$@"
	local status=$?
	[ $status = 0 ] || echo "(exit status $status)"
}
# What the host has read since: greeting and events, shortened to what matters here
host() {
	vm host wait "$1" --since "$since" --timeout 30 | python3 -c '
import json, sys
message = json.loads(sys.stdin.readline())
if "event" in message:
    data = {key: value for key, value in message["data"].items() if key not in ("sequence", "durable-usec", "loss-usec")}
    print("host<  ", message["event"], json.dumps(data))
else:
    agent = message["pmem-agent"]
    print("host<   greeting: pmem-agent", agent["version"], "with", ", ".join(
        "%s at %#x, %s" % (r["region"], r["address"], r["method"]) for r in agent["regions"]))'
}

since=0
systemctl start pmem-agent
exec 2>&1
echo "== The region, and why its stores are not durable by themselves (kernel $(uname -r))"
guest pmemctl list
host '"pmem-agent".*"region0"'

echo
echo "== A DAX filesystem on it, written to and made durable"
mkdax /dev/pmem0 /mnt
echo "some data" >/mnt/file
since=$(vm host count)
guest pmemctl flush /mnt
host '"DURABLE"'

echo
echo "== The host fails one flush (EIO), and a program in the guest takes the error"
vm fsync fail 1
since=$(vm host count)
guest dd if=/dev/zero of=/mnt/file bs=4096 count=1 conv=notrunc,fsync status=none
host '"LOST"'
echo
echo "== fsync says that all is well again. pmem-agent does not:"
guest dd if=/dev/zero of=/mnt/file bs=4096 count=1 conv=notrunc,fsync status=none
guest pmemctl flush /mnt
guest pmemctl status
