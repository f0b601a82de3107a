//! Events: told to the user, never waited for, never a reason to fail, never a secret.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

/// Publishes Events in the background. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    sender: tokio::sync::mpsc::Sender<Message>,
}

struct Message {
    regarding: ObjectReference,
    event: kube::runtime::events::Event,
}

impl Events {
    /// Starts the background publisher; it ends when the last clone is dropped.
    pub fn start(client: Client, controller: &'static str, instance: &str) -> Self {
        todo!()
    }

    /// Something went as it should. `action` says what was done (CamelCase), `note` the details.
    pub fn normal(&self, regarding: &ObjectReference, reason: &str, action: &str, note: &str) {
        todo!()
    }

    /// Something needs attention.
    pub fn warning(&self, regarding: &ObjectReference, reason: &str, action: &str, note: &str) {
        todo!()
    }
}
