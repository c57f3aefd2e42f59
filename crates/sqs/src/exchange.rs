//! One request and its answer: the body is read within its limits, the signature is checked, the operation is served, and what comes
//! out is told in the protocol that the client speaks.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use leasehold_node::telemetry::names;
use metrics::{Counter, Histogram, Label, counter, histogram};
use serde_json::json;

use crate::answer::{Answer, AnswerRoom};
use crate::deadlines::Deadlines;
use crate::error::{Error, Kind};
use crate::form::{self, Form};
use crate::gateway::{Call, Gateway};
use crate::hex::{self, Digits};
use crate::limits::SMALL_BYTES_MAX;
use crate::operations::Operation;
use crate::room::{self, Room};
use crate::sessions::random;
use crate::signature::Signatures;
use crate::xml;

const JSON: &str = "application/x-amz-json-1.0";
const XML: &str = "text/xml";
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const TARGET_PREFIX: &str = "AmazonSQS.";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const QUERY_ERROR: HeaderName = HeaderName::from_static("x-amzn-query-error");
/// The host of URLs for a client that names none.
const NO_HOST: &str = "localhost";

/// The two ways in which clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Json,
    Query,
}

impl Protocol {
    fn of(parts: &Parts) -> Self {
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A client for Perl names its operation in both ways, and sends a form.
        let is_json = kind.starts_with("application/x-amz-json")
            || (parts.headers.contains_key(TARGET) && !form::is_announced(&parts.headers));
        if is_json { Self::Json } else { Self::Query }
    }
}

/// Serves requests; shared by all connections.
pub struct Exchange {
    gateway: Gateway,
    signatures: Signatures,
    room: Room,
    answers: AnswerRoom,
    series: Vec<Series>,
}

/// What is counted of one operation.
struct Series {
    done: Counter,
    latency: Histogram,
}

impl Exchange {
    pub fn new(gateway: Gateway, signatures: Signatures) -> Self {
        let node = gateway.service.node().to_owned();
        let series = |operation: &Operation| {
            let labels =
                || vec![Label::new(names::NODE, node.clone()), Label::new("operation", operation.name())];
            let mut counted = labels();
            counted.push(Label::new("code", "OK"));
            Series {
                done: counter!(names::SQS_REQUESTS, counted),
                latency: histogram!(names::SQS_LATENCY, labels()),
            }
        };
        let series = Operation::ALL.iter().map(series).collect();
        Self { gateway, signatures, room: Room::new(), answers: AnswerRoom::new(), series }
    }

