use super::*;
use crate::{
    redis::{
        member::Answer,
        plan::{
            simulation::World,
            tests::{formed, relist},
        },
    },
    validate::tests::example,
};
use crds::AccessPolicy;
use k8s_openapi::jiff::Timestamp;

fn load_balancer(pod: &str) -> String {
    format!("{pod}.lb.example")
}

/// A cluster of which every pod has a load balancer, and servers that announce nothing.
fn cluster() -> (Access, Vec<Member>) {
    let world: World = formed(3, 1, true);
    let mut members = world.members(Timestamp::UNIX_EPOCH);
    let addresses = members.iter().map(|member| {
        let pod = member.expected.pod.clone();
        let address = LoadBalancer::At(load_balancer(&pod));
        (pod, address)
    });
    let mut access = Access::of(&example());
    access.policy = Some(AccessPolicy::default());
    access.addresses = addresses.collect();
    tell(&mut members, "ip");
    (access, members)
}

/// Lets the server of a pod announce its load balancer, to those that hear of it.
fn announce(members: &mut [Member], index: usize, hears: impl Fn(usize) -> bool) {
    let id = members[index].report().unwrap().id();
    let name = load_balancer(&members[index].expected.pod);
    for (other, member) in members.iter_mut().enumerate() {
        if other == index || hears(other) {
            relist(member, id, |node| node.hostname = Some(name.clone()));
        }
    }
}

fn tell(members: &mut [Member], value: &str) {
    for member in members {
        let Answer::Report(report) = &mut member.answer else {
            panic!("no report");
        };
        let value = value.to_owned();
        report
            .settings
            .insert(ClientSetting::EndpointType.name().to_owned(), value);
    }
}

/// What is found in the next reconcile: the status is written, and each pod has its wanted name.
fn next(access: &mut Access, members: &mut [Member]) -> AccessReport {
    for member in members.iter_mut() {
        let inside = format!("{}.inside.svc", member.expected.pod);
        let hostname = access.hostname(&member.expected.pod, inside);
        member.expected.hostname = Some(hostname);
    }
    let found = report(access, members, 6379);
    access.redirects = found.status.as_ref().map(|status| status.redirects);
    found
}

#[test]
fn clients_are_sent_once_all_servers_know_all_names() {
    let (mut access, mut members) = cluster();
    let found = next(&mut access, &mut members);
    assert_eq!(found.lacking.len(), 6);
    assert_eq!(access.redirects, Some(false));
    for index in 0..6 {
        announce(&mut members, index, |other| index != 5 || other != 2);
    }
    let found = next(&mut access, &mut members);
    assert!(found.lacking.is_empty());
    assert_eq!(access.redirects, Some(false), "one has not heard of a name");
    announce(&mut members, 5, |_| true);
    let found = next(&mut access, &mut members);
    assert_eq!(access.redirects, Some(true));
    assert!(found.begins, "no server has been asked yet");
    let found = next(&mut access, &mut members);
    assert_eq!(found.lacking.len(), 6, "they are given by a setting");
    assert!(!found.begins);
    tell(&mut members, "hostname");
    assert!(next(&mut access, &mut members).lacking.is_empty());
}

#[test]
fn a_pod_that_lacks_a_load_balancer_is_named() {
    let (mut access, mut members) = cluster();
    for index in 0..6 {
        announce(&mut members, index, |_| true);
    }
    access.addresses.remove("sim-1-0");
    let unusable = LoadBalancer::Unusable("2001:db8::1".to_owned());
    access.addresses.insert("sim-1-1".to_owned(), unusable);
    let found = next(&mut access, &mut members);
    assert_eq!(found.without, ["sim-1-0"]);
    assert_eq!(found.unusable[0].0, "sim-1-1");
    assert_eq!(access.redirects, Some(false));
    // Once clients are sent to load balancers they stay so.
    access.redirects = Some(true);
    next(&mut access, &mut members);
    assert_eq!(access.redirects, Some(true));
}

#[test]
fn load_balancers_go_once_no_server_names_them() {
    let (mut access, mut members) = cluster();
    for index in 0..6 {
        announce(&mut members, index, |_| true);
    }
    tell(&mut members, "hostname");
    access.redirects = Some(true);
    access.policy = None;
    next(&mut access, &mut members);
    assert_eq!(
        access.redirects,
        Some(true),
        "clients are still given names"
    );
    tell(&mut members, "ip");
    let found = next(&mut access, &mut members);
    assert!(!found.is_wanted);
    assert_eq!(access.redirects, Some(false));
    next(&mut access, &mut members);
    assert_eq!(
        access.redirects,
        Some(false),
        "they announce the names still"
    );
    for member in &mut members {
        let id = member.report().unwrap().id();
        let inside = format!("{}.inside.svc", member.expected.pod);
        relist(member, id, |own| {
            own.hostname = Some(inside.clone());
        });
    }
    next(&mut access, &mut members);
    assert_eq!(access.redirects, None);
    assert_eq!(next(&mut access, &mut members), AccessReport::default());
}
