//! Whether a configuration may reach the pods: a server of the wanted image has to start with it first, in a pod of its own. Pure.

use super::{
    file::{Configurations, TrialRecord},
    template::NamedTemplates,
};
use crate::pods::{self, Pods, start::cannot_start};
use common::kubernetes::{
    errors::{Classified, ErrorClass},
    hash::hash_value,
    pods::server,
};
use crds::{VOLUME_CERTIFICATES, trial_pod_name};
use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use serde_json::json;
use std::sync::Arc;

/// How long the server may take to answer, in the script of the pod; in seconds.
pub const ANSWERS_WITHIN: u32 = 30;
/// How long the pod may take in all, with the pull of its image; in seconds. Then it is deleted, and another one tries again.
pub const POD_DEADLINE: i64 = 3600;
/// Exit status of a pod whose server ended by itself: it refuses the configuration.
pub const REFUSED: i32 = 1;
/// A pod that has ended without an answer is left for so long, so that it can be looked at and is not made again at once.
const LEFT_FOR: SignedDuration = SignedDuration::from_mins(1);
/// Digits of the hash in the name of the pod.
const DIGITS: usize = 8;
/// Outcomes that a ConfigMap keeps: enough for a spec that goes back and forth between images.
pub const KEPT_RECORDS: usize = 4;

/// What is known before a decision about a configuration.
pub struct TrialInputs<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Whether it has served before: only then there are pods that could be harmed.
    pub formed: bool,
    /// The wanted image.
    pub image: &'a str,
    /// Name of the ConfigMap with the wanted configuration.
    pub name: &'a str,
    /// The wanted redis.conf.
    pub text: &'a str,
    /// Whether its `maxmemory` follows from the memory limit. Such a number starts everywhere.
    pub memory_by_limit: bool,
    /// Whether pods are to start with certificates.
    pub certificates: bool,
    /// Hash of the pod that would try it; asked for only where something is to be tried.
    pub pod: &'a dyn Fn() -> String,
    /// What the StatefulSets name.
    pub templates: &'a NamedTemplates,
    /// The ConfigMaps that exist.
    pub configurations: &'a Configurations,
    /// The pods that try or have tried a configuration of the cluster.
    pub trials: &'a [Arc<Pod>],
    /// The pods of the cluster.
    pub pods: &'a Pods,
}

/// Whether the configuration may reach the pods, and what is to be done to find out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrialDecision {
    /// Whether it may.
    pub gate: Gate,
    /// What the ConfigMap has to remember.
    pub record: Option<TrialRecord>,
    /// Name of the pod to be created.
    pub create: Option<String>,
    /// Pods that are not needed any more.
    pub delete: Vec<Arc<Pod>>,
}

/// Whether a configuration may reach the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    #[default]
    Open,
    /// The pods keep what they have while a pod of this name tries it.
    Trying(String),
    /// The pods keep what they have.
    Closed(TrialError),
}

impl Gate {
    /// Whether it may.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// What the user has to correct.
    pub fn error(&self) -> Option<&TrialError> {
        match self {
            Self::Closed(error) => Some(error),
            Self::Open | Self::Trying(_) => None,
        }
    }
}

/// Why a configuration does not reach the pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    /// A server that was started with it ended.
    #[error(
        "a server does not start with the new image and configuration: {words}; correct spec.config or the image. The pods keep what they have until then"
    )]
    Refused {
        /// In its own words, with the setting where it names one.
        words: String,
    },
    /// It is not known whether a server would start.
    #[error(
        "pod {pod}, which tries the new image and configuration: {why}; the other pods keep what they have"
    )]
    Stuck {
        /// The pod that tries.
        pod: String,
        /// What keeps it from starting or answering.
        why: String,
    },
}

impl Classified for TrialError {
    fn class(&self) -> ErrorClass {
        ErrorClass::InvalidSpec
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "SettingRefused",
            Self::Stuck { .. } => "TrialFailed",
        }
    }
}

