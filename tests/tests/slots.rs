//! Plugins on a device: installed, checked against their golden cases, made active, brought back.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use firmware_config::{Origin, TargetRef};
use runtime::disk::RealDisk;
use runtime::gate::{GateLimits, Identity, Machine, Memory, ThisMachine};
use runtime::infer::{Context, LoadedTask};
use runtime::plugin::{Plugin, content_sha256};
use runtime::result::Trust;
use runtime::slots::{Placed, Slots, State};
use runtime::tensor::sha256;
use tests::fixture::{Fixture, loader, random_backbone, scan};
use tests::golden::{plugin, rebuild};
use tests::mosquitto::Mosquitto;
use tests::programs::{Outcome, program, run};
use tests::service::EdgeBox;

/// More than any test takes.
const AMPLE: GateLimits = GateLimits { time: Duration::from_hours(1), memory: 1 << 40 };

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn state(slots: &Slots) -> State {
    slots.state("lesion").unwrap().unwrap()
}

fn version(placed: Option<&Placed>) -> Option<&str> {
    placed.map(|placed| placed.task.version.as_str())
}

/// The fixture's plugin as another version of its task.
fn next(fixture: &Fixture, number: &str) -> PathBuf {
    tests::golden::version(fixture, number, |_| ())
}

#[test]
fn a_plugin_goes_live_after_its_golden_cases_and_back() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    assert!(slots.list().unwrap().is_empty());
    let file = plugin(&fixture, "good.plugin", |_| ());
    let installed = slots.install(&file, None).unwrap();
    let folder = fixture.folder().join("plugins/lesion");
    assert_eq!(installed.path, folder.join(format!("{}.plugin", installed.sha256)));
    assert_eq!(fs::read(&installed.path).unwrap(), fs::read(&file).unwrap());
    assert!(state(&slots).active.is_none() && state(&slots).candidate.is_some());

    let (active, report) = slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap();
    assert_eq!((report.golden.cases, &active.sha256), (1, &installed.sha256));
    assert!(report.golden.logits <= 1e-3 && report.golden.slice_weights <= 1e-3);
    assert_eq!(files(&folder), [format!("{}.plugin", active.sha256), "slots.json".into()]);
    let now = state(&slots);
    assert_eq!(now.active.as_ref().unwrap().task, active.task);
    assert_eq!(now.checked.unwrap().on, ThisMachine.identity());

    slots.install(&next(&fixture, "1.1.0"), None).unwrap();
    slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap();
    assert_eq!(version(state(&slots).active.as_ref()), Some("1.1.0"));
    assert_eq!(slots.rollback("lesion").unwrap(), active);
    assert_eq!(version(state(&slots).previous.as_ref()), Some("1.1.0"));
}

type Edit = fn(&Fixture, &mut Plugin);

/// What a device must not run, whoever has signed it.
#[test]
fn what_is_not_reproduced_stays_out() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    slots.install(&plugin(&fixture, "good.plugin", |_| ()), None).unwrap();
    let (active, _) = slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap();
    let edits: [(&str, Edit, &str); 12] = [
        ("logit", |_, p| p.manifest.golden[0].logits[1] += 0.01, "a logit is off by"),
        ("nan", |_, p| p.golden.get_mut("wave").unwrap().data[7] = f32::NAN, "is NaN"),
        ("weight", |_, p| p.manifest.golden[0].slice_weights[2] += 0.01, "a slice weight is off by"),
        ("count", |_, p| p.manifest.golden[0].slice_weights.truncate(2), "a slice weight is off by"),
        ("peak", |_, p| p.manifest.golden[0].heatmap_peak[0] = 99, "does not peak at"),
        ("volume", |_, p| drop(p.golden.remove("wave")), "case wave has no volume"),
        ("none", |_, p| p.manifest.golden.clear(), "no golden cases"),
        ("graph hash", |_, p| p.manifest.graph_sha256 = "0".repeat(64), "the task graph has SHA-256"),
        // A factor flipped, and all hashes that follow from the plugin alone made to fit.
        (
            "factor",
            |_, p| {
                flip(p);
                p.manifest.content_sha256 = content_sha256(&p.content, &p.manifest);
            },
            "the task graph has SHA-256",
        ),
        // And the graph's too, as by somebody who can build it.
        (
            "factor and graph",
            |fixture, p| {
                flip(p);
                rebuild(fixture, p);
            },
            "is off by",
        ),
        (
            "other backbone",
            |_, p| p.manifest.backbone.sha256 = "0".repeat(64),
            "was fitted on DINOv2 ViT/14 with SHA-256 0000",
        ),
        ("shape", |_, p| p.content.get_mut("query").unwrap().shape = vec![32, 2], "the content has SHA-256"),
    ];
    let mut told = Vec::new();
    for (name, edit, reason) in edits {
        let file = plugin(&fixture, "bad.plugin", |plugin| edit(&fixture, plugin));
        // Some of these break the plugin file's own rules already.
        let error = match slots.install(&file, None) {
            Ok(_) => {
                let error = slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap_err();
                let failed = state(&slots).failed.unwrap();
                assert_eq!(failed.reason, error.to_string(), "{name}");
                error
            }
            Err(error) => error,
        };
        assert!(error.to_string().contains(reason), "{name}: {error}");
        let now = state(&slots);
        assert_eq!((now.candidate, &now.active.unwrap().sha256), (None, &active.sha256), "{name}");
        told.push(format!("{name}: {error}"));
    }
    println!("{} plugins refused:\n{}", told.len(), told.join("\n"));
    assert_eq!(files(&fixture.folder().join("plugins/lesion")).len(), 2, "what failed is not kept");
}

