#!/bin/sh
# hosts.sh up [RATE] | down | cut | mend: two hosts on one machine, for test_hosts.py. Network namespaces of Linux, each
# with an address of its own, joined by a virtual cable; RATE (as "1gbit") limits it. Needs root.
set -e
case $1 in
up)
    for i in 0 1; do ip netns add tg-h$i; ip netns exec tg-h$i ip link set lo up; done
    ip link add tg-v0 netns tg-h0 type veth peer name tg-v1 netns tg-h1
    for i in 0 1; do
        ip netns exec tg-h$i ip addr add 10.9.7.$((i + 1))/24 dev tg-v$i
        ip netns exec tg-h$i ip link set tg-v$i up
        [ -z "$2" ] || ip netns exec tg-h$i tc qdisc add dev tg-v$i root tbf rate "$2" burst 256kb latency 50ms
    done
    ip netns exec tg-h0 unshare --uts true
    sleep 2 ;; # until the addresses are in use
down) for i in 0 1; do ip netns del tg-h$i 2>/dev/null || true; done ;;
cut) ip netns exec tg-h0 ip link set tg-v0 down ;;
mend) ip netns exec tg-h0 ip link set tg-v0 up ;;
sent) ip netns exec tg-h0 cat /sys/class/net/tg-v0/statistics/tx_bytes ;;
esac
