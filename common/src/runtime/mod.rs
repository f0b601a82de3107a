//! One process: arguments, telemetry, metrics, health, events, tasks, shutdown.

pub mod arguments;
pub mod client;
pub mod events;
pub mod health;
pub mod metrics;
pub mod object_metrics;
pub mod program;
pub mod run;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use arguments::CommonArguments;
pub use program::Program;
pub use run::{BoxError, Runtime, run, run_once};
