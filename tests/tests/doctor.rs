//! `scanside doctor` on boxes that are well and on others: with a real broker, and our own listeners as the service.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use firmware_config::Accepts;
use runtime::ingest::listener::{Listener, Options};
use runtime::plugin::Plugin;
use runtime::service::http::{Server, Snapshot};
use runtime::slots::Slots;
use runtime::tensor::sha256;
use serde_json::Value;
use tempfile::TempDir;
use tests::fixture::{Fixture, random_backbone};
use tests::golden::plugin;
use tests::mosquitto::{Mosquitto, free_port};
use tests::programs::{Outcome, program, run};
use tests::repository::Repository;
use tests::scanner::{Folder, TITLE, listen};

/// A box with everything in place, and nothing running.
struct Device {
    fixture: Fixture,
    /// On a disk, which a folder for temporary files need not be.
    data: TempDir,
    dicom: SocketAddr,
    http: SocketAddr,
    mqtt: String,
    /// Lines for the end of device.toml, a table each.
    more: String,
}

/// Exchanges two words of a file.
fn swap(path: &Path, a: &str, b: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace(a, "\0").replace(b, a).replace('\0', b)).unwrap();
}

impl Device {
    /// With the fixture's plugin active, as `edit` makes it.
    fn new(broker: &str, edit: impl FnOnce(&mut Plugin)) -> Self {
        let fixture = Fixture::default();
        let data = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = plugin(&fixture, "good.plugin", |plugin| {
            plugin.manifest.accepts = Some(accepts());
            edit(plugin);
        });
        Slots::new(data.path()).install(&file, None).unwrap();
        // Not activated: some of the plugins here could not be.
        swap(&data.path().join("plugins/lesion/slots.json"), "\"candidate\"", "\"active\"");
        let here = || SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        Self {
            fixture,
            data,
            dicom: here(),
            http: here(),
            mqtt: format!("url = \"{broker}\""),
            more: String::new(),
        }
    }

    fn config(&self) -> PathBuf {
        let path = self.fixture.folder().join("device.toml");
        let text = format!(
            "site = \"north\"\ndevice = \"ct-2\"\ndata_dir = '{}'\nbackbone = '{}'\n[dicom]\nae_title = \"{TITLE}\"\n\
             listen = \"{}\"\n[mqtt]\n{}\n[http]\nlisten = \"{}\"\n{}\n",
            self.data.path().display(),
            self.fixture.backbone.display(),
            self.dicom,
            self.mqtt,
            self.http,
            self.more
        );
        fs::write(&path, text).unwrap();
        path
    }

    fn examine(&self) -> Outcome {
        doctor(&self.config(), &[])
    }

    /// Which checks failed, and what they found.
    fn failures(&self) -> Vec<(String, String)> {
        let found = self.examine();
        let failed: Vec<_> = checks(&found).into_iter().filter(|(grade, ..)| grade == "fail").collect();
        assert_eq!(found.code, Some(i32::from(!failed.is_empty())), "{found:?}");
        failed.into_iter().map(|(_, name, rest)| (name, rest)).collect()
    }

    /// Exactly this check fails, and says this.
    fn fails(&self, name: &str, part: &str) {
        let failures = self.failures();
        assert!(
            failures.len() == 1 && failures[0].0 == name && failures[0].1.contains(part),
            "expected only {name} with {part:?}: {failures:?}"
        );
    }
}

fn accepts() -> Accepts {
    serde_json::from_str(r#"{"modality":["CT"]}"#).unwrap()
}

fn doctor(config: &Path, options: &[&str]) -> Outcome {
    run(program("scanside").arg("doctor").arg("--config").arg(config).args(options))
}

/// Grade, name, and the rest of each line.
fn checks(outcome: &Outcome) -> Vec<(String, String, String)> {
    let part = |line: &str| {
        let (grade, rest) = line.split_once(' ').unwrap();
        let (name, rest) = rest.trim_start().split_once(' ').unwrap();
        (grade.to_owned(), name.to_owned(), rest.trim_start().to_owned())
    };
    outcome.stdout.lines().map(part).collect()
}

fn finding<'a>(checks: &'a [(String, String, String)], name: &str) -> (&'a str, &'a str) {
    let found = checks.iter().find(|(_, other, _)| other == name);
    let (grade, _, finding) = found.unwrap_or_else(|| panic!("no {name} in {checks:?}"));
    (grade, finding)
}

