//! The node timeout of the spec on every server, and a short one for servers that come into a cluster, until they serve.
//!
//! A server pings each node that it has not heard from for half its node timeout (`clusterCron` in the engine's `cluster.c`), and learns from the
//! answers who serves which slots. A primary that has seen no majority (and without slots there is none) waits for as long as the node
//! timeout, at most 5 s, before it serves.

use super::{Action, Plan};
use crate::redis::survey::Survey;
use std::time::Duration;

/// Node timeout of a server that does not serve yet.
const FORMATION_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The node timeout for a server that comes into the cluster; none where its own is as short.
pub fn formation_node_timeout(survey: &Survey<'_>) -> Option<Duration> {
    (survey.wanted.node_timeout > FORMATION_NODE_TIMEOUT).then_some(FORMATION_NODE_TIMEOUT)
}

/// Plans to give servers the node timeout of the spec: those that serve by now, and those that have another one.
pub fn restore(survey: &Survey<'_>, plan: &mut Plan) {
    let node_timeout = survey.wanted.node_timeout;
    for one in &survey.live {
        let (pod, running) = (one.pod(), one.report.node_timeout);
        let why = if running == node_timeout {
            continue;
        } else if running == FORMATION_NODE_TIMEOUT {
            if !one.report.cluster.ok {
                continue;
            }
            format!("{pod} serves now")
        } else {
            format!(
                "{pod} has a node timeout of {} ms, spec.config asks for {} ms",
                running.as_millis(),
                node_timeout.as_millis()
            )
        };
        let action = Action::RestoreNodeTimeout {
            member: one.index,
            node_timeout,
        };
        plan.step(action, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::Answer,
        plan::{
            simulation::World,
            tests::{formed, plan},
        },
    };
    use k8s_openapi::jiff::Timestamp;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn look(world: &World) -> Plan {
        plan(&world.wanted, &world.members(NOW), NOW)
    }

    /// The node timeouts with which nodes are to become replicas.
    fn attached(world: &World) -> Vec<Option<Duration>> {
        let attached = look(world).steps.into_iter().filter_map(|step| {
            let Action::Replicate {
                formation_node_timeout,
                ..
            } = step.action
            else {
                return None;
            };
            Some(formation_node_timeout)
        });
        attached.collect()
    }

    fn with_a_new_node() -> World {
        let mut world = formed(3, 1, true);
        let replica = usize::from(world.owns(0));
        world.wipe(replica);
        for _ in 0..20 {
            if !attached(&world).is_empty() {
                break;
            }
            world.execute(&look(&world), || true);
            world.tick();
        }
        world
    }

    #[test]
    fn a_new_node_asks_often_until_it_serves() {
        let mut world = with_a_new_node();
        assert_eq!(attached(&world), [Some(FORMATION_NODE_TIMEOUT)]);
        world.wanted.node_timeout = FORMATION_NODE_TIMEOUT;
        assert_eq!(attached(&world), [None], "it asks as often by itself");
    }

    #[test]
    fn every_server_gets_the_node_timeout_of_the_spec() {
        let world = formed(3, 1, true);
        for (timeout, ok, restored) in [
            (1, true, 1),
            (1, false, 0),
            (5, true, 0),
            (15, true, 1),
            (15, false, 1),
        ] {
            let mut members = world.members(NOW);
            let Answer::Report(report) = &mut members[2].answer else {
                panic!("no report")
            };
            report.node_timeout = Duration::from_secs(timeout);
            report.cluster.ok = ok;
            let mut plan = Plan::default();
            restore(&Survey::of(&world.wanted, &members), &mut plan);
            assert_eq!(plan.steps.len(), restored, "{plan:?}");
        }
    }
}
