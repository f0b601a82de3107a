//! The Redis half of the cluster-controller without Kubernetes: observes, plans and acts until the cluster is healthy, as often as
//! the product does.
use crate::redis::PodCluster;
use cluster_controller::{
    copies::CopyTracker,
    elections::ElectionTracker,
    fencing::LastSeenNodes,
    redis::{
        assess::{Assessment, assess},
        execute::{Done, execute},
        identity::{KnownNodes, has_unrecorded, known_nodes, recognize},
        member::{ExpectedNode, Member, Wanted},
        observe::observe,
        plan::{Plan, plan},
        survey::Survey,
        unserved::count_unserved,
    },
    requeue::SOON,
};
use common::cluster::kept_connections::ClusterConnections;
use k8s_openapi::jiff::Timestamp;
use std::time::{Duration, Instant};

/// Between two reconciles while something happens.
pub const RECONCILE_INTERVAL: Duration = SOON;

/// Longest wait for a node's answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The end of a drive.
#[derive(Debug)]
pub struct Drive {
    /// How the cluster was in the end.
    pub assessment: Assessment,
    /// What every node said in the end.
    pub members: Vec<Member>,
    /// What is left to do in the end.
    pub plan: Plan,
    /// The node ids that belong to the cluster, as its status records them.
    pub known: KnownNodes,
    /// Every step that was done.
    pub done: Vec<Done>,
    /// How long it took.
    pub took: Duration,
}

/// Reconciles until the cluster is healthy and nothing is left to do, or the time is over.
pub async fn drive(wanted: &Wanted, expected: &[ExpectedNode], patience: Duration) -> Drive {
    let (copies, elections) = (CopyTracker::default(), ElectionTracker::default());
    drive_on((&copies, &elections), wanted, expected, patience).await
}

async fn drive_on(
    (copies, elections): (&CopyTracker, &ElectionTracker),
    wanted: &Wanted,
    expected: &[ExpectedNode],
    patience: Duration,
) -> Drive {
    let start = Instant::now();
    let connections = ClusterConnections::default();
    let mut done = Vec::new();
    let mut wanted = wanted.clone();
    loop {
        let mut members = observe(expected, &connections, TIMEOUT).await;
        recognize(&wanted, &mut members);
        count_unserved(&wanted, &mut members, &connections, TIMEOUT).await;
        let known = known_nodes(&wanted, &members);
        let is_new = has_unrecorded(&wanted, &known);
        wanted.known = known;
        let now = Timestamp::now();
        elections.note(("test", "test"), &mut members, wanted.node_timeout, now);
        let survey = Survey::of(&wanted, &members);
        let times = copies.note(("test", "test"), &survey, &LastSeenNodes::new(), now);
        times.mark(&mut members, &wanted.known);
        let survey = Survey::of(&wanted, &members);
        let assessment = assess(&survey);
        let steps = plan(&survey, now);
        let healthy = assessment.is_healthy() && steps.steps.is_empty();
        if healthy || start.elapsed() > patience {
            return Drive {
                assessment,
                members,
                plan: steps,
                known: wanted.known,
                done,
                took: start.elapsed(),
            };
        }
        // A node is recorded first, and gets its first command in the next reconcile.
        if is_new {
            continue;
        }
        done.extend(execute(&steps, &members, &connections, TIMEOUT).await);
        tokio::time::sleep(RECONCILE_INTERVAL).await;
    }
}

/// The same for the servers of a cluster, with the node ids that were recorded before, and records them.
pub async fn drive_pods(cluster: &PodCluster, wanted: &Wanted, patience: Duration) -> Drive {
    let wanted = Wanted {
        known: cluster.known(),
        ..wanted.clone()
    };
    let seen = (cluster.copies(), cluster.elections());
    let drive = drive_on(seen, &wanted, &cluster.expected(), patience).await;
    cluster.record(&drive.known);
    drive
}
