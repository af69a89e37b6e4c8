//! A gRPC server and its client, both of tonic, with the mesh between them.

use std::convert::Infallible;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context as Polled, Poll};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::Host;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::codegen::Service;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::backends::{THROUGH, on_a1};

/// `Say` repeats a text, `Refuse` refuses it, `Count` says it a hundred times.
#[derive(Clone)]
struct Echo;

type Answered<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;
type Texts = Pin<Box<dyn tokio_stream::Stream<Item = Result<String, Status>> + Send>>;

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Answered<Response<String>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            let text = request.into_inner();
            match text.strip_prefix("refuse ") {
                Some(why) => Err(Status::failed_precondition(why)),
                None => Ok(Response::new(text)),
            }
        })
    }
}

impl ServerStreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Texts;
    type Future = Answered<Response<Texts>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            let text = request.into_inner();
            let texts = (0..COUNT).map(move |n| Ok(format!("{text} {n}")));
            Ok(Response::new(Box::pin(tokio_stream::iter(texts)) as Texts))
        })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<HttpRequest<Body>> for Echo {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<String, String>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Count" => grpc.server_streaming(Self, request).await,
                _ => grpc.unary(Self, request).await,
            })
        })
    }
}

/// Serves on 127.0.0.1:`port` of `host` until the test program ends.
pub(crate) fn serve(host: Host, port: u16) -> Result<()> {
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let serving = || -> Result<()> {
            // The runtime's threads are made by this one, so their sockets are the host's.
            host.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
                let _ = ready.send(Ok(()));
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                Server::builder().add_service(Echo).serve_with_incoming(incoming).await?;
                Ok(())
            })
        };
        if let Err(why) = serving() {
            let _ = ready.send(Err(why));
        }
    });
    is_ready.recv_timeout(Duration::from_secs(10)).context("the gRPC server did not start")?
}

/// One call, one that is refused, and one answer of many messages; then many calls at once.
pub(crate) fn calls_streams_and_statuses(port: u16) -> Result<()> {
    on_a1(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let to = format!("http://127.0.0.1:{}", port + THROUGH);
            let channel = Channel::from_shared(to)?.connect().await?;
            ensure!(say(&channel, "hello").await? == "hello", "another text came back");
            let large = "x".repeat(1_000_000);
            ensure!(say(&channel, &large).await? == large, "a large text came back changed");
            let refused =
                say(&channel, "refuse it is closed").await.err().context("not refused")?;
            ensure!(refused.code() == Code::FailedPrecondition, "{refused}");
            ensure!(refused.message() == "it is closed", "{refused}");
            let mut client = Client::new(channel.clone());
            client.ready().await?;
            let path = PathAndQuery::from_static("/test.Echo/Count");
            let asked = Request::new("n".to_owned());
            let codec = ProstCodec::<String, String>::default();
            let mut texts = client.server_streaming(asked, path, codec).await?.into_inner();
            let mut count = 0;
            while let Some(text) = texts.next().await {
                ensure!(text? == format!("n {count}"), "message {count} is another");
                count += 1;
            }
            ensure!(count == COUNT, "{count} messages came");
            let mut calls = tokio::task::JoinSet::new();
            for n in 0..200 {
                let channel = channel.clone();
                calls.spawn(async move { say(&channel, &format!("call {n}")).await });
            }
            let answers = calls.join_all().await;
            let failed: Vec<_> = answers.iter().filter_map(|it| it.as_ref().err()).collect();
            ensure!(failed.is_empty(), "{failed:?}");
            Ok(())
        })
    })
}

async fn say(channel: &Channel, text: &str) -> Result<String, Status> {
    let mut client = Client::new(channel.clone());
    client.ready().await.map_err(|why| Status::unavailable(why.to_string()))?;
    let path = PathAndQuery::from_static("/test.Echo/Say");
    let codec = ProstCodec::<String, String>::default();
    Ok(client.unary(Request::new(text.to_owned()), path, codec).await?.into_inner())
}

const COUNT: u32 = 100;
