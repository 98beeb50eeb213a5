//! A day of the store, as steps that can each be done again after a power cut, and what must be true at any instant of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::super::*;
use super::{LIMITS, instance};
use crate::disk::sim::{Random, SimDisk, SyncPoint};

/// Where the store lies on the simulated disk; the folder above it has to be made too.
pub const FOLDER: &str = "/data/store";

/// The kinds of syncs that the store does.
pub const POINTS: [SyncPoint; 7] = [
    "a spool file's content, before its renaming",
    "a series' folder, after the renaming into it",
    "the folder of the series' folders, after one was made",
    "the store's folder, after the index was renamed",
    "the folder in which the store's folder was made",
    "the new index before its renaming, by redb",
    "the index at each commit, by redb",
];

pub fn point(path: &Path, _: Option<&str>) -> SyncPoint {
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    POINTS[match names[..] {
        ["/", "data", "store", "spool", _] => 0,
        ["/", "data", "store", "instances", _] => 1,
        ["/", "data", "store", "instances"] => 2,
        ["/", "data", "store"] => 3,
        ["/"] | ["/", "data"] => 4,
        ["/", "data", "store", "index.redb.new"] => 5,
        ["/", "data", "store", "index.redb"] => 6,
        _ => panic!("the store syncs {}, which is no point known to the test", path.display()),
    }]
}

type Key = (&'static str, &'static str);

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// These come at once, and share a commit.
    Receive(&'static [Key]),
    Close(&'static str),
    /// The jobs in the queue are worked on until there is none.
    Work,
    /// One job, during which a late instance comes.
    WorkLate(Key),
    Preliminary(&'static str),
    /// Up to so many messages are sent and acknowledged.
    Deliver(usize),
    /// These are over by now.
    Sweep(&'static [&'static str]),
    /// The service is stopped and started.
    Restart,
}

/// Series `poison` fails every time. Instances of A and B come in turns, one twice; A gets a late one while its job runs. A task looks
/// at V and W together, and waits for W over a restart.
pub const DAY: [Step; 31] = [
    Step::Receive(&[("A", "1")]),
    Step::Receive(&[("A", "2"), ("B", "1"), ("B", "2")]),
    Step::Receive(&[("A", "2")]),
    Step::Preliminary("A"),
    Step::Receive(&[("A", "3")]),
    Step::Close("A"),
    Step::Receive(&[("B", "3")]),
    Step::WorkLate(("A", "4")),
    Step::Close("B"),
    Step::Deliver(2),
    Step::Close("A"),
    Step::Receive(&[("poison", "1")]),
    Step::Close("poison"),
    Step::Work,
    Step::Restart,
    Step::Deliver(3),
    Step::Receive(&[("C", "1"), ("C", "2")]),
    Step::Close("C"),
    Step::Sweep(&["A", "B", "poison"]),
    Step::Receive(&[("A", "1")]),
    Step::Work,
    Step::Deliver(1),
    Step::Receive(&[("D", "1")]),
    Step::Receive(&[("V", "1"), ("W", "1"), ("W", "2")]),
    Step::Close("V"),
    Step::Work,
    Step::Restart,
    Step::Close("W"),
    Step::Work,
    Step::Deliver(1),
    Step::Restart,
];

/// The task that looks at two series, and what it says of them.
const PAIR: &str = "pair";

/// What the store has promised, and what it was asked for without having promised it yet.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    asked: BTreeSet<Key>,
    acknowledged: BTreeSet<Key>,
    /// Series and `result_id`.
    results: BTreeSet<(String, String)>,
    /// Payloads.
    messages: BTreeSet<String>,
    /// What every id of the outbox stands for.
    ids: BTreeMap<u64, String>,
    /// Payloads that were sent; whether that was kept may not be known.
    sent: BTreeSet<String>,
    delivered: BTreeSet<u64>,
    finished: BTreeSet<JobId>,
    /// Jobs of the task that looks at two series.
    pairs: u64,
    tries: BTreeMap<JobId, u32>,
}

/// What is compared at the end of the day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    instances: BTreeSet<(String, String)>,
    open: Vec<(String, u32)>,
    results: BTreeSet<(String, String, String)>,
    quarantined: Vec<(String, u32)>,
    jobs: u64,
    /// Everything that was sent, and everything that waits.
    messages: BTreeSet<String>,
    files: BTreeSet<String>,
    bytes: u64,
}

