//! An application that can be made to misbehave while it runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::world::{World, listener};

/// What an application does with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Mood {
    /// Answers at once.
    Well,
    /// Answers 500 at once.
    Errs,
    /// Answers 503 at once.
    Unavailable,
    /// Answers after ten seconds.
    Slow,
    /// Reads the request and never answers.
    Hangs,
    /// Reads the request and closes the connection.
    Resets,
    /// Accepts connections and closes them.
    Gone,
}

/// An application that answers with its tag.
#[derive(Clone)]
pub(crate) struct App {
    mood: Arc<AtomicU8>,
    seen: Arc<AtomicUsize>,
}

impl App {
    /// Starts one, and an instance of `db` before it.
    pub(crate) async fn start(world: &mut World, tag: &'static str) -> Self {
        let (listener, address) = listener().await;
        let app = Self { mood: Arc::default(), seen: Arc::default() };
        let own = app.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if own.is(Mood::Gone) {
                    continue;
                }
                let app = own.clone();
                let service = service_fn(move |request| app.clone().answer(request, tag));
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service);
                tokio::spawn(serving);
            }
        });
        world.instance(address);
        app
    }

    pub(crate) fn turn(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// How many requests reached it.
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::SeqCst) == mood as u8
    }

    async fn answer(
        self,
        request: Request<Incoming>,
        tag: &'static str,
    ) -> io::Result<Response<Full<Bytes>>> {
        self.seen.fetch_add(1, Ordering::SeqCst);
        let said = |status: u16| {
            let body = Full::new(Bytes::from_static(tag.as_bytes()));
            Response::builder().status(status).body(body).map_err(io::Error::other)
        };
        if request.uri().path() == "/healthz" {
            return said(200);
        }
        if self.is(Mood::Slow) {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        if self.is(Mood::Hangs) {
            std::future::pending::<()>().await;
        }
        if self.is(Mood::Resets) || self.is(Mood::Gone) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        said(match self.mood.load(Ordering::SeqCst) {
            mood if mood == Mood::Errs as u8 => 500,
            mood if mood == Mood::Unavailable as u8 => 503,
            _ => 200,
        })
    }
}
