# SPDX-License-Identifier: LGPL-2.1-or-later
# What the scripts of this directory share. They run as root in the guest of selftest/vm/run, and print TAP.
# shellcheck shell=bash

set -u
n_checks=0
n_failed=0
work=$(mktemp -d)
mkfifo "$work/never"
exec 9<>"$work/never"

# report STATUS TEXT [FILE with what to show on failure]
report() {
	n_checks=$((n_checks + 1))
	if [ "$1" = 0 ]; then
		echo "ok $n_checks - $2"
	else
		n_failed=$((n_failed + 1))
		echo "not ok $n_checks - $2"
		[ -z "${3:-}" ] || sed 's/^/# /' "$3"
	fi
}

# check TEXT COMMAND…: it succeeds
check() {
	local text=$1
	shift
	"$@" >"$work/out" 2>&1
	local status=$?
	[ $status = 0 ] || echo "status $status of: $*" >>"$work/out"
	report $status "$text" "$work/out"
}

# check_status N TEXT COMMAND…: it ends with this status
check_status() {
	local wanted=$1 text=$2
	shift 2
	"$@" >"$work/out" 2>&1
	local status=$?
	echo "status $status, not $wanted, of: $*" >>"$work/out"
	[ $status = "$wanted" ]
	report $? "$text" "$work/out"
}

# check_equal TEXT GOT WANTED
check_equal() {
	[ "$2" = "$3" ] || echo "got '$2', not '$3'" >"$work/out"
	[ "$2" = "$3" ]
	report $? "$1" "$work/out"
}

# check_output TEXT REGEX: the last check's command said this
check_output() {
	cp "$work/out" "$work/last"
	grep -Eq "$2" "$work/last"
	report $? "$1" "$work/last"
}

# skip TEXT WHAT_IS_MISSING
skip() {
	n_checks=$((n_checks + 1))
	echo "ok $n_checks - $1 # SKIP needs $2"
}

not() {
	! "$@"
}

# wait_until SECONDS COMMAND…: for what nothing announces; tries until it succeeds
wait_until() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		read -r -t 0.1 -u 9 || :
	done
}

region_property() {
	busctl get-property io.pmem.Agent1 "/io/pmem/Agent1/region/${2:-region0}" io.pmem.Agent1.Region "$1" | cut -d' ' -f2- | tr -d '"'
}

# The greeting of the agent that runs now, and of nobody else.
start_agent() {
	systemctl "${1:-start}" pmem-agent
}

# use_agent PROGRAM: the agent is that one until `use_agent`
use_agent() {
	systemctl stop pmem-agent.service pmem-agent.socket
	umount /usr/sbin/pmem-agent 2>/dev/null
	[ -z "${1:-}" ] || mount --bind "$1" /usr/sbin/pmem-agent
	systemctl reset-failed pmem-agent 2>/dev/null
	start_agent
}

# Lazy initialisation would go on after the mount, with host flushes of its own.
mkext4() {
	mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$@"
}

# mkdax DEVICE MOUNT_POINT [ext4|xfs]
mkdax() {
	mkdir -p "$2"
	case ${3:-ext4} in
	ext4) mkext4 "$1" && mount -o dax=always "$1" "$2" ;;
	xfs) mkfs.xfs -q -f -m reflink=0 "$1" && mount -o dax=always "$1" "$2" ;;
	esac
}

finish() {
	echo "1..$n_checks"
	[ $n_failed = 0 ]
	exit
}
