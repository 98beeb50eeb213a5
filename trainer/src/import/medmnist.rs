//! MedMNIST's 3D data sets.
//!
//! The layout (Yang et al., Scientific Data 2023, <https://doi.org/10.1038/s41597-022-01721-8>): one `.npz` file with
//! `train_images`, `val_images`, `test_images`, uint8 `[N, D, H, W]`, and `train_labels`, `val_labels`, `test_labels`, `[N, 1]`
//! (one of K classes) or `[N, L]` (0 or 1 for each of L labels).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ndarray::{Array2, Array4, Axis};
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpzError};
use runtime::volume::{Geometry, write_nifti};

use super::folder::{self, Row};
use super::{Imported, wrong};
use crate::Error;
use crate::data::Split;

/// The sides that a voxel gets, since the files say nothing of it, in mm.
const SPACING_MM: f64 = 1.0;

/// One split's arrays.
struct Part {
    split: Split,
    images: Array4<u8>,
    labels: Array2<i64>,
}

/// What label arrays mean as columns of 0 and 1.
enum Meaning {
    /// `[N, 1]` of 0 and 1, or `[N, L]`: a column each.
    Columns(usize),
    /// `[N, 1]` of 0 to K - 1: a column a class.
    Classes(usize),
}

/// Writes each volume of the MedMNIST file `npz` to `out/images` (NIfTI), and `data.csv` and `task.toml` ready for `fit`.
///
/// The array's axes are taken as slices, rows and columns of isotropic voxels of 1 mm, along S, A and R: the files hold no
/// geometry, so that sides and sizes in mm mean nothing. `names` are the label columns; by default `label`, `label_0` …, or
/// `class_0` … where one of several classes holds.
pub(super) fn import(npz: &Path, out: &Path, names: &[String]) -> Result<Imported, Error> {
    let parts = read(npz)?;
    let meaning = meaning(npz, &parts)?;
    let labels = labels(npz, &meaning, names)?;
    let task = task(npz, &meaning, &labels);
    let text = toml::to_string(&task).map_err(|e| Error::io("task.toml")(std::io::Error::other(e)))?;
    folder::checked(npz, &text)?;

    let images = out.join("images");
    std::fs::create_dir_all(&images).map_err(Error::io(&images))?;
    let axis = |i: usize| std::array::from_fn(|j| if i == j { SPACING_MM } else { 0.0 });
    let geometry = Geometry::from_columns([axis(0), axis(1), axis(2)], [0.0; 3]);
    let mut rows = Vec::new();
    for Part { split, images, labels: found } in &parts {
        let (_, depth, height, width) = images.dim();
        for (i, (image, found)) in images.outer_iter().zip(found.outer_iter()).enumerate() {
            let id = format!("{}-{i:05}", split.name());
            let file = format!("images/{id}.nii.gz");
            // Both have their last, or first, axis the fastest.
            let voxels: Vec<f32> = image.iter().map(|&x| f32::from(x)).collect();
            write_nifti(&out.join(&file), [width, height, depth], &voxels, &geometry)
                .map_err(runtime::Error::from)?;
            let targets = match meaning {
                Meaning::Columns(_) => found.iter().map(|&x| x == 1).collect(),
                Meaning::Classes(classes) => (0..classes).map(|class| found[0] == class as i64).collect(),
            };
            let (image, split) = (file.into(), *split);
            rows.push(Row { id, patient: None, split, image, mask: None, targets, extra: Vec::new() });
        }
    }
    let made = folder::write(npz, out, &text, &[], &rows, &[])?;
    Ok(Imported { tasks: vec![made], notes: Vec::new() })
}

fn read(path: &Path) -> Result<Vec<Part>, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut npz = NpzReader::new(BufReader::new(file))
        .map_err(|e| wrong(path, format!("it is no .npz file ({e}), expected one of MedMNIST")))?;
    let names = npz.names().map_err(|e| wrong(path, format!("it is damaged ({e}); get the file again")))?;
    let mut parts = Vec::new();
    for split in [Split::Train, Split::Val, Split::Test] {
        let [images, labels] = ["images", "labels"].map(|what| format!("{}_{what}", split.name()));
        for name in [&images, &labels] {
            if !names.contains(name) {
                let found = names.join(", ");
                return Err(wrong(path, format!("it has no array `{name}`, only {found}")));
            }
        }
        let failed = |name: &str, expected: &str, e: ReadNpzError| match e {
            ReadNpzError::Npy(ReadNpyError::WrongNdim(_, found)) => {
                wrong(path, format!("its `{name}` has {found} axes, expected {expected}"))
            }
            ReadNpzError::Npy(ReadNpyError::WrongDescriptor(found)) => {
                wrong(path, format!("its `{name}` has the type {found}, expected {expected}"))
            }
            e => wrong(path, format!("its `{name}` is damaged ({e}); get the file again")),
        };
        let images: Array4<u8> = npz
            .by_name(&images)
            .map_err(|e| failed(&images, "uint8 [N, D, H, W], as in the data sets named ...mnist3d", e))?;
        // Written as uint8; NumPy's own integers are taken too.
        let of = |e| failed(&labels, "uint8 or int64 [N, 1] or [N, L]", e);
        let labels = match npz.by_name::<ndarray::OwnedRepr<u8>, _>(&labels) {
            Ok(found) => found.mapv(i64::from),
            Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => npz.by_name(&labels).map_err(of)?,
            Err(e) => return Err(of(e)),
        };
        parts.push(Part { split, images, labels });
    }
    Ok(parts)
}

