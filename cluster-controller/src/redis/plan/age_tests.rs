//! How old a copy may be that takes over.

use super::{
    Blocker, age,
    loss_tests::{DOWN, ids, primaries, promoted, report},
    tests::{formed, plan},
};
use crate::redis::{
    member::{Member, TakeoverRequest, Wanted},
    plan::simulation::World,
};
use crds::Takeover;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

const NOW: Timestamp = Timestamp::constant(100_000, 0);

/// So many primaries are lost, and their replicas have been started since and found none to link to.
fn restarted_replicas(lost: usize) -> (World, Vec<Member>) {
    let mut world = formed(3, 1, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    for index in primaries(&world).into_iter().take(lost) {
        world.break_node(index, DOWN);
    }
    world.tick();
    world.age(3600);
    let mut members = world.members(NOW);
    for member in members.iter_mut().filter(|one| one.report().is_some()) {
        let link = report(member).replication.upstream.as_mut();
        if let Some(link) = link.filter(|link| !link.up) {
            link.down_seconds = None;
        }
    }
    (world, members)
}

/// Sets how many seconds the replicas were unlinked before their primaries ended.
fn unlinked_before(members: &mut [Member], seconds: Option<i64>) {
    for member in members {
        let is_primary = member.report().is_none();
        for until in member.expected.current_until.values_mut() {
            let before = if is_primary { Some(0) } else { seconds };
            *until = NOW - SignedDuration::from_secs(3600 + before.unwrap_or_default());
        }
        if seconds.is_none() && !is_primary {
            member.expected.current_until.clear();
        }
    }
}

fn old(wanted: &Wanted, members: &[Member]) -> Vec<Blocker> {
    let seen = plan(wanted, members, NOW);
    let blockers = seen.blockers.iter().cloned();
    let old: Vec<Blocker> = blockers
        .filter(|one| matches!(one, Blocker::OldCopy { .. }))
        .collect();
    assert_eq!(old.is_empty(), !promoted(&seen).is_empty(), "{seen:?}");
    old
}

/// An ordered failover does not ask for the age of the copy, with a majority and without one.
#[test]
fn an_old_copy_waits_for_a_primary_that_may_return() {
    for lost in [1, 2] {
        let (mut world, mut members) = restarted_replicas(lost);
        let most = age::most(world.wanted.node_timeout);
        let limit = i64::try_from(most.as_secs()).unwrap();
        for (seconds, waits) in [
            (Some(0), false),
            (Some(limit), false),
            (Some(limit + 1), true),
            (None, true),
        ] {
            unlinked_before(&mut members, seconds);
            let found = old(&world.wanted, &members);
            assert_eq!(!found.is_empty(), waits, "{lost} lost, {seconds:?}");
            let known = seconds.map(|_| most);
            for blocker in &found {
                assert!(
                    matches!(blocker, Blocker::OldCopy { older_than, .. } if *older_than == known)
                );
                assert!(blocker.to_string().len() <= 256, "{blocker}");
            }
        }
        world.wanted.recovery.requested = TakeoverRequest::All;
        assert_eq!(old(&world.wanted, &members), []);
        world.wanted.recovery.requested = TakeoverRequest::None;
        world.wanted.recovery.takeover = Takeover::Auto;
        assert_eq!(old(&world.wanted, &members), []);
    }
}

/// The server says itself how long it has been unlinked, also of a time in which no controller ran.
#[test]
fn a_replica_knows_since_when_it_is_unlinked() {
    let (world, mut members) = restarted_replicas(1);
    unlinked_before(&mut members, None);
    for (seconds, waits) in [(3600, false), (3660, false), (3661, true)] {
        for member in members.iter_mut().filter(|one| one.report().is_some()) {
            let link = report(member).replication.upstream.as_mut();
            if let Some(link) = link.filter(|link| !link.up) {
                link.down_seconds = Some(seconds);
            }
        }
        let found = old(&world.wanted, &members);
        assert_eq!(!found.is_empty(), waits, "{seconds}");
    }
}
