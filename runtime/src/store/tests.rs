//! The store on a real disk; what power cuts do is in the modules below.

mod day;
mod power_cuts;
mod studies;

use std::fs;
use std::io::Write;
use std::thread;

use tempfile::TempDir;

use super::*;

const LIMITS: Limits = Limits { max_bytes: 1 << 30, min_free_bytes: 0, max_tries: 3 };

fn new_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let (store, recovery) = Store::open(folder.path(), LIMITS).unwrap();
    assert_eq!(recovery, Recovery { created: true, ..Recovery::default() });
    (folder, store)
}

fn reopen(folder: &TempDir, store: Store) -> (Store, Recovery) {
    drop(store);
    Store::open(folder.path(), LIMITS).unwrap()
}

fn instance(series: &str, sop: &str, content: &[u8]) -> NewInstance {
    NewInstance {
        study_uid: Some("1.2".into()),
        series_uid: series.into(),
        sop_uid: sop.into(),
        sha256: crate::tensor::sha256(content),
        bytes: content.len() as u64,
        expected: None,
        received: 1000,
    }
}

fn put(store: &Store, series: &str, sop: &str, content: &[u8]) -> Put {
    let mut spool = store.spool().unwrap();
    spool.write_all(content).unwrap();
    store.put(spool, &instance(series, sop, content)).unwrap()
}

fn final_result(id: &str) -> StoredResult {
    StoredResult { result_id: id.into(), task: "lesion".into(), kind: Kind::Final, json: "{}".into() }
}

fn message(text: &str) -> OutboxMessage {
    OutboxMessage { topic: "result/lesion".into(), payload: text.into() }
}

