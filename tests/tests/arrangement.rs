//! Slices read one by one, as they come from a scanner, are those of the whole series, bit for bit.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dicom_core::VR;
use dicom_dictionary_std::tags;
use firmware_config::{Crop, Fit, Intensity, Normalize, Plane, Recipe, SliceSelection};
use runtime::recipe::Prepared;
use runtime::tensor::sha256;
use runtime::volume::{
    Arrangement, AxisCodes, FileRead, Instance, ReadOptions, Volume, VolumeError, read, series_digest,
};
use tempfile::TempDir;
use tests::dicom::enhanced::write_enhanced;
use tests::dicom::{SeriesOptions, put_text, write_edited, write_series};

fn scan(codes: &str) -> Volume {
    let dims = [20, 16, 6];
    let codes: AxisCodes = codes.parse().unwrap();
    let voxels = (0..1920).map(|n| (n * 7 % 1920) as f32).collect();
    Volume::from_parts(dims, voxels, codes.centred([0.5, 0.75, 3.0], dims))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    // Not the order of the slices.
    files.sort_by_key(|path| sha256(path.to_string_lossy().as_bytes()));
    files
}

/// What a service has of a series: its instances, each slice by UID and frame, and the digests of the files.
struct Received {
    instances: Vec<Instance>,
    slices: BTreeMap<(String, usize), Volume>,
    digests: Vec<String>,
    odd: BTreeMap<String, (String, PathBuf)>,
}

fn receive(folder: &Path) -> Received {
    let mut received = Received {
        instances: Vec::new(),
        slices: BTreeMap::new(),
        digests: Vec::new(),
        odd: BTreeMap::new(),
    };
    for path in files(folder) {
        let instance = Instance::open(&path).unwrap();
        let read = instance.read_slices(|frame, volume| {
            received.slices.insert((instance.sop_uid().to_owned(), frame), volume);
        });
        let FileRead { sha256: digest, odd } = read.unwrap();
        assert_eq!(digest, sha256(&std::fs::read(&path).unwrap()));
        received.digests.push(digest);
        received.odd.extend(odd.map(|odd| (instance.sop_uid().to_owned(), (odd, path))));
        received.instances.push(instance);
    }
    received
}

/// Arranges a folder slice by slice and compares with the reader of whole series; how many slices stand alone.
fn compare(folder: &Path) -> usize {
    let whole = read(folder, &ReadOptions::default()).unwrap().remove(0);
    let Received { instances, slices, digests, odd } = receive(folder);
    let arrangement = Arrangement::new(folder, instances).unwrap();
    assert_eq!(arrangement.dims(), whole.dims);
    assert_eq!(*arrangement.geometry(), whole.geometry);
    let odd = odd.values().map(|(odd, path)| (odd.clone(), path.as_path()));
    assert_eq!(arrangement.warnings(odd), whole.warnings);
    let ascending = arrangement.ascending();
    let source = arrangement.source(series_digest(digests));
    assert_eq!(source.digest, whole.source.digest);
    assert_eq!((&source.instances, &source.frames), (&whole.source.instances, &whole.source.frames));
    assert_eq!(source.modality, whole.source.modality);
    let again = arrangement.read().unwrap();
    assert!(again.voxels == whole.voxels && again.source.digest == whole.source.digest);

    let recipe = streamable();
    let prepared = Prepared::new(&whole, &recipe).unwrap();
    let pixels = whole.dims[0] * whole.dims[1];
    let [mut expected, mut found] = [vec![0.0; 3 * 28 * 28], vec![0.0; 3 * 28 * 28]];
    let mut alone = 0;
    for (k, (instance, frame)) in arrangement.slices().enumerate() {
        let slice = &slices[&(instance.sop_uid().to_owned(), frame)];
        assert_eq!(slice.dims, [whole.dims[0], whole.dims[1], 1]);
        if !arrangement.stands_alone(k) {
            continue;
        }
        alone += 1;
        assert!(slice.voxels == whole.voxels[k * pixels..(k + 1) * pixels], "slice {k}");
        // And so is what the network is given.
        let index = (0..whole.dims[2])
            .find(|&s| {
                prepared.instance(s) == Some(instance.sop_uid())
                    && prepared.frame_number(s).is_none_or(|number| number as usize == frame + 1)
            })
            .unwrap();
        assert_eq!(ascending[index], k);
        prepared.write_slice(index, &mut expected);
        Prepared::new(slice, &recipe).unwrap().write_slice(0, &mut found);
        assert!(found == expected, "slice {k} prepared");
    }
    alone
}

