//! What an answer says of the messages of its request.
//!
//! ```text
//!   429, 503 ─────────────── Refused: nothing was tried; all slow down
//!   2xx ───── Each: done, but for those that it names
//!   other ─── one message: retry, or rejected where it says so
//!         └── several: Failed, and asked again in halves
//! ```

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::{Form, Kind};

/// Says in an answer why its message is to be rejected.
const REJECT: &str = "leasehold-reject";
/// The field of an answer that names messages.
const FAILURES: &str = "batchItemFailures";
/// What some servers begin a text in UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes of an answer that are told when it is an error.
const TOLD_BYTES_MAX: usize = 200;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Of each message, in the order of the request.
    Each(Vec<Outcome>),
    /// Of all together.
    Failed(Failed),
    /// The endpoint did not try; it may later.
    Refused(Failed),
}

/// What shall become of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Again, after the time or when the policy says.
    Retry(Option<Duration>),
    /// Again after the time: it has to wait, and nothing has failed.
    Postpone(Duration),
    Reject(String),
}

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) kind: Kind,
    pub(crate) why: String,
    /// What the endpoint asks for.
    pub(crate) retry_after: Option<Duration>,
}

impl Failed {
    pub(crate) fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), retry_after: None }
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether a body that breaks off can be told from one that is over.
    pub(crate) is_bounded: bool,
}

/// How answers are read.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) form: Form,
    pub(crate) reject_statuses: Vec<u16>,
}

/// Whether a status says "not now" of the endpoint and nothing of the messages.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status)
}

impl Rules {
    /// What an answer says of the messages with these ids.
    pub(crate) fn judge(&self, ids: &[String], answer: &Answer) -> Verdict {
        let failed = |kind, why: String| Failed {
            retry_after: retry_after(&answer.headers),
            ..Failed::new(kind, why)
        };
        if is_refusal(answer.status) {
            return Verdict::Refused(failed(Kind::Refused, told(answer)));
        }
        if answer.status.is_success() {
            return match self.failures(ids, answer) {
                Ok(outcomes) => Verdict::Each(outcomes),
                Err(why) => Verdict::Failed(failed(Kind::Answer, why)),
            };
        }
        match self.rejection(answer) {
            Some(why) if ids.len() == 1 => Verdict::Each(vec![Outcome::Reject(why)]),
            _ => Verdict::Failed(failed(Kind::Status, told(answer))),
        }
    }

    fn rejection(&self, answer: &Answer) -> Option<String> {
        let header =
            answer.headers.get(REJECT).map(|why| String::from_utf8_lossy(why.as_bytes()).into_owned());
        let is_listed = self.reject_statuses.contains(&answer.status.as_u16());
        header.or_else(|| is_listed.then(|| told(answer)))
    }

    /// The outcomes that a successful answer tells.
    fn failures(&self, ids: &[String], answer: &Answer) -> Result<Vec<Outcome>, String> {
        let mut outcomes = vec![Outcome::Done; ids.len()];
        let may_break_off = !answer.is_bounded && begins_an_object(&answer.body);
        let may_tell = answer.is_json() || names_failures(&answer.body) || may_break_off;
        if self.form == Form::Raw || answer.body.is_empty() || !may_tell {
            return Ok(outcomes);
        }
        let told = serde_json::from_slice::<Option<Told>>(&answer.body)
            .map_err(|error| format!("the answer is not as documented: {error}"))?;
        let places = ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect::<HashMap<_, _>>();
        for item in told.and_then(|told| told.batch_item_failures).unwrap_or_default() {
            let Some(at) = places.get(item.item_identifier.as_str()) else {
                return Err(format!(
                    "the answer names {:?}, which it was not asked about",
                    item.item_identifier
                ));
            };
            outcomes[*at] = item.outcome();
        }
        Ok(outcomes)
    }
}

impl Answer {
    /// Whether it says that it is JSON.
    pub(crate) fn is_json(&self) -> bool {
        let Some(Ok(content_type)) = self.headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
            return false;
        };
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type == "application/json" || media_type.ends_with("+json")
    }
}

