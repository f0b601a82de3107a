//! The command line. Each flag has an environment twin.

use clap::{Args, Parser};
use common::{runtime::CommonArguments, storage::StorageArguments};

/// Replays backups into RedisClusters of any number of shards and proves what arrived
#[derive(Parser, Clone, Debug)]
#[command(name = "restore-controller", version)]
pub struct Arguments {
    /// What every controller takes.
    #[command(flatten)]
    pub common: CommonArguments,
    /// What only this one takes.
    #[command(flatten)]
    pub controller: ControllerArguments,
}

/// What only this controller takes.
#[derive(Args, Clone, Debug)]
pub struct ControllerArguments {
    /// Objects that this replica replays at the same time in one namespace, and one more for the others; each takes up to 64 MiB of
    /// buffers and 4 MiB for each node of the target
    #[arg(long, env = "STREAMS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub streams: u16,
    /// Memory of this process in MiB, which bounds the longest value of a key; default: the limit of its container
    #[arg(long, env = "MEMORY_LIMIT_MIB", value_name = "MIB")]
    pub memory_limit: Option<usize>,
    /// What the operator allows tenants to do with storage.
    #[command(flatten)]
    pub storage: StorageArguments,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_bounded() {
        let parse =
            |streams| Arguments::try_parse_from(["restore-controller", "--streams", streams]);
        assert_eq!(parse("4").unwrap().controller.streams, 4);
        assert!(parse("0").is_err() && parse("65").is_err());
    }
}
