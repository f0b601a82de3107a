//! Observes, plans and acts until the cluster is whole: the whole Redis half without Kubernetes, for tests and benchmarks.

use super::{
    assess::{Assessment, assess},
    execute::{Done, execute},
    member::{Member, Place, Wanted},
    observe::observe,
    plan::plan,
};
use k8s_openapi::jiff::Timestamp;
use std::time::{Duration, Instant};

/// How the driving went.
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

/// Turns until the cluster is whole and nothing is left to do, or the time is over.
pub async fn drive(
    wanted: &Wanted,
    places: &[Place],
    pause: Duration,
    patience: Duration,
) -> Drive {
    let start = Instant::now();
    let timeout = Duration::from_secs(1);
    let mut done = Vec::new();
    loop {
        let members = observe(places, timeout).await;
        let assessment = assess(wanted, &members);
        let steps = plan(wanted, &members, Timestamp::now());
        let whole = assessment.is_whole() && steps.steps.is_empty();
        if whole || start.elapsed() > patience {
            return Drive {
                assessment,
                members,
                done,
                took: start.elapsed(),
            };
        }
        done.extend(execute(&steps, &members, timeout).await);
        tokio::time::sleep(pause).await;
    }
}
