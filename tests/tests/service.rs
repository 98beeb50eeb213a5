//! The service as a whole: dcmtk as the scanner, mosquitto as the broker, results compared with those of `infer`.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dicom_core::VR;
use dicom_dictionary_std::tags;
use runtime::result::{Completion, Kind, TaskResult};
use runtime::service::Health;
use runtime::tensor::sha256;
use runtime::volume::{AxisCodes, Volume};
use tempfile::TempDir;
use tests::dicom::{SeriesOptions, put_text, write_edited};
use tests::fixture::Fixture;
use tests::mosquitto::Mosquitto;
use tests::programs::{program, run};
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, next_result};
use tests::subscriber::Subscriber;

const ALL: &str = "scanside/v1/north/ct-2/#";

fn uid(number: usize) -> String {
    format!("1.2.826.0.1.3680043.10.99.{number}")
}

/// Writes a series of `slices` slices into a folder of its own; its files in the order of their slices.
fn series(folder: &Path, number: usize, slices: usize, edit: impl Fn(usize, &mut Edit)) -> Vec<PathBuf> {
    let dims = [20, 24, slices];
    let voxel = |n: usize| ((n * 7 + n / 480 * 131 + number * 17) % 1000) as f32;
    let voxels = (0..dims.iter().product()).map(voxel).collect();
    let codes: AxisCodes = "LPS".parse().unwrap();
    let volume = Volume::from_parts(dims, voxels, codes.centred([2.0, 2.0, 4.0], dims));
    let place = folder.join(number.to_string());
    fs::create_dir(&place).unwrap();
    let options = SeriesOptions { series_uid: uid(number), ..SeriesOptions::default() };
    write_edited(&place, &volume, &options, edit).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

type Edit = dicom_object::InMemDicomObject;

/// Sends files over one association.
fn send(to: &EdgeBox, files: &[PathBuf]) {
    let (ok, said) = scanner::run(dcmtk("storescu", to.address(), &[]).args(files)).unwrap();
    assert!(ok, "{said}");
}

/// What `scanside infer` says of a stored series.
fn offline(on: &EdgeBox, fixture: &Fixture, series_uid: &str) -> TaskResult {
    let stored = on.data().join("store/instances").join(sha256(series_uid.as_bytes()));
    let outcome = run(program("scanside")
        .args(["infer", "--device", "ct-2", "--threads", "2", "--backbone"])
        .arg(&fixture.backbone)
        .arg("--plugin")
        .arg(&fixture.plugin)
        .arg("--input")
        .arg(stored));
    outcome.success();
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// Everything that a result says of a scan is what `infer` says, to the last bit.
fn assert_same(service: &TaskResult, offline: &TaskResult) {
    let mut expected = offline.clone();
    expected.created.clone_from(&service.created);
    expected.timings_ms.clone_from(&service.timings_ms);
    expected.input.completion = service.input.completion;
    assert_eq!(*service, expected);
}

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
    let broker = Mosquitto::start().unwrap();
    let files = TempDir::new().unwrap();
    let series = series(files.path(), 1, 9, |_, _| ());
    for (fixture, streamable) in streamable_and_not().iter().zip([true, false]) {
        assert_eq!(fixture.manifest.streamable, streamable);
        let subscriber = Subscriber::new(broker.port, ALL).unwrap();
        let mut on = EdgeBox::with_plugin(&broker.url(), fixture, "").unwrap();
        on.start().unwrap();
        send(&on, &series);
        let (message, result) = next_result(&subscriber).unwrap();
        assert_eq!((message.topic.as_str(), message.qos), ("scanside/v1/north/ct-2/result/lesion", 1));
        assert_eq!((result.kind, result.is_final, result.revision), (Kind::Final, true, 0));
        assert_eq!(result.input.completion, Completion::AssociationEnd);
        assert_eq!(
            result.input.series_uid.as_deref(),
            Some(uid(1).as_str()),
            "plain over the loopback address"
        );
        assert_eq!(result.labels.len(), 2);
        assert_same(&result, &offline(&on, fixture, &uid(1)));
        assert!(!String::from_utf8(message.payload).unwrap().contains("Secret"));

        let said = on.terminate().unwrap();
        assert!(
            !said.contains("Secret") && !said.contains(&uid(1)),
            "no patient and no UID in the log: {said}"
        );
        let store = on.store().unwrap();
        let results = store.results(&uid(1)).unwrap();
        assert_eq!(results.len(), 1);
        assert_eq!(serde_json::from_str::<TaskResult>(&results[0].json).unwrap(), result);
        assert_eq!(store.outbox(0, 10).unwrap().len(), 0, "the broker has acknowledged it");
    }
}

#[test]
fn a_late_slice_makes_a_revision_and_a_duplicate_none() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    on.start().unwrap();
    let series = series(files.path(), 1, 8, |_, _| ());
    send(&on, &series[..7]);
    let (_, first) = next_result(&subscriber).unwrap();
    send(&on, &series[..7]);
    send(&on, &series[6..]);
    let (_, second) = next_result(&subscriber).unwrap();
    assert_eq!((first.revision, first.input.instances, &first.replaces), (0, 7, &None));
    assert_eq!((second.revision, second.input.instances), (1, 8));
    assert_eq!(second.replaces, Some(first.result_id));
    on.terminate().unwrap();
    assert_eq!(on.store().unwrap().results(&uid(1)).unwrap().len(), 2, "what came twice made nothing");
}

