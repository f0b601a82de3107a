//! What each server has of the wanted settings. Pure.

use super::{
    answer::LiveResult,
    file::{Configurations, DEFAULTS, FileSettings, settings},
    template::configuration,
    tracker::{ClusterAnswers, NodeAnswers},
    values::{default_maxmemory, is_same, unquoted},
};
use crate::{
    pods::{self, Pods, start::cannot_start},
    redis::member::{Member, Report},
    validate::ValidatedCluster,
};
use common::cluster::topology::NodeId;
use crds::{ANNOTATION_LIVE_SETTINGS, CONTAINER};
use k8s_openapi::{
    api::core::v1::{Pod, ResourceRequirements},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};

/// A value that a server has refused is tried again after this time: what it depended on may have changed.
const TRY_AGAIN: SignedDuration = SignedDuration::from_mins(1);
const MAXMEMORY: &str = "maxmemory";

/// What the servers of a shard are to have.
#[derive(Clone, Debug, Default, PartialEq)]
struct ShardGoal {
    settings: FileSettings,
    /// Whether `maxmemory` follows from the memory limit: then from the limit that the pod itself has.
    memory_by_limit: bool,
}

impl ShardGoal {
    fn of(text: &str, resources: Option<&ResourceRequirements>) -> Self {
        let settings = settings(text);
        let usual = default_maxmemory(resources).map(|bytes| bytes.to_string());
        Self {
            memory_by_limit: usual.is_some() && settings.get(MAXMEMORY) == usual.as_ref(),
            settings,
        }
    }
}

/// What the servers of a cluster are to have, and what their pods were started with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SettingsGoal {
    usual: ShardGoal,
    text: String,
    /// Shards that keep an earlier configuration; none where it is not known, and then nothing is compared.
    held: BTreeMap<i32, Option<ShardGoal>>,
    configurations: Configurations,
    /// Names of the settings that the user gives: only for those a pod is replaced. What a new version of the controller writes into
    /// redis.conf by itself waits for a restart that has another cause.
    of_user: BTreeSet<String>,
}

impl SettingsGoal {
    /// `text`: the wanted redis.conf.
    pub fn of(cluster: &ValidatedCluster, text: String, configurations: Configurations) -> Self {
        let held = cluster.held.iter().map(|(shard, template)| {
            let kept = configurations.get(&template.configuration);
            let kept = kept.map(|kept| ShardGoal::of(&kept.text, template.resources.as_ref()));
            (*shard, kept)
        });
        Self {
            usual: ShardGoal::of(&text, cluster.resources.as_ref()),
            held: held.collect(),
            of_user: cluster.config.keys().cloned().collect(),
            text,
            configurations,
        }
    }

    fn of_shard(&self, shard: usize) -> Option<&ShardGoal> {
        let shard = i32::try_from(shard).unwrap_or(i32::MAX);
        let held = self.held.get(&shard).or_else(|| self.held.values().next());
        held.map_or(Some(&self.usual), Option::as_ref)
    }

    /// The names that servers are asked for; those that `pods` were given besides are among them.
    pub fn names(&self, pods: &Pods) -> BTreeSet<String> {
        let goals = self.held.values().flatten().chain([&self.usual]);
        let names = goals.flat_map(|goal| goal.settings.keys().cloned());
        let live = pods.values().flat_map(|pod| live_settings(pod).into_keys());
        names.chain(live).collect()
    }

    /// The settings that a pod was started with; none where its ConfigMap is not known.
    fn started_with(&self, pod: &Pod) -> Option<FileSettings> {
        let name = configuration(pod.spec.as_ref()?)?;
        Some(settings(&self.configurations.get(name)?.text))
    }

    /// Whether the pod was started with another redis.conf than it would get now.
    fn is_older(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(configuration);
        let text = name.and_then(|name| self.configurations.get(name));
        self.held.is_empty() && text.is_some_and(|one| one.text != self.text)
    }
}

