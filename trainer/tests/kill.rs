//! A fit that is killed, at any moment and more than once, ends with the bits of one that ran through.

#![cfg(unix)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runtime::volume::{Geometry, write_nifti};

const EPOCHS: usize = 12;

/// A folder with eight small scans, `data.csv` and `task.toml`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let geometry = Geometry::from_columns([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 6.0]], [0.0; 3]);
    let mut csv = String::from("id,split,image,bright\n");
    for i in 0..8 {
        let level = 100.0 + 200.0 * (i % 2) as f32;
        let voxels: Vec<f32> = (0..480).map(|v| level + (v * 7 % 31) as f32).collect();
        write_nifti(&folder.path().join(format!("{i}.nii")), [10, 12, 4], &voxels, &geometry).unwrap();
        csv += &format!("s{i},{},{i}.nii,{}\n", ["train", "train", "val", "test"][i / 2], i % 2);
    }
    std::fs::write(folder.path().join("data.csv"), csv).unwrap();
    let task = format!(
        "name = 'bright'\nversion = '0.1.0'\nlabels = ['bright']\nblocks = 2\n\
         recipe = {{ plane = 'axial', size = [28, 28], intensity = {{ kind = 'window', windows = [[0, 400]] }} }}\n\
         [train]\nepochs = {EPOCHS}\nbatch = 2\nlr_lora = 1e-3\nlr_head = 1e-2\nsampling = 'balanced'\n\
         augment = {{ preset = 'paper' }}\nema = 0.9\n"
    );
    std::fs::write(folder.path().join("task.toml"), task).unwrap();
    folder
}

fn start(folder: &Path, run: &Path) -> Child {
    let backbone = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors");
    let path = |name: &str| folder.join(name);
    Command::new(env!("CARGO_BIN_EXE_scanside-train"))
        .args(["fit", "--threads", "1", "--task"])
        .args([path("task.toml"), "--data".into(), path("data.csv"), "--cache".into(), path("cache")])
        .args(["--backbone".into(), backbone, "--out".into(), run.to_owned()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Starts a fit and kills it as soon as `moment` has come; whether that was before its end.
fn killed_when(folder: &Path, run: &Path, moment: impl Fn() -> bool) -> bool {
    let mut child = start(folder, run);
    let patience = Instant::now() + Duration::from_mins(2);
    while !moment() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < patience, "the fit came no further");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap().signal() == Some(9)
}

/// Epochs in a run's metrics.
fn epochs(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.csv")).map_or(0, |text| text.lines().count().saturating_sub(1))
}

/// Name, shape and bytes of every tensor of a checkpoint; what it says of times may differ.
fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, t)| (name.to_owned(), t.shape().to_vec(), t.data().to_vec())).collect();
    tensors.sort();
    tensors
}

/// The metrics but for the seconds.
fn metrics(run: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let seconds = header.iter().position(|name| *name == "seconds").unwrap();
    let row = |line: &str| {
        let cells = line.split(',').enumerate().filter(|(column, _)| *column != seconds);
        cells.map(|(_, cell)| cell.to_owned()).collect()
    };
    text.lines().map(row).collect()
}

#[test]
fn a_fit_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let folder = folder();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let (straight, killed) = (path("straight"), path("killed"));
    assert!(start(folder.path(), &straight).wait().unwrap().success());

    // Before the first checkpoint, while the cache is new; and then wherever it is after so many epochs.
    std::fs::remove_dir_all(path("cache")).unwrap();
    assert!(killed_when(folder.path(), &killed, || killed.join("settings.json").exists()));
    assert!(epochs(&killed) < EPOCHS);
    for after in [1, 2, 5, 9] {
        assert!(killed_when(folder.path(), &killed, || epochs(&killed) >= after), "it ended before");
        assert!(!killed.join("summary.json").exists());
    }
    assert!(start(folder.path(), &killed).wait().unwrap().success());

    assert_eq!(epochs(&killed), EPOCHS);
    for name in ["best.safetensors", "last.safetensors"] {
        assert!(tensors(&straight.join(name)) == tensors(&killed.join(name)), "{name}");
    }
    assert_eq!(metrics(&straight), metrics(&killed));
    let predictions = |run: &Path| std::fs::read(run.join("predictions.csv")).unwrap();
    assert_eq!(predictions(&straight), predictions(&killed));
}
