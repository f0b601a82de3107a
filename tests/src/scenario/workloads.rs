//! The workload program, in pods of its own.

use super::{LIMIT, pod_names, pod_security, restricted, tools_image};
use crate::{kubectl::Kubectl, writer::Refusals};
use anyhow::{Context, Result, bail, ensure};
use crds::{FOLDER_CERTIFICATES, certificates_secret_name};
use serde_json::json;
use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Starts the workload program in a pod of its own.
pub async fn start_workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<()> {
    let mut command = vec!["/bin/workload"];
    command.extend(arguments);
    // Of a cluster that encrypts.
    let cluster = arguments
        .get(1)
        .and_then(|address| address.split(':').next());
    let certificates = certificates_secret_name(cluster.context("no address")?);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"app": "workload"}}, "spec": {
        "volumes": [{"name": "certificates", "secret": {"secretName": certificates, "optional": true}}],
        "restartPolicy": "Never", "securityContext": pod_security(), "automountServiceAccountToken": false,
        "containers": [{"name": "workload", "image": tools_image(), "imagePullPolicy": "IfNotPresent",
                        "command": command, "securityContext": restricted(),
                        "volumeMounts": [{"name": "certificates", "mountPath": FOLDER_CERTIFICATES}]}]}});
    kubectl.apply(&pod.to_string()).await.map(drop)
}

/// Waits for a workload pod to succeed, and answers what it printed.
pub async fn finish_workload(kubectl: &Kubectl, pod: &str) -> Result<String> {
    let ended = async || {
        let phase = kubectl.get(&format!("pod {pod}")).await?["status"]["phase"].clone();
        Ok(phase == "Succeeded" || phase == "Failed")
    };
    kubectl
        .until(&format!("the end of {pod}"), LIMIT, ended)
        .await?;
    let printed = kubectl.run(&format!("logs {pod}")).await?.trim().to_owned();
    ensure!(
        kubectl.get(&format!("pod {pod}")).await?["status"]["phase"] == "Succeeded",
        "{pod} failed: {printed}"
    );
    Ok(printed)
}

/// Runs the workload program in a pod to its end.
pub async fn workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<String> {
    start_workload(kubectl, pod, arguments).await?;
    finish_workload(kubectl, pod).await
}

/// What a writer did and saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Writes {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Attempts that were refused or not answered, by the first word of the error reply.
    pub refusals: Refusals,
    /// The longest time without an acknowledged write.
    pub longest_gap: Duration,
    /// Acknowledged writes that were there at the end.
    pub found: u64,
}

impl Writes {
    /// Attempts that were refused or not answered.
    pub fn refused(&self) -> u64 {
        self.refusals.values().sum()
    }
}

impl Display for Writes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (acknowledged, refused) = (self.acknowledged, self.refused());
        write!(f, "{acknowledged} writes acknowledged, {refused} refused")?;
        let codes = self.refusals.iter();
        let codes: Vec<String> = codes
            .map(|(code, times)| format!("{code} {times}"))
            .collect();
        if !codes.is_empty() {
            write!(f, " ({})", codes.join(", "))?;
        }
        let gap = self.longest_gap.as_secs_f64();
        write!(f, ", longest pause {gap:.2} s, {} found", self.found)
    }
}

impl FromStr for Writes {
    type Err = anyhow::Error;

    /// Reads what the workload program printed.
    fn from_str(printed: &str) -> Result<Self> {
        let (head, rest) = printed.split_once(" (").unwrap_or((printed, ""));
        let (codes, tail) = rest.split_once(')').unwrap_or_default();
        let words = head.split([' ', ',']).chain(tail.split([' ', ',']));
        let numbers: Vec<&str> = words
            .filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        let [acknowledged, refused, gap, found] = numbers.as_slice() else {
            bail!("the writer printed: {printed}");
        };
        let codes = codes.split(", ").filter(|one| !one.is_empty());
        let writes = Self {
            acknowledged: acknowledged.parse()?,
            refusals: codes.map(refusal).collect::<Result<_>>()?,
            longest_gap: Duration::from_secs_f64(gap.parse()?),
            found: found.parse()?,
        };
        let refused: u64 = refused.parse()?;
        ensure!(
            writes.refused() == refused,
            "the codes of {refused} refusals are not those that the writer printed: {printed}"
        );
        Ok(writes)
    }
}

/// `CLUSTERDOWN 4`.
fn refusal(printed: &str) -> Result<(String, u64)> {
    let (code, times) = printed.split_once(' ').context("a code without a number")?;
    Ok((code.to_owned(), times.parse()?))
}

/// Counts the writers of this process: each has keys of its own, so that none passes for another.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A pod that writes to a cluster until it is finished.
#[must_use]
pub struct Writer<'a> {
    kubectl: &'a Kubectl,
    cluster: String,
    pod: String,
}

impl<'a> Writer<'a> {
    /// Starts it and waits until it runs.
    pub async fn start(kubectl: &'a Kubectl, cluster: &str) -> Result<Self> {
        let pod = format!("writer-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let address = format!("{cluster}:6379");
        let end = format!("{pod}-end");
        let arguments = [
            "write",
            &address,
            "--seconds",
            "1800",
            "--prefix",
            &pod,
            "--until",
            &end,
        ];
        start_workload(kubectl, &pod, &arguments).await?;
        let first = format!("{pod}:0");
        let writes = async || {
            let pods = pod_names(kubectl, cluster).await?;
            let asked = pods.first().context("a cluster without pods")?;
            let read = format!("redis-cli -c get {first}");
            Ok(kubectl.exec(asked, &read).await?.trim() == "0")
        };
        kubectl.until("the writer writes", LIMIT, writes).await?;
        let cluster = cluster.to_owned();
        Ok(Self {
            kubectl,
            cluster,
            pod,
        })
    }

    /// Ends it: every acknowledged write must be there.
    pub async fn finish(self) -> Result<Writes> {
        let Self {
            kubectl,
            cluster,
            pod,
        } = self;
        let pods = pod_names(kubectl, &cluster).await?;
        let asked = pods.first().context("a cluster without pods")?;
        kubectl
            .exec(asked, &format!("redis-cli -c set {pod}-end 1"))
            .await?;
        let printed = finish_workload(kubectl, &pod).await?;
        kubectl.run(&format!("delete pod {pod} --now")).await?;
        kubectl
            .exec(asked, &format!("redis-cli -c del {pod}-end"))
            .await?;
        println!("writer: {printed}");
        printed.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_writer_prints_is_read_again() {
        let mut writes = Writes {
            acknowledged: 376_857,
            refusals: Refusals::new(),
            longest_gap: Duration::from_millis(9530),
            found: 376_857,
        };
        assert_eq!(writes.to_string().parse::<Writes>().unwrap(), writes);
        for (code, times) in [("connection", 12), ("CLUSTERDOWN", 4)] {
            writes.refusals.insert(code.to_owned(), times);
        }
        let printed = writes.to_string();
        assert!(printed.contains("16 refused (CLUSTERDOWN 4, connection 12), "));
        assert_eq!(printed.parse::<Writes>().unwrap(), writes);
        assert!("acknowledged writes are missing".parse::<Writes>().is_err());
    }
}
