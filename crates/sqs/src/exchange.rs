//! One request and its answer: the body is read within its limits, the signature is checked, the operation is served, and what comes
//! out is told in the protocol that the client speaks.

use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use leasehold_node::telemetry::names;
use metrics::{Counter, Histogram, Label, counter, histogram};
use serde_json::json;

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
        Self { gateway, signatures, room: Room::new(), series }
    }

    /// Answers a request, whatever it is.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let protocol = Protocol::of(&parts);
        let mut operation = None;
        let outcome = self.serve(protocol, &parts, body, &mut operation).await;
        self.count(operation, started, outcome.as_ref().err());
        respond(protocol, operation, outcome)
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
                asked.serve(call).await
            }
            Protocol::Query => {
                let query = parts.uri.query().unwrap_or_default();
                let form = Form::read(query.as_bytes(), &body)?;
                let asked = *operation.insert(asked(form.action.as_deref())?);
                asked.serve(Call { request: &form.request.into(), ..call }).await
            }
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

fn respond(
    protocol: Protocol,
    operation: Option<Operation>,
    outcome: Result<Bytes, Error>,
) -> Response<Full<Bytes>> {
    let request_id = request_id();
    let (status, query_error) = match &outcome {
        Ok(_) => (200, None),
        Err(error) => (error.status(), Some(format!("{};{}", error.code(), error.fault()))),
    };
    let (kind, body) = match (protocol, outcome) {
        (Protocol::Json, Ok(answer)) => (JSON, answer),
        (Protocol::Json, Err(error)) => {
            (JSON, json!({ "__type": error.shape(), "message": error.message }).to_string().into())
        }
        (Protocol::Query, Ok(answer)) => {
            (XML, xml::answer(operation.map_or("", Operation::name), &answer, &request_id).into())
        }
        (Protocol::Query, Err(error)) => (XML, xml::failure(&error, &request_id).into()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, id);
    }
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
