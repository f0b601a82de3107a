# The instance's network: one bridge, one block 10.X.0.0/16, one network namespace a box.
#
#   10.X.0.0/24         the boxes: .1 the host, .2 the control plane, .(10+N) node N
#   10.X.(64+N).0/24    the pods of node N
#   10.X.128.0/17       Services: .0.1 the API server, .0.10 DNS
#
# Boxes route to each other's pods themselves, over the bridge. The host forwards nothing, so its ip_forward stays as it
# is; it has routes of its own to pods and Services, so that a test on the host talks to both.

host_address() { echo "10.$BLOCK.0.1"; }
control_address() { echo "10.$BLOCK.0.2"; }
node_address() { echo "10.$BLOCK.0.$((10 + $1))"; }
node_pods() { echo "10.$BLOCK.$((64 + $1)).0/24"; }
all_pods() { echo "10.$BLOCK.64.0/18"; }
services() { echo "10.$BLOCK.128.0/17"; }
dns_address() { echo "10.$BLOCK.128.10"; }
api_service_address() { echo "10.$BLOCK.128.1"; }

read_block() { BLOCK=$(cat "$STATE/block" 2> /dev/null) || die "no cluster of instance $INSTANCE is up"; }

# A block is free when no route leads into it, and no route but the default one covers it. Where a route covers all of
# 10.0.0.0/8 (a VPN's), an untouched part of it will do: ours are more specific.
block_is_free() { # X strictly|loosely
  [ -z "$(ip -4 route show table all to root "10.$1.0.0/16")" ] || return 1
  [ "$2" = loosely ] || [ -z "$(ip -4 route show table all to match "10.$1.0.0/16" | grep -v '^default' || true)" ]
}

choose_block() {
  local start=$((16#${ID#rk} % 180)) how i
  for how in strictly loosely; do
    for ((i = 0; i < 180; i++)); do
      BLOCK=$((60 + (start + i) % 180))
      if block_is_free $BLOCK $how; then echo $BLOCK > "$STATE/block"; return; fi
    done
  done
  die "no free network block among 10.60.0.0/16 to 10.239.0.0/16: see 'ip route'"
}

network_up() {
  # The bridge's address makes the block taken for others, so choosing and setting it are one step.
  exec 7> /run/lock/redis-operator-network
  flock --wait 60 7 || die "another instance has held /run/lock/redis-operator-network for a minute"
  choose_block
  ip link add "$ID" type bridge
  ip address add "$(host_address)/24" dev "$ID"
  ip link set "$ID" up
  exec 7>&-
  forwarding_rule --insert
}

# Docker sets the policy of FORWARD to DROP and lets bridged frames pass through it: let ours through.
forwarding_rule() { # --insert | --delete
  local rule=(FORWARD -i "$ID" -o "$ID" -m comment --comment "$ID" -j ACCEPT)
  command -v iptables > /dev/null || return 0
  if [ "$1" = --insert ]; then
    if iptables -S FORWARD 2> /dev/null | grep -q -- '^-P FORWARD DROP'; then iptables --wait "$1" "${rule[@]}"; fi
  else
    while iptables --wait --check "${rule[@]}" 2> /dev/null; do iptables --wait --delete "${rule[@]}"; done
  fi
}

# box_network BOX LINK ADDRESS: a network namespace with one link to the bridge.
box_network() {
  local namespace=$ID-$1 link=$ID-$2
  ip netns add "$namespace"
  ip link add "$link" type veth peer name eth0 netns "$namespace"
  ip link set "$link" master "$ID" up
  ip -n "$namespace" address add "$3/24" dev eth0
  ip -n "$namespace" link set lo up
  ip -n "$namespace" link set eth0 up
  ip -n "$namespace" route add default via "$(host_address)"
}

# Every box, and the host, learns the way to every node's pods; the host goes to Services through the control plane's
# kube-proxy, which no `cut` takes away.
routes_up() { # NODES
  local n box
  for n in $(seq "$1"); do
    ip route add "$(node_pods "$n")" via "$(node_address "$n")"
    for box in control $(seq -f 'node%g' "$1"); do
      [ "$box" = "node$n" ] || ip -n "$ID-$box" route add "$(node_pods "$n")" via "$(node_address "$n")"
    done
  done
  ip route add "$(services)" via "$(control_address)"
}

# cut and heal: the node loses its link, as if its cable were pulled.
link() { # N up|down
  ip link show "$ID-n$1" > /dev/null 2>&1 || die "instance $INSTANCE has no node $1"
  ip link set "$ID-n$1" "$2"
}

# Ends every process of the instance's network namespaces. The names are ours alone, so are the processes; the first
# process of a box's pid namespace takes its containers with it.
processes_down() {
  local namespace
  for namespace in $(namespaces); do
    # shellcheck disable=SC2046
    kill -KILL $(ip netns pids "$namespace") 2> /dev/null || true
  done
  for namespace in $(namespaces); do
    wait_for 30 "the processes in $namespace to end" eval "[ -z \"\$(ip netns pids $namespace)\" ]"
  done
}

namespaces() { ip netns list | awk -v id="$ID-" 'index($1, id) == 1 {print $1}'; }

# Routes go with the bridge, a box's link with its namespace.
network_down() {
  local namespace link
  for namespace in $(namespaces); do ip netns delete "$namespace"; done
  # A link whose namespace was never made, or whose namespace lives on for a moment in a dying process.
  for link in $(ip -o link show | sed -n "s/^[0-9]*: \($ID-[a-z0-9]*\)@.*/\1/p") "$ID"; do
    ip link delete "$link" 2> /dev/null || true
  done
  forwarding_rule --delete
}
