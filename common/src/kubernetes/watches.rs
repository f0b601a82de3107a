//! One watch of one kind: pruned into a cache, its touched objects as a stream.

use crate::runtime::{health::WatchHealth, metrics::Metrics};
use crds::ANNOTATION_LAST_APPLIED;
use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Instant};

/// What a watched kind has to be able to do.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// An API as it is watched: an object that does not parse is left out, and does not stop the watch.
/// `runtime.api()` makes one where one is wanted.
pub type WatchedApi<K> = Api<DeserializeGuard<K>>;

/// A running watch.
pub(super) struct Watching<K: Watched, S> {
    /// The cache. It fills while `touched` is polled.
    pub(super) store: Store<K>,
    /// Objects that were added, changed or deleted.
    pub(super) touched: S,
    /// Whether the cache is complete. Not asked of the store: of several tasks in `Store::wait_until_ready` kube 5.0 notifies only the
    /// one that asked last.
    pub(super) complete: tokio::sync::watch::Receiver<bool>,
}

/// Starts a watch. `seen` gets every event once the store has taken it over, and before `touched` names its object.
pub(super) fn watch<K: Watched>(
    api: WatchedApi<K>,
    config: watcher::Config,
    metrics: Metrics,
    health: WatchHealth,
    seen: impl Fn(&Store<K>, &Event<K>) + Send,
) -> Watching<K, impl Stream<Item = K> + Send> {
    let (store, writer) = reflector::store();
    let (completes, complete) = tokio::sync::watch::channel(false);
    let kind = K::kind(&()).into_owned();
    let failed = (kind.clone(), metrics.clone());
    let (known, shown) = (store.clone(), store.clone());
    let touched = watcher::watcher(api, config)
        .default_backoff()
        .inspect(move |event| report(&health, event, Instant::now()))
        .filter_map(move |event| {
            let parsed = event
                .map(|event| parsed(event, &known, &kind, &metrics))
                .transpose();
            std::future::ready(parsed)
        })
        .modify(prune)
        .reflect(writer)
        .inspect(move |event| {
            let Ok(event) = event else { return };
            seen(&shown, event);
            if let Event::InitDone = event {
                completes.send_replace(true);
            }
        })
        .touched_objects()
        .filter_map(move |result| {
            let (kind, metrics) = &failed;
            let object = result.inspect_err(|error| {
                metrics.watch_failed(kind);
                tracing::warn!(kind, %error, "a watch failed; trying again");
            });
            std::future::ready(object.ok())
        });
    Watching {
        store,
        touched,
        complete,
    }
}

/// The watcher announces every list, also one that fails, by `Init`: that alone is no success.
fn report<K>(health: &WatchHealth, event: &watcher::Result<Event<K>>, now: Instant) {
    match event {
        Ok(Event::Init) => {}
        Ok(Event::InitApply(_) | Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
            health.succeeded();
        }
        Err(_) => health.failed(now),
    }
}

/// The event without its guard. Where the object does not parse, the cache keeps what it had of it, also through a new list, and an
/// object that is deleted leaves the cache all the same. `None`: the cache does not know it.
fn parsed<K: Watched>(
    event: Event<DeserializeGuard<K>>,
    known: &Store<K>,
    kind: &str,
    metrics: &Metrics,
) -> Option<Event<K>> {
    let last_known = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            metrics.invalid_object(kind);
            let name = invalid.metadata.name.unwrap_or_default();
            let namespace = invalid.metadata.namespace;
            tracing::warn!(
                kind,
                namespace,
                name,
                error = invalid.error,
                "an object does not parse; its last known state is used"
            );
            let mut reference = ObjectRef::<K>::new(&name);
            reference.namespace = namespace;
            known.get(&reference).map(|object| object.as_ref().clone())
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(last_known(guard)?),
        Event::Delete(guard) => Event::Delete(last_known(guard)?),
        Event::InitApply(guard) => Event::InitApply(last_known(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}

/// Removes what no controller reads and what can be most of an object's size.
fn prune<K: Watched>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(ANNOTATION_LAST_APPLIED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Program, health::Health};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{api::ObjectMeta, core::error_boundary::InvalidObject};
    use std::time::Duration;

    fn metadata(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            ..ObjectMeta::default()
        }
    }

    fn invalid(name: &str) -> DeserializeGuard<ConfigMap> {
        DeserializeGuard(Err(InvalidObject {
            error: "field `size` is no number".into(),
            metadata: metadata(name),
        }))
    }

    #[test]
    fn an_object_that_no_longer_parses_survives_a_new_list() {
        let (store, mut writer) = reflector::store::<ConfigMap>();
        let metrics = Metrics::new(Program {
            name: "test",
            version: "0",
        });
        let mut show = |event| {
            if let Some(event) = parsed(event, &store, "ConfigMap", &metrics) {
                writer.apply_watcher_event(&event);
            }
            store.state().len()
        };
        let good = ConfigMap {
            metadata: metadata("a"),
            ..ConfigMap::default()
        };
        assert_eq!(show(Event::Apply(DeserializeGuard(Ok(good)))), 1);
        assert_eq!(show(Event::Apply(invalid("a"))), 1);
        for event in [Event::Init, Event::InitApply(invalid("a")), Event::InitDone] {
            assert_eq!(show(event), 1);
        }
        assert_eq!(show(Event::Apply(invalid("never parsed"))), 1);
        assert_eq!(show(Event::Delete(invalid("a"))), 0);
    }

    #[test]
    fn lists_that_fail_for_a_minute_close_readiness() {
        let health = Health::default();
        let watch = health.watch("ConfigMap");
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        for second in [0, 30, 60] {
            report::<ConfigMap>(&watch, &Ok(Event::Init), at(second));
            let failed = Err(watcher::Error::NoResourceVersion);
            report::<ConfigMap>(&watch, &failed, at(second));
        }
        assert!(health.ready(at(60)).is_err());
        report::<ConfigMap>(&watch, &Ok(Event::Init), at(61));
        assert!(health.ready(at(61)).is_err());
        report::<ConfigMap>(&watch, &Ok(Event::InitDone), at(62));
        assert_eq!(health.ready(at(62)), Ok(()));
    }
}
