#!/bin/sh
# Two network namespaces, a and b, joined by offloadd. Needs root, ip, ping and iperf3, and offloadd and offloadctl in
# PATH. The interfaces keep their defaults. Everything is removed at the end.
#
#    namespace a                 here                  namespace b
#   10.1.0.1 eth0 ──── veth-a ─ offloadd ─ veth-b ──── eth0 10.1.0.2
set -eu
made=

clean_up() {
    # TERM: takes every rule out of the device, then the pidfile and the socket go.
    if [ -n "${offloadd:-}" ]; then
        kill "$offloadd" || true
        wait "$offloadd" && echo "offloadd: exit code 0" || echo "offloadd: exit code $?"
    fi
    if [ -n "${iperf3:-}" ]; then kill "$iperf3" || true; fi
    for name in $made; do
        ip link del "veth-$name" || true
        ip netns del "$name" || true
    done
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# Two namespaces, each on a wire of its own.
for name in a b; do
    ip netns add "$name"
    made="$made $name"
    ip link add "veth-$name" type veth peer name eth0 netns "$name"
    ip link set "veth-$name" up
    ip -n "$name" link set eth0 up
done
ip -n a addr add 10.1.0.1/24 dev eth0
ip -n b addr add 10.1.0.2/24 dev eth0

# The switch: two ports, the rule actions=normal, and a simulated NIC that marks their packets.
offloadd --port veth-a,type=packet --port veth-b,type=packet --offload sim &
offloadd=$!
until offloadctl version 2>/dev/null; do kill -0 "$offloadd" && sleep 0.1; done

# Traffic.
ip netns exec a ping -c 3 -i 0.2 10.1.0.2
ip netns exec b iperf3 --server --one-off >/dev/null &
iperf3=$!
until ip netns exec b ss -Hltn sport = 5201 | grep -q LISTEN; do kill -0 "$iperf3" && sleep 0.1; done
ip netns exec a iperf3 --client 10.1.0.2 --time 3
wait "$iperf3"
iperf3=

# What the switch says of it.
offloadctl dpif/offload-show
offloadctl dpctl/dump-flows -m
offloadctl dpif-netdev/pmd-perf-show