#[test]
fn two_series_on_one_association_are_two_jobs() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    on.start().unwrap();
    let both = [1, 2].map(|number| series(files.path(), number, 6, |_, _| ()));
    let interleaved: Vec<PathBuf> =
        both[0].iter().zip(&both[1]).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    send(&on, &interleaved);
    for _ in 0..2 {
        let (_, result) = next_result(&subscriber).unwrap();
        let series_uid = result.input.series_uid.clone().unwrap();
        assert_eq!(result.input.instances, 6);
        assert_same(&result, &offline(&on, &fixture, &series_uid));
    }
}

#[test]
fn a_series_that_is_no_volume_is_refused_and_mended_by_what_was_missing() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    on.start().unwrap();
    let series = series(files.path(), 1, 9, |_, _| ());
    let without = [&series[..4], &series[5..]].concat();
    send(&on, &without);
    let (message, refused) = next_result(&subscriber).unwrap();
    assert_eq!(message.topic, "scanside/v1/north/ct-2/refused/lesion");
    assert_eq!((refused.kind, refused.is_final, refused.labels.len()), (Kind::Refused, false, 0));
    assert!(refused.warnings[0].contains("as if 1 were missing"), "{refused:?}");
    send(&on, &series[4..5]);
    let (_, result) = next_result(&subscriber).unwrap();
    assert_eq!((result.kind, result.revision, &result.replaces), (Kind::Final, 1, &Some(refused.result_id)));
    assert_same(
        &TaskResult { revision: 0, replaces: None, ..with_id_of(&result, 0) },
        &offline(&on, &fixture, &uid(1)),
    );
}

/// The result as if it were of another revision.
fn with_id_of(result: &TaskResult, revision: u32) -> TaskResult {
    let result_id = runtime::result::result_id(
        &result.device,
        &result.task.name,
        &result.provenance.plugin_sha256,
        &result.input.digest,
        result.kind,
        revision,
    );
    TaskResult { result_id, ..result.clone() }
}