/// The settings that a server has got since its pod was made and that its redis.conf does not have, each with its value before.
fn live_settings(pod: &Pod) -> BTreeMap<String, String> {
    let text = pod.annotations().get(ANNOTATION_LIVE_SETTINGS);
    let read = text.and_then(|text| serde_json::from_str(text).ok());
    read.unwrap_or_default()
}

/// How a setting of a server differs from what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingState {
    /// It is to be set.
    Differs {
        /// What the server reports; none where it does not know the setting.
        was: Option<String>,
        /// Whether the server had it as wanted before.
        drifted: bool,
    },
    /// The server takes it only at its start.
    NeedsRestart,
    /// The server refuses the value.
    Refused {
        /// In its own words.
        words: String,
    },
    /// It would refuse writes or drop keys at once: the server holds more than the memory limit leaves.
    TooFull,
}

/// A setting that a server does not have as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DifferingSetting {
    /// Name of the setting.
    pub name: String,
    /// The wanted value, as `CONFIG SET` is given it.
    pub value: String,
    /// How it differs.
    pub state: SettingState,
}

/// A server that has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Index of the member.
    pub member: usize,
    /// Name of its pod.
    pub pod: String,
    /// Only the server with this id gets commands.
    pub node: NodeId,
    /// What differs.
    pub differing: Vec<DifferingSetting>,
    /// Settings that it was started with and that are not wanted any more.
    pub removed: Vec<String>,
    /// What the pod has to say of settings changed while it runs, where it does not say so yet.
    pub annotation: Option<BTreeMap<String, String>>,
}

/// The servers that have answered, and the pods that only a restart brings to the wanted settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Those that have answered.
    pub nodes: Vec<NodeSettings>,
    /// Names of the pods that a rollout has to replace.
    pub restart: BTreeSet<String>,
}

/// Compares. `answers`: what servers answered before.
pub fn assess(
    goal: &SettingsGoal,
    members: &[Member],
    pods: &Pods,
    answers: &ClusterAnswers,
    now: Timestamp,
) -> ClusterSettings {
    let mut found = ClusterSettings::default();
    let no_answers = NodeAnswers::new();
    for (index, member) in members.iter().enumerate() {
        let Some(pod) = pods.get(&member.expected.pod) else {
            continue;
        };
        let Some(report) = member.report() else {
            // A server that does not start with what it has is given the corrected configuration.
            let ends = pods::is_terminating(pod);
            if !ends && goal.is_older(pod) && cannot_start(pod, pods::start::STARTED_BY, now) {
                found.restart.insert(member.expected.pod.clone());
            }
            continue;
        };
        let Some(shard) = goal.of_shard(member.expected.shard) else {
            continue;
        };
        let answers = answers.get(&report.id()).unwrap_or(&no_answers);
        let started = goal.started_with(pod);
        let node = NodeInputs {
            pod,
            report,
            started: started.as_ref(),
            answers,
            now,
        };
        let (mut differing, annotation) = node.differing(shard);
        differing.retain(|one| {
            one.state != SettingState::NeedsRestart || goal.of_user.contains(&one.name)
        });
        let removed = node.removed(shard);
        let restarts = differing
            .iter()
            .any(|one| one.state == SettingState::NeedsRestart);
        if restarts || !removed.is_empty() {
            found.restart.insert(member.expected.pod.clone());
        }
        // One that ends is not replaced before it has ended, and gets no commands any more.
        if pods::is_terminating(pod) {
            continue;
        }
        found.nodes.push(NodeSettings {
            member: index,
            pod: member.expected.pod.clone(),
            node: report.id(),
            differing,
            removed,
            annotation,
        });
    }
    found
}

struct NodeInputs<'a> {
    pod: &'a Pod,
    report: &'a Report,
    started: Option<&'a FileSettings>,
    answers: &'a NodeAnswers,
    now: Timestamp,
}

