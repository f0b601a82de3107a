//! One process: arguments, telemetry, metrics, health, tasks, shutdown.

pub mod arguments;
pub mod client;
pub mod health;
pub mod metrics;
pub mod run;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use arguments::CommonArguments;
pub use run::{BoxError, Program, Runtime, run, run_once};
