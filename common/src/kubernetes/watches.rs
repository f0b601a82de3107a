//! One watch of one kind: pruned into a cache, its touched objects as a stream.

use super::controller::{Watched, WatchedApi};
use crate::runtime::metrics::Metrics;
use futures::{Stream, StreamExt};
use kube::{
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, Event},
    },
};

/// Left behind by client-side `kubectl apply`: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What comes of a watch.
pub(super) struct Watching<K: Watched, S> {
    /// The cache. It fills while `touched` is polled.
    pub(super) store: Store<K>,
    /// Objects that were added, changed or deleted.
    pub(super) touched: S,
    /// Whether the cache is complete. Not asked of the store: of several tasks in `Store::wait_until_ready` kube 5.0 wakes only the
    /// one that asked last.
    pub(super) complete: tokio::sync::watch::Receiver<bool>,
}

/// Begins a watch.
pub(super) fn watch<K: Watched>(
    api: WatchedApi<K>,
    config: watcher::Config,
    metrics: Metrics,
) -> Watching<K, impl Stream<Item = K> + Send> {
    let (store, writer) = reflector::store();
    let (completes, complete) = tokio::sync::watch::channel(false);
    let kind = K::kind(&()).into_owned();
    let failed = (kind.clone(), metrics.clone());
    let touched = watcher::watcher(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let parsed = event
                .map(|event| parsed(event, &kind, &metrics))
                .transpose();
            std::future::ready(parsed)
        })
        .modify(prune)
        .reflect(writer)
        .inspect(move |event| {
            if let Ok(Event::InitDone) = event {
                completes.send_replace(true);
            }
        })
        .touched_objects()
        .filter_map(move |result| {
            let (kind, metrics) = &failed;
            let object = result.inspect_err(|error| {
                metrics.watch_failed(kind);
                tracing::warn!(kind, %error, "a watch failed; it is begun again");
            });
            std::future::ready(object.ok())
        });
    Watching {
        store,
        touched,
        complete,
    }
}

/// The event without its guard; `None` when its object does not parse. The cache then keeps what it had of it.
fn parsed<K: Watched>(
    event: Event<DeserializeGuard<K>>,
    kind: &str,
    metrics: &Metrics,
) -> Option<Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            metrics.invalid_object(kind);
            let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
            tracing::warn!(
                kind,
                ?namespace,
                ?name,
                error = invalid.error,
                "an object does not parse and is left alone"
            );
            None
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(open(guard)?),
        Event::Delete(guard) => Event::Delete(open(guard)?),
        Event::InitApply(guard) => Event::InitApply(open(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}

/// Takes away what nobody here reads and what can be most of an object's size.
fn prune<K: Watched>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
}
