//! Plugins that change under a running service: a switch while a series arrives, a candidate in the shadow, golden cases again.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dicom_core::VR;
use dicom_dictionary_std::tags;
use firmware_config::{Promote, Shadow, TargetRef};
use runtime::result::{Kind, TaskResult, Trust};
use runtime::slots::{Slots, State};
use runtime::tensor::sha256;
use tests::dicom::put_text;
use tests::fixture::Fixture;
use tests::golden::version;
use tests::programs::{program, run};
use tests::service::{PATIENCE, Site, assert_same, next_result, series, series_uid};

/// Of every series here.
const SLICES: usize = 12;

/// A box whose series end when as many slices have come as they announce.
fn site(extra: &str) -> Site {
    let by_count = "series.association_end = false\nseries.idle = \"10min\"";
    Site::started(&format!("{by_count}\n{extra}")).unwrap()
}

fn announced(site: &Site, number: usize) -> Vec<PathBuf> {
    let all = series(site.files.path(), number, [20, 24, SLICES], |_, slice| {
        put_text(slice, tags::IMAGES_IN_ACQUISITION, VR::IS, &SLICES.to_string());
    });
    all.unwrap()
}

fn send(site: &Site, files: &[PathBuf]) {
    let (ok, said) = site.send(files).unwrap();
    assert!(ok, "{said}");
}

