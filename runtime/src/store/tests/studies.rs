//! Jobs of tasks that look at several series of a study.

use proptest::prelude::*;

use super::*;
use crate::disk::sim::SimDisk;
use crate::store::rows::JobRow;

fn close(store: &Store, series: &str, sop: &str, now: i64) {
    put(store, series, sop, sop.as_bytes());
    store.close(series, Completion::Idle, now).unwrap().unwrap();
}

fn wait(until: i64) -> Vec<Wait> {
    vec![Wait { task: "knee".into(), until }]
}

/// Ends the next job, which is one of `series` itself, and lets the task wait.
fn work(store: &Store, series: &str, until: i64, now: i64) {
    let job = store.take(now).unwrap().unwrap();
    assert_eq!((job.series_uid.as_str(), job.study), (series, None));
    store.end(job.id, &Ending { waits: &wait(until), ..Ending::default() }, now).unwrap();
}

fn knee(id: &str) -> StoredResult {
    StoredResult { task: "knee".into(), ..final_result(id) }
}

/// Ends the next job, which is the task's, with a result about its series and `also`.
fn answer(store: &Store, id: &str, also: &[&str], now: i64) -> Job {
    let job = store.take(now).unwrap().unwrap();
    assert_eq!(job.study.as_ref().map(|study| study.task.as_str()), Some("knee"));
    let also: Vec<String> = also.iter().map(|&uid| uid.to_owned()).collect();
    let ending = Ending { results: &[knee(id)], also: &also, ..Ending::default() };
    store.end(job.id, &ending, now).unwrap();
    job
}

#[test]
fn a_task_waits_until_its_time_and_holds_nothing_up() {
    let (folder, store) = new_store();
    close(&store, "a", "1", 10);
    work(&store, "a", 500, 20);
    let counts = |store: &Store, now| {
        let counts = store.counts(now).unwrap();
        (counts.waiting, counts.awaiting_views, counts.running)
    };
    assert_eq!((counts(&store, 499), counts(&store, 500)), ((0, 1, 0), (1, 0, 0)));
    assert_eq!((store.take(499).unwrap(), store.next_until().unwrap()), (None, Some(500)));
    // A late slice does not wait for it.
    close(&store, "a", "2", 30);
    let (store, recovery) = reopen(&folder, store);
    assert_eq!((recovery.jobs, recovery.tried), (2, 0));
    let late = store.take(40).unwrap().unwrap();
    assert_eq!((late.revision, late.study, late.instances.len()), (1, None, 2));
    store.finish(late.id, &[], &[], 40).unwrap();
    assert_eq!(store.sweep(9000, 0).unwrap().series, 0, "what waits is not over");
    let job = store.take(500).unwrap().unwrap();
    assert_eq!((job.study, job.tries), (Some(StudyJob { task: "knee".into(), since: 20 }), 1));
    assert_eq!(store.next_until().unwrap(), None, "it is running");
    store.finish(job.id, &[knee("r")], &[], 500).unwrap();
    assert_eq!(counts(&store, 500), (0, 0, 0));
    assert_eq!(store.sweep(9000, 0).unwrap().series, 1);
}

#[test]
fn one_result_answers_every_series_of_the_study() {
    let (folder, store) = new_store();
    for series in ["a", "b", "passed over"] {
        close(&store, series, series, 10);
    }
    put(&store, "open", "1", b"still coming");
    work(&store, "a", 500, 20);
    work(&store, "b", 20, 20);
    work(&store, "passed over", 20, 20);
    let study = store.study("a").unwrap();
    assert_eq!(study.iter().map(|s| s.series_uid.as_str()).collect::<Vec<_>>(), ["a", "b", "passed over"]);
    assert_eq!(answer(&store, "r0", &["b"], 30).series_uid, "a", "its time has come with b");
    for series in ["a", "b"] {
        assert_eq!(store.results(series).unwrap(), [knee("r0")]);
    }
    let job = store.take(30).unwrap().unwrap();
    assert_eq!(job.series_uid, "passed over", "b's job has ended");
    store.finish(job.id, &[], &[], 30).unwrap();
    assert_eq!(store.take(i64::MAX).unwrap(), None);

    // A late slice of one replaces the result of both.
    close(&store, "b", "late", 40);
    work(&store, "b", 40, 40);
    let job = answer(&store, "r1", &["a"], 50);
    assert_eq!(job.replaces, BTreeMap::from([("knee".to_owned(), "r0".to_owned())]));
    assert_eq!(store.study("b").unwrap()[0].results["knee"], "r1");
    assert_eq!(store.result("r1").unwrap(), Some(knee("r1")));
    // The result stays as long as one of its series.
    put(&store, "a", "later", b"x");
    assert_eq!(store.sweep(9000, 0).unwrap().results, 0);
    assert!(store.results("b").unwrap().is_empty());
    assert_eq!(store.results("a").unwrap().len(), 2);
    let store = reopen(&folder, store).0;
    store.close("a", Completion::Idle, 60).unwrap();
    let job = store.take(60).unwrap().unwrap();
    store.finish(job.id, &[], &[], 60).unwrap();
    assert_eq!(store.sweep(9000, 0).unwrap().results, 2);
    assert_eq!(store.counts(0).unwrap().results, 0);
}

