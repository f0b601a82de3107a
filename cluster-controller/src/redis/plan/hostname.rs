//! The names that servers announce, for clients that want one. A server before 7.0 drops every message of one that announces a name: it takes
//! the extension that carries it for a wrong length (`clusterProcessPacket` in the `cluster.c` of 6.2, `writePingExt` in that of 7.0). So none
//! is announced before all servers know it; the start script keeps what its server announced before.

use super::{Action, Plan};
use crate::redis::survey::Survey;

/// Plans that servers announce the names of their pods, once no node of the cluster can be an older one.
pub fn announce(survey: &Survey<'_>, plan: &mut Plan) {
    let mut live = survey.live.iter();
    let all_know_it = live.all(|one| one.report.server.at_least(7, 0));
    if !all_know_it || !survey.all_live() || !survey.missing.is_empty() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::{Answer, Member},
        plan::{
            simulation::{Fault, World},
            tests::{formed, plan},
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
        let down = Fault {
            wiped: true,
            moved: false,
            down: 0,
            loading: 0,
        };
        world.break_node(5, down);
        let members = nameless(&world);
        assert_eq!(announced(&world, &members), 0, "an unknown node is listed");
    }
}