/// What `scanside infer` says of a stored series with a plugin.
fn offline(site: &Site, number: usize, plugin: &Path) -> TaskResult {
    let stored = site.on.data().join("store/instances").join(sha256(series_uid(number).as_bytes()));
    let outcome = run(program("scanside")
        .args(["infer", "--device", "ct-2", "--threads", "2", "--backbone"])
        .arg(&site.fixture.backbone)
        .arg("--plugin")
        .arg(plugin)
        .arg("--input")
        .arg(stored));
    outcome.success();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn metric(site: &mut Site, name: &str) -> u64 {
    let page = site.on.get("/metrics").unwrap();
    let line =
        page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {page}"));
    line.trim().parse().unwrap()
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} does not come about");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Lines of the log that say that this version of the task was loaded.
fn loaded(site: &Site, number: &str) -> usize {
    let named = format!("version=\"{number}\"");
    site.on.log().iter().filter(|line| line.contains("task loaded") && line.contains(&named)).count()
}

#[test]
fn a_switch_while_a_series_arrives_loses_and_repeats_nothing() {
    let mut site = site("");
    let first = site.fixture.plugin.clone();
    let second = version(&site.fixture, "1.1.0", |plugin| {
        let head = &mut plugin.content.get_mut("head.bias").unwrap().data;
        head[0] += 1.0;
    });
    // The second comes from a repository, as far as the slots are told.
    let bytes = fs::read(&second).unwrap();
    let target =
        TargetRef { name: "lesion-1.1.0.plugin".into(), length: bytes.len() as u64, sha256: sha256(&bytes) };
    let slots = Slots::new(&site.on.data());

    let one = announced(&site, 1);
    send(&site, &one[..6]);
    slots.install(&second, Some(target.clone())).unwrap();
    site.on.plugin(&["activate", "lesion"]).unwrap();
    until("the second plugin", || loaded(&site, "1.1.0") == 1);
    send(&site, &one[6..11]);
    let last = Instant::now();
    send(&site, &one[11..]);
    let result = site.next().unwrap();
    println!("result {:.3} s after the last slice, with a switch in between", last.elapsed().as_secs_f64());
    assert_eq!((result.kind, result.trust), (Kind::Final, Trust::Unsigned), "it ends as it began");
    assert_same(&result, &offline(&site, 1, &first));

    let two = announced(&site, 2);
    let last = Instant::now();
    send(&site, &two[..4]);
    assert_eq!(site.on.plugin(&["rollback", "lesion"]).unwrap().stdout, "lesion 1.0.0 is active again\n");
    until("the first plugin", || loaded(&site, "1.0.0") == 2);
    send(&site, &two[4..]);
    let result = site.next().unwrap();
    println!(
        "result {:.3} s after the first slice, with a rollback in between",
        last.elapsed().as_secs_f64()
    );
    assert_eq!((result.kind, result.trust), (Kind::Final, Trust::Signed));
    assert_eq!(result.provenance.target.as_ref().unwrap().name, target.name);
    let unsigned = offline(&site, 2, &second);
    assert_eq!((&result.labels, &result.result_id), (&unsigned.labels, &unsigned.result_id));

    send(&site, &announced(&site, 3));
    let result = site.next().unwrap();
    assert_same(&result, &offline(&site, 3, &first));
    let encoded = metric(&mut site, "scanside_slices_encoded_total ");
    assert_eq!(encoded, 3 * SLICES as u64, "no slice was encoded twice");
    assert_eq!(metric(&mut site, "scanside_jobs_finished_total{kind=\"final\"} "), 3);
    site.on.terminate().unwrap();
}

fn state(site: &Site) -> State {
    Slots::new(&site.on.data()).state("lesion").unwrap().unwrap()
}

fn version_of(placed: Option<&runtime::slots::Placed>) -> Option<String> {
    placed.map(|placed| placed.task.version.clone())
}

#[test]
fn a_candidate_in_the_shadow_is_promoted_or_given_up_by_its_rule() {
    let mut site = site("");
    let slots = Slots::new(&site.on.data());
    let rule = Shadow { results: 2, promote: Promote::Rule, min_agreement: 0.9, max_difference: 0.1 };
    let near = version(&site.fixture, "1.1.0", |plugin| plugin.manifest.temperature = 1.6);
    slots.install(&near, None).unwrap();
    slots.shadow("lesion", rule.clone()).unwrap();
    site.on.await_line("a candidate runs in the shadow").unwrap();
    for number in 1..=2 {
        send(&site, &announced(&site, number));
        let (message, result) = next_result(&site.subscriber).unwrap();
        assert_eq!(
            (message.topic.as_str(), result.kind),
            ("scanside/v1/north/ct-2/result/lesion", Kind::Final)
        );
        assert_same(&result, &offline(&site, number, &site.fixture.plugin));
        let (message, shadow) = next_result(&site.subscriber).unwrap();
        assert_eq!(
            (message.topic.as_str(), shadow.kind),
            ("scanside/v1/north/ct-2/shadow/lesion", Kind::Shadow)
        );
        assert_eq!((shadow.is_final, shadow.task.version.as_str()), (false, "1.1.0"));
        assert_eq!(shadow.labels, offline(&site, number, &near).labels);
        if number == 1 {
            until("the count", || state(&site).shadow.is_some_and(|run| run.report().results == 1));
            let run = state(&site).shadow.unwrap().report();
            assert!(run.agreement > 0.999 && run.of == 2 && run.mean_difference > 0.0, "{run:?}");
            let listed = site.on.plugin(&["list"]).unwrap().stdout;
            assert!(listed.contains("in the shadow: 1 of 2 series, agreement 1.000"), "{listed}");
        }
    }
    site.on.await_line("a candidate is promoted after its time in the shadow").unwrap();
    until("the promoted plugin", || loaded(&site, "1.1.0") == 1);
    let now = state(&site);
    assert_eq!(version_of(now.active.as_ref()).as_deref(), Some("1.1.0"));
    assert_eq!((version_of(now.previous.as_ref()).as_deref(), now.shadow), (Some("1.0.0"), None));

    // One that says the contrary.
    let far = version(&site.fixture, "1.2.0", |plugin| {
        for name in ["head.weight", "head.bias"] {
            plugin.content.get_mut(name).unwrap().data.iter_mut().for_each(|x| *x = -*x);
        }
    });
    slots.install(&far, None).unwrap();
    slots.shadow("lesion", rule.clone()).unwrap();
    until("the candidate", || {
        site.on.log().iter().any(|line| line.contains("in the shadow") && line.contains("1.2.0"))
    });
    for number in 3..=4 {
        send(&site, &announced(&site, number));
        let kinds = [site.next().unwrap().kind, site.next().unwrap().kind];
        assert_eq!(kinds, [Kind::Final, Kind::Shadow]);
    }
    site.on.await_line("a candidate is given up").unwrap();
    let now = state(&site);
    assert_eq!((version_of(now.active.as_ref()).as_deref(), now.candidate), (Some("1.1.0"), None));
    let reason = now.failed.unwrap().reason;
    assert!(reason.contains("of the labels of 2 series") && reason.contains("90.0 %"), "{reason}");

    // Where the operator decides, nothing happens by itself.
    slots.install(&near, None).unwrap();
    slots.shadow("lesion", Shadow { results: 1, promote: Promote::Operator, ..rule }).unwrap();
    until("the candidate", || {
        let said = |line: &&String| line.contains("a candidate runs in the shadow");
        site.on.log().iter().filter(said).count() == 3
    });
    send(&site, &announced(&site, 5));
    let kinds = [site.next().unwrap().kind, site.next().unwrap().kind];
    assert_eq!(kinds, [Kind::Final, Kind::Shadow]);
    site.on.await_line("a candidate has been in the shadow for long enough").unwrap();
    assert_eq!(state(&site).shadow.unwrap().report().results, 1);
    site.on.terminate().unwrap();
    assert!(state(&site).candidate.is_some());
}

/// Changes what `slots.json` says.
fn edit(site: &Site, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = site.on.data().join("plugins/lesion/slots.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn golden_cases_run_again_on_another_kernel_and_a_plugin_that_fails_is_taken_down() {
    let mut site = Site::new("").unwrap();
    let here = state(&site).checked.unwrap();
    edit(&site, |json| json["checked"]["on"]["kernel"] = "5.4.0".into());
    site.on.start().unwrap();
    site.on.await_line("golden cases are reproduced").unwrap();
    until("the check", || state(&site).checked.is_some_and(|checked| checked.on == here.on));
    site.on.terminate().unwrap();

    // What went live elsewhere does not do here what it did there.
    let wrong = site.fixture.folder().join("wrong.plugin");
    let (mut plugin, _) = runtime::plugin::Plugin::read(&site.fixture.plugin).unwrap();
    plugin.manifest.golden[0].logits[1] += 0.01;
    plugin.write(&wrong).unwrap();
    Slots::new(&site.on.data()).install(&wrong, None).unwrap();
    edit(&site, |json| {
        json["active"] = json["candidate"].take();
        json["checked"]["on"]["build"] = "scanside 0.0.1".into();
    });
    site.on.start().unwrap();
    let told = site.on.await_line("a plugin is taken down").unwrap();
    assert!(told.contains("a logit is off by"), "{told}");
    until("the refusal", || site.on.get("/healthz").unwrap().contains("it was taken down on"));
    let all = site.series(1, [20, 24, 6]).unwrap();
    send(&site, &all);
    let refused = site.next().unwrap();
    assert!(
        refused.kind == Kind::Refused && refused.warnings[0].contains("a logit is off by"),
        "{refused:?}"
    );
    let listed = site.on.plugin(&["list"]).unwrap().stdout;
    assert!(
        listed.contains("lesion  down       1.0.0  ") && listed.contains("a logit is off by"),
        "{listed}"
    );
    site.on.terminate().unwrap();
}

/// The fixture is one that a service takes slice by slice.
#[test]
fn the_fixture_streams() {
    assert!(Fixture::for_a_service(|_| ()).manifest.streamable);
}
