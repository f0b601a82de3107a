//! Makes one of our causes, and a short text without secrets, of what the S3 client reports.

use super::{
    addresses::RefusedAddress, cause::S3Cause, location::Credentials, operation::S3Operation,
};
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use std::error::Error;

/// The longest piece of a server's or library's text that goes into an error.
const LONGEST_DETAIL: usize = 240;

/// What was asked, as far as it explains a refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) operation: S3Operation,
    /// Whether the store is another than AWS.
    pub(crate) has_endpoint: bool,
    /// Whether requests carry CRC checksums wherever they can.
    pub(crate) checksums: bool,
}

/// What a store answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answer<'a> {
    status: u16,
    /// Code of S3; empty where the answer has no body, as with HEAD.
    code: &'a str,
    message: &'a str,
    /// Where a redirect points to.
    location: Option<&'a str>,
    /// The region that AWS names beside a redirect.
    region: Option<&'a str>,
}

/// Cause of a failed request, and what was said: raw, to be shown only as a [`remark`].
pub(crate) fn classify<E>(error: &SdkError<E, HttpResponse>, asked: Asked) -> (S3Cause, String)
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let answer = Answer {
                code: service.err().code().unwrap_or_default(),
                message: service.err().message().unwrap_or_default(),
                ..Answer::head(service.raw())
            };
            (answer.cause(asked), answer.detail())
        }
        SdkError::TimeoutError(_) => (S3Cause::Timeout, String::new()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            (S3Cause::Timeout, root_cause(error))
        }
        SdkError::DispatchFailure(_) => of_transport(error, S3Cause::Connection),
        SdkError::ResponseError(response) => {
            let answer = Answer::head(response.raw());
            let text = root_cause(error);
            match answer.status {
                200..=299 => (S3Cause::BadBody, text),
                300..=399 => (answer.cause(asked), answer.detail()),
                status => (answer.cause(asked), format!("HTTP {status}: {text}")),
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

impl<'a> Answer<'a> {
    fn head(raw: &'a HttpResponse) -> Self {
        Self {
            status: raw.status().as_u16(),
            location: raw.headers().get("location"),
            region: raw.headers().get("x-amz-bucket-region"),
            ..Self::default()
        }
    }

    /// Codes as S3 and its imitators use them.
    fn cause(&self, asked: Asked) -> S3Cause {
        if self.refuses_checksums(asked) {
            return S3Cause::ChecksumsRefused;
        }
        match self.code {
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
            "SlowDown" | "SlowDownWrite" | "SlowDownRead" | "TooManyRequests"
            | "OperationAborted" => S3Cause::Throttled,
            "RequestTimeout" => S3Cause::Timeout,
            "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => S3Cause::BadBody,
            _ => self.cause_of_status(asked),
        }
    }

    fn cause_of_status(&self, asked: Asked) -> S3Cause {
        match self.status {
            300..=399 if self.region.is_some() || !asked.has_endpoint => S3Cause::WrongRegion,
            300..=399 => S3Cause::Redirected,
            401 | 403 => S3Cause::AccessDenied,
            404 => S3Cause::NoSuchKey,
            408 => S3Cause::Timeout,
            429 => S3Cause::Throttled,
            405 | 501 => S3Cause::NotImplemented,
            500.. => S3Cause::ServerFault,
            _ => S3Cause::Refused,
        }
    }

    /// Stores answer in many ways to headers that they do not know: with codes of their own, or with one that names the
    /// header in its message.
    fn refuses_checksums(&self, asked: Asked) -> bool {
        let carried = asked.checksums && asked.has_endpoint && asked.operation.carries_checksum();
        let message = self.message.to_lowercase();
        let named = ["checksum", "x-amz-sdk", "x-amz-trailer", "aws-chunked"];
        carried
            && (400..=501).contains(&self.status)
            && match self.code {
                "NotImplemented"
                | "InvalidArgument"
                | "InvalidRequest"
                | "MalformedTrailerError"
                | "XAmzContentSHA256Mismatch" => true,
                "" => matches!(self.status, 400 | 501),
                _ => named.iter().any(|word| message.contains(word)),
            }
    }

    fn detail(&self) -> String {
        match (self.location, self.code, self.message) {
            // Without its query, which may hold a signature.
            (Some(location), _, _) if (300..400).contains(&self.status) => {
                let target = location.split('?').next().unwrap_or_default();
                format!("HTTP {} to {target}", self.status)
            }
            (_, "", _) => format!("HTTP {}", self.status),
            (_, code, "") => code.to_owned(),
            (_, code, message) => format!("{code}: {message}"),
        }
    }
}

/// The client reports missing credentials and untrusted certificates as text only.
fn of_transport(error: &(dyn Error + 'static), otherwise: S3Cause) -> (S3Cause, String) {
    let text = root_cause(error);
    let chain = chain(error);
    let cause = if sources(error).any(<dyn Error>::is::<RefusedAddress>) {
        S3Cause::AddressRefused
    } else if chain.contains("UnknownIssuer") || chain.contains("invalid peer certificate") {
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

    const ASKED: Asked = Asked {
        operation: S3Operation::Write,
        has_endpoint: true,
        checksums: false,
    };

    fn cause(code: &str, status: u16) -> S3Cause {
        let answer = Answer {
            status,
            code,
            ..Answer::default()
        };
        answer.cause(ASKED)
    }

    #[test]
    fn codes_come_before_statuses() {
        assert_eq!(cause("NoSuchBucket", 404), S3Cause::NoSuchBucket);
        assert_eq!(cause("", 404), S3Cause::NoSuchKey);
        assert_eq!(cause("RequestTimeout", 400), S3Cause::Timeout);
        assert_eq!(cause("InvalidArgument", 400), S3Cause::Refused);
        assert_eq!(cause("SlowDown", 503), S3Cause::Throttled);
        assert_eq!(cause("Whatever", 503), S3Cause::ServerFault);
        assert_eq!(cause("InvalidAccessKeyId", 403), S3Cause::InvalidAccessKey);
        assert_eq!(cause("", 403), S3Cause::AccessDenied);
        assert_eq!(cause("NotImplemented", 501), S3Cause::NotImplemented);
        assert_eq!(cause("", 405), S3Cause::NotImplemented);
    }

    #[test]
    fn a_redirect_is_a_region_only_where_aws_says_so() {
        let redirect = Answer {
            status: 308,
            location: Some("https://s3.example.com/backups?X-Amz-Signature=abc"),
            ..Answer::default()
        };
        for status in [301, 302, 307, 308] {
            let answer = Answer { status, ..redirect };
            assert_eq!(answer.cause(ASKED), S3Cause::Redirected, "{status}");
        }
        assert_eq!(
            redirect.detail(),
            "HTTP 308 to https://s3.example.com/backups"
        );
        let region = Some("eu-central-1");
        assert_eq!(
            Answer { region, ..redirect }.cause(ASKED),
            S3Cause::WrongRegion
        );
        assert_eq!(cause("PermanentRedirect", 301), S3Cause::WrongRegion);
        let aws = Asked {
            has_endpoint: false,
            ..ASKED
        };
        assert_eq!(redirect.cause(aws), S3Cause::WrongRegion);
    }

    #[test]
    fn refused_checksum_headers_are_named_where_they_were_sent() {
        let refusal = Answer {
            status: 400,
            code: "InvalidArgument",
            message: "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a valid sha256 value",
            ..Answer::default()
        };
        let always = Asked {
            checksums: true,
            ..ASKED
        };
        assert_eq!(refusal.cause(always), S3Cause::ChecksumsRefused);
        let header = Answer {
            code: "Unsupported",
            message: "header x-amz-checksum-crc32 is not supported",
            ..refusal
        };
        assert_eq!(header.cause(always), S3Cause::ChecksumsRefused);
        let listing = Asked {
            operation: S3Operation::List,
            ..always
        };
        for asked in [ASKED, listing] {
            assert_eq!(refusal.cause(asked), S3Cause::Refused);
        }
        let denied = Answer {
            code: "AccessDenied",
            message: "",
            status: 403,
            ..refusal
        };
        assert_eq!(denied.cause(always), S3Cause::AccessDenied);
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
