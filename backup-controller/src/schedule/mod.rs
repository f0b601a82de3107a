//! The Kubernetes objects behind `spec.backup.schedules`: a CronJob each, and one identity for all of them that may
//! create RedisBackups in the cluster's namespace and nothing else. Pure: what is wanted, not how it gets there.

use crate::cron;
use common::{
    kubernetes::{call::ApiError, conditions::ConditionUpdate},
    sentence::list,
};
use crds::{
    ANNOTATION_SCHEDULED_AT, BackupSchedule, GROUP, LABEL_CLUSTER, LABEL_COMPONENT, LABEL_JOB_NAME,
    LABEL_MANAGED_BY, LABEL_SCHEDULE, LocalRef, MANAGED_BY, RedisBackup, RedisBackupSpec,
    RedisCluster, VERSION,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, JobSpec, JobTemplateSpec},
        core::v1::{
            Capabilities, Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSecurityContext,
            PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext,
            ServiceAccount,
        },
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// Value of [`LABEL_COMPONENT`] on the objects of schedules, by which superfluous ones are found.
pub const COMPONENT: &str = "backup-schedule";
/// What the identity may do: a ClusterRole of deploy/kustomize, the only one that this controller may bind.
const CLUSTER_ROLE: &str = "redis-operator-backup-schedule";
/// The longest name of a CronJob that Kubernetes accepts: its Jobs add eleven characters.
const CRON_JOB_NAME_LENGTH: usize = 52;
/// Scheduled times further away from now than this are not taken from a Job's name: it was named by hand.
const PLAUSIBLE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Everything the schedules of one cluster need; nothing at all where there are no schedules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The identity of the CronJobs' pods.
    pub identity: Option<Identity>,
    /// A CronJob for each schedule that is valid.
    pub cron_jobs: Vec<CronJob>,
    /// Schedules that are invalid, each with the cause.
    pub refused: Vec<Refused>,
}

/// A schedule that cannot be put into effect. A CronJob that an earlier version of it made stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Name of the schedule.
    pub schedule: String,
    /// The field and what is wrong with it, or what the API server says.
    pub why: String,
}

impl Refused {
    /// What the API server answered to the CronJob of a schedule.
    pub fn by_server(cron_job: &CronJob, error: &ApiError) -> Self {
        let schedule = cron_job.labels().get(LABEL_SCHEDULE).cloned();
        let words = error.to_string();
        // `CronJob.batch "shop-nightly" is invalid: spec.timeZone: …` repeats what the schedule's name says already.
        let why = match words.split_once("is invalid: ") {
            Some((_, why)) => why.to_owned(),
            None => words,
        };
        Self {
            schedule: schedule.unwrap_or_else(|| cron_job.name_any()),
            why,
        }
    }
}

/// The condition of the RedisCluster that says whether its schedules are in effect.
pub const SCHEDULES_ACCEPTED: &str = "SchedulesAccepted";

/// That condition; `None` where there are no schedules.
pub fn condition(cluster: &RedisCluster, refused: &[Refused]) -> Option<ConditionUpdate> {
    let schedules = schedules(cluster).len();
    if schedules == 0 {
        return None;
    }
    if refused.is_empty() {
        let message = format!("{schedules} in effect");
        return Some(ConditionUpdate::yes(
            SCHEDULES_ACCEPTED,
            "Accepted",
            message,
        ));
    }
    let mut all: Vec<String> = refused
        .iter()
        .map(|refused| format!("schedule {}: {}", refused.schedule, refused.why))
        .collect();
    if let Some(first) = all.first_mut() {
        let count = format!("{} of {schedules} not in effect: ", refused.len());
        first.insert_str(0, &count);
    }
    Some(ConditionUpdate::no(
        SCHEDULES_ACCEPTED,
        "InvalidSchedule",
        list(&all),
    ))
}

/// That condition where the controller does not know what the CronJobs' pods run.
pub fn no_image() -> ConditionUpdate {
    ConditionUpdate::no(
        SCHEDULES_ACCEPTED,
        "NoImage",
        "the backup-controller does not know the image of the schedules' pods; start it with --image",
    )
}

fn schedules(cluster: &RedisCluster) -> &[BackupSchedule] {
    cluster
        .spec
        .backup
        .as_ref()
        .map_or(&[][..], |plan| plan.schedules.as_slice())
}

