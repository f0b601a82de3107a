//! How far the servers of a cluster encrypt, and the next step: one after the other, each once every server has taken the one before. Pure.
//!
//! Links that exist stay when a server is to encrypt or not to any more; it is new ones that two servers cannot make while they differ. So all
//! of them are changed in the same moment, while they run, and only then.

use crds::{BUS_PORT, CLIENT_PORT, Encryption, TLS_PORT};
use std::{cmp::Ordering, collections::BTreeMap};

/// Those of a server with certificates.
const OF_SERVERS: [Encryption; 3] = [Encryption::Prepared, Encryption::Both, Encryption::Only];

/// The settings by which a server with certificates encrypts so far.
///
/// Links and replication are made again where a server hears that another has changed its ports (`nodeUpdateAddressIfNeeded` in the engine's
/// `cluster.c` and `cluster_legacy.c`): until then they stay as they are, and a replica looks for its primary at a port that does not fit. Redis
/// 7.0 names the port that it uses itself and the other one, later servers both: so the encrypted one is announced only from
/// [`Encryption::Both`] on. And a server of 7.0 looks at its own ports, which it names to clients, only when one that is announced has changed
/// (`updateClusterAnnouncedPort` in its `config.c`): so the port of the bus is given in every other step. It is the same whether it is given.
pub fn settings(encryption: Encryption) -> [(&'static str, String); 6] {
    let (port, tls_port, bus_port) = match encryption {
        Encryption::Off | Encryption::Prepared => (CLIENT_PORT, CLIENT_PORT, 0),
        Encryption::Both => (CLIENT_PORT, 0, BUS_PORT),
        Encryption::Only => (0, 0, 0),
    };
    let among_servers = if encryption.is_used() { "yes" } else { "no" };
    [
        ("port", port.to_string()),
        ("tls-port", TLS_PORT.to_string()),
        ("tls-cluster", among_servers.to_owned()),
        ("tls-replication", among_servers.to_owned()),
        ("cluster-announce-tls-port", tls_port.to_string()),
        ("cluster-announce-bus-port", bus_port.to_string()),
    ]
}

/// How far a server encrypts, as it reports its settings. None: it has no certificates, or was changed by hand.
pub fn reported(values: &BTreeMap<String, String>) -> Option<Encryption> {
    let has = |encryption: &Encryption| {
        let mut settings = settings(*encryption).into_iter();
        settings.all(|(name, value)| values.get(name) == Some(&value))
    };
    OF_SERVERS.into_iter().find(has)
}

/// Whether a server was started with certificates: only then it can be given others.
pub fn has_certificates(values: &BTreeMap<String, String>) -> bool {
    values.get("tls-port").is_some_and(|port| port != "0")
}

/// What a server that encrypts so far has to be given before what is wanted: only then one of 7.0 looks at its ports. See [`settings`].
pub fn between(now: Option<Encryption>, wanted: Encryption) -> Option<Encryption> {
    let is_next = wanted == Encryption::Both || now == Some(Encryption::Both);
    (!is_next && now != Some(wanted)).then_some(Encryption::Both)
}

/// Whether servers have taken the step that they are at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// One has not, or does not say.
    No,
    /// All do what they are to do.
    Yes,
    /// And every pod has mounted a step that came after servers began to encrypt so far.
    AndMounted,
}

/// What is known of the servers.
#[derive(Clone, Copy, Debug)]
pub struct EncryptionEvidence {
    /// Whether every server does what it is to do.
    pub settled: Settled,
    /// Whether every pod and every template has certificates.
    pub all_mount: bool,
    /// Whether every server that answers sends others everything in the clear.
    pub all_plain: bool,
}

/// The next step towards `goal`.
pub fn next(now: Encryption, goal: Encryption, seen: EncryptionEvidence) -> Encryption {
    use Encryption::{Both, Off, Only, Prepared};
    let settled = seen.settled != Settled::No;
    let (onward, may_go_on) = match now {
        Off => (Prepared, true),
        // A pod without certificates could not even be asked any more.
        Prepared => (Both, settled && seen.all_mount),
        Both | Only => (Only, settled),
    };
    let (back, may_go_back) = match now {
        Off | Prepared => (Off, seen.all_plain),
        // A server that restarts with an earlier step would not listen where it is asked once others do not encrypt.
        Both => (Prepared, seen.settled == Settled::AndMounted),
        Only => (Both, settled),
    };
    match now.cmp(&goal) {
        Ordering::Less if may_go_on => onward,
        Ordering::Greater if may_go_back => back,
        Ordering::Less | Ordering::Equal | Ordering::Greater => now,
    }
}

