//! The image of this controller: the pods of schedules run the same one. It is read from the controller's own pod, so that every
//! way to set an image (kustomize, kubectl set image, a mirror that rewrites it) reaches the schedules too.

use common::{
    kubernetes::call::{self, ApiError},
    runtime::Runtime,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::time::Duration;
use tokio::time::sleep;

/// Name of the controller's container in the Deployment.
const CONTAINER: &str = "controller";
/// Pause after the API server did not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// The image of the pod that this process runs in; `None` outside of a pod and at shutdown.
pub async fn find(runtime: &Runtime) -> Option<String> {
    loop {
        match read(runtime).await {
            Ok(image) => return image,
            Err(error) => {
                tracing::warn!(%error, "the controller's own image is not known yet; schedules wait");
            }
        }
        runtime.shutdown.run_until_cancelled(sleep(PAUSE)).await?;
    }
}

async fn read(runtime: &Runtime) -> Result<Option<String>, ApiError> {
    let (namespace, name) = (&runtime.lease_namespace, &runtime.identity);
    let api: Api<Pod> = Api::namespaced(runtime.client.clone(), namespace);
    let what = format!("get Pod {namespace}/{name}");
    let pod = call::read_optional(what, api.get(name)).await?;
    Ok(pod.and_then(|pod| image(&pod)))
}

fn image(pod: &Pod) -> Option<String> {
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let controller = containers.find(|container| container.name == CONTAINER)?;
    controller.image.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_that_of_the_controllers_container() {
        let pod = |name: &str| -> Pod {
            let text = serde_json::json!({"spec": {"containers": [
                {"name": "proxy", "image": "proxy:1"},
                {"name": name, "image": "registry.example.com/backup-controller:v9"},
            ]}});
            serde_json::from_value(text).unwrap()
        };
        let found = image(&pod("controller"));
        assert_eq!(
            found.as_deref(),
            Some("registry.example.com/backup-controller:v9")
        );
        assert_eq!(image(&pod("other")), None);
        assert_eq!(image(&Pod::default()), None);
    }
}
