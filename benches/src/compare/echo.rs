//! A gRPC service with one method that sends back what it gets, and what a stream of it carries.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::codegen::Service;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::latency::Latencies;
use super::metric::{Metric, Reading};
use super::system::Failure;

const BODY_BYTES: usize = 128;
const METHOD: &str = "/leasehold.bench.Echo/Echo";

type Codec = ProstCodec<Bytes, Bytes>;
type HttpRequest = tonic::codegen::http::Request<tonic::body::Body>;
type HttpResponse = tonic::codegen::http::Response<tonic::body::Body>;

#[derive(Debug, Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "leasehold.bench.Echo";
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Streaming<Bytes>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<HttpRequest> for Echo {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        async move { Ok(tonic::server::Grpc::new(Codec::default()).streaming(Self, request).await) }.boxed()
    }
}

/// Echoes for some time with so many messages under way.
pub async fn measure(outstanding: usize, time: Duration) -> Result<Vec<Reading>, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder().add_service(Echo).serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let measured = echo(&format!("http://{address}"), outstanding, time).await;
    server.abort();
    measured
}

async fn echo(address: &str, outstanding: usize, time: Duration) -> Result<Vec<Reading>, Failure> {
    let channel = Endpoint::from_shared(address.to_owned())?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (outgoing, outbox) = mpsc::unbounded_channel();
    let request = Request::new(UnboundedReceiverStream::new(outbox));
    let codec = Codec::default();
    let mut incoming =
        client.streaming(request, PathAndQuery::from_static(METHOD), codec).await?.into_inner();
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let mut under_way = std::collections::VecDeque::with_capacity(outstanding);
    let (began, mut echoed, mut latencies) = (Instant::now(), 0_u64, Latencies::default());
    while began.elapsed() < time {
        while under_way.len() < outstanding && outgoing.send(body.clone()).is_ok() {
            under_way.push_back(Instant::now());
        }
        let (Some(answer), Some(sent)) = (incoming.next().await, under_way.pop_front()) else { break };
        answer?;
        latencies.add(sent.elapsed());
        echoed += 1;
    }
    let mut readings = vec![(Metric::MessagesPerS, echoed as f64 / began.elapsed().as_secs_f64())];
    readings.extend(latencies.readings());
    Ok(readings)
}