/// Whether pods have to mount another step before servers go back.
pub fn needs_mounts(now: Encryption, goal: Encryption, seen: EncryptionEvidence) -> bool {
    now == Encryption::Both && goal < now && seen.settled == Settled::Yes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTLED: EncryptionEvidence = EncryptionEvidence {
        settled: Settled::AndMounted,
        all_mount: true,
        all_plain: true,
    };

    fn any() -> impl Strategy<Value = Encryption> {
        use Encryption::{Both, Off, Only, Prepared};
        prop::sample::select(vec![Off, Prepared, Both, Only])
    }

    fn rank(encryption: Encryption) -> usize {
        [Encryption::Off]
            .iter()
            .chain(&OF_SERVERS)
            .position(|one| *one == encryption)
            .unwrap()
    }

    proptest! {
        #[test]
        fn one_step_at_a_time_and_to_the_end(from in any(), goal in any()) {
            let mut now = from;
            for _ in 0..4 {
                let next = next(now, goal, SETTLED);
                prop_assert!(rank(next).abs_diff(rank(now)) <= 1);
                prop_assert_eq!(next == now, now == goal);
                now = next;
            }
            prop_assert_eq!(now, goal);
        }
    }

    #[test]
    fn every_step_waits_for_the_servers() {
        use Encryption::{Both, Off, Only, Prepared};
        let unsettled = EncryptionEvidence {
            settled: Settled::No,
            all_plain: false,
            ..SETTLED
        };
        // Pods get certificates by being replaced.
        assert_eq!(next(Off, Only, unsettled), Prepared);
        for (now, goal) in [
            (Prepared, Only),
            (Both, Only),
            (Only, Off),
            (Both, Off),
            (Prepared, Off),
        ] {
            assert_eq!(next(now, goal, unsettled), now);
        }
        let young = EncryptionEvidence {
            settled: Settled::Yes,
            ..SETTLED
        };
        assert_eq!(next(Both, Off, young), Both);
        assert!(needs_mounts(Both, Off, young) && !needs_mounts(Both, Off, SETTLED));
        assert_eq!(next(Both, Only, young), Only);
        assert!(!needs_mounts(Both, Only, young));
        let held = EncryptionEvidence {
            all_mount: false,
            ..SETTLED
        };
        assert_eq!(next(Prepared, Only, held), Prepared);
        // Half of the pods were never replaced.
        let half = EncryptionEvidence {
            settled: Settled::No,
            ..SETTLED
        };
        assert_eq!(next(Prepared, Off, half), Off);
    }

    #[test]
    fn a_server_reports_what_it_was_given() {
        for encryption in OF_SERVERS {
            let values = settings(encryption).map(|(name, value)| (name.to_owned(), value));
            let mut values = BTreeMap::from(values);
            assert_eq!(reported(&values), Some(encryption));
            assert!(has_certificates(&values));
            values.insert("tls-port".to_owned(), "0".to_owned());
            assert_eq!(reported(&values), None);
            assert!(!has_certificates(&values));
        }
    }

    #[test]
    fn no_server_skips_a_step() {
        use Encryption::{Both, Only, Prepared};
        for (now, wanted) in [(Some(Prepared), Only), (Some(Only), Prepared), (None, Only)] {
            assert_eq!(between(now, wanted), Some(Both));
        }
        for (now, wanted) in [
            (Prepared, Both),
            (Both, Only),
            (Both, Prepared),
            (Only, Only),
        ] {
            assert_eq!(between(Some(now), wanted), None);
        }
    }

    /// Otherwise links stay as they were, and clients hear of the ports of the step before.
    #[test]
    fn every_step_changes_the_ports_that_are_announced() {
        let values = |encryption| BTreeMap::from(settings(encryption));
        for pair in OF_SERVERS.windows(2) {
            let [before, after] = [values(pair[0]), values(pair[1])];
            let differ = |name: &str| before[name] != after[name];
            assert!(differ("cluster-announce-bus-port"), "{pair:?}");
            assert!(
                differ("port") || differ("cluster-announce-tls-port"),
                "{pair:?}"
            );
        }
    }
}