/// What the pod that tries says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrialState {
    /// Its server has not answered yet.
    Running,
    /// Its server has answered.
    Accepted,
    /// Its server has ended.
    Refused {
        /// In its own words.
        words: String,
    },
    /// It cannot start, or has ended without an answer.
    Stuck {
        /// In words, with the cure.
        why: String,
        /// Whether it has ended.
        over: bool,
    },
}

/// What a pod that tries says.
pub fn judge(pod: &Pod) -> TrialState {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    match phase {
        Some("Succeeded") => TrialState::Accepted,
        Some("Failed") => ended(pod),
        _ if pods::is_terminating(pod) => TrialState::Running,
        _ => match pods::why_down(Some(pod)) {
            Some(why) => TrialState::Stuck { why, over: false },
            None => TrialState::Running,
        },
    }
}

fn ended(pod: &Pod) -> TrialState {
    let stuck = |why: String| TrialState::Stuck { why, over: true };
    let state = server(pod).and_then(|container| container.state.as_ref());
    let Some(end) = state.and_then(|state| state.terminated.as_ref()) else {
        let status = pod.status.as_ref();
        let reason = status.and_then(|status| status.reason.as_deref());
        return stuck(format!(
            "ended ({})",
            reason.unwrap_or("no reason is given")
        ));
    };
    let said = end.message.as_deref().unwrap_or_default();
    let reason = end.reason.as_deref().unwrap_or_default();
    match (reason, end.exit_code) {
        ("OOMKilled", _) => stuck(
            "its server was ended for its memory (OOMKilled); raise spec.resources.limits.memory"
                .to_owned(),
        ),
        ("StartError" | "ContainerCannotRun", _) => TrialState::Refused {
            words: format!("the image has no server that can be run ({})", said.trim()),
        },
        (_, REFUSED) => TrialState::Refused { words: words(said) },
        (_, code) => stuck(format!(
            "its server did not answer (exit status {code}): {}",
            words(said)
        )),
    }
}

/// What a server says of a configuration that it does not start with, in one sentence. Redis and Valkey quote the line of the file and
/// then give the cause (`loadServerConfigFromString` in the engine's `config.c`); other failures are the last line of the log.
fn words(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let quoted = lines.iter().position(|line| line.starts_with(">>> "));
    let quoted = quoted.and_then(|at| {
        let line = lines.get(at)?.trim_start_matches(">>> ").trim_matches('\'');
        Some(format!("{line}: {}", lines.get(at + 1)?))
    });
    let last = || {
        let line = lines.last().copied().unwrap_or("it says nothing");
        // `1:C 26 Nov 2026 10:00:00.000 # words`
        let mut signs = [" # ", " * "].into_iter();
        let words = signs.find_map(|sign| Some(line.split_once(sign)?.1));
        words.unwrap_or(line).to_owned()
    };
    quoted.unwrap_or_else(last)
}