/// The identity of the CronJobs' pods and its one right.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// What the CronJobs' pods run as.
    pub service_account: ServiceAccount,
    /// What ties them together.
    pub role_binding: RoleBinding,
}

/// Renders the objects for the schedules of `cluster`; their pods run `image`.
pub fn build(cluster: &RedisCluster, image: &str) -> Wanted {
    let schedules = schedules(cluster);
    if schedules.is_empty() {
        return Wanted::default();
    }
    let mut wanted = Wanted {
        identity: Some(identity(cluster)),
        ..Wanted::default()
    };
    for schedule in schedules {
        match cron::check(&schedule.schedule) {
            Ok(()) => wanted.cron_jobs.push(cron_job(cluster, schedule, image)),
            Err(error) => wanted.refused.push(Refused {
                schedule: schedule.name.clone(),
                why: error.to_string(),
            }),
        }
    }
    wanted
}

/// The label selector of every object made for the schedules of the cluster `name`.
pub fn selector(name: &str) -> String {
    format!("{LABEL_CLUSTER}={name},{LABEL_COMPONENT}={COMPONENT},{LABEL_MANAGED_BY}={MANAGED_BY}")
}

/// Name of the account, role and binding of a cluster's schedules.
pub fn identity_name(cluster: &str) -> String {
    format!("{cluster}-{COMPONENT}")
}

/// Cluster and schedule in one name of at most 52 characters, different for different pairs.
///
/// `a-b` + `c` and `a` + `b-c` would read the same: a schedule whose own name has a dash gets a hash of the pair, and so
/// does a pair that is too long.
pub fn base_name(cluster: &str, schedule: &str) -> String {
    let plain = format!("{cluster}-{schedule}");
    if plain.len() <= CRON_JOB_NAME_LENGTH && !schedule.contains('-') {
        return plain;
    }
    let hash = format!("{:08x}", fnv1a(&[cluster, schedule]));
    let room = CRON_JOB_NAME_LENGTH - hash.len() - 1;
    let kept: String = plain.chars().take(room).collect();
    format!("{}-{hash}", kept.trim_end_matches('-'))
}

/// FNV-1a over the parts with a separator that no name contains (<http://www.isthe.com/chongo/tech/comp/fnv/>, 32 bit).
fn fnv1a(parts: &[&str]) -> u32 {
    parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
}

/// The minute a Job was due: the CronJob controller ends a Job's name in minutes since 1970. A Job made by hand has
/// another name; then it is the running minute.
pub fn scheduled_minute(job: Option<&str>, now: Timestamp) -> Timestamp {
    let named = job
        .and_then(|name| name.rsplit_once('-'))
        .and_then(|(_, minutes)| minutes.parse::<i64>().ok())
        .and_then(|minutes| Timestamp::from_second(minutes.checked_mul(60)?).ok())
        .filter(|due| now.duration_since(*due).abs() <= PLAUSIBLE);
    named.unwrap_or_else(|| {
        let second = now.as_second();
        Timestamp::from_second(second - second.rem_euclid(60)).unwrap_or(now)
    })
}

/// The RedisBackup of a schedule for the minute it was due. Its name is the same however often the Job runs.
pub fn backup(order: &ScheduledBackup) -> RedisBackup {
    let minute = order.due.strftime("%Y%m%d%H%M");
    let name = format!("{}-{minute}", base_name(&order.cluster, &order.schedule));
    let mut backup = RedisBackup::new(
        &name,
        RedisBackupSpec {
            cluster_ref: LocalRef {
                name: order.cluster.clone(),
            },
            storage_name: Some(order.storage_name.clone()),
            attempts: 3,
            deletion_policy: order.deletion_policy,
            ..RedisBackupSpec::default()
        },
    );
    backup.metadata.namespace = Some(order.namespace.clone());
    backup.metadata.labels = Some(BTreeMap::from([
        (LABEL_CLUSTER.to_owned(), order.cluster.clone()),
        (LABEL_SCHEDULE.to_owned(), order.schedule.clone()),
    ]));
    backup.metadata.annotations = Some(BTreeMap::from([(
        ANNOTATION_SCHEDULED_AT.to_owned(),
        order.due.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )]));
    backup
}

/// What `create-backup` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledBackup {
    /// Namespace of the cluster and of its backups.
    pub namespace: String,
    /// Name of the RedisCluster that is backed up.
    pub cluster: String,
    /// Name of the schedule in the cluster's spec.
    pub schedule: String,
    /// One of the cluster's storages.
    pub storage_name: String,
    /// What becomes of the data when the backup is deleted.
    pub deletion_policy: crds::DeletionPolicy,
    /// The minute it was due.
    pub due: Timestamp,
}

