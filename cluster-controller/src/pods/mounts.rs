//! Whether pods start with a volume of the controller's own that not all of them have: users, certificates. Pure.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Whether the pod's server starts with the Secret of this volume.
pub fn mounts(pod: &Pod, volume: &str) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| has_secret(spec, volume))
}

/// The same of a template.
pub fn has_secret(pod: &PodSpec, volume: &str) -> bool {
    let mut volumes = pod.volumes.iter().flatten();
    volumes.any(|one| one.name == volume && one.secret.is_some())
}

/// How many pods start with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// All.
    All,
    /// Some.
    Some,
    /// None.
    None,
}

impl Mounted {
    /// Of whether each does.
    pub fn of(each: impl IntoIterator<Item = bool>) -> Self {
        let (mut some, mut all) = (false, true);
        for mounts in each {
            some |= mounts;
            all &= mounts;
        }
        match (some, all) {
            (false, _) => Self::None,
            (true, true) => Self::All,
            (true, false) => Self::Some,
        }
    }
}
