//! Lists the volume claims of a cluster: only while nodes are missing that may be in volumes which the spec does not ask for.

use crate::{context::Context, validate::Shape};
use common::kubernetes::call::{self, ApiError};
use crds::{CLAIM, LABEL_CLUSTER, node_of_pod};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};

/// Claims listed at most: those of the largest cluster.
const MOST: u32 = 3_000;

/// The nodes that the cluster's volume claims are named after, by shard and ordinal.
pub async fn of_nodes(context: &Context, shape: &Shape) -> Result<Vec<(i32, i32)>, ApiError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &shape.namespace);
    let labels = format!("{LABEL_CLUSTER}={}", shape.name);
    let parameters = ListParams::default().labels(&labels).limit(MOST);
    let what = format!(
        "list the volume claims of {}/{}",
        shape.namespace, shape.name
    );
    let claims = call::read(what, api.list_metadata(&parameters)).await?;
    let names = claims.items.iter().map(ResourceExt::name_any);
    let nodes = names.filter_map(|name| node_of_claim(&shape.name, &name));
    Ok(nodes.collect())
}

/// A StatefulSet names the claim of a pod after its template and the pod.
fn node_of_claim(cluster: &str, claim: &str) -> Option<(i32, i32)> {
    node_of_pod(cluster, claim.strip_prefix(CLAIM)?.strip_prefix('-')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_after_nodes() {
        assert_eq!(node_of_claim("shop", "data-shop-4-1"), Some((4, 1)));
        for other in [
            "data-shop-x-1",
            "data-shop",
            "logs-shop-4-1",
            "data-shops-4-1",
        ] {
            assert_eq!(node_of_claim("shop", other), None, "{other}");
        }
    }
}
