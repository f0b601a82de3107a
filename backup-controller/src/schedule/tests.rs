use super::*;
use crds::{BackupPlan, BackupStorage, DeletionPolicy, RedisClusterSpec, S3Location};
use proptest::prelude::*;

fn cluster(schedules: Vec<BackupSchedule>) -> RedisCluster {
    let mut cluster = RedisCluster::new(
        "demo",
        RedisClusterSpec {
            backup: Some(BackupPlan {
                storages: vec![BackupStorage {
                    name: "main".into(),
                    s3: S3Location::default(),
                }],
                schedules,
            }),
            ..RedisClusterSpec::default()
        },
    );
    cluster.metadata.namespace = Some("shop".into());
    cluster.metadata.uid = Some("c1".into());
    cluster
}

fn nightly() -> BackupSchedule {
    BackupSchedule {
        name: "nightly".into(),
        schedule: "30 2 * * *".into(),
        time_zone: Some("Europe/Berlin".into()),
        storage_name: "main".into(),
        suspend: true,
        deletion_policy: DeletionPolicy::Delete,
    }
}

#[test]
fn a_binding_to_another_role_has_to_go_first() {
    let wanted = build(&cluster(vec![nightly()]), "image").identity.unwrap();
    let wanted = wanted.role_binding;
    assert!(!grants_another_role(&wanted, &wanted));
    let mut earlier = wanted.clone();
    earlier.role_ref.kind = "Role".into();
    assert!(grants_another_role(&earlier, &wanted));
}

#[test]
fn bad_schedules_are_named_and_good_ones_made() {
    let named = |name: &str, schedule: &str| BackupSchedule {
        name: name.into(),
        schedule: schedule.into(),
        ..nightly()
    };
    let cluster = cluster(vec![
        named("late", "61 * * * *"),
        nightly(),
        named("never", "0 0 0 * *"),
    ]);
    let wanted = build(&cluster, "image");
    let made: Vec<String> = wanted.cron_jobs.iter().map(ResourceExt::name_any).collect();
    assert_eq!(made, ["demo-nightly"]);
    let update = condition(&cluster, &wanted.refused).unwrap();
    assert_eq!(
        (update.holds, update.reason),
        (Some(false), "InvalidSchedule")
    );
    assert_eq!(
        update.message,
        "2 of 3 not in effect: schedule late: minute `61` is not within 0-59; \
         schedule never: day of month `0` is not within 1-31"
    );
    assert_eq!(condition(&cluster, &[]).unwrap().holds, Some(true));
}

#[test]
fn schedules_that_do_not_fit_are_counted() {
    let refused = |number| Refused {
        schedule: format!("schedule-{number}"),
        why: "minute `61` is not within 0-59".into(),
    };
    let refused: Vec<Refused> = (0..20).map(refused).collect();
    let message = condition(&cluster(vec![nightly()]), &refused)
        .unwrap()
        .message;
    assert!(
        message.chars().count() <= common::sentence::LIMIT,
        "{message}"
    );
    assert!(
        message.starts_with("20 of 1 not in effect: schedule schedule-0: "),
        "{message}"
    );
    assert!(
        message.ends_with("0-59; and 17 more") || message.ends_with("0-59; and 16 more"),
        "{message}"
    );
}

#[test]
fn a_refusal_of_the_server_names_schedule_and_field() {
    let wanted = build(&cluster(vec![nightly()]), "image");
    let error = ApiError::Invalid {
        what: "apply CronJob shop/demo-nightly".into(),
        message: r#"CronJob.batch "demo-nightly" is invalid: spec.timeZone: Invalid value: "Mars": unknown time zone Mars"#.into(),
    };
    assert_eq!(
        Refused::by_server(&wanted.cron_jobs[0], &error),
        Refused {
            schedule: "nightly".into(),
            why: r#"spec.timeZone: Invalid value: "Mars": unknown time zone Mars"#.into(),
        }
    );
}

#[test]
fn without_schedules_nothing_is_wanted() {
    assert_eq!(condition(&cluster(Vec::new()), &[]), None);
    assert_eq!(build(&cluster(Vec::new()), "image"), Wanted::default());
}

#[test]
fn a_schedule_becomes_a_cron_job_with_one_right() {
    let wanted = build(&cluster(vec![nightly()]), "controller:1");
    let identity = wanted.identity.unwrap();
    let role = identity.role_binding.role_ref;
    assert_eq!(
        (role.kind.as_str(), role.name.as_str()),
        ("ClusterRole", CLUSTER_ROLE)
    );
    let json = serde_json::to_value(&wanted.cron_jobs[0]).unwrap();
    assert_eq!(json["metadata"]["name"], "demo-nightly");
    assert_eq!(json["metadata"]["namespace"], "shop");
    assert_eq!(json["metadata"]["ownerReferences"][0]["uid"], "c1");
    assert_eq!(json["spec"]["schedule"], "30 2 * * *");
    assert_eq!(json["spec"]["timeZone"], "Europe/Berlin");
    assert_eq!(json["spec"]["suspend"], true);
    assert_eq!(json["spec"]["concurrencyPolicy"], "Forbid");
    let pod = &json["spec"]["jobTemplate"]["spec"]["template"];
    assert!(pod["metadata"]["labels"].get(LABEL_CLUSTER).is_none());
    assert_eq!(pod["spec"]["serviceAccountName"], "demo-backup-schedule");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "controller:1");
    assert_eq!(container["args"][4], "--deletion-policy=Delete");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["spec"]["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
}

#[test]
fn the_minute_comes_from_the_job_or_the_clock() {
    let now: Timestamp = "2026-11-21T02:31:17Z".parse().unwrap();
    let due: Timestamp = "2026-11-21T02:30:00Z".parse().unwrap();
    let job = format!("demo-nightly-{}", due.as_second() / 60);
    assert_eq!(scheduled_minute(Some(&job), now), due);
    let cut: Timestamp = "2026-11-21T02:31:00Z".parse().unwrap();
    for by_hand in [
        None,
        Some("try-1"),
        Some("try"),
        Some("x-99999999999999999999"),
    ] {
        assert_eq!(scheduled_minute(by_hand, now), cut);
    }
}

#[test]
fn a_job_that_runs_twice_names_the_same_backup() {
    let order = ScheduledBackup {
        namespace: "shop".into(),
        cluster: "demo".into(),
        schedule: "nightly".into(),
        storage_name: "main".into(),
        deletion_policy: DeletionPolicy::Retain,
        due: "2026-11-21T02:30:00Z".parse().unwrap(),
    };
    let made = backup(&order);
    assert_eq!(made.name_any(), "demo-nightly-202611210230");
    assert_eq!(
        made.annotations()[ANNOTATION_SCHEDULED_AT],
        "2026-11-21T02:30:00Z"
    );
    assert_eq!(made.labels()[LABEL_SCHEDULE], "nightly");
    assert_eq!(made.name_any(), backup(&order).name_any());
}

proptest! {
    #[test]
    fn names_fit_and_differ(
        pairs in prop::collection::hash_set(
            ("[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?"), 2..20)
    ) {
        let names: std::collections::HashSet<_> =
            pairs.iter().map(|(cluster, schedule)| base_name(cluster, schedule)).collect();
        prop_assert_eq!(names.len(), pairs.len());
        for name in names {
            prop_assert!(name.len() <= CRON_JOB_NAME_LENGTH);
            prop_assert!(!name.ends_with('-'));
        }
    }
}

#[test]
fn a_dash_moved_from_cluster_to_schedule_makes_another_name() {
    assert_ne!(base_name("a-b", "c"), base_name("a", "b-c"));
}
