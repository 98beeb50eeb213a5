//! The service's connection to its broker, a real mosquitto that is killed, restarted, stopped and locked.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use runtime::publish::session::{Handle, Health, Options, Session};
use runtime::publish::{Credentials, Endpoint, Message, Patience, PublishError, State, publish};
use runtime::store::{Limits, Store};
use tests::mosquitto::{Mosquitto, free_port};
use tests::subscriber::{Received, Subscriber};

const SOON: Duration = Duration::from_secs(20);

fn store(folder: &Path) -> Arc<Store> {
    let limits = Limits { max_bytes: 1 << 30, min_free_bytes: 0, max_tries: 3 };
    Arc::new(Store::open(&folder.join("store"), limits).unwrap().0)
}

fn add(store: &Store, rows: RangeInclusive<u64>) {
    store.enqueue(&rows.map(result).collect::<Vec<_>>(), 0).unwrap();
}

fn rows(store: &Store) -> Vec<u64> {
    store.outbox(0, usize::MAX).unwrap().into_iter().map(|(row, _)| row).collect()
}

/// A session in a thread of its own.
struct Running {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(endpoint: Endpoint, store: &Arc<Store>) -> Self {
        let state = |presence| State::json(presence, "scanside 1.2.3", &[], "2000-01-01T00:00:00.000Z");
        let options = Options {
            endpoint,
            client_id: "scanside-north-ct-2".into(),
            keep_alive: Duration::from_secs(2),
            state: ("scanside/v1/north/ct-2/state".into(), Box::new(state)),
            health: ("scanside/v1/north/ct-2/health".into(), Box::new(|()| b"{\"queue\":3}".to_vec())),
            patience: Patience {
                attempts: 1,
                connect: Duration::from_millis(500),
                acknowledge: Duration::from_millis(500),
                pause: Duration::from_millis(20),
                longest_pause: Duration::from_millis(200),
            },
            seed: 1,
        };
        let health = Health { interval: Duration::from_millis(100), expiry: Duration::from_secs(90) };
        let (session, handle) = Session::new(options, store.clone(), health);
        let thread = thread::spawn(|| executor().block_on(session.run()));
        Self { handle, thread }
    }

    fn stop(self) {
        self.handle.shut_down();
        self.thread.join().unwrap();
    }
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn open(url: &str) -> Endpoint {
    Endpoint::open(url.parse().unwrap()).unwrap()
}

fn result(row: u64) -> Message {
    // Different sizes, up to some packets of TCP.
    let filling = "x".repeat((row * 7919 % 3000) as usize);
    Message {
        topic: "scanside/v1/north/ct-2/result/lesion".into(),
        payload: format!("{{\"result_id\":{row},\"filling\":\"{filling}\"}}").into_bytes(),
    }
}

/// Waits until `holds`.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < 3 * SOON, "{what} has not come about");
        sleep(Duration::from_millis(5));
    }
}

fn next_state(subscriber: &Subscriber) -> (State, Received) {
    let message = subscriber.next(SOON).unwrap();
    (serde_json::from_slice(&message.payload).unwrap(), message)
}

#[test]
fn birth_death_and_will_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start().unwrap();
    let url = broker.url();
    let subscriber = Subscriber::new(broker.port, "scanside/+/+/+/state").unwrap();
    let store = store(folder.path());

    let first = Running::start(open(&url), &store);
    let (birth, message) = next_state(&subscriber);
    assert!(birth.online && birth.schema == "scanside.state/1");
    assert_eq!((message.qos, message.content_type.as_deref()), (1, Some("application/json")));
    first.handle.announce();
    assert!(next_state(&subscriber).0.online, "a change is published");
    first.stop();
    let (death, _) = next_state(&subscriber);
    assert!(!death.online && death.since.is_some());

    // A connection that is cut without a word: the broker publishes the Will, and the session is born again.
    let gate = Gate::new(broker.port);
    gate.open.store(true, Ordering::SeqCst);
    let second = Running::start(open(&gate.url()), &store);
    assert!(next_state(&subscriber).0.online);
    gate.cut();
    let (will, _) = next_state(&subscriber);
    assert!(!will.online && will.since.is_none(), "{will:?}");
    assert!(next_state(&subscriber).0.online);
    let late = Subscriber::new(broker.port, "scanside/+/+/+/state").unwrap();
    let (state, message) = next_state(&late);
    assert!(state.online && message.retained, "whoever comes later learns the state at once");
    second.stop();
    let (death, _) = next_state(&subscriber);
    assert!(!death.online && death.since.is_some());
    assert!(subscriber.next(Duration::from_millis(200)).is_err(), "no Will after the death");
}

