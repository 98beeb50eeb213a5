//! A device that follows its operator: real service, real broker, a repository whose keys the test has.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use firmware_config::{DESIRED_SCHEMA, Desired, Reported, ReportedTask, TaskState, TopicLevel, Wanted};
use runtime::gate::GateLimits;
use runtime::slots::Slots;
use runtime::tensor::sha256;
use runtime::update::{
    After, Downloads, Folder, Place, Source, SourceError, Take, TargetFile, Trust, Updates,
};
use tempfile::TempDir;
use tests::fixture::{Fixture, loader, random_backbone};
use tests::golden;
use tests::mosquitto::Mosquitto;
use tests::programs::{program, run};
use tests::repository::{FAR, Key, Repository, desire};
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, PATIENCE, next_result, series};
use tests::subscriber::{Subscriber, retain};

/// 2026-11-26.
const NOW: i64 = 1_795_651_200;

struct Operator {
    broker: Mosquitto,
    said: Subscriber,
    results: Subscriber,
    folder: TempDir,
    repository: Repository,
    fixture: Fixture,
}

impl Operator {
    /// Has published 1.0.0, 1.1.0, and 1.2.0, whose golden cases no device will reproduce.
    fn new() -> Self {
        let (folder, mut repository) = (tempfile::tempdir().unwrap(), Repository::default());
        let fixture = Fixture::for_a_service(|_| ());
        for version in ["1.0.0", "1.1.0", "1.2.0"] {
            let other = Fixture::for_a_service(|manifest| manifest.task.version = version.into());
            let wrong = |logits: &mut Vec<f32>| logits[0] += 1.0;
            let file = golden::plugin(&other, "published.plugin", |plugin| {
                if version == "1.2.0" {
                    wrong(&mut plugin.manifest.golden[0].logits);
                }
            });
            repository.files.insert(format!("lesion-{version}.plugin"), fs::read(file).unwrap());
        }
        fs::write(folder.path().join("root.json"), repository.root_json()).unwrap();
        repository.write(&folder.path().join("served"));
        let broker = Mosquitto::start().unwrap();
        let said = Subscriber::new(broker.port, "scanside/v1/north/ct-2/reported").unwrap();
        let results = Subscriber::new(broker.port, "scanside/v1/north/ct-2/result/#").unwrap();
        Self { broker, said, results, folder, repository, fixture }
    }

    fn edge_box(&self, source: &str) -> EdgeBox {
        let root = self.folder.path().join("root.json");
        let root = root.display();
        let extra =
            format!("updates.root = \"{root}\"\nupdates.source = {source:?}\nupdates.interval = \"1s\"\n");
        EdgeBox::new(&self.broker.url(), &self.fixture, &extra).unwrap()
    }

    fn served(&self) -> String {
        self.folder.path().join("served").display().to_string()
    }

    /// This version, or nothing.
    fn desired(&self, revision: u64, version: Option<&str>) -> Desired {
        let tasks = version.map(|version| {
            let target = self.repository.target(&format!("lesion-{version}.plugin"));
            ("lesion".to_owned(), Wanted { target, shadow: None })
        });
        Desired {
            schema: DESIRED_SCHEMA.into(),
            site: "north".parse().unwrap(),
            device: "ct-2".parse().unwrap(),
            revision,
            expires: FAR.parse().unwrap(),
            tasks: tasks.into_iter().collect(),
        }
    }

    /// Publishes what is desired.
    fn want(&self, revision: u64, version: Option<&str>, key: u8) {
        let payload = desire(&self.desired(revision, version), &[&Key::of(key)]);
        retain(self.broker.port, &[("scanside/v1/north/ct-2/desired".into(), payload)]).unwrap();
    }

    /// The first report that fulfils `is`.
    fn until(&self, what: &str, is: impl Fn(&Reported) -> bool) -> Reported {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < PATIENCE {
            let Ok(message) = self.said.next(Duration::from_secs(5)) else { continue };
            let reported: Reported = serde_json::from_slice(&message.payload).unwrap();
            if is(&reported) {
                return reported;
            }
            last = Some(reported);
        }
        panic!("{what} was not reported; the last report is {last:?}")
    }

