//! The next step towards the certificate that is wanted. Pure.
//!
//! A server shows a certificate only once every server trusts its authority, and an authority is trusted until no server shows a certificate of
//! it. Each step waits until every server has taken the one before. A server takes a step once its pod has its files, and a server that
//! restarts does so with the last step that its pod has: so no two servers ever refuse each other.

use super::{
    material::Material,
    state::{CertificatesState, ServerTls, clients},
};
use crds::ClientAuth;

/// What the servers are to have next. `servers`: what each of them uses; none where one that may run does not say. `expired`: the certificate
/// that they present has expired, so they refuse each other, and some of them the controllers too.
pub fn next(
    state: &CertificatesState,
    wanted: &Material,
    policy: ClientAuth,
    servers: Option<&[ServerTls]>,
    expired: bool,
) -> CertificatesState {
    if expired && !state.wanted.certificate.is_of(&wanted.certificate.digits) {
        return at_once(state, wanted, policy);
    }
    let settled = servers.is_some_and(|all| all.iter().all(|one| *one == state.wanted));
    let mut next = match state.authorities() {
        Ok(trusted) if settled => {
            let shows_it = state.wanted.certificate.is_of(&wanted.certificate.digits);
            let authorities = if shows_it {
                wanted.authorities.clone()
            } else {
                trusted.with(&wanted.authorities)
            };
            if !state.wanted.authorities.is_of(&authorities.digits()) {
                state.trusting(&authorities)
            } else if shows_it {
                state.only_wanted()
            } else {
                state.showing(&wanted.certificate)
            }
        }
        Ok(_) | Err(_) => state.clone(),
    };
    clients(policy).clone_into(&mut next.wanted.clients);
    next
}

