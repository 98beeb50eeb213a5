//! Enhanced multi-frame images: frames are slices, or the file is refused with the reason.
#![allow(missing_docs, clippy::float_cmp, reason = "a test; the numbers are exact by construction")]

use std::path::{Path, PathBuf};

use dicom_core::{PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{InMemDicomObject, open_file};
use runtime::volume::{AxisCodes, Header, ReadOptions, Volume, VolumeError, read};
use tempfile::TempDir;
use tests::dicom::enhanced::{Enhanced, put_groups, put_macro, put_number, write_enhanced};
use tests::dicom::{SeriesOptions, Syntax, put_short, put_text, write_series};

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans/pydicom/large").join(name)
}

fn try_read(path: &Path) -> Result<Volume, VolumeError> {
    read(path, &ReadOptions::default()).map(|mut volumes| volumes.remove(0))
}

/// A 5 × 4 × 6 volume of which every voxel differs, slices 3 mm apart.
fn scan(codes: &str) -> Volume {
    let dims = [5, 4, 6];
    let codes: AxisCodes = codes.parse().unwrap();
    let voxels = (0..120).map(|n| (n * 7 % 120) as f32).collect();
    Volume::from_parts(dims, voxels, codes.centred([0.5, 0.75, 3.0], dims))
}

const SHUFFLED: [usize; 6] = [3, 0, 5, 1, 4, 2];

fn written(options: &SeriesOptions, edit: impl FnOnce(&mut Enhanced)) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("enhanced.dcm");
    write_enhanced(&path, &scan("LPS"), options, &SHUFFLED, edit).unwrap();
    (folder, path)
}

fn refusal(edit: impl FnOnce(&mut Enhanced)) -> String {
    let (_folder, path) = written(&SeriesOptions::default(), edit);
    let error = try_read(&path).unwrap_err();
    assert!(error.is_bad_input());
    let message = error.to_string();
    assert!(!message.contains('\n') && !message.to_lowercase().contains("secret"), "{message}");
    message
}

#[test]
fn frames_become_the_slices_of_the_same_volume() {
    for syntax in Syntax::ALL {
        for codes in ["LPS", "PIR", "SLA"] {
            let options = SeriesOptions { syntax, rescale: (0.5, -3.0), ..SeriesOptions::default() };
            let folder = TempDir::new().unwrap();
            write_series(folder.path(), &scan(codes), &options).unwrap();
            let single = try_read(folder.path()).unwrap();
            let other = TempDir::new().unwrap();
            let path = other.path().join("enhanced.dcm");
            write_enhanced(&path, &scan(codes), &options, &SHUFFLED, |_| ()).unwrap();
            let found = try_read(&path).unwrap();
            assert!(found.voxels == single.voxels, "{syntax:?} {codes}");
            assert_eq!((found.dims, found.geometry), (single.dims, single.geometry), "{syntax:?} {codes}");
            assert!(found.warnings.is_empty(), "{:?}", found.warnings);
            // One instance; which of its frames a slice is says the other number.
            assert_eq!(found.source.instance_count(), 1);
            assert_eq!(found.source.instances.len(), 6);
            let slices = found.source.frames.iter().map(|&frame| SHUFFLED[frame as usize - 1]);
            let expected: Vec<usize> = slices.collect();
            let order = expected == [0, 1, 2, 3, 4, 5] || expected == [5, 4, 3, 2, 1, 0];
            assert!(order, "{expected:?}");
            assert!(single.source.frames.is_empty());
        }
    }
}

#[test]
fn a_frames_own_groups_come_before_the_shared_ones() {
    let (_folder, path) = written(&SeriesOptions::default(), |image| {
        for (frame, k) in image.frames.iter_mut().zip(SHUFFLED) {
            let (slope, intercept) = ((k + 1).to_string(), (-10 * k as i64).to_string());
            let rescale =
                [(tags::RESCALE_SLOPE, VR::DS, &*slope), (tags::RESCALE_INTERCEPT, VR::DS, &*intercept)];
            put_macro(frame, tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, &rescale);
        }
        // Outside of any group they mean nothing.
        put_text(&mut image.top, tags::RESCALE_SLOPE, VR::DS, "77");
    });
    let found = try_read(&path).unwrap();
    for (n, (found, stored)) in found.voxels.iter().zip(scan("LPS").voxels).enumerate() {
        let k = (n / 20) as f32;
        assert_eq!(*found, stored * (k + 1.0) - 10.0 * k);
    }
}

