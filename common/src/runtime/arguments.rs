//! Arguments that every controller takes. Each flag has an environment twin.

use clap::{Args, ValueEnum};
use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    time::Duration,
};

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
    /// How long a replica may be unresponsive before another takes over, for example 15s (2s to 5m)
    #[arg(long, env = "LEASE_DURATION", default_value = "15s", value_parser = parse_lease_duration)]
    pub lease_duration: Duration,
    /// Objects reconciled at the same time; a large RedisCluster counts as several. A reconcile mostly waits for answers
    #[arg(long, env = "CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Threads that run tasks
    #[arg(long, env = "WORKER_THREADS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub worker_threads: u16,
    /// How long a watch lasts before it starts again, in seconds: less than the idle time of any load balancer on the way. A watch that is
    /// silent for 3 s longer has failed
    #[arg(long, env = "WATCH_TIMEOUT_SECONDS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=290))]
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
    let parsed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is not a duration such as 15s or 1m"))?;
    let duration = Duration::try_from(parsed).map_err(|_| "must not be negative".to_string())?;
    let allowed = Duration::from_secs(2)..=Duration::from_mins(5);
    if !allowed.contains(&duration) || duration.subsec_nanos() != 0 {
        return Err("must be whole seconds from 2s to 5m".to_string());
    }
    Ok(duration)
}

const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

impl CommonArguments {
    /// How long a watch lasts before it starts again.
    pub fn watch_timeout(&self) -> Duration {
        Duration::from_secs(self.watch_timeout_seconds.into())
    }

    /// Namespace of the controller's own leases: as given, or the pod's, or `default`.
    pub fn lease_namespace(&self) -> String {
        given(self.lease_namespace.as_deref())
            .or_else(|| given(std::fs::read_to_string(NAMESPACE_FILE).ok().as_deref()))
            .unwrap_or_else(|| "default".to_string())
    }

    /// Name of this replica: as given, or the host's with a random suffix. Fit for the name of a Lease.
    pub fn identity(&self) -> String {
        if let Some(identity) = given(self.identity.as_deref()) {
            return dns_name(&identity);
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // RandomState is seeded by the operating system: enough to tell two processes of one host apart.
        let random = RandomState::new().hash_one(std::process::id());
        dns_name(&format!("{}-{random:016x}", host.trim()))
    }
}

fn given(text: Option<&str>) -> Option<String> {
    text.map(str::trim)
        .filter(|text| !text.is_empty())
        .map(str::to_string)
}

/// Lower case letters, digits and dashes, beginning and ending with a letter or digit, at most 200 characters.
fn dns_name(text: &str) -> String {
    let mapped: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(200)
        .collect();
    let trimmed = mapped.trim_matches('-');
    if trimmed.is_empty() {
        return "replica".to_string();
    }
    trimmed.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        common: CommonArguments,
    }

    fn parse(arguments: &[&str]) -> Result<CommonArguments, clap::Error> {
        let all = std::iter::once("program").chain(arguments.iter().copied());
        Program::try_parse_from(all).map(|program| program.common)
    }

    #[test]
    fn defaults_are_as_documented() {
        let arguments = parse(&["--identity", "Pod_1."]).unwrap();
        assert_eq!(arguments.lease_duration, Duration::from_secs(15));
        assert_eq!(arguments.listen.port(), 8080);
        assert_eq!(arguments.identity(), "pod-1");
    }

    #[test]
    fn two_replicas_of_one_host_have_two_names() {
        let arguments = parse(&["--identity", ""]).unwrap();
        assert_ne!(arguments.identity(), arguments.identity());
    }

    #[test]
    fn lease_durations_are_bounded() {
        assert!(parse_lease_duration("1s").is_err());
        assert!(parse_lease_duration("2500ms").is_err());
        assert!(parse_lease_duration("10m").is_err());
        assert!(parse_lease_duration("-15s").is_err());
        assert!(parse_lease_duration("soon").is_err());
        assert_eq!(parse_lease_duration("1m"), Ok(Duration::from_mins(1)));
    }
}
