//! The HTTP client of a store: dials only addresses that the operator's rule allows.
//!
//! A name is resolved once and the connection goes to the addresses that were checked, so that a name server cannot answer
//! differently for the check and for the connection. An address that is written out is checked in each request, because the
//! client puts the bucket into the host. Redirects are never followed: hyper follows none, and neither does the S3 client.

use super::{addresses::AddressRule, authority::CertificateAuthority};
use aws_sdk_s3::config::{HttpClient, RuntimeComponents, SharedHttpClient, http::HttpRequest};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    dns::{DnsFuture, ResolveDns, ResolveDnsError},
    http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    result::ConnectorError,
};
use std::net::IpAddr;
use tokio::net::lookup_host;

/// A client for one store. `authority` replaces the certificates of the image; a store without TLS needs none of them.
pub(super) fn http_client(
    rule: AddressRule,
    encrypted: bool,
    authority: Option<&CertificateAuthority>,
) -> SharedHttpClient {
    let trusted = match authority {
        Some(authority) => TrustStore::empty().with_pem_certificate(authority.pem()),
        None if encrypted => TrustStore::default(),
        None => TrustStore::empty(),
    };
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let mut builder = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    if let Ok(context) = context {
        builder = builder.tls_context(context);
    }
    let resolver = CheckedResolver { rule: rule.clone() };
    let dialling = builder.build_with_resolver(resolver);
    SharedHttpClient::new(CheckedClient { dialling, rule })
}

/// Resolves names to the addresses that the rule allows.
#[derive(Clone, Debug)]
struct CheckedResolver {
    rule: AddressRule,
}

impl ResolveDns for CheckedResolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            // Bounded by the connect timeout, which covers the resolution.
            let found = lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in found.map(|address| address.ip()) {
                match self.rule.check(address) {
                    Ok(()) => allowed.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(error) if allowed.is_empty() => Err(ResolveDnsError::new(error)),
                _ => Ok(allowed),
            }
        })
    }
}

/// Refuses requests to addresses that are written out, which need no resolver.
#[derive(Debug)]
struct CheckedClient {
    dialling: SharedHttpClient,
    rule: AddressRule,
}

impl HttpClient for CheckedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(CheckedConnector {
            dialling: self.dialling.http_connector(settings, components),
            rule: self.rule.clone(),
        })
    }
}

#[derive(Debug)]
struct CheckedConnector {
    dialling: SharedHttpConnector,
    rule: AddressRule,
}

impl HttpConnector for CheckedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let checked = written_out(request.uri()).map_or(Ok(()), |address| self.rule.check(address));
        match checked {
            Ok(()) => self.dialling.call(request),
            Err(refused) => {
                HttpConnectorFuture::ready(Err(ConnectorError::user(Box::new(refused))))
            }
        }
    }
}

/// The host of a URI, if it is an address: read as hyper reads it, which asks the resolver for everything else.
fn written_out(uri: &str) -> Option<IpAddr> {
    let uri: http::Uri = uri.parse().ok()?;
    let host = uri.host()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_read_out_of_a_uri() {
        for (uri, address) in [
            ("http://127.0.0.1:9000/backups/key?x=1", Some("127.0.0.1")),
            ("https://[::ffff:127.0.0.1]/key", Some("::ffff:127.0.0.1")),
            ("http://s3.example.com:9000/", None),
            ("http://2130706433/", None),
            ("http://0x7f.1/", None),
        ] {
            let expected = address.map(|text| text.parse().unwrap());
            assert_eq!(written_out(uri), expected, "{uri}");
        }
    }
}
