//! Settings of redis.conf that a user cannot give: the controller writes them, or they would undo what it writes.
//!
//! One list for both gates: the CEL rules of `spec.config` are generated from it, and the cluster-controller checks it again for
//! objects that were stored under an older CustomResourceDefinition.

use schemars::Schema;
use serde_json::json;

/// Names of the settings, in lower case as `spec.config` requires.
///
/// Left to the user on purpose: `loadmodule` (a module is part of the image, which the user chooses), `save` and `appendfsync`
/// (how much a crash may lose), `cluster-allow-replica-migration` and `cluster-migration-barrier` (before 7.0), `cluster-require-full-coverage`.
pub const RESERVED_SETTINGS: [&str; 60] = [
    // Names of data files and folders. Changed on a cluster with data, the server starts empty under its old identity, and its
    // replica copies the emptiness.
    "appenddirname",
    "appendfilename",
    "cluster-config-file",
    "dbfilename",
    "dir",
    // Keys of other databases than the first would stay behind when their slots move, and a backup would not have them.
    "cluster-databases",
    // Whether data is kept: follows from spec.storage.
    "appendonly",
    "rdb-del-sync-files",
    // Allows clients to change dir and dbfilename while the server runs.
    "enable-protected-configs",
    // Other files that redis.conf takes in: they could hold any setting of this list.
    "aclfile",
    "include",
    // Files and sockets outside /data, on a read-only root file system; logs belong on stdout.
    "logfile",
    "pidfile",
    "unixsocket",
    // The server runs in the foreground as the container's first process.
    "daemonize",
    "supervised",
    // Addresses and ports. A pod announces its own address, and one value cannot be right for every pod.
    "bind",
    "bind-source-addr",
    "cluster-announce-bus-port",
    "cluster-announce-client-ipv4",
    "cluster-announce-client-ipv6",
    "cluster-announce-client-port",
    "cluster-announce-client-tls-port",
    "cluster-announce-hostname",
    "cluster-announce-ip",
    "cluster-announce-port",
    "cluster-announce-tls-port",
    "cluster-port",
    "port",
    "replica-announce-ip",
    "replica-announce-port",
    "slave-announce-ip",
    "slave-announce-port",
    "tls-cluster",
    "tls-port",
    "tls-replication",
    // Follow from spec.tls. Ciphers that the controllers do not know would lock them out.
    "tls-auth-clients",
    "tls-ca-cert-dir",
    "tls-ca-cert-file",
    "tls-cert-file",
    "tls-ciphers",
    "tls-ciphersuites",
    "tls-client-cert-file",
    "tls-client-key-file",
    "tls-client-key-file-pass",
    "tls-key-file",
    "tls-key-file-pass",
    "tls-protocols",
    // Roles: the controller attaches replicas by CLUSTER REPLICATE.
    "cluster-enabled",
    "replicaof",
    "slaveof",
    // By it a server proves which pod it runs in.
    "syslog-ident",
    // Who may connect and with which commands: the probes and the controllers have to get through.
    "masterauth",
    "masteruser",
    "primaryauth",
    "primaryuser",
    "protected-mode",
    "rename-command",
    "requirepass",
    "user",
];

/// Adds a CEL rule for each reserved name to the schema of `spec.config`. One rule for all could not name the setting: the API
/// server estimates the cost of such a message as too high.
pub(crate) fn refuse(schema: &mut Schema) {
    let rules: Vec<_> = RESERVED_SETTINGS
        .iter()
        .map(|name| {
            let message = format!("{name} is set by the controller itself: remove it from config");
            json!({"rule": format!("!('{name}' in self)"), "message": message})
        })
        .collect();
    schema.insert("x-kubernetes-validations".into(), rules.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// CEL compares the letters as they are, and a name with a quote would end its string.
    #[test]
    fn reserved_names_are_unique_and_lower_case() {
        let unique: BTreeSet<_> = RESERVED_SETTINGS.into_iter().collect();
        assert_eq!(unique.len(), RESERVED_SETTINGS.len());
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        for name in RESERVED_SETTINGS {
            assert!(!name.is_empty() && name.bytes().all(plain), "{name:?}");
        }
    }
}
