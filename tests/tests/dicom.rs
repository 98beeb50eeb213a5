//! DICOM series, written by the test: every rule by which slices become a volume or are refused.
#![allow(missing_docs, clippy::float_cmp, reason = "a test; the numbers are exact by construction")]

use std::fs;
use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use proptest::prelude::*;
use runtime::volume::{
    AxisCodes, Geometry, Header, ReadOptions, Volume, VolumeError, open, read, write_nifti,
};
use tempfile::TempDir;
use tests::dicom::{SeriesOptions, Syntax, put_short, put_text, write_edited, write_series};

/// A 5 × 4 × 6 volume of which every voxel differs, slices 3 mm apart.
fn scan(codes: &str) -> Volume {
    let dims = [5, 4, 6];
    let codes: AxisCodes = codes.parse().unwrap();
    let voxels = (0..120).map(|n| (n * 7 % 120) as f32).collect();
    Volume::from_parts(dims, voxels, codes.centred([0.5, 0.75, 3.0], dims))
}

fn read_all(folder: &Path) -> Result<Vec<Volume>, VolumeError> {
    read(folder, &ReadOptions::default())
}

fn read_one(folder: &Path) -> Volume {
    let mut volumes = read_all(folder).unwrap();
    assert_eq!(volumes.len(), 1);
    volumes.remove(0)
}

/// Voxels in RAS order.
fn ras(volume: &Volume) -> ([usize; 3], Vec<f32>) {
    let (r, dims) = (volume.reorientation(), volume.dims);
    let [nx, ny, nz] = r.ras_dims(dims);
    let mut out = Vec::with_capacity(nx * ny * nz);
    for z in 0..nz {
        for y in 0..ny {
            for x in 0..nx {
                let [i, j, k] = r.stored_index([x, y, z], dims);
                out.push(volume.voxels[i + dims[0] * (j + dims[1] * k)]);
            }
        }
    }
    ([nx, ny, nz], out)
}

/// Where voxel (0, 0, 0) of the RAS order lies.
fn corner(volume: &Volume) -> [f64; 3] {
    let first = volume.reorientation().stored_index([0; 3], volume.dims);
    volume.geometry.position(first.map(|i| i as f64))
}

fn assert_same(a: &Volume, b: &Volume) {
    assert_eq!(ras(a), ras(b));
    for (x, y) in corner(a).into_iter().zip(corner(b)) {
        assert!((x - y).abs() < 1e-4, "{:?} {:?}", a.geometry, b.geometry);
    }
}

/// The refusal of a series whose slices were edited: bad input, one sentence, no patient.
fn refusal(edit: impl FnMut(usize, &mut InMemDicomObject)) -> String {
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &SeriesOptions::default(), edit).unwrap();
    refusal_of(folder.path())
}

fn refusal_of(folder: &Path) -> String {
    let error = read_all(folder).unwrap_err();
    assert!(error.is_bad_input());
    let message = error.to_string();
    assert!(!message.to_lowercase().contains("secret") && !message.contains("19991231"), "{message}");
    message
}

#[test]
fn all_syntaxes_and_formats_give_the_same_voxels() {
    for syntax in Syntax::ALL {
        for (bits_allocated, bits_stored, signed, rescale) in [
            (8, 8, false, (1.0, 0.0)),
            (8, 7, true, (1.0, 60.0)),
            (16, 12, false, (0.5, -3.0)),
            (16, 12, true, (-2.0, 40.0)),
            (16, 16, true, (1.0, -1024.0)),
            (32, 32, false, (1.0, 0.0)),
            (32, 24, true, (0.25, 0.0)),
        ] {
            for monochrome1 in [false, true] {
                let options = SeriesOptions {
                    syntax,
                    bits_allocated,
                    bits_stored,
                    signed,
                    monochrome1,
                    rescale,
                    ..SeriesOptions::default()
                };
                let mut written = scan("LPS");
                if rescale.0 == -2.0 {
                    written.voxels.iter_mut().for_each(|v| *v *= 2.0);
                }
                let folder = TempDir::new().unwrap();
                write_series(folder.path(), &written, &options).unwrap();
                let found = read_one(folder.path());
                assert_eq!(found.voxels, written.voxels, "{options:?}");
                assert_eq!(found.geometry, written.geometry, "{options:?}");
                assert!(found.warnings.is_empty(), "{options:?} {:?}", found.warnings);
            }
        }
    }
}

