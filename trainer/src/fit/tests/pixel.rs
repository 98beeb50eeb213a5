//! Fits with pixel supervision.

use runtime::infer::{Context, LoadedTask};
use runtime::tensor::{read_safetensors, safetensors_bytes};
use runtime::volume::{ReadOptions, read};

use super::*;
use crate::evaluate::{Predictions, evaluate};
use crate::localise;
use crate::predict::{csv, predict};
use crate::task::Pixel;

/// The bench with masks of the bright blocks, and a task that learns from them.
pub(super) fn bench() -> Bench {
    let mut bench = Bench::new();
    let mut csv = String::from("id,split,image,mask,bright\n");
    for i in 0..20 {
        let mask = if i % 2 == 1 { format!("{i}.mask.nii.gz") } else { String::new() };
        if i % 2 == 1 {
            let volume =
                read(&bench.path(&format!("{i}.nii.gz")), &ReadOptions::default()).unwrap().remove(0);
            let inside: Vec<f32> = volume.voxels.iter().map(|&x| f32::from(u8::from(x > 600.0))).collect();
            write_nifti(&bench.path(&mask), volume.dims, &inside, &volume.geometry).unwrap();
        }
        let split = ["train", "train", "train", "val", "test"][i / 2 % 5];
        csv += &format!("v{i},{split},{i}.nii.gz,{mask},{}\n", i % 2);
    }
    std::fs::write(bench.path("data.csv"), csv).unwrap();
    bench.task.train.pixel = Some(Pixel { weight: 0.5, width: 4 });
    bench
}

fn history(bench: &Bench, out: &str) -> Vec<Epoch> {
    Checkpoint::read(&bench.path(out).join(file::LAST)).unwrap().state.history
}

#[test]
fn a_fit_learns_where_the_finding_is() {
    let mut bench = bench();
    bench.task.train.epochs = 25;
    // Sixteen tokens a slice instead of four.
    bench.task.recipe.size = [56, 56];
    let summary = fit(&bench.options("run")).unwrap().unwrap();
    let history = history(&bench, "run");
    let loss = |i: usize| history[i].pixel_loss.unwrap();
    assert!(loss(24) < 0.7 * loss(0), "{} {}", loss(0), loss(24));
    let metrics = String::from_utf8(bytes(&bench.path("run").join(file::METRICS))).unwrap();
    assert!(metrics.lines().next().unwrap().ends_with(",pixel_loss"));
    assert!(metrics.lines().last().unwrap().ends_with(&format!(",{}", loss(24))), "{metrics}");
    // The decoder is no part of the plugin's parameters.
    let content = Run::open(&bench.path("run")).unwrap().best.content();
    assert_eq!(summary.parameters, content.values().map(|t| t.data.len()).sum::<usize>());
    assert!(content.keys().all(|name| !name.starts_with("decoder.")));
}

#[test]
fn an_interrupted_fit_ends_with_the_same_decoder() {
    let mut bench = bench();
    bench.task.train.ema = Some(0.8);
    // Volumes of up to six slices, so that both ways through the network are taken.
    bench.task.train.chunk = 4;
    fit(&bench.options("straight")).unwrap();
    fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
    fit(&bench.options("resumed")).unwrap();
    let last = |out: &str| read_safetensors(&bench.path(out).join(file::LAST)).unwrap().tensors;
    let straight = last("straight");
    for name in [
        "param.decoder.mix.weight",
        "m.decoder.mix.weight",
        "v.decoder.voxel.bias",
        "ema.decoder.reduce.bias",
    ] {
        assert!(straight.contains_key(name), "{name} is not in the checkpoint");
    }
    assert!(straight == last("resumed"));
    let losses = |out: &str| -> Vec<_> { history(&bench, out).iter().map(|e| e.pixel_loss).collect() };
    assert_eq!(losses("straight"), losses("resumed"));
}

#[test]
fn an_export_knows_nothing_of_the_decoder() {
    let bench = bench();
    fit(&bench.options("run")).unwrap();
    let export = |out: &str| bench.export("run", out).unwrap();
    let with = export("with");
    // The same factors, query and head in a checkpoint that never had a decoder.
    let path = bench.path("run").join(file::BEST);
    let mut stored = read_safetensors(&path).unwrap();
    let before = stored.tensors.len();
    stored.tensors.retain(|name, _| !name.contains("decoder."));
    assert_eq!(before - stored.tensors.len(), 3 * 6);
    let (key, json) = stored.metadata.iter().find(|(key, _)| key.starts_with("scanside")).unwrap();
    std::fs::write(&path, safetensors_bytes(&stored.tensors, Some((key, json)))).unwrap();
    let without = export("without");
    assert_eq!((with.graph_sha256, with.plugin_sha256), (without.graph_sha256, without.plugin_sha256));
    assert!(with.parity.logits <= 1e-3);
}

