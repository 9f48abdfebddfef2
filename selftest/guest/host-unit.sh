#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The unit pmem-agent-host@, by a real systemd. The guest plays its own host: what is between serve and the agent is
# playqemu.py, a process of another user, as QEMU is. r0 is device-dax, which nothing flushes but serve.
. /root/guest/lib.sh

unit=pmem-agent-host@vm1 socket=/run/pmem-agent-host/vm1.sock
conf() {	# NAME LINE...
	mkdir -p /etc/pmem-agent-host
	printf '%s\n' "${@:2}" >"/etc/pmem-agent-host/$1.conf"
}
property() {	# NAME [UNIT]
	systemctl show -P "$1" "${2:-$unit}"
}
of_process() {	# FIELD of /proc/PID/status
	sed -n "s/^$1:[[:space:]]*//p" "/proc/$(property MainPID)/status"
}
is_flushed() {
	pmemctl flush --timeout=5 --json region0 | grep -q '"host-confirmed"'
}
is_counted() {
	property StatusText | grep -Eq "^connected to the agent; 1 of 1 backings served, [1-9][0-9]* flushes"
}
said() {	# UNIT REGEX
	journalctl --sync
	journalctl -q -u "$1" -o cat | grep -E "$2"
}

mkdir -m 711 /run/vm1 /var/lib/images
truncate -s 64M /var/lib/images/pmem.img
chmod 600 /var/lib/images/pmem.img
cp /root/guest/playqemu.py /run/vm1
chown -R nobody:nogroup /run/vm1 /var/lib/images
setpriv --reuid=nobody --regid=nogroup --clear-groups \
	python3 /run/vm1/playqemu.py /run/vm1 /var/lib/images/pmem.img "$(vm region address r0)" >"$work/qemu" &
check "what plays QEMU is there" wait_until 60 grep -q ready "$work/qemu"
sed -i 's|^#HostPort=.*|HostPort=/run/vm1/port.sock|' /etc/pmem-agent.conf
start_agent
check_status 12 "control: without a host, device-dax can't be flushed" pmemctl flush region0

conf vm1 "AGENT=/run/vm1/agent.sock" "OPTIONS=--qmp /run/vm1/qmp.sock"
check "systemctl enable --now, with the file that pmemctl(1) shows" systemctl enable --now $unit
check_equal "it is active" "$(property ActiveState)" active
check "device-dax is flushed" wait_until 60 is_flushed
check "others ask at its socket" pmemctl --host=$socket flush region0
check_equal "which is root's and its group's" "$(stat -c %a $socket)" 660
check_status 1 "that the file is the one which QEMU has open was seen" said $unit "can't be seen"
check "systemd is told how many flushes there were" wait_until 60 is_counted

check_equal "it has three capabilities" "$(of_process CapEff)" 0000000000080006
check_equal "gains no other" "$(of_process NoNewPrivs)" 1
check_equal "its system calls are filtered" "$(of_process Seccomp)" 2
check "it has no network" [ "$(readlink "/proc/$(property MainPID)/ns/net")" != "$(readlink /proc/self/ns/net)" ]
check_status 1 "and can't write to /usr" nsenter -t "$(property MainPID)" -m touch /usr/written
check_output "since that is read-only" "Read-only"
check "exposed by less than 5 of 10" systemd-analyze security --threshold=50 --no-pager $unit

kill -KILL "$(property MainPID)"
check "killed, it is started again, and flushes" wait_until 60 is_flushed
check_equal "once" "$(property NRestarts)" 1
mkdir -p /run/systemd/system/$unit.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/$unit.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart $unit
check "with the watchdog sooner, it goes on" wait_until 60 is_flushed
kill -STOP "$(property MainPID)"
check "and when it stands still, it is started again" wait_until 60 is_flushed
check_equal "by the watchdog" "$(property NRestarts)" 1
check "systemctl stop" systemctl stop $unit
check_equal "ends it" "$(property ActiveState)" inactive
check_status 1 "and its socket" test -e $socket
check "device-dax is impossible again" wait_until 20 sh -c "pmemctl flush region0; [ \$? = 12 ]"

check_status 1 "without a file there is nothing to start" systemctl start pmem-agent-host@none
check_output "which systemctl says" "[Aa]ssert"
bad() {	# WHAT REGEX LINE...
	conf bad "${@:3}"
	systemctl reset-failed pmem-agent-host@bad 2>/dev/null
	check_status 1 "a file $1" systemctl start pmem-agent-host@bad
	check "the journal says what is wrong" said pmem-agent-host@bad "$2"
	check_equal "it is not tried again" "$(property NRestarts pmem-agent-host@bad) $(property Result pmem-agent-host@bad)" "0 exit-code"
}
bad "with a wrong option" "backing is ADDRESS=FILE" "AGENT=/run/vm1/agent.sock" "OPTIONS=--backing nonsense"
bad "with an unknown option" "unrecognized option" "AGENT=/run/vm1/agent.sock" "OPTIONS=--qpm /run/vm1/qmp.sock"
bad "without AGENT" "AGENT|--host" "OPTIONS=--qmp /run/vm1/qmp.sock"
finish