#[test]
fn what_is_not_about_the_patient_is_kept() {
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &SeriesOptions { shuffle: true, ..SeriesOptions::default() })
        .unwrap();
    let volume = read_one(folder.path());
    let source = &volume.source;
    assert_eq!(source.modality.as_deref(), Some("MR"));
    assert_eq!(source.body_part.as_deref(), Some("HEAD"));
    assert_eq!(source.study_uid.as_deref(), Some("1.2.826.0.1.3680043.10.99"));
    assert_eq!(source.series_uid.as_deref(), Some("1.2.826.0.1.3680043.10.99.1"));
    assert_eq!(source.instances[0], "1.2.826.0.1.3680043.10.99.1.1");
    assert_eq!(source.instances[5], "1.2.826.0.1.3680043.10.99.1.6");
    let shown = format!("{volume:?}").to_lowercase();
    assert!(!shown.contains("secret") && !shown.contains("19991231"), "{shown}");
}

#[test]
fn a_header_has_what_rules_ask_for_and_no_patient() {
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("PIR"), &SeriesOptions::default(), |_, slice| {
        put_text(slice, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 100");
        let latin1 = PrimitiveValue::from(b"Sch\xe4del T1 ".as_slice());
        slice.put(DataElement::new(tags::SERIES_DESCRIPTION, VR::LO, latin1));
        put_text(slice, tags::PROTOCOL_NAME, VR::LO, "Kopf");
        put_text(slice, tags::CONTRAST_BOLUS_AGENT, VR::LO, "None");
        put_text(slice, tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\M ");
        put_text(slice, tags::IMAGES_IN_ACQUISITION, VR::IS, "6");
    })
    .unwrap();
    let header = Header::read(&folder.path().join("0000000004.dcm")).unwrap();
    assert_eq!(header.series_description.as_deref(), Some("Schädel T1"));
    assert_eq!(header.protocol_name.as_deref(), Some("Kopf"));
    assert_eq!(header.body_part.as_deref(), Some("HEAD"));
    assert_eq!(header.sop_uid, "1.2.826.0.1.3680043.10.99.1.5");
    assert_eq!(header.study_uid.as_deref(), Some("1.2.826.0.1.3680043.10.99"));
    assert_eq!(header.image_type, ["ORIGINAL", "PRIMARY", "M"]);
    assert_eq!((header.images_in_acquisition, header.slice_thickness), (Some(6), Some(3.0)));
    assert_eq!(header.plane(), Some(firmware_config::Plane::Sagittal));
    assert!(header.is_image && !header.contrast_agent);
    let shown = format!("{header:?}").to_lowercase();
    assert!(!shown.contains("secret") && !shown.contains("19991231"), "{shown}");
}

#[test]
fn neither_names_nor_order_of_files_matter() {
    let [plain, shuffled] = [false, true].map(|shuffle| {
        let folder = TempDir::new().unwrap();
        write_series(folder.path(), &scan("LPS"), &SeriesOptions { shuffle, ..SeriesOptions::default() })
            .unwrap();
        read_one(folder.path())
    });
    assert_eq!(plain.voxels, shuffled.voxels);
    assert_eq!(plain.geometry, shuffled.geometry);
    assert_eq!(plain.source.digest, shuffled.source.digest);
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &SeriesOptions::default(), |_, slice| {
        put_text(slice, tags::BODY_PART_EXAMINED, VR::CS, "NECK");
    })
    .unwrap();
    assert_ne!(read_one(folder.path()).source.digest, plain.source.digest);
}

