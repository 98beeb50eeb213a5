//! `/healthz` and `/metrics` over real sockets, with clients that behave and others.
#![allow(missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use runtime::service::http::{Server, Snapshot, Source};
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(30);

fn executor() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn start(runtime: &Runtime, source: Source) -> Server {
    Server::start(runtime.handle(), "127.0.0.1:0".parse().unwrap(), source).unwrap()
}

/// A service that is well.
fn well() -> Source {
    Arc::new(|| Snapshot { version: "1.2.3".into(), ..Snapshot::default() })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends bytes and reads until the server closes.
fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    // A server that has had enough closes while we still write.
    let _ = stream.write_all(request);
    read(stream)
}

fn read(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // What came before a reset counts.
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        bytes.extend(&buffer[..n]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let answer = exchange(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn health_and_metrics_are_told() {
    let runtime = executor();
    let trouble = Arc::new(Mutex::new(None));
    let server = start(&runtime, {
        let trouble = trouble.clone();
        Arc::new(move || Snapshot { trouble: trouble.lock().unwrap().clone(), ..Snapshot::default() })
    });
    let address = server.address();
    let (status, head, body) = get(address, "/healthz");
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    assert!(head.contains("content-type: text/plain") && head.contains("cache-control: no-store"), "{head}");

    *trouble.lock().unwrap() = Some("the store is full:\nfree some space".into());
    let (status, _, body) = get(address, "/healthz");
    assert_eq!((status, body.as_str()), (503, "the store is full: free some space\n"));

    let (status, head, body) = get(address, "/metrics?module=x");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("\nscanside_healthy 0\n"), "{body}");
}

#[test]
fn anything_else_is_refused() {
    let runtime = executor();
    let server = start(&runtime, well());
    let address = server.address();
    for path in ["/", "/metrics/", "/healthz/../metrics", "//metrics", "/%6detrics"] {
        assert_eq!(get(address, path).0, 404, "{path}");
    }
    for method in ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let answer = exchange(address, format!("{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nallow: get\r\n"), "{answer}");
    }
    // A body that is announced and never comes is not waited for.
    let answer = exchange(address, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[test]
fn garbage_is_answered_or_closed_and_hurts_nobody() {
    let runtime = executor();
    let server = start(&runtime, well());
    let address = server.address();
    let long_header = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_headers = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(1 << 20));
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let cases: [&[u8]; 9] = [
        b"\r\n\r\n\r\n",
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
        long_path.as_bytes(),
        &noise,
    ];
    for request in cases {
        let start = Instant::now();
        let answer = exchange(address, request);
        let told = String::from_utf8_lossy(&request[..request.len().min(40)]).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{told:?}: {answer}");
        assert!(start.elapsed() < SOON, "{told:?}");
    }
    // One who says a word and leaves, and one who leaves with an answer under way.
    drop(connect(address));
    let mut stream = connect(address);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(get(address, "/healthz").0, 200);
}

#[test]
fn slow_clients_are_sent_away_and_others_get_their_turn() {
    let runtime = executor();
    let server = start(&runtime, well());
    let address = server.address();
    let start = Instant::now();
    // More than there are places; each says a byte now and then, for ever.
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(address);
            thread::spawn(move || {
                for byte in b"GET /healthz HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'y')) {
                    if stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    assert!(start.elapsed() < 4 * SOON, "a slow client is never sent away");
                    sleep(Duration::from_millis(100));
                }
            })
        })
        .collect();
    // Behind three rounds of slow clients.
    assert_eq!(get(address, "/healthz").0, 200);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    for client in slow {
        client.join().unwrap();
    }
    // One that sends nothing at all.
    let start = Instant::now();
    assert_eq!(read(connect(address)), "");
    assert!(start.elapsed() < SOON);
}

#[test]
fn a_service_that_hangs_is_not_well() {
    let runtime = executor();
    let (hang, calls) = (Arc::new(Mutex::new(())), Arc::new(AtomicU64::new(0)));
    let server = start(&runtime, {
        let (hang, calls) = (hang.clone(), calls.clone());
        Arc::new(move || {
            calls.fetch_add(1, Ordering::SeqCst);
            drop(hang.lock().unwrap());
            Snapshot::default()
        })
    });
    let address = server.address();
    let stuck = hang.lock().unwrap();
    let clients: Vec<_> = (0..20).map(|_| thread::spawn(move || get_or_nothing(address))).collect();
    let answers: Vec<String> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let told = answers.iter().filter(|a| a.starts_with("HTTP/1.1 503 ") && a.contains("within 4 s")).count();
    assert_eq!(told, 16, "{answers:?}");
    // No thread more than there are places has been given to a state that never comes.
    assert_eq!(calls.load(Ordering::SeqCst), 16);
    drop(stuck);
    assert_eq!(get(address, "/healthz").0, 200);
    runtime.block_on(server.stop());
}

/// For a client that may be left waiting.
fn get_or_nothing(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read(stream)
}

#[test]
fn a_panic_is_told_and_survived() {
    let runtime = executor();
    let calls = AtomicU64::new(0);
    let server = start(
        &runtime,
        Arc::new(move || {
            assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "the first call fails, on purpose");
            Snapshot::default()
        }),
    );
    let (status, _, body) = get(server.address(), "/healthz");
    assert!(status == 503 && body.contains("see its log"), "{body}");
    assert_eq!(get(server.address(), "/healthz").0, 200);
}

#[test]
fn it_stops_when_told_whatever_its_clients_do() {
    let runtime = executor();
    let server = start(&runtime, well());
    let address = server.address();
    let mut idle: Vec<_> = (0..5).map(|_| connect(address)).collect();
    idle[0].write_all(b"GET /heal").unwrap();
    // A request that was sent before is one that has been accepted.
    assert_eq!(get(address, "/healthz").0, 200);
    let start = Instant::now();
    runtime.block_on(server.stop());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    for stream in idle {
        assert_eq!(read(stream), "");
    }
    assert!(TcpStream::connect(address).is_err());

    // The address is free again at once, and a second server on it is refused in a sentence.
    let again = Server::start(runtime.handle(), address, well()).unwrap();
    let Err(error) = Server::start(runtime.handle(), address, well()) else { panic!("two on one port") };
    let sentence = error.to_string();
    assert!(sentence.contains("cannot listen for HTTP at 127.0.0.1:") && sentence.contains("http.listen"));
    drop(again);
}
