//! Tasks that share their backbone's weights say what they say with weights of their own, but for rounding.
#![allow(missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use firmware_config::device::Weights;
use firmware_config::{AttentionLora, Manifest, MissingViews};
use runtime::engine::Mode;
use runtime::infer::{Context, LoadedTask, Loader};
use runtime::plugin::Plugin;
use runtime::result::TaskResult;
use runtime::volume::Volume;
use tests::fixture::{Fixture, give_views, random_backbone, scan};
use tests::golden::with_golden;
use tests::programs::{program, run};
use tests::service::Site;

fn load(loader: &Loader, backbone: &Path, plugin: &Path) -> LoadedTask {
    let (read, sha256) = Plugin::read(plugin).unwrap();
    loader.load(read, sha256, plugin, backbone, true).unwrap()
}

fn classify(task: &LoadedTask) -> (TaskResult, Vec<f32>) {
    let volume = scan("RAS");
    let volumes: Vec<Option<&Volume>> = vec![Some(&volume); task.plugin.manifest.inputs().len()];
    let prepared = task.prepare_views(&volumes).unwrap();
    let given: Vec<_> = prepared.iter().map(Option::as_ref).collect();
    let context = Context::given("local".parse().unwrap(), SystemTime::UNIX_EPOCH);
    let said = task.classify(&given, &context, &|| {}).unwrap();
    let heat = said.output.views.iter().flat_map(|view| view.heatmap.clone()).collect();
    (said.result, heat)
}

fn shared(backbone: &Path) -> Loader {
    Loader::new(backbone, 2, Weights::Shared)
}

type Edit = fn(&mut Manifest);

#[test]
fn a_task_says_the_same_with_its_factors_beside_the_weights() {
    let kinds: [(&str, Edit); 5] = [
        ("one query for all of q, k and v", |_| ()),
        ("one for each, of a rank that fills no register", |manifest| {
            manifest.lora.attention = AttentionLora::Separate;
            manifest.lora.rank = 11;
        }),
        ("the first block", |manifest| manifest.backbone.blocks = Some(1)),
        ("larger slices", |manifest| manifest.recipe.size = [70, 56]),
        ("two views", |manifest| give_views(manifest, MissingViews::Refuse)),
    ];
    for (kind, edit) in kinds {
        let fixture = Fixture::new(edit);
        let merged = LoadedTask::merge(&fixture.backbone, &fixture.plugin, 2).unwrap();
        let beside = load(&shared(&fixture.backbone), &fixture.backbone, &fixture.plugin);
        let modes = [&merged, &beside].map(|task| task.engine.info().mode);
        assert_eq!(modes, [Mode::Merged, Mode::Shared], "{kind}");
        let ((merged, heat), (beside, heat_beside)) = (classify(&merged), classify(&beside));
        for (a, b) in merged.labels.iter().zip(&beside.labels) {
            assert!((a.logit - b.logit).abs() < 1e-5, "{kind}: {} and {}", a.logit, b.logit);
        }
        let off = heat.iter().zip(&heat_beside).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-6, "{kind}: heat maps are off by {off}");
        assert_eq!(beside.provenance.graph_sha256, merged.provenance.graph_sha256, "{kind}");
        assert_eq!(beside.provenance.engine.mode, Mode::Shared, "{kind}");
    }
    // The factors are large enough for the comparison to see whether they count.
    let fixture = Fixture::default();
    let (mut without, sha256) = Plugin::read(&fixture.plugin).unwrap();
    let (with, _) = classify(&load(&shared(&fixture.backbone), &fixture.backbone, &fixture.plugin));
    let factors = without.content.iter_mut().filter(|(name, _)| name.starts_with("lora."));
    factors.for_each(|(_, factor)| factor.data.fill(0.0));
    let loader = shared(&fixture.backbone);
    let task = loader.load(without, sha256, &fixture.plugin, &fixture.backbone, true).unwrap();
    let off = classify(&task).0.labels[0].logit - with.labels[0].logit;
    assert!(off.abs() > 1e-2, "without its factors the task says the same but for {off}");
}

#[test]
fn tasks_of_other_sizes_depths_and_views_share_one_backbone() {
    let fixture = Fixture::default();
    let edits: [Edit; 3] = [
        |manifest| manifest.recipe.size = [56, 56],
        |manifest| manifest.backbone.blocks = Some(1),
        |manifest| give_views(manifest, MissingViews::Pool),
    ];
    let others = edits.map(|edit| Fixture::on(fixture.backbone.clone(), tempfile::tempdir().unwrap(), edit));
    let all: Vec<&Fixture> = [&fixture].into_iter().chain(&others).collect();
    // Each alone, and then beside the others, in another order: what is shared changes no bit.
    let alone: Vec<_> = all
        .iter()
        .map(|fixture| classify(&load(&shared(&fixture.backbone), &fixture.backbone, &fixture.plugin)))
        .collect();
    let loader = shared(&fixture.backbone);
    let tasks: Vec<LoadedTask> =
        all.iter().rev().map(|fixture| load(&loader, &fixture.backbone, &fixture.plugin)).collect();
    for (task, (result, heat)) in tasks.iter().rev().zip(&alone) {
        let (again, heat_again) = classify(task);
        assert_eq!((again.labels, heat_again), (result.labels.clone(), heat.clone()));
    }
}

