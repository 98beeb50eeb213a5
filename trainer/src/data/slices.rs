use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::Recipe;
use runtime::recipe::Prepared;
use runtime::volume::{ReadOptions, Volume, read};

use super::table::{Sample, Table};
use crate::Error;
use crate::task::Task;

/// What the network sees of one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Slices {
    /// S.
    pub count: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// `[S, 3, H, W]`, C order.
    pub values: Vec<f32>,
    /// `[S, H, W]`, C order: 1 inside the sample's mask, 0 outside and in the padding.
    pub mask: Option<Vec<u8>>,
}

/// What the network sees of one sample: the slices of each of the task's views, or of its only one; `None` for a view that the
/// sample has not.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// In the order of [`Task::inputs`].
    pub views: Vec<Option<Arc<Slices>>>,
}

impl Study {
    /// Reads a sample's scans and prepares all their slices.
    pub fn load(table: &Table, sample: &Sample, task: &Task) -> Result<Self, Error> {
        let load = |(image, (_, recipe)): (&Option<PathBuf>, (_, &Recipe))| {
            image.as_ref().map(|image| Slices::load(table, sample, image, recipe).map(Arc::new)).transpose()
        };
        let views = sample.images.iter().zip(task.inputs()).map(load);
        Ok(Self { views: views.collect::<Result<_, _>>()? })
    }

    /// Of a task without views.
    pub fn of(slices: Slices) -> Self {
        Self { views: vec![Some(slices.into())] }
    }

    /// Number of slices of all views.
    pub fn count(&self) -> usize {
        self.views.iter().flatten().map(|slices| slices.count).sum()
    }

    /// The mask; only a task without views has one.
    pub fn mask(&self) -> Option<&[u8]> {
        self.views.first()?.as_ref()?.mask.as_deref()
    }

    /// Memory that the slices take.
    pub fn bytes(&self) -> usize {
        self.views.iter().flatten().map(|slices| slices.bytes()).sum()
    }
}

impl Slices {
    /// Reads one of a sample's scans and prepares all its slices; its mask too, where it has one.
    pub fn load(table: &Table, sample: &Sample, image: &Path, recipe: &Recipe) -> Result<Self, Error> {
        let volume = single(table, sample, image, "image")?;
        let prepared = Prepared::new(&volume, recipe).map_err(|e| unusable(table, sample, e.into()))?;
        let mut slices = Self::of(&prepared);
        if let Some(path) = &sample.mask {
            let mask = single(table, sample, path, "mask")?;
            let inside = prepared.mask_voxels(&mask).map_err(|e| unusable(table, sample, e.into()))?;
            slices.mask = Some(prepared.nearest(&inside));
        }
        Ok(slices)
    }

    /// All slices of a prepared volume.
    pub fn of(prepared: &Prepared<'_>) -> Self {
        let (count, size) = (prepared.slices(), prepared.size());
        let each = 3 * size[0] * size[1];
        let mut values = vec![0.0; count * each];
        for (s, out) in values.chunks_exact_mut(each).enumerate() {
            prepared.write_slice(s, out);
        }
        Self { count, size, values, mask: None }
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + self.mask.as_ref().map_or(0, Vec::len)
    }
}

/// The error that a sample's scan cannot be used.
pub(crate) fn unusable(table: &Table, sample: &Sample, source: runtime::Error) -> Error {
    let (id, row, table) = (sample.id.clone(), sample.row, table.path.clone());
    Error::Scan { id, row, table, source: Box::new(source) }
}

/// Reads the only volume of a sample's `what`.
pub(crate) fn single(table: &Table, sample: &Sample, path: &Path, what: &str) -> Result<Volume, Error> {
    let mut volumes = read(path, &ReadOptions::default()).map_err(|e| unusable(table, sample, e.into()))?;
    match volumes.pop() {
        Some(volume) if volumes.is_empty() => Ok(volume),
        last => {
            let problem = format!(
                "its {what} {} holds {} series, expected one; give each series its own folder and row",
                path.display(),
                volumes.len() + usize::from(last.is_some())
            );
            Err(Error::Row { path: table.path.clone(), row: sample.row, problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime::volume::{Geometry, write_nifti};

    use super::*;

    #[test]
    fn a_mask_is_prepared_as_its_image_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, dims: [usize; 3], of: fn(usize) -> f32| {
            let voxels: Vec<f32> = (0..dims.iter().product()).map(of).collect();
            let geometry =
                Geometry::from_columns([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [0.0; 3]);
            write_nifti(&path(name), dims, &voxels, &geometry).unwrap();
        };
        // Voxels from 0 to 800, of which those from 400 on are in the mask; whole numbers of voxels a pixel.
        write("a.nii", [3, 4, 2], |i| [0.0, 800.0, 100.0, 700.0, 300.0][i * i % 5]);
        write("m.nii", [3, 4, 2], |i| f32::from(u8::from(i * i % 5 % 2 == 1)));
        write("other.nii", [3, 4, 1], |_| 1.0);
        let rows = "1,train,a.nii,m.nii,1\n2,train,a.nii,,0\n3,train,a.nii,other.nii,1\n";
        std::fs::write(path("data.csv"), format!("id,split,image,mask,x\n{rows}")).unwrap();
        let task: Task = toml::from_str(
            "name = 't'\nversion = '1.0.0'\nlabels = ['x']\n[recipe]\nplane = 'axial'\nsize = [4, 3]\n\
             normalize = 'none'\nintensity = { kind = 'window', windows = [[0, 800]] }",
        )
        .unwrap();
        let mut table = Table::read(&path("data.csv"), &task, false).unwrap();
        let load = |table: &Table, i: usize| {
            Study::load(table, &table.samples[i], &task).map(|mut study| study.views.remove(0).unwrap())
        };
        let slices = load(&table, 0).unwrap();
        let first = slices.values.chunks_exact(12).step_by(3).flatten();
        let expected: Vec<u8> = first.map(|&x| u8::from(x > 0.5)).collect();
        assert!(expected.contains(&0) && expected.contains(&1));
        assert_eq!(slices.mask, Some(expected));
        assert_eq!(slices.bytes(), 2 * 12 * (3 * 4 + 1));
        assert_eq!(load(&table, 1).unwrap().mask, None);
        let error = load(&table, 2).unwrap_err();
        let text = error.to_string();
        assert!(error.is_bad_input() && text.contains("other.nii") && text.contains("a.nii"), "{text}");
        table.keep_masks(|sample| sample.id == "1");
        assert_eq!(load(&table, 2).unwrap().mask, None);
        assert!(table.samples[0].mask.is_some());
    }
}