#[test]
fn the_session_ends_when_told_even_if_its_broker_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start().unwrap();
    let store = store(folder.path());
    let running = Running::start(open(&broker.url()), &store);
    until("a connection", || running.handle.status().connected);
    broker.signal("STOP").unwrap();
    add(&store, 1..=100);
    running.handle.wake();
    let start = Instant::now();
    running.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(rows(&store).len(), 100, "and nothing is taken for delivered");
    broker.signal("CONT").unwrap();
}

#[test]
fn health_is_told_and_expires() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start().unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/health").unwrap();
    let running = Running::start(open(&broker.url()), &store(folder.path()));
    for _ in 0..3 {
        let message = subscriber.next(SOON).unwrap();
        assert_eq!((message.qos, message.retained), (0, false));
        assert_eq!(message.payload, b"{\"queue\":3}");
        assert_eq!(message.content_type.as_deref(), Some("application/json"));
        assert!(message.expiry.is_some_and(|seconds| (80..=90).contains(&seconds)), "{message:?}");
    }
    let rare = Health { interval: Duration::from_mins(10), expiry: Duration::from_secs(1) };
    running.handle.set_health(rare);
    sleep(Duration::from_millis(300));
    subscriber.arrived();
    assert!(subscriber.next(Duration::from_millis(400)).is_err(), "the new interval holds");
    // Nothing is said now for longer than the keep alive: only pings keep the connection.
    sleep(Duration::from_secs(4));
    assert_eq!(running.handle.status().connections, 1);
    running.stop();
}

#[test]
fn rows_added_later_are_sent_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start().unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/+/+/+/result/#").unwrap();
    let store = store(folder.path());
    let running = Running::start(open(&broker.url()), &store);
    until("a connection", || running.handle.status().connected);
    running.handle.set_health(Health { interval: Duration::from_mins(10), expiry: Duration::from_secs(1) });
    sleep(Duration::from_millis(300));
    for row in 1..=50 {
        add(&store, row..=row);
        running.handle.wake();
        let message = subscriber.next(SOON).unwrap();
        assert_eq!((message.payload, message.retained, message.expiry), (result(row).payload, false, None));
    }
    until("an empty outbox", || rows(&store).is_empty());
    until("the count", || running.handle.status().delivered == 50);
    running.stop();
}

/// Passes connections on to a broker while it is open, so that results are published only while somebody listens:
/// what is published to nobody is delivered as far as MQTT is concerned.
struct Gate {
    port: u16,
    open: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
}

impl Gate {
    fn new(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (gate, blade) = (open.clone(), cut.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if !gate.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                // It may have been closed, and another broker started, in between.
                if !gate.load(Ordering::SeqCst) {
                    continue;
                }
                let pairs = [(&client, &server), (&server, &client)];
                let pairs = pairs.map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()));
                for (mut from, mut to) in pairs {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    });
                }
                let blade = blade.clone();
                thread::spawn(move || {
                    while !blade.swap(false, Ordering::SeqCst) {
                        sleep(Duration::from_millis(5));
                        if client.take_error().is_err() || client.peer_addr().is_err() {
                            return;
                        }
                    }
                    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
                });
            }
        });
        Self { port, open, cut }
    }

    fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Ends the present connection without a word.
    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

/// What a consumer makes of what arrives: known identities are dropped.
#[derive(Default)]
struct Consumer {
    known: BTreeSet<u64>,
    arrived: usize,
}