#[test]
fn a_series_of_several_files_is_one_volume() {
    let folder = TempDir::new().unwrap();
    for (n, order) in [[0, 2, 4], [1, 3, 5]].iter().enumerate() {
        let path = folder.path().join(format!("{n}.dcm"));
        write_enhanced(&path, &scan("LPS"), &SeriesOptions::default(), order, |image| {
            put_text(&mut image.top, tags::SOP_INSTANCE_UID, VR::UI, &format!("1.2.3.{n}"));
        })
        .unwrap();
    }
    let found = try_read(folder.path()).unwrap();
    assert!(found.voxels == scan("LPS").voxels);
    assert_eq!(found.source.instance_count(), 2);
    assert_eq!(found.source.frames, [1, 1, 2, 2, 3, 3]);
    assert_eq!(found.source.instances[3], "1.2.3.1");
}

#[test]
fn several_volumes_in_one_image_are_told_apart() {
    let split = |put: &dyn Fn(&mut InMemDicomObject, usize)| {
        refusal(|image| image.frames.iter_mut().enumerate().for_each(|(n, frame)| put(frame, n / 3)))
    };
    let content = tags::FRAME_CONTENT_SEQUENCE;
    let message =
        split(&|frame, half| put_macro(frame, content, &[(tags::STACK_ID, VR::SH, ["1", "2"][half])]));
    assert!(
        message
            .contains("it holds several stacks: StackID (0020,9056) is 2 in frame 5 of enhanced.dcm and 1")
            || message.contains("it holds several stacks: StackID (0020,9056) is 1 in frame 1"),
        "{message}"
    );
    let message = split(&|frame, half| {
        let index = PrimitiveValue::from(half as u32 + 1);
        put_number(frame, content, tags::TEMPORAL_POSITION_INDEX, VR::UL, index);
    });
    assert!(
        message.contains("several temporal positions: TemporalPositionIndex (0020,9128) is"),
        "{message}"
    );
    let message = split(&|frame, half| {
        let time = PrimitiveValue::from([4.6, 9.2][half]);
        put_number(frame, tags::MR_ECHO_SEQUENCE, tags::EFFECTIVE_ECHO_TIME, VR::FD, time);
    });
    assert!(message.contains("several echoes: EffectiveEchoTime (0018,9082) is 4.6 in frame"), "{message}");
    let message = split(&|frame, half| {
        let weighting = PrimitiveValue::from([0.0, 1000.0][half]);
        put_number(frame, tags::MR_DIFFUSION_SEQUENCE, tags::DIFFUSION_B_VALUE, VR::FD, weighting);
    });
    assert!(message.contains("several diffusion weightings: DiffusionBValue (0018,9087) is 0"), "{message}");
    let kinds = ["ORIGINAL\\PRIMARY\\M\\NONE", "DERIVED\\PRIMARY\\M\\NONE"];
    let message = split(&|frame, half| {
        put_macro(frame, tags::MR_IMAGE_FRAME_TYPE_SEQUENCE, &[(tags::FRAME_TYPE, VR::CS, kinds[half])]);
    });
    assert!(message.contains("several frame types: FrameType (0008,9007) is"), "{message}");
    // Kept by a conversion from single-frame images.
    let message = split(&|frame, half| {
        let times = [(tags::ECHO_TIME, VR::DS, ["4.6", "9.2"][half])];
        put_macro(frame, tags::UNASSIGNED_PER_FRAME_CONVERTED_ATTRIBUTES_SEQUENCE, &times);
    });
    assert!(message.contains("several echoes: EchoTime (0018,0081) is 4.6"), "{message}");
    // A rounding is no second echo.
    let (_folder, path) = written(&SeriesOptions::default(), |image| {
        for (n, frame) in image.frames.iter_mut().enumerate() {
            let time = PrimitiveValue::from(4.6 + 1e-7 * n as f64);
            put_number(frame, tags::MR_ECHO_SEQUENCE, tags::EFFECTIVE_ECHO_TIME, VR::FD, time);
        }
    });
    assert!(try_read(&path).is_ok());
}

#[test]
fn holes_and_doubles_are_told_as_for_single_frames() {
    let position = |n: usize, place: &'static str| {
        refusal(move |image| {
            let attributes = [(tags::IMAGE_POSITION_PATIENT, VR::DS, place)];
            put_macro(&mut image.frames[n], tags::PLANE_POSITION_SEQUENCE, &attributes);
        })
    };
    // Frame 3 shows the last slice; the fifth is frame 5.
    let message = position(2, "-1\\-1.125\\4.5");
    assert!(message.contains("of enhanced.dcm are different slices at one position"), "{message}");
    let message = position(2, "-1\\-1.125\\40");
    assert!(
        message.contains("but frame 5 of enhanced.dcm and frame 3 of enhanced.dcm 35.500 mm"),
        "{message}"
    );
    let message = refusal(|image| {
        let turned = [(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "0\\1\\0\\-1\\0\\0")];
        put_macro(&mut image.frames[4], tags::PLANE_ORIENTATION_SEQUENCE, &turned);
    });
    assert!(message.contains("ImageOrientationPatient is") && message.contains("frame 5"), "{message}");
    let message = refusal(|image| {
        let wide = [(tags::PIXEL_SPACING, VR::DS, "2\\2")];
        put_macro(&mut image.frames[4], tags::PIXEL_MEASURES_SEQUENCE, &wide);
    });
    assert!(message.contains("PixelSpacing is") && message.contains("frame 5"), "{message}");
}

