//! What servers tell clients of where nodes are: the names that they announce, and whether clients get names or addresses. A server before 7.0 drops every message of a Redis 7 that announces a name: it
//! takes the extension that carries it for a wrong length (`clusterProcessPacket` in the `cluster.c` of 6.2, `writeHostnamePingExt` in that of
//! 7.0). So that announces none before all servers know it. Valkey, and Redis from 8.0 on, send the extension to servers that know it only
//! (`nodeSupportsExtensions`): their start script announces the name at once.

use super::{Action, Plan};
use crate::redis::{
    member::ClientSetting,
    survey::{Live, Survey},
};
use common::cluster::info::Family;

/// Plans what servers tell clients, once no node of the cluster can be one that a name would shut out.
pub fn tell(survey: &Survey<'_>, plan: &mut Plan) {
    let mut live = survey.live.iter();
    let all_know_it = live.all(|one| one.report.server.at_least(7, 0));
    let is_complete = survey.all_live() && survey.missing.is_empty();
    let harms_none = is_complete || is_announced(survey) || !survey.live.iter().any(is_seven);
    if !all_know_it || !harms_none {
        return;
    }
    for one in &survey.live {
        announce(one, plan);
        name_or_address(one, plan);
    }
}

fn announce(one: &Live<'_>, plan: &mut Plan) {
    let Some(wanted) = &one.member.expected.hostname else {
        return;
    };
    let reason = match &one.report.own().hostname {
        None => format!("{} announces no name yet", one.pod()),
        Some(own) if wanted.replaces && *own != wanted.name => {
            format!("{} announces {own} instead of {}", one.pod(), wanted.name)
        }
        Some(_) => return,
    };
    let action = Action::TellClients {
        member: one.index,
        setting: ClientSetting::Hostname,
        value: wanted.name.clone(),
    };
    plan.step(action, reason);
}

fn name_or_address(one: &Live<'_>, plan: &mut Plan) {
    let setting = ClientSetting::EndpointType;
    let Some(wanted) = &one.member.expected.endpoint_type else {
        return;
    };
    let Some(given) = one.report.settings.get(setting.name()) else {
        return;
    };
    if given != wanted {
        let action = Action::TellClients {
            member: one.index,
            setting,
            value: wanted.clone(),
        };
        let reason = format!(
            "{} tells clients of each node its {given}, not its {wanted}",
            one.pod()
        );
        plan.step(action, reason);
    }
}

/// Whether a Redis 7 announces its name already: an older server that is away for now could not come back in any case.
fn is_announced(survey: &Survey<'_>) -> bool {
    let mut live = survey.live.iter();
    live.any(|one| is_seven(one) && one.report.own().hostname.is_some())
}

/// Whether a server sends its name to others that may not know of names.
fn is_seven(one: &Live<'_>) -> bool {
    let server = &one.report.server;
    server.family == Family::Redis && !server.at_least(8, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::{Answer, Hostname, Member},
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
            member.expected.hostname = Some(Hostname {
                name: format!("{}.shop-nodes.team.svc", member.expected.pod),
                replaces: true,
            });
        }
        members
    }

    fn announced(world: &World, members: &[Member]) -> usize {
        let steps = plan(&world.wanted, members, NOW).steps;
        let announced = steps
            .iter()
            .filter(|step| matches!(step.action, Action::TellClients { .. }));
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
        assert_eq!(announced(&world, &silent), 5, "others are shut out by now");
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

    #[test]
    fn another_name_is_replaced_where_it_is_to_be() {
        let world = formed(3, 1, true);
        let mut members = nameless(&world);
        for member in &mut members {
            let id = member.report().unwrap().id();
            relist(member, id, |own| own.hostname = Some("its.name".into()));
        }
        assert_eq!(announced(&world, &members), 6);
        for member in &mut members {
            let hostname = member.expected.hostname.as_mut().unwrap();
            hostname.replaces = false;
        }
        assert_eq!(announced(&world, &members), 0);
    }
}
