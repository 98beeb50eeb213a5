//! The store under SIGKILL: a process that stores, works and delivers is killed at drawn instants, again and again, and what it
//! had said to be done is done.
//!
//! What a power cut takes beyond that is tried by simulation in `runtime::store`.
#![allow(missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use runtime::result::{Completion, Kind};
use runtime::store::{Job, Limits, NewInstance, OutboxMessage, Recovery, Store, StoredResult};
use runtime::tensor::sha256;
use tests::programs;

/// Set in the process that is to be killed: the store's folder.
const FOLDER: &str = "SCANSIDE_TEST_STORE";
/// Likewise: which process it is, from 0.
const RUN: &str = "SCANSIDE_TEST_RUN";

const LIMITS: Limits = Limits { max_bytes: 1 << 30, min_free_bytes: 0, max_tries: 4 };

fn open(folder: &Path) -> (Store, Recovery) {
    Store::open(folder, LIMITS).unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Something was promised: one line, in one write.
fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\nack {words}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn content(series: &str, sop: usize) -> Vec<u8> {
    format!("{series} {sop} ").repeat(200 + sop * 97).into_bytes()
}

fn put(store: &Store, series: &str, sop: usize) {
    let bytes = content(series, sop);
    let mut spool = store.spool().unwrap();
    for part in bytes.chunks(4096) {
        spool.write_all(part).unwrap();
    }
    let instance = NewInstance {
        study_uid: None,
        series_uid: series.into(),
        sop_uid: sop.to_string(),
        sha256: sha256(&bytes),
        bytes: bytes.len() as u64,
        expected: None,
        received: now(),
    };
    store.put(spool, &instance).unwrap();
    say(&format!("put {series} {sop}"));
}

/// The result of a job names its instances.
fn end(store: &Store, job: &Job) {
    let sops: Vec<&str> = job.instances.iter().map(|stored| stored.sop_uid.as_str()).collect();
    let result_id = format!("{}/{}/{}", job.series_uid, job.revision, sops.join("+"));
    let kind = if job.quarantined.is_some() { Kind::Refused } else { Kind::Final };
    let message = OutboxMessage { topic: "result".into(), payload: result_id.clone().into_bytes() };
    let result = StoredResult { result_id: result_id.clone(), task: "t".into(), kind, json: String::new() };
    store.finish(job.id, &[result], &[message], now()).unwrap();
    say(&format!("finished {} {} {result_id}", job.id, job.series_uid));
}

/// The process that is killed: two scanners, a worker and a publisher, for ever. One series kills it by itself.
fn live(folder: &Path, run: usize) {
    // A thread that panics would leave the others alive, and the kill would hide it.
    std::panic::set_hook(Box::new(|info| {
        say(&format!("panic {info}").replace('\n', " "));
        std::process::abort();
    }));
    let (store, recovery) = open(folder);
    assert!(recovery.missing.is_empty(), "{recovery:?}");
    let store = &store;
    say("open");
    let next = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _scanner in 0..2 {
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let name = if run == 1 && number == 0 { "poison" } else { "series" };
                    let series = format!("{name}-{run}-{number}");
                    (0..5).for_each(|sop| put(store, &series, sop));
                    store.close(&series, Completion::AssociationEnd, now()).unwrap();
                    put(store, &series, 5);
                    store.close(&series, Completion::Idle, now()).unwrap();
                }
            });
        }
        scope.spawn(move || {
            loop {
                let Some(job) = store.take(now()).unwrap() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                if job.series_uid.starts_with("poison") && job.quarantined.is_none() {
                    std::process::abort();
                }
                end(store, &job);
            }
        });
        scope.spawn(move || {
            loop {
                let found = store.outbox(0, 3).unwrap();
                for (id, _) in &found {
                    say(&format!("sending {id}"));
                }
                store.delivered(&found.iter().map(|(id, _)| *id).collect::<Vec<_>>()).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    });
}

/// What the killed processes have said.
#[derive(Default)]
struct Said {
    put: BTreeSet<(String, usize)>,
    finished: BTreeMap<String, (String, String)>,
    sent: BTreeSet<u64>,
}