/// Checks the arrays against each other and says what the labels mean.
fn meaning(path: &Path, parts: &[Part]) -> Result<Meaning, Error> {
    let first = &parts[0];
    for Part { split, images, labels } in parts {
        let name = split.name();
        if images.len_of(Axis(0)) != labels.nrows() {
            let (n, m) = (images.len_of(Axis(0)), labels.nrows());
            return Err(wrong(
                path,
                format!("`{name}_images` has {n} volumes, but `{name}_labels` {m} rows"),
            ));
        }
        if images.shape()[1..] != first.images.shape()[1..] || labels.ncols() != first.labels.ncols() {
            return Err(wrong(path, format!("its {name} arrays have other shapes than its train arrays")));
        }
        if images.shape()[1..].contains(&0) || labels.ncols() == 0 {
            return Err(wrong(path, format!("its {name} arrays have an axis of length 0")));
        }
    }
    let all = || parts.iter().flat_map(|part| part.labels.iter().copied());
    let (least, greatest) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
    match first.labels.ncols() {
        1 if least >= 0 && (2..=999).contains(&greatest) => Ok(Meaning::Classes(greatest as usize + 1)),
        columns if least >= 0 && greatest <= 1 => Ok(Meaning::Columns(columns)),
        columns => Err(wrong(
            path,
            format!(
                "its labels [N, {columns}] run from {least} to {greatest}, expected classes from 0 in one column, or 0 and 1"
            ),
        )),
    }
}

fn labels(path: &Path, meaning: &Meaning, names: &[String]) -> Result<Vec<String>, Error> {
    let (count, stem) = match *meaning {
        Meaning::Columns(1) if names.is_empty() => return Ok(vec!["label".into()]),
        Meaning::Columns(count) => (count, "label"),
        Meaning::Classes(count) => (count, "class"),
    };
    match names.len() {
        0 => Ok((0..count).map(|i| format!("{stem}_{i}")).collect()),
        n if n == count => Ok(names.to_vec()),
        n => Err(wrong(path, format!("{n} names were given for its {count} label columns"))),
    }
}

