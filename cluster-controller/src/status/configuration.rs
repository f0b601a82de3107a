//! The condition `ConfigApplied`: whether every server has the settings of the spec.

use super::StatusInputs;
use crate::settings::{
    assess::{ClusterSettings, DifferingSetting, NodeSettings, SettingState},
    trial::Gate,
};
use common::{
    kubernetes::{conditions::ConditionUpdate, errors::Classified},
    sentence::grouped,
};

const KIND: &str = "ConfigApplied";

/// What the trial says, if it keeps the pods as they are: reason and message.
pub(super) fn kept_back(gate: &Gate) -> Option<(&'static str, String)> {
    match gate {
        Gate::Open => None,
        Gate::Trying(pod) => Some((
            "Trying",
            format!(
                "pod {pod} starts a server with the new image and configuration before other pods get them"
            ),
        )),
        Gate::Closed(error) => Some((error.reason(), error.to_string())),
    }
}

/// The condition. What the user has to correct comes first, then what only a restart ends.
pub(super) fn config_applied(found: &StatusInputs<'_>) -> ConditionUpdate {
    if found.cluster.is_none() {
        let message = "unknown while the spec is invalid";
        return ConditionUpdate::unknown(KIND, "InvalidSpec", message);
    }
    if let Some((reason, message)) = kept_back(found.gate) {
        return ConditionUpdate::no(KIND, reason, message);
    }
    let settings = found.settings;
    let causes = [
        ("SettingRefused", sentences(settings, refused)),
        ("MemoryExceeded", sentences(settings, too_full)),
        ("RestartNeeded", restarts(settings)),
        ("Applying", sentences(settings, differs)),
    ];
    if let Some((reason, sentences)) = causes.iter().find(|(_, found)| !found.is_empty()) {
        return ConditionUpdate::no(KIND, reason, sentences.join("; "));
    }
    if settings.nodes.is_empty() {
        return ConditionUpdate::unknown(KIND, "NoAnswer", "no server has answered");
    }
    let message = "every server that answers has the settings of spec.config";
    ConditionUpdate::yes(KIND, "Applied", message)
}

/// The sentences about pods, those with the same one together.
fn sentences(
    settings: &ClusterSettings,
    words: impl Fn(&DifferingSetting) -> Option<String>,
) -> Vec<String> {
    let of_node = |node: &NodeSettings| {
        let sentences: Vec<String> = node.differing.iter().filter_map(&words).collect();
        (!sentences.is_empty()).then(|| sentences.join(", "))
    };
    let nodes = settings.nodes.iter();
    grouped(nodes.filter_map(|node| Some((node.pod.as_str(), of_node(node)?))))
}

fn refused(one: &DifferingSetting) -> Option<String> {
    let SettingState::Refused { words } = &one.state else {
        return None;
    };
    let DifferingSetting { name, value, .. } = one;
    Some(format!(
        "the server refuses {name} \"{value}\": {words}; correct spec.config"
    ))
}

fn too_full(one: &DifferingSetting) -> Option<String> {
    let DifferingSetting { name, value, .. } = one;
    (one.state == SettingState::TooFull).then(|| {
        format!("the server holds more than {name} {value}, three quarters of its memory limit: raise spec.resources.limits.memory or set {name}")
    })
}

fn differs(one: &DifferingSetting) -> Option<String> {
    let differs = matches!(one.state, SettingState::Differs { .. });
    differs.then(|| format!("{} is to become \"{}\"", one.name, one.value))
}

fn restarts(settings: &ClusterSettings) -> Vec<String> {
    let of_node = |node: &NodeSettings| {
        let differing = node.differing.iter();
        let at_start = differing.filter(|one| one.state == SettingState::NeedsRestart);
        let names: Vec<&str> = at_start
            .map(|one| one.name.as_str())
            .chain(node.removed.iter().map(String::as_str))
            .collect();
        (!names.is_empty()).then(|| format!("a restart is needed for {}", names.join(", ")))
    };
    let nodes = settings.nodes.iter();
    grouped(nodes.filter_map(|node| Some((node.pod.as_str(), of_node(node)?))))
}
