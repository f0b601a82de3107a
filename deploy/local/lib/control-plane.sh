# The control plane's processes. Each function replaces its shell by the process; `keep` or `detach` runs them.

run_etcd() { # FOLDER CLIENT_PORT PEER_PORT
  # No fsync: the data need not outlive the machine, and a test's writes are then as fast as memory.
  exec etcd --name local --data-dir "$1/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "http://127.0.0.1:$2" --advertise-client-urls "http://127.0.0.1:$2" \
    --listen-peer-urls "http://127.0.0.1:$3" --initial-advertise-peer-urls "http://127.0.0.1:$3" \
    --initial-cluster "local=http://127.0.0.1:$3"
}

run_apiserver() { # FOLDER ADDRESS PORT ETCD_PORT SERVICES [FLAG...]
  local pki=$1/pki
  # InternalIP first: by default exec and logs look up the node's host name, which no resolver knows.
  exec kube-apiserver --etcd-servers="http://127.0.0.1:$4" --bind-address="$2" --advertise-address="$2" --secure-port="$3" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --cert-dir="$pki" \
    --token-auth-file="$pki/tokens.csv" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/sa.pub" \
    --service-account-signing-key-file="$pki/sa.key" --service-cluster-ip-range="$5" --allow-privileged \
    --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate="$pki/kubelet-client.crt" \
    --kubelet-client-key="$pki/kubelet-client.key" --profiling=false "${@:6}"
}

run_controller_manager() { # FOLDER [FLAG...]
  exec kube-controller-manager --kubeconfig="$1/controller-manager.kubeconfig" --leader-elect=false --use-service-account-credentials \
    --service-account-private-key-file="$1/pki/sa.key" --root-ca-file="$1/pki/ca.crt" --cert-dir="$1/pki/controller-manager" "${@:2}"
}

run_scheduler() { # FOLDER
  exec kube-scheduler --kubeconfig="$1/scheduler.kubeconfig" --leader-elect=false --cert-dir="$1/pki/scheduler"
}

run_proxy() { # FOLDER NODE
  # Without --cluster-cidr traffic of the host would leave a node with the host's address and come back another way.
  exec kube-proxy --kubeconfig="$1/proxy.kubeconfig" --hostname-override="$2" --cluster-cidr="$(all_pods)" \
    --conntrack-max-per-core=0 --oom-score-adj=0
}

run_dns() { exec coredns -conf "$STATE/Corefile"; }

run_volumes() {
  exec local-path-provisioner start --kubeconfig "$STATE/volumes.kubeconfig" --config "$STATE/volumes.json" --helper-pod-file "$HERE/volumes/helper-pod.yaml" \
    --namespace local-path-storage --configmap-name local-path-config --service-account-name default --helper-image docker.io/local/busybox:1
}

# The first process of the control plane's box.
control_box() {
  keep etcd run_etcd "$STATE" 2379 2380 &
  keep apiserver run_apiserver "$STATE" "$(control_address)" 6443 2379 "$(services)" &
  # 16 s: a kubelet renews its lease every 3 s, and both may be short of processor time. A cut node is then NotReady in 20 s.
  keep controller-manager run_controller_manager "$STATE" --node-monitor-grace-period=16s &
  keep scheduler run_scheduler "$STATE" &
  keep volumes run_volumes &
  keep dns run_dns &
  # The host's way to Services. A proxy waits half a minute for a node of its name: lend it a node's.
  keep proxy run_proxy "$STATE" node1 &
  wait
}

# keep NAME COMMAND...: what ends is started again, as a real node's service manager does it: a component that finds
# the API server not ready yet ends.
keep() {
  local name=$1
  shift
  while :; do
    ("$@") >> "$LOG/$name.log" 2>&1 || true
    echo "local-kubernetes: $name ended; starting it again" >> "$LOG/$name.log"
    sleep 0.5
  done
}