#[test]
fn what_comes_last_says_how_long_all_wait_and_a_series_waits_once() {
    let (_folder, store) = new_store();
    close(&store, "a", "1", 10);
    work(&store, "a", 500, 10);
    close(&store, "b", "1", 100);
    work(&store, "b", 600, 100);
    assert_eq!(store.next_until().unwrap(), Some(600));
    close(&store, "a", "2", 200);
    work(&store, "a", 700, 200);
    assert_eq!((store.next_until().unwrap(), store.counts(0).unwrap().awaiting_views), (Some(700), 2));
    let job = store.take(700).unwrap().unwrap();
    assert_eq!((job.series_uid.as_str(), job.study.map(|study| study.since)), ("b", Some(200)));
    // Another study, and another task of the same one, are nobody's business.
    let other = NewInstance { study_uid: None, ..instance("no study", "1", b"1") };
    let mut spool = store.spool().unwrap();
    spool.write_all(b"1").unwrap();
    store.put(spool, &other).unwrap();
    store.close("no study", Completion::Idle, 300).unwrap();
    work(&store, "no study", 900, 300);
    assert_eq!(store.study("no study").unwrap().len(), 1);
    assert_eq!(store.next_until().unwrap(), Some(700));
}

#[test]
fn a_row_of_an_older_build_is_a_job_of_all_tasks() {
    let row = r#"{"series_uid":"a","revision":0,"completion":"idle","instances":1,"queued":5,"turn":0,"tries":0,
        "reason":null,"quarantined":false}"#;
    let row: JobRow = serde_json::from_str(row).unwrap();
    assert!(row.study.is_none() && !row.waits_at(i64::MIN));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order: a series has one job a task that waits, every wait ends in a result of its series, and
    /// nothing is left that would keep a series for ever.
    #[test]
    fn every_wait_is_answered(
        steps in prop::collection::vec((0..3usize, 0..4u8, any::<bool>(), any::<bool>()), 1..25),
    ) {
        let (store, _) = Store::open_on(Arc::new(SimDisk::new(day::point, None)), Path::new(day::FOLDER), LIMITS).unwrap();
        let names = ["a", "b", "c"];
        let mut waited = HashSet::new();
        let one = |now: i64, due: bool, both: bool, waited: &mut HashSet<String>| {
            let Some(job) = store.take(now).unwrap() else { return false };
            if job.study.is_none() {
                let until = if due { now } else { now + 1_000_000 };
                store.end(job.id, &Ending { waits: &wait(until), ..Ending::default() }, now).unwrap();
                waited.insert(job.series_uid);
            } else {
                let others = waited.iter().filter(|uid| both && **uid != job.series_uid);
                let also: Vec<String> = others.cloned().collect();
                let results = &[knee(&format!("{}", job.id))];
                store.end(job.id, &Ending { results, also: &also, ..Ending::default() }, now).unwrap();
            }
            true
        };
        for (n, (series, what, due, both)) in steps.into_iter().enumerate() {
            let now = n as i64;
            match what {
                0 => drop(put(&store, names[series], &n.to_string(), b"x")),
                1 => drop(store.close(names[series], Completion::Idle, now).unwrap()),
                _ => drop(one(now, due, both, &mut waited)),
            }
            prop_assert!(store.counts(i64::MIN).unwrap().awaiting_views <= waited.len() as u64);
        }
        for series in names {
            store.close(series, Completion::Idle, 100).unwrap();
        }
        while one(10_000_000, false, false, &mut waited) || one(20_000_000, false, true, &mut waited) {}
        for series in &waited {
            prop_assert!(!store.results(series).unwrap().is_empty(), "{series} waited in vain");
        }
        store.sweep(i64::MAX, 0).unwrap();
        let counts = store.counts(0).unwrap();
        prop_assert_eq!((counts.instances, counts.results, counts.waiting + counts.awaiting_views), (0, 0, 0));
    }
}