fn flip(plugin: &mut Plugin) {
    let factor = &mut plugin.content.get_mut("lora.blocks.0.qkv.B").unwrap().data[7];
    *factor = -*factor;
}

/// A machine that is as slow and as full as a test wants it.
struct Slow {
    /// Passes with each look at the clock.
    step: Duration,
    clock: AtomicU64,
    /// More in use with each look.
    grows: u64,
    memory: AtomicU64,
}

impl Machine for Slow {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        self.step * self.clock.fetch_add(1, Ordering::Relaxed) as u32
    }

    fn memory(&self) -> Option<Memory> {
        let now = self.grows * self.memory.fetch_add(1, Ordering::Relaxed);
        Some(Memory { now, peak: now })
    }

    fn reset_peak(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        ThisMachine.identity()
    }
}

#[test]
fn what_is_too_slow_or_too_large_stays_out_and_what_is_interrupted_waits() {
    let fixture = Fixture::default();
    let limits = GateLimits { time: Duration::from_secs(10), memory: 1_000_000 };
    let on = |seconds: u64, grows: u64| {
        let step = Duration::from_secs(seconds);
        let machine = Slow { step, clock: AtomicU64::new(0), grows, memory: AtomicU64::new(0) };
        let machine = Arc::new(machine);
        (Slots::on(Arc::new(RealDisk::Shared), machine.clone(), fixture.folder()), machine)
    };
    let activate = |slots: &Slots| slots.activate("lesion", &loader(&fixture.backbone), &limits);
    let good = plugin(&fixture, "good.plugin", |_| ());
    let (fit, machine) = on(1, 1_000_000);
    fit.install(&good, None).unwrap();
    let (_, report) = activate(&fit).unwrap();
    assert_eq!(report.memory, Some(1_000_000));
    assert!(report.time <= limits.time);

    let (slow, _) = on(3, 0);
    slow.install(&next(&fixture, "1.1.0"), None).unwrap();
    let error = activate(&slow).unwrap_err().to_string();
    assert!(
        error.contains("were not done after 15.0 s") && error.contains("gate.time allows 10s"),
        "{error}"
    );
    assert!(error.ends_with("or allow more") && state(&slow).failed.unwrap().reason == error);

    let (large, _) = on(1, 1_000_001);
    large.install(&next(&fixture, "1.2.0"), None).unwrap();
    let error = activate(&large).unwrap_err().to_string();
    assert!(error.contains("takes 2 MB of memory") && error.contains("gate.memory allows 1 MB"), "{error}");
    assert_eq!(version(state(&large).active.as_ref()), Some("1.0.0"));

    fit.install(&next(&fixture, "1.3.0"), None).unwrap();
    let error = fit.activate_while("lesion", &loader(&fixture.backbone), &limits, &|| false).unwrap_err();
    assert!(error.to_string().contains("was stopped because the machine had other work"), "{error}");
    let now = state(&fit);
    assert_eq!(
        (version(now.candidate.as_ref()), version(now.active.as_ref())),
        (Some("1.3.0"), Some("1.0.0"))
    );

    // Time that it waits for what is more urgent is not its own.
    let wait = || {
        machine.clock.fetch_add(1000, Ordering::Relaxed);
        true
    };
    let (_, report) = fit.activate_while("lesion", &loader(&fixture.backbone), &limits, &wait).unwrap();
    assert!(report.time <= limits.time, "{report:?}");
    fit.install(&next(&fixture, "1.4.0"), None).unwrap();

    // What this machine itself tells.
    let slots = Slots::new(fixture.folder());
    let (_, report) = slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap();
    assert!(report.time > Duration::ZERO && report.memory.is_none_or(|bytes| bytes < 1 << 30), "{report:?}");
}

