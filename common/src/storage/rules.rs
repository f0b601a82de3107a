//! What the operator allows tenants to do with storage.

use super::addresses::AddressRule;
use clap::Args;
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// Arguments of the controllers that read or write storage. Each flag has an environment twin.
#[derive(Args, Clone, Debug, Default)]
pub struct StorageArguments {
    /// Namespaces whose objects may use the controller's own cloud identity where they name no credentialsSecretRef, separated
    /// by commas; none by default. It is never used with an endpoint
    #[arg(long, env = "AMBIENT_CREDENTIALS_NAMESPACES", value_delimiter = ',')]
    pub ambient_credentials_namespaces: Vec<String>,
    /// Networks that endpoints may be in, separated by commas, for example 10.0.0.0/8,192.0.2.7; default: all addresses except
    /// loopback, link-local, metadata, unspecified and multicast ones
    #[arg(long, env = "ALLOWED_ENDPOINT_NETWORKS", value_delimiter = ',', value_parser = network)]
    pub allowed_endpoint_networks: Vec<IpNet>,
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{text}` is not a network such as 10.0.0.0/8 or fd00::/8"))
}

/// The arguments, ready for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageRules {
    ambient: BTreeSet<String>,
    addresses: AddressRule,
}

/// Why an object that names no credentials may not use the controller's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmbientRefusal {
    /// The location has an endpoint, which may be the tenant's own.
    #[error(
        "the controller's own identity is never used with an endpoint; name a Secret with accessKeyId and secretAccessKey in credentialsSecretRef"
    )]
    Endpoint,
    /// The operator has not allowed the namespace.
    #[error(
        "namespace {0} may not use the controller's own identity; name a Secret with accessKeyId and secretAccessKey in credentialsSecretRef, or have the operator start the controllers with --ambient-credentials-namespaces={0}"
    )]
    Namespace(String),
}

impl From<StorageArguments> for StorageRules {
    fn from(arguments: StorageArguments) -> Self {
        let given = arguments.ambient_credentials_namespaces.into_iter();
        let names = given.map(|name| name.trim().to_owned());
        Self {
            ambient: names.filter(|name| !name.is_empty()).collect(),
            addresses: AddressRule::of(arguments.allowed_endpoint_networks),
        }
    }
}

impl StorageRules {
    /// Whether an object of this namespace without credentials may use the controller's identity for this endpoint.
    pub fn check_ambient(
        &self,
        namespace: &str,
        endpoint: Option<&str>,
    ) -> Result<(), AmbientRefusal> {
        if endpoint.is_some() {
            return Err(AmbientRefusal::Endpoint);
        }
        if !self.ambient.contains(namespace) {
            return Err(AmbientRefusal::Namespace(namespace.to_owned()));
        }
        Ok(())
    }

    /// The rule for the addresses of an endpoint. The list of the operator is about endpoints: AWS itself, whose addresses
    /// change, only has to be ordinary.
    pub fn addresses(&self, endpoint: Option<&str>) -> AddressRule {
        endpoint.map_or(AddressRule::Ordinary, |_| self.addresses.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        storage: StorageArguments,
    }

    fn rules(arguments: &[&str]) -> StorageRules {
        let all = std::iter::once("program").chain(arguments.iter().copied());
        Program::try_parse_from(all).unwrap().storage.into()
    }

    #[test]
    fn ambient_identity_is_off_unless_the_namespace_is_named() {
        let refused = Err(AmbientRefusal::Namespace("shop".to_owned()));
        assert_eq!(rules(&[]).check_ambient("shop", None), refused);
        let rules = rules(&["--ambient-credentials-namespaces", "shop, finance,"]);
        assert_eq!(rules.check_ambient("shop", None), Ok(()));
        assert_eq!(rules.check_ambient("finance", None), Ok(()));
        for other in ["sho", "shop2", ""] {
            assert!(rules.check_ambient(other, None).is_err(), "{other:?}");
        }
        let endpoint = Some("https://s3.example.com");
        let refused = Err(AmbientRefusal::Endpoint);
        assert_eq!(rules.check_ambient("shop", endpoint), refused);
    }

    #[test]
    fn networks_concern_endpoints_not_aws() {
        let rules = rules(&["--allowed-endpoint-networks=127.0.0.0/8,10.0.0.7"]);
        let endpoint = rules.addresses(Some("http://127.0.0.1:9000"));
        for (address, allowed) in [("127.0.0.1", true), ("10.0.0.7", true), ("10.0.0.8", false)] {
            let checked = endpoint.check(address.parse().unwrap());
            assert_eq!(checked.is_ok(), allowed, "{address}");
        }
        assert_eq!(rules.addresses(None), AddressRule::Ordinary);
    }

    #[test]
    fn what_is_no_network_is_refused_with_an_example() {
        let error = network("s3.example.com").unwrap_err();
        assert!(error.contains("10.0.0.0/8"), "{error}");
    }
}