#[test]
fn what_no_task_takes_is_kept_in_silence_and_why_says_so() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let rules = "[[task]]\nname = \"lesion\"\nmin_slices = 5\nexclude_description = [\"*scout*\"]";
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, rules).unwrap();
    on.start().unwrap();
    let scout =
        series(files.path(), 1, 6, |_, slice| put_text(slice, tags::SERIES_DESCRIPTION, VR::LO, "A Scout"));
    let short = series(files.path(), 2, 4, |_, _| ());
    let good = series(files.path(), 3, 6, |_, _| ());
    for files in [&scout, &short, &good] {
        send(&on, files);
    }
    let (_, result) = next_result(&subscriber).unwrap();
    assert_eq!(result.input.series_uid, Some(uid(3)), "and nothing before it");

    let why = |number: usize, words: &[&str]| {
        let folder = files.path().join(number.to_string());
        let outcome =
            run(program("scanside").arg("why").arg(folder).arg("--config").arg(on.config()).args(words));
        outcome.success();
        outcome.stdout
    };
    let text = why(1, &[]);
    assert!(text.contains("lesion does not take it"), "{text}");
    assert!(
        text.contains("NO  rules.exclude_description: asks for anything but *scout*, found A Scout"),
        "{text}"
    );
    assert!(text.contains("ok  accepts.modality: asks for MR, found MR"), "{text}");
    assert!(why(2, &[]).contains("NO  rules.min_slices: asks for 5 slices or more, found 4"));
    assert!(why(3, &[]).contains("lesion takes it"));
    let line: serde_json::Value = serde_json::from_str(&why(3, &["--json"])).unwrap();
    assert_eq!(line["decision"]["accepted"], true);
    // A site may have written anything into a description: not into the log.
    assert!(on.log().iter().all(|line| !line.contains("A Scout")));
}

#[test]
fn preliminary_results_come_after_each_quarter() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "infer.preliminary = true").unwrap();
    on.start().unwrap();
    let series = series(files.path(), 1, 12, |_, slice| {
        put_text(slice, tags::IMAGES_IN_ACQUISITION, VR::IS, "12");
    });
    let mut sent = 0;
    for quarter in 1..=4 {
        send(&on, &series[sent..3 * quarter]);
        sent = 3 * quarter;
        let (message, result) = next_result(&subscriber).unwrap();
        if quarter < 4 {
            assert_eq!(message.topic, "scanside/v1/north/ct-2/preliminary/lesion");
            assert_eq!((result.kind, result.is_final), (Kind::Preliminary, false));
            assert_eq!((result.input.instances, result.input.completion), (sent, Completion::Arriving));
            let expected = format!("{sent} of 12 slices");
            assert!(result.warnings[0].contains(&expected), "{:?}", result.warnings);
            assert_eq!(result.labels.len(), 2);
        } else {
            assert_eq!((result.kind, result.input.completion), (Kind::Final, Completion::ExpectedCount));
            assert_same(&result, &offline(&on, &fixture, &uid(1)));
        }
    }
}

#[test]
fn a_plugin_that_goes_live_is_taken_over_and_a_broken_one_told() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::new(&broker.url(), &fixture, "mqtt.health_interval = \"1s\"").unwrap();
    on.start().unwrap();
    assert!(on.log().iter().any(|line| line.contains("no task runs")));
    on.install(&fixture.plugin).unwrap();
    on.await_line("task loaded").unwrap();
    let listed = on.plugin(&["list"]).unwrap().stdout;
    assert!(listed.starts_with("lesion  active     1.0.0  "), "{listed}");
    let first = series(files.path(), 1, 6, |_, _| ());
    send(&on, &first);
    assert_eq!(next_result(&subscriber).unwrap().1.kind, Kind::Final);
    assert!(on.get("/healthz").unwrap().ends_with("\r\n\r\nok\n"));
    let metrics = on.get("/metrics").unwrap();
    for line in
        ["scanside_dicom_instances_received_total 6", "scanside_jobs_finished_total{kind=\"final\"} 1"]
    {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }

    // Damaged where it lies.
    let active = on.data().join("plugins/lesion/active.plugin");
    let mut bytes = fs::read(&active).unwrap();
    bytes[3000] ^= 1;
    fs::write(&active, bytes).unwrap();
    on.await_line("a task cannot be run").unwrap();
    let health = loop {
        let message = subscriber.next(tests::service::PATIENCE).unwrap();
        if message.topic.ends_with("/health") {
            let health: Health = serde_json::from_slice(&message.payload).unwrap();
            if health.trouble.is_some() {
                break health;
            }
        }
    };
    assert!(health.trouble.unwrap().starts_with("task lesion cannot be run: "));
    let sick = on.get("/healthz").unwrap();
    assert!(sick.starts_with("HTTP/1.1 503") && sick.contains("task lesion cannot be run: "), "{sick}");
    assert!(health.last_result.is_some() && health.memory_bytes.is_some());
}