#[test]
fn a_folder_is_split_by_series() {
    let folder = TempDir::new().unwrap();
    for (uid, codes) in [("1.2.9", "LPS"), ("1.2.3", "PIR")] {
        let options = SeriesOptions { series_uid: uid.into(), ..SeriesOptions::default() };
        let part = TempDir::new().unwrap();
        write_series(part.path(), &scan(codes), &options).unwrap();
        for file in fs::read_dir(part.path()).unwrap() {
            let (path, name) = (file.as_ref().unwrap().path(), file.as_ref().unwrap().file_name());
            fs::copy(path, folder.path().join(format!("{uid}-{}", name.display()))).unwrap();
        }
    }
    let volumes = read_all(folder.path()).unwrap();
    let uids: Vec<_> = volumes.iter().map(|v| v.source.series_uid.as_deref().unwrap()).collect();
    assert_eq!(uids, ["1.2.3", "1.2.9"]);
    assert_same(&volumes[0], &scan("PIR"));
    assert_same(&volumes[1], &scan("LPS"));
    // A hole spoils its series, not the other one.
    fs::remove_file(folder.path().join("1.2.3-0000000002.dcm")).unwrap();
    assert!(refusal_of(folder.path()).contains("no single volume"));
    let mut scans = open(folder.path(), &ReadOptions::default()).unwrap();
    assert_eq!(scans.len(), 2);
    assert!(matches!(scans.next(), Some(Err(VolumeError::Series { .. }))));
    assert_same(&scans.next().unwrap().unwrap(), &scan("LPS"));
    assert!(scans.next().is_none());
}

#[test]
fn holes_are_told() {
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &SeriesOptions::default()).unwrap();
    fs::remove_file(folder.path().join("0000000002.dcm")).unwrap();
    let message = refusal_of(folder.path());
    assert!(
        message.contains("slices are 3.000 mm apart, but 0000000001.dcm and 0000000003.dcm 6.000 mm"),
        "{message}"
    );
    assert!(message.contains("as if 1 were missing"), "{message}");
    // Three slices of which the steps differ by half.
    let message = refusal(|k, slice| {
        let z = [0.0, 3.0, 6.0, 9.0, 12.0, 16.5][k];
        put_text(slice, tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("0\\0\\{z}"));
    });
    assert!(message.contains("4.500 mm"), "{message}");
    // Rounding as scanners do it is no hole.
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &SeriesOptions::default(), |k, slice| {
        let z = [0.0, 2.9, 5.95, 8.95, 11.9, 15.0][k];
        put_text(slice, tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("0\\0\\{z}"));
    })
    .unwrap();
    assert!((read_one(folder.path()).spacing()[2] - 3.0).abs() < 1e-9);
}

#[test]
fn repeated_instances_are_dropped_and_contradictory_ones_refused() {
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &SeriesOptions::default()).unwrap();
    fs::copy(folder.path().join("0000000002.dcm"), folder.path().join("copy")).unwrap();
    let volume = read_one(folder.path());
    assert_eq!(volume.voxels, scan("LPS").voxels);
    assert_eq!(volume.warnings.len(), 1);
    assert!(volume.warnings[0].contains("repeat the SOP Instance UID"), "{:?}", volume.warnings);

    let message = refusal(|k, slice| {
        if k == 3 {
            put_text(slice, tags::SOP_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.99.1.1");
        }
    });
    assert!(
        message.contains("0000000000.dcm and 0000000003.dcm differ under one SOP Instance UID"),
        "{message}"
    );
    let message = refusal(|_, slice| put_text(slice, tags::IMAGE_POSITION_PATIENT, VR::DS, "0\\0\\0"));
    assert!(message.contains("different slices at one position"), "{message}");
}

#[test]
fn slices_that_do_not_belong_together_are_refused() {
    let odd = |tag, vr, value: &'static str| {
        refusal(move |k, slice| {
            if k == 2 {
                put_text(slice, tag, vr, value);
            }
        })
    };
    let message = odd(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "0\\1\\0\\-1\\0\\0");
    assert!(
        message.contains("ImageOrientationPatient is") && message.contains("0000000002.dcm"),
        "{message}"
    );
    let message = odd(tags::PIXEL_SPACING, VR::DS, "0.8\\0.5");
    assert!(message.contains("PixelSpacing is") && message.contains("0000000002.dcm"), "{message}");
    let message = odd(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
    assert!(message.contains("PhotometricInterpretation is MONOCHROME"), "{message}");
    let message = refusal(|k, slice| {
        if k == 2 {
            put_short(slice, tags::ROWS, 3);
        }
    });
    assert!(message.contains("Rows × Columns is") && message.contains("3 × 5"), "{message}");
    let message = odd(tags::IMAGE_POSITION_PATIENT, VR::DS, "9\\9\\-1.5");
    assert!(message.contains("beside the line of the other slices"), "{message}");
}

