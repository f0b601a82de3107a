//! Log lines: JSON for machines, text for people.

use super::arguments::{CommonArguments, LogFormat};
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

/// Why nothing would be logged.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("--log-filter `{filter}` is not a filter such as info or info,common=debug")]
    Filter {
        /// As given.
        filter: String,
        /// Where the filter cannot be read.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging of the process, to standard error.
pub fn install(arguments: &CommonArguments) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&arguments.log_filter).map_err(|source| {
        let filter = arguments.log_filter.clone();
        TelemetryError::Filter { filter, source }
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
        LogFormat::Text => lines.finish().try_init()?,
    }
    Ok(())
}

/// An error and its sources in one line, without saying anything twice: some libraries repeat their source in their own text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;
    #[derive(Debug, thiserror::Error)]
    #[error("it said: {0}")]
    struct Repeating(#[source] Inner);

    #[test]
    fn sources_are_said_once() {
        assert_eq!(chain(&Outer(Inner)), "outer: inner");
        assert_eq!(chain(&Repeating(Inner)), "it said: inner");
    }
}
