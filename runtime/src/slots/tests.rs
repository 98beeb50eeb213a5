//! Slots on a simulated disk; what needs a backbone and an engine is in the integration tests.

mod power_cuts;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use firmware_config::{
    Activation, AttentionLora, BackboneRef, Label, LoraSpec, Manifest, MissingViews, Promote,
};

use super::*;
use crate::disk::sim::{SimDisk, SyncPoint};
use crate::gate::{Identity, Memory};
use crate::infer::InferError;
use crate::plugin::content_sha256;
use crate::tensor::{Tensor, Tensors};

/// A machine on which time stands still.
pub(crate) struct Still;

impl Machine for Still {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 20_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn memory(&self) -> Option<Memory> {
        None
    }

    fn reset_peak(&self) -> bool {
        false
    }

    fn identity(&self) -> Identity {
        Identity { build: "scanside 1".into(), kernel: "6.1".into(), cpu: "c".into() }
    }
}

fn checked() -> Checked {
    Checked { at: utc(Still.now()), on: Still.identity() }
}

/// A sound plugin file of some kilobytes; that of each version has other bytes.
pub(crate) fn plugin_file(version: &str) -> Vec<u8> {
    static FILES: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    FILES.lock().unwrap().entry(version.to_owned()).or_insert_with(|| make_plugin_file(version)).clone()
}