/// A recipe by which a slice's input depends on that slice alone.
fn streamable() -> Recipe {
    let recipe = Recipe {
        plane: Plane::Acquisition,
        size: [28, 28],
        fit: Fit::Pad,
        crop: Crop::None,
        slices: SliceSelection::All,
        intensity: Intensity::Window { windows: vec![[0.0, 1500.0]] },
        normalize: Normalize::Imagenet,
    };
    assert!(recipe.streamable());
    recipe
}

#[test]
fn slices_of_written_series() {
    for codes in ["LPS", "RAS", "PIR", "SLA", "IRP"] {
        let folder = TempDir::new().unwrap();
        let options = SeriesOptions { rescale: (0.5, -7.0), ..SeriesOptions::default() };
        write_series(folder.path(), &scan(codes), &options).unwrap();
        assert_eq!(compare(folder.path()), 6, "{codes}");
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("frames.dcm");
        write_enhanced(&path, &scan(codes), &options, &[3, 0, 5, 1, 4, 2], |_| ()).unwrap();
        assert_eq!(compare(folder.path()), 6, "{codes}, enhanced");
    }
}

#[test]
fn slices_of_a_real_series() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans/pydicom/dicomdirtests");
    assert_eq!(compare(&folder.join("98892001/CT5N")), 5);
}

#[test]
fn inverted_slices_need_the_range_of_their_series() {
    let options = SeriesOptions { monochrome1: true, ..SeriesOptions::default() };
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &options).unwrap();
    // All can store the same, so each knows it.
    assert_eq!(compare(folder.path()), 6);
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &options, |k, slice| {
        put_text(slice, tags::RESCALE_SLOPE, VR::DS, ["1", "2"][k % 2]);
    })
    .unwrap();
    assert!(files(folder.path()).iter().all(|path| Instance::open(path).unwrap().is_inverted()));
    // Those with the widest range have that of the series; the others do not.
    assert_eq!(compare(folder.path()), 3);
}

#[test]
fn decimals_that_differ_keep_a_slice_from_standing_alone() {
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &SeriesOptions::default(), |k, slice| {
        if k == 4 {
            put_text(slice, tags::PIXEL_SPACING, VR::DS, "0.75\\0.50001");
        }
    })
    .unwrap();
    assert_eq!(compare(folder.path()), 5);
}

#[test]
fn what_is_no_series_is_refused_as_when_read() {
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &SeriesOptions::default()).unwrap();
    let mut instances: Vec<Instance> =
        files(folder.path()).iter().map(|path| Instance::open(path).unwrap()).collect();
    assert_eq!((instances[0].slices(), instances[0].series_uid()), (1, "1.2.826.0.1.3680043.10.99.1"));
    let message = |instances: Vec<Instance>| match Arrangement::new(folder.path(), instances) {
        Err(error @ VolumeError::Series { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(message(Vec::new()).contains("it has no image"));
    // The same file again is no second slice.
    let twice = [instances.clone(), instances.clone()].concat();
    let arrangement = Arrangement::new(folder.path(), twice).unwrap();
    assert_eq!((arrangement.dims()[2], arrangement.instances().len()), (6, 6));
    assert!(arrangement.warnings([])[0].starts_with("6 files repeat"));
    let other = TempDir::new().unwrap();
    let options = SeriesOptions { series_uid: "1.2.3".into(), ..SeriesOptions::default() };
    write_series(other.path(), &scan("LPS"), &options).unwrap();
    let stranger = Instance::open(&files(other.path())[0]).unwrap();
    assert!(message([instances.clone(), vec![stranger]].concat()).contains("are of different series"));
    let inner = |i: &Instance| i.sop_uid().ends_with(".3");
    instances.retain(|instance| !inner(instance));
    assert!(message(instances).contains("as if 1 were missing"));
}
