#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The socket: systemd listens, the agent answers, and whoever asks doesn't notice that the agent is restarted.
. /root/guest/lib.sh

socket=/run/pmem-agent/socket
user() {
	setpriv --reuid=65534 --clear-groups "$@"
}
ask() {
	python3 /root/guest/ask-socket.py "$@"
}
is_active() {
	systemctl is-active --quiet "$1"
}
# As `make install` does it.
upgrade() {
	install -m 755 /root/agent-"$1" /usr/sbin/pmem-agent && systemd-sysusers /usr/lib/sysusers.d/pmem-agent.conf &&
		systemctl daemon-reload && systemctl reload dbus.service && udevadm control --reload &&
		udevadm trigger --subsystem-match=nd --subsystem-match=dax --subsystem-match=block \
			--subsystem-match=virtio-ports
}
chmod 755 /root
cp /usr/sbin/pmem-agent /root/agent-first

systemctl is-system-running --wait >/dev/null
check "the service runs" wait_until 30 is_active pmem-agent
check "and its socket" is_active pmem-agent.socket
check_equal "the directory is the agent's" "$(stat -c '%U %a' /run/pmem-agent)" "pmem-agent 755"
check_equal "the socket is everybody's" "$(stat -c %a $socket)" 666
check "a page lies beside it" sh -c 'ls /run/pmem-agent/*.page'
check "ext4 with DAX is mounted" mkdax "$(vm dev r0)" /mnt
echo some data >/mnt/file
chmod 644 /mnt/file

# ---- who asks, for what ----

since=$(vm host count) before=$(vm fsync count r0)
check "an ordinary user flushes a file" user python3 /root/guest/ask-socket.py /mnt/file
check_output "durable, as the file, watched" '^answer 0 error 0 scope file basis 2 regions 1'
check "it reached the host" test "$(vm fsync count r0)" -gt "$before"
check "and the host reads DURABLE" vm host wait '"DURABLE"' --since "$since" --timeout 10
check "its data alone" ask /mnt/file file-data
check_output "durable" '^answer 0 error 0 scope file-data '
check "the filesystem by a directory" ask /mnt
check_output "durable" '^answer 0 error 0 scope filesystem '
before=$(vm fsync count r0)
check "the region, by a descriptor of a file in it" ask /mnt/file region
check_output "durable" '^answer 0 error 0 scope region '
check_equal "is one host flush" "$(($(vm fsync count r0) - before))" 1
check "the region, by its device" ask "$(vm dev r0)"
check_output "durable" '^answer 0 error 0 scope region '

echo x >/dev/shm/file
ask /dev/shm/file >"$work/out"
check_output "ordinary storage" '^answer 5 error 15 '
ask /root >"$work/out"
check_output "a filesystem that nobody knows to flush" '^answer (5|8) '
ask --o-path /mnt/file >"$work/out"
check_output "O_PATH" '^answer 12 error 22 .*O_PATH'
ask /dev/null >"$work/out"
check_output "a device that is no memory" '^answer [1-9]'
user python3 /root/guest/ask-socket.py /mnt/file >"$work/out"
check_output "none of it disturbs the next" '^answer 0 '

# ---- many, and an agent that comes and goes ----

check "all kinds of requests and garbage" user /root/stress-sock --clients 16 --seconds 5 --json /mnt/file
sed 's/^/# /' "$work/out"
setpriv --reuid=65534 --clear-groups \
	/root/stress-sock --clients 64 --seconds 600 --steady --log "/tmp/answers" --json /mnt/file >"$work/load" 2>&1 &
load=$!
wait_until 20 test -s /tmp/answers
for version in asan first asan first; do
	lines=$(wc -l </tmp/answers)
	check "another version is installed" upgrade $version
	check "and started, under 64 busy clients" systemctl restart pmem-agent
	check "it is what runs" cmp "/proc/$(systemctl show -P MainPID pmem-agent)/exe" /root/agent-$version
	check "and serves them" wait_until 20 sh -c "[ \$(wc -l </tmp/answers) -gt $((lines + 128)) ]"
done
kill -INT $load
wait $load
report $? "none of them noticed" "$work/load"
sed 's/^/# /' "$work/load"
check "nothing but durable" sh -c '! grep -v " durable$" /tmp/answers'
check_equal "no loss, no doubt" "$(region_property State)" idle

# ---- idle ----

mkfifo "$work/idle"
ask --idle 100 <"$work/idle" >"$work/connected" &
exec 8>"$work/idle"
wait_until 20 grep -q connected "$work/connected"
agent=$(systemctl show -P MainPID pmem-agent)
wakeups() {
	awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$agent/status"
}
ask /mnt/file >/dev/null
read -r -t 1 -u 9	# what reports the flush; then nothing may come, which is measured
before=$(wakeups)
read -r -t 12 -u 9
after=$(wakeups)
check "12 s with 100 idle connections: $((after - before)) wake-ups, the watchdog's" test $((after - before)) -le 2
exec 8>&-

# ---- what starts it ----

systemctl stop pmem-agent
check "stopped, a request starts it" ask /mnt/file
check_output "and is answered" '^answer 0 '
systemctl kill -s KILL pmem-agent
check "killed, it is started again" ask /mnt/file
check_output "by whoever asks" '^answer 0 '
for round in 1 2; do
	systemctl disable -q --now pmem-agent
	check "disabled ($round), nobody listens" wait_until 20 not is_active pmem-agent.socket
	ask /mnt/file >"$work/out" 2>&1
	check_output "whoever asks is told so" 'refused'
	check "and starts nothing" not is_active pmem-agent
	check "started by hand" systemctl start pmem-agent
	check "it answers" user python3 /root/guest/ask-socket.py /mnt/file
	check_output "durable" '^answer 0 '
	systemctl enable -q pmem-agent
	check "enabled again" systemctl restart pmem-agent
	check "systemd listens" is_active pmem-agent.socket
	check "and it answers" user python3 /root/guest/ask-socket.py /mnt/file
	check_output "durable" '^answer 0 '
	systemctl reset-failed	# the count of starts
done

# ---- the host fails ----

vm fsync fail 1 r0
ask /mnt/file >"$work/out"
check_output "a flush that fails on the host is a loss" '^answer 1 error 5 '
ask /mnt region >"$work/out"
check_output "and stays one" '^answer 1 error 5 '
finish
