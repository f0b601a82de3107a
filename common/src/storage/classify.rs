//! Makes one of our causes, and a short text without secrets, of what the S3 client reports.

use super::{error::S3Cause, location::Credentials};
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use std::error::Error;

/// The longest piece of a server's or library's text that goes into an error.
const LONGEST_DETAIL: usize = 240;

/// Cause of a failed request, and what was said: raw, to be shown only as a [`remark`].
pub(crate) fn classify<E>(error: &SdkError<E, HttpResponse>) -> (S3Cause, String)
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default();
            let status = service.raw().status().as_u16();
            let message = service.err().message().unwrap_or_default();
            (of_answer(code, status), answer(code, status, message))
        }
        SdkError::TimeoutError(_) => (S3Cause::Timeout, String::new()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            (S3Cause::Timeout, root_cause(error))
        }
        SdkError::DispatchFailure(_) => of_transport(error, S3Cause::Connection),
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let text = root_cause(error);
            match status {
                200..=299 => (S3Cause::BadBody, text),
                _ => (of_answer("", status), format!("HTTP {status}: {text}")),
            }
        }
        SdkError::ConstructionFailure(_) => of_transport(error, S3Cause::Refused),
        _ => (S3Cause::Refused, root_cause(error)),
    }
}

/// What was said, in a form that may be shown. Secrets go first: of one that is cut in half, half would be left.
pub(crate) fn remark(said: &str, credentials: Option<&Credentials>) -> String {
    shorten(match credentials {
        Some(credentials) => credentials.redact(said),
        None => said.to_owned(),
    })
}

/// Codes as S3 and its imitators use them; where an answer has no body (HEAD), the status alone decides.
fn of_answer(code: &str, status: u16) -> S3Cause {
    match code {
        "NoSuchBucket" => S3Cause::NoSuchBucket,
        "NoSuchKey" | "NotFound" => S3Cause::NoSuchKey,
        "NoSuchUpload" => S3Cause::NoSuchUpload,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => S3Cause::AccessDenied,
        "InvalidAccessKeyId" | "NotSignedUp" => S3Cause::InvalidAccessKey,
        "SignatureDoesNotMatch" => S3Cause::WrongSecret,
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => S3Cause::ExpiredToken,
        "RequestTimeTooSkewed" => S3Cause::ClockSkew,
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => {
            S3Cause::WrongRegion
        }
        "NotImplemented" | "MethodNotAllowed" => S3Cause::NotImplemented,
        "SlowDown" | "SlowDownWrite" | "SlowDownRead" | "TooManyRequests" | "OperationAborted" => {
            S3Cause::Throttled
        }
        "RequestTimeout" => S3Cause::Timeout,
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => S3Cause::BadBody,
        _ => of_status(status),
    }
}

fn of_status(status: u16) -> S3Cause {
    match status {
        301 | 302 | 307 | 308 => S3Cause::WrongRegion,
        401 | 403 => S3Cause::AccessDenied,
        404 => S3Cause::NoSuchKey,
        408 => S3Cause::Timeout,
        429 => S3Cause::Throttled,
        405 | 501 => S3Cause::NotImplemented,
        500.. => S3Cause::ServerFault,
        _ => S3Cause::Refused,
    }
}

fn answer(code: &str, status: u16, message: &str) -> String {
    match (code, message) {
        ("", _) => format!("HTTP {status}"),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    }
}

/// The client reports missing credentials and untrusted certificates as text only.
fn of_transport(error: &(dyn Error + 'static), otherwise: S3Cause) -> (S3Cause, String) {
    let text = root_cause(error);
    let chain = chain(error);
    let cause = if chain.contains("UnknownIssuer") || chain.contains("invalid peer certificate") {
        S3Cause::UntrustedCertificate
    } else if chain.contains("credentials") || chain.contains("no providers in chain") {
        S3Cause::NoCredentials
    } else {
        otherwise
    };
    (cause, text)
}

/// Text of the innermost error; raw, as what [`classify`] gives.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let innermost = sources(error).last().map(ToString::to_string);
    innermost.unwrap_or_default()
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<String> = sources(error).map(ToString::to_string).collect();
    texts.join(": ")
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn shorten(text: String) -> String {
    if text.chars().count() <= LONGEST_DETAIL {
        return text;
    }
    text.chars().take(LONGEST_DETAIL).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_before_statuses() {
        assert_eq!(of_answer("NoSuchBucket", 404), S3Cause::NoSuchBucket);
        assert_eq!(of_answer("", 404), S3Cause::NoSuchKey);
        assert_eq!(of_answer("RequestTimeout", 400), S3Cause::Timeout);
        assert_eq!(of_answer("InvalidArgument", 400), S3Cause::Refused);
        assert_eq!(of_answer("SlowDown", 503), S3Cause::Throttled);
        assert_eq!(of_answer("Whatever", 503), S3Cause::ServerFault);
        assert_eq!(
            of_answer("InvalidAccessKeyId", 403),
            S3Cause::InvalidAccessKey
        );
        assert_eq!(of_answer("", 403), S3Cause::AccessDenied);
        assert_eq!(of_answer("NotImplemented", 501), S3Cause::NotImplemented);
        assert_eq!(of_answer("", 405), S3Cause::NotImplemented);
    }

    #[test]
    fn a_secret_across_the_cut_shows_not_even_its_half() {
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let key = Credentials::new("AKIAEXAMPLE".to_owned(), secret.to_owned().into(), None);
        let said = "x".repeat(LONGEST_DETAIL - 10) + secret;
        let shown = remark(&said, Some(&key));
        assert!(!shown.contains("wJal"), "{shown}");
        assert!(remark(&said, None).contains("wJal"), "nothing was cut");
    }

    #[test]
    fn long_texts_are_cut() {
        let cut = shorten("ä".repeat(1000));
        assert_eq!(cut.chars().count(), LONGEST_DETAIL + 1);
    }
}