#[test]
fn a_tilted_gantry_is_refused() {
    let message = refusal(|k, slice| {
        let (y, z) = (k as f64, 3.0 * k as f64);
        put_text(slice, tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("0\\{y}\\{z}"));
    });
    assert!(message.contains("18.4° off their normal, as with a tilted gantry"), "{message}");
}

#[test]
fn other_kinds_are_refused_by_name() {
    let text = |tag, vr, value: &'static str| refusal(move |_, slice| put_text(slice, tag, vr, value));
    let message = refusal(|_, slice| {
        put_short(slice, tags::SAMPLES_PER_PIXEL, 3);
        put_text(slice, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB");
    });
    assert!(message.contains("colour image (3 samples a pixel, RGB)"), "{message}");
    assert!(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "PALETTE COLOR").contains("PALETTE COLOR"));
    assert!(text(tags::NUMBER_OF_FRAMES, VR::IS, "6").contains("multi-frame"));
    let enhanced = text(tags::SOP_CLASS_UID, VR::UI, "1.2.840.10008.5.1.4.1.1.4.1");
    assert!(enhanced.contains("PerFrameFunctionalGroupsSequence (5200,9230) has 0 items"), "{enhanced}");
    assert!(text(tags::RESCALE_SLOPE, VR::DS, "0").contains("RescaleSlope (0028,1053) is 0"));
    assert!(text(tags::RESCALE_SLOPE, VR::DS, "1e300").contains("32-bit floats"));
    assert!(text(tags::RESCALE_SLOPE, VR::DS, "nan").contains("RescaleSlope (0028,1053) is \"nan\""));
    assert!(text(tags::PIXEL_SPACING, VR::DS, "0\\1").contains("two distances above 0 mm"));
    assert!(text(tags::PIXEL_SPACING, VR::DS, "1").contains("expected 2 numbers"));
    assert!(text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\1\\0\\0").contains("right angles"));
    let short = |tag, value| refusal(move |_, slice| put_short(slice, tag, value));
    assert!(short(tags::ROWS, 0).contains("Rows (0028,0010) is 0"));
    assert!(short(tags::BITS_ALLOCATED, 12).contains("BitsAllocated (0028,0100) is 12"));
    assert!(short(tags::BITS_STORED, 17).contains("BitsStored (0028,0101) is 17"));
    assert!(short(tags::HIGH_BIT, 3).contains("HighBit (0028,0102) is 3"));
    assert!(short(tags::PIXEL_REPRESENTATION, 2).contains("PixelRepresentation (0028,0103) is 2"));
    let message = refusal(|_, slice| {
        slice.remove_element(tags::PIXEL_DATA);
        let value = PrimitiveValue::F32(vec![0.0; 20].into());
        slice.put(DataElement::new(Tag(0x7FE0, 0x0008), VR::OF, value));
    });
    assert!(message.contains("FloatPixelData (7FE0,0008)"), "{message}");
    let message = refusal(|_, slice| assert!(slice.remove_element(tags::PIXEL_DATA)));
    assert!(message.contains("lacks PixelData (7FE0,0010)"), "{message}");
}

#[test]
fn each_slice_has_its_own_rescale() {
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &scan("LPS"), &SeriesOptions::default(), |k, slice| {
        put_text(slice, tags::RESCALE_SLOPE, VR::DS, &(k + 1).to_string());
        put_text(slice, tags::RESCALE_INTERCEPT, VR::DS, &(-10 * k as i64).to_string());
    })
    .unwrap();
    let found = read_one(folder.path());
    for (n, (found, stored)) in found.voxels.iter().zip(scan("LPS").voxels).enumerate() {
        let k = (n / 20) as f32;
        assert_eq!(*found, stored * (k + 1.0) - 10.0 * k);
    }
}

#[test]
fn inverted_slices_of_different_slope_agree() {
    // The same modality values, stored with slope 1 and 0.5, as MONOCHROME1.
    let flat = Volume::from_parts([2, 2, 2], vec![30.0; 8], scan("LPS").geometry);
    let options = SeriesOptions { bits_stored: 12, signed: false, ..SeriesOptions::default() };
    let folder = TempDir::new().unwrap();
    write_edited(folder.path(), &flat, &options, |k, slice| {
        put_text(slice, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
        if k == 1 {
            put_text(slice, tags::RESCALE_SLOPE, VR::DS, "0.5");
            slice.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(vec![60; 4].into())));
        }
    })
    .unwrap();
    // Values from 0 to 4095 can be stored, so 30 becomes 4065 in both.
    assert_eq!(read_one(folder.path()).voxels, [4065.0; 8]);
}

