//! The Redis half of the cluster-controller without Kubernetes: observes, plans and acts until the cluster is healthy, as often as
//! the product does.
use crate::{
    redis::{PodCluster, own_users},
    wait::eventually,
};
use anyhow::Result;
use cluster_controller::{
    copies::CopyTracker,
    elections::ElectionTracker,
    fencing::LastSeenNodes,
    redis::{
        assess::{Assessment, assess},
        election::would_win,
        execute::{Done, execute},
        identity::{KnownNodes, has_unrecorded, known_nodes, recognize},
        member::{ExpectedNode, Member, Wanted},
        observe::observe,
        plan::{Action, HandOverReason, Plan, Step, plan},
        survey::Survey,
        unserved::count_unserved,
    },
    requeue::SOON,
};
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

/// What the looks of a controller have left in its memory.
#[derive(Debug, Default)]
pub struct EarlierLooks {
    copies: CopyTracker,
    elections: ElectionTracker,
}

/// Reconciles until the cluster is healthy and nothing is left to do, or the time is over.
pub async fn drive(wanted: &Wanted, expected: &[ExpectedNode], patience: Duration) -> Drive {
    drive_on(&EarlierLooks::default(), wanted, expected, patience).await
}

async fn drive_on(
    EarlierLooks { copies, elections }: &EarlierLooks,
    wanted: &Wanted,
    expected: &[ExpectedNode],
    patience: Duration,
) -> Drive {
    let start = Instant::now();
    let connections = own_users::connections();
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
    let drive = drive_on(cluster.looks(), &wanted, &cluster.expected(), patience).await;
    cluster.record(&drive.known);
    drive
}

/// Lets a primary hand over to its replica, once the voters know that.
pub async fn hand_over(cluster: &PodCluster, from: usize, to: usize) -> Result<()> {
    let connections = own_users::connections();
    let wanted = cluster.wanted(true);
    let members = eventually("the others know the replica", async || {
        let members = observe(&cluster.expected(), &connections, TIMEOUT).await;
        let survey = Survey::of(&wanted, &members);
        let both = survey.by_index(to).zip(survey.by_index(from));
        let is_known = both.is_some_and(|(to, from)| would_win(&survey, to, from));
        Ok(is_known.then_some(members))
    })
    .await?;
    let action = Action::HandOver {
        to,
        from,
        reason: HandOverReason::Replace,
    };
    let reason = "the test asks for it".to_owned();
    let steps = Plan {
        steps: vec![Step { action, reason }],
        ..Plan::default()
    };
    for done in execute(&steps, &members, &connections, TIMEOUT).await {
        done.result?;
    }
    Ok(())
}
