//! Why kubectl did not do what it was asked for, and whether waiting helps.

use std::io;

/// What kubectl prints when waiting helps nothing.
const PERMANENT: [&str; 6] = [
    "(Forbidden)",
    "(MethodNotAllowed)",
    "doesn't have a resource type",
    "unknown command",
    "unknown flag",
    "unknown shorthand flag",
];

/// Why kubectl did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    /// The program does not run.
    #[error("kubectl cannot be started: put it into PATH")]
    Start(#[source] io::Error),
    /// It ended with an error.
    #[error("kubectl {arguments}: {printed}")]
    Failed {
        /// Its command line, after the namespace.
        arguments: String,
        /// Its standard error.
        printed: String,
    },
}

impl KubectlError {
    /// Whether the same command will fail in the same way later.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Start(_) => true,
            Self::Failed { printed, .. } => PERMANENT.iter().any(|words| printed.contains(words)),
        }
    }
}