    fn until_task(&self, revision: u64, state: TaskState) -> ReportedTask {
        let is = |reported: &Reported| {
            reported.revision == Some(revision)
                && reported.tasks.get("lesion").is_some_and(|task| task.state == state)
        };
        self.until(&format!("revision {revision}, {state:?}"), is).tasks.remove("lesion").unwrap()
    }
}

fn version(plugin: Option<&firmware_config::ReportedPlugin>) -> Option<&str> {
    plugin.map(|plugin| plugin.task.version.as_str())
}

fn send(on: &EdgeBox, files: &Path, number: usize) {
    let series = series(files, number, [12, 10, 4], |_, _| ()).unwrap();
    let (sent, said) = scanner::run(dcmtk("storescu", on.address(), &[]).args(series)).unwrap();
    assert!(sent, "{said}");
}

#[test]
fn a_device_follows_its_operator_and_nobody_else() {
    let operator = Operator::new();
    let mut on = operator.edge_box(&operator.served());
    on.start().unwrap();
    let bare = operator.until("a device without plugins", |_| true);
    assert_eq!((bare.revision, bare.refused, bare.tasks.len()), (None, None, 0));

    operator.want(1, Some("1.0.0"), 7);
    let task = operator.until_task(1, TaskState::Active);
    let active = task.active.as_ref().unwrap();
    assert_eq!(active.target.as_deref(), Some("north/lesion-1.0.0.plugin"));
    // A result says by whose word the plugin runs.
    send(&on, operator.folder.path(), 1);
    let (_, result) = next_result(&operator.results).unwrap();
    let result = serde_json::to_value(&result).unwrap();
    assert_eq!(result["trust"], "signed");
    assert_eq!(result["provenance"]["target"]["name"], "north/lesion-1.0.0.plugin");
    assert_eq!(result["provenance"]["target"]["sha256"], active.sha256.as_str());

    operator.want(2, Some("1.1.0"), 7);
    let task = operator.until_task(2, TaskState::Active);
    assert_eq!(
        (version(task.active.as_ref()), version(task.previous.as_ref())),
        (Some("1.1.0"), Some("1.0.0"))
    );

    operator.want(3, Some("1.2.0"), 7);
    let task = operator.until_task(3, TaskState::Failed);
    assert_eq!(version(task.active.as_ref()), Some("1.1.0"), "what was active still is");
    assert!(task.failure.as_ref().unwrap().contains("a logit is off by"), "{task:?}");

    operator.want(4, Some("1.0.0"), 99);
    let reported = operator.until("a forged desired state", |reported| reported.refused.is_some());
    assert!(reported.refused.unwrap().contains("not signed by enough trusted keys"));
    assert_eq!(
        (reported.revision, version(reported.tasks["lesion"].active.as_ref())),
        (Some(3), Some("1.1.0"))
    );

    // The way back needs no file of the repository.
    fs::remove_dir_all(operator.folder.path().join("served/targets")).unwrap();
    operator.want(5, Some("1.0.0"), 7);
    let task = operator.until_task(5, TaskState::Active);
    assert_eq!(version(task.active.as_ref()), Some("1.0.0"));

    // What was decided outlives the process.
    on.kill().unwrap();
    on.start().unwrap();
    operator.until_task(5, TaskState::Active);
    send(&on, operator.folder.path(), 2);
    let (_, result) = next_result(&operator.results).unwrap();
    assert_eq!(result.task.version, "1.0.0");

    operator.want(6, None, 7);
    let task = operator.until_task(6, TaskState::Down);
    assert_eq!(version(task.active.as_ref()), None);
    on.terminate().unwrap();
}