/// The service as far as the doctor sees it.
struct Running {
    _listener: Listener<Folder>,
    _http: Server,
    _executor: tokio::runtime::Runtime,
}

fn start(of: &Device, snapshot: Snapshot) -> Running {
    let (listener, _) = listen(Options::new(of.dicom, TITLE)).unwrap();
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let http = Server::start(executor.handle(), of.http, Arc::new(move || snapshot.clone())).unwrap();
    Running { _listener: listener, _http: http, _executor: executor }
}

#[test]
fn a_box_that_is_well_passes_stopped_and_running() {
    let users = tempfile::tempdir().unwrap();
    let (users_file, password) = (users.path().join("users"), users.path().join("password"));
    // `north` with the password `secret`, as mosquitto_passwd writes it.
    let made = run(std::process::Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(&users_file)
        .args(["north", "secret"]));
    made.success();
    fs::write(&password, "secret\n").unwrap();
    mode(&password, 0o600);
    let locked = format!("allow_anonymous false\npassword_file {}", users_file.display());
    let broker = Mosquitto::on(free_port().unwrap(), &locked).unwrap();
    let mut good = Device::new(&broker.url(), |_| ());
    good.mqtt += &format!("\nuser = \"north\"\npassword_file = '{}'", password.display());

    let found = good.examine();
    let all = checks(&found);
    assert_eq!((found.code, found.stderr.as_str()), (Some(0), ""), "{found:?}");
    assert!(all.iter().all(|(grade, ..)| grade != "fail"), "{all:?}");
    for (name, part) in [
        ("config", "every key is valid"),
        ("data_dir", "is writable"),
        ("backbone", "SHA-256"),
        ("plugin", "lesion 1.0.0 is active, with 1 golden case"),
        ("service", "does not run"),
        ("dicom", "is free"),
        ("broker", "lets this device in"),
    ] {
        let (grade, finding) = finding(&all, name);
        assert!(grade == "ok" && finding.contains(part), "{name}: {grade} {finding}");
    }
    for name in ["cpu", "memory", "clock", "disk"] {
        finding(&all, name);
    }
    let left: Vec<_> = fs::read_dir(good.data.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["plugins"], "nothing is left behind");

    let running = start(&good, Snapshot { version: env!("CARGO_PKG_VERSION").into(), ..Snapshot::default() });
    let found = good.examine();
    let all = checks(&found);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(finding(&all, "service").1.contains("runs and is well"), "{all:?}");
    assert!(finding(&all, "dicom").1.contains("answers C-ECHO as SCANSIDE"), "{all:?}");
    drop(running);

    // Its port is free again, and another password is refused.
    fs::write(&password, "wrong\n").unwrap();
    good.fails("broker", "NotAuthorized");
    mode(&password, 0o644);
    good.fails("broker", "can be read by everybody");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_json_says_the_same() {
    let broker = Mosquitto::start().unwrap();
    let mut ill = Device::new(&broker.url(), |_| ());
    for (broken, code) in [(false, 0), (true, 1)] {
        if broken {
            ill.fixture.backbone = ill.data.path().join("none.safetensors");
        }
        let found = doctor(&ill.config(), &["--json"]);
        assert_eq!(found.code, Some(code), "{found:?}");
        let report: Value = serde_json::from_str(&found.stdout).unwrap();
        assert_eq!(report["schema"], "scanside.doctor/1");
        assert_eq!(report["ok"], !broken);
        let lines: Vec<String> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|check| {
                let text = |key: &str| check[key].as_str().map(str::to_owned);
                let remedy = text("remedy").map(|remedy| format!("; {remedy}")).unwrap_or_default();
                format!(
                    "{:<4}  {:<8}  {}{remedy}",
                    text("grade").unwrap(),
                    text("name").unwrap(),
                    text("finding").unwrap()
                )
            })
            .collect();
        let plain = ill.examine();
        // Memory and disk are other ones a moment later.
        let steady = |lines: Vec<&str>| {
            let kept = lines
                .into_iter()
                .filter(|l| !["memory", "disk", "clock", "heat"].iter().any(|n| l[6..].starts_with(n)));
            kept.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            steady(lines.iter().map(String::as_str).collect()),
            steady(plain.stdout.lines().collect())
        );
    }
}

