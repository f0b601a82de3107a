//! Replicas: every node that is not its shard's primary copies the primary.

use super::{Action, Blocker, Plan, node_timeout::formation_node_timeout};
use crate::redis::survey::{Live, Survey};

/// Plans whom the nodes without slots are to replicate.
pub fn attach(survey: &Survey<'_>, plan: &mut Plan) {
    for one in &survey.live {
        let Some(primary) = survey.primary_of(one.shard()) else {
            continue;
        };
        if primary.index == one.index || !one.report.own().slots.is_empty() {
            continue;
        }
        if one.report.own().is_primary() && one.report.keys > 0 {
            plan.blockers.push(Blocker::KeysWithoutSlots {
                pod: one.pod().to_owned(),
                returning: survey.free.is_empty(),
            });
            continue;
        }
        if let Some(reason) = why(survey, *one, primary) {
            let action = Action::Replicate {
                member: one.index,
                primary: primary.report.id(),
                formation_node_timeout: formation_node_timeout(survey)
                    .filter(|_| one.report.is_blank()),
            };
            plan.step(action, reason);
        }
    }
}

/// Why the node needs CLUSTER REPLICATE; none if it replicates the primary already, or cannot yet.
fn why(survey: &Survey<'_>, one: Live<'_>, primary: Live<'_>) -> Option<String> {
    // It has to know the primary under its live address first.
    let known = one.report.view.get(primary.report.id())?;
    let address = primary.member.expected.address?;
    if known.address != Some(address) {
        return None;
    }
    let (pod, primary_pod) = (one.pod(), primary.pod());
    match one.report.own().primary {
        None => Some(format!(
            "{pod} has no slots and no keys: it becomes a replica of {primary_pod}"
        )),
        Some(current) if current == primary.report.id() => {
            let link = one.report.replication.upstream.as_ref()?;
            (!link.up && !link.leads_to(&address)).then(|| {
                format!(
                    "{pod} looks for {primary_pod} at an old address: re-sending CLUSTER REPLICATE"
                )
            })
        }
        // Its primary is gone but still owns slots: it is the one to take over, and its copy may be the only one.
        Some(current)
            if survey
                .missing
                .get(&current)
                .is_some_and(|missing_node| !missing_node.slots.is_empty()) =>
        {
            None
        }
        Some(current) => Some(format!(
            "{pod} replicates {}, which does not own the slots of its shard: it follows {primary_pod}",
            current.short()
        )),
    }
}
