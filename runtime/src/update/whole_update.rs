//! An update as a whole, the power going after every single operation of it: the box goes on with the plugin that it had or with
//! the new one, every byte of it, and remembers what it has seen and fetched. From metadata to slots all is the program's own, on a
//! simulated disk; only merging and golden cases, which need an engine and write nothing, are passed over.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::TopicLevel;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::sign::SigningKey;

use super::source::Take;
use super::state::State as Seen;
use super::*;
use crate::Error;
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, SyncPoint, every_cut, harm, losses};
use crate::slots::tests::{Still, activate, plugin_file};
use crate::slots::{Slots, State};
use crate::tensor::sha256;

const POINTS: [SyncPoint; 16] = [
    "the folder above the data folder, after that was made",
    "the data folder, after the folder of updates was made in it",
    "the data folder, after the folder of all tasks was made in it",
    "the folder of updates, after that of downloads was made in it",
    "the content of trust.json, before its renaming",
    "the folder of updates, after trust.json was renamed",
    "the folder of downloads, after a file was made in it",
    "the content of a download",
    "the folder of all tasks, after a task's was made in it",
    "a plugin file's content, before its renaming",
    "a task's folder, after a plugin file was renamed",
    "the content of slots.json, before its renaming",
    "a task's folder, after slots.json was renamed",
    "the data folder, after that of backbones was made in it",
    "the content of a backbone, before its renaming",
    "the folder of backbones, after one was made or renamed in it",
];

fn point(path: &Path, made: Option<&str>) -> SyncPoint {
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    POINTS[match (&names[..], made) {
        (["/"], _) => 0,
        (["/", "data"], Some("plugins")) => 2,
        (["/", "data"], Some("backbones")) => 13,
        (["/", "data"], _) => 1,
        (["/", "data", "updates"], Some("downloads") | None) => 3,
        (["/", "data", "updates", "trust.json.new"], _) => 4,
        (["/", "data", "updates"], Some("trust.json")) => 5,
        (["/", "data", "updates", "downloads"], _) => 6,
        (["/", "data", "updates", "downloads", _], _) => 7,
        (["/", "data", "plugins"], _) => 8,
        (["/", "data", "plugins", "lesion", name], _) if name.ends_with(".plugin.new") => 9,
        (["/", "data", "plugins", "lesion"], Some(name)) if name.ends_with("plugin") => 10,
        (["/", "data", "plugins", "lesion", "slots.json.new"], _) => 11,
        (["/", "data", "plugins", "lesion"], Some("slots.json")) => 12,
        (["/", "data", "backbones", _], _) => 14,
        (["/", "data", "backbones"], _) => 15,
        _ => panic!("{} is synced after {made:?}, which is no point known to the test", path.display()),
    }]
}

const UPDATES: &str = "/data/updates";
const FAR: &str = "2099-01-01T00:00:00Z";
/// 2026-11-26.
const NOW: i64 = 1_795_651_200;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Signs for every role.
struct Key(Arc<dyn SigningKey>);

impl Key {
    fn new() -> Self {
        // An Ed25519 key of PKCS #8 (RFC 8410), whose last 32 bytes are the seed.
        let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        der.extend([7; 32]);
        Self(any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).unwrap())
    }

    fn public(&self) -> Value {
        let spki = self.0.public_key().unwrap();
        let public = hex(&spki[spki.len() - 32..]);
        json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } })
    }

    fn id(&self) -> String {
        sha256(&serde_json::to_vec(&self.public()).unwrap())
    }

    /// What has plain texts and whole numbers only is canonical as it is written here, sorted and without spaces.
    fn sign(&self, signed: &Value) -> Vec<u8> {
        let signer = self.0.choose_scheme(&[SignatureScheme::ED25519]).unwrap();
        let signature = signer.sign(&serde_json::to_vec(signed).unwrap()).unwrap();
        let signatures = json!([{ "keyid": self.id(), "sig": hex(&signature) }]);
        serde_json::to_vec(&json!({ "signed": signed, "signatures": signatures })).unwrap()
    }
}

const BACKBONE: &str = "backbones/tiny.safetensors";

