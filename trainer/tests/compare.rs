//! `scanside-train compare`: cells that are made once, rerun to the same figures, or say why they are empty.

mod common;

use std::path::{Path, PathBuf};

use runtime::volume::{Geometry, write_nifti};
use serde_json::Value;

use common::{succeed, train};

const BACKBONE: &str = "../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors";

struct Folder(tempfile::TempDir);

impl Folder {
    /// A suite of two tasks: `a`, which can be learned, and `b`, whose test volumes are all negative.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let geometry = Geometry::from_columns([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 6.0]], [0.0; 3]);
        for task in ["a", "b"] {
            let at = folder.path("suite").join(task);
            std::fs::create_dir_all(&at).unwrap();
            let mut csv = String::from("id,split,image,bright\n");
            for i in 0..16 {
                let split = ["train", "train", "val", "test"][i / 4];
                let positive = i % 2 == 1 && !(task == "b" && split == "test");
                // Bright in its upper slices, the more so the later it comes.
                let level = |v: usize| 100.0 + if positive && v / 120 > 1 { 10.0 * i as f32 } else { 0.0 };
                let voxels: Vec<f32> = (0..480).map(|v| level(v) + (v * 7 % 31) as f32).collect();
                write_nifti(&at.join(format!("{i}.nii")), [10, 12, 4], &voxels, &geometry).unwrap();
                csv += &format!("s{i},{split},{i}.nii,{}\n", u8::from(positive));
            }
            std::fs::write(at.join("data.csv"), csv).unwrap();
            let text = "name = 'bright'\nversion = '0.1.0'\nlabels = ['bright']\n\
                 recipe = { plane = 'axial', size = [28, 28], intensity = { kind = 'window', windows = [[0, 400]] } }\n\
                 train = { epochs = 1, lr_lora = 1e-3, lr_head = 1e-2 }\n";
            std::fs::write(at.join("task.toml"), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let backbone = Path::new(env!("CARGO_MANIFEST_DIR")).join(BACKBONE);
        let text = |path: PathBuf| path.display().to_string();
        let mut all = vec!["compare".into(), "--threads".into(), "1".into()];
        all.extend(["--suite".into(), text(self.path("suite")), "--out".into(), text(self.path("out"))]);
        all.extend(["--backbone".into(), format!("small={}", text(backbone))]);
        all.extend(more.iter().map(ToString::to_string));
        all
    }

    fn compare(&self, more: &[&str]) -> String {
        let arguments = self.arguments(more);
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("out").join(name)).unwrap()).unwrap()
    }
}

const METHODS: &str = "anymc3d,lora-lstm,probe-mean,anymc3d@none,anymc3d+data=0.5+rank=2,three-planes+targets=patch,resnet18-3d+view=top";