#[test]
fn wrong_files_names_and_backbones_are_refused() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    assert!(slots.install(&fixture.graph, None).unwrap_err().is_bad_input());
    assert!(!fixture.folder().join("plugins").exists());
    slots.install(&plugin(&fixture, "good.plugin", |_| ()), None).unwrap();
    for name in ["other", "../lesion", ""] {
        let error = slots.activate(name, &loader(&fixture.backbone), &AMPLE).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("no candidate"), "{error}");
    }
    // A backbone that is not there is no fault of the plugin.
    let error = slots.activate("lesion", &loader(Path::new("/nowhere.safetensors")), &AMPLE).unwrap_err();
    assert!(
        error.to_string().contains("nowhere.safetensors") && state(&slots).candidate.is_some(),
        "{error}"
    );
    let other = fixture.folder().join("other.safetensors");
    fs::write(&other, random_backbone(9)).unwrap();
    let error = slots.activate("lesion", &loader(&other), &AMPLE).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("SHA-256"), "{error}");
    assert!(state(&slots).active.is_none() && state(&slots).candidate.is_none());
}

/// A tar of one member, whose name the tar crate would not write.
fn tar_with(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn archives_that_lead_elsewhere_or_never_end_are_refused() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    slots.install(&plugin(&fixture, "good.plugin", |_| ()), None).unwrap();
    let good = fs::read(fixture.folder().join("good.plugin")).unwrap();
    let file = fixture.folder().join("bad.plugin");
    for name in ["../../etc/passwd", "/etc/passwd", "manifest.json/../../x", "./manifest.json"] {
        fs::write(&file, tar_with(name, b"x")).unwrap();
        let error = slots.install(&file, None).unwrap_err().to_string();
        assert!(error.contains(&format!("member {name} where manifest.json belongs")), "{error}");
    }
    // A task's name becomes a folder's.
    for name in ["../lesion", "a/b", ".."] {
        let file = plugin(&fixture, "bad.plugin", |plugin| plugin.manifest.task.name = name.into());
        let error = slots.install(&file, None).unwrap_err().to_string();
        assert!(error.contains("task.name"), "{error}");
    }
    // More at its end, or a link in place of a file.
    let mut longer = good.clone();
    longer.extend([0; 512]);
    let mut link = good.clone();
    link[156] = b'2';
    for bytes in [&longer, &link, &good[..good.len() - 1].to_vec()] {
        fs::write(&file, bytes).unwrap();
        let error = slots.install(&file, None).unwrap_err().to_string();
        assert!(error.contains("is not a sound task plugin"), "{error}");
    }
    // Sparse: nothing is written, and nothing may be read.
    let large = fs::File::create(&file).unwrap();
    large.set_len(1 << 40).unwrap();
    let start = Instant::now();
    let error = slots.install(&file, None).unwrap_err().to_string();
    assert!(error.contains("1099511627776 bytes, expected at most 268435456"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let error = slots.install(Path::new("/dev/zero"), None).unwrap_err().to_string();
    assert!(error.contains("more than 268435456 bytes"), "{error}");
    // A member that claims to be larger than the file.
    let mut claims = good;
    claims[124..135].copy_from_slice(b"77777777777");
    fs::File::create(&file).unwrap().write_all(&claims).unwrap();
    assert!(slots.install(&file, None).unwrap_err().is_bad_input());
    assert_eq!(files(&fixture.folder().join("plugins")), ["lesion", "lock"]);
    assert_eq!(version(state(&slots).candidate.as_ref()), Some("1.0.0"));
}

#[test]
fn the_command_line_says_what_is_where() {
    let (broker, fixture) = (Mosquitto::start().unwrap(), Fixture::for_a_service(|_| ()));
    let on = EdgeBox::with_plugin(&broker.url(), &fixture, "").unwrap();
    let plugin_command = |words: &[&str]| -> Outcome {
        run(program("scanside").arg("plugin").args(words).arg("--config").arg(on.config()))
    };
    let second = next(&fixture, "1.1.0").display().to_string();
    on.plugin(&["install", &second]).unwrap();
    let start = Instant::now();
    let said = on.plugin(&["activate", "lesion"]).unwrap().stdout;
    println!("activate: {:.3} s, process and golden case included", start.elapsed().as_secs_f64());
    assert!(said.starts_with("lesion 1.1.0 is active: 1 golden cases reproduced"), "{said}");
    let listed = on.plugin(&["list"]).unwrap().stdout;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(
        lines[0].starts_with("lesion  active     1.1.0  ") && lines[0].ends_with("  unsigned"),
        "{listed}"
    );
    assert!(lines[1].starts_with("lesion  previous   1.0.0  "), "{listed}");
    let said = on.plugin(&["verify", "lesion"]).unwrap().stdout;
    assert!(said.starts_with("lesion 1.1.0 is sound: file and graph are what they were"), "{said}");
    let start = Instant::now();
    let said = on.plugin(&["rollback", "lesion"]).unwrap().stdout;
    println!("rollback: {:.3} s, process included", start.elapsed().as_secs_f64());
    assert_eq!(said, "lesion 1.0.0 is active again\n");

    // One that fails is listed with its reason, and verify tells what is wrong with a file.
    let bad = plugin(&fixture, "bad.plugin", |p| p.manifest.golden[0].logits[1] += 0.01);
    on.plugin(&["install", &bad.display().to_string()]).unwrap();
    let outcome = plugin_command(&["activate", "lesion"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let listed = on.plugin(&["list"]).unwrap().stdout;
    let failed = listed.lines().find(|line| line.starts_with("lesion  failed     1.0.0  ")).unwrap();
    assert!(failed.contains("a logit is off by"), "{failed}");
    let json = on.plugin(&["list", "--json"]).unwrap().stdout;
    let slots: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = slots.iter().map(|slot| slot["slot"].as_str().unwrap()).collect();
    assert_eq!(names, ["active", "previous", "failed"]);
    let active = Slots::new(&on.data()).active().unwrap().remove(0).1;
    fs::write(&active.path, "x").unwrap();
    let outcome = plugin_command(&["verify", "lesion"]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("check the disk"), "{outcome:?}");

    // With a trusted root nothing comes in by hand.
    let root = fixture.folder().join("root.json");
    fs::write(&root, "{}").unwrap();
    on.configure(&format!("updates.root = \"{}\"", root.display())).unwrap();
    let outcome = plugin_command(&["install", &second]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(
        outcome.stderr.contains("is not signed") && outcome.stderr.contains("by its target name"),
        "{outcome:?}"
    );
    let outcome = plugin_command(&["rollback", "lesion"]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("is not signed"), "{outcome:?}");
}

#[test]
fn a_signed_plugin_names_its_target_in_results() {
    let fixture = Fixture::for_a_service(|_| ());
    let slots = Slots::new(fixture.folder()).signed_only(true);
    let bytes = fs::read(&fixture.plugin).unwrap();
    let target = TargetRef {
        name: "north/lesion-1.0.0.plugin".into(),
        length: bytes.len() as u64,
        sha256: sha256(&bytes),
    };
    slots.install(&fixture.plugin, Some(target.clone())).unwrap();
    slots.activate("lesion", &loader(&fixture.backbone), &AMPLE).unwrap();
    let active = state(&slots).active.unwrap();
    assert_eq!(active.target, Some(target.clone()));
    let task = slots.load(&active, &loader(&fixture.backbone)).unwrap();
    let volume = scan("RAS");
    let prepared = task.prepare(0, &volume).unwrap();
    let context = Context::given("ct-2".into(), SystemTime::UNIX_EPOCH);
    let signed = task.classify(&[Some(&prepared)], &context, &|| {}).unwrap().result;
    assert_eq!(signed.trust, Trust::Signed);
    let named = signed.provenance.target.clone().unwrap();
    assert_eq!((named.name, named.sha256), (target.name, target.sha256));
    assert_eq!(signed.provenance.compute_digest(), signed.provenance.digest);

    // Of an unsigned plugin nothing is said, and nothing is another byte than it was.
    let task = LoadedTask::merge(&fixture.backbone, &fixture.plugin, 1).unwrap();
    let unsigned = task.classify(&[Some(&prepared)], &context, &|| {}).unwrap().result;
    assert_eq!(unsigned.trust, Trust::Unsigned);
    assert!(!unsigned.to_json().contains("target") && unsigned.provenance.digest != signed.provenance.digest);
    assert_eq!(unsigned.labels, signed.labels);
}

#[test]
fn an_unsigned_plugin_with_a_patients_scan_is_installed_only_where_that_is_said() {
    let fixture = Fixture::for_a_service(|_| ());
    let patient = plugin(&fixture, "patient.plugin", |plugin| {
        plugin.manifest.golden[0].origin = Origin::Patient;
    });
    let on = EdgeBox::new("mqtt://127.0.0.1:1883", &fixture, "").unwrap();
    let path = patient.display().to_string();
    let refused = run(program("scanside").args(["plugin", "install", &path, "--config"]).arg(on.config()));
    refused.refused("the golden cases wave of");
    assert!(!on.data().join("plugins").exists());
    let shown = run(program("scanside").args(["plugin", "show", &path]));
    assert!(shown.stdout.contains("1, of which patients' scans: wave"), "{shown:?}");
    on.plugin(&["install", &path, "--allow-patient-golden"]).unwrap();
    on.plugin(&["activate", "lesion"]).unwrap();
}
