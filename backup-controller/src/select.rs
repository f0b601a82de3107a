//! Which node of a shard is read. Pure; called right before the snapshot is asked for.

use common::cluster::{
    info::ReplicationInfo,
    topology::{NodeAddress, NodeId},
};
use crds::SourceRole;

/// How many bytes of the stream of writes a replica may be behind its primary. Usually it is a few hundred: a replica
/// further behind than this does not keep up.
pub const MAX_LAG: u64 = 16 << 20;

/// A node that answered just now.
#[derive(Clone, Debug)]
pub struct SourceCandidate {
    /// Where it is.
    pub address: NodeAddress,
    /// The node id, which a connection has to prove.
    pub id: NodeId,
    /// Whether it still loads its data.
    pub loading: bool,
    /// Whether it serves (`cluster_state:ok`). On the smaller side of a split network a node does not: what it holds may have
    /// been replaced by a failover on the other side.
    pub serves: bool,
    /// What it says about replication.
    pub replication: ReplicationInfo,
}

/// The node to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it is.
    pub address: NodeAddress,
    /// The node id, which a connection has to prove.
    pub id: NodeId,
    /// What the node was when it was chosen.
    pub role: SourceRole,
}

/// No node of the shard can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no node of the shard can be read now: {reasons}")]
pub struct NoSource {
    /// What is wrong with each node.
    pub reasons: String,
}

/// Chooses among the nodes of one shard that answered: the in-sync replica with the smallest lag, or else the primary.
pub fn choose(
    primary: Option<&SourceCandidate>,
    replicas: &[SourceCandidate],
    prefer: SourceRole,
) -> Result<Choice, NoSource> {
    let mut reasons = Vec::new();
    if prefer == SourceRole::Replica {
        let in_sync = replicas.iter().filter(|replica| {
            let defect = replica_defect(replica, primary);
            if let Some(defect) = defect {
                reasons.push(format!("replica {} {defect}", replica.address));
            }
            defect.is_none()
        });
        // The id decides between equals, so that two observers choose alike.
        if let Some(best) = in_sync.max_by_key(|replica| (replica.replication.offset, replica.id)) {
            return Ok(best.chosen(SourceRole::Replica));
        }
    }
    match primary {
        Some(primary) if primary.replication.upstream.is_some() => {
            reasons.push(format!("{} is no longer a primary", primary.address));
        }
        Some(primary) if primary.loading => {
            reasons.push(format!(
                "primary {} is still loading its data",
                primary.address
            ));
        }
        Some(primary) if !primary.serves => {
            reasons.push(format!("primary {} {NOT_SERVING}", primary.address));
        }
        Some(primary) => return Ok(primary.chosen(SourceRole::Primary)),
        None => reasons.push("the primary does not answer".to_owned()),
    }
    Err(NoSource {
        reasons: reasons.join(", "),
    })
}

/// What is said of a node that does not serve.
pub const NOT_SERVING: &str = "sees the cluster as failed (cluster_state is not ok)";

/// The roles to try on an attempt, one after the other: on the last of several the primary goes first, because a replica whose
/// snapshots always fail looks as healthy as any other.
pub fn order(prefer: SourceRole, attempt: i32, attempts: i32) -> (SourceRole, Option<SourceRole>) {
    if prefer == SourceRole::Replica && attempts > 1 && attempt >= attempts {
        (SourceRole::Primary, Some(SourceRole::Replica))
    } else {
        (prefer, None)
    }
}

impl SourceCandidate {
    fn chosen(&self, role: SourceRole) -> Choice {
        Choice {
            address: self.address,
            id: self.id,
            role,
        }
    }
}