/// Whether a body that does not say what it is names messages that failed: many servers call JSON plain text unless they are told. What
/// has the word and is not of the form, because it broke off perhaps, is not to be taken for a success.
fn names_failures(body: &[u8]) -> bool {
    body.windows(FAILURES.len()).any(|bytes| bytes == FAILURES.as_bytes())
}

/// Whether a body is an object, or the beginning of one that broke off before the word.
fn begins_an_object(body: &[u8]) -> bool {
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    text.trim_ascii_start().starts_with(b"{")
}

/// The answer of a batch. Other fields are the endpoint's own.
#[derive(Deserialize)]
struct Told {
    #[serde(rename = "batchItemFailures")]
    batch_item_failures: Option<Vec<Item>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    item_identifier: String,
    retry_after_ms: Option<u64>,
    postpone_ms: Option<u64>,
    reject: Option<String>,
}

impl Item {
    fn outcome(self) -> Outcome {
        match (self.reject, self.postpone_ms) {
            (Some(why), _) => Outcome::Reject(why),
            (None, Some(delay_ms)) => Outcome::Postpone(Duration::from_millis(delay_ms)),
            (None, None) => Outcome::Retry(self.retry_after_ms.map(Duration::from_millis)),
        }
    }
}

/// The status, and the beginning of what comes with it.
fn told(answer: &Answer) -> String {
    let mut text = String::from_utf8_lossy(&answer.body).into_owned();
    text.truncate(text.floor_char_boundary(TOLD_BYTES_MAX));
    let text = text.trim().replace(char::is_control, " ");
    if text.is_empty() { answer.status.to_string() } else { format!("{}: {text}", answer.status) }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<String> {
        ["0:1", "0:2", "0:3"].map(str::to_owned).to_vec()
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &'static str) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: body.into(),
            is_bounded: true,
        }
    }

    fn judge(ids: &[String], answer: &Answer) -> Verdict {
        Rules { form: Form::Batch, reject_statuses: vec![422] }.judge(ids, answer)
    }

    const JSON: &[(&str, &str)] = &[("content-type", "application/json; charset=utf-8")];

    #[test]
    fn a_success_is_of_all_messages_but_those_that_it_names() {
        let done = Verdict::Each(vec![Outcome::Done; 3]);
        for body in
            ["", "null", "{}", r#"{"batchItemFailures":[]}"#, r#"{"batchItemFailures":null,"more":1}"#]
        {
            assert_eq!(judge(&ids(), &answer(200, JSON, body)), done, "{body}");
        }
        assert_eq!(judge(&ids(), &answer(204, &[], "")), done);
        assert_eq!(judge(&ids(), &answer(200, &[("content-type", "text/plain")], "{")), done);
        let body = r#"{"batchItemFailures":[
            {"itemIdentifier":"0:3","reject":"no such user"},{"itemIdentifier":"0:1","retryAfterMs":1500,"note":"busy"},
            {"itemIdentifier":"0:2","postponeMs":2500}]}"#;
        let told = Verdict::Each(vec![
            Outcome::Retry(Some(Duration::from_millis(1_500))),
            Outcome::Postpone(Duration::from_millis(2_500)),
            Outcome::Reject("no such user".to_owned()),
        ]);
        assert_eq!(judge(&ids(), &answer(200, JSON, body)), told);
    }

    #[test]
    fn failures_are_heard_whatever_an_answer_calls_itself() {
        let body = r#" {"batchItemFailures":[{"itemIdentifier":"0:2"}]}"#;
        let told = Verdict::Each(vec![Outcome::Done, Outcome::Retry(None), Outcome::Done]);
        let broken = r#"{"batchItemFailures":["0:2"]}"#;
        for headers in [&[][..], &[("content-type", "text/plain; charset=utf-8")], &[("content-type", "é")]]
        {
            assert_eq!(judge(&ids(), &answer(200, headers, body)), told, "{headers:?}");
            let verdict = judge(&ids(), &answer(200, headers, broken));
            assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
        }
    }

    /// Such as one of HTTP/1.0, which ends with its connection.
    #[test]
    fn failures_in_a_body_that_broke_off_are_not_taken_for_a_success() {
        let text = &[("content-type", "text/plain")][..];
        let whole = "\u{feff}{\"batchItemFailures\":[{\"itemIdentifier\":\"0:2\"}]}";
        for body in [r#"{"batchItemFailures":[{"itemIdentifier":"0:2"},{"ite"#, whole] {
            for (headers, is_bounded) in [(text, true), (text, false), (JSON, false), (&[][..], false)] {
                let verdict = judge(&ids(), &Answer { is_bounded, ..answer(200, headers, body) });
                assert!(matches!(verdict, Verdict::Failed(_)), "{body}: {verdict:?}");
            }
        }
        // Before the word, only the end that is missing tells.
        let unbounded = |body| judge(&ids(), &Answer { is_bounded: false, ..answer(200, text, body) });
        for body in ["{", " \r\n{\"batchItemFai", "\u{feff} {\"batch"] {
            assert!(matches!(unbounded(body), Verdict::Failed(_)), "{body}");
        }
        for body in ["", "ok", "{}", r#"{"handled":3}"#] {
            assert_eq!(unbounded(body), Verdict::Each(vec![Outcome::Done; 3]), "{body}");
        }
    }

    #[test]
    fn a_success_that_cannot_be_understood_is_a_failure() {
        for body in [
            "{",
            "[]",
            "\"done\"",
            r#"{"batchItemFailures":[{}]}"#,
            r#"{"batchItemFailures":["0:1"]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":"0:1"},{"itemIdentifier":"9:9"}]}"#,
        ] {
            let verdict = judge(&ids(), &answer(200, JSON, body));
            assert!(
                matches!(&verdict, Verdict::Failed(failed) if failed.kind == Kind::Answer),
                "{body}: {verdict:?}"
            );
        }
    }

    #[test]
    fn not_now_says_nothing_of_the_messages() {
        for status in [429, 503] {
            let answer = answer(status, &[("retry-after", "7"), ("leasehold-reject", "no")], "slow down");
            let Verdict::Refused(failed) = judge(&ids(), &answer) else { panic!("{status} is a refusal") };
            assert_eq!((failed.kind, failed.retry_after), (Kind::Refused, Some(Duration::from_secs(7))));
            assert!(failed.why.contains("slow down"), "{}", failed.why);
        }
    }

    #[test]
    fn a_rejection_is_of_one_message() {
        let one = &ids()[..1];
        let rejected = |why: &str| Verdict::Each(vec![Outcome::Reject(why.to_owned())]);
        let (by_header, by_status) =
            (answer(400, &[("leasehold-reject", "no such user")], ""), answer(422, &[], "bad\nfield"));
        assert_eq!(judge(one, &by_header), rejected("no such user"));
        assert_eq!(judge(one, &by_status), rejected("422 Unprocessable Entity: bad field"));
        for answer in [by_header, by_status] {
            assert!(matches!(judge(&ids(), &answer), Verdict::Failed(_)));
        }
        for status in [302, 400, 404, 500, 502] {
            let verdict = judge(one, &answer(status, &[], ""));
            assert!(
                matches!(&verdict, Verdict::Failed(failed) if failed.kind == Kind::Status),
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn a_raw_answer_is_not_read() {
        let rules = Rules { form: Form::Raw, reject_statuses: Vec::new() };
        assert_eq!(rules.judge(&ids()[..1], &answer(200, JSON, "{")), Verdict::Each(vec![Outcome::Done]));
    }

    #[test]
    fn a_time_to_wait_is_seconds_or_a_date() {
        let wait = |text: &str| retry_after(&answer(503, &[("retry-after", text)], "").headers);
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(
            wait("Wed, 21 Oct 2099 07:28:00 GMT").is_some_and(|wait| wait > Duration::from_secs(1_000_000))
        );
        assert_eq!((wait("soon"), wait("-1")), (None, None));
    }

    #[test]
    fn what_is_told_of_an_error_is_short() {
        let long = Box::leak("é".repeat(TOLD_BYTES_MAX).into_boxed_str());
        assert!(told(&answer(500, &[], long)).len() < TOLD_BYTES_MAX + 40);
    }
}
