//! What the containers of a pod are made of.

use k8s_openapi::api::core::v1::{
    Capabilities, ContainerPort, KeyToPath, SecretVolumeSource, SecurityContext, Volume,
    VolumeMount,
};

/// A volume of this name whose source `set` gives.
pub(super) fn volume(name: &str, set: impl FnOnce(&mut Volume)) -> Volume {
    let mut volume = Volume {
        name: name.to_owned(),
        ..Volume::default()
    };
    set(&mut volume);
    volume
}

/// A volume with these keys of a Secret; none: with all.
pub(super) fn secret_volume(name: &str, secret: String, items: Option<Vec<KeyToPath>>) -> Volume {
    volume(name, |volume| {
        volume.secret = Some(SecretVolumeSource {
            secret_name: Some(secret),
            items,
            ..SecretVolumeSource::default()
        });
    })
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// What no container of a pod may do.
pub(super) fn sandbox() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            ..Capabilities::default()
        }),
        ..SecurityContext::default()
    }
}