fn backbone() -> Vec<u8> {
    (0..5000u32).map(|i| (i * 7) as u8).collect()
}

/// What a repository serves, and what the operator wants with it.
#[derive(Debug, Default)]
struct Release {
    metadata: BTreeMap<String, Vec<u8>>,
    plugin: Vec<u8>,
    desired: Vec<u8>,
}

impl Release {
    fn new(key: &Key, number: u64, version: &str) -> Self {
        let plugin = plugin_file(version);
        let target = |bytes: &[u8]| json!({ "length": bytes.len(), "hashes": { "sha256": sha256(bytes) } });
        let name = format!("north/lesion-{version}.plugin");
        let role = |kind: &str, more: Value| {
            let mut signed =
                json!({ "_type": kind, "spec_version": "1.0.0", "version": number, "expires": FAR });
            for (key, value) in more.as_object().into_iter().flatten() {
                signed[key] = value.clone();
            }
            key.sign(&signed)
        };
        let pinned = |bytes: &[u8]| json!({ "version": number, "length": bytes.len(), "hashes": { "sha256": sha256(bytes) } });
        let site = role("targets", json!({ "targets": { (name.as_str()): target(&plugin) } }));
        let keys = json!({ (key.id()): key.public() });
        let delegated = json!({
            "name": "north", "keyids": [key.id()], "threshold": 1, "paths": ["north/*"], "terminating": true,
        });
        let delegations = json!({ "keys": keys, "roles": [delegated] });
        let targets = role(
            "targets",
            json!({ "targets": { (BACKBONE): target(&backbone()) }, "delegations": delegations }),
        );
        let meta = json!({ "targets.json": pinned(&targets), "north.json": pinned(&site) });
        let snapshot = role("snapshot", json!({ "meta": meta }));
        let timestamp = role("timestamp", json!({ "meta": { "snapshot.json": pinned(&snapshot) } }));
        let wanted = json!({ "target": { "name": name, "length": plugin.len(), "sha256": sha256(&plugin) } });
        let desired = key.sign(&json!({
            "schema": firmware_config::DESIRED_SCHEMA, "site": "north", "device": "ct-2", "revision": number, "expires": FAR,
            "tasks": { "lesion": wanted },
        }));
        let metadata = [
            (format!("{number}.targets.json"), targets),
            (format!("{number}.north.json"), site),
            (format!("{number}.snapshot.json"), snapshot),
            ("timestamp.json".to_owned(), timestamp),
        ];
        Self { metadata: metadata.into(), plugin, desired }
    }
}

impl Source for Release {
    fn name(&self) -> String {
        "a repository in memory".into()
    }

    fn metadata(&self, file: &str, _: u64) -> Result<Option<Vec<u8>>, SourceError> {
        Ok(self.metadata.get(file).cloned())
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        let bytes = if target.path.starts_with("backbones/") { &backbone() } else { &self.plugin };
        for piece in bytes[from as usize..].chunks(3000) {
            take(piece).map_err(|error| SourceError::Failed {
                source_name: self.name(),
                detail: error.to_string(),
            })?;
        }
        Ok(())
    }
}

/// The root that a device was given, and two releases, each with a plugin that the operator then wants.
struct World {
    anchor: NamedTempFile,
    releases: [Arc<Release>; 2],
}

impl World {
    fn new() -> Self {
        let key = Key::new();
        let role = json!({ "keyids": [key.id()], "threshold": 1 });
        let root = key.sign(&json!({
            "_type": "root", "spec_version": "1.0.0", "consistent_snapshot": true, "version": 1, "expires": FAR,
            "keys": { (key.id()): key.public() },
            "roles": { "root": role, "targets": role, "snapshot": role, "timestamp": role },
        }));
        let mut anchor = NamedTempFile::new().unwrap();
        anchor.write_all(&root).unwrap();
        let release = |number, version| Arc::new(Release::new(&key, number, version));
        Self { anchor, releases: [release(1, "1.0.0"), release(2, "1.1.0")] }
    }
}

/// What a device has: what it has seen, its plugins, how much of each release's plugin lies among its downloads, and whether it has
/// the backbone.
type Standing = (Option<Seen>, Option<State>, [u64; 2], bool);

