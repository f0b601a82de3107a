//! Sentences for people: the same cause on many pods is one sentence, and none is longer than two lines of a terminal. Pure.

/// Longest message in a status, in characters.
const LIMIT: usize = 256;
/// Pods that a sentence names.
const NAMED: usize = 2;

/// What is the matter with the pods, as pairs of pod and cause: pods with the same cause share a sentence.
pub fn grouped<'a>(causes: impl IntoIterator<Item = (&'a str, String)>) -> Vec<String> {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for (pod, cause) in causes {
        match groups.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, pods)) => pods.push(pod),
            None => groups.push((cause, vec![pod])),
        }
    }
    groups
        .into_iter()
        .map(|(cause, pods)| format!("{}: {cause}", names(&pods)))
        .collect()
}

fn names(pods: &[&str]) -> String {
    if let [pod] = pods {
        return format!("pod {pod}");
    }
    let named: Vec<&str> = pods.iter().take(NAMED).copied().collect();
    let more = if pods.len() > NAMED { ", …" } else { "" };
    format!("{} pods ({}{more})", pods.len(), named.join(", "))
}

/// The sentence, cut to the limit. The full text is logged where it is written.
pub fn shortened(text: &str) -> String {
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    let kept: String = text.chars().take(LIMIT - 1).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_one_cause_share_a_sentence() {
        let pull = "cannot pull image redis:9 (not found)";
        let causes = ["shop-0-0", "shop-0-1", "shop-1-0"].map(|pod| (pod, pull.to_owned()));
        let other = ("shop-2-0", "not scheduled".to_owned());
        let sentences = grouped(causes.into_iter().chain([other]));
        assert_eq!(
            sentences,
            [
                "3 pods (shop-0-0, shop-0-1, …): cannot pull image redis:9 (not found)",
                "pod shop-2-0: not scheduled",
            ]
        );
    }

    #[test]
    fn a_long_sentence_is_cut() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"ä".repeat(300));
        assert_eq!(long.chars().count(), LIMIT);
        assert!(long.ends_with('…'));
    }
}
