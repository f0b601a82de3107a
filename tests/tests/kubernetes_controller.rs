//! The run loop on a real API server: caches, triggers, retries, leadership, bad objects, the end.

use anyhow::{Context, Result};
use common::{
    kubernetes::{
        apply::Applier,
        call::ApiError,
        controller::{Controller, Reconcile},
        errors::{Classified, ErrorClass},
        expectations::{Expectations, OwnerKey},
        grouped::Grouped,
        leases::Leadership,
        outcome::Outcome,
    },
    runtime::{CommonArguments, Runtime},
};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api, CustomResource, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tests::{
    kubernetes::{ApiServer, api_server},
    wait::eventually,
};

/// On every child, with the name of its owner.
const LABEL: &str = "tests.redis.danieldorado.github.io/widget";

/// What is reconciled: a ConfigMap of the same name that holds the size. A negative size fails.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize)]
#[kube(
    group = "tests.redis.danieldorado.github.io",
    version = "v1",
    kind = "Widget",
    namespaced,
    schema = "disabled"
)]
struct WidgetSpec {
    size: i32,
}

async fn define_widgets(server: &ApiServer) -> Result<()> {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.tests.redis.danieldorado.github.io"},
        "spec": {
            "group": "tests.redis.danieldorado.github.io", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]
        }
    });
    server.define(&serde_json::from_value(definition)?).await
}

#[derive(Debug)]
enum WidgetError {
    Negative(i32),
    Api(ApiError),
}

impl std::fmt::Display for WidgetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Negative(size) => write!(f, "a size of {size} cannot be had"),
            Self::Api(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for WidgetError {}

impl Classified for WidgetError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Negative(_) => ErrorClass::Transient,
            Self::Api(error) => error.class(),
        }
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Negative(_) => "NegativeSize",
            Self::Api(error) => error.reason(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Passed { written: bool },
    Failed,
    Gone,
}

struct Widgets {
    applier: Applier,
    children: Grouped<ConfigMap>,
    seen: Mutex<Vec<(String, Seen, Instant)>>,
}

impl Widgets {
    fn note(&self, name: &str, seen: Seen) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name.to_string(), seen, Instant::now()));
    }

    fn seen(&self, name: &str) -> Vec<(Seen, Instant)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of_name = seen.iter().filter(|(of, ..)| of == name);
        of_name.map(|(_, seen, at)| (seen.clone(), *at)).collect()
    }

    fn last(&self, name: &str) -> Option<Seen> {
        self.seen(name).pop().map(|(seen, _)| seen)
    }
}

impl Reconcile<Widget> for Widgets {
    type Error = WidgetError;

    async fn reconcile(&self, widget: Arc<Widget>) -> Result<Outcome, WidgetError> {
        let name = widget.name_any();
        if widget.spec.size < 0 {
            self.note(&name, Seen::Failed);
            return Err(WidgetError::Negative(widget.spec.size));
        }
        let mut wanted = ConfigMap {
            data: Some(BTreeMap::from([(
                "size".into(),
                widget.spec.size.to_string(),
            )])),
            ..ConfigMap::default()
        };
        wanted.metadata.name = Some(name.clone());
        wanted.metadata.namespace = widget.namespace();
        wanted.metadata.owner_references =
            widget.controller_owner_ref(&()).map(|owner| vec![owner]);
        wanted.metadata.labels = Some([(LABEL.to_owned(), name.clone())].into());
        let namespace = widget.namespace().unwrap_or_default();
        let observed = self.children.of(&namespace, &name).into_iter().next();
        let key = OwnerKey::of(widget.as_ref());
        let applied = self
            .applier
            .apply(&key, wanted, observed.as_deref())
            .await
            .map_err(WidgetError::Api)?;
        let written = applied.written;
        self.note(&name, Seen::Passed { written });
        Ok(Outcome::finished())
    }

    fn gone(&self, _namespace: &str, name: &str) {
        self.note(name, Seen::Gone);
    }
}

