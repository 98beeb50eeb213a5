use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::*;
use crate::update::fetch::Downloads;

/// A server that answers each request by `answer`, which is given its path and where its range begins.
fn server(answer: impl Fn(&mut TcpStream, &str, Option<u64>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
                let mut from = None;
                for line in lines.take_while(|line| !line.is_empty()) {
                    if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        from = range.trim_end_matches('-').parse().ok();
                    }
                }
                answer(&mut stream, &path, from);
            });
        }
    });
    base
}

fn head(stream: &mut TcpStream, status: &str, length: usize, more: &str) {
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(text.as_bytes()).unwrap();
}

fn https(base: &str) -> Https {
    Https::with(base, None, Duration::from_millis(400))
}

#[test]
fn a_metadata_file_is_there_or_not() {
    let base = server(|stream, path, _| match path {
        "/repo/metadata/timestamp.json" => {
            head(stream, "200 OK", 4, "");
            stream.write_all(b"here").unwrap();
        }
        "/repo/metadata/broken.json" => head(stream, "500 Internal Server Error", 0, ""),
        _ => head(stream, "404 Not Found", 0, ""),
    });
    let source = https(&format!("{base}/repo/"));
    assert_eq!(source.metadata("timestamp.json", 100).unwrap().unwrap(), b"here");
    assert_eq!(source.metadata("2.root.json", 100).unwrap(), None);
    let error = source.metadata("broken.json", 100).unwrap_err().to_string();
    assert!(error.contains("answers 500"), "{error}");
    assert!(matches!(source.metadata("timestamp.json", 3), Err(SourceError::TooLong { limit: 3, .. })));
}

#[test]
fn a_trickle_and_an_endless_answer_are_left() {
    let base = server(|stream, path, _| {
        head(stream, "200 OK", 1 << 30, "");
        let piece = if path.contains("slow") { 1 } else { 1 << 16 };
        while stream.write_all(&vec![b' '; piece]).is_ok() {
            if piece == 1 {
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let source = https(&base);
    let slow = source.metadata("slow.json", 1 << 20).unwrap_err();
    assert!(matches!(slow, SourceError::TooSlow { .. }), "{slow}");
    let endless = source.metadata("endless.json", 1 << 20).unwrap_err();
    assert!(matches!(endless, SourceError::TooLong { .. }), "{endless}");
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_tried_again() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = https(&format!("http://127.0.0.1:{port}")).metadata("timestamp.json", 1).unwrap_err();
    assert!(UpdateError::from(gone).is_passing());
    let silent = server(|_, _, _| thread::sleep(Duration::from_secs(5)));
    let error = https(&silent).metadata("timestamp.json", 1).unwrap_err();
    assert!(matches!(error, SourceError::Failed { .. }), "{error}");
}

#[test]
fn a_broken_transfer_is_gone_on_with_also_where_the_server_knows_no_ranges() {
    let content: Vec<u8> = (0..200_000u32).map(|i| (i * 13) as u8).collect();
    for ranges in [true, false] {
        let whole = content.clone();
        let base = server(move |stream, _, from| {
            let from = if ranges { from.unwrap_or(0) as usize } else { 0 };
            let rest = &whole[from..];
            if from > 0 {
                let range = format!("Content-Range: bytes {from}-{}/{}\r\n", whole.len() - 1, whole.len());
                head(stream, "206 Partial Content", rest.len(), &range);
            } else {
                head(stream, "200 OK", rest.len(), "");
            }
            // The line breaks after 120 kB.
            let _ = stream.write_all(&rest[..rest.len().min(if ranges { 120_000 } else { whole.len() })]);
        });
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::open(folder.path()).unwrap();
        let target = firmware_config::TargetRef {
            name: "north/a.plugin".into(),
            length: content.len() as u64,
            sha256: crate::tensor::sha256(&content),
        };
        if !ranges {
            std::fs::write(downloads.path(&target), &content[..70_000]).unwrap();
        }
        let source = https(&base);
        let mut tries = 0;
        let path = loop {
            tries += 1;
            match downloads.fetch(&source, &target, &TargetFile::new(&target), &mut |_| true) {
                Ok(path) => break path,
                Err(error) => assert!(error.is_passing() && tries < 5, "{error}"),
            }
        };
        assert_eq!(std::fs::read(path).unwrap(), content);
        assert_eq!(tries, if ranges { 2 } else { 1 });
    }
}