#[test]
fn bits_beyond_those_stored_are_not_pixels() {
    let options = SeriesOptions { bits_stored: 12, ..SeriesOptions::default() };
    let flat = Volume::from_parts([3, 1, 1], vec![0.0; 3], scan("LPS").geometry);
    let read_raw = |high_bit: u16, raw: [u16; 3]| {
        let folder = TempDir::new().unwrap();
        write_edited(folder.path(), &flat, &options, |_, slice| {
            put_short(slice, tags::HIGH_BIT, high_bit);
            slice.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(raw.as_slice().into())));
        })
        .unwrap();
        read_one(folder.path()).voxels
    };
    // An overlay in the upper bits, the sign in bit 11.
    assert_eq!(read_raw(11, [0x1001, 0xF7FF, 0x0FFF]), [1.0, 2047.0, -1.0]);
    assert_eq!(read_raw(15, [0x0010, 0x7FFF, 0xFFF3]), [1.0, 2047.0, -1.0]);
}

#[test]
fn one_slice_is_a_volume() {
    let flat = Volume::from_parts([5, 4, 1], vec![1.0; 20], scan("PIR").geometry);
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &flat, &SeriesOptions::default()).unwrap();
    let volume = read_one(folder.path());
    assert_eq!(volume.spacing(), [0.5, 0.75, 3.0]);
    assert_eq!(volume.geometry.axis_codes().to_string(), "PIR");
    assert!(volume.warnings[0].contains("SliceThickness"), "{:?}", volume.warnings);
    let file = read(&folder.path().join("0000000000.dcm"), &ReadOptions::default()).unwrap();
    assert_eq!(file[0].voxels, volume.voxels);
}

#[test]
fn strangers_in_a_folder_are_told() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("README.txt"), "hello").unwrap();
    assert!(refusal_of(folder.path()).contains("a folder without a DICOM image"));
    write_series(folder.path(), &scan("LPS"), &SeriesOptions::default()).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("notes"), [1; 500]).unwrap();
    let volume = read_one(folder.path());
    assert_eq!(volume.warnings, ["2 files are not DICOM and were skipped, the first is README.txt"]);
    // What calls itself a slice, or came over empty, may be one that is missing.
    let late = folder.path().join("0000000009.dcm");
    fs::write(&late, [1; 500]).unwrap();
    assert!(refusal_of(folder.path()).contains("0000000009.dcm is not DICOM despite its name"));
    fs::rename(&late, folder.path().join("IM9")).unwrap();
    fs::write(folder.path().join("IM9"), "").unwrap();
    assert!(refusal_of(folder.path()).contains("IM9 is empty"));
}

#[test]
fn pixel_data_that_ends_early_is_told() {
    for syntax in Syntax::ALL {
        let folder = TempDir::new().unwrap();
        write_series(folder.path(), &scan("LPS"), &SeriesOptions { syntax, ..SeriesOptions::default() })
            .unwrap();
        let path = folder.path().join("0000000003.dcm");
        let whole = fs::read(&path).unwrap();
        for cut in [12, 20, 40] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let message = refusal_of(folder.path());
            assert!(message.contains("0000000003.dcm"), "{syntax:?} {message}");
        }
    }
    // Rows × Columns says more than the pixel data holds, in the element itself.
    let message = refusal(|_, slice| put_short(slice, tags::ROWS, 5));
    assert!(message.contains("its pixel data has 40 of 50 bytes"), "{message}");
    let huge = refusal(|_, slice| {
        put_short(slice, tags::ROWS, 65535);
        put_short(slice, tags::COLUMNS, 65535);
    });
    assert!(huge.contains("65535 × 65535"), "{huge}");
}

#[test]
fn other_transfer_syntaxes_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    write_series(folder.path(), &scan("LPS"), &SeriesOptions::default()).unwrap();
    let path = folder.path().join("0000000000.dcm");
    // An equally long UID in place of explicit little endian's "1.2.840.10008.1.2.1\0".
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(20).position(|part| part == b"1.2.840.10008.1.2.1\0").unwrap();
    bytes[at..at + 20].copy_from_slice(b"1.2.840.10008.1.2.9\0");
    fs::write(&path, &bytes).unwrap();
    assert!(refusal_of(folder.path()).contains("the transfer syntax an unknown one (1.2.840.10008.1.2.9)"));
}