impl Said {
    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["put", series, sop] => {
                self.put.insert((series.into(), sop.parse().unwrap()));
            }
            ["finished", job, series, id] => {
                let before = self.finished.insert(job.into(), (series.into(), id.into()));
                assert_eq!(before, None, "job {job} ended twice");
            }
            ["sending", id] => {
                self.sent.insert(id.parse().unwrap());
            }
            _ => assert_eq!(line, "open", "the killed process had a fault of its own"),
        }
    }

    /// All of it is there, in a store that nobody has touched since the kill.
    fn check(&self, folder: &Path) {
        let (store, recovery) = open(folder);
        assert!(recovery.missing.is_empty(), "{recovery:?}");
        let mut there = BTreeMap::new();
        for (series, sop) in &self.put {
            let stored = there.entry(series).or_insert_with(|| store.instances(series).unwrap());
            let found = stored.iter().find(|stored| stored.sop_uid == sop.to_string());
            let path = found.map(|stored| stored.path.clone()).unwrap_or_default();
            assert_eq!(std::fs::read(&path).ok(), Some(content(series, *sop)), "{series} {sop}");
        }
        let outbox = store.outbox(0, usize::MAX).unwrap();
        for (series, id) in self.finished.values() {
            let results = store.results(series).unwrap();
            assert_eq!(results.iter().filter(|result| result.result_id == *id).count(), 1, "{id}");
        }
        // Ids have no gaps, so what was never sent must wait.
        let waiting: BTreeSet<u64> = outbox.iter().map(|(id, _)| *id).collect();
        let last = waiting.iter().chain(&self.sent).max().copied().unwrap_or(0);
        assert!((1..=last).all(|id| waiting.contains(&id) || self.sent.contains(&id)), "a message is gone");
        assert!(waiting.len() + self.sent.len() >= self.finished.len(), "a message is gone");
    }
}

#[test]
fn what_was_done_stays_done_however_often_the_process_is_killed() {
    if let (Some(folder), Ok(run)) = (std::env::var_os(FOLDER), std::env::var(RUN)) {
        live(&PathBuf::from(folder), run.parse().unwrap());
        return;
    }
    let kills = if std::env::var_os("SCANSIDE_LONG").is_some() { 200 } else { 12 };
    let folder = tempfile::tempdir().unwrap();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut said = Said::default();
    for run in 0..kills {
        let mut child = programs::itself()
            .args(["--exact", "what_was_done_stays_done_however_often_the_process_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(RUN, run.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (promised, promises) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut acks = Vec::new();
            for line in lines.map_while(Result::ok) {
                if let Some(words) = line.strip_prefix("ack ") {
                    acks.push(words.to_owned());
                    let _ = promised.send(());
                }
            }
            acks
        });
        // So many promises after the opening, and some time into the next one. The poison series may end it before.
        for promise in 0..=random.next_u32() % 60 {
            match promises.recv_timeout(Duration::from_mins(1)) {
                Err(mpsc::RecvTimeoutError::Disconnected) if promise > 0 => break,
                other => other.expect("a store that opens and goes on"),
            }
        }
        std::thread::sleep(Duration::from_micros(u64::from(random.next_u32() % 10_000)));
        child.kill().unwrap();
        reader.join().unwrap().iter().for_each(|words| said.note(words));
        assert!(!child.wait().unwrap().success());
        said.check(folder.path());
    }

    // What is left is worked off, and every acknowledged instance is in a result.
    let (mut store, _) = open(folder.path());
    for series in store.series().unwrap() {
        store.close(&series.series_uid, Completion::MaxAge, now()).unwrap();
    }
    let mut refused = 0;
    while let Some(job) = store.take(now()).unwrap() {
        if job.series_uid.starts_with("poison") && job.quarantined.is_none() {
            // It would have ended this process too.
            drop(store);
            store = open(folder.path()).0;
            continue;
        }
        refused += usize::from(job.quarantined.is_some());
        end(&store, &job);
    }
    for (series, sop) in &said.put {
        let results = store.results(series).unwrap();
        let last = results.last().map(|result| result.result_id.as_str()).unwrap_or_default();
        let sops = last.rsplit('/').next().unwrap_or_default();
        assert!(sops.split('+').any(|found| found == sop.to_string()), "{series} {sop} in {last}");
    }
    let given_up = store.quarantined().unwrap();
    let poison = given_up.iter().filter(|row| row.series_uid.starts_with("poison")).count();
    let is_there = said.put.iter().any(|(series, _)| series.starts_with("poison"));
    assert!(poison > 0 || !is_there, "{given_up:?}");
    println!(
        "{kills} kills: {} instances, {} jobs ended, {} messages sent, {} given up, {refused} of them at the end",
        said.put.len(),
        said.finished.len(),
        said.sent.len(),
        given_up.len()
    );
    assert!(said.put.len() > kills, "the killed processes did next to nothing");
}
