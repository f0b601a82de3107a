//! Replicas: every node that is not its shard's primary copies the primary.

use super::{Action, Blocker, Plan, node_timeout::formation_node_timeout};
use crate::redis::survey::{Live, Survey};

/// Plans whom the nodes without slots are to replicate, and that they can.
pub fn attach(survey: &Survey<'_>, plan: &mut Plan) {
    let mut attached = Vec::new();
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
            attached.push((primary.index, action, reason));
        }
    }
    for primary in survey.live.iter().filter(|one| !one.report.feeds) {
        let id = primary.report.id();
        let is_followed = attached.iter().any(|(index, ..)| *index == primary.index)
            || survey
                .live
                .iter()
                .any(|one| one.report.own().primary == Some(id));
        if is_followed && primary.report.own().is_primary() && harms_no_copy(survey, *primary) {
            let reason = format!(
                "{} was started without a role: it is to feed its replicas",
                primary.pod()
            );
            plan.step(
                Action::Admit {
                    member: primary.index,
                },
                reason,
            );
        }
    }
    for (_, action, reason) in attached {
        plan.step(action, reason);
    }
}

/// Whether no replica of another node has keys and looks for its primary at the address that this one has now: it would copy this one.
fn harms_no_copy(survey: &Survey<'_>, primary: Live<'_>) -> bool {
    let id = primary.report.id();
    let Some(address) = primary.member.expected.address else {
        return false;
    };
    !survey.live.iter().any(|one| {
        let link = one.report.replication.upstream.as_ref();
        let looks_here = link.is_some_and(|link| link.leads_to(&address));
        looks_here && one.report.own().primary != Some(id) && one.report.keys > 0
    })
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
        // Another primary of the shard still has slots, which move away: until then it is to have its copy.
        Some(current)
            if survey
                .by_id(current)
                .is_some_and(|other| other.shard() == one.shard())
                && survey
                    .owned_by(current)
                    .is_some_and(|slots| !slots.is_empty()) =>
        {
            None
        }
        Some(current) => Some(format!(
            "{pod} replicates {}, which does not own the slots of its shard: it follows {primary_pod}",
            current.short()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Action,
        simulation::World,
        tests::{becomes_primary, formed, plan, report},
    };
    use crate::redis::member::{Answer, Member};
    use common::cluster::info::UpstreamLink;
    use k8s_openapi::jiff::Timestamp;

    fn admitted(members: &[Member], world: &World) -> Vec<usize> {
        let seen = plan(&world.wanted, members, Timestamp::UNIX_EPOCH);
        let steps = seen.steps.iter().filter_map(|step| {
            if let Action::Admit { member } = step.action {
                return Some(member);
            }
            None
        });
        steps.collect()
    }

    /// Gossip has the new address of the primary, and the link still goes to the one before.
    #[test]
    fn a_link_to_an_old_address_is_made_again() {
        let world = formed(3, 1, true);
        let replica = (0..2).find(|index| !world.owns(*index)).unwrap();
        let is_ordered = |change: fn(&mut UpstreamLink)| {
            let mut members = world.members(Timestamp::UNIX_EPOCH);
            let replication = &mut report(&mut members[replica]).replication;
            change(replication.upstream.as_mut().unwrap());
            let seen = plan(&world.wanted, &members, Timestamp::UNIX_EPOCH);
            seen.steps.iter().any(
                |step| matches!(step.action, Action::Replicate { member, .. } if member == replica),
            )
        };
        assert!(!is_ordered(|_| {}));
        let down = is_ordered(|link| link.up = false);
        assert!(!down, "the server tries again by itself");
        assert!(is_ordered(|link| {
            link.up = false;
            link.ip = Some("10.9.9.9".parse().unwrap());
        }));
    }

    /// The primary of a new shard has restarted before it got its first slot: its replica waits for it, and the slots for the replica.
    #[test]
    fn a_primary_that_restarted_feeds_its_replicas_again() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let primary = (0..2).find(|index| world.owns(*index)).unwrap();
        assert!(admitted(&members, &world).is_empty());
        for slots in ["0-5461", ""] {
            let Answer::Report(report) = &mut members[primary].answer else {
                panic!("no report")
            };
            report.feeds = false;
            if slots.is_empty() {
                becomes_primary(report, 0, "");
            }
            assert_eq!(admitted(&members, &world), [primary], "{slots}");
        }
    }

    /// A replica of a lost primary would copy whatever answers at its address.
    #[test]
    fn a_copy_of_another_primary_is_not_overwritten() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let primary = (0..2).find(|index| world.owns(*index)).unwrap();
        let address = members[primary].expected.address.unwrap();
        let of_other = (2..6).find(|index| !world.owns(*index)).unwrap();
        let Answer::Report(report) = &mut members[primary].answer else {
            panic!("no report")
        };
        report.feeds = false;
        let Answer::Report(report) = &mut members[of_other].answer else {
            panic!("no report")
        };
        let link = report.replication.upstream.as_mut().unwrap();
        (link.ip, link.port) = (Some(address.ip), Some(address.port));
        report.keys = 1;
        assert!(admitted(&members, &world).is_empty());
        let Answer::Report(report) = &mut members[of_other].answer else {
            panic!("no report")
        };
        report.keys = 0;
        assert_eq!(admitted(&members, &world), [primary]);
    }

    /// A user has reset the third node of a shard and moved most of its slots there: the others are in two places still.
    #[test]
    fn a_replica_stays_while_its_primary_has_slots() {
        let world = formed(3, 2, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let primary = (0..3).find(|index| world.owns(*index)).unwrap();
        let [second, replica] = [(primary + 1) % 3, (primary + 2) % 3];
        let Answer::Report(report) = &mut members[second].answer else {
            panic!("no report")
        };
        becomes_primary(report, 90, "0-4000");
        let seen = plan(&world.wanted, &members, Timestamp::UNIX_EPOCH);
        let follows_another = |step: &super::super::Step| matches!(step.action, Action::Replicate { member, .. } if member == replica);
        assert!(!seen.steps.iter().any(follows_another), "{seen:?}");
    }
}
