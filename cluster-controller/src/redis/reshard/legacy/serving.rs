//! Whether the source of slots still serves them: a replica may have taken over from it while it waited for an answer.

use crate::redis::reshard::{error::ReshardError, nodes::NodeLink};
use common::cluster::{
    slots::Slot,
    topology::{NodeId, NodesView, OpenSlotKind},
};

/// Fails unless the source serves the slots and gives them to this target, in the view of both.
///
/// It is asked before a value at the target is removed, and before slots are handed over. A source that waits for the target of `MIGRATE`
/// answers no one else, so that a replica may be elected, which acknowledges writes. The source learns of it a moment after it has answered, and
/// the target ignores what its successor claims as long as it expects the slots itself (`clusterUpdateSlotsConfigWith` in the engine's
/// `cluster.c`); but it knows by then that the source was not heard of, or that the replica is a primary.
pub(super) async fn still_serves(
    source: &NodeLink,
    target: &NodeLink,
    slots: &[Slot],
) -> Result<(), ReshardError> {
    let view = async |link: &NodeLink| link.view().await.map_err(|error| link.lost(error));
    let (sees, hears) = tokio::try_join!(view(source), view(target))?;
    match changed(&sees, &hears, slots) {
        None => Ok(()),
        Some((slot, found)) => Err(ReshardError::OwnerChanged {
            slot,
            planned: source.id,
            found,
        }),
    }
}

/// The first slot that the source does not serve any more or does not give to the target, and who serves it as far as they know.
fn changed(
    source: &NodesView,
    target: &NodesView,
    slots: &[Slot],
) -> Option<(Slot, Option<NodeId>)> {
    let (own, to) = (source.myself(), target.myself());
    let first = slots.first().copied()?;
    if let Some(successor) = successor(source, target) {
        return Some((first, Some(successor)));
    }
    let listed = target.get(own.id);
    if !own.is_primary() || listed.is_none_or(|one| one.is_failing() || !one.is_primary()) {
        return Some((first, own.primary));
    }
    let is_given = |slot: Slot| {
        let mut open = own.open_slots.iter();
        let given = open.any(|open| {
            open.slot == slot && open.kind == OpenSlotKind::Migrating && open.peer == to.id
        });
        given && own.slots.contains(slot) && !to.slots.contains(slot)
    };
    let slot = slots.iter().copied().find(|slot| !is_given(*slot))?;
    let nodes = source.nodes().iter().map(AsRef::as_ref);
    let mut nodes = nodes.chain([to]);
    let serves = nodes.find(|node| node.slots.contains(slot));
    Some((slot, serves.map(|node| node.id)))
}

/// A replica of the source, as the source knows it, that the target knows as a primary which was elected later.
fn successor(source: &NodesView, target: &NodesView) -> Option<NodeId> {
    let own = source.myself();
    let mut replicas = source.nodes().iter();
    let elected = replicas.find(|one| {
        one.primary == Some(own.id)
            && target
                .get(one.id)
                .is_some_and(|listed| listed.is_primary() && listed.config_epoch > own.config_epoch)
    });
    elected.map(|one| one.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: char = 'a';
    const TARGET: char = 'b';
    const REPLICA: char = 'c';

    fn id(digit: char) -> String {
        digit.to_string().repeat(40)
    }

    /// What a node lists: its own line, and one for each other.
    fn view(lines: &[(char, &str)]) -> NodesView {
        let lines = lines
            .iter()
            .map(|(node, rest)| format!("{} 10.0.0.1:6379@16379 {rest}\n", id(*node)));
        NodesView::parse(&lines.collect::<String>()).unwrap()
    }

    fn seen_by_source(own: &str) -> NodesView {
        let replica = format!("slave {} 0 0 1 connected", id(SOURCE));
        view(&[
            (SOURCE, own),
            (TARGET, "master - 0 0 4 connected"),
            (REPLICA, &replica),
        ])
    }

    fn giving() -> NodesView {
        let mark = format!("myself,master - 0 0 1 connected 0-99 [7->-{}]", id(TARGET));
        seen_by_source(&mark)
    }

    fn seen_by_target(source: &str, replica: &str) -> NodesView {
        let own = format!("myself,master - 0 0 4 connected [7-<-{}]", id(SOURCE));
        view(&[(TARGET, &own), (SOURCE, source), (REPLICA, replica)])
    }

    fn is_changed(source: &NodesView, target: &NodesView) -> bool {
        changed(source, target, &[Slot::new(7).unwrap()]).is_some()
    }

    #[test]
    fn only_a_source_that_serves_hands_over() {
        let follows = format!("slave {} 0 0 1 connected", id(SOURCE));
        let serves = "master - 0 0 1 connected 0-99";
        let usual = seen_by_target(serves, &follows);
        assert!(!is_changed(&giving(), &usual));
        // Without the mark, without the slot, as a replica.
        for own in [
            "myself,master - 0 0 1 connected 0-99".to_owned(),
            "myself,master - 0 0 1 connected 0-6".to_owned(),
            format!("myself,slave {} 0 0 5 connected", id(REPLICA)),
        ] {
            assert!(is_changed(&seen_by_source(&own), &usual), "{own}");
        }
        // The target has not heard of it, or has heard of its successor. One that has become a replica just now is none.
        let elected = "master - 0 0 5 connected 0-6 8-99";
        for (source, replica, expected) in [
            ("master,fail - 0 0 1 connected 7", follows.as_str(), true),
            ("master,fail? - 0 0 1 connected 7", &follows, true),
            (serves, elected, true),
            (serves, "master - 0 0 0 connected", false),
        ] {
            let target = seen_by_target(source, replica);
            assert_eq!(
                is_changed(&giving(), &target),
                expected,
                "{source} {replica}"
            );
        }
    }
}
