//! How far clients outside reach the servers, and what the status says of it next. Pure.

use super::{Access, LoadBalancer};
use crate::redis::member::{ClientSetting, Member, Report};
use common::cluster::topology::NodeId;
use crds::AccessStatus;
use std::collections::BTreeMap;

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessReport {
    /// Whether the spec asks for load balancers.
    pub is_wanted: bool,
    /// What the status says. None: there are no load balancers, and no server names one.
    pub status: Option<AccessStatus>,
    /// Pods without a load balancer that has an address.
    pub without: Vec<String>,
    /// Pods whose load balancer has an address that servers cannot announce, with it.
    pub unusable: Vec<(String, String)>,
    /// Pods whose servers are too old to announce names.
    pub old: Vec<String>,
    /// Pods whose servers do not tell clients yet what they are to.
    pub lacking: Vec<String>,
    /// Whether a step begins, so that no server has been asked to take it.
    pub begins: bool,
}

/// What the servers say. A pod that is to go still takes clients.
pub fn report(access: &Access, members: &[Member], port: u16) -> AccessReport {
    if !access.is_used() {
        return AccessReport::default();
    }
    let mut found = AccessReport {
        is_wanted: access.policy.is_some(),
        ..AccessReport::default()
    };
    for member in members {
        assess(access, member, &mut found);
    }
    let redirects = access.redirects.unwrap_or_default();
    let is_done = found.without.is_empty()
        && found.unusable.is_empty()
        && found.old.is_empty()
        && found.lacking.is_empty();
    let next = match (found.is_wanted, redirects) {
        (true, true) => Some(true),
        (true, false) => Some(is_done && all_know_all(access, members)),
        // The names go, then the load balancers.
        (false, true) => Some(!is_done),
        (false, false) => (!is_done).then_some(false),
    };
    found.begins = next != access.redirects;
    found.status = next.map(|redirects| AccessStatus {
        endpoint: access.endpoint(port).filter(|_| found.is_wanted),
        redirects,
    });
    found
}

fn assess(access: &Access, member: &Member, found: &mut AccessReport) {
    let pod = &member.expected.pod;
    if found.is_wanted && member.expected.wanted {
        match access.addresses.get(pod) {
            Some(LoadBalancer::At(_)) => {}
            Some(LoadBalancer::Unusable(address)) => {
                found.unusable.push((pod.clone(), address.clone()));
            }
            None => found.without.push(pod.clone()),
        }
    }
    let Some(report) = member.report() else {
        // A pod that is not there tells nothing: it is asked when it is.
        if member.expected.exists || found.is_wanted {
            found.lacking.push(pod.clone());
        }
        return;
    };
    if found.is_wanted && !report.server.at_least(7, 0) {
        found.old.push(pod.clone());
    } else if !tells(access, member, report) {
        found.lacking.push(pod.clone());
    }
}

/// Whether a server tells clients what it is to in the present step.
fn tells(access: &Access, member: &Member, report: &Report) -> bool {
    let given = report.settings.get(ClientSetting::EndpointType.name());
    let tells = given.map(String::as_str) == access.endpoint_type();
    let wanted = member.expected.hostname.as_ref();
    let own = report.own().hostname.as_ref();
    let announces = wanted.is_some_and(|wanted| own == Some(&wanted.name));
    match (access.policy.is_some(), access.redirects) {
        (true, _) => announces && tells,
        (false, Some(true)) => tells,
        // One that announces nothing names no load balancer either.
        (false, _) => announces || own.is_none(),
    }
}

/// Whether each server knows the name of each other one: the bus takes them there.
fn all_know_all(access: &Access, members: &[Member]) -> bool {
    let reports = || members.iter().filter_map(|one| Some((one, one.report()?)));
    let names: BTreeMap<NodeId, &str> = reports()
        .filter_map(|(member, report)| {
            let found = access.addresses.get(&member.expected.pod)?;
            Some((report.id(), found.name()?))
        })
        .collect();
    reports().all(|(_, report)| {
        let mut nodes = report.view.nodes().iter();
        nodes.all(|node| {
            let name = names.get(&node.id);
            name.is_none_or(|name| node.hostname.as_deref() == Some(*name))
        })
    })
}

#[cfg(test)]
mod tests;
