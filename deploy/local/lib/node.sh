# Boxes (network, process, mount, host-name and IPC namespaces of their own) and the nodes that live in them.

# start_box BOX: this program enters the box's network and starts again in new namespaces as `__inside BOX`.
# nsenter, not `ip netns exec`: the latter remounts /sys, and hides the cgroups from kubelet and runc.
# setsid: Ctrl-C at whatever started us is not meant for the cluster.
start_box() {
  setsid nsenter --net="/run/netns/$ID-$1" unshare --pid --mount --uts --ipc --fork --kill-child \
    bash "$HERE/local-kubernetes" __inside "$1" < /dev/null >> "$LOG/box-$1.log" 2>&1 7>&- 8>&- 9>&- &
  disown
}

# The box's first process: all others are its children, and end when it is killed.
inside() { # BOX
  local box=$1 dir=$STATE/$1 self start
  read_block
  mkdir -p "$dir/log"
  # /proc is still the machine's, and tells our process id there.
  read -r self _ < /proc/self/stat
  start=$(started "$self")
  mount --make-rprivate / && mount --make-rshared /   # no mount of a box reaches the machine; a volume's reaches its containers
  mount -t proc proc /proc
  # What components keep at fixed places stays in the box: shims, runc's states, network namespaces, locks, pod logs.
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/netns /run/lock
  mount --bind "$dir/log" /var/log
  # No resolver: an image that was not loaded is missing at once instead of after a registry's name timed out.
  : > "$dir/no-resolver"
  [ ! -e /etc/resolv.conf ] || mount --bind "$dir/no-resolver" /etc/resolv.conf
  echo "$box" > /proc/sys/kernel/hostname
  echo 1 > /proc/sys/net/ipv4/ip_forward   # the box's own: nodes forward to pods, the control plane the host's way to Services
  PATH=$(components_path):/usr/sbin:/usr/bin:/sbin:/bin
  echo "$self $start" > "$dir/first-process"
  case $box in
    control) control_box ;;
    node*) node_box "${box#node}" ;;
  esac
}

node_box() { # N
  local dir=$STATE/node$1
  mkdir -p /var/lib/cni "$dir/cni-cache"
  mount --bind "$dir/cni-cache" /var/lib/cni
  shield_kernel_settings
  keep "containerd-node$1" containerd --config "$dir/containerd.toml" &
  keep "proxy-node$1" run_proxy "$STATE" "node$1" &
  keep "kubelet-node$1" run_kubelet "$1" &
  wait
}

# A kubelet sets these for the whole machine if they are not as it wants them. It sees what it wants and leaves them alone.
shield_kernel_settings() {
  local setting value
  while read -r setting value; do
    echo "$value" > "/run/setting-${setting//\//-}"
    mount --bind "/run/setting-${setting//\//-}" "/proc/sys/$setting"
  done << Y
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
Y
}

run_kubelet() { # N
  local dir=$STATE/node$1
  exec kubelet --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubeconfig" --hostname-override="node$1" --node-ip="$(node_address "$1")" \
    --node-labels="topology.kubernetes.io/zone=zone$1" --root-dir="$dir/kubelet" --cert-dir="$dir/pki"
}

node_files() { # N
  local dir=$STATE/node$1
  mkdir -p "$dir"/{cni,volumes}
  : > "$dir/resolv.conf"   # pods resolve the cluster's names, and none by the machine's resolver
  identity "$STATE" "node$1/kubeconfig" "system:node:node$1" system:nodes
  cat > "$dir/containerd.toml" << Y
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  # Without CAP_SYS_RESOURCE a negative oom_score_adj is refused, and runc ends with "can't get final child's PID from pipe".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
Y
  cat > "$dir/cni/10-local.conflist" << Y
{"cniVersion": "1.0.0", "name": "local", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "$(node_pods "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
Y
  # cgroupRoot: with a common one, kubelets remove each other's pods' groups.
  cat > "$dir/kubelet.yaml" << Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /$ID-node$1
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: $dir/resolv.conf
volumePluginDir: $dir/kubelet/volume-plugins
oomScoreAdj: 0
serializeImagePulls: false
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: "200Mi"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 3s
nodeLeaseDurationSeconds: 12
clusterDNS: [$(dns_address)]
clusterDomain: cluster.local
Y
}

# A group a node below every hierarchy's root. Version 1's cpuset must be filled before a group below it can hold a process.
cgroups_up() { # N
  local root=/sys/fs/cgroup hierarchy file
  if [ -e $root/cgroup.controllers ]; then
    # shellcheck disable=SC2013
    for file in $(cat $root/cgroup.controllers); do echo "+$file" > $root/cgroup.subtree_control 2> /dev/null || true; done
    mkdir -p "$root/$ID-node$1"
    return
  fi
  for hierarchy in "$root"/*/; do
    [ ! -L "${hierarchy%/}" ] || continue   # cpu and cpuacct may be links to cpu,cpuacct
    mkdir -p "$hierarchy$ID-node$1"
  done
  for file in cpus mems; do cat "$root/cpuset/cpuset.$file" > "$root/cpuset/$ID-node$1/cpuset.$file"; done
}

cgroup_folders() { find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$ID-*"; }

# A group is busy for a moment after its last process was killed.
cgroups_down() {
  wait_for 20 "the control groups of $ID to empty" remove_cgroups
}

remove_cgroups() {
  local folder
  for folder in $(cgroup_folders); do find "$folder" -depth -type d -exec rmdir {} + 2> /dev/null || true; done
  [ -z "$(cgroup_folders)" ]
}
