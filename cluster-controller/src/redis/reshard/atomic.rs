//! The engine of Valkey 9: the source moves whole slots by itself (`CLUSTER MIGRATESLOTS`), as a replication of these slots with a short pause of
//! writes at its end. A move that fails or is cancelled is taken back by the servers.
//!
//! The source of the facts: the command reference of `CLUSTER MIGRATESLOTS`, `GETSLOTMIGRATIONS` and `CANCELSLOTMIGRATIONS`.

use super::{context::Context, error::ReshardError, moves::SlotMove, nodes::NodeLink};
use common::cluster::{
    node::{NodeClient, NodeError},
    slots::Slot,
    topology::NodeId,
};
use futures::future::join_all;
use redis::{Value, cmd};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::sleep;

/// Between two looks at the jobs.
const LOOK: Duration = Duration::from_millis(100);
const GET: &str = "CLUSTER GETSLOTMIGRATIONS";

/// A job as the source reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MigrationJob {
    name: String,
    exports: bool,
    slots: String,
    target: String,
    state: String,
    message: String,
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobState {
    Running,
    Succeeded,
    /// Failed or cancelled: nothing was moved.
    TakenBack,
}

impl MigrationJob {
    /// The jobs in an answer: lists of names and values. Members that a newer version adds are skipped.
    fn parse(answer: &Value) -> Vec<Self> {
        let Value::Array(jobs) = answer else {
            return Vec::new();
        };
        jobs.iter().map(Self::of).collect()
    }

    fn of(fields: &Value) -> Self {
        let mut job = Self::default();
        let mut set = |name: &Value, value: &Value| {
            let (Some(name), Some(value)) = (text(name), text(value)) else {
                return;
            };
            match name.as_str() {
                "name" => job.name = value,
                "operation" => job.exports = value.eq_ignore_ascii_case("EXPORT"),
                "slot_ranges" => job.slots = value,
                "target_node" => job.target = value,
                "state" => job.state = value,
                "message" => job.message = value,
                _ => {}
            }
        };
        if let Value::Array(fields) = fields {
            let (pairs, _) = fields.as_chunks::<2>();
            for [name, value] in pairs {
                set(name, value);
            }
        } else if let Value::Map(pairs) = fields {
            for (name, value) in pairs {
                set(name, value);
            }
        }
        job
    }

    fn state(&self) -> JobState {
        match self.state.as_str() {
            "success" => JobState::Succeeded,
            "failed" | "cancelled" | "canceled" => JobState::TakenBack,
            _ => JobState::Running,
        }
    }

    /// Whether it is the job of this move: no slot is in two jobs of one command.
    fn is_for(&self, one: &SlotMove) -> bool {
        self.target == one.target.to_string() && self.slots == ranges(one, " ")
    }
}

fn text(value: &Value) -> Option<String> {
    if let Value::BulkString(bytes) = value {
        Some(String::from_utf8_lossy(bytes).into_owned())
    } else if let Value::SimpleString(text) = value {
        Some(text.clone())
    } else {
        None
    }
}

/// Whether one of the node's jobs has not ended.
pub async fn has_running_job(node: &NodeClient) -> Result<bool, NodeError> {
    Ok(any_runs(&jobs(node).await?))
}

fn any_runs(jobs: &[MigrationJob]) -> bool {
    jobs.iter().any(|job| job.state() == JobState::Running)
}

/// The slots as the server writes them: `0-5 7-7`.
fn ranges(one: &SlotMove, between: &str) -> String {
    let ranges = one.slots.ranges();
    let words = ranges
        .iter()
        .map(|range| format!("{}-{}", range.start(), range.end()));
    words.collect::<Vec<_>>().join(between)
}

/// Moves the slots, all sources at the same time. Failures go to the context.
pub(super) async fn move_slots(context: &Context<'_>, moves: &[SlotMove]) {
    let mut by_source: BTreeMap<NodeId, Vec<&SlotMove>> = BTreeMap::new();
    for one in moves {
        by_source.entry(one.source).or_default().push(one);
    }
    let sources = by_source.into_iter().map(|(source, moves)| async move {
        if let Err(error) = move_from(context, source, moves).await {
            context.fail(error);
        }
    });
    join_all(sources).await;
}

