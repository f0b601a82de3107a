//! Volumes that grow: which claims have to ask for more, and how far they are. Pure.

use super::{Claims, is_bound, is_less, requested, stays};
use crate::{sets::SetSize, validate::ValidatedCluster};
use common::{kubernetes::conditions::ConditionUpdate, sentence::names};
use k8s_openapi::{
    api::core::v1::PersistentVolumeClaim, apimachinery::pkg::api::resource::Quantity,
    jiff::Timestamp,
};
use kube::ResourceExt;
use std::sync::Arc;

const CONDITION: &str = "VolumesResized";

/// A size that the API server did not let a claim ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Name of the claim.
    pub claim: String,
    /// What it was to ask for.
    pub size: Quantity,
    /// CamelCase.
    pub reason: &'static str,
    /// The words of the API server.
    pub words: String,
    /// When it is tried again.
    pub retry: Timestamp,
}

/// How far the volumes are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth {
    /// Claims that ask for less than the spec.
    pub small: Vec<Arc<PersistentVolumeClaim>>,
    /// The size that they have to ask for now; none: nothing is to be asked for.
    pub ask: Option<Quantity>,
    /// Claims whose volume has yet to grow.
    growing: Vec<String>,
    /// Claims whose file system has yet to grow, which the kubelet does.
    file_systems: Vec<String>,
    /// What the storage driver reports.
    driver: Option<String>,
    refusal: Option<Refusal>,
}

/// What the claims of the pods that stay say. `refusal`: what was refused the last time.
pub fn growth(
    cluster: &ValidatedCluster,
    sizes: &[SetSize],
    claims: &Claims,
    refusal: Option<Refusal>,
    now: Timestamp,
) -> Growth {
    let mut growth = Growth::default();
    let Some(storage) = &cluster.storage else {
        return growth;
    };
    let staying = claims
        .iter()
        .filter(|(node, claim)| stays(cluster, sizes, **node) && is_bound(claim));
    for (_, claim) in staying {
        if is_less(requested(claim), &storage.size) {
            growth.small.push(Arc::clone(claim));
        } else if is_less(capacity(claim), &storage.size) {
            let waits = condition(claim, "FileSystemResizePending").is_some();
            let list = if waits {
                &mut growth.file_systems
            } else {
                &mut growth.growing
            };
            list.push(claim.name_any());
            let driver = ["ControllerResizeError", "NodeResizeError"];
            let words = driver.into_iter().find_map(|kind| condition(claim, kind));
            growth.driver = growth.driver.or_else(|| words.map(ToOwned::to_owned));
        }
    }
    let refusal = refusal.filter(|one| one.size == storage.size && !growth.small.is_empty());
    let may_ask = refusal.as_ref().is_none_or(|one| now >= one.retry);
    growth.ask = (may_ask && !growth.small.is_empty()).then(|| storage.size.clone());
    if refusal.is_some() {
        // One is enough to find out whether it is still refused.
        growth.small.truncate(1);
    }
    growth.refusal = refusal;
    growth
}

impl Growth {
    /// Whether every claim asks for the size of the spec: from then on the StatefulSets may, too.
    pub fn is_asked_for(&self) -> bool {
        self.small.is_empty()
    }

    /// What was just refused.
    pub fn refused(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
    }

    /// The condition. None for a cluster without volumes.
    pub fn condition(&self, cluster: Option<&ValidatedCluster>) -> Option<ConditionUpdate> {
        let size = &cluster?.storage.as_ref()?.size.0;
        let no = |reason, message: String| ConditionUpdate::no(CONDITION, reason, message);
        if let Some(Refusal {
            claim,
            reason,
            words,
            ..
        }) = &self.refusal
        {
            return Some(no(reason, format!("volume claim {claim}: {words}")));
        }
        if !self.small.is_empty() || !self.growing.is_empty() {
            let small = self.small.iter().map(|claim| claim.name_any());
            let all: Vec<String> = small.chain(self.growing.iter().cloned()).collect();
            let waits = match &self.driver {
                Some(words) => format!("the storage driver reports: {words}"),
                None => format!("waiting for the storage driver to enlarge the volume to {size}"),
            };
            let message = format!("{}: {waits}", names("volume claim", &all));
            return Some(no("Resizing", message));
        }
        if !self.file_systems.is_empty() {
            let message = format!(
                "{}: waiting for the kubelet to make the file system as large as the volume, {size}",
                names("volume claim", &self.file_systems)
            );
            return Some(no("FileSystemResizePending", message));
        }
        let message = format!("every volume has at least {size}");
        Some(ConditionUpdate::yes(CONDITION, "Resized", message))
    }
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.status.as_ref()?.capacity.as_ref()?.get("storage")
}

/// The message of a condition that holds.
fn condition<'a>(claim: &'a PersistentVolumeClaim, kind: &str) -> Option<&'a str> {
    let conditions = claim.status.as_ref()?.conditions.as_ref()?;
    let mut conditions = conditions.iter();
    let found = conditions.find(|one| one.type_ == kind && one.status == "True")?;
    Some(found.message.as_deref().unwrap_or_default())
}
