//! Sentences for people: the same cause on many objects is one sentence, and none is longer than two lines of a terminal. Pure.
//!
//! A sentence names the object, the cause and the cure, in this order. What is too long loses the middle: the cure is what the
//! reader needs.

/// Longest message in a status, in characters.
pub const LIMIT: usize = 256;
/// Objects that a sentence names.
const NAMED: usize = 2;
/// Characters at the end of a sentence that a cut leaves whole, at most: the longest cure has about 130.
const CURE: usize = 170;

/// Objects of one kind: `pod shop-0-0`, or `6 pods (shop-0-0, shop-0-1, …)`.
pub fn names(noun: &str, names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if let [name] = names.as_slice() {
        return format!("{noun} {name}");
    }
    let named: Vec<&str> = names.iter().take(NAMED).copied().collect();
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{} {noun}s ({}{more})", names.len(), named.join(", "))
}

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
        .map(|(cause, pods)| format!("{}: {cause}", names("pod", &pods)))
        .collect()
}

/// Independent sentences as one text within the limit: as many as fit, and how many there are besides. Each keeps its own cure,
/// which a cut through the joined text would give to another one.
pub fn list(sentences: &[String]) -> String {
    let all = sentences.join("; ");
    if length(&all) <= LIMIT {
        return all;
    }
    let more = |kept: usize| match sentences.len().saturating_sub(kept) {
        0 => String::new(),
        left => format!("; and {left} more"),
    };
    let (mut text, mut kept) = (String::new(), 0);
    for sentence in sentences {
        let rest = more(kept + 1);
        let room = LIMIT.saturating_sub(length(&rest));
        let longer = match kept {
            0 => cut(sentence, room),
            _ => format!("{text}; {sentence}"),
        };
        if length(&longer) > room {
            break;
        }
        (text, kept) = (longer, kept + 1);
    }
    text + &more(kept)
}

/// One sentence within the limit, with its beginning and its cure. The full text is for the log.
pub fn shortened(text: &str) -> String {
    cut(text, LIMIT)
}

/// Shortens the message of a status, where `before` is what it showed until now. Returns the full text if it is to be logged: it was
/// cut, and was not shown before.
pub fn shorten(message: &mut Option<String>, before: Option<&String>) -> Option<String> {
    let full = message.take()?;
    let shown = message.insert(shortened(&full));
    let is_new = *shown != full && Some(&*shown) != before;
    is_new.then_some(full)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn cut(text: &str, limit: usize) -> String {
    if length(text) <= limit {
        return text.to_owned();
    }
    let end = ending(text, CURE);
    let room = limit.saturating_sub(length(end) + 1);
    let beginning: String = text.chars().take(room).collect();
    format!("{}…{end}", beginning.trim_end())
}

/// The end of a text, of at most `most` characters: from the first clause that begins there, or else from the first word.
fn ending(text: &str, most: usize) -> &str {
    let from = text.char_indices().rev().take(most).last();
    let end = from.and_then(|(at, _)| text.get(at..)).unwrap_or_default();
    let clauses = ["; ", ". "].iter().filter_map(|mark| end.find(mark));
    let start = clauses.min().or_else(|| end.find(' '));
    start.and_then(|at| end.get(at..)).unwrap_or(end)
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
        assert_eq!(list(&sentences), sentences.join("; "));
    }

    #[test]
    fn a_cut_takes_the_middle_and_leaves_the_cure() {
        assert_eq!(shortened("short"), "short");
        let cause = "x".repeat(300);
        let cure = "make room for it, or correct the resources and the storage";
        let short = shortened(&format!("pod shop-0-0: not scheduled: {cause}; {cure}"));
        assert_eq!(length(&short), LIMIT);
        assert!(
            short.starts_with("pod shop-0-0: not scheduled: xxx"),
            "{short}"
        );
        assert!(short.ends_with(&format!("xxx…; {cure}")), "{short}");
    }

    /// The longest cure has two sentences, and clauses of its own.
    #[test]
    fn a_cure_of_two_clauses_stays_complete() {
        let cure = "If the pod's Kubernetes node is gone, delete that node; if the pod has the volume of another cluster, bring its own one back";
        let short = shortened(&format!("pod {}: foreign. {cure}", "p".repeat(250)));
        assert!(short.ends_with(&format!("…. {cure}")), "{short}");
        assert!(length(&short) <= LIMIT, "{short}");
    }

    #[test]
    fn a_text_without_clauses_is_cut_between_words_or_anywhere() {
        let words = shortened(&"many words ".repeat(40));
        assert!(
            words.contains("… words") || words.contains("… many"),
            "{words}"
        );
        let solid = shortened(&"ä".repeat(300));
        assert_eq!(length(&solid), LIMIT);
        for length_of_text in 1..600 {
            let text = "ä b; c. ".repeat(length_of_text);
            assert!(length(&shortened(&text)) <= LIMIT);
        }
    }

    #[test]
    fn sentences_that_do_not_fit_are_counted() {
        let sentence = |pod: usize| format!("pod shop-{pod}-0: {}; cure {pod}", "x".repeat(95));
        let three: Vec<String> = (0..3).map(sentence).collect();
        let text = list(&three);
        assert!(text.contains("cure 0; pod shop-1-0"), "{text}");
        assert!(text.ends_with("cure 1; and 1 more"), "{text}");
        let long = |pod: usize| format!("pod shop-{pod}-0: {}; cure {pod}", "x".repeat(400));
        let text = list(&[long(0), long(1)]);
        assert!(text.ends_with("xxx…; cure 0; and 1 more"), "{text}");
        assert_eq!(length(&text), LIMIT);
        assert_eq!(list(&[]), "");
    }
}
