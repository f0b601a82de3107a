//! The names that servers announce, for clients that want one. A server before 7.0 drops every message of a Redis 7 that announces a name: it
//! takes the extension that carries it for a wrong length (`clusterProcessPacket` in the `cluster.c` of 6.2, `writeHostnamePingExt` in that of
//! 7.0). So that announces none before all servers know it. Valkey, and Redis from 8.0 on, send the extension to servers that know it only
//! (`nodeSupportsExtensions`): their start script announces the name at once.

use super::{Action, Plan};
use crate::redis::survey::Survey;
use common::cluster::info::Family;

/// Plans that servers announce the names of their pods, once no node of the cluster can be an older one.
pub fn announce(survey: &Survey<'_>, plan: &mut Plan) {
    let mut live = survey.live.iter();
    let all_know_it = live.all(|one| one.report.server.at_least(7, 0));
    let is_complete = survey.all_live() && survey.missing.is_empty();
    if !all_know_it || !(is_complete || is_announced(survey)) {
        return;
    }
    for one in &survey.live {
        let hostname = one.member.expected.hostname.as_ref();
        let Some(hostname) = hostname.filter(|_| one.report.own().hostname.is_none()) else {
            continue;
        };
        let action = Action::AnnounceHostname {
            member: one.index,
            hostname: hostname.clone(),
        };
        plan.step(action, format!("{} announces no name yet", one.pod()));
    }
}

/// Whether a Redis 7 announces its name already: an older server that is away for now could not come back in any case.
fn is_announced(survey: &Survey<'_>) -> bool {
    let mut live = survey.live.iter();
    live.any(|one| {
        let server = &one.report.server;
        let is_seven = server.family == Family::Redis && !server.at_least(8, 0);
        is_seven && one.report.own().hostname.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::{Answer, Member},
        plan::{
            simulation::{Fault, World},
            tests::{formed, plan, relist},
        },
    };
    use k8s_openapi::jiff::Timestamp;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// Every pod has a name, and no server announces it.
    fn nameless(world: &World) -> Vec<Member> {
        let mut members = world.members(NOW);
        for member in &mut members {
            member.expected.hostname = Some(format!("{}.shop-nodes.team.svc", member.expected.pod));
        }
        members
    }

    fn announced(world: &World, members: &[Member]) -> usize {
        let steps = plan(&world.wanted, members, NOW).steps;
        let announced = steps
            .iter()
            .filter(|step| matches!(step.action, Action::AnnounceHostname { .. }));
        announced.count()
    }

    #[test]
    fn names_are_announced_where_every_server_knows_them() {
        let mut world = formed(3, 1, true);
        let members = nameless(&world);
        assert_eq!(announced(&world, &members), 6);
        let mut mixed = members.clone();
        let Answer::Report(report) = &mut mixed[3].answer else {
            panic!("no report")
        };
        report.server.version = "6.2.14".to_owned();
        assert_eq!(announced(&world, &mixed), 0);
        let mut silent = members;
        silent[3].answer = Answer::Unresponsive("it may be an older one".into());
        assert_eq!(announced(&world, &silent), 0);
        let id = silent[0].report().unwrap().id();
        relist(&mut silent[0], id, |own| {
            own.hostname = Some("its.name".into());
        });
        assert_eq!(announced(&world, &silent), 4, "others are shut out by now");
        let down = Fault {
            wiped: true,
            ..Fault::DOWN
        };
        world.break_node(5, down);
        world.restart(5);
        let members = nameless(&world);
        let survey = Survey::of(&world.wanted, &members);
        assert!(survey.all_live() && !survey.missing.is_empty());
        assert_eq!(announced(&world, &members), 0, "the lost node is listed");
    }
}
