//! The service as a whole: dcmtk as the scanner, mosquitto as the broker, results compared with those of `infer`.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use dicom_core::VR;
use dicom_dictionary_std::tags;
use runtime::result::{Completion, Input, Kind, TaskResult};
use runtime::service::Health;
use runtime::slots::Slots;
use runtime::tensor::sha256;
use tests::dicom::put_text;
use tests::fixture::Fixture;
use tests::mosquitto::Mosquitto;
use tests::programs::{program, run};
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, PATIENCE, Site, assert_same, next_result, series, series_uid};

/// Of every series here, but for the number of slices.
fn dims(slices: usize) -> [usize; 3] {
    [20, 24, slices]
}

/// Sends files over one association, of which each must be acknowledged.
fn send(site: &Site, files: &[PathBuf]) {
    let (ok, said) = site.send(files).unwrap();
    assert!(ok, "{said}");
}

/// What `scanside infer` says of a stored series.
fn offline(site: &Site, number: usize) -> TaskResult {
    let stored = site.on.data().join("store/instances").join(sha256(series_uid(number).as_bytes()));
    let outcome = run(program("scanside")
        .args(["infer", "--device", "ct-2", "--threads", "2", "--backbone"])
        .arg(&site.fixture.backbone)
        .arg("--plugin")
        .arg(&site.fixture.plugin)
        .arg("--input")
        .arg(stored));
    outcome.success();
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// A task that needs only the slice itself, and one that needs the whole volume.
fn streamable_and_not() -> [Fixture; 2] {
    let whole = |manifest: &mut firmware_config::Manifest| {
        let recipe =
            r#"{"plane":"axial","size":[28,42],"intensity":{"kind":"percentile","low":0.5,"high":99.5}}"#;
        manifest.recipe = serde_json::from_str(recipe).unwrap();
    };
    [Fixture::for_a_service(|_| ()), Fixture::for_a_service(whole)]
}

#[test]
fn a_series_is_classified_as_by_infer() {
    for (fixture, streamable) in streamable_and_not().into_iter().zip([true, false]) {
        assert_eq!(fixture.manifest.streamable, streamable);
        let mut site = Site::with(fixture, "").unwrap();
        site.on.start().unwrap();
        send(&site, &site.series(1, dims(9)).unwrap());
        let (message, result) = next_result(&site.subscriber).unwrap();
        assert_eq!((message.topic.as_str(), message.qos), ("scanside/v1/north/ct-2/result/lesion", 1));
        assert_eq!((result.kind, result.is_final, result.revision), (Kind::Final, true, 0));
        assert_eq!(result.input.completion, Completion::AssociationEnd);
        assert_eq!(result.input.series_uid, Some(series_uid(1)), "plain over the loopback address");
        assert_eq!(result.labels.len(), 2);
        assert_same(&result, &offline(&site, 1));
        assert!(!String::from_utf8(message.payload).unwrap().contains("Secret"));

        let said = site.on.terminate().unwrap();
        assert!(!said.contains("Secret") && !said.contains(&series_uid(1)), "no patient, no UID: {said}");
        let store = site.on.store().unwrap();
        let results = store.results(&series_uid(1)).unwrap();
        assert_eq!(results.len(), 1);
        assert_eq!(serde_json::from_str::<TaskResult>(&results[0].json).unwrap(), result);
        assert_eq!(store.outbox(0, 10).unwrap().len(), 0, "the broker has acknowledged it");
    }
}

#[test]
fn a_late_slice_makes_a_revision_and_a_duplicate_none() {
    let mut site = Site::started("").unwrap();
    let series = site.series(1, dims(8)).unwrap();
    send(&site, &series[..7]);
    let first = site.next().unwrap();
    send(&site, &series[..7]);
    send(&site, &series[6..]);
    let second = site.next().unwrap();
    assert_eq!((first.revision, first.input.instances, &first.replaces), (0, 7, &None));
    assert_eq!((second.revision, second.input.instances), (1, 8));
    assert_eq!(second.replaces, Some(first.result_id));
    site.on.terminate().unwrap();
    let results = site.on.store().unwrap().results(&series_uid(1)).unwrap();
    assert_eq!(results.len(), 2, "what came twice made nothing");
}

#[test]
fn a_slice_that_is_an_acquisition_of_its_own_is_no_whole_series() {
    let site = Site::started("").unwrap();
    let series = series(site.files.path(), 1, dims(6), |_, slice| {
        put_text(slice, tags::IMAGES_IN_ACQUISITION, VR::IS, "1");
    });
    send(&site, &series.unwrap());
    let result = site.next().unwrap();
    let Input { instances, completion, .. } = result.input;
    assert_eq!((result.kind, result.revision, instances), (Kind::Final, 0, 6));
    assert_eq!(completion, Completion::AssociationEnd);
}

#[test]
fn two_series_on_one_association_are_two_jobs() {
    let site = Site::started("").unwrap();
    let both = [1, 2].map(|number| site.series(number, dims(6)).unwrap());
    let interleaved: Vec<PathBuf> =
        both[0].iter().zip(&both[1]).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    send(&site, &interleaved);
    for _ in 0..2 {
        let result = site.next().unwrap();
        let number = if result.input.series_uid == Some(series_uid(1)) { 1 } else { 2 };
        assert_eq!((result.input.series_uid.clone(), result.input.instances), (Some(series_uid(number)), 6));
        assert_same(&result, &offline(&site, number));
    }
}

#[test]
fn a_series_that_is_no_volume_is_refused_and_mended_by_what_was_missing() {
    let site = Site::started("").unwrap();
    let series = site.series(1, dims(9)).unwrap();
    send(&site, &[&series[..4], &series[5..]].concat());
    let (message, refused) = next_result(&site.subscriber).unwrap();
    assert_eq!(message.topic, "scanside/v1/north/ct-2/refused/lesion");
    assert_eq!((refused.kind, refused.is_final, refused.labels.len()), (Kind::Refused, false, 0));
    assert!(refused.warnings[0].contains("as if 1 were missing"), "{refused:?}");
    send(&site, &series[4..5]);
    let result = site.next().unwrap();
    assert_eq!((result.kind, result.revision, &result.replaces), (Kind::Final, 1, &Some(refused.result_id)));
    let mut expected = offline(&site, 1);
    (expected.revision, expected.replaces) = (1, result.replaces.clone());
    // Which revision it is counts for the identity, and for nothing else.
    assert_ne!(expected.result_id, result.result_id);
    expected.result_id.clone_from(&result.result_id);
    assert_same(&result, &expected);
}

#[test]
fn what_no_task_takes_is_kept_in_silence_and_why_says_so() {
    let rules = "[[task]]\nname = \"lesion\"\nmin_slices = 5\nexclude_description = [\"*scout*\"]";
    let site = Site::started(rules).unwrap();
    let scout = series(site.files.path(), 1, dims(6), |_, slice| {
        put_text(slice, tags::SERIES_DESCRIPTION, VR::LO, "A Scout");
    });
    send(&site, &scout.unwrap());
    send(&site, &site.series(2, dims(4)).unwrap());
    send(&site, &site.series(3, dims(6)).unwrap());
    assert_eq!(site.next().unwrap().input.series_uid, Some(series_uid(3)), "and nothing before it");

    let why = |number: usize, words: &[&str]| {
        let (folder, config) = (site.files.path().join(number.to_string()), site.on.config());
        let outcome = run(program("scanside").arg("why").arg(folder).arg("--config").arg(config).args(words));
        outcome.success();
        outcome.stdout
    };
    let text = why(1, &[]);
    assert!(text.contains("lesion does not take it"), "{text}");
    let refusing = "NO  rules.exclude_description: asks for anything but *scout*, found A Scout";
    assert!(text.contains(refusing), "{text}");
    assert!(text.contains("ok  accepts.modality: asks for MR, found MR"), "{text}");
    assert!(why(2, &[]).contains("NO  rules.min_slices: asks for 5 slices or more, found 4"));
    assert!(why(3, &[]).contains("lesion takes it"));
    let line: serde_json::Value = serde_json::from_str(&why(3, &["--json"])).unwrap();
    assert_eq!(line["decision"]["accepted"], true);
    // A plugin that looks at one series cannot wait for several.
    site.on.configure("[[task]]\nname = \"lesion\"\n[task.views.axial]\nplane = [\"axial\"]").unwrap();
    let refusing = "NO  rules.views: asks for a plugin of several views, found a plugin of one view";
    assert!(why(3, &[]).contains(refusing));
    // A site may have written anything into a description: not into the log.
    assert!(site.on.log().iter().all(|line| !line.contains("A Scout")));
}

#[test]
fn preliminary_results_come_after_each_quarter() {
    let site = Site::started("infer.preliminary = true").unwrap();
    let series = series(site.files.path(), 1, dims(12), |_, slice| {
        put_text(slice, tags::IMAGES_IN_ACQUISITION, VR::IS, "12");
    });
    let series = series.unwrap();
    let mut sent = 0;
    for quarter in 1..=4 {
        send(&site, &series[sent..3 * quarter]);
        sent = 3 * quarter;
        let (message, result) = next_result(&site.subscriber).unwrap();
        if quarter < 4 {
            assert_eq!(message.topic, "scanside/v1/north/ct-2/preliminary/lesion");
            assert_eq!((result.kind, result.is_final), (Kind::Preliminary, false));
            assert_eq!((result.input.instances, result.input.completion), (sent, Completion::Arriving));
            let expected = format!("{sent} of 12 slices");
            assert!(result.warnings[0].contains(&expected), "{:?}", result.warnings);
            assert_eq!(result.labels.len(), 2);
        } else {
            assert_eq!((result.kind, result.input.completion), (Kind::Final, Completion::ExpectedCount));
            assert_same(&result, &offline(&site, 1));
        }
    }
}

#[test]
fn a_plugin_that_goes_live_is_taken_over_and_a_broken_one_told() {
    let mut site = Site::new("").unwrap();
    // A new one, without the plugin.
    site.on = EdgeBox::new(&site.broker.url(), &site.fixture, "mqtt.health_interval = \"1s\"").unwrap();
    site.on.start().unwrap();
    assert!(site.on.log().iter().any(|line| line.contains("no task runs")));
    site.on.install(&site.fixture.plugin).unwrap();
    site.on.await_line("task loaded").unwrap();
    let listed = site.on.plugin(&["list"]).unwrap().stdout;
    assert!(listed.starts_with("lesion  active     1.0.0  "), "{listed}");
    send(&site, &site.series(1, dims(6)).unwrap());
    assert_eq!(site.next().unwrap().kind, Kind::Final);
    assert!(site.on.get("/healthz").unwrap().ends_with("\r\n\r\nok\n"));
    let metrics = site.on.get("/metrics").unwrap();
    let expected =
        ["scanside_dicom_instances_received_total 6", "scanside_jobs_finished_total{kind=\"final\"} 1"];
    for line in expected {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }

    // Damaged where it lies.
    let active = Slots::new(&site.on.data()).active().unwrap().remove(0).1.path;
    let mut bytes = fs::read(&active).unwrap();
    bytes[3000] ^= 1;
    fs::write(&active, bytes).unwrap();
    site.on.await_line("a task cannot be run").unwrap();
    let health = loop {
        let message = site.subscriber.next(PATIENCE).unwrap();
        if message.topic.ends_with("/health") {
            let health: Health = serde_json::from_slice(&message.payload).unwrap();
            if health.trouble.is_some() {
                break health;
            }
        }
    };
    assert!(health.trouble.unwrap().starts_with("task lesion cannot be run: "));
    assert!(health.last_result.is_some() && health.memory_bytes.is_some());
    let sick = site.on.get("/healthz").unwrap();
    assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("task lesion cannot be run: "), "{sick}");
}