impl NodeInputs<'_> {
    fn differing(
        &self,
        goal: &ShardGoal,
    ) -> (Vec<DifferingSetting>, Option<BTreeMap<String, String>>) {
        let mut live = live_settings(self.pod);
        let before = live.clone();
        let mut differing = Vec::new();
        for (name, text) in &goal.settings {
            let usual = goal.memory_by_limit && name == MAXMEMORY;
            let value = if usual {
                // A pod without a limit of its own is older than the limit, and is replaced.
                match default_maxmemory(resources(self.pod)) {
                    Some(bytes) => bytes.to_string(),
                    None => continue,
                }
            } else {
                unquoted(text)
            };
            let state = self.state(name, &value, Some(text));
            let is_excess = usual && self.is_too_full(&value);
            let state = state.map(|state| match state {
                SettingState::Differs { .. } if is_excess => SettingState::TooFull,
                SettingState::Differs { .. }
                | SettingState::NeedsRestart
                | SettingState::Refused { .. }
                | SettingState::TooFull => state,
            });
            if let Some(SettingState::Differs { was: Some(was), .. }) = &state
                && self.started.is_some_and(|file| !file.contains_key(name))
            {
                live.entry(name.clone()).or_insert_with(|| was.clone());
            }
            differing.extend(state.map(|state| DifferingSetting {
                name: name.clone(),
                value,
                state,
            }));
        }
        // One that was taken out of the spec becomes again what it was.
        for (name, value) in &before {
            if goal.settings.contains_key(name) {
                continue;
            }
            match self.state(name, value, None) {
                Some(state) => differing.push(DifferingSetting {
                    name: name.clone(),
                    value: value.clone(),
                    state,
                }),
                None => {
                    live.remove(name);
                }
            }
        }
        (differing, (live != before).then_some(live))
    }

    /// How a setting differs; none where it does not. `text`: how redis.conf has it.
    fn state(&self, name: &str, value: &str, text: Option<&str>) -> Option<SettingState> {
        let actual = self.report.settings.get(name);
        if actual.is_some_and(|actual| is_same(value, actual)) {
            return None;
        }
        let differs = |drifted| {
            Some(SettingState::Differs {
                was: actual.cloned(),
                drifted,
            })
        };
        let answer = self.answers.get(name).filter(|one| one.value == value);
        match answer.map(|one| (&one.result, one.at)) {
            Some((LiveResult::Reads(reads), _)) if Some(reads) == actual => None,
            Some((LiveResult::Reads(_), _)) => differs(true),
            Some((LiveResult::OnlyAtStart, _)) => {
                let has_it = match self.started {
                    Some(file) => text.is_some() && file.get(name).map(String::as_str) == text,
                    // Neither its redis.conf nor the server says how it is: no reason to restart.
                    None => actual.is_none(),
                };
                (!has_it).then_some(SettingState::NeedsRestart)
            }
            Some((LiveResult::Refused(words), at)) if self.now.duration_since(at) < TRY_AGAIN => {
                Some(SettingState::Refused {
                    words: words.clone(),
                })
            }
            Some((LiveResult::Refused(_), _)) | None => differs(false),
        }
    }

    /// Whether the server holds more than a lower `maxmemory` allows.
    fn is_too_full(&self, value: &str) -> bool {
        let actual = self.report.settings.get(MAXMEMORY);
        let actual: u64 = actual.and_then(|actual| actual.parse().ok()).unwrap_or(0);
        let wanted: u64 = value.parse().unwrap_or(u64::MAX);
        self.report.used_memory > wanted && (actual == 0 || actual > wanted)
    }

    fn removed(&self, goal: &ShardGoal) -> Vec<String> {
        let names = self.started.into_iter().flat_map(FileSettings::keys);
        names
            .filter(|name| !goal.settings.contains_key(*name) && !DEFAULTS.contains(&name.as_str()))
            .cloned()
            .collect()
    }
}

fn resources(pod: &Pod) -> Option<&ResourceRequirements> {
    let mut containers = pod.spec.as_ref()?.containers.iter();
    let server = containers.find(|one| one.name == CONTAINER)?;
    server.resources.as_ref()
}

#[cfg(test)]
mod tests;
