//! Replicas: every node that is not its shard's owner copies the owner.

use super::{Action, Hold, Plan};
use crate::redis::survey::{Live, Survey};

/// Plans whom the nodes without slots are to replicate.
pub fn attach(survey: &Survey<'_>, plan: &mut Plan) {
    for one in &survey.live {
        let Some(owner) = survey.owner(one.shard()) else {
            continue;
        };
        if owner.index == one.index || !one.report.own().slots.is_empty() {
            continue;
        }
        if one.report.own().is_primary() && one.report.keys > 0 {
            plan.holds.push(Hold::KeysWithoutSlots {
                pod: one.pod().to_owned(),
            });
            continue;
        }
        if let Some(reason) = why(survey, *one, owner) {
            let action = Action::Replicate {
                member: one.index,
                primary: owner.report.id(),
            };
            plan.step(action, reason);
        }
    }
}

/// Why the node has to be told to replicate the owner; none if it does so already, or cannot yet.
fn why(survey: &Survey<'_>, one: Live<'_>, owner: Live<'_>) -> Option<String> {
    // It has to know the owner under its live address first.
    let known = one.report.view.get(owner.report.id())?;
    let address = owner.member.place.address?;
    if known.address != Some(address) {
        return None;
    }
    let (pod, primary) = (one.pod(), owner.pod());
    match one.report.own().primary {
        None => Some(format!(
            "{pod} has no slots and no keys: it becomes a replica of {primary}"
        )),
        Some(current) if current == owner.report.id() => {
            let link = one.report.replication.upstream.as_ref()?;
            (!link.up && !link.leads_to(&address)).then(|| {
                format!("{pod} looks for {primary} at an old address: it is told again whom to replicate")
            })
        }
        // Its primary is gone but still owns slots: it is the one to take over, and its copy may be the only one.
        Some(current)
            if survey
                .ghosts
                .get(&current)
                .is_some_and(|ghost| !ghost.slots.is_empty()) =>
        {
            None
        }
        Some(current) => Some(format!(
            "{pod} replicates {}, which does not own the slots of its shard: it follows {primary}",
            current.short()
        )),
    }
}