async fn move_from(
    context: &Context<'_>,
    source: NodeId,
    moves: Vec<&SlotMove>,
) -> Result<(), ReshardError> {
    let link = context.links.get(source)?;
    let jobs = async || {
        let jobs = jobs(&link.control).await;
        jobs.map_err(|error| ReshardError::of(link.id, Slot::MIN, error))
    };
    let before = jobs().await?;
    if any_runs(&before) {
        return Err(ReshardError::OtherMigration(source));
    }
    let before: BTreeSet<String> = before.into_iter().map(|job| job.name).collect();
    start(link, &moves).await?;
    let mut open = moves;
    let mut canceled = false;
    while !open.is_empty() {
        if context.stop.is_cancelled() && !canceled {
            canceled = true;
            let cancel: Result<Value, ReshardError> = link
                .ask(
                    "CLUSTER CANCELSLOTMIGRATIONS",
                    cmd("CLUSTER").arg("CANCELSLOTMIGRATIONS"),
                )
                .await;
            // Refused if the last job has just ended.
            if let Err(error) = cancel {
                tracing::debug!(node = %source, %error, "slot migrations are not cancelled");
            }
        }
        let jobs = jobs().await?;
        let mut rest = Vec::new();
        for one in open {
            let job = jobs
                .iter()
                .find(|job| job.exports && !before.contains(&job.name) && job.is_for(one));
            match job.map(|job| (job.state(), &job.message)) {
                Some((JobState::Succeeded, _)) => {
                    let (keys, bytes) = context.census().load(one);
                    context.tracker.moved(keys, bytes);
                    context.tracker.handed_over(one.slots.len());
                }
                Some((JobState::TakenBack, _)) if canceled => {}
                Some((JobState::TakenBack, message)) => return Err(failed(one, message)),
                Some((JobState::Running, _)) => rest.push(one),
                None => return Err(failed(one, "the server does not list it")),
            }
        }
        open = rest;
        if !open.is_empty() {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = context.stop.cancelled(), if !canceled => {}
            }
        }
    }
    Ok(())
}

fn failed(one: &SlotMove, message: &str) -> ReshardError {
    ReshardError::MigrationFailed {
        source_node: one.source,
        target: one.target,
        slots: one.slots.summary(),
        message: message.to_owned(),
    }
}

/// Starts a job for each target, all or none.
async fn start(link: &NodeLink, moves: &[&SlotMove]) -> Result<(), ReshardError> {
    let mut command = cmd("CLUSTER");
    command.arg("MIGRATESLOTS");
    for one in moves {
        command.arg("SLOTSRANGE");
        for range in one.slots.ranges() {
            command.arg(range.start().get()).arg(range.end().get());
        }
        command.arg("NODE").arg(one.target.to_string());
    }
    let first = moves.first().and_then(|one| one.slots.iter().next());
    let answer = link.control.ask("CLUSTER MIGRATESLOTS", &command).await;
    answer.map_err(|error| ReshardError::of(link.id, first.unwrap_or(Slot::MIN), error))
}

async fn jobs(node: &NodeClient) -> Result<Vec<MigrationJob>, NodeError> {
    let answer: Value = node
        .ask(GET, cmd("CLUSTER").arg("GETSLOTMIGRATIONS"))
        .await?;
    Ok(MigrationJob::parse(&answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cluster::slots::SlotSet;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn jobs_are_read_and_matched() {
        let target = NodeId::from_bytes([9; 20]);
        let fields = [
            ("name", "5371b28997de6fd0bbe813ad8ebdfdf2faadb308"),
            ("operation", "EXPORT"),
            ("slot_ranges", "0-1 7-7"),
            ("target_node", &target.to_string()),
            ("state", "failed"),
            ("message", "Connection lost to target."),
        ];
        let mut list: Vec<Value> = fields
            .iter()
            .flat_map(|(name, value)| [bulk(name), bulk(value)])
            .collect();
        list.extend([bulk("create_time"), Value::Int(1_754_870_400)]);
        let jobs = MigrationJob::parse(&Value::Array(vec![Value::Array(list)]));
        let slots: SlotSet = [0, 1, 7]
            .map(|slot| Slot::new(slot).unwrap())
            .into_iter()
            .collect();
        let one = SlotMove {
            source: NodeId::from_bytes([1; 20]),
            target,
            slots,
        };
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].exports && jobs[0].is_for(&one));
        assert_eq!(jobs[0].state(), JobState::TakenBack);
        let other = SlotMove {
            target: one.source,
            ..one
        };
        assert!(!jobs[0].is_for(&other));
        let state = |state: &str| {
            let job = MigrationJob {
                state: state.to_owned(),
                ..MigrationJob::default()
            };
            job.state()
        };
        assert_eq!(state("success"), JobState::Succeeded);
        assert_eq!(state("cancelled"), JobState::TakenBack);
        assert_eq!(state("snapshotting"), JobState::Running);
    }
}
