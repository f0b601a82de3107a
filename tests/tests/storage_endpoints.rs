//! What a tenant's endpoint cannot do: it cannot lead the controller to an address of its own pod or of a cloud's metadata
//! service, by no spelling, no name and no redirect. And what it can do: use a certificate of a private authority.

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use common::storage::{
    AddressRule, CertificateAuthority, Checksums, Credentials, Location, ObjectStore, S3Cause,
    StorageError, StoreAccess, StoreIdentity, location::Given,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tests::s3::{TestBucket, on_loopback};
use tokio::net::TcpListener;

fn credentials() -> Credentials {
    Credentials::new("TENANT".to_owned(), "tenant-secret".to_owned().into(), None)
}

/// Access as a tenant has it where the operator has set no flag.
fn ordinary() -> StoreAccess {
    StoreAccess {
        identity: StoreIdentity::AccessKey(credentials()),
        addresses: AddressRule::Ordinary,
        authority: None,
    }
}

async fn open(given: Given<'_>, access: StoreAccess) -> Result<ObjectStore> {
    Ok(ObjectStore::connect(Location::new(&given)?, access).await)
}

/// A server that counts the connections that reach it.
async fn counting() -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    Ok((address, count))
}

/// A server that answers every request in this way.
async fn answering(
    answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer(request);
        async move { answer }
    });
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(address)
}

fn is(error: &StorageError, cause: S3Cause, words: &str) {
    assert_eq!(error.cause(), Some(cause), "{error}");
    let text = error.to_string();
    assert!(text.contains(words), "{words:?} is missing in: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_refused_address_gets_a_connection() -> Result<()> {
    let (server, connections) = counting().await?;
    let port = server.port();
    let both = &["http", "https"][..];
    // A certificate cannot name such a host: TLS refuses it before any address is dialled.
    let http = &["http"][..];
    for (host, bucket, path_style, schemes) in [
        ("127.0.0.1", "backups", true, both),
        ("localhost", "backups", true, both),
        ("[::ffff:127.0.0.1]", "backups", true, both),
        ("0.0.0.0", "backups", true, both),
        // Numbers that only the resolver reads.
        ("2130706433", "backups", true, http),
        ("0x7f000001", "backups", true, http),
        // The client puts the bucket in front of the host.
        ("0.1", "127.0", false, http),
        ("1", "127.0.0", false, http),
    ] {
        for scheme in schemes {
            let endpoint = format!("{scheme}://{host}:{port}");
            let given = Given {
                bucket,
                endpoint: Some(&endpoint),
                force_path_style: Some(path_style),
                ..Given::default()
            };
            let store = open(given, ordinary()).await?;
            let error = store.probe("shop/").await.expect_err(&endpoint);
            is(
                &error,
                S3Cause::AddressRefused,
                "--allowed-endpoint-networks",
            );
        }
    }
    let connections = connections.load(Ordering::SeqCst);
    assert_eq!(connections, 0, "connections were made");
    Ok(())
}

#[tokio::test]
async fn metadata_addresses_are_refused_at_once() -> Result<()> {
    for host in [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "[fe80::1]",
    ] {
        let endpoint = format!("http://{host}");
        let given = Given {
            bucket: "latest",
            endpoint: Some(&endpoint),
            ..Given::default()
        };
        let error = open(given, ordinary()).await?.head("meta-data").await;
        is(
            &error.expect_err(host),
            S3Cause::AddressRefused,
            "does not allow",
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_network_is_reached_by_name_too() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let endpoint = format!("http://localhost:{}", bucket.server().address().port());
    let given = Given {
        bucket: TestBucket::NAME,
        endpoint: Some(&endpoint),
        ..Given::default()
    };
    let store = open(given, on_loopback(bucket.credentials())).await?;
    store.probe("shop/").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_named_and_never_followed() -> Result<()> {
    let (target, connections) = counting().await?;
    for status in [301, 302, 307, 308] {
        let location = format!("https://{target}/backups?X-Amz-Signature=abc");
        let server = answering(move |_| {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            (status, [(LOCATION, location.clone())]).into_response()
        });
        let endpoint = format!("http://{}", server.await?);
        let given = Given {
            bucket: "backups",
            endpoint: Some(&endpoint),
            ..Given::default()
        };
        let store = open(given, on_loopback(credentials())).await?;
        let listing = store.list("shop/", 1).await.expect_err("a redirect");
        is(
            &listing,
            S3Cause::Redirected,
            &format!("HTTP {status} to https://{target}/backups"),
        );
        let head = store
            .head("shop/manifest.json")
            .await
            .expect_err("a redirect");
        is(&head, S3Cause::Redirected, "never followed");
        assert!(!listing.to_string().contains("Signature"), "{listing}");
    }
    assert_eq!(
        connections.load(Ordering::SeqCst),
        0,
        "a redirect was followed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_checksum_headers_lead_to_never() -> Result<()> {
    let server = answering(|request| {
        let headers = request.headers();
        let summed = headers.keys().any(|name| {
            let name = name.as_str();
            name.starts_with("x-amz-checksum-") || name == "x-amz-trailer"
        });
        if !summed {
            return StatusCode::OK.into_response();
        }
        let body = "<?xml version=\"1.0\"?><Error><Code>InvalidArgument</Code><Message>unsupported header</Message></Error>";
        (StatusCode::BAD_REQUEST, body).into_response()
    });
    let endpoint = format!("http://{}", server.await?);
    let given = |checksums| Given {
        bucket: "backups",
        endpoint: Some(&endpoint),
        checksums,
        ..Given::default()
    };
    let always = open(given(Checksums::Always), on_loopback(credentials())).await?;
    let error = always.put("key", "{}".into(), "application/json").await;
    is(
        &error.expect_err("it was accepted"),
        S3Cause::ChecksumsRefused,
        "set checksums to Never",
    );
    let never = open(given(Checksums::Never), on_loopback(credentials())).await?;
    never.put("key", "{}".into(), "application/json").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_where_it_is_named() -> Result<()> {
    let (bucket, authority) = TestBucket::start_tls().await?;
    let (_other, another) = TestBucket::start_tls().await?;
    let connect = async |pem: Option<&[u8]>| {
        let authority = pem.map(CertificateAuthority::from_pem).transpose()?;
        let access = StoreAccess {
            authority,
            ..on_loopback(bucket.credentials())
        };
        anyhow::Ok(ObjectStore::connect(bucket.location()?, access).await)
    };
    let store = connect(Some(authority.pem())).await?;
    store
        .probe("shop/")
        .await
        .context("the authority that signed")?;
    store
        .put("shop/key", "{}".into(), "application/json")
        .await?;
    assert_eq!(store.get("shop/key", 10).await?, "{}");
    for untrusted in [None, Some(another.pem())] {
        let error = connect(untrusted).await?.probe("shop/").await;
        is(
            &error.expect_err("it was trusted"),
            S3Cause::UntrustedCertificate,
            "caSecretRef",
        );
    }
    Ok(())
}