/// Why a replica cannot be read instead of its primary; `None` if it can.
fn replica_defect(
    replica: &SourceCandidate,
    primary: Option<&SourceCandidate>,
) -> Option<&'static str> {
    let Some(link) = &replica.replication.upstream else {
        return Some("is no longer a replica");
    };
    if replica.loading {
        return Some("is still loading its data");
    }
    if !replica.serves {
        return Some(NOT_SERVING);
    }
    if link.syncing {
        return Some("receives a full copy from its primary");
    }
    if !link.up {
        return Some("has lost the link to its primary");
    }
    let Some(primary) = primary else {
        // The link is up, so the primary is alive; only this controller cannot reach it.
        return None;
    };
    if !link.leads_to(&primary.address) {
        return Some("follows another primary");
    }
    if replica.replication.id != primary.replication.id {
        return Some("has another history than its primary");
    }
    let lag = primary
        .replication
        .offset
        .saturating_sub(replica.replication.offset);
    (lag > MAX_LAG).then_some("is too far behind its primary")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cluster::info::UpstreamLink;
    use proptest::prelude::*;

    fn address(last: u8) -> NodeAddress {
        NodeAddress::new([10, 0, 0, last].into(), 6379)
    }

    fn primary() -> SourceCandidate {
        SourceCandidate {
            address: address(1),
            id: NodeId::from_bytes([1; 20]),
            loading: false,
            serves: true,
            replication: ReplicationInfo {
                offset: 100 << 20,
                id: "history".into(),
                ..ReplicationInfo::default()
            },
        }
    }

    fn replica(last: u8, offset: u64) -> SourceCandidate {
        SourceCandidate {
            address: address(last),
            id: NodeId::from_bytes([last; 20]),
            loading: false,
            serves: true,
            replication: ReplicationInfo {
                offset,
                id: "history".into(),
                upstream: Some(UpstreamLink {
                    ip: Some(address(1).ip),
                    port: Some(6379),
                    up: true,
                    syncing: false,
                }),
                ..ReplicationInfo::default()
            },
        }
    }

    fn link(candidate: &mut SourceCandidate) -> &mut UpstreamLink {
        candidate.replication.upstream.as_mut().unwrap()
    }

    #[test]
    fn the_replica_that_is_nearest_is_preferred() {
        let near = 100 << 20;
        let replicas = [replica(2, near - 50), replica(3, near - 10)];
        let choice = choose(Some(&primary()), &replicas, SourceRole::Replica).unwrap();
        assert_eq!(
            (choice.address, choice.role),
            (address(3), SourceRole::Replica)
        );
        let choice = choose(Some(&primary()), &replicas, SourceRole::Primary).unwrap();
        assert_eq!(
            (choice.address, choice.role),
            (address(1), SourceRole::Primary)
        );
    }

    #[test]
    fn a_defective_replica_leaves_the_primary() {
        let near = 100 << 20;
        let defects: [fn(&mut SourceCandidate); 8] = [
            |r| link(r).up = false,
            |r| link(r).syncing = true,
            |r| link(r).ip = Some(address(9).ip),
            |r| r.loading = true,
            |r| r.serves = false,
            |r| r.replication.offset = 0,
            |r| r.replication.id = "another".into(),
            |r| r.replication.upstream = None,
        ];
        for spoil in defects {
            let mut spoiled = replica(2, near);
            spoil(&mut spoiled);
            let choice = choose(Some(&primary()), &[spoiled.clone()], SourceRole::Replica).unwrap();
            assert_eq!(choice.role, SourceRole::Primary, "{spoiled:?}");
        }
    }

    #[test]
    fn without_any_node_every_reason_is_named() {
        let mut broken = replica(2, 0);
        link(&mut broken).up = false;
        let error = choose(None, &[broken], SourceRole::Replica).unwrap_err();
        assert_eq!(
            error.reasons,
            "replica 10.0.0.2:6379 has lost the link to its primary, the primary does not answer"
        );
    }

    #[test]
    fn a_replica_is_read_though_its_primary_is_unreachable() {
        let choice = choose(None, &[replica(2, 5)], SourceRole::Replica).unwrap();
        assert_eq!(choice.address, address(2));
    }

    #[test]
    fn a_primary_that_was_demoted_is_not_read() {
        let demoted = replica(1, 5);
        assert!(choose(Some(&demoted), &[], SourceRole::Primary).is_err());
    }

    #[test]
    fn a_primary_that_was_cut_off_is_not_read() {
        let mut cut_off = primary();
        cut_off.serves = false;
        for prefer in [SourceRole::Primary, SourceRole::Replica] {
            let error = choose(Some(&cut_off), &[], prefer).unwrap_err();
            assert!(error.reasons.contains("cluster_state"), "{error}");
        }
    }

    #[test]
    fn on_the_last_of_several_attempts_the_primary_goes_first() {
        use SourceRole::{Primary, Replica};
        assert_eq!(order(Replica, 1, 3), (Replica, None));
        assert_eq!(order(Replica, 3, 3), (Primary, Some(Replica)));
        assert_eq!(order(Replica, 1, 1), (Replica, None));
        assert_eq!(order(Primary, 3, 3), (Primary, None));
    }

    proptest! {
        #[test]
        fn a_defective_node_is_never_chosen(
            nodes in prop::collection::vec((2u8..9, any::<bool>(), any::<bool>(), 0u64..(200 << 20), any::<bool>()), 0..5),
            with_primary: bool,
        ) {
            let replicas: Vec<_> = nodes.iter().map(|(last, up, syncing, offset, loading)| {
                let mut one = replica(*last, *offset);
                one.loading = *loading;
                link(&mut one).up = *up;
                link(&mut one).syncing = *syncing;
                one
            }).collect();
            let primary = with_primary.then(primary);
            match choose(primary.as_ref(), &replicas, SourceRole::Replica) {
                Ok(choice) if choice.role == SourceRole::Replica => {
                    let chosen = replicas.iter().find(|r| r.address == choice.address
                        && replica_defect(r, primary.as_ref()).is_none());
                    prop_assert!(chosen.is_some());
                }
                Ok(_) => {
                    prop_assert!(with_primary);
                    prop_assert!(replicas.iter().all(|r| replica_defect(r, primary.as_ref()).is_some()));
                }
                Err(_) => prop_assert!(!with_primary),
            }
        }
    }
}
