#![allow(clippy::float_cmp, reason = "the numbers are exact by construction")]

use super::*;

fn stored(codes: &str) -> Volume {
    let codes: AxisCodes = codes.parse().unwrap();
    Volume::from_parts([2, 3, 4], vec![0.0; 24], codes.centred([1.0, 2.0, 3.0], [2, 3, 4]))
}

#[test]
fn the_third_stored_axis_is_the_acquisition_axis() {
    assert_eq!(stored("LPS").acquisition_plane(), Plane::Axial);
    assert_eq!(stored("LIP").acquisition_plane(), Plane::Coronal);
    assert_eq!(stored("PIR").acquisition_plane(), Plane::Sagittal);
    let observed = stored("PIR").observed();
    assert_eq!((observed.slices, observed.slice_spacing_mm), (4, 3.0));
    assert_eq!(observed.modality, None);
}

#[test]
fn the_digest_of_a_volume_in_memory_tells_volumes_apart() {
    let mut changed = stored("LPS").voxels;
    changed[7] = 1.0;
    let changed = Volume::from_parts([2, 3, 4], changed, stored("LPS").geometry);
    assert_eq!(stored("LPS").source.digest, stored("LPS").source.digest);
    assert_ne!(stored("LPS").source.digest, stored("RAS").source.digest);
    assert_ne!(stored("LPS").source.digest, changed.source.digest);
}

#[test]
fn files_are_told_apart_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = read(&path, &ReadOptions::default()).unwrap_err();
        assert!(error.is_bad_input());
        let message = error.to_string();
        assert!(message.contains(name), "{message}");
        message
    };
    assert!(refused("a.nii", b"").contains("is empty"));
    assert!(refused("b.nii.gz", b"no gzip").contains("not NIfTI despite its name"));
    assert!(refused("c.dcm", b"no DICOM").contains("not DICOM despite its name"));
    assert!(refused("d.txt", &[7; 400]).contains("neither NIfTI nor DICOM"));
    assert!(refused("e.img", &[7; 400]).contains(".hdr/.img pair"));
}

#[test]
fn a_missing_file_is_bad_input() {
    let error = read(Path::new("no/such/scan.nii"), &ReadOptions::default()).unwrap_err();
    assert!(error.is_bad_input());
    assert!(error.to_string().contains("no/such/scan.nii"));
}