#[test]
fn backbone_and_plugins_that_do_not_fit_are_told() {
    let broker = Mosquitto::start().unwrap();
    let mut ill = Device::new(&broker.url(), |_| ());
    let good = ill.fixture.backbone.clone();
    ill.fixture.backbone = ill.fixture.folder().join("other.safetensors");
    ill.fails("backbone", "other.safetensors");
    fs::write(&ill.fixture.backbone, random_backbone(9)).unwrap();
    ill.fails("plugin", "not on this backbone");
    ill.fixture.backbone = good;
    assert_eq!(ill.failures(), []);

    let state = ill.data.path().join("plugins/lesion/slots.json");
    let slots = Slots::new(ill.data.path());
    let active = slots.active().unwrap().remove(0).1.path;
    let sound = fs::read(&active).unwrap();
    let mut bytes = sound.clone();
    bytes[3000] ^= 1;
    fs::write(&active, bytes).unwrap();
    ill.fails("plugin", "which is not the one that it is named by");
    fs::write(&active, sound).unwrap();
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, &text[1..]).unwrap();
    ill.fails("plugin", "does not say which plugins the task has");
    fs::write(&state, text).unwrap();
    slots.take_down("lesion", "a logit is off by 1").unwrap();
    ill.fails("plugin", "a logit is off by 1");

    let mut odd = Device::new(&broker.url(), |_| ());
    odd.more = "[[task]]\nname = \"lesion\"\n[task.views.axial]\nplane = [\"axial\"]".into();
    odd.fails("plugin", "lesion 1.0.0 gets no series: rules.views asks for a plugin of several views");

    // Only a candidate, and rules for a task that is not there: the service starts, and does nothing.
    slots.rollback("lesion").unwrap_err();
    fs::remove_file(&state).unwrap();
    slots.install(&ill.fixture.folder().join("good.plugin"), None).unwrap();
    ill.more = "[[task]]\nname = \"bleed\"\nmodality = [\"CT\"]".into();
    let found = ill.examine();
    let said = &found.stdout;
    assert_eq!(found.code, Some(0), "{found:?}");
    for part in [
        "lesion is installed and not active",
        "plugin activate lesion",
        "no plugin is active",
        "for the task bleed",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    Device::new(&broker.url(), |p| p.manifest.accepts = None)
        .fails("plugin", "does not state what it accepts");
    let untested = Device::new(&broker.url(), |p| {
        p.manifest.golden.clear();
        p.golden.clear();
    });
    let found = untested.examine();
    assert_eq!(found.code, Some(0), "{found:?}");
    let all = checks(&found);
    assert!(matches!(finding(&all, "plugin"), ("warn", told) if told.contains("no golden cases")), "{all:?}");
}

#[test]
fn ports_in_other_hands_are_told() {
    let broker = Mosquitto::start().unwrap();
    let mut ill = Device::new(&broker.url(), |_| ());
    // Two that listen and never answer, as far as anybody can tell.
    let stranger = TcpListener::bind(ill.dicom).unwrap();
    ill.fails("dicom", "does not answer C-ECHO as SCANSIDE");
    drop(stranger);
    let stranger = TcpListener::bind(ill.http).unwrap();
    ill.fails("service", "another program listens at");
    drop(stranger);

    // Our own listener under another title is not this service.
    let (listener, _) = listen(Options::new(ill.dicom, "OTHER")).unwrap();
    ill.fails("dicom", "does not answer C-ECHO");
    drop(listener);

    // One that would not let this box in is not asked.
    let dicom = ill.dicom;
    ill.more = "[dicom.tls]\ncert = \"/nonexistent.pem\"\nkey = \"/nonexistent.key\"".into();
    ill.fails("dicom", "/nonexistent.pem is not usable");
    ill.more = String::new();

    // An address of another machine.
    ill.dicom = "192.0.2.1:11112".parse().unwrap();
    ill.fails("dicom", "cannot be listened on");
    ill.dicom = dicom;

    let running = start(
        &ill,
        Snapshot { trouble: Some("the disk is full".into()), version: "0".into(), ..Snapshot::default() },
    );
    ill.fails("service", "is not well: the disk is full");
    drop(running);
    let _running = start(&ill, Snapshot { version: "0.0.1".into(), ..Snapshot::default() });
    let found = ill.examine();
    assert!(found.code == Some(0) && found.stdout.contains("0.0.1 runs, but"), "{found:?}");
}

#[test]
fn a_broker_that_is_not_there_is_told() {
    let mut ill = Device::new(&format!("mqtt://127.0.0.1:{}", free_port().unwrap()), |_| ());
    ill.fails("broker", "cannot be reached");
    // One that accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    ill.mqtt = format!("url = \"mqtt://{}\"", silent.local_addr().unwrap());
    ill.fails("broker", "did not answer within 5s");
    ill.mqtt = "url = \"mqtts://127.0.0.1:8883\"\nca = \"/nonexistent.pem\"".into();
    ill.fails("broker", "/nonexistent.pem");
}

