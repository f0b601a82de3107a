//! A kind of object with units, for the tests of this folder.

use super::unit::{Stage, Unit, UnitKind, fields};
use crds::{RedisRestore, RedisRestoreSpec, RestoreUnit, RestoreUnitState};
use serde_json::{Map, Value, json};

pub(super) struct Units;

impl UnitKind for Units {
    type Object = RedisRestore;

    const UNITS: &'static str = "/status/units";

    fn units(object: &RedisRestore) -> Vec<Unit<'_>> {
        let units = object.status.iter().flat_map(|status| &status.units);
        let stage = |unit: &RestoreUnit| match unit.state {
            RestoreUnitState::Pending | RestoreUnitState::Replaying => Stage::Open,
            RestoreUnitState::Failed => Stage::Failed,
            RestoreUnitState::Loaded | RestoreUnitState::Refused => Stage::Ended,
        };
        units
            .map(|unit| Unit {
                index: unit.index,
                worker: &unit.worker,
                attempt: unit.attempt,
                stage: stage(unit),
                error: unit.error.as_deref(),
            })
            .collect()
    }

    fn is_finished(_: &RedisRestore) -> bool {
        false
    }

    fn failed(error: &str) -> Map<String, Value> {
        fields(json!({"error": error}))
    }

    fn freed(error: &str) -> Map<String, Value> {
        Self::failed(error)
    }
}

/// An object with units: worker, attempt and state of each.
pub(super) fn object(units: &[(&str, i32, &str)]) -> RedisRestore {
    let units = units.iter().zip(0..);
    let units: Vec<Value> = units
        .map(|((worker, attempt, state), index)| {
            json!({"index": index, "worker": worker, "attempt": attempt, "state": state})
        })
        .collect();
    let mut object = RedisRestore::new("r", RedisRestoreSpec::default());
    object.metadata.uid = Some("u".to_owned());
    object.status = serde_json::from_value(json!({"units": units})).unwrap();
    object
}

mod spans {
    use super::{super::worker::unit_span, Units, object};
    use crate::{
        kubernetes::call::ApiError,
        runtime::{Program, metrics::Metrics, tasks::Tasks},
    };
    use std::{
        collections::BTreeMap,
        fmt::Debug,
        sync::{Arc, Mutex},
        time::Duration,
    };
    use tokio_util::sync::CancellationToken;
    use tracing::{
        Instrument, Subscriber,
        field::{Field, Visit},
        span,
    };
    use tracing_subscriber::{
        Layer,
        layer::{Context, SubscriberExt},
        registry::LookupSpan,
    };

    type Fields = BTreeMap<&'static str, String>;

    /// The fields of all spans around each event.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<Fields>>>);

    #[derive(Default)]
    struct Visited(Fields);

    impl Visit for Visited {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.to_owned());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Captured {
        fn on_new_span(&self, made: &span::Attributes<'_>, id: &span::Id, spans: Context<'_, S>) {
            let mut visited = Visited::default();
            made.record(&mut visited);
            spans.span(id).unwrap().extensions_mut().insert(visited.0);
        }

        fn on_event(&self, event: &tracing::Event<'_>, spans: Context<'_, S>) {
            let around = spans.event_scope(event).into_iter().flatten();
            let fields = around.filter_map(|span| span.extensions().get::<Fields>().cloned());
            self.0.lock().unwrap().push(fields.flatten().collect());
        }
    }

    /// What a line says that a unit's work logs, or a job that was started beside it by the reconcile.
    #[tokio::test]
    async fn lines_of_tasks_say_which_object_shard_and_attempt() {
        let captured = Captured::default();
        let subscriber = tracing_subscriber::registry().with(captured.clone());
        let _here = tracing::subscriber::set_default(subscriber);
        let metrics = Metrics::new(Program {
            name: "test",
            version: "0",
        });
        let end = CancellationToken::new();
        let tasks = Tasks::new(2, end.clone(), metrics, |_, _| {});
        let mut restore = object(&[("w", 1, "Loaded"), ("w", 3, "Replaying")]);
        restore.metadata.namespace = Some("shop".to_owned());
        let line = async || tracing::info!("a line");

        let reconcile = tracing::info_span!("reconcile", kind = "K", namespace = "n", name = "o");
        reconcile.in_scope(|| {
            let job = |_| async move {
                line().await;
                Ok::<(), ApiError>(())
            };
            tasks.start("job", job).unwrap();
        });
        let span = unit_span::<Units>(&restore, 1, 3);
        let unit = |_| {
            let work = async move {
                line().await;
                Ok::<(), ApiError>(())
            };
            work.instrument(span)
        };
        tasks.start("unit", unit).unwrap();
        assert!(tasks.join(Duration::from_secs(5)).await.is_empty());

        let lines = captured.0.lock().unwrap().clone();
        let shown = |fields: &[(&'static str, &str)]| {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| (name, (*value).to_owned()))
                .collect();
            lines.iter().any(|line| {
                fields
                    .iter()
                    .all(|(name, value)| line.get(*name) == Some(value))
            })
        };
        assert!(
            shown(&[
                ("kind", "K"),
                ("namespace", "n"),
                ("name", "o"),
                ("task", "job")
            ]),
            "{lines:?}"
        );
        let unit = [
            ("kind", "RedisRestore"),
            ("namespace", "shop"),
            ("name", "r"),
            ("shard", "1"),
            ("attempt", "3"),
        ];
        assert!(shown(&unit), "{lines:?}");
    }
}