#[test]
fn hangup_reads_the_configuration_again() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    on.start().unwrap();
    let series = series(files.path(), 1, 6, |_, _| ());
    send(&on, &series[..1]);
    on.configure("dicom.calling = [\"CT-9\"]\nmqtt.keep_alive = \"9s\"").unwrap();
    on.signal("HUP").unwrap();
    on.await_line("configuration read again").unwrap();
    assert!(on.await_line("the change waits for a restart").unwrap().contains("mqtt.keep_alive"));
    let (ok, said) = scanner::run(dcmtk("storescu", on.address(), &[]).args(&series[1..])).unwrap();
    assert!(!ok && said.contains("Calling AE Title Not Recognized"), "{said}");
    let (ok, said) =
        scanner::run(dcmtk("storescu", on.address(), &["-aet", "CT-9"]).args(&series[1..])).unwrap();
    assert!(ok, "{said}");
    // A mistake changes nothing.
    on.configure("dicom.callin = []").unwrap();
    on.signal("HUP").unwrap();
    let told = on.await_line("the configuration was not taken over").unwrap();
    assert!(told.contains("dicom.calling"), "{told}");
    scanner::run(&mut dcmtk("echoscu", on.address(), &["-aet", "CT-9"])).unwrap();
    on.terminate().unwrap();
}

#[test]
fn a_full_disk_refuses_before_anything_is_lost() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    on.start().unwrap();
    let series = series(files.path(), 1, 8, |_, _| ());
    send(&on, &series[..4]);
    assert_eq!(next_result(&subscriber).unwrap().1.input.instances, 4);
    // No disk has so much room.
    let text = fs::read_to_string(on.config()).unwrap().replace("\"1MB\"", "\"9000TB\"");
    fs::write(on.config(), &text).unwrap();
    on.signal("HUP").unwrap();
    on.await_line("configuration read again").unwrap();
    let (ok, said) = scanner::run(dcmtk("storescu", on.address(), &[]).args(&series[4..])).unwrap();
    assert!(!ok && said.contains("Refused: OutOfResources"), "{said}");
    fs::write(on.config(), text.replace("\"9000TB\"", "\"1MB\"")).unwrap();
    on.signal("HUP").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    send(&on, &series[4..]);
    let (_, result) = next_result(&subscriber).unwrap();
    assert_eq!((result.input.instances, result.revision), (8, 1));
}

#[test]
fn files_that_changed_on_the_disk_are_given_up_and_the_queue_goes_on() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let wait = "series.association_end = false\nseries.idle = \"3s\"\nstore.max_tries = 2";
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, wait).unwrap();
    on.start().unwrap();
    let poison = series(files.path(), 1, 6, |_, _| ());
    send(&on, &poison);
    on.kill().unwrap();
    let folder = on.data().join("store/instances").join(sha256(uid(1).as_bytes()));
    let victim = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&victim).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&victim, bytes).unwrap();
    on.start().unwrap();
    let good = series(files.path(), 2, 6, |_, _| ());
    send(&on, &good);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let (_, result) = next_result(&subscriber).unwrap();
        if result.kind == Kind::Refused {
            assert_eq!(result.input.series_uid, Some(uid(1)));
            let why = &result.warnings[0];
            assert!(why.contains("given up after 2 tries") && why.contains("not what was received"), "{why}");
        } else {
            assert_eq!((result.kind, result.input.series_uid), (Kind::Final, Some(uid(2))));
        }
        kinds.push(result.kind);
    }
    assert!(kinds.contains(&Kind::Refused) && kinds.contains(&Kind::Final), "{kinds:?}");
    on.terminate().unwrap();
    assert_eq!(on.store().unwrap().quarantined().unwrap().len(), 1);
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
