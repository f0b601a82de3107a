//! Events: published in the background, never a reason to fail, never a secret.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::time::Duration;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::JoinHandle,
};

/// Events waiting to be published; more are dropped.
const QUEUE: usize = 256;
/// What the API accepts, in bytes.
const NOTE_LIMIT: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes Events in the background. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Sender<Message>,
}

#[derive(Debug)]
struct Message {
    regarding: ObjectReference,
    kind: EventType,
    reason: String,
    action: String,
    note: String,
}

/// An Event about an object that is known elsewhere: for code that decides what to report and does no I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNote {
    warning: bool,
    reason: String,
    action: String,
    note: String,
}

impl EventNote {
    /// Something went as it should.
    pub fn normal(reason: &str, action: &str, note: &str) -> Self {
        Self::new(false, reason, action, note)
    }

    /// Something needs attention.
    pub fn warning(reason: &str, action: &str, note: &str) -> Self {
        Self::new(true, reason, action, note)
    }

    fn new(warning: bool, reason: &str, action: &str, note: &str) -> Self {
        Self {
            warning,
            reason: reason.to_owned(),
            action: action.to_owned(),
            note: note.to_owned(),
        }
    }
}

impl Events {
    /// Publishes all of them, in this order.
    pub fn publish_all(&self, regarding: &ObjectReference, events: Vec<EventNote>) {
        for event in events {
            let kind = if event.warning {
                EventType::Warning
            } else {
                EventType::Normal
            };
            self.send(regarding, kind, &event.reason, &event.action, &event.note);
        }
    }

    /// Starts the background publisher; it ends when the last clone is dropped.
    pub fn start(client: Client, controller: &str, instance: &str) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: controller.to_string(),
            instance: Some(instance.to_string()),
        };
        let publisher = tokio::spawn(publish(Recorder::new(client, reporter), receiver));
        (Self { sender }, publisher)
    }

    /// Something went as it should. `action` says what was done (CamelCase), `note` the details.
    ///
    /// The same reason and action within 6 minutes only bump a counter and keep the first note: put changing detail in a
    /// condition.
    pub fn normal(&self, regarding: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.send(regarding, EventType::Normal, reason, action, note);
    }

    /// Something needs attention.
    pub fn warning(&self, regarding: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.send(regarding, EventType::Warning, reason, action, note);
    }

    fn send(
        &self,
        regarding: &ObjectReference,
        kind: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let message = Message {
            regarding: regarding.clone(),
            kind,
            reason: reason.to_string(),
            action: action.to_string(),
            note: shorten(without_secrets(note)),
        };
        if self.sender.try_send(message).is_err() {
            tracing::debug!(reason, "an event was dropped: too many are waiting");
        }
    }
}

async fn publish(recorder: Recorder, mut messages: Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let event = Event {
            type_: message.kind,
            reason: message.reason,
            note: Some(message.note),
            action: message.action,
            secondary: None,
        };
        let call = recorder.publish(&event, &message.regarding);
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, reason = event.reason, "an event was not published");
            }
            Err(_) => tracing::debug!(reason = event.reason, "an event was not published in time"),
        }
    }
}

fn shorten(mut note: String) -> String {
    if note.len() <= NOTE_LIMIT {
        return note;
    }
    let mut end = NOTE_LIMIT - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    note.push('…');
    note
}

/// The second line of defence (the first is that errors never hold a secret): user information and query strings of URLs are
/// masked, because signatures and passwords travel there.
fn without_secrets(note: &str) -> String {
    note.split(' ').map(mask).collect::<Vec<_>>().join(" ")
}

fn mask(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_string();
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority
        .rsplit_once('@')
        .map_or(authority.to_string(), |(_, host)| format!("***@{host}"));
    let path = path
        .split_once('?')
        .map_or(path.to_string(), |(before, _)| format!("{before}?***"));
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_lose_what_may_be_secret() {
        assert_eq!(
            without_secrets("GET https://key:word@s3.local/b/k?X-Amz-Signature=1f failed"),
            "GET https://***@s3.local/b/k?*** failed"
        );
        assert_eq!(
            without_secrets("stored in s3://bucket/a@b/manifest.json"),
            "stored in s3://bucket/a@b/manifest.json"
        );
    }

    proptest! {
        #[test]
        fn notes_fit(note in "\\PC{0,1500}") {
            let short = shorten(note.clone());
            prop_assert!(short.len() <= NOTE_LIMIT);
            if note.len() <= NOTE_LIMIT {
                prop_assert_eq!(short, note);
            }
        }
    }
}
