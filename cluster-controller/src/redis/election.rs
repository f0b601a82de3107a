//! Whether a replica that is asked to take over from its living primary will be elected. Pure.
//!
//! The servers tell each other of a new replica within about a second. Until then they refuse it, and the hand-over fails after five seconds
//! in which the primary accepts no write (`clusterProcessPacket` and `clusterSendFailoverAuthIfNeeded` in the engine's `cluster.c`).

use super::survey::{Live, Survey};

/// Whether the election would be won as the nodes see each other now:
/// the primary has slots, since for none the replica does not even stand (`clusterHandleSlaveFailover`);
/// the primary answers only the request of a node that it lists as its replica;
/// a voter, a primary with slots, only one that it lists as the replica of a primary, and more than half of them must agree;
/// a replica that was elected a moment ago does not stand again yet (`elections`);
/// and no slot may have a newer configuration than the replica knows.
pub fn would_win(survey: &Survey<'_>, replica: Live<'_>, primary: Live<'_>) -> bool {
    let (id, of) = (replica.report.id(), primary.report.id());
    let lists_it = |one: Live<'_>| {
        let listed = one.report.view.get(id);
        listed.is_some_and(|node| node.primary == Some(of))
    };
    let is_up_to_date = replica.report.view.get(of).is_some_and(|known| {
        let own = primary.report.own();
        known.config_epoch == own.config_epoch && known.slots == own.slots
    });
    let in_favour = survey.live.iter().filter(|one| {
        let own = one.report.own();
        own.is_primary() && !own.slots.is_empty() && lists_it(**one)
    });
    let (_, all) = survey.quorum();
    let has_slots = !primary.report.own().slots.is_empty();
    let stands = has_slots && !replica.member.expected.elected_lately;
    stands && is_up_to_date && lists_it(primary) && in_favour.count() * 2 > all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::Member,
        plan::{
            simulation::World,
            tests::{formed, relist},
        },
    };
    use common::cluster::{slots::SlotSet, topology::ClusterNode};
    use k8s_openapi::jiff::Timestamp;

    /// Where the three primaries are, and the replica of the first.
    const PRIMARIES: [usize; 3] = [0, 2, 4];
    const REPLICA: usize = 1;

    fn is_elected(world: &World, members: &[Member]) -> bool {
        let survey = Survey::of(&world.wanted, members);
        let one = |index| survey.by_index(index).unwrap();
        would_win(&survey, one(REPLICA), one(PRIMARIES[0]))
    }

    fn stage() -> (World, Vec<Member>) {
        let world = formed(3, 1, true);
        assert!(PRIMARIES.iter().all(|index| world.owns(*index)));
        let members = world.members(Timestamp::UNIX_EPOCH);
        (world, members)
    }

    /// Lets a member list a node in another way.
    fn list(members: &mut [Member], index: usize, node: usize, change: impl Fn(&mut ClusterNode)) {
        let id = members[node].report().unwrap().id();
        relist(&mut members[index], id, change);
    }

    #[test]
    fn a_majority_that_knows_the_replica_elects_it() {
        let (world, mut members) = stage();
        assert!(is_elected(&world, &members));
        list(&mut members, PRIMARIES[2], REPLICA, |node| {
            node.primary = None;
        });
        assert!(is_elected(&world, &members), "two of three");
        list(&mut members, PRIMARIES[1], REPLICA, |node| {
            node.primary = None;
        });
        assert!(!is_elected(&world, &members), "one of three");
    }

    #[test]
    fn one_that_was_elected_a_moment_ago_does_not_stand() {
        let (world, mut members) = stage();
        members[REPLICA].expected.elected_lately = true;
        assert!(!is_elected(&world, &members));
    }

    #[test]
    fn its_primary_has_to_know_it() {
        let (world, mut members) = stage();
        list(&mut members, PRIMARIES[0], REPLICA, |node| {
            node.primary = None;
        });
        assert!(!is_elected(&world, &members));
    }

    #[test]
    fn it_has_to_know_what_it_takes_over() {
        let (world, mut members) = stage();
        list(&mut members, REPLICA, PRIMARIES[0], |node| {
            node.config_epoch -= 1;
        });
        assert!(!is_elected(&world, &members), "an older configuration");
        let (world, mut members) = stage();
        list(&mut members, REPLICA, PRIMARIES[0], |node| {
            node.slots = SlotSet::new();
        });
        assert!(!is_elected(&world, &members), "slots are missing");
    }
}
