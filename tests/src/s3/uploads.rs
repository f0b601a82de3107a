//! What the server of files lacks and real stores have: it takes any checksum with any part, and cannot list unfinished uploads.

use super::{refusal, take_in};
use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The longest answer to the beginning of an upload.
const LONGEST_ANSWER: usize = 1 << 16;

/// Uploads that were begun and have not ended, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Uploads {
    begun: Arc<Mutex<BTreeMap<String, Begun>>>,
}

#[derive(Debug)]
struct Begun {
    /// `/bucket/key`.
    path: String,
    /// Whether it was begun with an algorithm for checksums.
    summed: bool,
}

/// Whether a query asks for unfinished uploads.
pub(super) fn is_listing(query: &str) -> bool {
    matches!(query.split(['&', '=']).next(), Some("uploads"))
}

/// Behaves as AWS does: a part with a checksum belongs to an upload that was begun with the checksum's algorithm.
pub(super) async fn as_at_aws(
    State(uploads): State<Uploads>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let algorithm = request.headers().contains_key("x-amz-checksum-algorithm");
    let checksum = request.headers().contains_key("x-amz-checksum-crc32");
    let id = value(&query, "uploadId");
    match (method, id) {
        (Method::POST, None) if is_listing(&query) => {
            uploads
                .begins(path, algorithm, next.run(request).await)
                .await
        }
        (Method::GET, None) if is_listing(&query) => uploads.list(&path, &query),
        (Method::PUT, Some(id)) if checksum && !uploads.is_summed(id) => {
            take_in(request, usize::MAX).await;
            refusal(StatusCode::BAD_REQUEST, "InvalidPart")
        }
        (Method::POST | Method::DELETE, Some(id)) => {
            let answer = next.run(request).await;
            if answer.status().is_success() {
                uploads.lock().remove(id);
            }
            answer
        }
        _ => next.run(request).await,
    }
}

impl Uploads {
    async fn begins(&self, path: String, summed: bool, answer: Response) -> Response {
        let (head, body) = answer.into_parts();
        let Ok(body) = to_bytes(body, LONGEST_ANSWER).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let text = String::from_utf8_lossy(&body).into_owned();
        let id = text.split_once("<UploadId>");
        if let Some((id, _)) = id.and_then(|(_, rest)| rest.split_once("</UploadId>")) {
            self.lock().insert(id.to_owned(), Begun { path, summed });
        }
        Response::from_parts(head, Body::from(body))
    }

    fn is_summed(&self, id: &str) -> bool {
        self.lock().get(id).is_some_and(|begun| begun.summed)
    }

    fn list(&self, path: &str, query: &str) -> Response {
        let bucket = path.trim_matches('/');
        // A slash is the only character of a key that needs an escape here.
        let prefix = value(query, "prefix").unwrap_or_default();
        let start = format!("/{bucket}/{}", prefix.replace("%2F", "/"));
        let begun = self.lock();
        let below = begun.iter().filter(|(_, one)| one.path.starts_with(&start));
        let uploads = below.map(|(id, one)| {
            let key = one.path.get(bucket.len() + 2..).unwrap_or_default();
            format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>")
        });
        let uploads = uploads.collect::<Vec<_>>().concat();
        let text = format!(
            "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>{bucket}</Bucket>{uploads}<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
        );
        text.into_response()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of a name in a query.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}
