//! What servers answered to rules of users, so that each is tried once.

use super::wanted::Rules;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// When rules that were refused are tried again: another server may run by then.
const TRY_AGAIN: SignedDuration = SignedDuration::from_mins(1);
/// Answers kept for one cluster: more than it can have users.
const MOST: usize = 128;

struct Answer {
    refused: Option<String>,
    at: Timestamp,
}

/// The answers, of all clusters.
#[derive(Default)]
pub struct RulesTracker(Mutex<HashMap<(String, String), BTreeMap<Rules, Answer>>>);

impl RulesTracker {
    /// What is known: the words of a server that refuses, none where all take them.
    pub fn answers(&self, (namespace, name): (&str, &str)) -> BTreeMap<Rules, Option<String>> {
        let clusters = self.lock();
        let known = clusters.get(&(namespace.to_owned(), name.to_owned()));
        let answers = known.into_iter().flatten();
        answers
            .map(|(rules, answer)| (rules.clone(), answer.refused.clone()))
            .collect()
    }

    /// Rules that are to be tried: new ones, and those that were refused some time ago.
    pub fn due(
        &self,
        (namespace, name): (&str, &str),
        new: &[Rules],
        now: Timestamp,
    ) -> Vec<Rules> {
        let clusters = self.lock();
        let known = clusters.get(&(namespace.to_owned(), name.to_owned()));
        let refused = known.into_iter().flatten().filter(|(_, answer)| {
            answer.refused.is_some() && now.duration_since(answer.at) >= TRY_AGAIN
        });
        let refused = refused.map(|(rules, _)| rules.clone());
        new.iter().cloned().chain(refused).collect()
    }

    /// Notes answers.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        answers: BTreeMap<Rules, Option<String>>,
        at: Timestamp,
    ) {
        let mut clusters = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let known = clusters.entry(key).or_default();
        let answers = answers.into_iter();
        known.extend(answers.map(|(rules, refused)| (rules, Answer { refused, at })));
        while known.len() > MOST {
            let oldest = known.iter().min_by_key(|(_, answer)| answer.at);
            let Some(oldest) = oldest.map(|(rules, _)| rules.clone()) else {
                break;
            };
            known.remove(&oldest);
        }
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), BTreeMap<Rules, Answer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_tried_once_and_refused_ones_again() {
        let tracker = RulesTracker::default();
        let place = ("team", "shop");
        let rules = |text: &str| ("app".to_owned(), text.to_owned());
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(tracker.due(place, &[rules("+get")], now), [rules("+get")]);
        let answers = [
            (rules("+get"), None),
            (rules("+gett"), Some("no".to_owned())),
        ];
        tracker.note(place, answers.clone().into(), now);
        assert_eq!(tracker.answers(place), BTreeMap::from(answers));
        assert!(tracker.due(place, &[], now).is_empty());
        assert_eq!(tracker.due(place, &[], now + TRY_AGAIN), [rules("+gett")]);
        tracker.forget("team", "shop");
        assert!(tracker.answers(place).is_empty());
    }
}