/// Decides.
pub fn decide(inputs: &TrialInputs<'_>, now: Timestamp) -> TrialDecision {
    let open = || TrialDecision {
        delete: inputs.trials.to_vec(),
        ..TrialDecision::default()
    };
    if !inputs.formed || inputs.templates.is_empty() || is_named(inputs) {
        return open();
    }
    let tried_in = (inputs.pod)();
    let encrypts_later = comes_to_encrypt(inputs);
    let known = inputs.configurations.get(inputs.name);
    let record = known.and_then(|known| {
        let mut records = known.trials.iter();
        records.find(|one| {
            let starts_anywhere = one.refused.is_none() && !encrypts_later;
            let is_same_pod = starts_anywhere || one.pod == tried_in;
            one.image == inputs.image && is_same_pod
        })
    });
    match record.map(|record| record.refused.clone()) {
        Some(None) => return open(),
        Some(Some(words)) => {
            return TrialDecision {
                gate: Gate::Closed(TrialError::Refused { words }),
                ..open()
            };
        }
        None => {}
    }
    let name = trial_name(inputs, &tried_in);
    let (own, others): (Vec<_>, Vec<_>) = inputs
        .trials
        .iter()
        .cloned()
        .partition(|pod| pod.name_any() == name);
    let remembers = |refused| {
        known.map(|_| TrialRecord {
            image: inputs.image.to_owned(),
            refused,
            pod: tried_in.clone(),
        })
    };
    let decision = TrialDecision {
        delete: others,
        ..TrialDecision::default()
    };
    let Some(pod) = own.first() else {
        return TrialDecision {
            gate: Gate::Trying(name.clone()),
            create: Some(name),
            ..decision
        };
    };
    match judge(pod) {
        TrialState::Accepted => TrialDecision {
            record: remembers(None),
            ..decision
        },
        TrialState::Refused { words } => TrialDecision {
            record: remembers(Some(words.clone())),
            gate: Gate::Closed(TrialError::Refused { words }),
            ..decision
        },
        TrialState::Running => TrialDecision {
            gate: Gate::Trying(name),
            ..decision
        },
        // It finds no room, and no pod of the cluster runs: nothing is lost by the template that may run.
        TrialState::Stuck { .. } if pods::is_unscheduled(pod) && none_starts(inputs.pods, now) => {
            decision
        }
        TrialState::Stuck { why, over } => {
            let mut decision = TrialDecision {
                gate: Gate::Closed(TrialError::Stuck { pod: name, why }),
                ..decision
            };
            if over && is_old(pod, now) {
                decision.delete.push(Arc::clone(pod));
            }
            decision
        }
    }
}

/// Whether pods get certificates that had none: not every server can be started with them.
fn comes_to_encrypt(inputs: &TrialInputs<'_>) -> bool {
    let mut templates = inputs.templates.values();
    inputs.certificates && !templates.all(|template| template.mounts(VOLUME_CERTIFICATES))
}

/// Whether every StatefulSet names the wanted image and the wanted redis.conf. The ConfigMap of that name may have been deleted: it is made
/// again with the same content.
fn is_named(inputs: &TrialInputs<'_>) -> bool {
    let mut templates = inputs.templates.values();
    !comes_to_encrypt(inputs)
        && templates.all(|template| {
            let named = inputs.configurations.get(&template.configuration);
            let is_wanted = template.configuration == inputs.name
                || named.is_some_and(|named| is_same(inputs, &named.text));
            template.image == inputs.image && is_wanted
        })
}

/// Whether a redis.conf has what is wanted, but for a `maxmemory` of the controller's own.
fn is_same(inputs: &TrialInputs<'_>, named: &str) -> bool {
    let counts = |line: &&str| !inputs.memory_by_limit || !line.starts_with("maxmemory ");
    let (named, wanted) = (named.lines(), inputs.text.lines());
    named.filter(counts).eq(wanted.filter(counts))
}

fn trial_name(inputs: &TrialInputs<'_>, pod: &str) -> String {
    let hash =
        hash_value(&json!({"configuration": inputs.name, "image": inputs.image, "pod": pod}));
    let digits = hash.rsplit('-').next().unwrap_or_default();
    let digits: String = digits.chars().take(DIGITS).collect();
    trial_pod_name(inputs.cluster, &digits)
}

fn none_starts(pods: &Pods, now: Timestamp) -> bool {
    !pods.is_empty()
        && pods
            .values()
            .all(|pod| is_old(pod, now) && cannot_start(pod, pods::start::STARTED_BY, now))
}

fn is_old(pod: &Pod, now: Timestamp) -> bool {
    let created = pod.metadata.creation_timestamp.as_ref();
    created.is_some_and(|created| now.duration_since(created.0) >= LEFT_FOR)
}

/// The records of a ConfigMap with another one, the latest last.
pub fn with_record(records: &[TrialRecord], record: TrialRecord) -> Vec<TrialRecord> {
    let others = records.iter().filter(|one| one.image != record.image);
    let mut kept: Vec<TrialRecord> = others.cloned().collect();
    kept.push(record);
    let excess = kept.len().saturating_sub(KEPT_RECORDS);
    kept.split_off(excess)
}

#[cfg(test)]
mod tests;
