//! Plugins on a device: installed, checked against their golden cases, made active.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::Path;

use runtime::plugin::Plugin;
use runtime::slots::Slots;
use tests::fixture::{Fixture, random_backbone};
use tests::golden::plugin;

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_plugin_goes_live_after_its_golden_cases() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    assert!(slots.list().unwrap().is_empty());
    let file = plugin(&fixture, "good.plugin", |_| ());
    let installed = slots.install(&file).unwrap();
    let folder = fixture.folder().join("plugins/lesion");
    assert_eq!(installed.path, folder.join("candidate.plugin"));
    assert_eq!(fs::read(&installed.path).unwrap(), fs::read(&file).unwrap());
    let listed = slots.list().unwrap();
    assert!(listed[0].active.is_none() && listed[0].candidate.is_some());

    let (active, report) = slots.activate("lesion", &fixture.backbone, 1).unwrap();
    assert_eq!((report.cases, active.sha256), (1, installed.sha256));
    assert!(report.logits <= 1e-3 && report.slice_weights <= 1e-3);
    assert_eq!(files(&folder), ["active.plugin"]);
    let listed = slots.list().unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (1, "lesion"));
    assert_eq!(listed[0].active.as_ref().unwrap().as_ref().unwrap().task, active.task);
}

type Edit = fn(&mut Plugin);

#[test]
fn what_is_not_reproduced_stays_out() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    slots.install(&plugin(&fixture, "good.plugin", |_| ())).unwrap();
    let (active, _) = slots.activate("lesion", &fixture.backbone, 1).unwrap();
    let edits: [(&str, Edit, &str); 7] = [
        ("logit", |p| p.manifest.golden[0].logits[1] += 0.01, "a logit is off by"),
        ("nan", |p| p.golden.get_mut("wave").unwrap().data[7] = f32::NAN, "is NaN"),
        ("weight", |p| p.manifest.golden[0].slice_weights[2] += 0.01, "a slice weight is off by"),
        ("count", |p| p.manifest.golden[0].slice_weights.truncate(2), "a slice weight is off by"),
        ("peak", |p| p.manifest.golden[0].heatmap_peak[0] = 99, "does not peak at"),
        ("volume", |p| drop(p.golden.remove("wave")), "case wave has no volume"),
        ("none", |p| p.manifest.golden.clear(), "no golden cases"),
    ];
    for (name, edit, told) in edits {
        let file = plugin(&fixture, name, edit);
        // Some of these break the plugin file's own rules already.
        let error = match slots.install(&file) {
            Ok(_) => slots.activate("lesion", &fixture.backbone, 1).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(told), "{name}: {error}");
        assert_eq!(slots.list().unwrap()[0].active.as_ref().unwrap().as_ref().unwrap(), &active);
    }
}

#[test]
fn wrong_files_names_and_backbones_are_refused() {
    let fixture = Fixture::default();
    let slots = Slots::new(fixture.folder());
    assert!(slots.install(&fixture.graph).unwrap_err().is_bad_input());
    assert!(!fixture.folder().join("plugins").exists());
    slots.install(&plugin(&fixture, "good.plugin", |_| ())).unwrap();
    for name in ["other", "../lesion", ""] {
        let error = slots.activate(name, &fixture.backbone, 1).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("no candidate"), "{error}");
    }
    let other = fixture.folder().join("other.safetensors");
    fs::write(&other, random_backbone(9)).unwrap();
    let error = slots.activate("lesion", &other, 1).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("SHA-256"), "{error}");
    assert!(slots.list().unwrap()[0].active.is_none());

    // A file that was damaged where it lies is told, and does not hide the others.
    let candidate = fixture.folder().join("plugins/lesion/candidate.plugin");
    let mut bytes = fs::read(&candidate).unwrap();
    bytes[3000] ^= 1;
    fs::write(&candidate, bytes).unwrap();
    assert!(slots.list().unwrap()[0].candidate.as_ref().unwrap().is_err());
}
