# shellcheck disable=SC2034  # other files use what is set here
# Every name, path and number of a run derives from INSTANCE, so that two instances share nothing but the compiled components.

say() { echo "local-kubernetes: $*" >&2; }
die() { say "$*"; exit 1; }
digest() { sha256sum | cut -c "1-${1:-12}"; }

instance_names() {
  local states longest=66   # a Unix socket's path is at most 107 bytes; the longest below STATE is that of the kubelet's device plug-ins
  states=${XDG_STATE_HOME:-$HOME/.local/state}/redis-operator
  INSTANCE=${INSTANCE:-$(default_instance $((longest - ${#states} - 1)))}
  [[ $INSTANCE =~ ^[A-Za-z0-9._-]+$ ]] || die "INSTANCE=$INSTANCE: use letters, digits, '.', '_' and '-' only"
  export INSTANCE
  STATE=$states/$INSTANCE
  CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/redis-operator
  [ ${#STATE} -le $longest ] || die "the state folder's path is longer than $longest characters: $STATE; choose a shorter INSTANCE or XDG_STATE_HOME"
  # Links are named $ID-n12; the kernel allows 15 characters. The state's path tells users with an equal INSTANCE apart.
  ID=rk$(digest 6 <<< "$STATE")
  LOG=$STATE/log
}

# Names of the user and the checkout, for people, cut to what there is room for; the digest of its path tells checkouts apart.
default_instance() { # LENGTH
  local checkout name room=$(($1 - 7))   # a dash and six digits
  checkout=$(cd "$HERE/../.." && pwd -P)
  name=$(id -un)-$(basename "$checkout")
  name=${name//[^A-Za-z0-9._-]/_}
  echo "${name:0:$((room > 1 ? room : 1))}-$(digest 6 <<< "$checkout")"
}

# exclusively COMMAND...: one command that changes the instance at a time. Long-lived children must close descriptor 9,
# or the lock would live as long as they do.
exclusively() {
  while :; do
    mkdir -p "$STATE"
    chmod 700 "$STATE"
    exec 9> "$STATE/lock"
    flock --wait 600 9 || die "another command has held $STATE/lock for 10 minutes"
    # `down` removes the file: who waited for the removed one starts over.
    [ ! "$STATE/lock" -ef /proc/self/fd/9 ] || break
  done
  "$@"
}

kubeconfig_path() { # cluster | apiserver
  case $1 in
    cluster) echo "$STATE/kubeconfig" ;;
    apiserver) echo "$STATE/apiserver/kubeconfig" ;;
    *) die "no kubeconfig named '$1': cluster or apiserver" ;;
  esac
}

environment() { # KUBECONFIG
  echo "export INSTANCE='$INSTANCE' KUBECONFIG='$1' PATH='$(components_path)':\"\$PATH\""
}

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { say "timed out waiting for $what"; return 1; }
    sleep 0.1
  done
}

# A process is known by its id and its start time: an id alone may be another's by now. A zombie, which only waits for
# its parent to notice, has ended.
started() { # PID
  local stat
  stat=$(cat "/proc/$1/stat" 2> /dev/null) || return 1
  stat=${stat##*) }   # the name in parentheses may hold spaces
  [ "${stat%% *}" != Z ] || return 1
  cut -d' ' -f20 <<< "$stat"
}

alive() { # FILE holding "PID START"
  local pid start
  read -r pid start 2> /dev/null < "$1" || return 1
  [ "$(started "$pid" || true)" = "$start" ]
}

end_process() { # FILE holding "PID START"
  local pid start
  alive "$1" || { rm -f "$1"; return 0; }
  read -r pid start < "$1"
  kill -KILL "$pid" 2> /dev/null || true
  wait_for 10 "process $pid to end" eval "! alive '$1'" || return 1
  rm -f "$1"
}
