//! Nodes that are none of the cluster's pods: reported, and left alone.

use super::{Blocker, Plan};
use crate::redis::{member::Answer, survey::Survey};

/// Reports foreign servers at expected addresses, and living nodes of the cluster that run in none of its pods.
pub fn report(survey: &Survey<'_>, plan: &mut Plan) {
    for member in survey.members {
        if let Answer::Foreign(foreign) = &member.answer {
            plan.blockers.push(Blocker::ForeignNode {
                pod: member.expected.pod.clone(),
                foreign: foreign.clone(),
            });
        }
    }
    let addresses = survey.addresses();
    for (id, missing) in &survey.missing {
        let lost = !missing.recorded && missing.unreachable_by_all && survey.all_live();
        // A pod that has just left: its node is forgotten as soon as the others have noticed that it ended.
        let has_left = missing.recorded && missing.slots.is_empty();
        if lost || (missing.is_outside(&addresses) && !has_left) {
            plan.blockers.push(Blocker::NodeWithoutPod {
                id: *id,
                address: missing.address.filter(|_| !lost),
                slots: missing.slots.len(),
            });
        }
    }
}
