//! Without which nodes a new cluster begins.
//!
//! A primary that was just started serves 2 s later at the earliest (`CLUSTER_WRITABLE_DELAY` in the engine's `cluster.c`). So a new
//! cluster begins with the nodes that are there as soon as there is one in each shard, and the last ones become replicas, which need less.

use super::first_primaries::{choose, loads};
use crate::redis::{
    member::{AbsentPods, Answer},
    survey::Survey,
};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashSet;

/// A new cluster goes without the nodes that have been missing for long, unless their volumes were kept from an earlier one, and begins
/// without those that come without data; slots that existed once are created again only when every node has been asked.
pub fn may_begin(survey: &Survey<'_>, now: Timestamp) -> bool {
    if survey.all_live() {
        return true;
    }
    // What is still to be read, or belongs to others, may be what this cluster was before.
    let unclear = survey.members.iter().any(|member| {
        matches!(
            member.answer,
            Answer::Foreign(_) | Answer::Loading | Answer::Busy
        )
    });
    let wanted = survey.wanted;
    let mut shards = 0..wanted.shards;
    !unclear
        && !wanted.formed_before
        && survey.missing.is_empty()
        && survey.members.len() == survey.size()
        && shards
            .clone()
            .all(|shard| survey.live_in(shard).next().is_some())
        && (wanted.absent == AbsentPods::Blank && is_spread(survey)
            || wanted.absent != AbsentPods::Kept
                && shards.all(|shard| survey.is_overdue(shard, wanted.patience, now)))
}

/// Whether primaries among the nodes that are here can stay where they are when the others come.
fn is_spread(survey: &Survey<'_>) -> bool {
    let without = |shard: &usize| survey.primary_of(*shard).is_none();
    let without: Vec<usize> = (0..survey.wanted.shards).filter(without).collect();
    let loads = loads(survey, &choose(survey, &without));
    let most = loads.values().copied().max().unwrap_or_default();
    let expected = survey.members.iter().map(|member| &member.expected);
    let names = expected.map(|expected| expected.kubernetes_node.as_deref());
    let names: Option<HashSet<&str>> = names.collect();
    let least = names.and_then(|names| {
        let loads = names.into_iter().map(|name| loads.get(name).copied());
        loads.map(Option::unwrap_or_default).min()
    });
    // Where a node that is not scheduled yet will run is not known.
    most < least.unwrap_or_default() + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::{
        simulation::{Fault, World, wanted},
        tests::{is_healthy, plan, repair},
    };

    /// A new cluster of three shards with a replica each, some nodes of which have not started.
    fn world(absent: &[usize], blank: bool) -> World {
        let mut world = World::new(wanted(3, 1, true));
        if blank {
            world.wanted.absent = AbsentPods::Blank;
        }
        for index in absent {
            let fault = Fault {
                wiped: true,
                moved: true,
                down: 0,
                loading: 0,
            };
            world.break_node(*index, fault);
        }
        world
    }

    fn begins(world: &World) -> bool {
        let members = world.members(Timestamp::UNIX_EPOCH);
        !plan(&world.wanted, &members, Timestamp::UNIX_EPOCH)
            .steps
            .is_empty()
    }

    #[test]
    fn the_last_nodes_become_replicas() {
        for absent in [vec![4], vec![1, 3, 5]] {
            assert!(!begins(&world(&absent, false)), "they may have data");
            let mut world = world(&absent, true);
            assert!(begins(&world), "{absent:?}");
            repair(&mut world, &mut || true);
            for index in &absent {
                world.restart(*index);
            }
            repair(&mut world, &mut || true);
            assert!(is_healthy(&world));
            assert!(absent.iter().all(|index| !world.owns(*index)));
            assert!(world.refused.is_empty(), "{:?}", world.refused);
        }
    }

    /// They have no keys here, and the nodes of the earlier cluster would be called foreign from then on.
    #[test]
    fn kept_volumes_are_waited_for() {
        let mut world = world(&[1, 3, 5], false);
        let late = Timestamp::from_second(3600).unwrap();
        for (absent, begins) in [(AbsentPods::Unknown, true), (AbsentPods::Kept, false)] {
            world.wanted.absent = absent;
            let steps = plan(&world.wanted, &world.members(Timestamp::UNIX_EPOCH), late).steps;
            assert_eq!(!steps.is_empty(), begins, "{steps:?}");
        }
    }

    #[test]
    fn no_shard_begins_without_a_node() {
        assert!(!begins(&world(&[2, 3], true)));
    }

    #[test]
    fn data_that_is_read_is_waited_for() {
        let world = world(&[4], true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        members[4].answer = Answer::Loading;
        let plan = plan(&world.wanted, &members, Timestamp::UNIX_EPOCH);
        assert!(plan.steps.is_empty(), "{plan:?}");
    }

    /// A hand-over would follow.
    #[test]
    fn nodes_elsewhere_are_waited_for() {
        for (absent, kubernetes_nodes, expected) in [
            (
                vec![1, 3],
                ["one", "two", "two", "one", "three", "one"],
                true,
            ),
            (
                vec![1, 3],
                ["one", "two", "one", "two", "three", "one"],
                false,
            ),
            (vec![1, 3], ["one", "two", "one", "one", "two", "one"], true),
            // The first shard has to leave its node to the last one.
            (vec![5], ["one", "two", "one", "three", "one", "two"], true),
        ] {
            let mut world = world(&absent, true);
            world.kubernetes_nodes = kubernetes_nodes.to_vec();
            assert_eq!(begins(&world), expected, "{kubernetes_nodes:?}");
        }
    }
}
