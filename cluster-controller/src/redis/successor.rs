//! The node that a living primary hands over to. Pure.

use super::{
    assess::{NEARLY_CAUGHT_UP, can_take_over},
    survey::{Live, Survey},
};
use std::cmp::Reverse;

/// Of the replicas that have nearly everything, on their disks as well, and that fit, the one that lost the least and is moved the least soon: not
/// on a cordoned Kubernetes node, the furthest, the lowest ordinal. Whether it would be elected is for the caller to ask.
pub fn successor<'a>(
    survey: &Survey<'a>,
    shard: usize,
    primary: Live<'_>,
    fits: impl Fn(Live<'_>) -> bool,
) -> Option<Live<'a>> {
    let linked = survey
        .live_in(shard)
        .filter(|one| can_take_over(*one, primary, NEARLY_CAUGHT_UP) && fits(*one));
    linked.max_by_key(|one| {
        let expected = &one.member.expected;
        let ordinal = Reverse(expected.ordinal);
        (!expected.cordoned, one.report.replication.offset, ordinal)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::Report,
        plan::{
            simulation::World,
            tests::{formed, report},
        },
    };
    use k8s_openapi::jiff::Timestamp;

    /// Whether the replica of shard 0 may take over after this change of what a node of it reports.
    fn takes_over(world: &World, primary: bool, change: impl Fn(&mut Report)) -> bool {
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let node = (0..2).find(|index| world.owns(*index) == primary).unwrap();
        change(report(&mut members[node]));
        let survey = Survey::of(&world.wanted, &members);
        let primary = survey.primary_of(0).unwrap();
        successor(&survey, 0, primary, |_| true).is_some()
    }

    /// A process that ended before would come back with the file of before, as the primary.
    #[test]
    fn a_replica_writes_all_that_it_copied_before() {
        for persistent in [true, false] {
            let world = formed(3, 1, persistent);
            assert!(takes_over(&world, false, |_| {}));
            let rewrites = |report: &mut Report| report.persistence.is_rewriting = true;
            assert_eq!(takes_over(&world, false, rewrites), !persistent);
        }
    }

    /// Clients would wait for it.
    #[test]
    fn a_replica_that_lags_is_waited_for() {
        let world = formed(3, 1, true);
        let ahead = |by: u64| takes_over(&world, true, |report| report.replication.offset += by);
        assert!(ahead(NEARLY_CAUGHT_UP / 2));
        assert!(!ahead(NEARLY_CAUGHT_UP * 2));
    }
}
