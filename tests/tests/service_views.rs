//! The service with a task of two views, axial and sagittal: it waits for both within a study, and says of them what `infer` says.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dicom_core::VR;
use dicom_dictionary_std::tags;
use firmware_config::MissingViews;
use runtime::result::{Kind, TaskResult};
use runtime::slots::Slots;
use runtime::tensor::sha256;
use tests::dicom::put_text;
use tests::fixture::{Fixture, give_views};
use tests::golden::version;
use tests::programs::{program, run};
use tests::service::{PATIENCE, Site, assert_same, series_along, series_uid};

/// The device's rules, of which `wait` is how long it waits.
fn rules(wait: &str) -> String {
    format!(
        "[[task]]\nname = \"lesion\"\n{wait}\n[task.views.axial]\nplane = [\"axial\"]\n\
         [task.views.sagittal]\nplane = [\"sagittal\"]"
    )
}

/// A box that runs the task.
fn started(missing: MissingViews, wait: &str) -> Site {
    let fixture = Fixture::for_a_service(|manifest| give_views(manifest, missing));
    let mut site = Site::with(fixture, &rules(wait)).unwrap();
    site.on.start().unwrap();
    site
}

/// Writes a series of a study; all series of one study say the same Study Instance UID.
fn write(site: &Site, study: usize, number: usize, codes: &str, slices: usize) -> Vec<PathBuf> {
    let edit =
        |_, slice: &mut _| put_text(slice, tags::STUDY_INSTANCE_UID, VR::UI, &format!("1.2.840.{study}"));
    series_along(codes, site.files.path(), number, [20, 24, slices], edit).unwrap()
}

fn axial(site: &Site, study: usize, number: usize, slices: usize) -> Vec<PathBuf> {
    write(site, study, number, "LPS", slices)
}

fn sagittal(site: &Site, study: usize, number: usize) -> Vec<PathBuf> {
    write(site, study, number, "PIL", 7)
}

fn send(site: &Site, files: &[PathBuf]) {
    let (ok, said) = site.send(files).unwrap();
    assert!(ok, "{said}");
}