#[test]
fn an_instance_becomes_a_job_a_result_and_a_message() {
    let (folder, store) = new_store();
    assert_eq!(put(&store, "1.2.3", "1", b"one"), Put::New);
    assert_eq!(put(&store, "1.2.3", "2", b"two"), Put::New);
    assert_eq!(put(&store, "1.2.3", "1", b"one"), Put::Duplicate { same_bytes: true });
    assert_eq!(put(&store, "1.2.3", "1", b"other"), Put::Duplicate { same_bytes: false });
    let (store, recovery) = reopen(&folder, store);
    let expected = Recovery { instances: 2, bytes: 6, open_series: 1, ..Recovery::default() };
    assert_eq!(recovery, expected);
    let series = store.series().unwrap();
    assert_eq!((series.len(), series[0].instances, series[0].open), (1, 2, 2));
    assert_eq!(series[0].study_uid.as_deref(), Some("1.2"));

    let id = store.close("1.2.3", Completion::Idle, 2000).unwrap().unwrap();
    assert_eq!(store.close("1.2.3", Completion::Idle, 2000).unwrap(), None, "nothing new");
    assert_eq!(store.close("9.9.9", Completion::Idle, 2000).unwrap(), None, "unknown");
    assert!(store.series().unwrap().is_empty());

    let job = store.take(3000).unwrap().unwrap();
    assert_eq!((job.id, job.revision, job.tries, job.completion), (id, 0, 1, Completion::Idle));
    let sops: Vec<_> = job.instances.iter().map(|i| i.sop_uid.as_str()).collect();
    assert_eq!(sops, ["1", "2"]);
    assert_eq!(fs::read(&job.instances[0].path).unwrap(), b"one", "the first one was kept");
    assert_eq!(store.take(3000).unwrap(), None, "it is running");

    store.finish(id, &[final_result("r0")], &[message("a"), message("b")], 4000).unwrap();
    assert!(matches!(store.finish(id, &[], &[], 4000), Err(StoreError::NoSuchJob { .. })));
    let (store, recovery) = reopen(&folder, store);
    assert_eq!((recovery.jobs, recovery.outbox), (0, 2));
    assert_eq!(store.results("1.2.3").unwrap(), [final_result("r0")]);
    let waiting = store.outbox(0, 9).unwrap();
    assert_eq!(waiting.iter().map(|(_, m)| m.payload.as_slice()).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(store.outbox(waiting[0].0, 9).unwrap(), waiting[1..]);
    store.delivered(&[waiting[0].0]).unwrap();
    assert_eq!(store.outbox(0, 9).unwrap(), waiting[1..]);
    store.enqueue(&[message("c")], 5000).unwrap();
    assert_eq!(store.outbox(0, 9).unwrap().len(), 2);
    let counts = store.counts(0).unwrap();
    assert_eq!((counts.outbox, counts.oldest_message, counts.results), (2, Some(4000), 1));
}

#[test]
fn a_late_slice_makes_a_revision_that_names_what_it_replaces() {
    let (_folder, store) = new_store();
    put(&store, "s", "1", b"one");
    let first = store.close("s", Completion::AssociationEnd, 1).unwrap().unwrap();
    put(&store, "s", "2", b"two");
    let second = store.close("s", Completion::Idle, 2).unwrap().unwrap();
    put(&store, "t", "1", b"one");
    let other = store.close("t", Completion::Idle, 2).unwrap().unwrap();

    let job = store.take(3).unwrap().unwrap();
    assert_eq!((job.id, job.revision, job.instances.len()), (first, 0, 1));
    let next = store.take(3).unwrap().unwrap();
    assert_eq!(next.id, other, "the second revision waits for the first");
    assert_eq!(store.take(3).unwrap(), None);
    store.finish(first, &[final_result("r0")], &[], 4).unwrap();
    let job = store.take(5).unwrap().unwrap();
    assert_eq!((job.id, job.revision, job.instances.len()), (second, 1, 2));
    assert_eq!(job.replaces, BTreeMap::from([("lesion".to_owned(), "r0".to_owned())]));
}

#[test]
fn a_poison_series_is_given_up_with_its_reason_and_the_queue_goes_on() {
    let (folder, store) = new_store();
    for series in ["bad", "good"] {
        put(&store, series, "1", b"x");
        store.close(series, Completion::Idle, 1).unwrap().unwrap();
    }
    // One failure said, two processes ended by it.
    let bad = store.take(2).unwrap().unwrap();
    assert_eq!(store.fail(bad.id, "no memory", 2).unwrap(), Failure::Retry);
    let good = store.take(2).unwrap().unwrap();
    assert_eq!(good.series_uid, "good", "a failed job waits at the end");
    store.finish(good.id, &[], &[], 2).unwrap();
    let mut store = store;
    for tries in [2, 3] {
        let job = store.take(3).unwrap().unwrap();
        assert_eq!((job.id, job.tries, job.quarantined), (bad.id, tries, None));
        store = reopen(&folder, store).0;
    }
    let job = store.take(4).unwrap().unwrap();
    let reason = job.quarantined.unwrap();
    assert_eq!(reason, "none of 3 tries came to an end; an earlier one failed: no memory");
    // A crash before the refused result is kept does not lose it.
    let (store, recovery) = reopen(&folder, store);
    assert_eq!((recovery.jobs, recovery.tried), (1, 1));
    let job = store.take(5).unwrap().unwrap();
    assert!(job.quarantined.is_some());
    store.finish(job.id, &[], &[message("refused")], 5).unwrap();
    assert_eq!(store.take(6).unwrap(), None);
    let kept = store.quarantined().unwrap();
    assert_eq!((kept.len(), kept[0].tries, &kept[0].reason), (1, 3, &reason));
    assert_eq!(store.sweep(2000, 0).unwrap().series, 2);
    assert!(store.quarantined().unwrap().is_empty());
}

#[test]
fn the_last_failure_said_quarantines_and_a_job_given_back_was_not_tried() {
    let (_folder, store) = new_store();
    put(&store, "s", "1", b"x");
    store.close("s", Completion::Idle, 1).unwrap();
    for _ in 0..5 {
        let job = store.take(2).unwrap().unwrap();
        assert_eq!(job.tries, 1);
        store.give_back(job.id).unwrap();
    }
    for _ in 0..2 {
        let job = store.take(2).unwrap().unwrap();
        assert_eq!(store.fail(job.id, "first", 3).unwrap(), Failure::Retry);
    }
    let job = store.take(2).unwrap().unwrap();
    let Failure::Quarantined(job) = store.fail(job.id, "last", 3).unwrap() else { panic!("one try more") };
    assert_eq!(job.quarantined.as_deref(), Some("last"));
    assert_eq!(store.take(4).unwrap(), None, "it is the caller's to end");
    store.finish(job.id, &[], &[], 4).unwrap();
}

#[test]
fn what_is_over_is_swept_and_nothing_else() {
    let (folder, store) = new_store();
    for series in ["over", "queued", "open", "young"] {
        put(&store, series, "1", b"1234");
        if series != "open" {
            store.close(series, Completion::Idle, 1000).unwrap().unwrap();
        }
    }
    for end in [1000, 9000] {
        let mut job = store.take(end).unwrap().unwrap();
        if job.series_uid == "queued" {
            job = store.take(end).unwrap().unwrap();
        }
        store.finish(job.id, &[final_result(&job.series_uid)], &[message("m")], end).unwrap();
    }
    let path = store.instances("over").unwrap()[0].path.clone();
    let swept = store.sweep(10_000, 5000).unwrap();
    assert_eq!(swept, Swept { series: 1, instances: 1, bytes: 4, results: 1 });
    assert!(!path.parent().unwrap().exists());
    assert!(store.instances("over").unwrap().is_empty() && store.results("over").unwrap().is_empty());
    assert_eq!(store.outbox(0, 9).unwrap().len(), 2, "messages stay");
    assert_eq!(store.counts(0).unwrap().bytes, 12);
    assert_eq!(store.sweep(-5, 5000).unwrap(), Swept::default(), "a clock that jumps back removes nothing");
    // The same instance sent again is a new series.
    assert_eq!(put(&store, "over", "1", b"1234"), Put::New);
    let (store, recovery) = reopen(&folder, store);
    assert_eq!((recovery.orphans, recovery.missing.len(), recovery.bytes), (0, 0, 16));
    assert_eq!(store.close("over", Completion::Idle, 1).unwrap().map(|_| ()), Some(()));
}

#[test]
fn a_store_that_is_full_says_so_before_and_while_an_instance_is_received() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 10, ..LIMITS };
    let (store, _) = Store::open(folder.path(), limits).unwrap();
    put(&store, "s", "1", b"123456");
    let mut spool = store.spool().unwrap();
    spool.write_all(b"123").unwrap();
    let error = spool.write_all(b"45").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    spool.write_all(b"4").unwrap();
    let error = store.spool().unwrap_err();
    assert!(error.is_full() && matches!(error, StoreError::Full { used: 11, max: 10, .. }), "{error}");
    assert!(!error.is_bad_input());
    drop(spool);
    assert_eq!(store.counts(0).unwrap().bytes, 6, "what was not put is given back");
    let spool = store.spool().unwrap();
    assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 1);
    drop(spool);
    store.close("s", Completion::Idle, 1).unwrap();
    let job = store.take(1).unwrap().unwrap();
    store.finish(job.id, &[], &[], 1).unwrap();
    store.sweep(1000, 0).unwrap();
    put(&store, "s", "2", b"1234567890");

    drop(store);
    let limits = Limits { min_free_bytes: u64::MAX, ..LIMITS };
    let (store, _) = Store::open(folder.path(), limits).unwrap();
    assert!(matches!(store.spool(), Err(StoreError::Full { .. })));
}