#[test]
fn the_same_scan_as_nifti_and_as_dicom() {
    for codes in ["LPS", "RAS", "LAS", "PIR", "SLA", "IRP"] {
        let scan = scan(codes);
        let folder = TempDir::new().unwrap();
        let nifti = folder.path().join("scan.nii.gz");
        write_nifti(&nifti, scan.dims, &scan.voxels, &scan.geometry).unwrap();
        let nifti = read(&nifti, &ReadOptions::default()).unwrap().remove(0);
        let series = TempDir::new().unwrap();
        write_series(series.path(), &scan, &SeriesOptions { shuffle: true, ..SeriesOptions::default() })
            .unwrap();
        assert_same(&nifti, &scan);
        assert_same(&read_one(series.path()), &scan);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// A marker at a place in the patient is found there, however the scan lies and is stored, as NIfTI and as DICOM.
    #[test]
    fn a_marker_stays_where_it_is(
        angles in prop::array::uniform3(-180.0..180.0f64),
        mirrored in any::<bool>(),
        marker in prop::array::uniform3(0usize..4),
        syntax in prop::sample::select(Syntax::ALL.to_vec()),
    ) {
        let dims = [4, 5, 6];
        let mut steps = [[1.5, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, if mirrored { -3.0 } else { 3.0 }]];
        for (axis, angle) in angles.iter().enumerate() {
            let (sin, cos) = angle.to_radians().sin_cos();
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            for step in &mut steps {
                (step[a], step[b]) = (cos * step[a] - sin * step[b], sin * step[a] + cos * step[b]);
            }
        }
        let mut voxels = vec![0.0; 120];
        voxels[marker[0] + 4 * (marker[1] + 5 * marker[2])] = 100.0;
        let scan = Volume::from_parts(dims, voxels, Geometry::from_columns(steps, [10.0, -20.0, 30.0]));
        let place = scan.geometry.position(marker.map(|i| i as f64));

        let folder = TempDir::new().unwrap();
        let nifti = folder.path().join("scan.nii");
        write_nifti(&nifti, dims, &scan.voxels, &scan.geometry).unwrap();
        let series = TempDir::new().unwrap();
        write_series(series.path(), &scan, &SeriesOptions { syntax, ..SeriesOptions::default() }).unwrap();
        for volume in [read(&nifti, &ReadOptions::default()).unwrap().remove(0), read_one(series.path())] {
            let at = volume.voxels.iter().position(|&v| v == 100.0).unwrap();
            let [nx, ny, _] = volume.dims;
            let found = [at % nx, at / nx % ny, at / (nx * ny)];
            let there = volume.geometry.position(found.map(|i| i as f64));
            prop_assert!((0..3).all(|r| (there[r] - place[r]).abs() < 1e-3), "{there:?} {place:?}");
            let expected = scan.reorientation().ras_index(marker, dims);
            prop_assert_eq!(volume.reorientation().ras_index(found, volume.dims), expected);
        }
    }

    /// No flipped byte makes the reader panic; what is still read has the size that it says.
    #[test]
    fn spoiled_bytes_never_panic(
        syntax in prop::sample::select(Syntax::ALL.to_vec()),
        spoiled in prop::collection::vec((132usize..1200, any::<u8>()), 1..4),
    ) {
        let folder = TempDir::new().unwrap();
        let flat = Volume::from_parts([5, 4, 1], vec![1.0; 20], scan("LPS").geometry);
        write_series(folder.path(), &flat, &SeriesOptions { syntax, ..SeriesOptions::default() }).unwrap();
        let path = folder.path().join("0000000000.dcm");
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in spoiled {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        fs::write(&path, &bytes).unwrap();
        match read_all(folder.path()) {
            Ok(volumes) => {
                for volume in volumes {
                    prop_assert_eq!(volume.voxels.len(), volume.dims.iter().product::<usize>());
                }
            }
            Err(error) => prop_assert!(error.is_bad_input(), "{}", error),
        }
    }
}
