//! Where a look-alike and what is made of it lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::volume::{Geometry, write_nifti};
use trainer::data::{Cache, Slices, Table};
use trainer::task::Task;

use crate::common::train;

/// A folder for a look-alike, `root`, and for what is made of it, `out`.
pub struct Place(pub tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.root()).unwrap();
        place
    }

    pub fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    pub fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    pub fn text(&self, file: &str, text: &str) {
        let path = self.root().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn nifti(&self, file: &str, dims: [usize; 3], value: impl Fn(usize) -> f32) {
        let path = self.root().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let geometry =
            Geometry::from_columns([[-2.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 3.0]], [0.0; 3]);
        let voxels: Vec<f32> = (0..dims.iter().product()).map(value).collect();
        write_nifti(&path, dims, &voxels, &geometry).unwrap();
    }

    /// Imports; gives what was printed and what was warned of.
    pub fn import(&self, set: &str) -> (String, String) {
        let (root, out) = (self.root().display().to_string(), self.out().display().to_string());
        let output = train(&["import", set, &root, "--out", &out]);
        let [told, warned] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{warned}");
        (told, warned)
    }

    /// Imports what is wrong; gives the sentence.
    pub fn refused(&self, set: &str) -> String {
        let (root, out) = (self.root().display().to_string(), self.out().display().to_string());
        let output = train(&["import", set, &root, "--out", &out]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(2), 1), "{message}");
        assert!(!self.out().join("data.csv").exists());
        message
    }

    /// The task in `folder` of `out`, its table, and the slices of the first row as the trainer prepares them.
    pub fn task(&self, folder: &str) -> (Task, Table, Slices) {
        let folder = self.out().join(folder);
        let task = Task::read(&folder.join("task.toml")).unwrap();
        assert_eq!((task.validate(14), task.validate(16)), (Ok(()), Ok(())));
        let table = Table::read(&folder.join("data.csv"), &task, false).unwrap();
        let study = Cache::new(&table, &task, 0).get(0).unwrap().unwrap();
        let slices = study.views[0].as_deref().unwrap().clone();
        assert_eq!(slices.size, task.recipe.size);
        (task, table, slices)
    }

    pub fn column(&self, table: &str, name: &str) -> BTreeMap<String, String> {
        trainer::data::column(&self.out().join(table), name).unwrap().unwrap()
    }
}

/// The rows' ids with their first target.
pub fn targets(table: &Table) -> Vec<(&str, bool)> {
    table.samples.iter().map(|sample| (sample.id.as_str(), sample.targets[0].unwrap())).collect()
}

/// A tiny backbone.
pub fn backbone() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/reference/backbones/dinov2_hf_98x84/weights.safetensors")
        .display()
        .to_string()
}