impl Consumer {
    fn take(&mut self, messages: Vec<Received>) {
        for message in messages {
            let json: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            let row = json["result_id"].as_u64().unwrap();
            assert_eq!(message.payload, result(row).payload, "whole, as it was stored");
            self.arrived += 1;
            self.known.insert(row);
        }
    }
}

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[test]
fn nothing_is_lost_however_the_broker_ends() {
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    let (results, rounds): (u64, u64) = if long { (10_000, 50) } else { (1000, 5) };
    let mut random = Random(20_261_124);
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(folder.path());
    // Every message goes to the subscriber at once, and none waits in the broker's memory when it is killed.
    let configuration =
        "allow_anonymous true\npersistence true\nmax_inflight_messages 0\nmax_queued_messages 0";
    let mut broker = Mosquitto::on(free_port().unwrap(), configuration).unwrap();
    let filter = "scanside/+/+/+/result/#";
    let mut subscriber = Subscriber::silent(broker.port, filter).unwrap();
    let gate = Gate::new(broker.port);
    gate.open.store(true, Ordering::SeqCst);
    let mut running = Running::start(open(&gate.url()), &store);
    let mut consumer = Consumer::default();

    let (mut added, mut unheard, mut kinds) = (0, 0, [0; 5]);
    for round in 0..rounds {
        // A few results come while all is well, most in the middle of the trouble, and the next trouble comes while the
        // session works them off.
        let all = results * (round + 1) / rounds;
        let before = added + random.below((all - added) / 4);
        let mut come = |last: u64, store: &Store, handle: &Handle| {
            while added < last {
                let next = last.min(added + 10);
                add(store, added + 1..=next);
                handle.wake();
                added = next;
            }
        };
        come(before, &store, &running.handle);
        sleep(Duration::from_millis(random.below(30)));
        let kind = round % 5;
        kinds[kind as usize] += 1;
        match kind {
            // Killed, or ended in order and started again with what it wrote down.
            0 | 1 => {
                gate.open.store(false, Ordering::SeqCst);
                if kind == 0 {
                    broker.kill().unwrap();
                } else {
                    broker.terminate().unwrap();
                }
                consumer.take(subscriber.rest());
                come(all, &store, &running.handle);
                broker.restart(kind == 1).unwrap();
                subscriber = Subscriber::silent(broker.port, filter).unwrap();
                gate.open.store(true, Ordering::SeqCst);
            }
            // Stalled for longer than an acknowledgement may take; it works off all it has when it goes on.
            2 => {
                broker.signal("STOP").unwrap();
                come(all, &store, &running.handle);
                sleep(Duration::from_millis(600 + random.below(500)));
                broker.signal("CONT").unwrap();
            }
            // The connection is cut in the middle of a burst.
            3 => {
                come(all, &store, &running.handle);
                gate.cut();
            }
            // The service itself is started again, with a backlog.
            _ => {
                unheard += running.handle.status().unheard;
                running.stop();
                drop(store);
                store = self::store(folder.path());
                running = Running::start(open(&gate.url()), &store);
                come(all, &store, &running.handle);
            }
        }
        consumer.take(subscriber.arrived());
    }
    until("an empty outbox", || rows(&store).is_empty());
    unheard += running.handle.status().unheard;
    running.stop();
    assert_eq!(unheard, 0, "somebody listens whenever something is published");
    // What was acknowledged is on its way to the subscriber at the latest now.
    let start = Instant::now();
    while (consumer.known.len() as u64) < results && start.elapsed() < SOON {
        consumer.take(subscriber.arrived());
        sleep(Duration::from_millis(5));
    }
    let lost: Vec<u64> = (1..=results).filter(|row| !consumer.known.contains(row)).collect();
    println!(
        "{results} results, {rounds} rounds {kinds:?}: {} arrived, {} lost",
        consumer.arrived,
        lost.len()
    );
    assert_eq!(lost, Vec::<u64>::new());
    assert_eq!(consumer.known.len() as u64, results, "and nothing else arrived");
}

#[test]
fn what_access_rules_forbid_is_kept_and_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let made = Command::new("mosquitto_passwd").args(["-b", "-c", &at("users"), "box", "secret"]).status();
    assert!(made.unwrap().success());
    let allowed = "topic write scanside/v1/north/ct-2/state\ntopic write scanside/v1/north/ct-2/result/#\n";
    fs::write(at("acl"), format!("topic read #\nuser box\n{allowed}")).unwrap();
    fs::write(at("password"), "secret\n").unwrap();
    let mut permissions = fs::metadata(at("password")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(at("password"), permissions).unwrap();
    let configuration =
        format!("allow_anonymous true\npassword_file {}\nacl_file {}", at("users"), at("acl"));
    let mut broker = Mosquitto::on(free_port().unwrap(), &configuration).unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/+/+/+/result/#").unwrap();

    let store = store(folder.path());
    let secret = Message { topic: "scanside/v1/north/ct-2/shadow/lesion".into(), payload: b"{}".to_vec() };
    store.enqueue(std::slice::from_ref(&secret), 0).unwrap();
    add(&store, 2..=100);
    let password = PathBuf::from(at("password"));
    let credentials =
        Credentials { user: Some("box"), password_file: Some(&password), ..Credentials::default() };
    let endpoint = Endpoint::new(broker.url().parse().unwrap(), &credentials).unwrap();
    let running = Running::start(endpoint.clone(), &store);
    for row in 2..=100 {
        assert_eq!(subscriber.next(SOON).unwrap().payload, result(row).payload);
    }
    until("the other rows' end", || rows(&store) == [1]);
    let refused = |status: &runtime::publish::session::Status| {
        status.refused == 1 && status.trouble.as_deref() == Some("NotAuthorized")
    };
    until("the refusal", || refused(&running.handle.status()));
    // A command says so at once.
    let patience = Patience::default();
    let error = executor().block_on(publish(&endpoint, "other", &[secret], &patience)).unwrap_err();
    assert!(matches!(&error, PublishError::Refused { reason, .. } if reason == "NotAuthorized"), "{error}");

    // Once the rule is changed, the row goes.
    fs::write(
        at("acl"),
        format!("topic read #\nuser box\n{allowed}topic write scanside/v1/north/ct-2/shadow/#\n"),
    )
    .unwrap();
    broker.terminate().unwrap();
    broker.restart(false).unwrap();
    until("the last row's end", || rows(&store).is_empty());
    until("calm", || running.handle.status().trouble.is_none());
    running.stop();

    // A wrong password is refused, told in the status, and tried again.
    fs::write(at("password"), "wrong\n").unwrap();
    let endpoint = Endpoint::new(broker.url().parse().unwrap(), &credentials).unwrap();
    let running = Running::start(endpoint, &store);
    until("the refusal", || running.handle.status().trouble.as_deref() == Some("NotAuthorized"));
    running.stop();
}