#[test]
fn masks_that_are_missing_or_lie_elsewhere_are_refused() {
    let bench = bench();
    let csv = String::from_utf8(bytes(&bench.path("data.csv"))).unwrap();
    let refuse = |csv: &str, told: &[&str]| {
        std::fs::write(bench.path("data.csv"), csv).unwrap();
        let error = fit(&bench.options("run")).unwrap_err();
        let text = error.to_string();
        assert!(error.is_bad_input() && told.iter().all(|told| text.contains(told)), "{text}");
    };
    // Those of validation and test volumes are no help.
    let few: Vec<&str> =
        csv.lines().filter(|line| !line.contains(",train,") || line.contains(",,")).collect();
    refuse(&few.join("\n"), &["no row with split train has a mask"]);
    refuse(&csv.replace("1.nii.gz,1.mask", "1.nii.gz,3.mask"), &["1.nii.gz", "3.mask.nii.gz", "resample"]);
}

/// The heat maps that libtorch's predictions are measured by are those that the device writes.
#[test]
fn predictions_tell_how_far_the_devices_heat_maps_show_the_masks() {
    let bench = bench();
    fit(&bench.options("run")).unwrap();
    let exported = bench.export("run", "out").unwrap();
    assert!(exported.parity.heatmap <= 1e-4, "{:?}", exported.parity);
    let run = Run::open(&bench.path("run")).unwrap();
    let task = &run.settings().task;
    let network = run.network(&run.backbone(None).unwrap(), Device::Cpu).unwrap();
    let table = Table::read(&bench.path("data.csv"), task, true).unwrap();
    let rows = predict(&network, &table, task, None, 4.0, 2, false).unwrap();

    let loaded = LoadedTask::open(&exported.graph, &exported.plugin, 1).unwrap();
    let context = Context::given("test".into(), std::time::UNIX_EPOCH);
    let mut compared = 0;
    for row in &rows {
        let sample = &table.samples[row.index];
        let Some(mask) = &sample.mask else {
            assert_eq!(row.located, None);
            continue;
        };
        let volume = read(sample.image(), &ReadOptions::default()).unwrap().remove(0);
        let mask = read(mask, &ReadOptions::default()).unwrap().remove(0);
        let prepared = loaded.prepare(0, &volume).unwrap();
        let said = loaded.classify(&[Some(&prepared)], &context, &|| ()).unwrap();
        let heat = prepared.heatmap_volume(&said.output.views[0].heatmap, loaded.engine.views()[0].grid);
        let peak = (0..heat.len()).max_by(|&a, &b| heat[a].total_cmp(&heat[b]).then(b.cmp(&a))).unwrap();
        // Voxels of 2, 2 and 5 mm: within 4 mm are two steps along a row or a column, and one of each.
        let at = |i: usize| [i % 14, i / 14 % 14, i / 196].map(|n| n as isize);
        let near = |i: usize| {
            let [x, y, z] = std::array::from_fn(|k| at(i)[k] - at(peak)[k]);
            z == 0 && x * x + y * y <= 4
        };
        let located = row.located.as_ref().unwrap();
        let hit = (0..heat.len()).any(|i| mask.voxels[i] > 0.5 && near(i));
        assert_eq!(located.hit, hit, "{}", sample.id);
        // Dice of the hottest: every voxel that reaches an eighth of the peak.
        let marked = |i: usize| heat[i] >= heat[peak] / 8.0;
        let both = (0..heat.len()).filter(|&i| marked(i) && mask.voxels[i] > 0.5).count();
        let sum =
            (0..heat.len()).filter(|&i| marked(i)).count() + mask.voxels.iter().filter(|&&m| m > 0.5).count();
        assert!((located.dice[12] - 2.0 * both as f64 / sum as f64).abs() < 0.02, "{}", sample.id);
        compared += 1;
    }
    assert_eq!(compared, 10);

    let text = csv(&table, task, &rows, 1.0).unwrap();
    let predictions = Predictions::parse("p.csv", text.as_slice()).unwrap();
    let mean = |split: Split, dice: &dyn Fn(&localise::Located) -> f64| {
        let found: Vec<f64> = rows
            .iter()
            .filter(|row| table.samples[row.index].split == split)
            .filter_map(|row| row.located.as_ref().map(dice))
            .collect();
        found.iter().sum::<f64>() / found.len() as f64
    };
    let level = (0..localise::LEVELS)
        .rev()
        .max_by(|&a, &b| mean(Split::Val, &|l| l.dice[a]).total_cmp(&mean(Split::Val, &|l| l.dice[b])))
        .unwrap();
    let found = evaluate(&predictions, "test").unwrap().localisation.unwrap();
    let dice = found.dice.unwrap();
    assert_eq!((found.cases, dice.level), (2, localise::level(level)));
    assert!((dice.value - mean(Split::Test, &|l| l.dice[level])).abs() < 1e-9);
    assert!((found.best_dice - mean(Split::Test, &localise::Located::best)).abs() < 1e-9);
}
