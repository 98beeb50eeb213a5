//! The service under SIGKILL: two scanners send while it is killed at drawn instants, at its start too, and what it had
//! acknowledged is there, every series ends with a result of all its slices, and every result that was written down arrives.
#![allow(missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use runtime::result::{Kind, TaskResult};
use runtime::store::Store;
use tempfile::TempDir;
use tests::fixture::Fixture;
use tests::mosquitto::Mosquitto;
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, PATIENCE, series, series_uid};
use tests::subscriber::Subscriber;

const SLICES: usize = 6;

/// A series that a scanner wants to get rid of.
struct Series {
    uid: String,
    files: Vec<PathBuf>,
    /// Of its files, in their order, how many were acknowledged; a scanner sends all again unless all were.
    acknowledged: usize,
}

impl Series {
    fn new(folder: &Path, number: usize) -> Self {
        let files = series(folder, number, [20, 24, SLICES], |_, _| ()).unwrap();
        Self { uid: series_uid(number), files, acknowledged: 0 }
    }

    /// Sends it as a whole over one association; whether all of it was acknowledged.
    fn send(&mut self, to: std::net::SocketAddr) -> bool {
        let (_, said) = scanner::run(dcmtk("storescu", to, &[]).args(&self.files)).unwrap();
        self.acknowledged = self.acknowledged.max(said.matches("Received Store Response (Success)").count());
        self.acknowledged == self.files.len()
    }
}

#[test]
fn nothing_is_lost_when_the_service_is_killed() {
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    // Under emulation a start takes seconds, and a kill at its beginning says nothing new.
    let rounds = match (long, cfg!(target_arch = "x86_64")) {
        (true, true) => 200,
        (_, true) => 12,
        (_, false) => 3,
    };
    let (broker, folder, fixture) =
        (Mosquitto::start().unwrap(), TempDir::new().unwrap(), Fixture::for_a_service(|_| ()));
    let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/+/lesion").unwrap();
    // Every kill in the middle of a job is a try.
    let patient = "series.idle = \"2s\"\nstore.max_tries = 100";
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, patient).unwrap();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut made = 0;
    let mut sent: Vec<Series> = Vec::new();
    let mut waiting: Vec<Series> = Vec::new();
    let mut cut_short = 0;
    for round in 0..rounds {
        if round % 4 == 3 {
            on.start_and_kill(Duration::from_millis(random.random_range(0..120))).unwrap();
        }
        on.start().unwrap();
        while waiting.len() < 6 {
            made += 1;
            waiting.push(Series::new(folder.path(), made));
        }
        let (address, delay) = (on.address(), Duration::from_millis(random.random_range(0..1000)));
        let half = waiting.split_off(3);
        let scanners = [std::mem::take(&mut waiting), half].map(|mut series| {
            thread::spawn(move || {
                for series in &mut series {
                    if !series.send(address) {
                        break;
                    }
                }
                series
            })
        });
        thread::sleep(delay);
        on.kill().unwrap();
        let tried = scanners.into_iter().flat_map(|scanner| scanner.join().unwrap());
        let (whole, rest): (Vec<_>, Vec<_>) = tried.partition(|s| s.acknowledged == s.files.len());
        cut_short += rest.iter().filter(|s| s.acknowledged > 0).count();
        sent.extend(whole);
        waiting = rest;
    }
    // What had been acknowledged before the last kill is there, before anybody mends anything.
    {
        let store = on.store().unwrap();
        for series in sent.iter().chain(&waiting) {
            let stored = store.instances(&series.uid).unwrap();
            assert!(
                stored.len() >= series.acknowledged,
                "{}: {} of {}",
                series.uid,
                stored.len(),
                series.acknowledged
            );
        }
    }
    on.start().unwrap();
    for mut series in waiting {
        assert!(series.send(on.address()));
        sent.push(series);
    }
    let mut results: BTreeMap<String, TaskResult> = BTreeMap::new();
    let whole = |results: &BTreeMap<String, TaskResult>| -> BTreeSet<String> {
        let all = results.values().filter(|r| r.kind == Kind::Final && r.input.instances == SLICES);
        all.filter_map(|r| r.input.series_uid.clone()).collect()
    };
    let until = Instant::now() + PATIENCE;
    while whole(&results).len() < sent.len() {
        assert!(Instant::now() < until, "{} of {}: {:?}", whole(&results).len(), sent.len(), on.log());
        let Ok(message) = subscriber.next(Duration::from_secs(1)) else { continue };
        let result: TaskResult = serde_json::from_slice(&message.payload).unwrap();
        results.insert(result.result_id.clone(), result);
    }
    on.terminate().unwrap();
    for message in subscriber.arrived() {
        let result: TaskResult = serde_json::from_slice(&message.payload).unwrap();
        results.insert(result.result_id.clone(), result);
    }
    let revisions = compare(&on.store().unwrap(), &sent, &results);
    println!(
        "{rounds} kills, {} series, {cut_short} of them cut short while they were sent, {revisions} revisions: nothing lost",
        sent.len()
    );
}

/// Every job has ended, every result that was written down was delivered; how many revisions there were.
fn compare(store: &Store, sent: &[Series], results: &BTreeMap<String, TaskResult>) -> usize {
    assert!(store.outbox(0, 1).unwrap().is_empty() && store.quarantined().unwrap().is_empty());
    assert!(store.take(0).unwrap().is_none(), "no job is left");
    let mut revisions = 0;
    for series in sent {
        let stored = store.results(&series.uid).unwrap();
        let mut seen = BTreeSet::new();
        let mut before = None;
        for result in stored {
            let stored: TaskResult = serde_json::from_str(&result.json).unwrap();
            assert_eq!(results.get(&stored.result_id), Some(&stored), "written down and never delivered");
            assert!(
                seen.insert(stored.revision),
                "revision {} of {} ended twice",
                stored.revision,
                series.uid
            );
            assert_eq!(stored.replaces, before, "a revision names what it takes the place of");
            before = Some(stored.result_id);
        }
        revisions += seen.len();
        assert_eq!(store.instances(&series.uid).unwrap().len(), SLICES);
    }
    revisions
}
