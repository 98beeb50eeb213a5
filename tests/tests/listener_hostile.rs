//! The DICOM listener against what does not mean well: garbage, lies about lengths, silence, a byte now and then.
#![allow(missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dicom_ul::pdu::{PDataValueType, Pdu};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};
use runtime::ingest::listener::{End, Options};
use tests::scanner::{CT, Hand, dcmtk, image, listen, options, run};

/// Reads until the other side closes; how long that took.
fn until_closed(mut socket: TcpStream, since: Instant) -> Duration {
    socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let mut rest = Vec::new();
    // A reset is an end as well.
    let closed = socket.read_to_end(&mut rest);
    assert!(closed.is_ok_and(|n| n < 1000) || since.elapsed() < Duration::from_secs(59), "it stayed open");
    since.elapsed()
}

fn alive(to: SocketAddr) {
    let (ok, said) = run(&mut dcmtk("echoscu", to, &[])).unwrap();
    assert!(ok, "{said}");
}

/// Resident memory of this process, its greatest so far, in bytes.
#[cfg(target_arch = "x86_64")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[cfg(target_arch = "x86_64")]
#[test]
fn lengths_of_four_gigabytes_cost_nothing() {
    let (listener, folder) = listen(Options { handshake: Duration::from_secs(2), ..options() }).unwrap();
    let to = listener.address();
    alive(to);
    let before = peak();
    for round in 0..20 {
        // An association request of 4 GB, of which a megabyte comes.
        let mut socket = TcpStream::connect(to).unwrap();
        let mut bytes = vec![1, 0, 0xFF, 0xFF, 0xFF, 0xFF];
        bytes.resize(1 << 20, round);
        // It may be cut off meanwhile.
        let _ = socket.write_all(&bytes);
        until_closed(socket, Instant::now());
        // The same once the association stands, and a value longer than its PDU.
        for header in [[4, 0, 0xFF, 0xFF, 0xFF, 0xFF], [4, 0, 0, 2, 0, 1], [4, 0, 0, 0, 0, 5]] {
            let mut hand = Hand::new(to).unwrap();
            let socket = hand.0.inner_stream();
            let _ = socket.write_all(&[&header[..], &[0xFF; 4096]].concat());
            assert!(!matches!(hand.0.receive(), Ok(Pdu::PData { .. })));
        }
    }
    let grown = peak() - before;
    println!("peak memory grew by {grown} bytes");
    assert!(grown < 16 << 20, "peak memory grew by {grown} bytes");
    assert_eq!(folder.wait_ends(61)[1..], vec![End::Violated; 60]);
    alive(to);
}

/// PDUs, sound ones among them, with sound and unsound lengths.
fn pdus() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        // Values of P-DATA: length, context, flags.
        prop::collection::vec((0..40u32, 0..4u8, 0..4u8), 0..6).prop_map(|values| {
            let value = |(length, context, flags): (u32, u8, u8)| {
                let mut out = (length + 2).to_be_bytes().to_vec();
                out.extend([context, flags]);
                out.resize(out.len() + length as usize, 0);
                out
            };
            values.into_iter().flat_map(value).collect()
        }),
    ];
    let pdu = (0..9u8, body, prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)]);
    prop::collection::vec(pdu, 1..5).prop_map(|pdus| {
        let pdu = |(kind, body, length): (u8, Vec<u8>, Option<u32>)| {
            let length = length.unwrap_or(body.len() as u32);
            [&[kind, 0][..], &length.to_be_bytes(), &body].concat()
        };
        pdus.into_iter().flat_map(pdu).collect()
    })
}

#[test]
fn random_pdus_harm_nobody() {
    let limits = Options { handshake: Duration::from_secs(1), idle: Duration::from_secs(1), ..options() };
    let (listener, folder) = listen(limits).unwrap();
    let to = listener.address();
    // Somebody else's association, which goes on all the while.
    let bystander = std::cell::RefCell::new(Hand::new(to).unwrap());
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let rounds = std::cell::Cell::new(0);
    runner
        .run(&(any::<bool>(), pdus()), |(associated, bytes)| {
            rounds.set(rounds.get() + 1);
            if associated {
                let mut hand = Hand::new(to).unwrap();
                let _ = hand.0.inner_stream().write_all(&bytes);
            } else {
                let mut socket = TcpStream::connect(to).unwrap();
                let _ = socket.write_all(&bytes);
            }
            if usize::is_multiple_of(rounds.get(), 10) {
                let uid = format!("1.2.3.{}", rounds.get());
                let stored = bystander.borrow_mut().store(CT, &uid, &image(&uid, "1.2.3"));
                assert_eq!(stored.unwrap(), 0);
            }
            Ok(())
        })
        .unwrap();
    assert!(rounds.get() >= 150);
    bystander.into_inner().0.release().unwrap();
    folder.wait("the bystander's end", |events| {
        events.contains(&tests::scanner::Event::Ended(1, End::Released))
    });
    assert_eq!(folder.kept().len(), rounds.get() / 10, "only what was sent soundly");
    let gone = Instant::now() + Duration::from_secs(20);
    while listener.associations() > 0 {
        assert!(Instant::now() < gone, "{} associations are left", listener.associations());
        std::thread::sleep(Duration::from_millis(20));
    }
    alive(to);
}

