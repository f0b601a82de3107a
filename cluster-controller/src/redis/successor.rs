//! The node that a living primary hands over to. Pure.

use super::{
    assess::is_linked,
    survey::{Live, Survey},
};
use std::cmp::Reverse;

/// Of the replicas that are linked to the primary and fit, the one that lost the least and is moved the least soon: not on a cordoned
/// Kubernetes node, the furthest, the lowest ordinal. Whether it would be elected is for the caller to ask.
pub fn successor<'a>(
    survey: &Survey<'a>,
    shard: usize,
    primary: Live<'_>,
    fits: impl Fn(Live<'_>) -> bool,
) -> Option<Live<'a>> {
    let linked = survey
        .live_in(shard)
        .filter(|one| is_linked(*one, primary) && fits(*one));
    linked.max_by_key(|one| {
        let expected = &one.member.expected;
        let ordinal = Reverse(expected.ordinal);
        (!expected.cordoned, one.report.replication.offset, ordinal)
    })
}
