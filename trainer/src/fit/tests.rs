mod pixel;
mod pooling;
mod reading;
mod views;

use std::path::Path;

use firmware_config::AttentionLora;
use runtime::backbone::Backbone;
use runtime::volume::{Geometry, write_nifti};
use tempfile::TempDir;

use super::*;
use crate::data::{Slices, Study};
use crate::evaluate::Predictions;
use crate::export;
use crate::model::{Encoder, Pooling};
use crate::predict;
use crate::random::{Purpose, generator, unit};
use crate::run::Run;
use crate::task::Lora;
use crate::tensorboard::scalars_in;

/// A DINOv2 of width 48 with 3 blocks and random weights.
pub(crate) fn backbone_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors")
}

/// A network for slices of 28 by 42 pixels, of which all parameters, B too, are random.
pub(crate) fn tiny_network(seed: u64) -> Network {
    tiny_network_of(1, seed)
}

/// The same with several labels.
pub(crate) fn tiny_network_of(labels: usize, seed: u64) -> Network {
    tiny(labels, &[], seed)
}

/// The same with one label and views, for slices of 28 by 42 and of 42 by 28 pixels.
pub(crate) fn tiny_network_of_views(views: &[&str], seed: u64) -> Network {
    tiny(1, views, seed)
}

fn tiny(labels: usize, views: &[&str], seed: u64) -> Network {
    let backbone = Backbone::open(&backbone_path()).unwrap();
    let lora = Lora { rank: 3, alpha: 6.0, ..Lora::default() };
    let spec = firmware_config::LoraSpec { rank: lora.rank, alpha: lora.alpha, attention: lora.attention };
    let parameters = Parameters::init(&backbone.arch, &spec, labels, views, seed, Device::Cpu).unwrap();
    let _guard = tch::no_grad_guard();
    for (index, (name, tensor)) in parameters.named.iter().enumerate() {
        if name.strip_suffix(".B").is_some() {
            let random: Vec<f32> = values(tensor.numel(), index as u64).iter().map(|x| 0.1 * x).collect();
            tensor.shallow_clone().copy_(&tch::Tensor::from_slice(&random).view(tensor.size().as_slice()));
        }
    }
    let encoder = Encoder::new(&backbone, [28, 42], Device::Cpu).unwrap();
    Network { encoder: encoder.with_size(&backbone, [42, 28]).unwrap(), parameters }
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = generator(seed, Purpose::Init, 9, 9);
    (0..n).map(|_| 2.0 * unit(&mut rng) - 1.0).collect()
}

/// Random slices of 28 by 42 pixels.
pub(crate) fn slices(count: usize, seed: u64) -> Slices {
    Slices { count, size: [28, 42], values: values(count * 3 * 28 * 42, seed), mask: None }
}

/// The same as all that there is of a sample.
pub(crate) fn study(count: usize, seed: u64) -> Study {
    Study::of(slices(count, seed))
}