/// Both steps in one. The controllers present the new certificate from then on: servers that trust its authority take it, others once they
/// start again.
fn at_once(state: &CertificatesState, wanted: &Material, policy: ClientAuth) -> CertificatesState {
    let trusted = state.authorities().unwrap_or_default();
    let authorities = trusted.with(&wanted.authorities);
    let mut next = state.trusting(&authorities).showing(&wanted.certificate);
    clients(policy).clone_into(&mut next.wanted.clients);
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::material::{Authorities, Certificate};
    use crds::Encryption;
    use proptest::{collection::vec, prelude::*};

    /// Authorities; a certificate is of the one whose number it is divided by their count.
    const AUTHORITIES: usize = 3;
    const SERVERS: usize = 3;
    const AT_FIRST: Encryption = Encryption::Only;

    /// Certificates of these authorities, as far as the plan looks at them.
    fn authorities(numbers: &[usize]) -> Authorities {
        let block = |number: &usize| {
            let body = ["AAAA", "BBBB", "CCCC"][*number];
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        let text: String = numbers.iter().map(block).collect();
        Authorities::of(text.as_bytes()).unwrap()
    }

    /// Certificate `number`, where also `more` is trusted.
    fn material(number: usize, more: usize) -> Material {
        let digits = number.to_string();
        Material {
            certificate: Certificate {
                chain: digits.clone().into_bytes(),
                key: Vec::new(),
                digits,
            },
            authorities: authorities(&[number % AUTHORITIES, more]),
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// The user wants another certificate, and trusts another authority besides.
        Want(usize, usize),
        /// A kubelet brings the files of a pod up to date.
        Mount(usize),
        /// A server starts again with what its pod has.
        Restart(usize),
        /// A pod is made.
        Replace(usize),
        /// The controller looks, and reaches these servers.
        Look([bool; SERVERS]),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => (0..6_usize, 0..AUTHORITIES).prop_map(|(number, more)| Event::Want(number, more)),
            6 => (0..SERVERS).prop_map(Event::Mount),
            2 => (0..SERVERS).prop_map(Event::Restart),
            1 => (0..SERVERS).prop_map(Event::Replace),
            8 => any::<[bool; SERVERS]>().prop_map(Event::Look),
        ]
    }

    struct World {
        secret: CertificatesState,
        pods: Vec<CertificatesState>,
        servers: Vec<CertificatesState>,
    }

    impl World {
        fn uses(&self) -> Vec<ServerTls> {
            self.servers.iter().map(|one| one.wanted.clone()).collect()
        }

        /// A server takes what its pod has files for.
        fn give(&mut self, index: usize) {
            let has = |name: &String| self.pods[index].access_files().contains_key(name);
            let wanted = self.secret.only_wanted();
            if wanted.access_files().keys().all(has) {
                self.servers[index] = wanted;
            }
        }

        fn look(&mut self, wanted: &Material, reached: &[bool]) {
            let uses = self.uses();
            self.secret = next(&self.secret, wanted, ClientAuth::Off, Some(&uses), false);
            for (index, reached) in reached.iter().enumerate() {
                if *reached {
                    self.give(index);
                }
            }
        }

        fn happen(&mut self, event: &Event, wanted: &mut Material) {
            match event {
                Event::Want(number, more) => *wanted = material(*number, *more),
                Event::Mount(index) => self.pods[*index] = self.secret.clone(),
                Event::Restart(index) => self.servers[*index] = self.pods[*index].only_wanted(),
                Event::Replace(index) => {
                    self.pods[*index] = self.secret.clone();
                    self.servers[*index] = self.secret.only_wanted();
                }
                Event::Look(reached) => self.look(wanted, reached),
            }
        }

        /// Whether every server trusts the certificate of every other, and the controllers know it.
        fn check(&self) -> Result<(), TestCaseError> {
            for shows in &self.servers {
                let name = shows.wanted.certificate.to_string();
                let number: usize = name.split('-').nth(1).unwrap().parse().unwrap();
                let authority = authorities(&[number % AUTHORITIES]);
                for trusts in &self.servers {
                    let trusted = trusts.authorities().unwrap();
                    prop_assert_eq!(trusted.with(&authority), trusted);
                }
                let known = self.secret.access_files();
                prop_assert!(known.contains_key(&crds::certificate_file(&name)), "{name}");
            }
            Ok(())
        }
    }

    #[test]
    fn an_expired_certificate_is_replaced_without_waiting() {
        let first = CertificatesState::first(&material(0, 0), ClientAuth::Off, AT_FIRST);
        let wanted = material(4, 2);
        let waits = next(&first, &wanted, ClientAuth::Off, None, false);
        assert_eq!(waits, first);
        let jumped = next(&first, &wanted, ClientAuth::Required, None, true);
        assert!(jumped.wanted.certificate.is_of("4"));
        assert_eq!(jumped.authorities().unwrap(), authorities(&[0, 1, 2]));
        assert_eq!(jumped.wanted.clients, "yes");
        // Servers that present the one before are still accepted.
        let before = crds::certificate_file(&first.wanted.certificate.to_string());
        assert!(jumped.access_files().contains_key(&before));
        assert_eq!(
            next(&jumped, &wanted, ClientAuth::Required, None, true),
            jumped
        );
    }

    proptest! {
        #[test]
        fn no_server_ever_refuses_another(events in vec(events(), 0..80)) {
            let mut wanted = material(0, 0);
            let first = CertificatesState::first(&wanted, ClientAuth::Off, AT_FIRST);
            let mut world = World {
                secret: first.clone(),
                pods: vec![first.clone(); SERVERS],
                servers: vec![first; SERVERS],
            };
            for event in &events {
                world.happen(event, &mut wanted);
                world.check()?;
            }
            // Without further events all servers present the wanted certificate, and no earlier file is kept.
            for _ in 0..8 {
                world.look(&wanted, &[true; SERVERS]);
                world.pods = vec![world.secret.clone(); SERVERS];
                world.look(&wanted, &[true; SERVERS]);
                world.check()?;
            }
            prop_assert!(world.secret.wanted.certificate.is_of(&wanted.certificate.digits));
            prop_assert!(world.secret.wanted.authorities.is_of(&wanted.authorities.digits()));
            prop_assert_eq!(&world.secret, &world.secret.only_wanted());
            prop_assert!(world.uses().iter().all(|one| *one == world.secret.wanted));
        }
    }
}