#[test]
fn silence_and_a_byte_now_and_then_hold_no_place_beyond_the_deadline() {
    let limits = Options {
        max_associations: 2,
        max_handshakes: 2,
        handshake: Duration::from_millis(700),
        idle: Duration::from_millis(700),
        ..options()
    };
    let (listener, folder) = listen(limits).unwrap();
    let to = listener.address();
    let enough = Duration::from_millis(600)..Duration::from_secs(8);

    // Before the association: one says nothing, one a byte every 50 ms.
    let silent = TcpStream::connect(to).unwrap();
    let mut slow = TcpStream::connect(to).unwrap();
    let since = Instant::now();
    let mut sent = 0;
    for byte in [1, 0, 0, 0, 2, 0].into_iter().chain(std::iter::repeat(0)) {
        if slow.write_all(&[byte]).is_err() || since.elapsed() > Duration::from_secs(20) {
            break;
        }
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sent > 5 && enough.contains(&since.elapsed()), "{sent} bytes in {:?}", since.elapsed());
    assert!(enough.contains(&until_closed(silent, since)));
    alive(to);

    // Within one: nothing, and a PDU byte by byte.
    let mut silent = Hand::new(to).unwrap();
    let mut slow = Hand::new(to).unwrap();
    let since = Instant::now();
    slow.command(CT, "1.2.3.1").unwrap();
    for byte in [4, 0, 0, 0, 2, 0].into_iter().chain(std::iter::repeat(0)) {
        if slow.0.inner_stream().write_all(&[byte]).is_err() || since.elapsed() > Duration::from_secs(20) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(enough.contains(&since.elapsed()), "{:?}", since.elapsed());
    assert!(matches!(silent.0.receive(), Ok(Pdu::AbortRQ { .. })), "told why");
    let ends = folder.wait_ends(3);
    assert_eq!(ends[1..], [End::TimedOut, End::TimedOut]);
    assert!(folder.files().unwrap().is_empty(), "the part that had come is gone");
    alive(to);
}

#[test]
fn an_association_that_is_never_idle_ends_at_its_deadline() {
    let (listener, folder) = listen(Options { deadline: Duration::from_millis(1500), ..options() }).unwrap();
    let mut hand = Hand::new(listener.address()).unwrap();
    let since = Instant::now();
    let mut kept = 0;
    while since.elapsed() < Duration::from_secs(30) {
        let uid = format!("1.2.3.{kept}");
        match hand.store(CT, &uid, &image(&uid, "1.2.3")) {
            Ok(status) => assert_eq!(status, 0),
            Err(_) => break,
        }
        kept += 1;
    }
    assert!((Duration::from_secs(1)..Duration::from_secs(15)).contains(&since.elapsed()));
    assert_eq!(folder.wait_ends(1), [End::TimedOut]);
    let durable = folder.kept().len();
    assert!(kept > 0 && (kept..=kept + 1).contains(&durable), "{kept} acknowledged, {durable} kept");
}

#[test]
fn an_endless_data_set_ends_the_association() {
    let limits = Options { max_instance_bytes: 1 << 20, max_association_bytes: 4 << 20, ..options() };
    let (listener, folder) = listen(limits).unwrap();
    let mut hand = Hand::new(listener.address()).unwrap();
    hand.command(CT, "1.2.3.1").unwrap();
    let (zeros, mut sent) = (vec![0; 60_000], 0);
    while hand.send(PDataValueType::Data, false, &zeros).is_ok() && sent < 64 << 20 {
        sent += 60_000;
    }
    assert_eq!(folder.wait_ends(1), [End::Violated]);
    assert!(sent < 32 << 20, "{sent} bytes were taken");
    assert!(folder.files().unwrap().is_empty());
    alive(listener.address());
}

#[test]
fn connections_that_wait_are_bounded() {
    let limits = Options { max_handshakes: 3, handshake: Duration::from_secs(20), ..options() };
    let (listener, _folder) = listen(limits).unwrap();
    let to = listener.address();
    let waiting: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(to).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(until_closed(TcpStream::connect(to).unwrap(), Instant::now()) < Duration::from_secs(10));
    drop(waiting);
    std::thread::sleep(Duration::from_millis(300));
    alive(to);
}
