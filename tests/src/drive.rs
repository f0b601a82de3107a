//! The Redis half of the cluster-controller without Kubernetes: observes, plans and acts until the cluster is healthy, at the
//! pace of the product.

use cluster_controller::{
    pace::SOON,
    redis::{
        assess::{Assessment, assess},
        execute::{Done, execute},
        member::{Member, Place, Wanted},
        observe::observe,
        plan::plan,
    },
};
use k8s_openapi::jiff::Timestamp;
use std::time::{Duration, Instant};

/// Between two reconciles while something happens.
pub const PACE: Duration = SOON;

/// Longest wait for a node's answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The end of a drive.
#[derive(Debug)]
pub struct Drive {
    /// How the cluster was in the end.
    pub assessment: Assessment,
    /// What every node said in the end.
    pub members: Vec<Member>,
    /// Every step that was done.
    pub done: Vec<Done>,
    /// How long it took.
    pub took: Duration,
}

/// Reconciles until the cluster is healthy and nothing is left to do, or the time is over.
pub async fn drive(wanted: &Wanted, places: &[Place], patience: Duration) -> Drive {
    let start = Instant::now();
    let mut done = Vec::new();
    loop {
        let members = observe(places, TIMEOUT).await;
        let assessment = assess(wanted, &members);
        let steps = plan(wanted, &members, Timestamp::now());
        let healthy = assessment.is_whole() && steps.steps.is_empty();
        if healthy || start.elapsed() > patience {
            return Drive {
                assessment,
                members,
                done,
                took: start.elapsed(),
            };
        }
        done.extend(execute(&steps, &members, TIMEOUT).await);
        tokio::time::sleep(PACE).await;
    }
}
