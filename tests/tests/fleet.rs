//! Operators and devices together: the tool, a broker, and devices that fetch, prove and run what they are told.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use firmware_config::{Broker, Reported, TaskState};
use runtime::gate::GateLimits;
use runtime::publish::follow::{Follow, Handle, Options};
use runtime::publish::{Endpoint, Patience};
use runtime::slots::Slots;
use runtime::update::{
    After, Downloads, Folder, Place, Source, SourceError, Take, TargetFile, Trust, Updates,
};
use tempfile::TempDir;
use tests::desk::Desk;
use tests::fixture::{Fixture, loader};
use tests::mosquitto::{Mosquitto, free_port};
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, PATIENCE, next_result, series};
use tests::subscriber::Subscriber;

/// An empty desk but for two versions of a plugin.
fn desk() -> Desk {
    let desk = Desk::empty();
    for version in ["1.0.0", "1.1.0"] {
        let fixture = Fixture::for_a_service(|manifest| manifest.task.version = version.into());
        fs::copy(&fixture.plugin, desk.path(&format!("lesion-{version}.plugin"))).unwrap();
        fs::copy(&fixture.graph, desk.path(&format!("lesion-{version}.onnx"))).unwrap();
    }
    desk
}

/// Waits until both devices run this version.
fn until_both_run(said: &Subscriber, version: &str) {
    let (begun, mut last) = (Instant::now(), BTreeMap::new());
    while begun.elapsed() < PATIENCE {
        if last.len() == 2 && last.values().all(|found: &Option<String>| found.as_deref() == Some(version)) {
            return;
        }
        let Ok(message) = said.next(Duration::from_secs(5)) else { continue };
        let reported: Reported = serde_json::from_slice(&message.payload).unwrap();
        let task = reported.tasks.get("lesion").filter(|task| task.state == TaskState::Active);
        let active = task.and_then(|task| task.active.as_ref()).map(|plugin| plugin.task.version.clone());
        last.insert(reported.device.to_string(), active);
    }
    panic!("not both devices run {version}: {last:?}")
}

fn classified(on: &EdgeBox, files: &Path, number: usize, results: &Subscriber) -> String {
    let series = series(files, number, [12, 10, 4], |_, _| ()).unwrap();
    let (sent, said) = scanner::run(dcmtk("storescu", on.address(), &[]).args(series)).unwrap();
    assert!(sent, "{said}");
    let (_, result) = next_result(results).unwrap();
    assert_eq!(serde_json::to_value(result.trust).unwrap(), "signed");
    result.provenance.target.unwrap().name
}

/// The commands of the page's first part, as they stand there, with two devices: one reads the repository's folder, the other has the
/// broker alone.
#[test]
fn the_page_takes_an_operator_from_no_keys_to_a_rollout_and_back() {
    let page = fs::read_to_string("../docs/fleet.md").unwrap();
    let part = page.split("\n## ").find(|part| part.starts_with("From no keys")).unwrap();
    let (desk, broker, fixture) = (desk(), Mosquitto::start().unwrap(), Fixture::for_a_service(|_| ()));
    let said = Subscriber::new(broker.port, "scanside/v1/north/+/reported").unwrap();
    let results = Subscriber::new(broker.port, "scanside/v1/north/+/result/#").unwrap();
    let mut boxes: Vec<EdgeBox> = Vec::new();
    let mut commands = 0;
    let mut blocks = part.split("```");
    while let (Some(_), Some(block)) = (blocks.next(), blocks.next()) {
        if let Some(fleet) = block.strip_prefix("toml\n").filter(|toml| toml.contains("[sites]")) {
            fs::write(desk.path("repository/fleet.toml"), fleet).unwrap();
        }
        for line in block.strip_prefix("sh\n").unwrap_or_default().lines() {
            let line = line.replace("mqtt://127.0.0.1:1883", &broker.url());
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[0], "scanside-fleet", "{line}");
            if words[1] == "desire" && boxes.is_empty() {
                let root = desk.path("keys/root.json");
                for (name, source) in [("ct-1", desk.path("repository")), ("ct-2", "mqtt".into())] {
                    let (root, source) = (root.display(), source.display());
                    let extra = format!("updates.root = \"{root}\"\nupdates.source = \"{source}\"\n");
                    let mut on = EdgeBox::new(&broker.url(), &fixture, &extra).unwrap();
                    on.start_with(&[("SCANSIDE_DEVICE", name)]).unwrap();
                    boxes.push(on);
                }
            }
            if words[1] == "status" {
                until_both_run(&said, "1.0.0");
            }
            let outcome = desk.done(&words[1..]);
            commands += 1;
            match [words[1], words.get(2).copied().unwrap_or_default()] {
                ["status", _] => assert!(outcome.stdout.contains("2 devices"), "{outcome:?}"),
                ["rollout", "start"] => {
                    // The rollout has ended, so that both run it already.
                    for (number, on) in boxes.iter().enumerate() {
                        let target = classified(on, desk.folder(), number, &results);
                        assert_eq!(target, "north/lesion-1.1.0.plugin");
                    }
                }
                ["rollout", "status"] => assert!(outcome.stdout.contains("2 healthy"), "{outcome:?}"),
                ["rollout", "abort"] => {
                    until_both_run(&said, "1.0.0");
                    let target = classified(&boxes[0], desk.folder(), 7, &results);
                    assert_eq!(target, "north/lesion-1.0.0.plugin");
                }
                _ => {}
            }
        }
    }
    assert!(commands >= 12, "{commands} commands");
    for on in &mut boxes {
        on.terminate().unwrap();
    }
}