/// A service without a scanner, a network or a broker: it does the steps and keeps account.
pub struct Service {
    pub disk: Arc<SimDisk>,
    pub facts: Facts,
    /// The facts after each number of operations at which they changed.
    pub history: Vec<(usize, usize, Facts)>,
    store: Option<Store>,
    step: usize,
}

/// What should not have been.
pub type Violation = String;

fn said(error: impl fmt::Display) -> Violation {
    error.to_string()
}

macro_rules! must {
    ($condition:expr, $($text:tt)*) => { if !$condition { return Err(format!($($text)*)); } };
}

/// The bytes of an instance: some are shorter than a sector, some have several.
fn content((series, sop): Key) -> Vec<u8> {
    let seed = series.bytes().chain(sop.bytes()).fold(7, |seed, byte| seed * 31 + u64::from(byte));
    let mut random = Random(seed);
    (0..100 + random.below(1500)).map(|_| random.next() as u8).collect()
}

impl Service {
    pub fn start(disk: SimDisk, facts: Facts, step: usize) -> Result<Self, Violation> {
        let mut service = Self { disk: Arc::new(disk), facts, history: Vec::new(), store: None, step };
        service.note();
        service.open()?;
        Ok(service)
    }

    fn open(&mut self) -> Result<(), Violation> {
        self.store = None;
        let disk = Arc::clone(&self.disk) as Arc<dyn Disk>;
        let (store, recovery) = Store::open_on(disk, Path::new(FOLDER), LIMITS).map_err(said)?;
        must!(recovery.missing.is_empty(), "acknowledged files are gone: {:?}", recovery.missing);
        self.store = Some(store);
        Ok(())
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Facts change before the first operation of what is asked for, and after the last of what was promised.
    fn note(&mut self) {
        self.history.push((self.disk.operations(), self.step, self.facts.clone()));
    }

    /// Does the rest of the day.
    pub fn go_on(&mut self) -> Result<(), Violation> {
        while self.step < DAY.len() {
            self.one_step()?;
        }
        Ok(())
    }

    /// Does the rest of the day; where a step fails, it is done again.
    pub fn go_on_in_spite_of_faults(&mut self) -> Result<(), Violation> {
        while self.step < DAY.len() {
            let Err(fault) = self.one_step() else { continue };
            must!(fault.contains("no storage space"), "{fault}");
            // What the step was about is held in memory only by these; a service would end and be started again.
            if matches!(DAY[self.step], Step::Work | Step::WorkLate(_) | Step::Restart) {
                self.open()?;
            }
        }
        Ok(())
    }

    pub fn one_step(&mut self) -> Result<(), Violation> {
        let now = self.step as i64 * 1000;
        match DAY[self.step] {
            Step::Receive(keys) => self.receive(keys, now)?,
            Step::Close(series) => {
                self.store().close(series, Completion::Idle, now).map_err(said)?;
            }
            Step::Work => while self.work(None, now)? {},
            Step::WorkLate(key) => {
                self.work(Some(key), now)?;
            }
            Step::Preliminary(series) => {
                let payload = format!("preliminary {series}");
                self.store().enqueue(&[message(&payload)], now).map_err(said)?;
                self.facts.messages.insert(payload);
            }
            Step::Deliver(most) => self.deliver(most)?,
            Step::Sweep(series) => {
                self.facts.acknowledged.retain(|(of, _)| !series.contains(of));
                self.facts.results.retain(|(of, _)| !series.contains(&of.as_str()));
                self.note();
                self.store().sweep(now, 4500).map_err(said)?;
            }
            Step::Restart => self.open()?,
        }
        self.step += 1;
        self.note();
        Ok(())
    }

    fn receive(&mut self, keys: &'static [Key], now: i64) -> Result<(), Violation> {
        self.facts.asked.extend(keys);
        self.note();
        let store = self.store();
        let mut placed = Vec::new();
        for &key in keys {
            let bytes = content(key);
            let new = NewInstance { received: now, ..instance(key.0, key.1, &bytes) };
            let mut spool = store.spool().map_err(said)?;
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            spool.write_all(head).and_then(|()| spool.write_all(tail)).map_err(|e| e.to_string())?;
            let put = if keys.len() == 1 {
                store.put(spool, &new).map_err(said)?
            } else {
                match store.place(spool, &new).map_err(said)? {
                    Ok(one) => {
                        placed.push(one);
                        Put::New
                    }
                    Err(duplicate) => duplicate,
                }
            };
            must!(put != Put::Duplicate { same_bytes: false }, "{key:?} has other bytes");
        }
        // What several callers of `put` have done by one of them.
        store.commit(&placed).map_err(said)?;
        self.facts.acknowledged.extend(keys);
        Ok(())
    }

    fn work(&mut self, late: Option<Key>, now: i64) -> Result<bool, Violation> {
        let Some(job) = self.store().take(now).map_err(said)? else {
            // The job was ended before the cut, and the late instance came before its end.
            return Ok(false);
        };
        must!(!self.facts.finished.contains(&job.id), "job {} came again after its end", job.id);
        if job.quarantined.is_none() {
            let before = self.facts.tries.insert(job.id, job.tries).unwrap_or(0);
            must!(job.tries > before, "try {} of job {} was not counted", before, job.id);
            self.note();
        }
        for stored in &job.instances {
            let found = self.disk.content(&stored.path).map_err(|e| e.to_string())?;
            must!(crate::tensor::sha256(&found) == stored.sha256, "{} has other bytes", stored.sop_uid);
        }
        if let Some((series, sop)) = late {
            let keys: &'static [Key] = &[("A", "4")];
            assert_eq!(keys, [(series, sop)]);
            if job.series_uid == series {
                self.receive(keys, now)?;
            }
        }
        if job.study.is_some() {
            return self.pair(&job, now);
        }
        let kind = if job.series_uid == "poison" { Kind::Refused } else { Kind::Final };
        if kind == Kind::Refused && job.quarantined.is_none() {
            match self.store().fail(job.id, "poison", now).map_err(said)? {
                Failure::Retry => return Ok(true),
                Failure::Quarantined(given) => must!(given.id == job.id, "another job"),
            }
        }
        let sops: Vec<&str> = job.instances.iter().map(|stored| stored.sop_uid.as_str()).collect();
        let result_id = format!("{}/{}/{}", job.series_uid, job.revision, sops.join("+"));
        let json = format!("{:?}", job.replaces);
        let result = StoredResult { result_id: result_id.clone(), task: "lesion".into(), kind, json };
        let wait = |until| Wait { task: PAIR.into(), until };
        let waits = match job.series_uid.as_str() {
            "V" => vec![wait(i64::MAX)],
            "W" => vec![wait(now)],
            _ => Vec::new(),
        };
        let (results, messages) = (&[result][..], &[message(&result_id)][..]);
        let ending = Ending { results, messages, waits: &waits, ..Ending::default() };
        self.store().end(job.id, &ending, now).map_err(said)?;
        self.facts.finished.insert(job.id);
        self.facts.pairs += waits.len() as u64;
        self.facts.results.insert((job.series_uid, result_id.clone()));
        self.facts.messages.insert(result_id);
        self.note();
        Ok(true)
    }

    /// One result about V and W, whichever's job comes first.
    fn pair(&mut self, job: &Job, now: i64) -> Result<bool, Violation> {
        let pair = ["V", "W"].map(|series| (series.to_owned(), PAIR.to_owned()));
        must!(!self.facts.results.contains(&pair[0]), "the job of {} came after its answer", job.series_uid);
        let study = self.store().study(&job.series_uid).map_err(said)?;
        let size = |uid: &str| study.iter().find(|s| s.series_uid == uid).map_or(0, |s| s.instances.len());
        must!((size("V"), size("W")) == (1, 2), "the study is {study:?}");
        let other = if job.series_uid == "V" { "W" } else { "V" };
        let result = StoredResult {
            result_id: PAIR.into(),
            task: PAIR.into(),
            kind: Kind::Final,
            json: String::new(),
        };
        self.facts.pairs = 0;
        self.note();
        let ending = Ending {
            results: &[result],
            messages: &[message(PAIR)],
            also: &[other.to_owned()],
            ..Ending::default()
        };
        self.store().end(job.id, &ending, now).map_err(said)?;
        self.facts.finished.insert(job.id);
        self.facts.results.extend(pair);
        self.facts.messages.insert(PAIR.into());
        self.note();
        Ok(true)
    }

    fn deliver(&mut self, most: usize) -> Result<(), Violation> {
        let found = self.store().outbox(0, most).map_err(said)?;
        self.check_outbox(&found)?;
        for (_, message) in &found {
            self.facts.messages.remove(&text(message));
            self.facts.sent.insert(text(message));
        }
        self.note();
        let ids: Vec<u64> = found.iter().map(|(id, _)| *id).collect();
        self.store().delivered(&ids).map_err(said)?;
        self.facts.delivered.extend(ids);
        Ok(())
    }

    fn check_outbox(&mut self, found: &[(u64, OutboxMessage)]) -> Result<(), Violation> {
        for (id, message) in found {
            must!(!self.facts.delivered.contains(id), "message {id} came again after its delivery");
            let known = self.facts.ids.entry(*id).or_insert_with(|| text(message));
            must!(*known == text(message), "message {id} is {message:?} and was {known}");
        }
        must!(found.is_sorted_by(|a, b| a.0 < b.0), "the outbox is out of order");
        Ok(())
    }

    /// All that was promised is there, and nothing that was not asked for.
    pub fn check(&mut self) -> Result<(), Violation> {
        let asked: Vec<Key> = self.facts.asked.iter().copied().collect();
        let mut bytes = 0;
        let mut there = BTreeSet::new();
        for series in asked.iter().map(|(series, _)| *series).collect::<BTreeSet<_>>() {
            for stored in self.store().instances(series).map_err(said)? {
                let key = asked.iter().copied().find(|key| *key == (series, stored.sop_uid.as_str()));
                let Some(key) = key else { return Err(format!("nobody sent {stored:?}")) };
                let found = self.disk.content(&stored.path).map_err(|e| format!("{key:?}: {e}"))?;
                must!(found == content(key), "{key:?} has other bytes");
                must!(there.insert(key), "{key:?} is there twice");
                bytes += stored.bytes;
            }
        }
        let lost: Vec<_> = self.facts.acknowledged.difference(&there).collect();
        must!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        // By then no job's time has come.
        let counts = self.store().counts(i64::MIN).map_err(said)?;
        let pairs = counts.awaiting_views;
        must!(
            pairs >= self.facts.pairs,
            "{pairs} jobs wait for other series instead of {}",
            self.facts.pairs
        );
        let is_answered = self.facts.results.iter().any(|(_, id)| id == PAIR);
        must!(!is_answered || pairs == 0, "{pairs} jobs wait for what has been answered");
        must!(counts.bytes == bytes, "{} bytes are counted, {bytes} are there", counts.bytes);
        must!(counts.instances == there.len() as u64, "{counts:?}");
        let files = self.disk.files().iter().filter(|name| name.contains("/instances/")).count();
        must!(files == there.len(), "{files} files for {} instances", there.len());

        for (series, id) in self.facts.results.clone() {
            let found = self.store().results(&series).map_err(said)?;
            let times = found.iter().filter(|result| result.result_id == id).count();
            must!(times == 1, "result {id} is there {times} times");
        }
        let outbox = self.store().outbox(0, usize::MAX).map_err(said)?;
        self.check_outbox(&outbox)?;
        let waiting: Vec<String> = outbox.iter().map(|(_, message)| text(message)).collect();
        for payload in &self.facts.messages {
            let times = waiting.iter().filter(|waiting| *waiting == payload).count();
            // To have asked for a preliminary message again, not knowing that it was kept, is the caller's doing.
            must!(
                times == 1 || times == 2 && payload.starts_with("preliminary"),
                "message {payload} waits {times} times"
            );
        }
        Ok(())
    }

    /// The state at the end of the day.
    pub fn state(&self) -> Result<State, Violation> {
        let store = self.store();
        let series: BTreeSet<&str> = self.facts.asked.iter().map(|(series, _)| *series).collect();
        let (mut instances, mut results) = (BTreeSet::new(), BTreeSet::new());
        for uid in series {
            let stored = store.instances(uid).map_err(said)?;
            instances.extend(stored.into_iter().map(|stored| (uid.to_owned(), stored.sop_uid)));
            let kept = store.results(uid).map_err(said)?;
            results.extend(kept.into_iter().map(|result| (uid.to_owned(), result.result_id, result.json)));
        }
        let open = store.series().map_err(said)?;
        let counts = store.counts(0).map_err(said)?;
        let quarantined = store.quarantined().map_err(said)?;
        let outbox = store.outbox(0, usize::MAX).map_err(said)?;
        let sent = self.facts.sent.iter().cloned();
        Ok(State {
            instances,
            open: open.into_iter().map(|series| (series.series_uid, series.open)).collect(),
            results,
            quarantined: quarantined.into_iter().map(|row| (row.series_uid, row.revision)).collect(),
            jobs: counts.waiting + counts.awaiting_views + counts.running,
            messages: sent.chain(outbox.iter().map(|(_, message)| text(message))).collect(),
            files: self.disk.files().into_iter().collect(),
            bytes: counts.bytes,
        })
    }
}

fn message(payload: &str) -> OutboxMessage {
    OutboxMessage { topic: "topic".into(), payload: payload.into() }
}

fn text(message: &OutboxMessage) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}
