//! Nodes that are gone for good are struck out of every table.

use super::{Action, Plan};
use crate::redis::survey::Survey;

/// Plans whom to forget. Only when every expected node answers with another id is it certain that none comes
/// back; only without slots and replicas is nothing lost; a node that any of ours is linked to is alive. One that was recorded in no pod is
/// forgotten as well: a node whose own pod was away for a while brings back the ids that the others have forgotten meanwhile. It is done on
/// all nodes in one reconcile, since each keeps the id out for a minute only and then learns it again from one that still has it.
pub fn forget(survey: &Survey<'_>, plan: &mut Plan) {
    if !survey.all_live() {
        return;
    }
    for (id, missing_node) in &survey.missing {
        let serves = missing_node.listed_with_slots || !missing_node.replicas.is_empty();
        if serves || !missing_node.is_lost() {
            continue;
        }
        let action = Action::Forget {
            id: *id,
            on: missing_node.known_by.clone(),
        };
        let reason = format!(
            "no pod has the id {} any more, and it has neither slots nor replicas",
            id.short()
        );
        plan.step(action, reason);
    }
}
