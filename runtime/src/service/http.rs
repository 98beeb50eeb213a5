//! `/healthz` and Prometheus' `/metrics`, for whoever watches the box.
//!
//! It answers GET, one request a connection, and says nothing of patients. It is made for the loopback address and asks
//! nobody who he is, so everything that a stranger could draw out is bounded: connections at a time, the size of a
//! request's head, the time for it to come, and the time for the answer to be taken. What is told is asked for anew with each
//! request, on a thread that may wait for the disk; when that takes too long, `/healthz` says so instead of waiting.

mod exposition;
mod snapshot;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub use exposition::render;
pub use snapshot::{Inference, Snapshot};

/// Connections at a time; further ones wait until one of these has ended, and each has to end soon.
const CONNECTIONS: usize = 16;

/// Bytes of a request's head. No browser's is as long; hyper takes no smaller limit.
const HEAD: usize = 8 << 10;

/// For the head to come.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// For the snapshot to be made.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(4);

/// From the connection to its end.
const DEADLINE: Duration = Duration::from_secs(8);

/// For answers under way when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// Makes what is told. It may wait for the disk; should it wait for ever, tokio's runtime must be ended with `shutdown_timeout`, since
/// dropping one waits for what blocks.
pub type Source = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for HTTP at {address}: {source}; give `http.listen` a free address of this machine, or \"off\""
)]
pub struct HttpError {
    /// Where it should have listened.
    pub address: SocketAddr,
    /// What the operating system said.
    pub source: io::Error,
}

/// A running server. Dropped, it ends at once; [`Self::stop`] lets answers under way be taken.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts to answer on `executor`.
    pub fn start(executor: &Handle, listen: SocketAddr, source: Source) -> Result<Self, HttpError> {
        let failed = |source| HttpError { address: listen, source };
        let socket = std::net::TcpListener::bind(listen).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let listener = {
            let _context = executor.enter();
            TcpListener::from_std(socket).map_err(failed)?
        };
        let (stop, stopped) = watch::channel(false);
        let task = executor.spawn(accept(listener, source, stopped));
        tracing::info!(%address, "answering /healthz and /metrics");
        Ok(Self { address, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more and ends, within a second or so.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // Only a panic could be told here, and it has been.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, source: Source, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = stopped.wait_for(|&stop| stop) => break,
            next = next => next,
        };
        // Those that have ended are forgotten.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, source.clone(), Arc::new(place), stopped.clone()));
            }
            Err(error) => {
                // Too many open files, or a connection that was gone at once; neither is to keep a core busy.
                tracing::debug!(%error, "no HTTP connection could be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A place among the connections, held until the last thread that works for it has ended.
type Place = Arc<Option<OwnedSemaphorePermit>>;

async fn serve(stream: TcpStream, source: Source, place: Place, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(|request| {
        let (source, place) = (source.clone(), place.clone());
        async move { Ok::<_, Infallible>(answer(&request, source, place).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = async { stopped.wait_for(|&stop| stop).await.is_ok() };
    tokio::select! {
        ended = timeout(DEADLINE, connection.as_mut()) => {
            if !matches!(ended, Ok(Ok(()))) {
                tracing::debug!(?ended, "an HTTP connection came to nothing");
            }
            return;
        }
        _ = stop => {}
    }
    connection.as_mut().graceful_shutdown();
    // Whoever has not taken the answer by then has had his time.
    let _ = timeout(GRACE, connection).await;
}

async fn answer(request: &Request<Incoming>, source: Source, place: Place) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    let page: fn(&Snapshot) -> Response<Full<Bytes>> = match request.uri().path() {
        "/healthz" => health,
        "/metrics" => metrics,
        _ => return text(StatusCode::NOT_FOUND, "there are /healthz and /metrics here\n".into()),
    };
    let asked = tokio::task::spawn_blocking(move || {
        let _place = place;
        source()
    });
    match timeout(SNAPSHOT_DEADLINE, asked).await {
        Ok(Ok(snapshot)) => page(&snapshot),
        Ok(Err(_)) => unavailable("the service cannot tell its state; see its log"),
        Err(_) => unavailable(&format!(
            "the service has not told its state within {} s; look at its disk and its log",
            SNAPSHOT_DEADLINE.as_secs()
        )),
    }
}

fn health(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    match &snapshot.trouble {
        None => text(StatusCode::OK, "ok\n".into()),
        Some(reason) => unavailable(reason),
    }
}

fn metrics(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, render(snapshot));
    let format = hyper::header::HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}

fn unavailable(reason: &str) -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, reason.replace(['\n', '\r'], " ") + "\n")
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
