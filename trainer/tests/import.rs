//! A MedMNIST file goes from `import` to `fit` and `predict`, through one folder of prepared slices.

mod common;

use std::fs::File;
use std::path::Path;

use ndarray::{Array2, Array4};
use ndarray_npy::NpzWriter;

use common::{succeed, train};

#[test]
fn a_medmnist_file_is_imported_and_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut npz = NpzWriter::new_compressed(File::create(path("tinymnist3d.npz")).unwrap());
    for (split, n) in [("train", 4), ("val", 2), ("test", 2)] {
        let images = Array4::<u8>::from_shape_fn((n, 3, 8, 8), |(n, k, j, i)| {
            (40 + 120 * (n % 2) + 7 * k + 5 * j + 3 * i) as u8
        });
        npz.add_array(format!("{split}_images"), &images).unwrap();
        let labels = Array2::<u8>::from_shape_fn((n, 1), |(n, _)| (n % 2) as u8);
        npz.add_array(format!("{split}_labels"), &labels).unwrap();
    }
    npz.finish().unwrap();

    let told = succeed(&["import", &path("tinymnist3d.npz"), "--out", &path("data"), "--labels", "bright"]);
    assert!(told.contains("8 volumes; labels bright\n  train: 4 volumes; positive bright 2\n"), "{told}");
    succeed(&["import", "medmnist", &path("tinymnist3d.npz"), "--out", &path("named"), "--labels", "bright"]);
    let table = |folder: &str| std::fs::read(path(&format!("{folder}/data.csv"))).unwrap();
    assert_eq!(table("named"), table("data"));
    let task = std::fs::read_to_string(path("data/task.toml")).unwrap();
    assert!(task.contains("size = [112, 112]"), "{task}");
    let small = format!("{}\n[train]\nepochs = 1\n", task.replace("112", "28"));
    std::fs::write(path("task.toml"), small).unwrap();

    let backbone = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors")
        .display()
        .to_string();
    let (data, run, cache) = (path("data/data.csv"), path("run"), path("cache"));
    let task = path("task.toml");
    let fit = ["fit", "--task", &task, "--data", &data, "--backbone", &backbone, "--out", &run];
    succeed(&[&fit[..], &["--threads", "1", "--cache", &cache]].concat());
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 8);
    let predicted =
        succeed(&["predict", "--run", &run, "--data", &data, "--threads", "1", "--cache", &cache]);
    assert_eq!((predicted.lines().count(), std::fs::read_dir(&cache).unwrap().count()), (9, 8));

    let output = train(&["import", &data, "--out", &path("other")]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(2), 1), "{message}");
    assert!(message.contains("data.csv cannot be imported: it is no .npz file"), "{message}");
    assert!(!folder.path().join("other").exists());
}