#[test]
fn a_spool_of_another_length_is_refused() {
    let (_folder, store) = new_store();
    let mut spool = store.spool().unwrap();
    spool.write_all(b"1234").unwrap();
    let error = store.put(spool, &instance("s", "1", b"12345")).unwrap_err();
    assert_eq!(error.to_string(), "the instance has 4 bytes, expected 5; receive it again");
    assert!(store.series().unwrap().is_empty());
}

#[test]
fn two_processes_cannot_have_one_store() {
    let (folder, store) = new_store();
    let error = Store::open(folder.path(), LIMITS).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    Store::open(folder.path(), LIMITS).unwrap();
}

#[test]
fn what_was_not_acknowledged_is_removed_and_a_lost_file_is_told_and_mended() {
    let (folder, store) = new_store();
    put(&store, "s", "1", b"one");
    put(&store, "s", "2", b"two");
    let path = store.instances("s").unwrap()[0].path.clone();
    drop(store);
    fs::write(folder.path().join("spool/7"), "half").unwrap();
    fs::write(path.with_file_name("orphan"), "no row").unwrap();
    fs::create_dir(folder.path().join("instances/empty")).unwrap();
    fs::write(folder.path().join("index.redb.new"), "half").unwrap();
    fs::write(&path, "on").unwrap();
    let (store, recovery) = Store::open(folder.path(), LIMITS).unwrap();
    assert_eq!((recovery.spools, recovery.orphans), (1, 1));
    assert_eq!(recovery.missing, std::slice::from_ref(&path));
    assert!(!folder.path().join("instances/empty").exists());
    assert_eq!(put(&store, "s", "1", b"one"), Put::New);
    assert_eq!(fs::read(&path).unwrap(), b"one");
    let (store, recovery) = reopen(&folder, store);
    assert_eq!((recovery.missing.len(), recovery.instances, recovery.bytes), (0, 2, 6));
    assert_eq!(store.series().unwrap()[0].instances, 2);
}