/// Counts what devices read.
#[derive(Debug)]
struct Counted(Folder, Arc<[AtomicU64; 2]>);

impl Source for Counted {
    fn name(&self) -> String {
        self.0.name()
    }

    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let found = self.0.metadata(file, limit)?;
        self.1[0].fetch_add(found.as_ref().map_or(0, Vec::len) as u64, Ordering::Relaxed);
        Ok(found)
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        self.1[1].fetch_add(target.length - from, Ordering::Relaxed);
        self.0.target(target, from, take)
    }
}

struct Device {
    updates: Updates,
    heard: Receiver<Vec<u8>>,
    handle: Handle,
    due: Option<Instant>,
}

/// Devices that do all but classify: connected, verifying, fetching, merging, proving.
struct Fleet {
    _folder: TempDir,
    devices: Arc<Vec<Mutex<Device>>>,
    ended: Arc<AtomicBool>,
    workers: Vec<thread::JoinHandle<()>>,
    /// Bytes of metadata and of plugins.
    read: Arc<[AtomicU64; 2]>,
    _network: tokio::runtime::Runtime,
}

const LIMITS: GateLimits = GateLimits { time: Duration::from_mins(10), memory: u64::MAX };

impl Fleet {
    fn start(count: usize, desk: &Desk, fixture: &Fixture, broker: &Broker) -> Self {
        let network =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let read: Arc<[AtomicU64; 2]> = Arc::default();
        let source: Arc<dyn Source> = Arc::new(Counted(Folder(desk.path("repository")), read.clone()));
        let device = |n: usize| {
            let (site, name) = ("north".parse().unwrap(), format!("d{n}"));
            let data = folder.path().join(&name);
            let trust = Trust::open(&data.join("updates"), &desk.path("keys/root.json"), &site).unwrap();
            let downloads = Downloads::open(&data.join("updates/downloads")).unwrap();
            let (tell, heard) = channel();
            let options = Options {
                endpoint: Endpoint::open(broker.clone()).unwrap(),
                client_id: format!("device-{name}"),
                keep_alive: Duration::from_mins(5),
                listen: Some(format!("scanside/v1/north/{name}/desired")),
                report: format!("scanside/v1/north/{name}/reported"),
                // A thousand log in at once.
                patience: Patience {
                    connect: Duration::from_mins(2),
                    acknowledge: Duration::from_mins(2),
                    ..Patience::default()
                },
                seed: n as u64,
            };
            let (follow, handle) = Follow::new(options, tell);
            network.spawn(follow.run());
            let place = Place {
                site,
                device: name.parse().unwrap(),
                loader: loader(&fixture.backbone),
                keep_free: 0,
                gate: LIMITS,
            };
            let slots = Slots::new(&data).signed_only(true);
            let updates = Updates::new(place, trust, source.clone(), slots, downloads);
            Mutex::new(Device { updates, heard, handle, due: None })
        };
        let devices: Arc<Vec<Mutex<Device>>> = Arc::new((0..count).map(device).collect());
        let ended = Arc::new(AtomicBool::new(false));
        let workers = (0..2).map(|worker| {
            let (devices, ended) = (devices.clone(), ended.clone());
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    for device in devices.iter().skip(worker).step_by(2) {
                        device.lock().unwrap().work();
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            })
        });
        let workers = workers.collect();
        Self { _folder: folder, devices, ended, workers, read, _network: network }
    }
}