struct Device<'a> {
    world: &'a World,
    disk: Arc<SimDisk>,
    slots: Slots,
    /// Operations done and what there is after each step; the first is before all.
    history: Vec<(usize, Standing)>,
}

impl<'a> Device<'a> {
    fn new(world: &'a World, disk: SimDisk) -> Self {
        let disk = Arc::new(disk);
        let slots = Slots::on(Arc::clone(&disk) as Arc<dyn Disk>, Arc::new(Still), Path::new("/data"));
        Self { world, disk, slots: slots.signed_only(true), history: Vec::new() }
    }

    fn on_disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk) as Arc<dyn Disk>
    }

    fn part(release: &Release) -> PathBuf {
        Path::new(UPDATES).join("downloads").join(format!("{}.part", sha256(&release.plugin)))
    }

    /// What there is, if all of it is sound: every file that the slots name is read.
    fn standing(&self) -> Result<Standing, String> {
        let seen =
            Seen::read(&*self.disk, &Path::new(UPDATES).join("trust.json")).map_err(|e| e.to_string())?;
        let state = self.slots.state("lesion").map_err(|e| e.to_string())?;
        for (slot, placed) in state.iter().flat_map(State::placed) {
            self.slots.read(placed).map_err(|e| format!("{slot}: {e}"))?;
        }
        let here = |release: &Arc<Release>| self.disk.length(&Self::part(release)).ok().flatten();
        let fetched = self.slots.fetched_backbone(&sha256(&backbone()));
        if fetched.as_ref().is_some_and(|path| self.disk.content(path).unwrap_or_default() != backbone()) {
            return Err("a backbone is torn".into());
        }
        let here = self.world.releases.each_ref().map(|release| here(release).unwrap_or(0));
        Ok((seen, state, here, fetched.is_some()))
    }

    fn note(&mut self) {
        let standing = self.standing().expect("a sound device");
        self.history.push((self.disk.operations(), standing));
    }

    /// Does what [`Updates`] does about a release, one plan after the other.
    fn update(&mut self, release: &Arc<Release>) -> Result<(), Error> {
        let [site, name]: [TopicLevel; 2] = ["north", "ct-2"].map(|name| name.parse().unwrap());
        let anchor = self.world.anchor.path();
        let mut trust = Trust::on(self.on_disk(), Path::new(UPDATES), anchor, &site)?;
        let source: Arc<dyn Source> = release.clone();
        let repository = trust.refresh(&source, NOW)?;
        self.note();
        trust.follow(&release.desired, &repository, [&site, &name], NOW)?;
        self.note();
        let desired = trust.desired().expect("what was followed");
        let downloads = Downloads::on(self.on_disk(), &Path::new(UPDATES).join("downloads"))?;
        loop {
            let state = self.slots.state("lesion")?.unwrap_or_default();
            let digest = |placed: Option<&crate::slots::Placed>| placed.map(|placed| placed.sha256.clone());
            let standing = super::Standing {
                active: digest(state.active.as_ref()),
                candidate: digest(state.candidate.as_ref()),
                previous: digest(state.previous.as_ref()),
                ..super::Standing::default()
            };
            match plan(&desired, &[("lesion".to_owned(), standing)].into()).remove("lesion") {
                Some(Action::Install(target)) => {
                    let file = repository.target(&site, &target)?;
                    let path = downloads.fetch(&*source, &target, &file, &mut |_| true)?;
                    self.note();
                    let bytes = self.disk.content(&path).expect("what was fetched");
                    self.slots.install_bytes(&bytes, &path, Some(target))?;
                }
                Some(Action::Activate) => {
                    let target = repository.find(&site, BACKBONE)?;
                    if self.slots.fetched_backbone(&target.sha256).is_none() {
                        fetch_backbone(&repository, &self.slots, &target, 0, &mut |_| true)?;
                        self.note();
                    }
                    activate(&self.slots)?;
                }
                None => break,
                Some(other) => panic!("{other:?} is not planned here"),
            }
            self.note();
        }
        downloads.clean(&[])?;
        self.note();
        Ok(())
    }
}