#[test]
fn a_damaged_index_is_refused_in_one_sentence() {
    let (folder, store) = new_store();
    put(&store, "s", "1", b"one");
    drop(store);
    let path = folder.path().join("index.redb");
    for content in [&b""[..], &b"not an index"[..], &[0; 8192][..]] {
        fs::write(&path, content).unwrap();
        let error = Store::open(folder.path(), LIMITS).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Index { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap().len(), content.len(), "nothing was written over it");
    }
}

#[test]
fn many_at_once_share_commits_and_none_is_lost() {
    let (folder, store) = new_store();
    let new = std::sync::atomic::AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (store, new) = (&store, &new);
            scope.spawn(move || {
                for i in 0..20 {
                    // Each instance is sent by two of them.
                    let sop = format!("{}.{i}", thread / 2);
                    if put(store, &format!("series {}", i % 3), &sop, sop.as_bytes()) == Put::New {
                        new.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(new.into_inner(), 80);
    let (store, recovery) = reopen(&folder, store);
    assert_eq!(
        (recovery.instances, recovery.orphans, recovery.spools, recovery.missing.len()),
        (80, 0, 0, 0)
    );
    for series in store.series().unwrap() {
        for stored in store.instances(&series.series_uid).unwrap() {
            assert_eq!(fs::read(&stored.path).unwrap(), stored.sop_uid.as_bytes());
        }
    }
}

#[test]
fn what_is_swept_while_it_is_put_again_is_there_or_was_never_acknowledged() {
    let (folder, store) = new_store();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let mut swept = 0;
            while !stop.load(Ordering::Relaxed) {
                if let Some(job) = store.take(1000).unwrap() {
                    store.finish(job.id, &[], &[], 1000).unwrap();
                }
                swept += store.sweep(1000, 0).unwrap().series;
            }
            swept
        });
        for i in 0..60 {
            let sop = format!("{}", i % 2);
            put(&store, "s", &sop, sop.as_bytes());
            store.close("s", Completion::Idle, 1000).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(sweeper.join().unwrap() > 0, "nothing was swept");
    });
    put(&store, "s", "last", b"last");
    let there = store.instances("s").unwrap();
    assert!(there.iter().all(|stored| fs::read(&stored.path).unwrap() == stored.sop_uid.as_bytes()));
    let bytes: u64 = there.iter().map(|stored| stored.bytes).sum();
    assert_eq!(store.counts(0).unwrap().bytes, bytes);
    let recovery = reopen(&folder, store).1;
    assert_eq!((recovery.missing.len(), recovery.orphans), (0, 0));
}

#[test]
fn a_commit_that_panics_does_not_leave_others_waiting() {
    let group = &group::Group::new();
    let commit = |batch: Vec<u32>| if batch.contains(&1) { panic!("a fault of the test's") } else { Ok(()) };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|i| (i, scope.spawn(move || group.submit(i, commit)))).collect();
        for (i, thread) in threads {
            match thread.join() {
                Ok(Ok(())) => assert_ne!(i, 1),
                // It led, or was led by, the one that panicked.
                Ok(Err(StoreError::BrokenOff)) | Err(_) => {}
                Ok(Err(other)) => panic!("{other}"),
            }
        }
    });
    assert!(group.submit(2, commit).is_ok());
}