#[test]
fn a_task_that_was_taken_down_refuses_what_it_would_take() {
    let mut site = Site::started("").unwrap();
    let slots = Slots::new(&site.on.data());
    slots.take_down("lesion", "a logit is off by 1").unwrap();
    assert!(site.on.await_line("a task cannot be run").unwrap().contains("a logit is off by 1"));
    send(&site, &site.series(1, dims(6)).unwrap());
    let refused = site.next().unwrap();
    assert_eq!((refused.kind, refused.labels.len()), (Kind::Refused, 0));
    let why = &refused.warnings[0];
    assert!(why.starts_with("task lesion cannot be run on this device: it was taken down on 2"), "{why}");
    let sick = site.on.get("/healthz").unwrap();
    assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("a logit is off by 1"), "{sick}");
    let listed = site.on.plugin(&["list"]).unwrap().stdout;
    assert!(listed.starts_with("lesion  down       1.0.0  ") && listed.contains("off by 1"), "{listed}");

    // It passes again.
    site.on.plugin(&["activate", "lesion"]).unwrap();
    site.on.await_line("task loaded").unwrap();
    let until = Instant::now() + PATIENCE;
    while !site.on.get("/healthz").unwrap().ends_with("\r\n\r\nok\n") {
        assert!(Instant::now() < until, "{:?}", site.on.log());
    }
    send(&site, &site.series(2, dims(6)).unwrap());
    assert_eq!(site.next().unwrap().kind, Kind::Final);

    // Where nobody wants it, nothing is wrong and nothing is said.
    slots.retire("lesion", "it is not among the desired tasks").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let message = site.subscriber.next(PATIENCE).unwrap();
        let state = String::from_utf8(message.payload).unwrap();
        if message.topic.ends_with("/state") && state.contains("\"tasks\":[]") {
            break;
        }
        assert!(Instant::now() < until);
    }
    assert!(site.on.get("/healthz").unwrap().ends_with("\r\n\r\nok\n"));
}