fn reference(world: &World, left_out: Option<SyncPoint>) -> Device<'_> {
    let mut device = Device::new(world, SimDisk::new(point, left_out));
    device.note();
    for release in &world.releases {
        device.update(release).expect("an update");
    }
    device
}

/// One cut: what was there before the step under way or after it, of each kind; and with `rest` the updates go on from there.
fn check(reference: &Device<'_>, operations: usize, disk: SimDisk, rest: bool) -> Result<(), String> {
    let (world, history) = (reference.world, &reference.history);
    let mut device = Device::new(world, disk);
    let (seen, state, _, backbone) = device.standing()?;
    let step = history.iter().rposition(|(at, _)| *at <= operations).unwrap_or(0);
    let before = &history[step].1;
    let after = history.get(step + 1).map_or(before, |(_, after)| after);
    if seen != before.0 && seen != after.0 {
        let revision = |seen: &Option<Seen>| Some(seen.as_ref()?.desired.as_ref()?.revision);
        let [found, one, other] = [&seen, &before.0, &after.0].map(revision);
        return Err(format!("revision {found:?} was seen, neither {one:?} nor {other:?}, or other metadata"));
    }
    if state != before.1 && state != after.1 {
        return Err(format!("{state:?} is neither {:?} nor {:?}", before.1, after.1));
    }
    if backbone != before.3 && backbone != after.3 {
        return Err("the backbone must be fetched again".into());
    }
    // A plugin that had come as a whole before the step, and is not removed in it, is here as a whole.
    for (n, release) in world.releases.iter().enumerate() {
        let whole = release.plugin.len() as u64;
        if before.2[n] == whole && after.2[n] == whole {
            let found = device.disk.content(&Device::part(release)).unwrap_or_default();
            if found != release.plugin {
                return Err(format!("the plugin of release {} must be fetched again", n + 1));
            }
        }
    }
    if !rest {
        return Ok(());
    }
    let is_second = |seen: Seen| seen.timestamp.is_some_and(|timestamp| timestamp.contains("\"version\":2"));
    for release in &world.releases[usize::from(seen.is_some_and(is_second))..] {
        device.update(release).map_err(|error| format!("it does not go on: {error}"))?;
    }
    let (end, expected) = (device.standing()?, &history[history.len() - 1].1);
    if end.1 != expected.1 || end.2 != [0; 2] {
        return Err(format!("it ends with {end:?} instead of {expected:?}"));
    }
    Ok(())
}

#[test]
fn a_power_cut_after_any_operation_of_a_whole_update_leaves_the_old_plugin_or_the_new() {
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    let world = World::new();
    let reference = reference(&world, None);
    let mut tried = 0;
    every_cut(&reference.disk, |cut, platter| {
        for (n, loss) in losses(cut, if long { 200 } else { 4 }).enumerate() {
            let rest = (cut + n).is_multiple_of(if long { 4 } else { 12 });
            if let Err(violation) = check(&reference, cut, platter.after(loss, None), rest) {
                panic!("cut after operation {cut} with loss of {loss:?}: {violation}");
            }
            tried += 1;
        }
    });
    let served: Vec<&str> = reference
        .history
        .iter()
        .map(|(_, (_, state, ..))| state.as_ref().and_then(|state| state.active.as_ref()))
        .map(|active| active.map_or("none", |active| active.task.version.as_str()))
        .collect();
    assert_eq!((served[0], served[served.len() - 1]), ("none", "1.1.0"), "{served:?}");
    assert!(served.contains(&"1.0.0"), "{served:?}");
    let (tally, operations) = (reference.disk.tally(), reference.disk.operations());
    println!(
        "two updates from metadata to active plugin, {operations} operations: {tally}; {tried} power cuts"
    );
    assert!(operations > 60 && tally.synced > 30, "{tally:?}");
}

#[test]
fn without_any_one_of_the_syncs_a_whole_update_is_lost_or_torn() {
    let world = World::new();
    for left_out in POINTS {
        let reference = reference(&world, Some(left_out));
        println!("{}", harm(&reference.disk, left_out, |cut, disk| check(&reference, cut, disk, false)));
    }
}
