//! Settings that are changed while the servers run: which ones, and what is said of it. Pure.

use super::{
    answer::{LiveChange, LiveOutcome, LiveResult},
    assess::{ClusterSettings, SettingState},
};
use crate::{
    pod_patch::{PodChange, PodPatch},
    pods::Pods,
};
use common::{kubernetes::events::EventNote, sentence::grouped};
use crds::ANNOTATION_LIVE_SETTINGS;
use serde_json::json;

/// What is to be set now.
pub fn changes(settings: &ClusterSettings) -> Vec<LiveChange> {
    let nodes = settings.nodes.iter();
    let of_node = nodes.flat_map(|node| node.differing.iter().map(move |one| (node, one)));
    of_node
        .filter_map(|(node, one)| {
            let SettingState::Differs { was, drifted } = &one.state else {
                return None;
            };
            Some(LiveChange {
                member: node.member,
                pod: node.pod.clone(),
                node: node.node,
                name: one.name.clone(),
                value: one.value.clone(),
                was: was.clone(),
                drifted: *drifted,
            })
        })
        .collect()
}

/// The Events: each change once, however many pods it was made on.
pub fn events(outcomes: &[LiveOutcome]) -> Vec<EventNote> {
    let taken = |drifted: bool| {
        let taken = outcomes.iter().filter(move |one| {
            // Another spelling of what the server had already is no change.
            let changes = matches!(&one.result, LiveResult::Reads(reads) if Some(reads) != one.change.was.as_ref());
            one.change.drifted == drifted && changes
        });
        grouped(taken.map(|one| (one.change.pod.as_str(), sentence(one))))
    };
    let changed = taken(false).into_iter();
    let changed = changed.map(|text| EventNote::normal("SettingChanged", "Configure", &text));
    let drifted = taken(true).into_iter();
    let drifted = drifted.map(|text| EventNote::warning("SettingDrifted", "Configure", &text));
    changed.chain(drifted).collect()
}

fn sentence(LiveOutcome { change, .. }: &LiveOutcome) -> String {
    let LiveChange { name, value, .. } = change;
    let was = change.was.as_deref().unwrap_or_default();
    if change.drifted {
        format!(
            "{name} was \"{was}\" on the server, not as spec.config says: set to \"{value}\" again"
        )
    } else {
        format!("{name} set to \"{value}\" while the server runs, before \"{was}\"")
    }
}

/// What pods have to say of settings that were changed while they run, before they are.
pub fn annotations(settings: &ClusterSettings, pods: &Pods) -> Vec<PodPatch> {
    let nodes = settings.nodes.iter();
    let patches = nodes.filter_map(|node| {
        let values = node.annotation.as_ref()?;
        Some(PodPatch {
            pod: pods.get(&node.pod)?.clone(),
            change: PodChange::Annotation(ANNOTATION_LIVE_SETTINGS, json!(values).to_string()),
        })
    });
    patches.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_the_same_change_share_an_event() {
        let outcome = |pod: &str, drifted| LiveOutcome {
            change: LiveChange {
                member: 0,
                pod: pod.into(),
                node: "a".repeat(40).parse().unwrap(),
                name: "maxclients".into(),
                value: "99".into(),
                was: Some("10000".into()),
                drifted,
            },
            result: LiveResult::Reads("99".into()),
        };
        let mut outcomes = vec![outcome("shop-0-0", false), outcome("shop-0-1", false)];
        let text = format!("{:?}", events(&outcomes));
        assert_eq!(events(&outcomes).len(), 1, "{text}");
        assert!(
            text.contains("2 pods (shop-0-0, shop-0-1): maxclients set to"),
            "{text}"
        );
        outcomes.push(outcome("shop-1-0", true));
        let text = format!("{:?}", events(&outcomes));
        assert!(text.contains("SettingDrifted") && text.contains("pod shop-1-0: maxclients was"));
        outcomes[2].result = LiveResult::OnlyAtStart;
        assert_eq!(events(&outcomes).len(), 1);
        let same = LiveResult::Reads("10000".into());
        for one in &mut outcomes {
            one.result = same.clone();
        }
        assert!(events(&outcomes).is_empty());
    }
}