#[test]
fn disk_clock_and_configuration_are_held_against_each_other() {
    let broker = Mosquitto::start().unwrap();
    let mut ill = Device::new(&broker.url(), |_| ());
    ill.more = "[store]\nmin_free = \"1000TB\"".into();
    ill.fails("disk", "new instances are refused");
    ill.more = String::new();

    // The clock has gone back: something was written later than now.
    let store = ill.data.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::write(store.join("index.redb"), "x").unwrap();
    let later = SystemTime::now() + Duration::from_hours(2);
    fs::File::options().write(true).open(store.join("index.redb")).unwrap().set_modified(later).unwrap();
    ill.fails("clock", "it has gone back");
    fs::remove_dir_all(&store).unwrap();

    fs::write(ill.data.path().join("device.key"), "no key").unwrap();
    assert_eq!(ill.failures(), [], "with plain UIDs the key is not used");
    ill.mqtt += "\nuids = \"hashed\"";
    ill.fails("key", "device.key");

    // A mistake in the file does not keep the box from being looked at.
    ill.more = "[store]\nmax_sise = \"20GB\"".into();
    ill.fails("config", "the nearest is `store.max_size`");
    let found = ill.examine();
    let all = checks(&found);
    finding(&all, "cpu");
    assert!(found.stderr.contains("1 of ") && found.stderr.contains("checks failed"), "{found:?}");
    let missing = doctor(&ill.fixture.folder().join("none.toml"), &[]);
    assert!(missing.code == Some(1) && missing.stdout.contains("none.toml"), "{missing:?}");
}

#[test]
fn without_a_configuration_the_box_alone_is_looked_at() {
    let found = run(program("scanside").arg("doctor"));
    let all = checks(&found);
    assert_eq!(found.code, Some(0), "{found:?}");
    let names: Vec<&str> =
        all.iter().map(|(_, name, _)| name.as_str()).filter(|name| *name != "heat").collect();
    assert_eq!(names, ["cpu", "memory", "clock"]);
    let (_, told) = finding(&all, "cpu");
    assert!(told.starts_with(std::env::consts::ARCH), "{told}");
}

#[test]
fn a_root_and_a_repository_are_looked_at() {
    let broker = Mosquitto::start().unwrap();
    let mut device = Device::new(&broker.url(), |_| ());
    let place = tempfile::tempdir().unwrap();
    let (root, served) = (place.path().join("root.json"), place.path().join("served"));
    device.more = format!("[updates]\nroot = '{}'\nsource = '{}'", root.display(), served.display());
    fs::write(&root, "{}").unwrap();
    device.fails("updates", "is no trusted root");
    let mut repository = Repository::default();
    fs::write(&root, repository.root_json()).unwrap();
    fs::create_dir_all(served.join("metadata")).unwrap();
    device.fails("updates", "holds no metadata/timestamp.json");
    repository.release();
    repository.write(&served);
    let found = checks(&doctor(&device.config(), &[]));
    let (grade, finding) = finding(&found, "updates");
    assert!(grade == "ok" && finding.contains("answers; the trusted root has version 1"), "{finding}");
    // The repository brings backbones, too.
    let bytes = fs::read(&device.fixture.backbone).unwrap();
    device.fixture.backbone = device.fixture.folder().join("none.safetensors");
    let found = checks(&doctor(&device.config(), &[]));
    assert_eq!(self::finding(&found, "backbone").0, "warn");
    let fetched = device.data.path().join("backbones");
    fs::create_dir(&fetched).unwrap();
    let fetched = fetched.join(format!("{}.safetensors", sha256(&bytes)));
    fs::write(&fetched, bytes).unwrap();
    let found = checks(&doctor(&device.config(), &[]));
    let (grade, finding) = self::finding(&found, "backbone");
    assert!(grade == "ok" && finding.contains("plugins run on those from the repository"), "{finding}");
    assert_eq!(device.failures(), []);
    fs::write(&fetched, random_backbone(9)).unwrap();
    let failures = device.failures();
    assert!(failures[0].1.contains("not the one that it is named by"), "{failures:?}");

    fs::remove_dir_all(&served).unwrap();
    let found = checks(&doctor(&device.config(), &[]));
    assert_eq!(self::finding(&found, "updates").0, "warn");
}
