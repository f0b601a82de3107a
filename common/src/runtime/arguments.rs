//! Arguments that every controller takes. Each flag has an environment twin.

use clap::{Args, ValueEnum};
use std::{net::SocketAddr, time::Duration};

/// Arguments that every controller takes.
#[derive(Args, Clone, Debug)]
pub struct CommonArguments {
    /// Namespace to watch; all when empty
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,
    /// Format of log lines
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged, for example info or info,common=debug
    #[arg(long, env = "LOG_FILTER", default_value = "info")]
    pub log_filter: String,
    /// Address of /livez, /readyz and /metrics; port 0 takes a free one
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Namespace of the controller's own leases; default: the pod's
    #[arg(long, env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of this replica, different for each; default: host name and a random suffix
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// How long a replica may be silent before another takes over, for example 15s (5s to 5m)
    #[arg(long, env = "LEASE_DURATION", default_value = "15s", value_parser = parse_lease_duration)]
    pub lease_duration: Duration,
    /// Objects reconciled at the same time
    #[arg(long, env = "CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Threads that run tasks
    #[arg(long, env = "WORKER_THREADS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub worker_threads: u16,
    /// How long a watch lasts before it is begun again, in seconds: less than the idle time of any load balancer on the way
    #[arg(long, env = "WATCH_TIMEOUT_SECONDS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=290))]
    pub watch_timeout_seconds: u32,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

fn parse_lease_duration(text: &str) -> Result<Duration, String> {
    todo!()
}
