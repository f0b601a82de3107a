//! What a container runs before its server stops. It runs in whatever shell the image has, so it keeps to POSIX.

/// Hands a primary over. Every question has its limit: a replica that goes at the same time may leave an address that swallows packets, and
/// a connect to it would last until the grace period of the pod has passed. And it may be another cluster's by now: who answers has to have the
/// id that this server knows there.
pub(super) const STOP_SCRIPT: &str = r#"# Before the server stops: a primary hands over to a replica, so that its shard goes on without an election.
cli=$(command -v redis-cli || command -v valkey-cli)
ask() {
  "$cli" "$@" 2>/dev/null & answer=$!
  { sleep 2; kill "$answer"; } >/dev/null 2>&1 & limit=$!
  wait "$answer"
  kill "$limit" 2>/dev/null
}
# Where servers know users: as the one that is for this. A server that does not know it lets clients in without.
if [ -s /users/probe ]; then
  REDISCLI_AUTH=$(cat /users/probe)
  export REDISCLI_AUTH
  set -- --user redis-operator-probe
fi
@OPTIONS@
nodes=$(ask "$@" -h 127.0.0.1 cluster nodes)
ask "$@" -h 127.0.0.1 info replication | tr -d '\r' |
  sed -n 's/^slave[0-9]*:ip=\([^,]*\),port=\([0-9]*\),state=online.*/\1 \2/p' |
  while read -r ip port; do
    # Which of its ports a server announces depends on how far it encrypts.
    port=${tls_port:-$port}
    id=$(ask "$@" -h "$ip" -p "$port" cluster myid)
    [ -n "$id" ] && echo "$nodes" | grep -q "^$id $ip:[0-9]*@" || continue
    ask "$@" -h "$ip" -p "$port" cluster failover | grep -q OK || continue
    tries=0
    while [ "$tries" -lt 20 ]; do
      ask "$@" -h 127.0.0.1 role | grep -q slave && break 2
      tries=$((tries + 1))
      sleep 0.2
    done
    break
  done
exit 0
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::start_script::tests::run_with_client;

    const REPLICAS: &str = "slave0:ip=10.0.0.2,port=6379,state=online,offset=1,lag=0
slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0
slave2:ip=10.0.0.4,port=6379,state=online,offset=1,lag=0";
    const NODES: &str = "a1 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-99
a2 10.0.0.2:6379@16379 slave a1 0 0 1 connected
a3 10.0.0.3:6379@16379,shop-0-2 slave a1 0 0 1 connected
a4 10.0.0.4:6379@16379,shop-0-3 slave a1 0 0 1 connected";
    const IDS: &str = "'-h 10.0.0.2 -p 6379 cluster myid') echo a2 ;;\n'-h 10.0.0.4 -p 6379 cluster myid') echo a4 ;;";

    /// Which servers were asked for what. `client`: what the client does for replicas, by address.
    fn stop(role: &str, replicas: &str, client: &str) -> Vec<String> {
        stop_with("", role, replicas, client)
    }

    /// The same with these lines in the place of the options.
    fn stop_with(options: &str, role: &str, replicas: &str, client: &str) -> Vec<String> {
        let client = format!(
            "echo \"$*\" >> asked\ncase \"$*\" in\n\
             '-h 127.0.0.1 info replication') echo 'role:{role}'; echo '{replicas}' ;;\n\
             '-h 127.0.0.1 cluster nodes') echo '{NODES}' ;;\n\
             '-h 127.0.0.1 role') echo slave ;;\n\
             {client}\n{IDS}\nesac\n"
        );
        let script = STOP_SCRIPT.replace("@OPTIONS@\n", options);
        let (ended, dir) = run_with_client(&script, &client);
        assert!(ended.status.success(), "{ended:?}");
        let asked = dir.into_iter().find(|(name, _)| name == "asked");
        let asked = asked.map(|(_, text)| text).unwrap_or_default();
        asked.lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_primary_hands_over_to_a_linked_replica() {
        let asked = stop("master", REPLICAS, "'-h 10.0.0.2'*failover) echo OK ;;");
        let orders = asked.iter().filter(|one| one.ends_with("cluster failover"));
        let orders: Vec<&String> = orders.collect();
        assert_eq!(
            orders,
            ["-h 10.0.0.2 -p 6379 cluster failover"],
            "{asked:?}"
        );
        assert_eq!(asked.last().unwrap(), "-h 127.0.0.1 role");
    }

    /// It announces the port in the clear before it encrypts what it sends others.
    #[test]
    fn a_replica_is_asked_at_its_encrypted_port() {
        let options = "tls_port=6380\n";
        let client =
            "'-h 10.0.0.2 -p 6380 cluster myid') echo a2 ;;\n'-h 10.0.0.2'*failover) echo OK ;;";
        let asked = stop_with(options, "master", REPLICAS, client);
        let order = "-h 10.0.0.2 -p 6380 cluster failover".to_owned();
        assert!(asked.contains(&order), "{asked:?}");
    }

    /// The client would wait for longer than any grace period.
    #[test]
    fn a_replica_that_is_gone_is_passed_over() {
        let gone = "'-h 10.0.0.2'*) exec sleep 600 ;;\n'-h 10.0.0.4'*failover) echo OK ;;";
        let asked = stop("master", REPLICAS, gone);
        assert_eq!(
            asked[asked.len() - 2..],
            ["-h 10.0.0.4 -p 6379 cluster failover", "-h 127.0.0.1 role"],
            "{asked:?}"
        );
    }

    #[test]
    fn a_server_of_another_cluster_gets_no_order() {
        let other =
            "'-h 10.0.0.2 -p 6379 cluster myid') echo b7 ;;\n'-h 10.0.0.'*failover) echo OK ;;";
        let asked = stop("master", REPLICAS, other);
        let orders: Vec<&String> = asked
            .iter()
            .filter(|one| one.ends_with("failover"))
            .collect();
        assert_eq!(
            orders,
            ["-h 10.0.0.4 -p 6379 cluster failover"],
            "{asked:?}"
        );
    }

    #[test]
    fn a_replica_orders_nothing() {
        let asked = stop("slave", "", "");
        assert!(
            asked.iter().all(|one| !one.contains("failover")),
            "{asked:?}"
        );
    }
}