fn identity(cluster: &RedisCluster) -> Identity {
    let name = identity_name(&cluster.name_any());
    let metadata = metadata(cluster, &name, None);
    Identity {
        service_account: ServiceAccount {
            metadata: metadata.clone(),
            // Only the CronJobs' pods, which ask for it, get a token.
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        role_binding: RoleBinding {
            metadata,
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "ClusterRole".to_owned(),
                name: CLUSTER_ROLE.to_owned(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name,
                namespace: cluster.namespace(),
                ..Subject::default()
            }]),
        },
    }
}

/// Whether the binding grants another role than is wanted. That cannot be changed: it has to be deleted first.
pub fn grants_another_role(observed: &RoleBinding, wanted: &RoleBinding) -> bool {
    observed.role_ref != wanted.role_ref
}

fn cron_job(cluster: &RedisCluster, schedule: &BackupSchedule, image: &str) -> CronJob {
    let name = base_name(&cluster.name_any(), &schedule.name);
    CronJob {
        metadata: metadata(cluster, &name, Some(&schedule.name)),
        spec: CronJobSpec {
            schedule: schedule.schedule.clone(),
            time_zone: schedule.time_zone.clone(),
            suspend: Some(schedule.suspend),
            concurrency_policy: Some("Forbid".to_owned()),
            successful_jobs_history_limit: Some(1),
            failed_jobs_history_limit: Some(3),
            // Without a deadline a CronJob that missed a hundred starts never starts again.
            starting_deadline_seconds: Some(3600),
            job_template: JobTemplateSpec {
                metadata: None,
                spec: Some(job(cluster, schedule, image)),
            },
        },
        ..CronJob::default()
    }
}

fn job(cluster: &RedisCluster, schedule: &BackupSchedule, image: &str) -> JobSpec {
    JobSpec {
        backoff_limit: Some(4),
        active_deadline_seconds: Some(600),
        template: PodTemplateSpec {
            // The cluster's own label stays off these pods: its Services and budgets select by it.
            metadata: Some(ObjectMeta {
                labels: Some(BTreeMap::from([(
                    LABEL_COMPONENT.to_owned(),
                    COMPONENT.to_owned(),
                )])),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                service_account_name: Some(identity_name(&cluster.name_any())),
                automount_service_account_token: Some(true),
                restart_policy: Some("Never".to_owned()),
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(65532),
                    run_as_group: Some(65532),
                    seccomp_profile: Some(SeccompProfile {
                        type_: "RuntimeDefault".to_owned(),
                        localhost_profile: None,
                    }),
                    ..PodSecurityContext::default()
                }),
                containers: vec![container(cluster, schedule, image)],
                ..PodSpec::default()
            }),
        },
        ..JobSpec::default()
    }
}

fn container(cluster: &RedisCluster, schedule: &BackupSchedule, image: &str) -> Container {
    let amount = |cpu: &str, memory: &str| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ])
    };
    Container {
        name: "create-backup".to_owned(),
        image: Some(image.to_owned()),
        args: Some(vec![
            "create-backup".to_owned(),
            format!("--cluster={}", cluster.name_any()),
            format!("--schedule={}", schedule.name),
            format!("--storage-name={}", schedule.storage_name),
            format!("--deletion-policy={:?}", schedule.deletion_policy),
        ]),
        env: Some(vec![
            field("NAMESPACE", "metadata.namespace"),
            field("JOB_NAME", &format!("metadata.labels['{LABEL_JOB_NAME}']")),
        ]),
        resources: Some(ResourceRequirements {
            requests: Some(amount("10m", "16Mi")),
            limits: Some(amount("500m", "64Mi")),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn metadata(cluster: &RedisCluster, name: &str, schedule: Option<&str>) -> ObjectMeta {
    let mut labels = BTreeMap::from([
        (LABEL_CLUSTER.to_owned(), cluster.name_any()),
        (LABEL_COMPONENT.to_owned(), COMPONENT.to_owned()),
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
    ]);
    if let Some(schedule) = schedule {
        labels.insert(LABEL_SCHEDULE.to_owned(), schedule.to_owned());
    }
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: cluster.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: RedisCluster::kind(&()).into_owned(),
            name: cluster.name_any(),
            uid: cluster.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