/// A task file to begin with: what has no default.
fn task(path: &Path, meaning: &Meaning, labels: &[String]) -> toml::Table {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut task = toml::toml! {
        name = ""
        version = "0.1.0"
        labels = []
        recipe = { plane = "axial", size = [112, 112], intensity = { kind = "window", windows = [[0, 255]] } }
    };
    task.insert("name".into(), name.trim_matches('-').into());
    task.insert("labels".into(), labels.to_vec().into());
    if matches!(meaning, Meaning::Classes(_)) {
        task.insert("loss".into(), toml::toml! { kind = "ce" }.into());
    }
    task
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use std::path::PathBuf;

    use ndarray::{Array, Array3, arr2};
    use ndarray_npy::NpzWriter;
    use runtime::volume::{ReadOptions, read};

    use super::*;
    use crate::data::Table;
    use crate::loss::Loss;
    use crate::task::Task;

    fn images(n: usize) -> Array4<u8> {
        Array::from_shape_fn((n, 2, 3, 4), |(n, k, j, i)| (100 * n + 20 * k + 5 * j + i) as u8)
    }

    /// Writes the six arrays, `labels` of train, val and test.
    fn npz(folder: &Path, labels: [Array2<u8>; 3], compressed: bool) -> PathBuf {
        let path = folder.join("Tiny_mnist3d.npz");
        let file = File::create(&path).unwrap();
        let mut npz = if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
        for (split, labels) in ["train", "val", "test"].into_iter().zip(labels) {
            npz.add_array(format!("{split}_images"), &images(labels.nrows())).unwrap();
            npz.add_array(format!("{split}_labels"), &labels).unwrap();
        }
        npz.finish().unwrap();
        path
    }

    fn binary() -> [Array2<u8>; 3] {
        [arr2(&[[1], [0]]), arr2(&[[0]]), arr2(&[[1]])]
    }

    #[test]
    fn volumes_and_labels_come_through_with_their_axes() {
        for compressed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            let imported = import(&npz(folder.path(), binary(), compressed), &out, &[]).unwrap();
            let expected = "volumes; labels label\n  train: 2 volumes; positive label 1\n  val: 1 volumes; positive label 0\n  \
                            test: 1 volumes; positive label 1\n";
            assert!(imported.tasks[0].to_string().ends_with(expected), "{}", imported.tasks[0]);
            let csv = std::fs::read_to_string(out.join("data.csv")).unwrap();
            let expected = "id,split,image,label\ntrain-00000,train,images/train-00000.nii.gz,1\n\
                            train-00001,train,images/train-00001.nii.gz,0\nval-00000,val,images/val-00000.nii.gz,0\n\
                            test-00000,test,images/test-00000.nii.gz,1\n";
            assert_eq!(csv, expected);
            let [volume] =
                &read(&out.join("images/train-00001.nii.gz"), &ReadOptions::default()).unwrap()[..]
            else {
                panic!("one volume")
            };
            assert_eq!((volume.dims, volume.spacing()), ([4, 3, 2], [1.0; 3]));
            // Voxel (i, j, k) is element [k, j, i].
            for (k, j, i) in [(0, 0, 0), (1, 2, 3), (1, 0, 2)] {
                let expected = f32::from(images(2)[[1, k, j, i]]);
                assert!(volume.voxels[i + 4 * (j + 3 * k)] == expected, "{k} {j} {i}");
            }
        }
    }

    #[test]
    fn classes_and_several_labels_become_columns_that_a_fit_takes() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let imported = |labels, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
            let imported = import(&npz(folder.path(), labels, true), &out, &names)?.tasks.remove(0);
            let task = Task::read(&out.join("task.toml"))?;
            assert!(task.validate(14).is_ok() && task.validate(16).is_ok() && task.labels == imported.labels);
            let table = Table::read(&out.join("data.csv"), &task, false)?;
            let targets: Vec<Vec<u8>> = table
                .samples
                .iter()
                .map(|sample| sample.targets.iter().map(|t| u8::from(t.unwrap())).collect())
                .collect();
            Ok::<_, Error>((task, targets))
        };
        let classes = [arr2(&[[2], [0]]), arr2(&[[1]]), arr2(&[[2]])];
        let (task, targets) = imported(classes, &[]).unwrap();
        assert_eq!((task.name.as_str(), task.loss), ("tiny-mnist3d", Loss::Ce));
        assert_eq!(task.labels, ["class_0", "class_1", "class_2"]);
        assert_eq!(targets, [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]);

        let several = || [arr2(&[[1, 1], [0, 1]]), arr2(&[[0, 0]]), arr2(&[[1, 0]])];
        let (task, targets) = imported(several(), &["cyst", "mass"]).unwrap();
        assert_eq!((task.labels, task.loss), (vec!["cyst".to_owned(), "mass".into()], Loss::default()));
        assert_eq!(targets, [[1, 1], [0, 1], [0, 0], [1, 0]]);
        let error = imported(several(), &["cyst"]).unwrap_err();
        assert!(
            error.is_bad_input() && error.to_string().contains("1 names were given for its 2 label columns")
        );
        let error = imported(several(), &["id", "mass"]).unwrap_err().to_string();
        assert!(error.contains("labels is \"id\""), "{error}");
    }

    #[test]
    fn what_is_no_such_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let told = |path: &Path, told: &str| {
            let error = import(path, &out, &[]).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(told), "{error}");
            assert!(!out.exists(), "nothing is written before the file was checked");
        };
        told(&folder.path().join("none.npz"), "none.npz");
        let path = folder.path().join("a.npz");
        std::fs::write(&path, "no archive").unwrap();
        told(&path, "it is no .npz file");
        let with = |add: fn(&mut NpzWriter<File>)| {
            let mut npz = NpzWriter::new(File::create(&path).unwrap());
            add(&mut npz);
            npz.finish().unwrap();
        };
        with(|npz| npz.add_array("train_images", &images(1)).unwrap());
        told(&path, "it has no array `train_labels`, only train_images");
        with(|npz| {
            npz.add_array("train_images", &Array3::<u8>::zeros((1, 28, 28))).unwrap();
            npz.add_array("train_labels", &arr2(&[[0u8]])).unwrap();
        });
        told(&path, "its `train_images` has 3 axes, expected uint8 [N, D, H, W]");
        with(|npz| {
            npz.add_array("train_images", &images(1).mapv(f32::from)).unwrap();
            npz.add_array("train_labels", &arr2(&[[0u8]])).unwrap();
        });
        told(&path, "its `train_images` has the type");
        with(|npz| {
            npz.add_array("train_images", &images(1)).unwrap();
            npz.add_array("train_labels", &arr2(&[[0.5f32]])).unwrap();
        });
        told(&path, "its `train_labels` has the type");
        told(
            &npz(folder.path(), [arr2(&[[1, 2]]), arr2(&[[0, 0]]), arr2(&[[0, 0]])], true),
            "run from 0 to 2",
        );
        let mut bytes = std::fs::read(npz(folder.path(), binary(), true)).unwrap();
        bytes[60] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        told(&path, "damaged");
    }

    #[test]
    fn labels_of_numpys_own_integers_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut npz = NpzWriter::new(File::create(&path).unwrap());
        for (i, split) in ["train", "val", "test"].into_iter().enumerate() {
            npz.add_array(format!("{split}_images"), &images(1)).unwrap();
            npz.add_array(format!("{split}_labels"), &arr2(&[[i as i64]])).unwrap();
        }
        npz.finish().unwrap();
        let imported = import(&path, &folder.path().join("out"), &[]).unwrap();
        assert_eq!(imported.tasks[0].labels.len(), 3);
    }
}
