//! How far the servers of a cluster encrypt, and the next step: one after the other, each once every server has taken the one before. Pure.
//!
//! Links that exist stay when a server is to encrypt or not to any more; it is new ones that two servers cannot make while they differ. So all
//! of them are changed in the same moment, while they run, and only then.

use crds::{BUS_PORT, CLIENT_PORT, Encryption, TLS_PORT};
use k8s_openapi::jiff::SignedDuration;
use std::{cmp::Ordering, collections::BTreeMap};

/// So long after a step a server may restart with what its pod had mounted before: kubelets bring it up to date within some two minutes.
const MOUNTED_AFTER: SignedDuration = SignedDuration::from_secs(150);

/// Those of a server with certificates.
const OF_SERVERS: [Encryption; 3] = [Encryption::Prepared, Encryption::Both, Encryption::Only];

/// The settings by which a server with certificates encrypts so far.
pub fn settings(encryption: Encryption) -> [(&'static str, String); 5] {
    let port = if encryption.lets_plaintext_in() {
        CLIENT_PORT
    } else {
        0
    };
    let among_servers = if encryption.is_used() { "yes" } else { "no" };
    // The same port whether it is given or not. But a server looks at its other ports, which it names to clients, only when this one changes
    // (`updateClusterAnnouncedPort` in the engine's `config.c`).
    let bus_port = if encryption == Encryption::Both {
        BUS_PORT
    } else {
        0
    };
    [
        ("port", port.to_string()),
        ("tls-port", TLS_PORT.to_string()),
        ("tls-cluster", among_servers.to_owned()),
        ("tls-replication", among_servers.to_owned()),
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

/// What is known of the servers.
#[derive(Clone, Copy, Debug)]
pub struct EncryptionEvidence {
    /// Whether every server does what it is to do.
    pub settled: bool,
    /// Whether none encrypts what it sends other servers. None that may run is unknown.
    pub all_plain: bool,
    /// For how long they are to encrypt so far.
    pub age: SignedDuration,
}

/// The next step towards `goal`.
pub fn next(now: Encryption, goal: Encryption, seen: EncryptionEvidence) -> Encryption {
    use Encryption::{Both, Off, Only, Prepared};
    let (onward, may_go_on) = match now {
        Off => (Prepared, true),
        Prepared => (Both, seen.settled),
        Both | Only => (Only, seen.settled),
    };
    // A server that restarts with the step before would not listen where it is asked once others do not encrypt.
    let are_mounted = seen.age >= MOUNTED_AFTER;
    let (back, may_go_back) = match now {
        Off | Prepared => (Off, seen.all_plain),
        Both => (Prepared, seen.settled && are_mounted),
        Only => (Both, seen.settled),
    };
    match now.cmp(&goal) {
        Ordering::Less if may_go_on => onward,
        Ordering::Greater if may_go_back => back,
        Ordering::Less | Ordering::Equal | Ordering::Greater => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTLED: EncryptionEvidence = EncryptionEvidence {
        settled: true,
        all_plain: true,
        age: MOUNTED_AFTER,
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
            settled: false,
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
            age: MOUNTED_AFTER - SignedDuration::from_secs(1),
            ..SETTLED
        };
        assert_eq!(next(Both, Off, young), Both);
        assert_eq!(next(Both, Only, young), Only);
        // Half of the pods were never replaced.
        let half = EncryptionEvidence {
            settled: false,
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

    /// Otherwise a server would go on to name the ports of the step before.
    #[test]
    fn every_step_changes_the_ports_that_are_announced() {
        let announced = OF_SERVERS.map(|one| settings(one)[4].clone());
        assert!(announced.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
