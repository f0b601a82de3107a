# The whole cluster: up, down, load.

# `up` from whatever is there to a cluster whose nodes are Ready and take pods. A failed or interrupted `up` cleans up.
up() { # NODES
  local nodes=$1 bin began=$SECONDS
  [[ $nodes =~ ^[1-9][0-9]?$ && $nodes -le 60 ]] || die "up: NODES is a number from 1 to 60, not '$nodes'"
  [ "$(id -u)" = 0 ] || die "up needs root: namespaces, links and control groups are the machine's (tests of the API alone need only: local-kubernetes apiserver)"
  packages
  bin=$(components)
  export PATH=$bin:$PATH
  cluster_down
  trap 'failed_up $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  say "starting a Kubernetes of $nodes nodes: about 15 s"
  mkdir -p "$LOG"
  rm -rf "$STATE/failed-log"
  "$HERE/images" build pause busybox > /dev/null 9>&-
  network_up
  cluster_files "$nodes"
  for n in $(seq "$nodes"); do cgroups_up "$n"; done
  box_network control c "$(control_address)"
  for n in $(seq "$nodes"); do box_network "node$n" "n$n" "$(node_address "$n")"; done
  routes_up "$nodes"
  for box in control $(seq -f 'node%g' "$nodes"); do start_box "$box"; done
  export KUBECONFIG=$STATE/kubeconfig
  wait_for 120 "containerd on every node" containerds_answer
  load "$STATE/images/pause.tar" "$STATE/images/busybox.tar"
  wait_for 120 "the API server" kubectl get --raw /readyz
  kubectl apply --server-side -f "$HERE/volumes/storage.yaml" -f <(dns_service) > /dev/null
  wait_for 120 "the default service account, without which pods are refused" kubectl get serviceaccount default
  wait_for 120 "$nodes nodes to be Ready" nodes_ready "$nodes"
  trap - EXIT INT TERM
  say "$nodes nodes are Ready after $((SECONDS - began)) s; KUBECONFIG=$KUBECONFIG"
}

failed_up() { # STATUS
  trap - EXIT
  trap '' INT TERM
  set +e
  if [ "$1" -ge 128 ]; then
    say "up was interrupted; removing what it started"
  else
    say "up failed; the last errors of the components:"
    tail -qn 200 "$LOG"/*.log 2> /dev/null | grep -E '^[EF][0-9]|level=(error|fatal)|local-kubernetes:' | cut -c 1-300 | tail -n 10 >&2
    cp -r "$LOG" "$STATE/failed-log" && say "their logs are in $STATE/failed-log until the next up or down"
  fi
  cluster_down
  exit "$1"
}

containerds_answer() { each_node on_node ctr version; }
nodes_ready() { [ "$(kubectl get nodes --no-headers | grep -cw Ready)" = "$1" ]; }

cluster_files() { # NODES
  local n paths=""
  credentials "$STATE" "$(control_address)" 6443 "$(api_service_address)"
  identity "$STATE" kubeconfig admin system:masters
  identity "$STATE" controller-manager.kubeconfig system:kube-controller-manager
  identity "$STATE" scheduler.kubeconfig system:kube-scheduler
  identity "$STATE" proxy.kubeconfig system:kube-proxy
  identity "$STATE" dns.kubeconfig dns system:masters
  identity "$STATE" volumes.kubeconfig volumes system:masters
  for n in $(seq "$1"); do
    mkdir -p "$STATE/node$n"
    node_files "$n"
    paths+="${paths:+, }{\"node\": \"node$n\", \"paths\": [\"$STATE/node$n/volumes\"]}"
  done
  echo "{\"nodePathMap\": [$paths]}" > "$STATE/volumes.json"
  cat > "$STATE/Corefile" << Y
.:53 {
  errors
  ready
  cache 5
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $STATE/dns.kubeconfig
  }
  template ANY ANY {   # no name outside the cluster exists; refusing to answer makes resolvers retry for seconds
    rcode NXDOMAIN
  }
}
Y
}

# DNS runs beside the API server, not in a pod: a Service whose one endpoint is the control plane's box.
dns_service() {
  cat << Y
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: $(dns_address), ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [$(control_address)], conditions: {ready: true}}]
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
Y
}

node_numbers() { local dir; for dir in "$STATE"/node[0-9]*/; do [ ! -d "$dir" ] || basename "$dir" | tr -dc '0-9\n'; done; }

# on_node N COMMAND...: in the node's mount namespace, where its containerd listens at the usual place.
on_node() {
  local pid
  alive "$STATE/node$1/first-process" || return 1
  read -r pid _ < "$STATE/node$1/first-process"
  nsenter --target "$pid" --mount "${@:2}" 9>&-
}

# each_node FUNCTION ARGUMENT...: FUNCTION N ARGUMENT... for every node at once; fails if one fails.
each_node() {
  local n status=0
  local -a jobs=()
  for n in $(node_numbers); do
    "$1" "$n" "${@:2}" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || status=1; done
  return $status
}

load() { # TAR...
  local tar sum
  [ $# -gt 0 ] || die "load: which image archive?"
  [ -n "$(node_numbers)" ] || die "no cluster of instance $INSTANCE is up"
  for tar in "$@"; do
    [ -s "$tar" ] || die "load: there is no image archive $tar"
    sum=$(digest 64 < "$tar")
    each_node import "$tar" "$sum" || die "load: a node did not import $tar"
  done
}

import() { # N TAR SUM
  local stamp
  stamp=$STATE/node$1/loaded/$(basename "$2")
  [ "$(cat "$stamp" 2> /dev/null)" != "$3" ] || return 0
  mkdir -p "$(dirname "$stamp")"
  on_node "$1" ctr --namespace k8s.io images import "$(readlink -f "$2")" > /dev/null || return 1   # not left to errexit: `wait || …` switches it off
  echo "$3" > "$stamp"
}

down() { # all | apiserver
  case $1 in
    all) lone_apiserver_down; cluster_down; images_down; rm -rf "$STATE" ;;
    apiserver) lone_apiserver_down ;;
    *) die "down: all or apiserver, not '$1'" ;;
  esac
}

# A build may outlive the killed `up` that wanted it.
images_down() {
  [ -d "$STATE/images" ] || return 0
  exec 6> "$STATE/images/lock"
  flock --wait 120 6 || die "an image build has held $STATE/images/lock for 2 minutes"
  exec 6>&-
}

# From whatever a complete, a failed or a killed `up` left.
cluster_down() {
  if [ "$(id -u)" = 0 ]; then
    processes_down
    network_down
    cgroups_down
    # Containers' network files; the folder is the machine's only as long as one instance is there.
    [ -n "$(ip netns list | grep '^rk[0-9a-f]*-node' || true)" ] || rmdir --ignore-fail-on-non-empty /var/lib/cni 2> /dev/null || true
  fi
  rm -rf "$STATE"/{etcd,pki,log,control,node[0-9]*,*kubeconfig,Corefile,volumes.json,block}
}