fn make_plugin_file(version: &str) -> Vec<u8> {
    let content = Tensors::from([("head.weight".into(), Tensor::new([1, 3], vec![0.5, 1.0, 2.0]))]);
    let recipe =
        r#"{"plane":"acquisition","size":[28,42],"intensity":{"kind":"window","windows":[[0,1000]]}}"#;
    let mut manifest = Manifest {
        schema: firmware_config::SCHEMA.into(),
        task: Task { name: "lesion".into(), version: version.into() },
        labels: vec![Label { name: "lesion".into(), threshold: None }],
        activation: Activation::Sigmoid,
        temperature: 1.0,
        backbone: BackboneRef {
            name: "b".into(),
            sha256: "0".repeat(64),
            blocks: None,
            licence: "none".into(),
        },
        lora: LoraSpec { rank: 2, alpha: 4.0, attention: AttentionLora::Fused },
        recipe: serde_json::from_str(recipe).unwrap(),
        views: BTreeMap::new(),
        missing_views: MissingViews::Refuse,
        streamable: true,
        accepts: None,
        heatmap: "attention".into(),
        parameters: 3,
        content_sha256: String::new(),
        content_dtype: firmware_config::ContentDtype::F32,
        graph_sha256: "0".repeat(64),
        golden: Vec::new(),
        build: "tests".into(),
    };
    manifest.content_sha256 = content_sha256(&content, &manifest);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.plugin");
    let plugin = Plugin { manifest, content, golden: Tensors::new(), card: "# lesion\n".into() };
    plugin.write(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn any_point(_: &Path, _: Option<&str>) -> SyncPoint {
    "any"
}

fn slots() -> (Arc<SimDisk>, Slots) {
    let disk = Arc::new(SimDisk::new(any_point, None));
    let slots = Slots::on(Arc::clone(&disk) as Arc<dyn Disk>, Arc::new(Still), Path::new("/data"));
    (disk, slots)
}

fn install(slots: &Slots, version: &str) -> Installed {
    slots.install_bytes(&plugin_file(version), Path::new("given.plugin"), None).unwrap()
}

/// Activates the candidate if its file is sound, as if its golden cases had passed.
pub(crate) fn activate(slots: &Slots) -> Result<Installed, Error> {
    slots
        .activate_by("lesion", |placed| slots.read(placed).map(|_| ((), checked())))
        .map(|(active, ())| active)
}

fn state(slots: &Slots) -> State {
    slots.state("lesion").unwrap().unwrap()
}

fn version(placed: Option<&Placed>) -> Option<&str> {
    placed.map(|placed| placed.task.version.as_str())
}

#[test]
fn plugins_go_through_the_slots_and_no_file_stays_behind() {
    let (disk, slots) = slots();
    assert!(slots.list().unwrap().is_empty() && slots.state("lesion").unwrap().is_none());
    for n in ["1.0.0", "1.1.0", "1.2.0"] {
        install(&slots, n);
        activate(&slots).unwrap();
    }
    let now = state(&slots);
    assert_eq!(
        (version(now.active.as_ref()), version(now.previous.as_ref())),
        (Some("1.2.0"), Some("1.1.0"))
    );
    assert_eq!(now.checked, Some(checked()));
    assert_eq!(disk.files().len(), 3, "two plugins and slots.json: {:?}", disk.files());

    assert_eq!(slots.rollback("lesion").unwrap().task.version, "1.1.0");
    let now = state(&slots);
    assert_eq!(
        (version(now.active.as_ref()), version(now.previous.as_ref())),
        (Some("1.1.0"), Some("1.2.0"))
    );
    assert_eq!(now.checked, None, "to be checked again");

    slots.take_down("lesion", "it failed").unwrap();
    let now = state(&slots);
    assert_eq!((version(now.active.as_ref()), version(now.previous.as_ref())), (None, Some("1.2.0")));
    assert!(now.down.as_ref().is_some_and(|down| down.by_fault && down.reason == "it failed"));
    assert!(matches!(slots.take_down("lesion", "again"), Err(Error::Slot(SlotError::NoActive { .. }))));
    // It may come back by what it had failed at.
    assert_eq!(activate(&slots).unwrap().task.version, "1.1.0");
    assert_eq!(state(&slots).down, None);

    slots.retire("lesion", "nobody wants it").unwrap();
    assert!(state(&slots).down.is_some_and(|down| !down.by_fault));
    assert_eq!(slots.rollback("lesion").unwrap().task.version, "1.2.0");
    let now = state(&slots);
    assert_eq!((now.previous, now.down), (None, None), "what was taken down is no way back");
    assert!(matches!(slots.rollback("lesion"), Err(Error::Slot(SlotError::NoPrevious { .. }))));
    assert_eq!(disk.files().len(), 2, "{:?}", disk.files());
}

#[test]
fn what_is_not_there_is_told() {
    let (_, slots) = slots();
    for name in ["lesion", "../lesion", ""] {
        let error = slots.activate_by("lesion", |_| Ok(((), checked()))).unwrap_err();
        assert!(matches!(error, Error::Slot(SlotError::NoCandidate { .. })), "{error}");
        assert!(slots.rollback(name).unwrap_err().to_string().contains("no previous plugin"));
        assert!(slots.take_down(name, "").unwrap_err().to_string().contains("no active plugin"));
        assert!(slots.fail_candidate(name, "").unwrap_err().to_string().contains("no candidate"));
    }
}

#[test]
fn a_candidate_that_is_at_fault_has_failed_and_one_that_met_a_fault_waits() {
    let (_, slots) = slots();
    install(&slots, "1.0.0");
    activate(&slots).unwrap();
    install(&slots, "1.1.0");
    let interrupted = || Error::from(GateError::Interrupted { task: "lesion".into() });
    slots.activate_by::<()>("lesion", |_| Err(interrupted())).unwrap_err();
    assert_eq!(version(state(&slots).candidate.as_ref()), Some("1.1.0"));
    let wrong = || Error::from(InferError::NoGolden { task: "lesion".into() });
    slots.activate_by::<()>("lesion", |_| Err(wrong())).unwrap_err();
    let now = state(&slots);
    assert_eq!((version(now.candidate.as_ref()), version(now.active.as_ref())), (None, Some("1.0.0")));
    assert!(now.failed.unwrap().reason.contains("no golden cases"));
    install(&slots, "1.2.0");
    assert_eq!(state(&slots).failed, None);

    // Another program was faster.
    let error = slots.activate_by("lesion", |_| {
        install(&slots, "1.3.0");
        Ok(((), checked()))
    });
    assert!(matches!(error, Err(Error::Slot(SlotError::Replaced { .. }))));
    let now = state(&slots);
    assert_eq!(
        (version(now.candidate.as_ref()), version(now.active.as_ref())),
        (Some("1.3.0"), Some("1.0.0"))
    );
    slots.fail_candidate("lesion", "given up").unwrap();
    assert_eq!(state(&slots).failed.unwrap().reason, "given up");
}

#[test]
fn where_signatures_are_asked_for_nothing_else_is_installed_or_comes_back() {
    let (_, open) = slots();
    install(&open, "1.0.0");
    activate(&open).unwrap();
    install(&open, "1.1.0");
    activate(&open).unwrap();
    let slots = open.clone().signed_only(true);
    let file = Path::new("given.plugin");
    let error = slots.install(file, None).unwrap_err().to_string();
    assert!(error.starts_with("given.plugin is not signed") && error.contains("target name"), "{error}");
    assert!(slots.rollback("lesion").unwrap_err().to_string().contains("plugin lesion 1.0.0 is not signed"));
    install(&open, "1.2.0");
    assert!(activate(&slots).unwrap_err().to_string().contains("1.2.0 is not signed"));

    let bytes = plugin_file("2.0.0");
    let target = |bytes: &[u8]| TargetRef {
        name: "north/lesion-2.0.0.plugin".into(),
        length: bytes.len() as u64,
        sha256: sha256(bytes),
    };
    slots.install_bytes(&bytes, file, Some(target(&bytes))).unwrap();
    assert_eq!(activate(&slots).unwrap().target, Some(target(&bytes)));
    assert_eq!(version(state(&slots).previous.as_ref()), Some("1.1.0"));
    for other in [&plugin_file("2.1.0")[..], b"x"] {
        let error = slots.install_bytes(&bytes, file, Some(target(other))).unwrap_err();
        assert!(error.to_string().contains("but the signed target north/lesion-2.0.0.plugin has"), "{error}");
    }
    assert_eq!(version(state(&slots).candidate.as_ref()), None);
}

#[test]
fn a_state_that_cannot_be_is_an_error_and_no_empty_slot() {
    let (disk, slots) = slots();
    let installed = install(&slots, "1.0.0");
    activate(&slots).unwrap();
    let path = Path::new("/data/plugins/lesion/slots.json");
    let good = String::from_utf8(disk.content(path).unwrap()).unwrap();
    for (from, to, told) in [
        ("\"active\"", "\"actjve\"", "actjve"),
        ("slots/1", "slots/2", "slots/2"),
        (&installed.sha256[..], "../../../etc/passwd", "64 hexadecimal digits"),
        ("\"lesion\"", "\"other\"", "expected lesion"),
        ("\"1.0.0\"", "\"1\"", "task.version"),
        (&good[10..], "", "EOF"),
    ] {
        write_atomically_on(&*disk, path, good.replacen(from, to, 1).as_bytes()).unwrap();
        let error = slots.state("lesion").unwrap_err().to_string();
        assert!(error.starts_with("/data/plugins/lesion/slots.json") && error.contains(told), "{error}");
        assert!(slots.list().unwrap()[0].state.is_err());
        assert!(slots.active().is_err() && activate(&slots).is_err() && slots.rollback("lesion").is_err());
    }
    // Neither is a file that has gone, or has other bytes.
    write_atomically_on(&*disk, path, good.as_bytes()).unwrap();
    let active = state(&slots).active.unwrap();
    slots.read(&active).unwrap();
    write_atomically_on(&*disk, &installed.path, &plugin_file("1.1.0")).unwrap();
    assert!(
        slots.read(&active).unwrap_err().to_string().contains("which is not the one that it is named by")
    );
    disk.remove(&installed.path).unwrap();
    assert!(slots.read(&active).unwrap_err().to_string().contains("is gone"));
}

#[test]
fn a_shadow_is_counted_and_its_rule_decides() {
    let (_, slots) = slots();
    let rule = Shadow { results: 2, promote: Promote::Rule, min_agreement: 0.9, max_difference: 0.1 };
    assert!(slots.shadow("lesion", rule.clone()).unwrap_err().to_string().contains("no candidate"));
    let first = install(&slots, "1.0.0");
    assert!(slots.shadow("lesion", rule.clone()).unwrap_err().to_string().contains("no active"));
    activate(&slots).unwrap();
    let candidate = install(&slots, "1.1.0");
    slots.shadow("lesion", rule.clone()).unwrap();
    let near = Comparison { labels: 1, agreed: 1, difference: 0.05, largest: 0.05, drift: 0.05 };
    let count = |comparison| slots.count_shadow("lesion", &candidate.sha256, &first.sha256, comparison);
    assert_eq!(count(&near).unwrap(), Verdict::Waits);
    // Asked for again, it goes on.
    slots.shadow("lesion", rule.clone()).unwrap();
    assert_eq!(state(&slots).shadow.unwrap().report().results, 1);
    assert!(matches!(
        slots.count_shadow("lesion", &first.sha256, &candidate.sha256, &near),
        Err(Error::Slot(SlotError::Replaced { .. }))
    ));
    assert_eq!(count(&near).unwrap(), Verdict::Promote);
    assert_eq!(version(state(&slots).candidate.as_ref()), Some("1.1.0"), "its golden cases come first");

    slots.shadow("lesion", Shadow { results: 1, ..rule }).unwrap();
    let far = Comparison { agreed: 0, ..near };
    assert!(matches!(count(&far).unwrap(), Verdict::GiveUp(_)));
    let now = state(&slots);
    assert_eq!((now.candidate, now.shadow, version(now.active.as_ref())), (None, None, Some("1.0.0")));
    assert!(now.failed.unwrap().reason.contains("agreed on 0.0 % of the labels"));
}
