#!/bin/sh
# What ssh is to real hosts: hosts_ssh.sh [-OPTIONS] HOST COMMAND... runs the command on one of the two of hosts.sh.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
case $host in 10.9.7.1) i=0 ;; 10.9.7.2) i=1 ;; *) exit 1 ;; esac
exec ip netns exec tg-h$i unshare --uts sh -c "hostname tg-h$i; $*"
