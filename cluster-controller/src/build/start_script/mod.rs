//! What a container runs before its server. It runs in whatever shell the image has, so it keeps to POSIX.

use crds::headless_service_name;

/// The start script. It is part of the pod template and never mounted: a pod keeps the script that it was created with, so that a spec
/// that changes cannot reach the data of running pods.
pub fn start_script(persistent: bool) -> String {
    let (settings, data) = if persistent {
        ("--appendonly yes", KEEP_SCRIPT)
    } else {
        (MEMORY_SETTINGS, WIPE_SCRIPT)
    };
    START_SCRIPT
        .replace("@SETTINGS@", settings)
        // In the shell: the name of a pod begins with that of its cluster.
        .replace("@HEADLESS@", &headless_service_name("${POD_NAME%-*-*}"))
        .replace("@DATA@\n", data)
}

/// The file a replica was copied by must not be found by the next process.
const MEMORY_SETTINGS: &str = "--appendonly no --rdb-del-sync-files yes";

const START_SCRIPT: &str = r#"set -eu
role='myself,(slave|master.* connected [0-9])'
server=$(command -v valkey-server || command -v redis-server)
# The pod's address changes, so it is announced at every start. Nothing else uses the name in the system log: by it a server without a role
# proves to the controller which pod it runs in.
set -- /config/redis.conf --dir /data --cluster-config-file nodes.conf --appendfilename appendonly.aof @SETTINGS@ \
  --cluster-announce-ip "$POD_IP" --syslog-ident "$POD_NAMESPACE/$POD_NAME/$POD_UID"
case $("$server" --version) in
  *v=[1-6].*) old=yes ;;
  # They carry the name to servers that know it only.
  *Valkey* | *v=[89].* | *v=[1-9][0-9]*) old=no named=yes ;;
  *) old=no named=no ;;
esac
if [ "$old" = no ]; then
  set -- "$@" --appenddirname appendonlydir
  # For clients that want a name, which stays while addresses change. Servers before 7.0 drop every message of a Redis 7 that announces one:
  # the controller turns it on once no such server is left. Then nodes.conf has the name, and later starts announce it again. One that is
  # not a pod's is that of a load balancer.
  name=$(sed -n 's/^[^ ]* [^ ,]*,\([^ ,][^ ,]*\)[^ ]* myself,.*/\1/p' /data/nodes.conf 2> /dev/null || :)
  [ -z "$name" ] || named=yes
  case $name in "" | *.svc) name=$POD_NAME.@HEADLESS@.$POD_NAMESPACE.svc ;; esac
  [ "$named" = no ] || set -- "$@" --cluster-announce-hostname "$name"
  # Replicas stay with their shard (a setting that came with 7.0).
  grep -q '^cluster-allow-replica-migration ' /config/redis.conf || set -- "$@" --cluster-allow-replica-migration no
else
  # Before, only so many other replicas of its primary let one go.
  grep -q '^cluster-migration-barrier ' /config/redis.conf || set -- "$@" --cluster-migration-barrier 1000000
fi
# Ports and certificates. Without the file the server would listen in the clear.
if [ -d /tls/ ]; then
  [ -s /tls/tls.conf ] || { echo "/tls/tls.conf is missing: the Secret with the certificates was changed by hand" >&2; exit 78; }
  set -- "$@" --include /tls/tls.conf
fi
@DATA@
# A server without a role of its own feeds no replica until the controller has given it one: the replica of a primary that came back
# empty at the same address would copy the emptiness.
if [ -e /users/users.conf ]; then
  users=/users/users.conf
  grep -Eqs "$role" /data/nodes.conf || users=/users/users-without-role.conf
  # Passwords have no place among arguments.
  set -- "$@" --include "$users" --include /users/replication.conf
else
  grep -Eqs "$role" /data/nodes.conf ||
    set -- "$@" --user default on nopass '~*' '&*' +@all -psync -sync
fi
exec "$server" "$@"
"#;

/// For pods with a volume. Its words for the status go to the termination log, where the kubelet finds them.
const KEEP_SCRIPT: &str = r#"refuse() {
  echo "$1" >&2
  echo "$1" 2> /dev/null > /dev/termination-log || :
  exit 78
}
# A volume belongs to one RedisCluster: its name is stamped on it. One that was written before there were stamps is stamped now.
cluster=$POD_NAMESPACE/${POD_NAME%-*-*}
stamp=$(cat /data/cluster 2> /dev/null || :)
case $stamp in
  "" | "$cluster" | "${ADOPT_VOLUMES-}") ;;
  *)
    refuse "the volume belongs to RedisCluster $stamp; to give it to this one: kubectl annotate -n $POD_NAMESPACE rediscluster ${cluster#*/} redis.danieldorado.github.io/adopt-volumes=$stamp"
    ;;
esac
if [ "$old" = yes ] && [ -e /data/appendonlydir ]; then
  refuse "/data/appendonlydir was written by a server of 7.0 or newer: this version cannot read it; correct spec.image or spec.version"
fi
# In one step, so that no interruption leaves half a name. A full disk keeps no server from starting.
if [ "$stamp" != "$cluster" ]; then
  { echo "$cluster" > /data/cluster.new && mv /data/cluster.new /data/cluster; } || echo "/data/cluster cannot be written"
fi
# A role without the data that belongs to it: under its old identity the server would empty its replicas. The files are kept aside, and
# it starts as a new node. nodes.conf is moved last: an interruption leaves it, and the next start goes on.
has_data() { [ -e /data/appendonly.aof ] || [ -e /data/appendonlydir/appendonly.aof.manifest ]; }
if grep -Eqs "$role" /data/nodes.conf && ! has_data; then
  aside=/data/set-aside-$(date -u +%Y%m%dT%H%M%SZ)
  echo "/data/nodes.conf names a role, but the append-only file is missing: starting as a new node; the old files are in $aside"
  mkdir -p "$aside"
  for file in /data/appendonlydir /data/dump.rdb /data/nodes.conf; do
    [ ! -e "$file" ] || mv "$file" "$aside"
  done
fi
"#;

/// For pods in memory only. It waits for seconds: a node timeout, and 4 for the agreement and the election. Whether there are replicas says the
/// node before, not the spec: they can be added to a shard that runs.
const WIPE_SCRIPT: &str = r"# The data died with the process before this one, so its identity must not return without it. The others need some time without an
# answer from this address before they elect a replica; one that answers with another id is never counted as failed.
if grep -Eqs '[ ,]slave[ ,]' /data/nodes.conf; then
  timeout=$(sed -n 's/^cluster-node-timeout //p' /config/redis.conf)
  trap 'exit 0' TERM
  sleep $((timeout / 1000 + 4)) & wait $!
  trap - TERM
fi
rm -rf /data/*
";

#[cfg(test)]
pub(crate) mod tests;