    /// Answers a request, whatever it is, on a connection with these deadlines.
    pub async fn answer(&self, request: Request<Incoming>, deadlines: &Arc<Deadlines>) -> Response<Answer> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let protocol = Protocol::of(&parts);
        let mut operation = None;
        let outcome = self.serve(protocol, &parts, body, &mut operation).await;
        let request_id = request_id();
        let (text, mut error) = told(protocol, operation, outcome, &request_id);
        let answer = match self.answers.admit(text, deadlines).await {
            Ok(answer) => answer,
            Err(refusal) => {
                let (text, refusal) = told(protocol, operation, Err(refusal), &request_id);
                error = refusal;
                Answer::from(text)
            }
        };
        self.count(operation, started, error.as_ref());
        respond(protocol, error.as_ref(), &request_id, answer)
    }

    async fn serve(
        &self,
        protocol: Protocol,
        parts: &Parts,
        body: Incoming,
        operation: &mut Option<Operation>,
    ) -> Result<Bytes, Error> {
        let bytes_max = room::bytes_max(&body)?;
        // Who has no key takes no room.
        if bytes_max > SMALL_BYTES_MAX {
            self.signatures.check_head(parts)?;
        }
        let (body, _taken) = self.room.read(body, bytes_max).await?;
        self.signatures.check(parts, &body)?;
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        let call = Call {
            gateway: &self.gateway,
            host: host.unwrap_or(NO_HOST),
            path: parts.uri.path(),
            request: &body,
        };
        match protocol {
            Protocol::Json => {
                let target = parts.headers.get(TARGET).and_then(|target| target.to_str().ok());
                let name = target.and_then(|target| target.strip_prefix(TARGET_PREFIX));
                let asked = *operation.insert(asked(name)?);
                self.open_for(asked).await?;
                asked.serve(call).await
            }
            Protocol::Query => {
                let query = parts.uri.query().unwrap_or_default();
                let form = Form::read(query.as_bytes(), &body)?;
                let asked = *operation.insert(asked(form.action.as_deref())?);
                self.open_for(asked).await?;
                asked.serve(Call { request: &form.request.into(), ..call }).await
            }
        }
    }

    /// Waits until answers of this operation have room, if they are the long ones.
    async fn open_for(&self, operation: Operation) -> Result<(), Error> {
        match operation {
            Operation::ReceiveMessage => self.answers.open().await,
            _ => Ok(()),
        }
    }

    fn count(&self, operation: Option<Operation>, started: Instant, error: Option<&Error>) {
        let series = operation.and_then(|operation| self.series.get(operation as usize));
        if let Some(series) = series {
            series.latency.record(started.elapsed());
        }
        match (error, series) {
            (None, Some(series)) => series.done.increment(1),
            (error, _) => {
                let code = error.map_or("OK", Error::code);
                let name = operation.map_or("none", Operation::name);
                let node = self.gateway.service.node().to_owned();
                counter!(names::SQS_REQUESTS, names::NODE => node, "operation" => name, "code" => code)
                    .increment(1);
            }
        }
    }
}

fn asked(name: Option<&str>) -> Result<Operation, Error> {
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| {
        Error::new(
            Kind::MissingAction,
            "The request must name an operation: in X-Amz-Target, or as the parameter Action.",
        )
    })?;
    let unknown =
        || Error::new(Kind::InvalidAction, format!("The action {name} is not valid for this endpoint."));
    Operation::of_name(name).ok_or_else(unknown)
}

/// The text of an answer, and the error that it tells.
fn told(
    protocol: Protocol,
    operation: Option<Operation>,
    outcome: Result<Bytes, Error>,
    request_id: &str,
) -> (Bytes, Option<Error>) {
    match (protocol, outcome) {
        (Protocol::Json, Ok(answer)) => (answer, None),
        (Protocol::Json, Err(error)) => {
            let text = json!({ "__type": error.shape(), "message": error.message }).to_string();
            (text.into(), Some(error))
        }
        (Protocol::Query, Ok(answer)) => {
            (xml::answer(operation.map_or("", Operation::name), &answer, request_id).into(), None)
        }
        (Protocol::Query, Err(error)) => (xml::failure(&error, request_id).into(), Some(error)),
    }
}

fn respond(protocol: Protocol, error: Option<&Error>, request_id: &str, answer: Answer) -> Response<Answer> {
    let status = error.map_or(200, Error::status);
    let kind = match protocol {
        Protocol::Json => JSON,
        Protocol::Query => XML,
    };
    let mut response = Response::new(answer);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    let query_error = error.map(|error| format!("{};{}", error.code(), error.fault()));
    if let Some(error) = query_error.and_then(|error| HeaderValue::from_str(&error).ok()) {
        headers.insert(QUERY_ERROR, error);
    }
    response
}

/// A name for the request, for people who compare logs: a UUID of version 4 (RFC 9562).
fn request_id() -> Digits<36> {
    const VERSION_AND_VARIANT: u128 = (0xf << 76) | (3 << 62);
    const RANDOM: u128 = (4 << 76) | (2 << 62);
    let bits = (u128::from(random()) << 64) | u128::from(random());
    hex::uuid((bits & !VERSION_AND_VARIANT) | RANDOM)
}
