# etcd and kube-apiserver alone: what tests of CRDs, server-side apply, access rules and leases need. No root, no namespaces.

lone_apiserver() { # [--controllers]
  local dir=$STATE/apiserver controllers=no bin attempt
  case ${1:-} in
    "") ;;
    --controllers) controllers=yes ;;
    *) die "apiserver: unknown argument '$1'" ;;
  esac
  bin=$(components)
  export PATH=$bin:$PATH KUBECONFIG=$dir/kubeconfig
  if [ "$(cat "$dir/controllers" 2> /dev/null)" = $controllers ] && lone_apiserver_ready; then echo "$KUBECONFIG"; return; fi
  # Another process may take a port between the check and the bind: try again with other ports.
  for attempt in 1 2 3; do
    lone_apiserver_down
    if start_lone_apiserver "$dir" $controllers; then echo "$KUBECONFIG"; return; fi
    say "attempt $attempt to start an API server failed"
    grep -hE '^[EF][0-9]|"level":"(error|fatal)"|^Error' "$dir"/*.log | tail -n 5 >&2 || true
  done
  die "the API server did not start; logs: $dir/*.log"
}

lone_apiserver_ready() { kubectl get --raw /readyz --request-timeout=2s > /dev/null 2>&1; }

start_lone_apiserver() { # FOLDER CONTROLLERS
  local dir=$1 etcd peer port
  local -a flags=()
  etcd=$(free_port) peer=$(free_port) port=$(free_port)
  mkdir -p "$dir"
  credentials "$dir" 127.0.0.1 "$port" 10.0.0.1
  identity "$dir" kubeconfig admin system:masters
  identity "$dir" controller-manager.kubeconfig system:kube-controller-manager
  # No controller makes the default service account that this plug-in wants of every pod.
  [ "$2" = yes ] || flags=(--disable-admission-plugins=ServiceAccount)
  detach "$dir" etcd run_etcd "$dir" "$etcd" "$peer"
  detach "$dir" kube-apiserver run_apiserver "$dir" 127.0.0.1 "$port" "$etcd" 10.0.0.0/24 "${flags[@]}"
  # Bound to nothing: its own port would be in the way of the next instance's.
  [ "$2" = no ] || detach "$dir" kube-controller-manager run_controller_manager "$dir" --secure-port=0
  echo "$2" > "$dir/controllers"
  wait_for 60 "the API server at 127.0.0.1:$port" lone_apiserver_ready_or_ended "$dir" && lone_apiserver_ready || return 1
  [ "$2" = no ] || wait_for 60 "the controllers to make the default service account" kubectl get serviceaccount default
}

# Waiting ends when a process did: it will not come back.
lone_apiserver_ready_or_ended() { # FOLDER
  lone_apiserver_ready || ! alive "$1/etcd.process" || ! alive "$1/kube-apiserver.process"
}

# detach FOLDER NAME COMMAND...: the process records itself before it becomes COMMAND, so that nothing runs unrecorded.
# set -m: in a process group of its own, where Ctrl-C at whatever started us does not reach it.
detach() {
  local record=$1/$2.process log=$1/$2.log
  shift 2
  set -m
  ( self=$BASHPID   # inside $( ) it is another
    echo "$self $(started "$self")" > "$record.new" && mv "$record.new" "$record"
    "$@" ) < /dev/null >> "$log" 2>&1 9>&- &
  disown
  set +m
  wait_for 30 "the record $record" test -e "$record"
}

lone_apiserver_down() {
  local name
  for name in kube-controller-manager kube-apiserver etcd; do end_process "$STATE/apiserver/$name.process"; done
  rm -rf "$STATE/apiserver"
}

# Below 32768, where the kernel takes the ports of outgoing connections from.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
  done
  echo $port
}
