//! Nodes that are gone for good are struck out of every table.

use super::{Action, Plan};
use crate::redis::survey::Survey;

/// Plans whom to forget. Only when every place of the cluster answers with another id is it certain that nobody comes
/// back; only without slots and replicas is nothing lost. It is done on all nodes in one pass, since each keeps the id out for a
/// minute only and then learns it again from one that still has it.
pub fn forget(survey: &Survey<'_>, plan: &mut Plan) {
    if !survey.all_live() {
        return;
    }
    for (id, ghost) in &survey.ghosts {
        if ghost.listed_with_slots || !ghost.replicas.is_empty() {
            continue;
        }
        let action = Action::Forget {
            id: *id,
            on: ghost.known_by.clone(),
        };
        let reason = format!(
            "no pod has the id {} any more, and it has neither slots nor replicas",
            id.short()
        );
        plan.step(action, reason);
    }
}
