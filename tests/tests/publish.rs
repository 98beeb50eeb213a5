//! Publication to a real mosquitto.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use runtime::publish::{Endpoint, Message, Patience, PublishError, publish};
use tests::fixture::Fixture;
use tests::mosquitto::{Mosquitto, free_port};
use tests::programs::{program, run};
use tests::subscriber::Subscriber;

const SOON: Duration = Duration::from_secs(20);

fn send(url: &str, messages: &[Message], patience: &Patience) -> Result<(), PublishError> {
    let endpoint = Endpoint::open(url.parse().unwrap()).unwrap();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    executor.block_on(publish(&endpoint, "scanside-test", messages, patience))
}

fn numbered(count: usize, bytes: usize) -> Vec<Message> {
    let message = |i: usize| Message {
        topic: format!("scanside/v1/site/device/result/{i}"),
        payload: [format!("{i} ").as_bytes(), &vec![b'.'; bytes]].concat(),
    };
    (0..count).map(message).collect()
}

#[test]
fn a_result_arrives_as_it_is_printed() {
    let (fixture, broker) = (Fixture::default(), Mosquitto::start().unwrap());
    let subscriber = Subscriber::new(broker.port, "scanside/#").unwrap();
    let mut command = program("scanside");
    command.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    command.arg("--input").arg(&fixture.scan).args(["--site", "north", "--device", "ct-2"]);
    let outcome = run(command.args(["--publish", &broker.url()]));
    outcome.success();
    let message = subscriber.next(SOON).unwrap();
    assert_eq!(message.topic, "scanside/v1/north/ct-2/result/lesion");
    assert_eq!((message.qos, message.retained), (1, false));
    assert_eq!((message.content_type.as_deref(), message.expiry), (Some("application/json"), None));
    assert_eq!(String::from_utf8(message.payload).unwrap(), outcome.stdout.trim_end());
    assert!(outcome.stderr.contains("acknowledged"), "{outcome:?}");
    assert!(subscriber.next(Duration::from_millis(300)).is_err(), "once only");
}

#[test]
fn a_broker_that_refuses_is_a_fault_of_the_machine() {
    let fixture = Fixture::default();
    let broker = Mosquitto::on(free_port().unwrap(), "allow_anonymous false").unwrap();
    let mut command = program("scanside");
    command.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    let outcome = run(command.arg("--input").arg(&fixture.scan).args(["--publish", &broker.url()]));
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("NotAuthorized"), "{outcome:?}");
    assert_eq!(outcome.stdout.lines().count(), 1, "the result is printed all the same: {outcome:?}");
}

#[test]
fn many_messages_of_the_largest_size_are_all_acknowledged() {
    let broker = Mosquitto::start().unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/#").unwrap();
    let messages = numbered(100, 100 << 10);
    send(&broker.url(), &messages, &Patience::default()).unwrap();
    for expected in &messages {
        let found = subscriber.next(SOON).unwrap();
        assert_eq!((&found.topic, &found.payload), (&expected.topic, &expected.payload));
    }
}

#[test]
fn a_broker_that_comes_late_gets_everything() {
    let port = free_port().unwrap();
    let sender = thread::spawn(move || {
        let patience = Patience { attempts: 50, pause: Duration::from_millis(20), ..Patience::default() };
        send(&format!("mqtt://127.0.0.1:{port}"), &numbered(3, 10), &patience)
    });
    thread::sleep(Duration::from_millis(300));
    let _broker = Mosquitto::on(port, "allow_anonymous true").unwrap();
    sender.join().unwrap().unwrap();
}

/// Passes connections on to `broker`; of the first, it passes nothing back after CONNACK, and cuts it when something
/// larger than CONNECT has been passed on.
fn lossy(broker: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (n, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            let server = TcpStream::connect(("127.0.0.1", broker)).unwrap();
            let (mut back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                // Type and, up to 127, the length of what follows.
                let mut header = [0; 2];
                back_from.read_exact(&mut header).unwrap();
                (&back_to).write_all(&header).unwrap();
                let back = if n == 0 { u64::from(header[1]) } else { u64::MAX };
                std::io::copy(&mut back_from.take(back), &mut &back_to)
            });
            thread::spawn(move || forward(client, server, if n == 0 { 5000 } else { usize::MAX }));
        }
    });
    port
}

fn forward(mut client: TcpStream, mut server: TcpStream, most: usize) {
    let (mut block, mut passed) = ([0; 1024], 0);
    while passed < most {
        match client.read(&mut block) {
            Ok(n) if n > 0 && server.write_all(&block[..n]).is_ok() => passed += n,
            _ => break,
        }
    }
    // Time for the broker to take what it was sent.
    thread::sleep(Duration::from_millis(200));
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn what_a_cut_connection_loses_is_published_again() {
    let broker = Mosquitto::start().unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/#").unwrap();
    let url = format!("mqtt://127.0.0.1:{}", lossy(broker.port));
    let messages = numbered(40, 500);
    let patience = Patience { pause: Duration::from_millis(10), ..Patience::default() };
    send(&url, &messages, &patience).unwrap();
    let mut missing: std::collections::BTreeSet<_> = messages.iter().map(|m| m.topic.clone()).collect();
    let mut arrived = 0;
    while !missing.is_empty() {
        missing.remove(&subscriber.next(SOON).unwrap().topic);
        arrived += 1;
    }
    assert!(arrived > messages.len(), "the first connection delivered some, unacknowledged: {arrived}");
}
