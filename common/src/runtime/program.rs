//! What runs.

/// Name and version of a program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// For example `backup-controller`: lease name, field manager, reporter of Events, label of metrics.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
}