#[test]
fn hangup_reads_the_configuration_again() {
    let mut site = Site::started("").unwrap();
    let series = site.series(1, dims(6)).unwrap();
    send(&site, &series[..1]);
    site.on.configure("dicom.calling = [\"CT-9\"]\nmqtt.keep_alive = \"9s\"").unwrap();
    site.on.signal("HUP").unwrap();
    site.on.await_line("configuration read again").unwrap();
    assert!(site.on.await_line("the change waits for a restart").unwrap().contains("mqtt.keep_alive"));
    let (ok, said) = site.send(&series[1..]).unwrap();
    assert!(!ok && said.contains("Calling AE Title Not Recognized"), "{said}");
    let named = |program: &str| dcmtk(program, site.on.address(), &["-aet", "CT-9"]);
    let (ok, said) = scanner::run(named("storescu").args(&series[1..])).unwrap();
    assert!(ok, "{said}");
    // A mistake changes nothing.
    site.on.configure("dicom.callin = []").unwrap();
    site.on.signal("HUP").unwrap();
    let mut echo = named("echoscu");
    let told = site.on.await_line("the configuration was not taken over").unwrap();
    assert!(told.contains("dicom.calling"), "{told}");
    let (ok, said) = scanner::run(&mut echo).unwrap();
    assert!(ok, "{said}");
    site.on.terminate().unwrap();
}

