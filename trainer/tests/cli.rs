//! The command line: exit codes, one-sentence errors, and a run from fit to evaluate.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::volume::{Geometry, write_nifti};

use common::{succeed, train};

/// Fails as bad input with one line that says `told`.
#[track_caller]
fn refuse(args: &[&str], told: &str) {
    let output = train(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains(told), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(output.stdout.is_empty());
}

fn backbone() -> String {
    let fixture = "../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture).display().to_string()
}

/// A folder with eight small scans, `data.csv` and `task.toml`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let geometry = Geometry::from_columns([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 6.0]], [0.0; 3]);
        let mut csv = String::from("id,split,image,bright\n");
        for i in 0..8 {
            let dims = [10, 12, 4];
            let level = 100.0 + 200.0 * (i % 2) as f32;
            let voxels: Vec<f32> = (0..480).map(|v| level + (v * 7 % 31) as f32).collect();
            write_nifti(&folder.path(&format!("{i}.nii")), dims, &voxels, &geometry).unwrap();
            let split = ["train", "train", "val", "test"][i / 2];
            csv += &format!("s{i},{split},{i}.nii,{}\n", i % 2);
        }
        folder.write("data.csv", &csv);
        folder.write(
            "task.toml",
            "name = 'bright'\nversion = '0.1.0'\nlabels = ['bright']\n\
             recipe = { plane = 'axial', size = [28, 28], intensity = { kind = 'window', windows = [[0, 400]] } }\n\
             train = { epochs = 2, lr_lora = 1e-3, lr_head = 1e-2 }\n",
        );
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn fit(&self, task: &str, data: &str) -> Vec<String> {
        let backbone = backbone();
        let (task, data, out) = (self.text(task), self.text(data), self.text("run"));
        let args = [
            "fit",
            "--task",
            &task,
            "--data",
            &data,
            "--backbone",
            &backbone,
            "--out",
            &out,
            "--threads",
            "1",
        ];
        args.map(str::to_owned).into()
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// What `predict --device cuda` says with `SCANSIDE_TORCH_CUDA` set to `named`; it comes to the device before anything else.
fn with_cuda_from(named: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_scanside-train"))
        .args(["predict", "--run", "none", "--data", "none", "--device", "cuda"])
        .env("SCANSIDE_TORCH_CUDA", named)
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    message
}

#[test]
fn cuda_libraries_that_cannot_be_used_are_told() {
    let folder = tempfile::tempdir().unwrap();
    // The loader splits what it preloads at spaces.
    let package = folder.path().join("my torch");
    let lib = package.join("lib");
    std::fs::create_dir_all(&lib).unwrap();
    let told = with_cuda_from(&lib);
    assert!(told.contains("expected libtorch_cuda.so of PyTorch 2.11.0 or the folder"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");

    let library = lib.join("libtorch_cuda.so");
    std::fs::write(&library, "no library").unwrap();
    std::fs::write(package.join("version.py"), "__version__ = '2.9.1+cu126'\n").unwrap();
    for named in [&lib, &library] {
        let told = with_cuda_from(named);
        assert!(told.contains("belongs to PyTorch 2.9.1+cu126, expected 2.11.0"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }

    // Started again, the program finds that it was in vain, and does not start for a third time.
    std::fs::write(package.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
    let told = with_cuda_from(&lib);
    assert!(told.contains("cannot be loaded, for the reason that the loader gives above"), "{told}");
}

#[test]
fn f16_is_refused_on_a_cpu_before_anything_is_written() {
    let folder = Folder::new();
    let mut fit = folder.fit("task.toml", "data.csv");
    fit.extend(["--precision".into(), "f16".into()]);
    refuse(&strs(&fit), "precision f16 is for GPUs, expected f32 or bf16");
    assert!(!folder.path("run").exists());
}

#[test]
fn a_run_goes_from_fit_to_evaluate() {
    let folder = Folder::new();
    // One scan is stored from right to left and from front to back.
    let turned = Geometry::from_columns([[-3.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 6.0]], [0.0; 3]);
    let voxels: Vec<f32> = (0..480).map(|v| 300.0 + (v * 7 % 31) as f32).collect();
    write_nifti(&folder.path("1.nii"), [10, 12, 4], &voxels, &turned).unwrap();
    let mut fit = folder.fit("task.toml", "data.csv");
    fit.extend(["--probe".into(), "--blocks".into(), "2".into()]);
    assert!(succeed(&strs(&fit)).contains("frozen linear probe: test AUROC"));

    let (run, out, data) = (folder.text("run"), folder.text("out"), folder.text("data.csv"));
    let peft = folder.text("peft");
    let told = succeed(&["export", "--run", &run, "--out", &out, "--threads", "1", "--peft", &peft]);
    assert!(told.contains("largest difference"));
    let (plugin, _) = runtime::plugin::Plugin::read(&folder.path("out/bright-0.1.0.plugin")).unwrap();
    assert_eq!(plugin.manifest.backbone.blocks, Some(2));
    assert!(folder.path("out/bright-0.1.0.onnx").exists());

    // Scans of the table go into a plugin only where that is said to be permitted.
    let out = folder.text("golden");
    let with = ["export", "--run", &run, "--out", &out, "--threads", "1", "--golden", "s0", "s1"];
    refuse(&with, "say --allow-patient-golden");
    assert!(!folder.path("golden").exists());
    let allowed = [&with[..], &["--allow-patient-golden"]].concat();
    let unknown: Vec<&str> = allowed.iter().map(|word| if *word == "s1" { "s99" } else { *word }).collect();
    refuse(&unknown, "has no row with the id `s99`");
    succeed(&allowed);
    let (with_scans, _) = runtime::plugin::Plugin::read(&folder.path("golden/bright-0.1.0.plugin")).unwrap();
    assert_eq!(with_scans.manifest.patient_golden().as_deref(), Some("scan-s0, scan-s1"));
    assert_eq!((with_scans.manifest.golden.len(), plugin.manifest.golden.len()), (4, 2));
    assert!(
        with_scans.card.contains("**The plugin holds patients' scans**, its golden cases scan-s0, scan-s1")
    );
    assert!(plugin.manifest.patient_golden().is_none() && !plugin.card.contains("patients' scans"));
    let plugin_path = folder.path("golden/bright-0.1.0.plugin");
    let task = runtime::infer::LoadedTask::merge(Path::new(&backbone()), &plugin_path, 1).unwrap();
    assert_eq!(task.check_golden().unwrap().cases, 4);
    // They are the scans as `predict` sees them, however they are stored.
    let printed = succeed(&["predict", "--run", &run, "--data", &data, "--threads", "1"]);
    for (line, case) in printed.lines().skip(1).zip(&with_scans.manifest.golden[2..]) {
        let logit: f32 = line.split(',').nth(3).unwrap().parse().unwrap();
        assert!((logit - case.logits[0]).abs() < 1e-3, "{line}: {case:?}");
    }

    // The adapter is of Hugging Face's names, as the backbone: query, key and value apart.
    folder.write(
        "separate.toml",
        &format!("{}lora = {{ attention = 'separate' }}\n", folder.read("task.toml")),
    );
    let mut again = folder.fit("separate.toml", "data.csv");
    again.extend(["--blocks".into(), "2".into(), "--init-from".into(), peft.clone()]);
    let last = again.iter().position(|word| *word == run).unwrap();
    again[last] = folder.text("again");
    succeed(&strs(&again));
    let settings = folder.read("again/settings.json");
    let adapter = std::fs::read(folder.path("peft/adapter_model.safetensors")).unwrap();
    assert!(settings.contains(&runtime::tensor::sha256(&adapter)), "{settings}");
    let mut other = folder.fit("task.toml", "data.csv");
    other.extend(["--blocks".into(), "2".into(), "--init-from".into(), peft]);
    other[last] = folder.text("other");
    refuse(&strs(&other), "attention = 'separate'");

    let csv = folder.text("predictions.csv");
    succeed(&["predict", "--run", &run, "--data", &data, "--out", &csv, "--threads", "1"]);
    let printed = succeed(&["predict", "--run", &run, "--data", &data, "--threads", "1"]);
    assert_eq!(printed, std::fs::read_to_string(&csv).unwrap());
    assert!(printed.starts_with("id,split,bright,logit:bright,prob:bright\ns0,train,0,"));
    assert_eq!(printed.lines().count(), 9);
    // The fit's own predictions are those of validation and test volumes.
    let kept = std::fs::read_to_string(folder.path("run/predictions.csv")).unwrap();
    assert!(kept.lines().all(|line| printed.contains(line)), "{kept}\n{printed}");

    let json = succeed(&["evaluate", "--predictions", &csv, "--split", "train", "--json"]);
    assert!(json.contains("\"macro_auroc\""));
    assert!(succeed(&["evaluate", "--predictions", &csv]).contains("bright"));
}

/// Fit, export with its parity check, and golden cases, for the families that have no CLS or another way with positions.
#[test]
fn every_family_goes_from_fit_to_export() {
    for (case, size, heatmap) in [
        ("dinov3_fb_96x64", 32, "cls-attention"),
        ("siglip_hf_98x84", 28, "pool-attention"),
        ("davit_timm_48x48", 32, "pooled-similarity"),
    ] {
        let folder = Folder::new();
        let task = folder.read("task.toml").replace("[28, 28]", &format!("[{size}, {size}]"));
        folder.write("task.toml", &task.replace("epochs = 2", "epochs = 1"));
        let mut fit = folder.fit("task.toml", "data.csv");
        let at = fit.iter().position(|word| *word == backbone()).unwrap();
        fit[at] = fit[at].replace("dinov2_hf_98x84", case);
        succeed(&strs(&fit));
        let (run, out) = (folder.text("run"), folder.text("out"));
        succeed(&["export", "--run", &run, "--out", &out, "--threads", "1"]);
        let (plugin, _) = runtime::plugin::Plugin::read(&folder.path("out/bright-0.1.0.plugin")).unwrap();
        assert_eq!(plugin.manifest.heatmap, heatmap);
        assert_eq!(plugin.content.contains_key("lora.patch.A"), !case.starts_with("davit"));
        assert_eq!(plugin.golden.len(), 2);
    }
}

/// Pixel supervision from fit to export, and heat maps against masks, for every family and in half precision.
#[test]
fn masks_are_learned_from_and_measured_against() {
    for (case, size, precision) in [
        ("dinov2_hf_98x84", 28, "bf16"),
        ("dinov3_fb_96x64", 32, "f32"),
        ("siglip_hf_98x84", 28, "bf16"),
        ("davit_timm_48x48", 64, "bf16"),
    ] {
        let folder = Folder::new();
        let inside: Vec<f32> = (0..480).map(|v| f32::from(u8::from(v / 120 == 2 && v % 10 < 4))).collect();
        let geometry = Geometry::from_columns([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 6.0]], [0.0; 3]);
        write_nifti(&folder.path("mask.nii"), [10, 12, 4], &inside, &geometry).unwrap();
        let rows = folder.read("data.csv").replace(".nii,1", ".nii,mask.nii,1").replace(".nii,0", ".nii,,0");
        folder.write("data.csv", &rows.replace("image,", "image,mask,"));
        let task = folder.read("task.toml").replace("[28, 28]", &format!("[{size}, {size}]"));
        folder.write("task.toml", &task.replace("lr_head = 1e-2", "lr_head = 1e-2, pixel = { width = 4 }"));
        let mut fit = folder.fit("task.toml", "data.csv");
        fit.extend(["--precision".into(), precision.into()]);
        let at = fit.iter().position(|word| *word == backbone()).unwrap();
        fit[at] = fit[at].replace("dinov2_hf_98x84", case);
        succeed(&strs(&fit));
        for line in folder.read("run/metrics.csv").lines().skip(1) {
            let loss: f64 = line.rsplit(',').next().unwrap().parse().unwrap();
            assert!(loss > 0.0 && loss < 5.0, "{case}: {line}");
        }
        let (run, out, data, csv) =
            (folder.text("run"), folder.text("out"), folder.text("data.csv"), folder.text("p.csv"));
        assert!(
            succeed(&["export", "--run", &run, "--out", &out, "--threads", "1"]).contains("heat map's peak")
        );
        succeed(&["predict", "--run", &run, "--data", &data, "--out", &csv, "--threads", "1"]);
        let table = folder.read("p.csv");
        assert!(
            table
                .lines()
                .next()
                .unwrap()
                .ends_with(",heat:hit,heat:share,heat:dice,heat:level,heat:best-dice")
        );
        // Four of ten columns in one of four slices.
        assert!(table.lines().nth(2).unwrap().contains(",0.1,"), "{table}");
        assert!(table.lines().nth(1).unwrap().ends_with(",,,,,"), "{table}");
        let told = succeed(&["evaluate", "--predictions", &csv]);
        assert!(
            told.contains("heat maps against 1 masks: peak inside") && told.contains("by chance 0.100"),
            "{told}"
        );
    }
    let folder = Folder::new();
    let task = folder.read("task.toml").replace("lr_head = 1e-2", "lr_head = 1e-2, pixel = {}");
    folder.write("pixel.toml", &task);
    refuse(&strs(&folder.fit("pixel.toml", "data.csv")), "no row with split train has a mask");
}

#[test]
fn a_printed_task_file_is_one() {
    let folder = Folder::new();
    let printed = succeed(&["config", "--task", &folder.text("task.toml")]);
    assert!(printed.lines().any(|line| line == "lr_lora = 0.001") && printed.contains("decay_head = 0.0001"));
    folder.write("again.toml", &printed);
    assert_eq!(succeed(&["config", "--task", &folder.text("again.toml")]), printed);
    folder.write("key.toml", "name = 'x'\nrank = 8\n");
    refuse(&["config", "--task", &folder.text("key.toml")], "unknown field `rank`");
}

#[test]
fn folds_and_seeds_are_fitted_summed_up_and_evaluated_by_group() {
    let folder = Folder::new();
    let table = folder.read("data.csv").replace(",val,", ",train,");
    let with_scanner = table.lines().fold(String::new(), |text, line| {
        text + &format!("{line},{}\n", if line.starts_with("id") { "scanner" } else { "M1" })
    });
    folder.write("data.csv", &with_scanner);
    let mut fit = folder.fit("task.toml", "data.csv");
    fit.extend(["--blocks", "1", "--folds", "2", "--seeds", "3,4"].map(String::from));
    let mut one = fit.clone();
    one.extend(["--fold".into(), "1".into()]);
    let told = succeed(&strs(&one));
    assert!(told.contains("   1       3") && !told.contains("   0       3"), "{told}");
    let told = succeed(&strs(&fit));
    assert!(told.contains("test AUROC of 4 runs: "), "{told}");
    assert_eq!(told, succeed(&strs(&fit)), "nothing is left to do");
    for part in ["fold-0/split.csv", "fold-0/seed-4/best.safetensors", "fold-1/seed-3/predictions.csv"] {
        assert!(folder.path("run").join(part).exists(), "{part}");
    }
    let (run, data, csv) = (folder.text("run"), folder.text("data.csv"), folder.text("run/predictions.csv"));
    assert!(told.contains(&succeed(&["summarize", "--runs", &run])));
    let told =
        succeed(&["evaluate", "--predictions", &csv, "--split", "val", "--data", &data, "--by", "scanner"]);
    assert!(told.contains("\nM1       bright      6        3/3"), "{told}");
    refuse(&["evaluate", "--predictions", &csv, "--data", &data, "--by", "sex"], "no column `sex`");
    let told = succeed(&["evaluate", "--predictions", &csv, "--split", "val", "--versus", &csv]);
    assert!(told.ends_with("bright  +0.000 (95 % CI +0.000 to +0.000), p = –\n"), "{told}");
    refuse(&["evaluate", "--predictions", &csv, "--classes", "exclusive"], "exactly one label that holds");
    refuse(&["summarize", "--runs", &folder.text("run/fold-0/seed-3")], "no finished run");
    fit.extend(["--fold".into(), "2".into()]);
    refuse(&strs(&fit), "--fold cannot be used: it is 2, expected 0 to 1");
}

#[test]
fn bad_input_ends_with_code_2_and_one_sentence() {
    let folder = Folder::new();
    let table = std::fs::read_to_string(folder.path("data.csv")).unwrap();
    folder.write("label.csv", &table.replace("s3,train,3.nii,1", "s3,train,3.nii,yes"));
    folder.write("missing.csv", &table.replace("s3,train,3.nii,1", "s3,train,33.nii,1"));
    folder.write("broken.csv", &table.replace("s3,train,3.nii,1", "s3,train,task.toml,1"));
    folder.write("key.toml", "name = 'x'\nrank = 8\n");
    refuse(&strs(&folder.fit("task.toml", "label.csv")), "row 5");
    refuse(&strs(&folder.fit("task.toml", "missing.csv")), "33.nii does not exist");
    refuse(&strs(&folder.fit("task.toml", "none.csv")), "none.csv");
    refuse(&strs(&folder.fit("key.toml", "data.csv")), "unknown field `rank`");
    assert!(!folder.path("run").exists(), "nothing is written before the input was checked");

    let mut fit = folder.fit("task.toml", "data.csv");
    fit.extend(["--device".into(), "gpu".into()]);
    refuse(&strs(&fit), "expected cpu, cuda or cuda:N");
    // A scan is read when its turn comes; no checkpoint is left.
    let output = train(&strs(&folder.fit("task.toml", "broken.csv")));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("the scan of `s3`"), "{message}");
    assert_eq!(message.matches("task.toml").count(), 1, "said once: {message}");
    assert!(!folder.path("run/last.safetensors").exists());

    let (none, out) = (folder.text("none"), folder.text("out"));
    refuse(&["export", "--run", &none, "--out", &out], "best.safetensors");
    refuse(&["evaluate", "--predictions", &none], "none");
    refuse(&["phantom", "--suite", "none", "--out", &out], "none");
    assert!(!folder.path("out").exists());
    assert_eq!(train(&["fit"]).status.code(), Some(2));
    assert_eq!(train(&["compare"]).status.code(), Some(2));
}
