//! The users as which the suite's own programs log in to the servers of a RedisCluster.

/// Name and password of an own user, and the password that every server has accepted. Edit [`KEY_PASSWORD`] to replace it.
pub const KEY_USERNAME: &str = "username";
/// The password that is wanted.
pub const KEY_PASSWORD: &str = "password";
/// The password by which programs log in: it follows [`KEY_PASSWORD`] once every server knows that.
pub const KEY_ACCEPTED: &str = "accepted";

/// In the Secret of [`OwnUser::Exporter`]: that password in the form that `redis_exporter` reads, a JSON object from address to password.
pub const KEY_EXPORTER_FILE: &str = "exporter.json";

/// What one of the suite's own programs logs in as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnUser {
    /// The cluster-controller.
    Operator,
    /// A server, at the primary that it copies.
    Replication,
    /// The backup-controller.
    Backup,
    /// The restore-controller.
    Restore,
    /// The scripts in the pods.
    Probe,
    /// Programs that collect metrics.
    Exporter,
}

impl OwnUser {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Operator,
        Self::Replication,
        Self::Backup,
        Self::Restore,
        Self::Probe,
        Self::Exporter,
    ];

    /// Its name on the servers. No user of a spec may have one that begins so.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "redis-operator",
            Self::Replication => "redis-operator-replication",
            Self::Backup => "redis-operator-backup",
            Self::Restore => "redis-operator-restore",
            Self::Probe => "redis-operator-probe",
            Self::Exporter => "redis-operator-exporter",
        }
    }

    /// Name of the Secret with its password.
    pub fn secret_name(self, cluster: &str) -> String {
        let part = match self {
            Self::Operator => "operator",
            Self::Replication => "replication",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Probe => "probe",
            Self::Exporter => "exporter",
        };
        format!("{cluster}-user-{part}")
    }
}

/// Name of the Secret that the pods mount: the users with hashes of their passwords, and what a server needs to copy another one.
pub fn users_secret_name(cluster: &str) -> String {
    format!("{cluster}-users")
}