#[test]
fn a_device_with_a_trusted_root_takes_plugins_by_their_names_only() {
    let operator = Operator::new();
    let on = operator.edge_box("mqtt");
    let words =
        |words: &[&str]| run(program("scanside").arg("plugin").args(words).arg("--config").arg(on.config()));
    let file = operator.fixture.plugin.display().to_string();
    let refused = words(&["install", &file]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("is not signed"), "{refused:?}");
    let served = operator.served();
    let unknown = words(&["install", "north/lesion-9.0.0.plugin", "--source", &served]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("is no signed file for site north"), "{unknown:?}");
    on.plugin(&["install", "north/lesion-1.1.0.plugin", "--source", &served]).unwrap();
    on.plugin(&["activate", "lesion"]).unwrap();
    assert!(on.plugin(&["list"]).unwrap().stdout.contains("north/lesion-1.1.0.plugin"));
    let gone = words(&["install", "north/lesion-1.0.0.plugin", "--source", "/media/none"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.stderr.contains("cannot be read"), "{gone:?}");
}

/// What the operator's tool would leave at the broker: 1.0.0 and the backbones.
fn mirror(operator: &Operator, block: usize) -> Vec<(String, Vec<u8>)> {
    let prefix = "scanside/v1/north/repository";
    let mut messages = Vec::new();
    let (mut metadata, mut targets) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(operator.folder.path().join("served/metadata")).unwrap().map(Result::unwrap) {
        let (name, bytes) = (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        metadata.insert(name.clone(), bytes.len());
        messages.push((format!("{prefix}/metadata/{name}"), bytes));
    }
    let plugin = &operator.repository.files["lesion-1.0.0.plugin"];
    let files = || operator.repository.backbones.values().chain([plugin]).map(|bytes| (sha256(bytes), bytes));
    targets.extend(files().map(|(sha256, bytes)| (sha256, bytes.len())));
    let index = serde_json::json!({ "schema": "scanside.index/1", "metadata": metadata, "block": block, "targets": targets });
    messages.push((format!("{prefix}/index"), serde_json::to_vec(&index).unwrap()));
    for (sha256, bytes) in files() {
        for (n, bytes) in bytes.chunks(block).enumerate() {
            messages.push((format!("{prefix}/targets/{sha256}/{n}"), bytes.to_vec()));
        }
    }
    messages
}

#[test]
fn a_backbone_that_a_device_lacks_comes_with_its_plugin() {
    let mut operator = Operator::new();
    let backbone = fs::read(&operator.fixture.backbone).unwrap();
    let (digest, length) = (sha256(&backbone), backbone.len());
    operator.repository.backbones = [("tiny.safetensors".into(), backbone)].into();
    operator.repository.release();
    operator.repository.write(Path::new(&operator.served()));
    retain(operator.broker.port, &mirror(&operator, 16 << 10)).unwrap();
    let nowhere = [("SCANSIDE_BACKBONE", "/nowhere/backbone.safetensors")];
    for (number, source) in [operator.served(), "mqtt".into()].into_iter().enumerate() {
        // Each is a device that has seen nothing yet, and follows the same desired state.
        let mut on = operator.edge_box(&source);
        on.start_with(&nowhere).unwrap();
        operator.want(1, Some("1.0.0"), 7);
        on.await_line("task loaded").unwrap();
        let fetched = on.data().join(format!("backbones/{digest}.safetensors"));
        assert_eq!(fs::metadata(&fetched).unwrap().len(), length as u64, "{source}");
        send(&on, operator.folder.path(), number);
        let (_, result) = next_result(&operator.results).unwrap();
        assert_eq!(result.provenance.backbone_sha256, digest);
        // It stays over a restart, as long as a plugin needs it.
        on.terminate().unwrap();
        on.start_with(&nowhere).unwrap();
        on.await_line("task loaded").unwrap();
        assert!(fetched.exists());
        on.terminate().unwrap();
    }
}

/// A folder over a line that breaks after so many bytes of a backbone; where it was asked to begin.
#[derive(Debug)]
struct Torn(Folder, usize, Mutex<Vec<u64>>);

impl Source for Torn {
    fn name(&self) -> String {
        self.0.name()
    }

    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        self.0.metadata(file, limit)
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        let mut left = usize::MAX;
        if target.path.starts_with("backbones/") {
            self.2.lock().unwrap().push(from);
            left = self.1;
        }
        self.0.target(target, from, &mut |bytes| {
            let piece = &bytes[..bytes.len().min(left)];
            left -= piece.len();
            take(piece)?;
            if left == 0 { Err(io::Error::other("the line is down")) } else { Ok(()) }
        })
    }
}

#[test]
fn a_backbone_comes_with_a_plugin_that_is_installed_by_its_name() {
    let mut operator = Operator::new();
    let backbone = fs::read(&operator.fixture.backbone).unwrap();
    let digest = sha256(&backbone);
    operator.repository.backbones = [("tiny.safetensors".into(), backbone)].into();
    operator.repository.release();
    operator.repository.write(Path::new(&operator.served()));
    let on = operator.edge_box("mqtt");
    let words = |words: &[&str]| {
        let mut command = program("scanside");
        command.arg("plugin").args(words).arg("--config").arg(on.config());
        let outcome = run(command.env("SCANSIDE_BACKBONE", "/nowhere/backbone.safetensors"));
        outcome.success();
        outcome.stderr
    };
    let said = words(&["install", "north/lesion-1.0.0.plugin", "--source", &operator.served()]);
    assert!(said.contains("fetching backbones/tiny.safetensors"), "{said}");
    assert!(on.data().join(format!("backbones/{digest}.safetensors")).exists());
    words(&["activate", "lesion"]);
    // The next plugin finds it there.
    let said = words(&["install", "north/lesion-1.1.0.plugin", "--source", &operator.served()]);
    assert!(!said.contains("fetching"), "{said}");
    words(&["activate", "lesion"]);
}

#[test]
fn a_backbone_is_gone_on_with_where_it_broke_off_and_leaves_room_on_the_disk() {
    let mut operator = Operator::new();
    let backbone = fs::read(&operator.fixture.backbone).unwrap();
    let (digest, half) = (sha256(&backbone), backbone.len() / 2 + 1);
    operator.repository.backbones = [("tiny.safetensors".into(), backbone)].into();
    operator.repository.release();
    operator.repository.write(Path::new(&operator.served()));
    let data = operator.folder.path().join("data");
    let torn = Arc::new(Torn(Folder(operator.served().into()), half, Mutex::default()));
    let updates = |keep_free: u64| {
        let [site, device]: [TopicLevel; 2] = ["north", "ct-2"].map(|name| name.parse().unwrap());
        let trust = Trust::open(&data.join("updates"), &operator.folder.path().join("root.json"), &site);
        let gate = GateLimits { time: PATIENCE, memory: u64::MAX };
        let loader = loader(Path::new("/nowhere/backbone.safetensors"));
        let place = Place { site, device, loader, keep_free, gate };
        let downloads = Downloads::open(&data.join("updates/downloads")).unwrap();
        let slots = Slots::new(&data).signed_only(true);
        let mut updates = Updates::new(place, trust.unwrap(), torn.clone(), slots, downloads);
        updates.hear(desire(&operator.desired(1, Some("1.0.0")), &[&Key::of(7)]));
        updates
    };
    let step = |updates: &mut Updates| {
        let mut told = Vec::new();
        let after = updates.step(NOW, &mut |reported| {
            told.push(reported.tasks.get("lesion").cloned());
            true
        });
        (after, told.into_iter().flatten().collect::<Vec<_>>())
    };
    let (after, told) = step(&mut updates(u64::MAX));
    let failure = told.last().unwrap().failure.clone().unwrap();
    assert_eq!(after, After::Again, "room may be made");
    assert!(failure.contains("make room on the disk"), "{failure}");
    assert!(torn.2.lock().unwrap().is_empty(), "nothing is fetched that has no place");

    let folder = data.join("backbones");
    let other = folder.join(format!("{}.safetensors", "0".repeat(64)));
    fs::write(&other, "of a plugin that is gone").unwrap();
    let mut updates = updates(0);
    let (after, told) = step(&mut updates);
    assert_eq!(after, After::Again);
    let is_fetched = |task: &&ReportedTask| task.state == TaskState::Fetching && task.candidate.is_some();
    assert!(told.iter().filter(is_fetched).any(|task| task.progress.is_some_and(|share| share > 0.5)));
    let part = folder.join(format!("{digest}.part"));
    assert_eq!(fs::metadata(&part).unwrap().len(), half as u64);
    assert!(!other.exists(), "no plugin needs it");
    let (after, told) = step(&mut updates);
    assert_eq!((after, told.last().unwrap().state), (After::Rest, TaskState::Active));
    assert_eq!(*torn.2.lock().unwrap(), [0, half as u64]);
    assert!(!part.exists() && folder.join(format!("{digest}.safetensors")).exists());
}

#[test]
fn a_backbone_that_is_not_the_signed_one_or_not_signed_is_refused() {
    let mut operator = Operator::new();
    let backbone = fs::read(&operator.fixture.backbone).unwrap();
    let digest = sha256(&backbone);
    let mut on = operator.edge_box(&operator.served());
    let other = operator.folder.path().join("other.safetensors");
    fs::write(&other, random_backbone(9)).unwrap();
    on.start_with(&[("SCANSIDE_BACKBONE", &other.display().to_string())]).unwrap();
    operator.want(1, Some("1.0.0"), 7);
    let unknown = operator.until_task(1, TaskState::Failed);
    let failure = unknown.failure.unwrap();
    assert!(failure.contains(&digest) && failure.contains("but this backbone has"), "{failure}");

    operator.repository.backbones = [("tiny.safetensors".into(), backbone)].into();
    operator.repository.release();
    operator.repository.write(Path::new(&operator.served()));
    let served = format!("{}/targets/backbones/{digest}.tiny.safetensors", operator.served());
    let mut tampered = fs::read(&served).unwrap();
    tampered[5000] ^= 1;
    fs::write(&served, tampered).unwrap();
    operator.want(2, Some("1.0.0"), 7);
    let is = |reported: &Reported| {
        let task = reported.tasks.get("lesion");
        let failure = task.and_then(|task| task.failure.as_deref()).unwrap_or_default();
        failure.contains("backbones/tiny.safetensors is not what was signed")
    };
    let refused = operator.until("a backbone that was tampered with", is);
    assert_eq!(version(refused.tasks["lesion"].active.as_ref()), None);
    let left: Vec<_> = fs::read_dir(on.data().join("backbones")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    fs::copy(&operator.fixture.backbone, &served).unwrap();
    operator.want(3, Some("1.0.0"), 7);
    operator.until_task(3, TaskState::Active);
    on.terminate().unwrap();
}

#[test]
fn blocks_from_the_broker_are_gone_on_with_after_a_power_cut() {
    let operator = Operator::new();
    let target = operator.repository.target("lesion-1.0.0.plugin");
    let block = (target.length as usize).div_ceil(8);
    let messages = mirror(&operator, block);
    let (first, rest) = messages.split_at(messages.len() - 4);
    retain(operator.broker.port, first).unwrap();
    let mut on = operator.edge_box("mqtt");
    on.start().unwrap();
    operator.want(1, Some("1.0.0"), 7);
    let half = operator.until("half of the blocks", |reported| {
        reported.tasks.get("lesion").and_then(|task| task.progress).is_some_and(|progress| progress >= 0.5)
    });
    assert_eq!(half.tasks["lesion"].state, TaskState::Fetching);
    on.kill().unwrap();
    let part = on.data().join(format!("updates/downloads/{}.part", target.sha256));
    assert_eq!(fs::metadata(&part).unwrap().len(), 4 * block as u64);

    // Were the first half asked for again, it would not come.
    let gone: Vec<(String, Vec<u8>)> = (0..4)
        .map(|n| (format!("scanside/v1/north/repository/targets/{}/{n}", target.sha256), Vec::new()))
        .collect();
    retain(operator.broker.port, &gone).unwrap();
    retain(operator.broker.port, rest).unwrap();
    on.start().unwrap();
    let task = operator.until_task(1, TaskState::Active);
    assert_eq!(task.active.unwrap().sha256, target.sha256);
    on.terminate().unwrap();
}