#[test]
fn a_plugin_for_another_backbone_or_of_another_graph_is_refused() {
    let fixture = Fixture::default();
    let loader = shared(&fixture.backbone);
    let other = fixture.folder().join("other.safetensors");
    std::fs::write(&other, random_backbone(7)).unwrap();
    let read = || Plugin::read(&fixture.plugin).unwrap();
    let (plugin, sha256) = read();
    let error = loader.load(plugin, sha256, &fixture.plugin, &other, true).err().expect("another backbone");
    assert!(error.to_string().contains("was fitted on"), "{error}");
    // Nor is it taken for what it was when another file has its place.
    let one = load(&loader, &fixture.backbone, &fixture.plugin);
    let edit: Edit = |manifest| manifest.recipe.size = [56, 56];
    let larger = Fixture::on(fixture.backbone.clone(), tempfile::tempdir().unwrap(), edit);
    std::fs::rename(&fixture.backbone, fixture.folder().join("away")).unwrap();
    std::fs::copy(&other, &fixture.backbone).unwrap();
    let (plugin, sha256) = Plugin::read(&larger.plugin).unwrap();
    let error = loader.load(plugin, sha256, &larger.plugin, &fixture.backbone, true).err().expect("swapped");
    assert!(error.to_string().contains("was fitted on"), "{error}");
    std::fs::rename(fixture.folder().join("away"), &fixture.backbone).unwrap();
    drop(one);
    // The graph is built and compared where nobody has done that.
    let (mut plugin, sha256) = read();
    plugin.manifest.graph_sha256 = "0".repeat(64);
    let error =
        loader.load(plugin, sha256, &fixture.plugin, &fixture.backbone, false).err().expect("a graph");
    assert!(error.to_string().contains("the task graph has SHA-256"), "{error}");
}

#[test]
fn golden_cases_pass_and_verify_computes_in_the_mode_of_the_result() {
    let fixture = Fixture::default();
    let plugin = with_golden(&fixture);
    plugin.write(&fixture.plugin).unwrap();
    let task = load(&shared(&fixture.backbone), &fixture.backbone, &fixture.plugin);
    let slices = AtomicUsize::new(0);
    let go_on = || {
        slices.fetch_add(1, Relaxed);
        true
    };
    let report = task.check_golden_while(&go_on).unwrap();
    assert!(report.cases > 0 && slices.into_inner() > 0);

    let command = |name: &str, more: &[PathBuf], flags: &[&str]| {
        let mut command = program("scanside");
        command.arg(name).args(more).arg("--backbone").arg(&fixture.backbone);
        command.arg("--plugin").arg(&fixture.plugin).arg("--input").arg(&fixture.scan).args(flags);
        run(&mut command)
    };
    let [beside, merged] = [&["--shared"][..], &[]].map(|flags| {
        let said = command("infer", &[], flags);
        said.success();
        said.stdout
    });
    let of = |text: &str| serde_json::from_str::<TaskResult>(text).unwrap();
    let modes = [&beside, &merged].map(|text| of(text).provenance.engine.mode);
    assert_eq!(modes, [Mode::Shared, Mode::Merged]);
    let claimed = fixture.folder().join("result.json");
    for text in [&beside, &merged] {
        std::fs::write(&claimed, text).unwrap();
        command("verify", std::slice::from_ref(&claimed), &[]).success();
        // On the same kernels, in the same mode, a last bit counts.
        let mut off = of(text);
        off.labels[0].logit = off.labels[0].logit.next_up();
        std::fs::write(&claimed, off.to_json()).unwrap();
        let said = command("verify", std::slice::from_ref(&claimed), &[]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(said.stderr.contains("the logit of lesion"), "{}", said.stderr);
    }
    // On others it does not, within the tolerance.
    let mut other = of(&merged);
    other.provenance.engine.kernels = "other".into();
    other.provenance.digest = other.provenance.compute_digest();
    other.labels[0].logit = other.labels[0].logit.next_up();
    std::fs::write(&claimed, other.to_json()).unwrap();
    command("verify", std::slice::from_ref(&claimed), &[]).success();
}

#[test]
fn a_service_computes_as_it_is_told_and_says_how() {
    let mut site = Site::new("").unwrap();
    for (number, (weights, mode)) in
        [("merged", Mode::Merged), ("shared", Mode::Shared)].into_iter().enumerate()
    {
        site.on.start_with(&[("SCANSIDE_WEIGHTS", weights)]).unwrap();
        let files = site.series(number, [16, 16, 6]).unwrap();
        assert!(site.send(&files).unwrap().0);
        assert_eq!(site.next().unwrap().provenance.engine.mode, mode);
        site.on.terminate().unwrap();
    }
}