#[test]
fn a_full_disk_refuses_before_anything_is_lost() {
    let mut site = Site::started("").unwrap();
    let series = site.series(1, dims(8)).unwrap();
    send(&site, &series[..4]);
    assert_eq!(site.next().unwrap().input.instances, 4);
    // No disk has so much room.
    let text = fs::read_to_string(site.on.config()).unwrap();
    fs::write(site.on.config(), text.replace("\"1MB\"", "\"9000TB\"")).unwrap();
    site.on.signal("HUP").unwrap();
    site.on.await_line("configuration read again").unwrap();
    let (ok, said) = site.send(&series[4..]).unwrap();
    assert!(!ok && said.contains("Refused: OutOfResources"), "{said}");
    fs::write(site.on.config(), text).unwrap();
    site.on.signal("HUP").unwrap();
    // The scanner tries again until there is room.
    let until = Instant::now() + PATIENCE;
    while !site.send(&series[4..]).unwrap().0 {
        assert!(Instant::now() < until, "{:?}", site.on.log());
    }
    // Some of its tries may have brought a part.
    while site.next().unwrap().input.instances < 8 {}
}

#[test]
fn files_that_changed_on_the_disk_are_given_up_and_the_queue_goes_on() {
    let wait = "series.association_end = false\nseries.idle = \"3s\"\nstore.max_tries = 2";
    let mut site = Site::started(wait).unwrap();
    send(&site, &site.series(1, dims(6)).unwrap());
    site.on.kill().unwrap();
    let folder = site.on.data().join("store/instances").join(sha256(series_uid(1).as_bytes()));
    let victim = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&victim).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&victim, bytes).unwrap();
    site.on.start().unwrap();
    send(&site, &site.series(2, dims(6)).unwrap());
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let result = site.next().unwrap();
        if result.kind == Kind::Refused {
            assert_eq!(result.input.series_uid, Some(series_uid(1)));
            let why = &result.warnings[0];
            assert!(why.contains("given up after 2 tries") && why.contains("not what was received"), "{why}");
        } else {
            assert_eq!((result.kind, result.input.series_uid), (Kind::Final, Some(series_uid(2))));
        }
        kinds.push(result.kind);
    }
    assert!(kinds.contains(&Kind::Refused) && kinds.contains(&Kind::Final), "{kinds:?}");
    site.on.terminate().unwrap();
    assert_eq!(site.on.store().unwrap().quarantined().unwrap().len(), 1);
}

#[test]
fn what_cannot_start_says_why() {
    let (broker, fixture) = (Mosquitto::start().unwrap(), Fixture::for_a_service(|_| ()));
    let on = EdgeBox::new(&broker.url(), &fixture, "").unwrap();
    let start = |text: &str| {
        fs::write(on.config(), text).unwrap();
        run(program("scanside").arg("run").arg("--config").arg(on.config()))
    };
    let text = fs::read_to_string(on.config()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    for (text, part) in [
        (text.replace("dicom.listen", "dicom.listn"), "dicom.listen"),
        (text.replace("backbone.safetensors", "nowhere.safetensors"), "nowhere.safetensors"),
        (text.replace("127.0.0.1:0", &port), port.as_str()),
        (text.replace("mqtt://", "mqtts://"), "mqtt.ca"),
    ] {
        let outcome = start(&text);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("scanside: ") && last.contains(part), "{part}: {outcome:?}");
    }
    // One service a folder.
    let _lock = on.store().unwrap();
    let outcome = start(&text);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("in use by another process"), "{outcome:?}");
}
