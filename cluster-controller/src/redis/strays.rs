//! Asks each primary once, for each configuration that it has, whether it has keys of slots that others serve. A replica that was behind
//! while slots moved may have such keys once it has taken over; no mark tells of them, and no client finds them.

use super::{
    member::{Answer, Member, Report},
    observe::proven,
};
use common::cluster::{
    endpoint::Endpoint,
    kept_connections::{ClusterConnections, ServerProcess},
    node::NodeError,
    slots::{Slot, SlotSet},
    topology::NodeId,
};
use futures::{StreamExt, stream};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Primaries that are asked in one look, at most, all at once: the others are asked in the next ones.
const MOST: usize = 8;
/// How soon to ask again where there were such keys.
const AGAIN: Duration = Duration::from_secs(10);

/// A primary and its configuration epoch: another one may have other keys.
type Configuration = (NodeId, u64);

/// What primaries have answered: memory that may be lost. Bounded by the primaries that there are.
#[derive(Debug, Default)]
pub struct StrayTracker {
    clusters: Mutex<HashMap<(String, String), Counts>>,
}

/// The keys that were found, and when.
type Counts = HashMap<Configuration, (u64, Instant)>;

impl StrayTracker {
    /// The primaries that are to be asked now; the others get what is known of them. Nothing while it may change: slots are open, or move,
    /// or a member gives no report.
    fn recall(&self, place: (&str, &str), members: &mut [Member], now: Instant) -> Vec<usize> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = clusters
            .entry((place.0.to_owned(), place.1.to_owned()))
            .or_default();
        let configurations = members.iter().map(|one| configuration(one.report()?));
        let configurations: Vec<Option<Configuration>> = configurations.collect();
        counts.retain(|known, _| configurations.contains(&Some(*known)));
        let mut asked = Vec::new();
        let pairs = members.iter_mut().zip(configurations).enumerate();
        for (index, (member, configuration)) in pairs {
            let Some(configuration) = configuration else {
                continue;
            };
            match (counts.get(&configuration), &mut member.answer) {
                (Some((keys, at)), Answer::Report(report)) => {
                    report.strays = *keys;
                    if *keys > 0 && now.duration_since(*at) >= AGAIN {
                        asked.push(index);
                    }
                }
                _ => asked.push(index),
            }
        }
        asked.truncate(MOST);
        asked
    }

    fn note(&self, (namespace, name): (&str, &str), found: Configuration, keys: u64, at: Instant) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (namespace.to_owned(), name.to_owned());
        clusters.entry(place).or_default().insert(found, (keys, at));
    }

    /// The cluster is gone, or its keys move: a primary that had such keys is asked again.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Of a primary with slots. One without shows by its number of keys what it has.
fn configuration(report: &Report) -> Option<Configuration> {
    let own = report.own();
    (own.is_primary() && !own.slots.is_empty()).then_some((own.id, own.config_epoch))
}

/// Whether no slots move from or to the node, as far as it says.
fn is_settled(member: &Member) -> bool {
    let report = member.report();
    report.is_some_and(|report| report.open_slots().is_empty())
}

/// Lets primaries count such keys. One that could not be asked is asked again.
pub async fn count_strays(
    place: (&str, &str),
    tracker: &StrayTracker,
    members: &mut [Member],
    connections: &ClusterConnections,
    timeout: Duration,
) {
    if !members.iter().all(is_settled) {
        return;
    }
    let now = Instant::now();
    let asked = tracker.recall(place, members, now);
    let questions: Vec<Question> = asked
        .into_iter()
        .filter_map(|index| Question::to((index, members.get(index)?), connections, timeout))
        .collect();
    let counts: Vec<(Question, Option<u64>)> = stream::iter(questions)
        .map(|question| async {
            let keys = question.ask(connections).await;
            (question, keys.ok())
        })
        .buffered(MOST)
        .collect()
        .await;
    for (question, keys) in counts {
        let Some(keys) = keys else {
            continue;
        };
        tracker.note(place, question.configuration, keys, now);
        let answer = members.get_mut(question.index).map(|one| &mut one.answer);
        if let Some(Answer::Report(report)) = answer {
            report.strays = keys;
        }
    }
}

/// How many keys a primary has of slots that it does not serve.
struct Question {
    index: usize,
    configuration: Configuration,
    process: Option<ServerProcess>,
    endpoint: Endpoint,
    slots: Vec<Slot>,
}

impl Question {
    fn to(
        (index, member): (usize, &Member),
        connections: &ClusterConnections,
        timeout: Duration,
    ) -> Option<Self> {
        let report = member.report()?;
        let (process, endpoint) = proven(member, connections, timeout)?;
        let others = SlotSet::full().difference(&report.own().slots);
        Some(Self {
            index,
            configuration: configuration(report)?,
            process,
            endpoint,
            slots: others.iter().collect(),
        })
    }

    async fn ask(&self, connections: &ClusterConnections) -> Result<u64, NodeError> {
        let process = self.process.as_ref();
        let node = connections.proven(process, &self.endpoint).await?;
        let keys = node.count_keys_in_slots(&self.slots).await?;
        Ok(keys.into_iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::{
        simulation::{Fault, World},
        tests::{formed, open_slot},
    };
    use common::cluster::topology::OpenSlotKind;
    use k8s_openapi::jiff::Timestamp;

    const PLACE: (&str, &str) = ("team", "shop");

    /// A replica has a mark that its primary took off while it was away.
    #[test]
    fn strays_are_counted_despite_marks_on_replicas() {
        let world = formed(3, 1, true);
        let members = world.members(Timestamp::UNIX_EPOCH);
        for (index, member) in members.iter().enumerate() {
            let mut marked = member.clone();
            let peer = member.report().unwrap().id();
            open_slot(&mut marked, OpenSlotKind::Migrating, peer);
            assert!(is_settled(member));
            assert_eq!(is_settled(&marked), !world.owns(index));
        }
    }

    /// An answer holds until the primary has another configuration.
    #[test]
    fn a_primary_is_asked_once_for_each_configuration() {
        let mut world = formed(3, 1, true);
        let tracker = StrayTracker::default();
        let now = Instant::now();
        let ask = |world: &World, at: Instant| {
            let mut members = world.members(Timestamp::UNIX_EPOCH);
            let asked = tracker.recall(PLACE, &mut members, at);
            let configurations = asked
                .iter()
                .filter_map(|index| configuration(members[*index].report()?));
            (configurations.collect::<Vec<_>>(), members)
        };
        let (asked, _) = ask(&world, now);
        assert_eq!(asked.len(), 3);
        for (number, found) in asked.iter().enumerate() {
            tracker.note(PLACE, *found, number as u64, now);
        }
        let (asked, members) = ask(&world, now);
        assert!(asked.is_empty(), "{asked:?}");
        let strays = members.iter().filter_map(|one| Some(one.report()?.strays));
        assert_eq!(strays.sum::<u64>(), 3, "one has a key, another one two");
        let (asked, _) = ask(&world, now + AGAIN);
        assert_eq!(asked.len(), 2, "where there were such keys");
        let gone = Fault {
            wiped: false,
            moved: true,
            down: 0,
            loading: 0,
        };
        world.break_node(0, gone);
        for _ in 0..10 {
            world.tick();
        }
        let (asked, _) = ask(&world, now);
        assert_eq!(asked.len(), 1, "the replica that took over");
    }
}