impl Device {
    fn work(&mut self) {
        if let Some(payload) = self.heard.try_iter().last() {
            self.updates.hear(payload);
            self.due = Some(Instant::now());
        }
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let handle = self.handle.clone();
        let after = self.updates.step(clock as i64, &mut |reported| {
            handle.report(serde_json::to_vec(&reported).unwrap());
            true
        });
        self.due = (after == After::Again).then(|| Instant::now() + Duration::from_secs(1));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Fifty devices, and a thousand with `--long`; on one of twenty the new version is too slow for its golden gate.
#[test]
fn a_rollout_to_a_fleet_stops_where_too_many_fail() {
    let count = if std::env::var_os("SCANSIDE_LONG").is_some() { 1000 } else { 50 };
    // More than the usual 1,000 retained messages at once are wanted of this broker, and what it says of itself every second.
    let tuned = "allow_anonymous true\nmax_queued_messages 0\nsys_interval 1";
    let (desk, broker) = (desk(), Mosquitto::on(free_port().unwrap(), tuned).unwrap());
    let (url, fixture) = (broker.url(), Fixture::for_a_service(|_| ()));
    desk.done(&["init"]);
    desk.done(&["key", "add-site", "north"]);
    let devices: Vec<String> = (0..count).map(|n| format!("\"d{n}\"")).collect();
    let listed = format!("[sites]\nnorth = [{}]\n", devices.join(", "));
    fs::write(desk.path("repository/fleet.toml"), listed).unwrap();
    for version in ["1.0.0", "1.1.0"] {
        desk.done(&["publish", "--plugin", &format!("lesion-{version}.plugin"), "--site", "north"]);
    }
    let fleet = Fleet::start(count, &desk, &fixture, &url.parse().unwrap());
    let rollout = |name: &str, task: &str, more: &[&str]| {
        let words = ["rollout", "start", name, "--broker", &url, "--task", task, "--all", "--settle", "1s"];
        desk.run(&[&words[..], more].concat())
    };
    let begun = Instant::now();
    let first = rollout("first", "lesion=1.0.0", &["--waves", "100%"]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let first = begun.elapsed();
    let read = || [0, 1].map(|i| fleet.read[i].load(Ordering::Relaxed));
    let [metadata, plugins] = read();
    let size = fs::metadata(desk.path("lesion-1.0.0.plugin")).unwrap().len();
    assert_eq!(plugins, count as u64 * size, "each device fetches the plugin once");

    let slow: Vec<usize> = (0..count).filter(|n| n % 20 == 10).collect();
    for &n in &slow {
        fleet.devices[n].lock().unwrap().updates.set_gate(GateLimits { time: Duration::ZERO, ..LIMITS });
    }
    let begun = Instant::now();
    let second = rollout("second", "lesion=1.1.0", &["--waves", "5%,25%,100%", "--max-failures", "4%"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.contains("devices told have failed") && second.stderr.contains("gate.time"),
        "{second:?}"
    );
    let second_time = begun.elapsed();

    let mut versions = BTreeMap::new();
    for (n, device) in fleet.devices.iter().enumerate() {
        let reported = device.lock().unwrap().updates.reported(0);
        let task = &reported.tasks["lesion"];
        let version = task.active.as_ref().unwrap().task.version.clone();
        if slow.contains(&n) {
            assert_eq!(version, "1.0.0", "what was active still is: {task:?}");
        }
        *versions.entry(version).or_insert(0) += 1;
    }
    assert!(
        versions["1.1.0"] <= count.div_ceil(4),
        "the wave after the threshold was not told: {versions:?}"
    );
    let load = Subscriber::new(broker.port, "$SYS/broker/+/+").unwrap();
    thread::sleep(Duration::from_secs(2));
    let load: BTreeMap<String, String> = load
        .arrived()
        .into_iter()
        .map(|m| (m.topic, String::from_utf8_lossy(&m.payload).into_owned()))
        .collect();
    let of = |what: &str| load.get(&format!("$SYS/broker/{what}")).cloned().unwrap_or_default();
    println!(
        "{count} devices: all on 1.0.0 in {first:.1?} ({metadata} bytes of metadata, {plugins} of plugins); 1.1.0 stopped after \
         {second_time:.1?} at {versions:?}; the broker received {} messages, {} bytes and sent {}, {} bytes",
        of("messages/received"),
        of("bytes/received"),
        of("messages/sent"),
        of("bytes/sent")
    );
}
