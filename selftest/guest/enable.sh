#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Enabled: it starts when a region or its port appears, and at boot. Disabled: never, not by D-Bus either.
# Run three times, a boot each: /root/phase says which.
. /root/guest/lib.sh
phase=$(cat /root/phase 2>/dev/null || echo nothing)

next_phase() {
	[ $n_failed = 0 ] || finish
	echo "$1" >/root/phase
	echo "1..$n_checks"
	vm poweroff	# and on again
}

is_active() {
	systemctl is-active --quiet pmem-agent
}
activate_by_bus() {
	busctl call io.pmem.Agent1 /io/pmem/Agent1 org.freedesktop.DBus.Peer Ping
}

case $phase in
nothing)	# enabled before this boot; no region, no port
	udevadm settle
	check "it is enabled" systemctl is-enabled --quiet pmem-agent
	systemctl is-system-running --wait >/dev/null
	check "booted without a region it does not run" not is_active
	vm region add virtio-pmem:64M >/dev/null
	check "hot-adding a region starts it" wait_until 60 is_active
	check "and the agent lists it" wait_until 20 sh -c 'pmemctl list | grep -q virtio-pmem'

	systemctl stop pmem-agent
	check "stopped, a D-Bus call starts it" activate_by_bus
	check "so it runs" is_active
	systemctl kill -s KILL pmem-agent
	check "killed, it is started again" wait_until 30 is_active

	systemctl disable -q --now pmem-agent
	check "disabled, D-Bus does not start it" not activate_by_bus
	vm region add virtio-pmem:64M >/dev/null
	wait_until 30 test -b /dev/pmem1
	udevadm settle
	check "nor does another region" not is_active
	next_phase disabled
	;;
disabled)	# rebooted: both regions are there
	systemctl is-system-running --wait >/dev/null
	udevadm settle
	check "the region is there" test -b /dev/pmem0
	check "disabled, it does not run after a boot" not is_active
	check "nor does anyone listen at its socket" not test -e /run/pmem-agent/socket
	systemctl enable -q pmem-agent
	next_phase boot
	;;
boot)		# rebooted
	check "enabled, it runs after a boot" wait_until 60 is_active
	check "on both regions" wait_until 20 sh -c '[ "$(pmemctl list | grep -c virtio-pmem)" = 2 ]'
	check "sandboxed to an exposure of at most 2.0" systemd-analyze security --threshold=20 pmem-agent --no-pager
	check "without CAP_SYS_ADMIN and CAP_DAC_OVERRIDE" sh -c \
		'! systemctl show -p CapabilityBoundingSet pmem-agent | grep -Ei "sys_admin|dac_override"'
	check "as its own user" test "$(ps -o user= -p "$(systemctl show -P MainPID pmem-agent)")" = pmem-agent
	check "udev marks the region for others" sh -c 'udevadm info /dev/pmem0 | grep -q PMEM_ASYNC=1'
	check "and links to it" sh -c 'ls -l /dev/disk/by-pmem/ | grep -q pmem0'
	;;
esac
finish