/// A controller that is not running yet, and its reconciler.
fn controller(runtime: &Runtime) -> (Controller<Widget>, Arc<Widgets>) {
    let mut controller = Controller::new(runtime, runtime.api());
    let children = controller.owns(runtime.api(), LABEL);
    let expectations = Arc::new(Expectations::new());
    let widgets = Widgets {
        applier: Applier::new(runtime.client.clone(), "tests", expectations),
        children,
        seen: Mutex::default(),
    };
    (controller, Arc::new(widgets))
}

async fn create(api: &Api<Widget>, name: &str, size: i32) -> Result<()> {
    let widget = Widget::new(name, WidgetSpec { size });
    api.create(&PostParams::default(), &widget).await?;
    Ok(())
}

async fn until(widgets: &Widgets, name: &str, wanted: Seen) -> Result<()> {
    eventually(&format!("{name} is {wanted:?}"), async || {
        Ok((widgets.last(name).as_ref() == Some(&wanted)).then_some(()))
    })
    .await
    .with_context(|| format!("{name}: {:?}", widgets.seen(name)))
}

const LEASE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_reconciled_from_first_sight_to_the_end() -> Result<()> {
    let server = api_server().await?;
    define_widgets(&server).await?;
    let namespace = server.namespace("loop").await?;
    let api: Api<Widget> = Api::namespaced(server.client.clone(), &namespace);
    let runtime = server.runtime("widget-controller", "a", &namespace, LEASE)?;
    // One that does not parse is there first: it must not keep the others from being seen.
    let resource = ApiResource::erase::<Widget>(&());
    let raw: Api<DynamicObject> =
        Api::namespaced_with(server.client.clone(), &namespace, &resource);
    let mut bad = DynamicObject::new("bad", &resource);
    bad.data = json!({"spec": {"size": "large"}});
    raw.create(&PostParams::default(), &bad).await?;
    create(&api, "early", 1).await?;

    let (controller, widgets) = controller(&runtime);
    let trigger = controller.trigger();
    assert!(runtime.health.ready(Instant::now()).is_err());
    let running = tokio::spawn(controller.run(Arc::clone(&widgets)));
    eventually("early is reconciled", async || Ok(widgets.last("early"))).await?;
    assert!(
        runtime.health.ready(Instant::now()).is_ok() && runtime.health.live(Instant::now()).is_ok()
    );

    // The child's own appearance enqueues its owner; that reconcile writes nothing and is the last.
    let quiet = Seen::Passed { written: false };
    until(&widgets, "early", quiet.clone()).await?;
    create(&api, "late", 2).await?;
    until(&widgets, "late", quiet.clone()).await?;
    let reconciles = widgets.seen("late").len();
    assert!(reconciles <= 3, "{:?}", widgets.seen("late"));
    trigger.object(&namespace, "late");
    eventually("late is reconciled again", async || {
        Ok((widgets.seen("late").len() > reconciles).then_some(()))
    })
    .await?;
    assert_eq!(widgets.last("late"), Some(quiet.clone()));

    // An edit of a child by another client is seen and undone.
    let maps: Api<ConfigMap> = Api::namespaced(server.client.clone(), &namespace);
    let edit = Patch::Merge(json!({"data": {"size": "7"}}));
    maps.patch("early", &PatchParams::default(), &edit).await?;
    eventually("the edit is undone", async || {
        let data = maps.get("early").await?.data.context("no data")?;
        Ok((data["size"] == "1").then_some(()))
    })
    .await?;

    api.delete("late", &DeleteParams::default()).await?;
    until(&widgets, "late", Seen::Gone).await?;
    assert!(widgets.seen("bad").is_empty());
    let metrics = runtime.metrics.encode()?;
    assert!(
        metrics.contains(r#"redis_operator_invalid_objects_total{kind="Widget"} 1"#),
        "{metrics}"
    );

    runtime.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_retried_ever_later_with_an_event() -> Result<()> {
    let server = api_server().await?;
    define_widgets(&server).await?;
    let namespace = server.namespace("failing").await?;
    let api: Api<Widget> = Api::namespaced(server.client.clone(), &namespace);
    let runtime = server.runtime("widget-controller", "a", &namespace, LEASE)?;
    let (controller, widgets) = controller(&runtime);
    let running = tokio::spawn(controller.run(Arc::clone(&widgets)));
    create(&api, "w", -1).await?;
    eventually("it fails four times", async || {
        Ok((widgets.seen("w").len() >= 4).then_some(()))
    })
    .await
    .with_context(|| format!("{:?}\n{:?}", widgets.seen("w"), runtime.metrics.encode()))?;
    let times: Vec<Instant> = widgets.seen("w").iter().map(|(_, at)| *at).collect();
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, least) in pauses.iter().zip([1, 2, 4]) {
        assert!(*pause >= Duration::from_secs(least), "{pauses:?}");
    }
    let events: Api<Event> = Api::namespaced(server.client.clone(), &namespace);
    let event = eventually("an Event reports it", async || {
        let found = events.list(&kube::api::ListParams::default()).await?;
        Ok(found.items.into_iter().next())
    })
    .await?;
    assert_eq!(event.reason.as_deref(), Some("NegativeSize"));
    assert_eq!(event.note.as_deref(), Some("a size of -1 cannot be had"));
    // Corrected: seen at once, not after the pause.
    let begun = Instant::now();
    let correction = Patch::Merge(json!({"spec": {"size": 3}}));
    api.patch("w", &PatchParams::default(), &correction).await?;
    until(&widgets, "w", Seen::Passed { written: false }).await?;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    runtime.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_reconciles_and_its_successor_looks_at_everything() -> Result<()> {
    let server = api_server().await?;
    define_widgets(&server).await?;
    let namespace = server.namespace("standby").await?;
    let api: Api<Widget> = Api::namespaced(server.client.clone(), &namespace);
    create(&api, "w", 1).await?;
    let mut replicas = Vec::new();
    for identity in ["a", "b"] {
        let runtime = server.runtime("widget-controller", identity, &namespace, LEASE)?;
        let leadership = Leadership::start(&runtime);
        let (mut controller, widgets) = controller(&runtime);
        controller.only_leader(&leadership);
        let running = tokio::spawn(controller.run(Arc::clone(&widgets)));
        if identity == "a" {
            until(&widgets, "w", Seen::Passed { written: false }).await?;
        }
        replicas.push((runtime, widgets, running));
    }
    let (second, first) = (replicas.pop().context("b")?, replicas.pop().context("a")?);
    create(&api, "x", 1).await?;
    until(&first.1, "x", Seen::Passed { written: false }).await?;
    eventually("the standby is ready", async || {
        Ok(second.0.health.ready(Instant::now()).ok())
    })
    .await?;
    assert!(second.1.seen("w").is_empty() && second.1.seen("x").is_empty());
    first.0.shutdown.cancel();
    first.2.await?;
    first.0.finish(Duration::from_secs(1)).await;
    for name in ["w", "x"] {
        until(&second.1, name, Seen::Passed { written: false }).await?;
    }
    second.0.shutdown.cancel();
    second.2.await?;
    second.0.finish(Duration::from_secs(1)).await;
    Ok(())
}

/// A reconcile that never ends by itself.
#[derive(Default)]
struct Endless {
    started: AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Reconcile<Widget> for Endless {
    type Error = WidgetError;

    async fn reconcile(&self, _widget: Arc<Widget>) -> Result<Outcome, WidgetError> {
        let _dropped = Dropped(Arc::clone(&self.dropped));
        self.started.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconcile_is_cancelled_when_another_replica_leads() -> Result<()> {
    let server = api_server().await?;
    define_widgets(&server).await?;
    let namespace = server.namespace("deposed").await?;
    let api: Api<Widget> = Api::namespaced(server.client.clone(), &namespace);
    create(&api, "w", 1).await?;
    let runtime = server.runtime("widget-controller", "a", &namespace, LEASE)?;
    let leadership = Leadership::start(&runtime);
    let mut controller = Controller::new(&runtime, runtime.api());
    controller.only_leader(&leadership);
    let endless = Arc::new(Endless::default());
    let running = tokio::spawn(controller.run(Arc::clone(&endless)));
    let started = || endless.started.load(Ordering::SeqCst);
    eventually("the reconcile runs", async || {
        Ok((started() == 1).then_some(()))
    })
    .await?;

    // Another replica has taken the lease.
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let deposed = Instant::now();
    let taken = json!({"spec": {"holderIdentity": "b", "leaseTransitions": 2}});
    leases
        .patch(
            "widget-controller",
            &PatchParams::default(),
            &Patch::Merge(taken),
        )
        .await?;
    eventually("the reconcile is dropped", async || {
        Ok((endless.dropped.load(Ordering::SeqCst) == 1).then_some(()))
    })
    .await?;
    // The next renewal has noticed it.
    assert!(deposed.elapsed() < LEASE, "{:?}", deposed.elapsed());
    assert!(!leadership.is_leader_now());
    assert_eq!(started(), 1);
    // That one never renews: this replica leads again, and starts again.
    eventually("the reconcile runs again", async || {
        Ok((started() == 2).then_some(()))
    })
    .await?;
    runtime.shutdown.cancel();
    running.abort();
    runtime.finish(Duration::from_secs(1)).await;
    Ok(())
}

const PLACES: u16 = 3;

/// A reconcile that takes its time, and wants to be done again at once. A widget takes as many places as it is large.
#[derive(Default)]
struct Busy {
    counts: Mutex<BTreeMap<String, usize>>,
    taken: AtomicUsize,
    most: AtomicUsize,
}

impl Busy {
    fn counts(&self) -> Vec<usize> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.values().copied().collect()
    }
}

impl Reconcile<Widget> for Busy {
    type Error = WidgetError;

    async fn reconcile(&self, widget: Arc<Widget>) -> Result<Outcome, WidgetError> {
        let places = self.places(&widget).min(PLACES.into()) as usize;
        let taken = self.taken.fetch_add(places, Ordering::SeqCst) + places;
        self.most.fetch_max(taken, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.taken.fetch_sub(places, Ordering::SeqCst);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(widget.name_any()).or_default() += 1;
        Ok(Outcome::waiting("Busy", Duration::ZERO))
    }

    fn places(&self, widget: &Widget) -> u32 {
        widget.spec.size.unsigned_abs()
    }
}

/// There are never enough places for all: each comes to its turn all the same, also one that needs several, and one that needs more than
/// there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_wait_come_to_their_turn() -> Result<()> {
    let server = api_server().await?;
    define_widgets(&server).await?;
    let namespace = server.namespace("busy").await?;
    let api: Api<Widget> = Api::namespaced(server.client.clone(), &namespace);
    let count = 40;
    for number in 0..count {
        let size = [1, 1, 1, 1, 2, 3, 9][number % 7];
        create(&api, &format!("w-{number}"), size).await?;
    }
    let mut runtime = server.runtime("widget-controller", "a", &namespace, LEASE)?;
    runtime.arguments = Arc::new(CommonArguments {
        concurrency: PLACES,
        ..runtime.arguments.as_ref().clone()
    });
    let controller = Controller::new(&runtime, runtime.api());
    let busy = Arc::new(Busy::default());
    let running = tokio::spawn(controller.run(Arc::clone(&busy)));
    eventually("some have been reconciled often", async || {
        Ok(busy.counts().into_iter().max() >= Some(10))
    })
    .await?;
    let counts = busy.counts();
    runtime.shutdown.cancel();
    running.await?;
    assert_eq!(counts.len(), count, "{counts:?}");
    assert!(counts.iter().all(|times| *times >= 5), "{counts:?}");
    assert!(busy.most.load(Ordering::SeqCst) <= usize::from(PLACES));
    runtime.finish(Duration::from_secs(1)).await;
    Ok(())
}
