//! Leases as another replica writes them.

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// For how many seconds the other replica is believed to lead.
pub const TAKEN_OVER_SECONDS: u32 = 25;

/// Gives the leader Lease to a replica that does not exist, as if it had been won while its holder hung. It expires.
pub async fn take_over(leases: &Api<Lease>, name: &str) -> Result<()> {
    let now = Timestamp::now();
    let now = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let spec = json!({"spec": {"holderIdentity": "another", "leaseDurationSeconds": TAKEN_OVER_SECONDS,
        "acquireTime": now, "renewTime": now}});
    leases
        .patch(name, &PatchParams::default(), &Patch::Merge(spec))
        .await?;
    Ok(())
}
