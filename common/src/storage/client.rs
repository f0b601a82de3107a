//! The S3 client of one location: endpoint, identity, timeouts, and settings that compatible stores need.

use super::{
    addresses::AddressRule,
    authority::CertificateAuthority,
    connector::http_client,
    location::{Credentials, Location},
};
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

/// How long one try of a completion may take: a store may copy every part before it answers, at AWS for several minutes
/// (documentation of CompleteMultipartUpload).
const COMPLETION: Duration = Duration::from_mins(5);

/// The settings of a completion, on top of the client's own.
pub(crate) fn patient() -> Builder {
    let timeouts = TimeoutConfig::builder()
        .read_timeout(COMPLETION)
        .operation_attempt_timeout(COMPLETION)
        .build();
    Builder::new().timeout_config(timeouts)
}

/// How a bucket is reached.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    /// As whom.
    pub identity: StoreIdentity,
    /// At which addresses.
    pub addresses: AddressRule,
    /// Whose certificates are trusted; those of the image without one.
    pub authority: Option<CertificateAuthority>,
}

/// As whom requests are signed.
#[derive(Clone, Debug)]
pub enum StoreIdentity {
    /// With an access key.
    AccessKey(Credentials),
    /// With what the AWS SDK finds around this process: environment, web identity token, container endpoint, instance metadata.
    Ambient,
}

/// Builds the client; sends nothing to the store.
pub(crate) async fn client(location: &Location, access: &StoreAccess) -> Client {
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
        // It would measure our own back-pressure: bodies are complete buffers and have timeouts.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http_client(
            access.addresses.clone(),
            location.encrypted(),
            access.authority.as_ref(),
        ));
    config.set_endpoint_url(location.endpoint().map(ToOwned::to_owned));
    if !location.checksums() {
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    match &access.identity {
        StoreIdentity::AccessKey(credentials) => {
            config = config.credentials_provider(static_credentials(credentials));
        }
        StoreIdentity::Ambient => {
            let region = Region::new(location.region().to_owned());
            let found = aws_config::defaults(version).region(region).load().await;
            config.set_credentials_provider(found.credentials_provider());
        }
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