/// Twenty small volumes, half of them with a bright block in one slice, and a task for them.
pub(crate) struct Bench {
    folder: TempDir,
    task: Task,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut csv = String::from("id,split,image,bright\n");
        for i in 0..20 {
            let dims = [14, 14, 3 + i % 4];
            let mut voxels: Vec<f32> =
                values(dims.iter().product(), i as u64).iter().map(|x| 200.0 + 100.0 * x).collect();
            let positive = i % 2;
            if positive == 1 {
                let slice = i / 2 % dims[2];
                for y in 3..9 {
                    voxels[(slice * 14 + y) * 14 + 4..][..6].fill(700.0);
                }
            }
            let geometry =
                Geometry::from_columns([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [0.0; 3]);
            write_nifti(&folder.path().join(format!("{i}.nii.gz")), dims, &voxels, &geometry).unwrap();
            let split = ["train", "train", "train", "val", "test"][i / 2 % 5];
            csv += &format!("v{i},{split},{i}.nii.gz,{positive}\n");
        }
        std::fs::write(folder.path().join("data.csv"), csv).unwrap();
        let task = toml::from_str(
            "name = 'bright'\nversion = '1.2.3'\nlabels = ['bright']\nblocks = 2\nloss = { kind = 'bce' }\n\
             [recipe]\nplane = 'axial'\nsize = [28, 28]\nintensity = { kind = 'window', windows = [[0, 800]] }\n\
             [lora]\nrank = 4\n\
             [train]\nepochs = 3\nlr_lora = 5e-3\nlr_head = 1e-2\nchunk = 8\nseed = 3\n\
             augment = { flip_columns = true, shift = 1 }\n",
        )
        .unwrap();
        Self { folder, task }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Exports the run in the folder `run` to the folder `out`.
    pub(crate) fn export(&self, run: &str, out: &str) -> Result<export::Exported, Error> {
        export::export(&export::Options {
            run: self.path(run),
            out: self.path(out),
            backbone: None,
            data: None,
            peft: None,
            half: false,
            golden: Vec::new(),
            allow_patient_golden: false,
            golden_tolerance: 1e-3,
            device: Device::Cpu,
            threads: 1,
        })
    }

    pub(crate) fn options(&self, out: &str) -> Options {
        Options {
            init_from: None,
            task: self.task.clone(),
            task_path: "task.toml".into(),
            data: self.path("data.csv"),
            split: None,
            backbone: backbone_path(),
            out: self.path(out),
            device: Device::Cpu,
            precision: Precision::F32,
            threads: 1,
            probe: false,
            cache: None,
            stop_after: None,
            progress: false,
        }
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn an_interrupted_fit_ends_with_the_same_bits() {
    let bench = Bench::new();
    let straight = fit(&bench.options("straight")).unwrap().unwrap();
    let stopped = fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
    assert_eq!(stopped, None);
    // More threads are asked for; those of the checkpoint are kept.
    let resumed = fit(&Options { threads: 2, ..bench.options("resumed") }).unwrap().unwrap();
    let content = |out: &str| Run::open(&bench.path(out)).unwrap().best.content();
    assert_eq!(content("straight"), content("resumed"));
    let last = |out: &str| Checkpoint::read(&bench.path(out).join(file::LAST)).unwrap();
    assert_eq!(last("straight").content(), last("resumed").content());
    assert_eq!(last("resumed").state.settings.threads, 1);
    assert_eq!(last("resumed").state.history.len(), 3);
    let predictions = |out: &str| bytes(&bench.path(out).join(file::PREDICTIONS));
    assert_eq!(predictions("straight"), predictions("resumed"));
    assert_eq!(straight.labels, resumed.labels);
    assert_eq!(straight.labels["bright"].counts["train"], [6, 6]);
    // Each step stands in the event file once; 12 volumes by 4 are 3 steps an epoch.
    let events = scalars_in(&bench.path("straight"));
    assert_eq!(events, scalars_in(&bench.path("resumed")));
    let of = |tag: &str| -> Vec<(u64, f32)> {
        events.iter().filter(|(_, name, _)| name == tag).map(|(step, _, value)| (*step, *value)).collect()
    };
    assert_eq!(
        of("train/loss").iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        (1..=9).collect::<Vec<_>>()
    );
    let history = last("straight").state.history;
    let auroc: Vec<(u64, f32)> =
        history.iter().map(|e| (3 * e.epoch as u64, e.val_auroc.unwrap() as f32)).collect();
    assert_eq!(of("val/auroc"), auroc);
    // Started once more, there is nothing left to do.
    assert_eq!(fit(&bench.options("resumed")).unwrap().unwrap().labels, resumed.labels);
}

#[test]
fn a_fit_learns_and_another_seed_gives_other_weights() {
    let mut bench = Bench::new();
    bench.task.train.epochs = 30;
    let summary = fit(&Options { probe: true, ..bench.options("a") }).unwrap().unwrap();
    let history = Run::open(&bench.path("a")).unwrap().best.state.history;
    let loss =
        |i: usize| Checkpoint::read(&bench.path("a").join(file::LAST)).unwrap().state.history[i].train_loss;
    assert!(loss(29) < 0.7 * loss(0), "{} {}", loss(0), loss(29));
    assert!(summary.val_auroc.is_some() && summary.probe_auroc.is_some() && !history.is_empty());
    // The probe's predictions are of the same rows, and its figure follows from them.
    let [probe, mine] = [file::PROBE, file::PREDICTIONS].map(|name| {
        let predictions = Predictions::read(&bench.path("a").join(name)).unwrap();
        (predictions.cases.iter().map(|c| c.id.clone()).collect::<Vec<_>>(), predictions.of(0, "test"))
    });
    let area = crate::metrics::auroc(&probe.1.0, &probe.1.1);
    assert_eq!((probe.0, area, probe.1.1), (mine.0, summary.probe_auroc, mine.1.1));
    let metrics = String::from_utf8(bytes(&bench.path("a").join(file::METRICS))).unwrap();
    assert_eq!(metrics.lines().count(), 31);

    bench.task.train.epochs = 1;
    bench.task.train.seed = 4;
    fit(&bench.options("b")).unwrap();
    bench.task.train.seed = 5;
    fit(&bench.options("c")).unwrap();
    let content = |out: &str| Run::open(&bench.path(out)).unwrap().best.content();
    assert_ne!(content("b")["lora.patch.B"], content("c")["lora.patch.B"]);
}

#[test]
fn factors_that_are_no_targets_stay_zero() {
    let mut bench = Bench::new();
    bench.task.lora.targets = "patch.output".parse().unwrap();
    let summary = fit(&bench.options("some")).unwrap().unwrap();
    let content = Run::open(&bench.path("some")).unwrap().best.content();
    let mut learned = 0;
    for (name, tensor) in &content {
        let moved = tensor.data.iter().any(|&x| x != 0.0);
        assert_eq!(moved, !name.ends_with(".qkv.B"), "{name}");
        learned += if name.contains(".qkv.") { 0 } else { tensor.data.len() };
    }
    assert_eq!(summary.parameters, learned);
}

/// Smoothing, clipping, a running mean and early stopping.
fn with_extras(bench: &mut Bench) {
    let train = &mut bench.task.train;
    (train.clip, train.smoothing, train.ema, train.patience) = (Some(0.5), 0.1, Some(0.8), Some(2));
}

#[test]
fn a_running_mean_is_what_is_kept_and_survives_an_interruption() {
    let mut bench = Bench::new();
    with_extras(&mut bench);
    let straight = fit(&bench.options("straight")).unwrap().unwrap();
    fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
    let resumed = fit(&bench.options("resumed")).unwrap().unwrap();
    assert_eq!(straight.labels, resumed.labels);
    let last = |bench: &Bench, out: &str| Checkpoint::read(&bench.path(out).join(file::LAST)).unwrap();
    let mean = last(&bench, "straight");
    assert_eq!(mean.content(), last(&bench, "resumed").content());

    bench.task.train.ema = None;
    fit(&bench.options("plain")).unwrap();
    let plain = last(&bench, "plain").content();
    // The steps are the same; the mean lags behind them.
    assert_ne!(mean.content(), plain);
    let mut backbone = Backbone::open(&backbone_path()).unwrap();
    backbone.truncate(2).unwrap();
    let (lora, content) = (bench.task.lora_spec(), mean.content());
    let parameters =
        Parameters::from_stored(&backbone.arch, &lora, 1, &[], Pooling::Query, &content, Device::Cpu)
            .unwrap();
    mean.load("param.", &parameters).unwrap();
    assert_eq!(parameters.to_stored().unwrap(), plain);
}

#[test]
fn an_ordinal_fit_keeps_grades_in_order_over_an_interruption() {
    let mut bench = Bench::new();
    let table = String::from_utf8(bytes(&bench.path("data.csv"))).unwrap();
    let graded = table.lines().enumerate().fold(String::new(), |text, (row, line)| {
        let large = if row == 0 {
            "large"
        } else if row % 4 == 2 {
            "1"
        } else {
            "0"
        };
        text + &format!("{line},{large}\n")
    });
    std::fs::write(bench.path("data.csv"), graded).unwrap();
    bench.task.labels = vec!["bright".into(), "large".into()];
    (bench.task.loss, bench.task.train.ema) = (Loss::Ordinal, Some(0.8));
    fit(&bench.options("straight")).unwrap();
    fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
    fit(&bench.options("resumed")).unwrap();
    let run = Run::open(&bench.path("straight")).unwrap();
    let content = run.best.content();
    assert_eq!(content, Run::open(&bench.path("resumed")).unwrap().best.content());
    let (weight, bias) = (&content["head.weight"].data, &content["head.bias"].data);
    let (first, second) = weight.split_at(weight.len() / 2);
    assert!(first == second && bias[0] >= bias[1], "{bias:?}");
    let predictions = Predictions::read(&bench.path("straight").join(file::PREDICTIONS)).unwrap();
    assert!(predictions.cases.iter().all(|case| case.probabilities[0] >= case.probabilities[1] - 1e-7));
    // Fewer volumes have the higher grade, which the biases learn.
    assert!(bias[0] > bias[1], "{bias:?}");
}

#[test]
fn gradients_are_shortened_to_the_limit() {
    let mut bench = Bench::new();
    bench.task.train.epochs = 1;
    let weights = |out: &str, bench: &Bench| {
        fit(&bench.options(out)).unwrap();
        Run::open(&bench.path(out)).unwrap().best.content()
    };
    let free = weights("free", &bench);
    bench.task.train.clip = Some(1e6);
    assert_eq!(weights("wide", &bench), free);
    // AdamW hardly sees the length of gradients until it comes near its ε.
    bench.task.train.clip = Some(1e-9);
    let tight = weights("tight", &bench);
    let moved = |content: &runtime::backbone::Tensors| {
        let b = &content["lora.patch.B"].data;
        b.iter().map(|x| x * x).sum::<f32>().sqrt()
    };
    assert!(moved(&tight) < 0.1 * moved(&free) && moved(&tight) > 0.0, "{} {}", moved(&tight), moved(&free));
}

#[test]
fn a_fit_stops_when_nothing_gets_better() {
    let mut bench = Bench::new();
    // Nothing can get better than the first epoch where nothing moves.
    (bench.task.train.lr_lora, bench.task.train.lr_head) = (0.0, 0.0);
    (bench.task.train.decay_lora, bench.task.train.decay_head) = (0.0, 0.0);
    (bench.task.train.epochs, bench.task.train.patience) = (9, Some(2));
    let summary = fit(&bench.options("run")).unwrap().unwrap();
    let history = Checkpoint::read(&bench.path("run").join(file::LAST)).unwrap().state.history;
    assert_eq!((summary.best_epoch, history.len()), (1, 3));
    // It stays stopped.
    fit(&bench.options("run")).unwrap();
    assert_eq!(Checkpoint::read(&bench.path("run").join(file::LAST)).unwrap().state.history.len(), 3);
}

#[test]
fn a_fit_in_bf16_learns_resumes_and_exports() {
    let mut bench = Bench::new();
    bench.task.train.epochs = 4;
    let options = |out: &str| Options { precision: Precision::Bf16, ..bench.options(out) };
    fit(&options("straight")).unwrap();
    fit(&Options { stop_after: Some(2), ..options("resumed") }).unwrap();
    let error = fit(&bench.options("resumed")).unwrap_err();
    assert!(error.to_string().contains("another precision"), "{error}");
    fit(&options("resumed")).unwrap();
    let last = |out: &str| Checkpoint::read(&bench.path(out).join(file::LAST)).unwrap();
    assert_eq!(last("straight").content(), last("resumed").content());
    let losses: Vec<f64> = last("straight").state.history.iter().map(|e| e.train_loss).collect();
    assert!(losses[3] < losses[0], "{losses:?}");
    let exported = bench.export("straight", "out");
    assert!(exported.unwrap().parity.logits <= 1e-3);
}

#[test]
fn a_folder_with_another_fit_is_refused() {
    let mut bench = Bench::new();
    fit(&Options { stop_after: Some(1), ..bench.options("run") }).unwrap();
    let before = bytes(&bench.path("run").join(file::LAST));
    bench.task.train.seed = 8;
    let error = fit(&bench.options("run")).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("another task"), "{error}");
    assert_eq!(bytes(&bench.path("run").join(file::LAST)), before);
}

#[test]
fn a_diverging_fit_stops_and_keeps_the_last_checkpoint() {
    let mut bench = Bench::new();
    bench.task.train.warmup = 0.0;
    // One epoch at a learning rate that breaks every number in its first steps.
    bench.task.train.lr_lora = 1e30;
    let error = fit(&bench.options("run")).unwrap_err();
    let Error::Diverged { epoch, kept, volumes, .. } = &error else { panic!("{error}") };
    assert_eq!((*epoch, *kept, volumes.split(", ").count()), (1, 0, 4));
    assert!(!error.is_bad_input() && error.to_string().contains("lr_lora"));
    assert!(!bench.path("run").join(file::BEST).exists());
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let refuse = |options: Options, told: &str| {
        let error = fit(&options).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(told), "{error}");
        assert!(!options.out.exists());
    };
    let task = |change: fn(&mut Task)| {
        let mut options = bench.options("none");
        change(&mut options.task);
        options
    };
    refuse(task(|t| t.recipe.size = [30, 28]), "patch size 14");
    refuse(task(|t| t.labels = vec!["dark".into()]), "no column `dark`");
    refuse(task(|t| t.blocks = Some(9)), "9");
    refuse(Options { precision: Precision::F16, ..bench.options("none") }, "f16 is for GPUs");
    refuse(Options { data: "none.csv".into(), ..bench.options("none") }, "none.csv");
    refuse(Options { backbone: "none.safetensors".into(), ..bench.options("none") }, "none.safetensors");
}

#[test]
fn an_export_reproduces_libtorch_and_its_plugin_rebuilds_the_graph() {
    let bench = Bench::new();
    for (name, attention) in [("fused", AttentionLora::Fused), ("separate", AttentionLora::Separate)] {
        let mut options = bench.options(name);
        options.task.lora.attention = attention;
        fit(&options).unwrap();
        let of = |run: &Path| export::Options {
            peft: None,
            half: false,
            golden: Vec::new(),
            allow_patient_golden: false,
            golden_tolerance: 1e-3,
            run: run.to_owned(),
            out: bench.path("out"),
            backbone: None,
            data: None,
            device: Device::Cpu,
            threads: 1,
        };
        let exported = export::export(&of(&options.out)).unwrap();
        assert!(exported.parity.logits <= 1e-3 && exported.parity.volumes == 6, "{:?}", exported.parity);
        let (plugin, sha256) = runtime::plugin::Plugin::read(&bench.path("out/bright-1.2.3.plugin")).unwrap();
        assert_eq!(sha256, exported.plugin_sha256);
        let graph = plugin.graph(Backbone::open(&backbone_path()).unwrap()).unwrap();
        assert_eq!(runtime::engine::onnx::encode(&graph), bytes(&bench.path("out/bright-1.2.3.onnx")));
        assert_eq!((plugin.manifest.backbone.blocks, plugin.manifest.golden.len()), (Some(2), 2));
        // The device's temperature is that of the trainer's predictions.
        let predictions = Predictions::read(&options.out.join(file::PREDICTIONS)).unwrap();
        let temperature = plugin.manifest.temperature;
        for case in &predictions.cases {
            let expected = plugin.manifest.activation.probabilities(&[case.logits[0] as f32], temperature)[0];
            assert!((case.probabilities[0] - expected).abs() < 1e-12, "{temperature} {}", case.id);
        }
        let threshold = plugin.manifest.labels[0].threshold.as_ref().unwrap();
        assert_eq!(threshold.rule, "youden on validation");
        for part in [
            "## Intended use",
            "- Augmentation: `{ flip_columns = ",
            "- Loss: `{ kind = \"bce\" }`; AdamW, learning rates 0.005 (factors) and 0.01 (query and head)",
            "- Seed 3; 1 threads on cpu",
            "| test | bright | 2 / 2 | ",
            "; sensitivity ",
        ] {
            assert!(plugin.card.contains(part), "{part} in {}", plugin.card);
        }
        assert!(plugin.card.contains("For research only") && plugin.card.contains("6 positive, 6 negative"));

        // In half precision: half the factors' bytes, other numbers by a rounding, and the same care.
        let half = export::Options { half: true, out: bench.path("half"), ..of(&options.out) };
        let rounded = export::export(&half).unwrap();
        assert!(rounded.parity.logits <= 1e-3, "{:?}", rounded.parity);
        let (small, _) = runtime::plugin::Plugin::read(&rounded.plugin).unwrap();
        let saved = exported.plugin_bytes - rounded.plugin_bytes;
        let numbers = plugin.manifest.parameters;
        assert!(saved.abs_diff(2 * numbers) < 1024, "{saved} bytes saved by {numbers} numbers");
        assert_ne!(small.content, plugin.content);
        for (name, tensor) in &small.content {
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > b.abs() / 2048.0 + 1e-7;
            assert!(!tensor.data.iter().zip(&plugin.content[name].data).any(far), "{name}");
        }
        let graph = small.graph(Backbone::open(&backbone_path()).unwrap()).unwrap();
        assert_eq!(runtime::engine::onnx::encode(&graph), bytes(&rounded.graph));
    }
}

#[test]
fn an_export_on_another_backbone_leaves_no_file() {
    let bench = Bench::new();
    fit(&Options { stop_after: Some(1), ..bench.options("run") }).unwrap();
    let other = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/reference/backbones/dinov2_fb_98x84/weights.safetensors");
    let options = export::Options {
        peft: None,
        half: false,
        golden: Vec::new(),
        allow_patient_golden: false,
        golden_tolerance: 1e-3,
        run: bench.path("run"),
        out: bench.path("out"),
        backbone: Some(other),
        data: None,
        device: Device::Cpu,
        threads: 1,
    };
    let error = export::export(&options).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("SHA-256"), "{error}");
    assert!(!bench.path("out").exists());
    // An unfinished fit can be exported; it has no threshold.
    let exported = export::export(&export::Options { backbone: None, ..options }).unwrap();
    let (plugin, _) = runtime::plugin::Plugin::read(&exported.plugin).unwrap();
    assert_eq!(plugin.manifest.labels[0].threshold, None);
}