#[test]
fn groups_that_are_missing_or_do_not_add_up_are_told() {
    let message = refusal(|image| drop(image.frames.pop()));
    assert!(message.contains("has 5 items where NumberOfFrames (0028,0008) is 6"), "{message}");
    let message = refusal(|image| {
        image.shared.remove_element(tags::PIXEL_MEASURES_SEQUENCE);
    });
    assert!(message.contains("lacks PixelSpacing (0028,0030)"), "{message}");
    let message = refusal(|image| {
        image.frames[3].remove_element(tags::PLANE_POSITION_SEQUENCE);
    });
    assert!(message.contains("lacks ImagePositionPatient (0020,0032)"), "{message}");
    for frames in ["0", "-3", "2.5", "70000"] {
        let message = refusal(|image| put_text(&mut image.top, tags::NUMBER_OF_FRAMES, VR::IS, frames));
        assert!(message.contains("NumberOfFrames (0028,0008) is"), "{message}");
    }
    let message = refusal(|image| put_short(&mut image.top, tags::ROWS, 5));
    assert!(message.contains("its pixel data has 240 of 300 bytes"), "{message}");
    // A segmentation has functional groups, too.
    let message = refusal(|image| {
        put_text(&mut image.top, tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE);
    });
    assert!(message.contains("neither enhanced CT, MR nor PET"), "{message}");
    for syntax in Syntax::ALL {
        let (_folder, path) = written(&SeriesOptions { syntax, ..SeriesOptions::default() }, |_| ());
        let whole = std::fs::read(&path).unwrap();
        for cut in (12..whole.len() - 140).step_by(41) {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let error = try_read(&path).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains("enhanced.dcm"), "{syntax:?} {error}");
        }
    }
}

/// A perfusion map by another maker's tool: sequences of undefined length, frames from the top.
#[test]
fn a_real_enhanced_ct() {
    let volume = try_read(&asset("eCT_Supplemental.dcm")).unwrap();
    assert_eq!(volume.dims, [512, 512, 2]);
    assert_eq!(volume.geometry.axis_codes().to_string(), "RPI");
    assert_eq!(volume.spacing(), [0.388_672, 0.388_672, 10.0]);
    assert_eq!(volume.source.frames, [2, 1]);
    // The rows run to the patient's right, so slices follow each other downwards.
    assert_eq!(volume.geometry.position([0.0; 3]), [-99.5, 301.5, -149.0]);
    assert_eq!(volume.voxels[0], -1024.0);
    let header = Header::read(&asset("eCT_Supplemental.dcm")).unwrap();
    assert!(header.contrast_agent && header.is_image);
    assert_eq!((header.number_of_frames, header.slice_thickness), (2, Some(10.0)));
    assert_eq!(header.plane(), Some(firmware_config::Plane::Axial));
}

/// A real enhanced MR in all its syntaxes. It was stripped of its functional groups, which are put back.
#[test]
fn a_real_enhanced_mr_in_every_syntax() {
    let folder = TempDir::new().unwrap();
    let volume = |name: &str| {
        let mut object = open_file(asset(name)).unwrap();
        let mut shared = InMemDicomObject::new_empty();
        let axial = [(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0")];
        put_macro(&mut shared, tags::PLANE_ORIENTATION_SEQUENCE, &axial);
        put_macro(&mut shared, tags::PIXEL_MEASURES_SEQUENCE, &[(tags::PIXEL_SPACING, VR::DS, "1\\1")]);
        let frames = (0..10).map(|k| {
            let mut frame = InMemDicomObject::new_empty();
            let place = format!("0\\0\\{k}");
            let place = [(tags::IMAGE_POSITION_PATIENT, VR::DS, &*place)];
            put_macro(&mut frame, tags::PLANE_POSITION_SEQUENCE, &place);
            frame
        });
        put_groups(&mut object, shared, frames.collect());
        let path = folder.path().join(name);
        object.write_to_file(&path).unwrap();
        try_read(&path)
    };
    let plain = volume("emri_small.dcm").unwrap();
    assert_eq!(plain.dims, [64, 64, 10]);
    assert_eq!(plain.voxels[..4], [31.0, 8.0, 62.0, 80.0]);
    for name in ["RLE", "jpeg_2k_lossless", "jpeg_ls_lossless", "big_endian"] {
        let twin = volume(&format!("emri_small_{name}.dcm")).unwrap();
        assert!(twin.voxels == plain.voxels && twin.geometry == plain.geometry, "{name}");
    }
}