/// A certificate authority, and what it signs, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join(format!("{name}.crt")), issuer.pem()).unwrap();
        Self { issuer }
    }

    fn sign(&self, folder: &Path, name: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(folder.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_with_certificates_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::new(folder.path(), "ca");
    Authority::new(folder.path(), "stranger").sign(folder.path(), "forged", "ct-2");
    authority.sign(folder.path(), "broker", "127.0.0.1");
    authority.sign(folder.path(), "box", "ct-2");
    let secure = free_port().unwrap();
    let configuration = format!(
        "allow_anonymous true\nlistener {secure} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        at("ca.crt").display(),
        at("broker.crt").display(),
        at("broker.key").display()
    );
    let broker = Mosquitto::on(free_port().unwrap(), &configuration).unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/+/+/+/result/#").unwrap();
    let endpoint = |host: &str, ca: &str, identity: Option<&str>| {
        let (ca, cert, key) =
            (at(ca), identity.map(|i| at(&format!("{i}.crt"))), identity.map(|i| at(&format!("{i}.key"))));
        let credentials = Credentials {
            ca: Some(&ca),
            identity: cert.as_deref().zip(key.as_deref()),
            ..Credentials::default()
        };
        Endpoint::new(format!("mqtts://{host}:{secure}").parse().unwrap(), &credentials)
    };

    let store = store(folder.path());
    add(&store, 1..=100);
    let running = Running::start(endpoint("127.0.0.1", "ca.crt", Some("box")).unwrap(), &store);
    for row in 1..=100 {
        assert_eq!(subscriber.next(SOON).unwrap().payload, result(row).payload);
    }
    until("an empty outbox", || rows(&store).is_empty());
    running.stop();

    let patience = Patience { attempts: 2, pause: Duration::from_millis(1), ..Patience::default() };
    let fails = |host: &str, ca: &str, identity: Option<&str>| {
        let endpoint = endpoint(host, ca, identity).unwrap();
        executor().block_on(publish(&endpoint, "scanside-test", &[result(1)], &patience)).unwrap_err()
    };
    let error = fails("127.0.0.1", "stranger.crt", Some("box"));
    assert!(matches!(error, PublishError::Untrusted { .. }), "{error}");
    assert!(
        error.to_string().contains("is not to be trusted") && !error.to_string().contains('\n'),
        "{error}"
    );
    let error = fails("localhost", "ca.crt", Some("box"));
    assert!(matches!(error, PublishError::Untrusted { .. }), "another name than the certificate's: {error}");
    for identity in [None, Some("forged")] {
        let error = fails("127.0.0.1", "ca.crt", identity);
        assert!(
            matches!(error, PublishError::Refused { .. } | PublishError::Unacknowledged { .. }),
            "{identity:?}: {error}"
        );
    }
    for (ca, identity) in [("box.key", Some("box")), ("none", None), ("ca.crt", Some("none"))] {
        let Err(error) = endpoint("127.0.0.1", ca, identity) else { panic!("{ca} {identity:?}") };
        assert!(error.is_bad_input() && matches!(error, PublishError::Credential { .. }), "{error}");
    }
    assert!(subscriber.next(Duration::from_millis(200)).is_err(), "nothing of it arrived");
}

#[test]
fn an_older_broker_or_none_at_all_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // Answers every CONNECT as MQTT 3.1.1 does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let _ = std::io::Write::write_all(&mut client.unwrap(), &[0x20, 2, 0, 1]);
        }
    });
    let running = Running::start(open(&format!("mqtt://127.0.0.1:{port}")), &store(folder.path()));
    until("the complaint", || running.handle.status().trouble.is_some_and(|t| t.contains("no MQTT 5")));
    assert!(!running.handle.status().connected);
    running.stop();
}