/// What `infer` says of stored series, by view and number.
fn offline(site: &Site, views: &[(&str, usize)]) -> TaskResult {
    let mut infer = program("scanside");
    infer.args(["infer", "--device", "ct-2", "--threads", "2", "--backbone"]).arg(&site.fixture.backbone);
    infer.arg("--plugin").arg(&site.fixture.plugin);
    for (view, number) in views {
        let stored = site.on.data().join("store/instances").join(sha256(series_uid(*number).as_bytes()));
        infer.arg("--input").arg(format!("{view}={}", stored.display()));
    }
    let outcome = run(&mut infer);
    outcome.success();
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// The series of each view that a result is about.
fn views(result: &TaskResult) -> Vec<(&str, Option<String>)> {
    let views = result.input.views.iter();
    views.map(|(view, input)| (view.as_str(), input.series_uid.clone())).collect()
}

/// Ends the service: nothing waits, and of these series it has kept just so many results, all of which were delivered.
fn end(mut site: Site, kept: &[(usize, usize)]) {
    site.on.terminate().unwrap();
    let more: Vec<_> = site.subscriber.arrived();
    let more = more.iter().filter(|message| message.topic.ends_with("/lesion"));
    assert_eq!(more.count(), 0, "a result that nobody expected");
    let store = site.on.store().unwrap();
    assert_eq!(store.take(i64::MAX).unwrap(), None, "a job is left");
    assert!(store.outbox(0, 1).unwrap().is_empty() && store.quarantined().unwrap().is_empty());
    for &(number, count) in kept {
        assert_eq!(store.results(&series_uid(number)).unwrap().len(), count, "of series {number}");
    }
}

#[test]
fn both_views_give_one_result_in_either_order_and_a_late_slice_another() {
    let mut site = started(MissingViews::Refuse, "");
    // Of two studies one view each: nothing belongs together.
    send(&site, &axial(&site, 1, 1, 9));
    send(&site, &sagittal(&site, 2, 2));
    for job in ["job=0", "job=2"] {
        let line = site.on.await_line(&format!("a job has ended {job}")).unwrap();
        assert!(line.contains("waits=1"), "{line}");
    }
    let late = axial(&site, 2, 3, 9);
    send(&site, &late[..8]);
    let second = site.next().unwrap();
    send(&site, &sagittal(&site, 1, 4));
    let first = site.next().unwrap();
    for (result, pair) in [(&second, [3, 2]), (&first, [1, 4])] {
        assert_eq!((result.kind, result.revision, &result.replaces), (Kind::Final, 0, &None));
        let expected = ["axial", "sagittal"].into_iter().zip(pair.map(|n| Some(series_uid(n))));
        assert_eq!(views(result), expected.collect::<Vec<_>>());
        assert_same(result, &offline(&site, &[("sagittal", pair[1]), ("axial", pair[0])]));
        assert_eq!((result.warnings.len(), result.labels.len()), (0, 2));
    }
    assert_ne!(first.labels, second.labels);

    send(&site, &late[8..]);
    let again = site.next().unwrap();
    assert_eq!(
        (again.kind, again.revision, again.replaces.as_ref()),
        (Kind::Final, 1, Some(&second.result_id))
    );
    assert_eq!((views(&again), again.input.instances), (views(&second), 16));
    let expected = offline(&site, &[("axial", 3), ("sagittal", 2)]);
    assert_eq!((&again.labels, &again.input.digest), (&expected.labels, &expected.input.digest));
    let metrics = site.on.get("/metrics").unwrap();
    assert!(metrics.contains("scanside_jobs_finished_total{kind=\"final\"} 3"), "{metrics}");
    end(site, &[(1, 1), (4, 1), (2, 2), (3, 2)]);
}

#[test]
fn a_kill_between_the_two_series_costs_nothing() {
    let mut site = started(MissingViews::Refuse, "views_wait_min = 600");
    send(&site, &sagittal(&site, 1, 1));
    site.on.await_line("waits=1").unwrap();
    let metrics = site.on.get("/metrics").unwrap();
    for line in ["scanside_jobs_awaiting_views 1", "scanside_jobs_waiting 0", "scanside_healthy 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    site.on.kill().unwrap();
    site.on.start().unwrap();
    send(&site, &axial(&site, 1, 2, 8));
    let result = site.next().unwrap();
    assert_eq!((result.kind, result.revision), (Kind::Final, 0));
    assert_same(&result, &offline(&site, &[("axial", 2), ("sagittal", 1)]));
    end(site, &[(1, 1), (2, 1)]);
}

#[test]
fn a_study_that_waits_over_a_switch_is_classified_by_the_new_plugin_alone() {
    let mut site = started(MissingViews::Refuse, "views_wait_min = 600");
    let first = site.fixture.plugin.clone();
    let second = version(&site.fixture, "1.1.0", |plugin| {
        plugin.content.get_mut("head.bias").unwrap().data[0] += 1.0;
    });
    send(&site, &axial(&site, 1, 1, 8));
    site.on.await_line("waits=1").unwrap();
    site.on.install(&second).unwrap();
    until("the second plugin", || {
        site.on.log().iter().any(|line| line.contains("task loaded") && line.contains("version=\"1.1.0\""))
    });
    send(&site, &sagittal(&site, 1, 2));
    let result = site.next().unwrap();
    assert_eq!((result.kind, result.revision, &result.replaces), (Kind::Final, 0, &None));
    site.fixture.plugin = second;
    assert_same(&result, &offline(&site, &[("axial", 1), ("sagittal", 2)]));
    site.fixture.plugin = first;
    assert_ne!(result.labels, offline(&site, &[("axial", 1), ("sagittal", 2)]).labels);
    end(site, &[(1, 1), (2, 1)]);
}

#[test]
fn a_study_that_waits_for_a_task_which_is_taken_off_is_refused() {
    let mut site = started(MissingViews::Refuse, "views_wait_min = 0.1");
    send(&site, &axial(&site, 1, 1, 8));
    site.on.await_line("waits=1").unwrap();
    Slots::new(&site.on.data()).retire("lesion", "nobody wants it").unwrap();
    let refused = site.next().unwrap();
    assert_eq!((refused.kind, refused.revision), (Kind::Refused, 0));
    assert_eq!(refused.input.series_uid, Some(series_uid(1)));
    let [reason] = &refused.warnings[..] else { panic!("{:?}", refused.warnings) };
    assert!(reason.contains("nobody wants it"), "{reason}");
    end(site, &[(1, 1)]);
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} does not come about");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_view_that_does_not_come_is_refused_and_replaced_when_it_comes_after_all() {
    let site = started(MissingViews::Refuse, "views_wait_min = 0.02");
    send(&site, &axial(&site, 1, 1, 8));
    let refused = site.next().unwrap();
    assert_eq!((refused.kind, refused.labels.len()), (Kind::Refused, 0));
    assert_eq!(refused.warnings, ["the study had no series for the view sagittal within 1s"]);
    assert_eq!(views(&refused), [("axial", Some(series_uid(1)))]);
    send(&site, &sagittal(&site, 1, 2));
    let result = site.next().unwrap();
    assert_eq!((result.kind, result.revision, result.replaces), (Kind::Final, 1, Some(refused.result_id)));
    end(site, &[(1, 2), (2, 1)]);
}

#[test]
fn a_view_that_does_not_come_is_left_out_where_the_plugin_says_so() {
    let site = started(MissingViews::Pool, "views_wait_min = 0.02");
    send(&site, &sagittal(&site, 1, 1));
    let result = site.next().unwrap();
    assert_eq!((result.kind, result.revision), (Kind::Final, 0));
    assert!(result.warnings.iter().any(|w| w.starts_with("there was no scan for the view axial")));
    assert_same(&result, &offline(&site, &[("sagittal", 1)]));
    end(site, &[(1, 1)]);
}

#[test]
fn of_two_series_for_a_view_one_is_taken_and_the_other_refused() {
    let site = started(MissingViews::Refuse, "");
    send(&site, &[axial(&site, 1, 1, 6), axial(&site, 1, 2, 9)].concat());
    send(&site, &sagittal(&site, 1, 3));
    let mut results = [site.next().unwrap(), site.next().unwrap()];
    results.sort_by_key(|result| result.kind == Kind::Final);
    let [refused, result] = results;
    assert_eq!((refused.kind, refused.input.series_uid), (Kind::Refused, Some(series_uid(1))));
    assert_eq!(refused.warnings, ["for each view that the series fits, another one of its study is taken"]);
    assert_eq!(result.kind, Kind::Final);
    assert_same(&result, &offline(&site, &[("axial", 2), ("sagittal", 3)]));
    end(site, &[(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn why_tells_of_a_study_what_each_view_takes_and_which_rule_is_missing() {
    let fixture = Fixture::for_a_service(|manifest| give_views(manifest, MissingViews::Refuse));
    let site = Site::with(fixture, &rules("")).unwrap();
    let why = |files: &[PathBuf], words: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        for (n, file) in files.iter().enumerate() {
            fs::copy(file, folder.path().join(n.to_string())).unwrap();
        }
        let mut why = program("scanside");
        let outcome =
            run(why.arg("why").arg(folder.path()).arg("--config").arg(site.on.config()).args(words));
        outcome.success();
        outcome.stdout
    };
    let (one, two) = (axial(&site, 1, 1, 6), sagittal(&site, 1, 2));
    let alone = why(&one, &[]);
    assert!(alone.contains("  lesion waits for sagittal, and then refuses it\n"), "{alone}");
    assert!(alone.contains("    NO  sagittal: no series"), "{alone}");
    let both = [one, two].concat();
    let text = why(&both, &[]);
    let expected = format!(
        "study 1.2.840.1 (2 series)\n  lesion classifies it\n    ok  axial: series {}\n    ok  sagittal: series {}",
        series_uid(1),
        series_uid(2)
    );
    assert!(text.contains(&expected), "{text}");
    let last = why(&both, &["--json"]);
    let last: serde_json::Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    assert_eq!(last["decision"]["views"]["sagittal"], series_uid(2));
    assert_eq!(last["decision"]["missing"], serde_json::json!([]));

    site.on.configure("[[task]]\nname = \"lesion\"\n[task.views.axial]\n[task.views.coronal]").unwrap();
    let text = why(&both, &[]);
    for told in [
        "NO  rules.views.sagittal: asks for a table of the device that says which series the plugin's view sagittal \
         gets, found a configuration without it",
        "NO  rules.views.coronal: asks for one of the plugin's views axial, sagittal, found coronal",
        "  lesion does not take it",
    ] {
        assert!(text.contains(told), "{text}");
    }
}
