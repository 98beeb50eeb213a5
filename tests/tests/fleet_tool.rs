//! The operator's tool from no keys to plugins at a broker: what a TUF client and a device make of it.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use firmware_config::{Desired, Origin, Promote};
use olpc_cjson::CanonicalFormatter;
use runtime::tensor::sha256;
use serde::Serialize;
use serde_json::{Value, json};
use tests::desk::Desk;
use tests::fixture::Fixture;
use tests::mosquitto::Mosquitto;
use tests::subscriber::{Received, Subscriber, retain};
use tough::schema::key::Key;

/// After this long nothing retained is to be expected any more.
const SILENCE: Duration = Duration::from_millis(700);

/// A plugin that could go live, `lesion-VERSION.plugin`, with its graph.
fn plugin(version: &str) -> Fixture {
    Fixture::for_a_service(|manifest| manifest.task.version = version.into())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn retained(port: u16, filter: &str) -> BTreeMap<String, Received> {
    let subscriber = Subscriber::new(port, filter).unwrap();
    let mut all = BTreeMap::new();
    while let Ok(message) = subscriber.next(SILENCE) {
        assert!(message.retained && message.qos == 1, "{message:?}");
        all.insert(message.topic.clone(), message);
    }
    all
}

/// The desired state in a message, if enough keys of the site signed it.
fn verified(desk: &Desk, payload: &[u8]) -> Result<Desired, String> {
    let repository = desk.load();
    let delegations = repository.targets().signed.delegations.as_ref().unwrap();
    let role = delegations.roles.iter().find(|role| role.name == "north").unwrap();
    let envelope: Value = serde_json::from_slice(payload).unwrap();
    let mut message = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut message, CanonicalFormatter::new());
    envelope["signed"].serialize(&mut serializer).unwrap();
    let mut valid = 0;
    for signature in envelope["signatures"].as_array().unwrap() {
        let bytes = |field: &str| -> Vec<u8> {
            let hex = signature[field].as_str().unwrap();
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        let id = role.keyids.iter().find(|id| id[..] == bytes("keyid")[..]);
        if let Some(Key::Ed25519 { keyval, .. }) = id.and_then(|id| delegations.keys.get(id))
            && UnparsedPublicKey::new(&ED25519, &keyval.public[..]).verify(&message, &bytes("sig")).is_ok()
        {
            valid += 1;
        }
    }
    if valid < role.threshold.get() {
        return Err(format!("{valid} valid signatures"));
    }
    let desired: Desired = serde_json::from_value(envelope["signed"].clone()).unwrap();
    desired.validate().unwrap();
    Ok(desired)
}

#[test]
fn what_is_published_is_what_a_client_verifies() {
    let desk = Desk::default();
    assert!(desk.targets().is_empty());
    let (one, two) = (plugin("1.0.0"), plugin("1.1.0"));
    let publish = |fixture: &Fixture, more: &[&str]| {
        desk.run(&[&["publish", "--plugin", text(&fixture.plugin)], more].concat())
    };
    let told = publish(&one, &["--site", "north", "--graph", text(&one.graph)]);
    told.success();
    for part in ["north/lesion-1.0.0.plugin", "over the wire", "without golden", "times the plugin"] {
        assert!(told.stdout.contains(part), "no {part:?} in {told:?}");
    }
    desk.run(&["key", "add-site", "south", "--site-keys", "2", "--threshold", "2"]).success();
    publish(&two, &["--all-sites"]).success();
    desk.run(&["publish", "--backbone", text(&one.backbone)]).success();
    let names = [
        "backbones/backbone.safetensors",
        "north/lesion-1.0.0.plugin",
        "north/lesion-1.1.0.plugin",
        "south/lesion-1.1.0.plugin",
    ];
    let targets = desk.targets();
    assert_eq!(targets.keys().collect::<Vec<_>>(), names);
    assert_eq!(targets[names[1]].sha256, sha256(&fs::read(&one.plugin).unwrap()));

    // The same again is nothing new; another file under the name is refused, and nothing changes.
    let again = publish(&one, &["--site", "north"]);
    again.success();
    assert!(again.stdout.contains("published already"), "{again:?}");
    let other = tests::golden::plugin(&one, "other", |p| p.card.push_str("Changed.\n"));
    desk.run(&["publish", "--plugin", text(&other), "--site", "north"]).refused("count up its version");
    publish(&one, &["--site", "west"]).refused("has no site \"west\"");
    publish(&one, &[]).refused("for no site");
    publish(&two, &["--site", "north", "--graph", text(&one.graph)]);
    desk.run(&["publish", "--plugin", text(&one.graph), "--site", "north"]).refused("a task plugin");
    let mut damaged = fs::read(&one.plugin).unwrap();
    damaged[3000] ^= 1;
    fs::write(desk.path("damaged"), damaged).unwrap();
    desk.run(&["publish", "--plugin", "damaged", "--site", "north"]).refused("damaged");
    assert_eq!(desk.targets(), targets);

    let patient = tests::golden::plugin(&two, "patient", |p| {
        p.manifest.task.version = "1.2.0".into();
        p.manifest.golden[0].origin = Origin::Patient;
    });
    let words = ["publish", "--plugin", text(&patient), "--site", "north"];
    desk.run(&words).refused("the golden cases wave of");
    assert_eq!(desk.targets(), targets);
    desk.done(&[&words[..], &["--allow-patient-golden"]].concat());
    desk.done(&["unpublish", "north/lesion-1.2.0.plugin"]);
    assert_eq!(desk.targets(), targets);

    // Keys that are not at hand are named.
    fs::rename(desk.path("keys"), desk.path("away")).unwrap();
    let (root, away) = ("away/root.json", "away");
    desk.run(&["--root", root, "refresh"]).refused("snapshot needs the signatures of 1 of its keys");
    desk.run(&["--keys", away, "--root", root, "refresh"]).success();
    fs::rename(desk.path("away"), desk.path("keys")).unwrap();

    desk.run(&["unpublish", "north/lesion-1.0.0.plugin"]).success();
    assert_eq!(desk.targets().len(), 3);
    desk.run(&["unpublish", "north/lesion-1.0.0.plugin"]).refused("is not published");
}

#[test]
fn keys_are_rotated_and_clients_with_the_first_root_follow() {
    let desk = Desk::default();
    let one = plugin("1.0.0");
    desk.run(&["publish", "--plugin", text(&one.plugin), "--site", "north"]).success();
    for role in ["timestamp", "snapshot", "targets", "root", "north"] {
        desk.run(&["key", "rotate", role]).success();
        assert_eq!(desk.targets().len(), 1, "{role}");
    }
    assert_eq!(desk.load().root().signed.version.get(), 5);
    // Two of three root keys lie elsewhere.
    let listed = desk.run(&["key", "list"]);
    listed.success();
    assert!(listed.stdout.starts_with("root: 2 of 3\n"), "{listed:?}");
    let ids: Vec<&str> =
        listed.stdout.lines().skip(1).take(3).map(|line| line.split_whitespace().next().unwrap()).collect();
    fs::create_dir(desk.path("stick")).unwrap();
    for id in &ids[..2] {
        let name = format!("root-{}.pem", &id[..8]);
        fs::rename(desk.path("keys").join(&name), desk.path("stick").join(&name)).unwrap();
    }
    desk.run(&["key", "rotate", "timestamp"]).refused("root needs the signatures of 2 of its keys");
    desk.run(&["--keys", "keys", "--keys", "stick", "key", "rotate", "timestamp"]).success();
    let revoke = ["--keys", "keys", "--keys", "stick", "key", "revoke", "root", "--key"];
    desk.run(&[&revoke[..], &[ids[2]]].concat()).success();
    desk.run(&[&revoke[..], &[ids[0]]].concat()).refused("would be left with 1");
    desk.run(&[&revoke[..], &["zz"]].concat()).refused("0 keys of root");
    assert_eq!(desk.load().root().signed.version.get(), 7);
    assert_eq!(desk.targets().len(), 1);

    desk.run(&["init"]).refused("belong to a fleet already");
    desk.run(&["--keys", "new", "init"]).refused("is not empty");
    desk.run(&["--keys", "fresh/keys", "--repository", "fresh", "init"]).refused("inside the repository");
    desk.run(&["--keys", "new", "--repository", "new", "init", "--threshold", "4"]).refused("4 of 3 keys");
    assert!(!desk.path("new").exists());
}

#[test]
fn a_device_is_told_once_and_by_one_operator() {
    let (desk, broker) = (Desk::default(), Mosquitto::start().unwrap());
    let (one, two) = (plugin("1.0.0"), plugin("1.1.0"));
    for fixture in [&one, &two] {
        desk.run(&["publish", "--plugin", text(&fixture.plugin), "--site", "north"]).success();
    }
    let url = broker.url();
    let desire = |more: &[&str]| {
        desk.run(&[&["desire", "--broker", &url, "--site", "north", "--device", "ct-2"], more].concat())
    };
    let topic = "scanside/v1/north/ct-2/desired";
    let now = || {
        let message = retained(broker.port, "scanside/v1/north/ct-2/desired").remove(topic).unwrap();
        assert_eq!(message.content_type.as_deref(), Some("application/json"));
        verified(&desk, &message.payload).unwrap()
    };
    desire(&["--task", "lesion=1.0.0"]).success();
    let first = now();
    assert_eq!((first.revision, first.site.as_str(), first.device.as_str()), (1, "north", "ct-2"));
    assert_eq!(first.tasks["lesion"].target, desk.targets()["north/lesion-1.0.0.plugin"]);
    let again = desire(&["--task", "lesion=1.0.0"]);
    again.success();
    assert!(again.stdout.contains("revision 1 wants this already"), "{again:?}");
    desire(&["--task", "lesion=1.1.0", "--shadow", "20", "--promote", "operator"]).success();
    let second = now();
    let shadow = second.tasks["lesion"].shadow.as_ref().unwrap();
    assert_eq!((second.revision, shadow.results, shadow.promote), (2, 20, Promote::Operator));

    // What the device has seen counts, even where the broker forgot the state, and what it runs is not taken down in passing.
    let reported = json!({
        "schema": "scanside.reported/1", "site": "north", "device": "ct-2", "build": "scanside 0.1.0", "at": "2026-11-26T18:44:04Z",
        "revision": 40, "refused": null, "metadata": null,
        "tasks": {"other": {"state": "active", "active": {"task": {"name": "other", "version": "1.0.0"}, "sha256": "00", "target": null},
            "candidate": null, "previous": null, "progress": null, "failure": null, "shadow": null}}
    });
    let say = |topic: &str, payload: &str| retain(broker.port, &[(topic.into(), payload.into())]).unwrap();
    say("scanside/v1/north/ct-2/reported", &reported.to_string());
    desire(&["--task", "lesion=1.0.0"]).refused("runs other too");
    desire(&["--task", "lesion=1.0.0", "--take-down"]).success();
    assert_eq!(now().revision, 41);

    // A state that nobody of the site signed is told, and replaced by one that counts on.
    let forged = json!({"signed": {"schema": "scanside.desired/1", "site": "north", "device": "ct-2", "revision": 90,
        "expires": "2030-01-01T00:00:00Z", "tasks": {}}, "signatures": []});
    say(topic, &forged.to_string());
    assert!(verified(&desk, forged.to_string().as_bytes()).is_err());
    let told = desire(&["--task", "lesion=1.0.0", "--take-down"]);
    told.success();
    assert!(told.stderr.contains("has no force"), "{told:?}");
    assert_eq!(now().revision, 91);

    desire(&["--task", "lesion=2.0.0"])
        .refused("there is north/lesion-1.0.0.plugin, north/lesion-1.1.0.plugin");
    desire(&["--task", "lesion"]).refused("TASK=VERSION");
    let nobody = desk.run(&[
        "desire",
        "--broker",
        "mqtt://127.0.0.1:9",
        "--site",
        "north",
        "--device",
        "x",
        "--nothing",
    ]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("cannot be reached"), "{nobody:?}");
}

#[test]
fn the_mirror_holds_what_a_device_needs_and_nothing_else() {
    let (desk, broker) = (Desk::default(), Mosquitto::start().unwrap());
    let (one, two) = (plugin("1.0.0"), plugin("1.1.0"));
    for fixture in [&one, &two] {
        desk.run(&["publish", "--plugin", text(&fixture.plugin), "--site", "north"]).success();
    }
    desk.run(&["publish", "--backbone", text(&one.backbone)]).success();
    let url = broker.url();
    let mirror = |more: &[&str]| {
        let told = desk.run(&[&["mirror", "--to", &url, "--site", "north"], more].concat());
        told.success();
        told.stdout
    };
    let all = || retained(broker.port, "scanside/v1/north/repository/#");
    mirror(&["--backbones"]);
    let check = |messages: &BTreeMap<String, Received>| {
        let branch = "scanside/v1/north/repository";
        let index: Value = serde_json::from_slice(&messages[&format!("{branch}/index")].payload).unwrap();
        assert_eq!((&index["schema"], &index["block"]), (&json!("scanside.index/1"), &json!(65536)));
        let mut seen = 1;
        for (name, length) in index["metadata"].as_object().unwrap() {
            let payload = &messages[&format!("{branch}/metadata/{name}")].payload;
            assert_eq!(fs::read(desk.path("repository/metadata").join(name)).unwrap(), *payload);
            assert_eq!(payload.len(), length.as_u64().unwrap() as usize);
            seen += 1;
        }
        for (sha, length) in index["targets"].as_object().unwrap() {
            let blocks = (length.as_u64().unwrap() as usize).div_ceil(65536);
            let whole: Vec<u8> = (0..blocks)
                .flat_map(|n| messages[&format!("{branch}/targets/{sha}/{n}")].payload.clone())
                .collect();
            assert_eq!((sha256(&whole), whole.len() as u64), (sha.clone(), length.as_u64().unwrap()));
            seen += blocks;
        }
        assert_eq!(messages.len(), seen, "nothing but what the index names");
        index
    };
    let first = all();
    let index = check(&first);
    assert_eq!(index["targets"].as_object().unwrap().len(), 3);
    assert!(["1.root.json", "timestamp.json"].iter().all(|name| index["metadata"].get(name).is_some()));
    assert!(fs::metadata(&one.backbone).unwrap().len() > 65536, "the backbone has several blocks");

    // The same again publishes the index alone.
    assert!(mirror(&["--backbones"]).contains("1 messages published"));
    assert_eq!(all(), first);

    // What is gone is cleared, and what was damaged is found on request.
    desk.run(&["unpublish", "north/lesion-1.0.0.plugin"]).success();
    mirror(&[]);
    let second = all();
    assert_eq!(check(&second)["targets"].as_object().unwrap().len(), 1);
    let block = second.keys().find(|topic| topic.contains("/targets/")).unwrap();
    let stray = "scanside/v1/north/repository/targets/00/0";
    let wrong = [(block.as_str(), "damaged"), (stray, "stray")]
        .map(|(topic, payload)| (topic.to_owned(), payload.into()));
    retain(broker.port, &wrong).unwrap();
    mirror(&["--verify"]);
    assert_eq!(check(&all()), check(&second));
    desk.run(&["mirror", "--to", &url, "--site", "west"]).refused("has no site");
}

/// Devices that do what they are told: they follow verified desired states and report that they run what is wanted, but for those whose
/// golden cases fail on a version.
struct Devices {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Devices {
    fn start(port: u16, failing: &'static [(&'static str, &'static str)]) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let ended = stop.clone();
        let subscriber = Subscriber::new(port, "scanside/v1/+/+/desired").unwrap();
        let thread = std::thread::spawn(move || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(message) = subscriber.next(Duration::from_millis(100)) else { continue };
                let envelope: Value = serde_json::from_slice(&message.payload).unwrap();
                let desired: Desired = serde_json::from_value(envelope["signed"].clone()).unwrap();
                let topic = message.topic.replace("/desired", "/reported");
                retain(port, &[(topic, report(&desired, failing).into())]).unwrap();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn report(desired: &Desired, failing: &[(&str, &str)]) -> String {
    let tasks: BTreeMap<&String, Value> = desired
        .tasks
        .iter()
        .map(|(name, wanted)| {
            let version = wanted.target.name.rsplit_once('-').unwrap().1.trim_end_matches(".plugin");
            let fails = failing.contains(&(desired.device.as_str(), version));
            let plugin = json!({"task": {"name": name, "version": version}, "sha256": wanted.target.sha256, "target": wanted.target.name});
            let (state, failure) = if fails { ("failed", json!("a logit is off")) } else { ("active", Value::Null) };
            let active = if fails { Value::Null } else { plugin };
            let task = json!({"state": state, "active": active, "candidate": null, "previous": null, "progress": null,
                "failure": failure, "shadow": null});
            (name, task)
        })
        .collect();
    json!({"schema": "scanside.reported/1", "site": desired.site, "device": desired.device, "build": "scanside 0.1.0",
        "at": "2026-11-26T18:44:04Z", "revision": desired.revision, "refused": null, "metadata": null, "tasks": tasks})
    .to_string()
}

/// What the broker keeps as desired of devices of `north`: the lesion plugin's name, by device.
fn told(desk: &Desk, port: u16) -> BTreeMap<String, String> {
    retained(port, "scanside/v1/north/+/desired")
        .into_values()
        .map(|message| {
            let desired = verified(desk, &message.payload).unwrap();
            let target =
                desired.tasks.get("lesion").map_or_else(String::new, |wanted| wanted.target.name.clone());
            (desired.device.to_string(), target)
        })
        .collect()
}

#[test]
fn a_rollout_stops_at_its_threshold_and_survives_its_operator() {
    let (desk, broker) = (Desk::default(), Mosquitto::start().unwrap());
    for version in ["1.0.0", "1.1.0"] {
        let fixture = plugin(version);
        desk.run(&["publish", "--plugin", text(&fixture.plugin), "--site", "north"]).success();
    }
    let devices: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
    let listed = devices.iter().map(|d| format!("{d:?}")).collect::<Vec<_>>().join(", ");
    fs::write(desk.path("repository/fleet.toml"), format!("[sites]\nnorth = [{listed}]\n")).unwrap();
    let _devices = Devices::start(broker.port, &[("d2", "1.1.0"), ("d3", "1.1.0")]);
    let url = broker.url();
    let start = |name: &str, version: &str, more: &[&str]| {
        let task = format!("lesion={version}");
        let common = ["rollout", "start", name, "--broker", &url, "--task", &task, "--all", "--settle", "1s"];
        desk.run(&[&common[..], more].concat())
    };
    start("first", "1.0.0", &["--waves", "100%"]).success();
    assert_eq!(told(&desk, broker.port).len(), 8);
    start("first", "1.0.0", &[]).refused("there is a rollout \"first\" already");
    start("x", "9.9.9", &[]).refused("is not published");

    // The operator's laptop falls over after the first wave; another goes on, and it stops at the threshold.
    start("second", "1.1.0", &["--waves", "25%,50%,100%", "--max-failures", "20%", "--once"]).success();
    let count = |name: &str| told(&desk, broker.port).values().filter(|target| *target == name).count();
    assert_eq!(count("north/lesion-1.1.0.plugin"), 2);
    let resumed = desk.run(&["rollout", "resume", "second", "--broker", &url]);
    assert_eq!(resumed.code, Some(1), "{resumed:?}");
    for part in ["2 of 4 devices told have failed", "north/d2: a logit is off", "rollout abort second"] {
        assert!(resumed.stderr.contains(part), "no {part:?} in {resumed:?}");
    }
    assert_eq!(count("north/lesion-1.1.0.plugin"), 4);
    let status = desk.run(&["rollout", "status"]);
    assert!(status.stdout.contains("second: lesion 1.1.0, stopped"), "{status:?}");

    // Somebody edits the state by hand.
    let file = desk.path("repository/rollouts/second.json");
    let sound = fs::read_to_string(&file).unwrap();
    fs::write(&file, sound.replace("\"max_failures\":200", "\"max_failures\":900")).unwrap();
    desk.run(&["rollout", "resume", "second", "--broker", &url]).refused("0 of 1 keys of the site north");
    fs::write(&file, sound).unwrap();

    // Meanwhile another operator gives d0 another list, which abort leaves alone.
    desk.run(&["desire", "--broker", &url, "--site", "north", "--device", "d0", "--nothing", "--take-down"])
        .success();
    desk.run(&["rollout", "abort", "second", "--broker", &url]).success();
    assert_eq!((count("north/lesion-1.0.0.plugin"), count("")), (7, 1));
    desk.run(&["rollout", "pause", "second"]).refused("is aborted");

    let audit = desk.run(&["audit", "--broker", &url]);
    audit.success();
    assert!(audit.stdout.contains("north/d7"), "{audit:?}");
    let json = desk.run(&["audit", "--broker", &url, "--json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["devices"].as_array().unwrap().len(), 7);
    let status = desk.run(&["status", "--broker", &url, "--once", "--json"]);
    assert_eq!(status.stdout.lines().count(), 8);
}

#[test]
fn a_broker_behind_tls_and_a_password_is_reached_by_those_whom_it_knows() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let desk = Desk::default();
    let one = plugin("1.0.0");
    desk.run(&["publish", "--plugin", text(&one.plugin), "--site", "north"]).success();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(desk.path(&format!("{name}.crt")), issuer.pem()).unwrap();
        issuer
    };
    let (issuer, _) = (authority("ca"), authority("stranger"));
    for (name, host) in [("broker", "127.0.0.1"), ("desk", "desk")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(desk.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(desk.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let secure = tests::mosquitto::free_port().unwrap();
    let at = |name: &str| desk.path(name).display().to_string();
    let configuration = format!(
        "allow_anonymous true\nlistener {secure} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        at("ca.crt"),
        at("broker.crt"),
        at("broker.key")
    );
    let broker = Mosquitto::on(tests::mosquitto::free_port().unwrap(), &configuration).unwrap();
    let url = format!("mqtts://127.0.0.1:{secure}");
    let mirror = |more: &[&str]| desk.run(&[&["mirror", "--to", &url, "--site", "north"], more].concat());
    let known = ["--ca", "ca.crt", "--client-cert", "desk.crt", "--client-key", "desk.key"];
    mirror(&known).success();
    assert!(retained(broker.port, "scanside/v1/north/repository/#").len() > 6);
    mirror(&[]).refused("--ca");
    mirror(&["--ca", "desk.key"]).refused("certificates in PEM");
    for stranger in [&["--ca", "ca.crt"][..], &["--ca", "stranger.crt"]] {
        let outcome = mirror(stranger);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    }
    fs::write(desk.path("password"), "secret\n").unwrap();
    let login = ["--user", "me", "--password-file", "password"];
    fs::set_permissions(desk.path("password"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    mirror(&[&known[..], &login].concat()).refused("chmod");
    fs::set_permissions(desk.path("password"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    mirror(&[&known[..], &login].concat()).success();
}
