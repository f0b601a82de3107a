//! The S3 client of one location: endpoint, credentials, timeouts, and settings that compatible stores need.

use super::location::{Credentials, Location};
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
};
use secrecy::ExposeSecret;
use std::time::Duration;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one try of a request may take until its answer begins: a part of 8 MiB at 300 kB/s.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(30);

/// How long one try of a completion may take: a store may copy every part before it answers. AWS speaks of several minutes.
const COMPLETION: Duration = Duration::from_mins(5);

/// The settings of a completion, on top of the client's own.
pub(crate) fn patient() -> Builder {
    let timeouts = TimeoutConfig::builder()
        .read_timeout(COMPLETION)
        .operation_attempt_timeout(COMPLETION)
        .build();
    Builder::new().timeout_config(timeouts)
}

/// Builds the client; asks no server. Without credentials the chain of the AWS SDK looks for some at the first request:
/// environment, web identity token, container endpoint, instance metadata.
pub(crate) async fn client(location: &Location, credentials: Option<&Credentials>) -> Client {
    let version = BehaviorVersion::v2026_01_12();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(ATTEMPT)
        .operation_attempt_timeout(ATTEMPT)
        .build();
    let mut config = Builder::new()
        .behavior_version(version)
        .region(Region::new(location.region().to_owned()))
        .force_path_style(location.path_style())
        .timeout_config(timeouts)
        // One retry policy, ours (`retry`), which knows how long a stream may be held.
        .retry_config(RetryConfig::disabled())
        // It would measure our own back-pressure: bodies are whole buffers and have timeouts.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    config.set_endpoint_url(location.endpoint().map(ToOwned::to_owned));
    if !location.checksums() {
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    if !location.encrypted() {
        // Needs no root certificates, so that an image without any can use a store inside the cluster.
        config = config.http_client(aws_smithy_http_client::Builder::new().build_http());
    }
    if let Some(credentials) = credentials {
        config = config.credentials_provider(static_credentials(credentials));
    } else {
        let region = Region::new(location.region().to_owned());
        let found = aws_config::defaults(version).region(region).load().await;
        config.set_credentials_provider(found.credentials_provider());
    }
    Client::from_conf(config.build())
}

fn static_credentials(credentials: &Credentials) -> aws_sdk_s3::config::Credentials {
    let token = credentials.session_token.as_ref();
    aws_sdk_s3::config::Credentials::new(
        credentials.access_key_id.clone(),
        credentials.secret_access_key.expose_secret(),
        token.map(|token| token.expose_secret().to_owned()),
        None,
        "credentialsSecretRef",
    )
}