#[test]
fn a_table_is_made_cell_by_cell_and_only_of_what_changed() {
    let folder = Folder::new();
    let methods = ["--methods", METHODS, "--seeds", "0,1"];
    let listed = folder.compare(&[&methods[..], &["--list"]].concat());
    // A probe has no seed.
    assert_eq!(listed.lines().count(), 2 * (6 * 2 + 1), "{listed}");
    assert!(listed.lines().any(|line| line == "a/anymc3d+data=0.5+rank=2/seed-1"), "{listed}");

    let made = folder.compare(&methods);
    let json = folder.json("compare.json");
    let entry = |method: usize, task: usize| &json["methods"][method]["entries"][task];
    assert_eq!(json["tasks"], serde_json::json!(["a", "b"]));
    for method in [0, 1, 4, 5] {
        assert_eq!(entry(method, 0)["seeds"].as_object().unwrap().len(), 2, "{made}");
    }
    assert_eq!(entry(2, 0)["seeds"].as_object().unwrap().len(), 1);
    assert!(entry(0, 0)["ci"].is_array() && entry(2, 0)["ci"].is_array());
    // A query and a mean do not see the order of the slices, an LSTM does.
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-12;
    assert!(close(&entry(0, 0)["auroc"], &entry(0, 0)["shuffled"]));
    assert!(close(&entry(2, 0)["auroc"], &entry(2, 0)["shuffled"]));
    let logits = |cell: &str, name: &str| {
        let text = std::fs::read_to_string(folder.path("out/cells").join(cell).join(name)).unwrap();
        text.lines().filter(|line| line.contains(",test,")).map(String::from).collect::<Vec<_>>()
    };
    let lstm = "a/lora-lstm/seed-0";
    assert_ne!(logits(lstm, "predictions.csv"), logits(lstm, "shuffled.csv"));
    // Empty cells say why, and the table is made all the same.
    let why = entry(0, 1)["empty"]["0"].as_str().unwrap();
    assert!(why.contains("no label has both classes among the test volumes"), "{why}");
    let why = entry(3, 0)["empty"]["1"].as_str().unwrap();
    assert!(why.contains("none is called none") && why.contains("expected one of small"), "{why}");
    let why = entry(6, 0)["empty"]["0"].as_str().unwrap();
    assert!(why.contains("no view top"), "{why}");
    assert!(made.contains("| anymc3d+data=0.5+rank=2 |") && made.contains("## Cost"), "{made}");
    // Rank 2 has a quarter of rank 8's factors.
    let parameters = |method: usize| entry(method, 0)["parameters"].as_u64().unwrap();
    assert!(parameters(4) < parameters(0) && parameters(2) == 49, "{} {}", parameters(4), parameters(2));
    // Of the factors of the patch embedding alone, [3·14·14 + 48] × 8, and the head.
    assert_eq!(parameters(5), (3 * 14 * 14 + 48) * 8 + 49);
    // On both tasks each method has four cells, the probe two; those of task b, without a view or a backbone are empty.
    let counts = |method: usize| {
        let cells = &json["methods"][method]["cells"];
        ["asked", "done", "empty"].map(|key| cells[key].as_u64().unwrap())
    };
    assert_eq!([0, 2, 3, 6].map(counts), [[4, 2, 2], [2, 1, 1], [4, 0, 4], [4, 0, 4]]);
    assert!(made.contains("| all | 9 | 17 | 0 | – | – |"), "{made}");
    let page = std::fs::read_to_string(folder.path("out/compare.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("no figure") && !page.contains("http"), "self-contained");

    // Half of the eight training rows: two of each class.
    let part = std::fs::read_to_string(folder.path("out/data/a+data=0.5.csv")).unwrap();
    let rows = |ending: &str| part.lines().filter(|l| l.contains(",train,") && l.ends_with(ending)).count();
    assert_eq!((rows(",0"), rows(",1"), part.lines().count()), (2, 2, 1 + 4 + 8), "{part}");

    // One cell again gives the same figures, and only what is gone or was empty is made again.
    let cell = "a/anymc3d/seed-1";
    let (before, key) =
        (logits(cell, "predictions.csv"), folder.json(&format!("cells/{cell}/cell.json"))["key"].clone());
    std::fs::remove_dir_all(folder.path("out/cells").join(cell)).unwrap();
    let left = folder.compare(&[&methods[..], &["--list"]].concat());
    let left: Vec<&str> = left
        .lines()
        .filter(|line| !["b/", "@none", "+view"].iter().any(|part| line.contains(part)))
        .collect();
    assert_eq!(left, [cell]);
    assert_eq!(folder.compare(&["--cell", cell]), format!("{cell}: done\n"));
    assert_eq!(logits(cell, "predictions.csv"), before);
    assert_eq!(folder.json(&format!("cells/{cell}/cell.json"))["key"], key);

    // Another task is another cell.
    let task = folder.path("suite/a/task.toml");
    let text = std::fs::read_to_string(&task).unwrap().replace("lr_head = 1e-2", "lr_head = 2e-2");
    std::fs::write(&task, text).unwrap();
    let stale = folder.compare(&[&methods[..], &["--list"]].concat());
    assert!(stale.lines().any(|line| line == cell), "{stale}");
    let tables = folder.compare(&[&methods[..], &["--tables"]].concat());
    assert!(tables.contains("made of another task"), "{tables}");
    assert_eq!(folder.json("compare.json")["methods"][0]["entries"][0]["auroc"], Value::Null);
    // An ablation is a list of methods.
    let listed = folder.compare(&["--ablation", "data,rank", "--list"]);
    assert_eq!(listed.lines().count(), 2 * (1 + 3 + 4 + 4), "{listed}");
}

#[test]
fn wrong_words_are_one_sentence() {
    let folder = Folder::new();
    for (more, told) in [
        (["--methods", "resnet"], "expected one of anymc3d, lora-mean"),
        (["--ablation", "size"], "expected one of pooling, backbone"),
        (["--cell", "a/anymc3d"], "TASK/METHOD/seed-NUMBER"),
        (["--cell", "c/anymc3d/seed-0"], "no task c, expected one of a, b"),
    ] {
        let output = train(&folder.arguments(&more).iter().map(String::as_str).collect::<Vec<_>>());
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(told), "{message}");
    }
    let empty = folder.path("empty").display().to_string();
    std::fs::create_dir(&empty).unwrap();
    let mut arguments = folder.arguments(&[]);
    arguments[4] = empty;
    let output = train(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("holds no task.toml") && output.status.code() == Some(2), "{message}");
}
