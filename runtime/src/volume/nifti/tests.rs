#![allow(clippy::float_cmp, reason = "the numbers are exact by construction")]

use std::fmt::Debug;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use nifti::{NiftiObject, RandomAccessNiftiVolume};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::volume::{AxisCodes, Geometry};

/// A NIfTI file in parts, any of which a test may spoil.
#[derive(Debug, Clone)]
struct Made {
    two: bool,
    little: bool,
    dim: Vec<i64>,
    datatype: i16,
    bitpix: i16,
    vox_offset: f64,
    slope: f64,
    inter: f64,
    pixdim: [f64; 4],
    qform_code: i16,
    sform_code: i16,
    quatern: [f64; 6],
    srow: [[f64; 4]; 3],
    unit: u8,
    magic: Option<[u8; 4]>,
    data: Vec<u8>,
}

impl Made {
    /// i16 voxels 0, 1, 2, …, 2 × 3 × 4 mm, stored LAS, by sform.
    fn new(dim: &[i64]) -> Self {
        let count: i64 = dim.iter().product();
        let mut made = Self {
            two: false,
            little: true,
            dim: dim.to_vec(),
            datatype: 4,
            bitpix: 16,
            vox_offset: 352.0,
            slope: 1.0,
            inter: 0.0,
            pixdim: [1.0, 2.0, 3.0, 4.0],
            qform_code: 0,
            sform_code: 1,
            quatern: [0.0; 6],
            srow: [[-2.0, 0.0, 0.0, 10.0], [0.0, 3.0, 0.0, 20.0], [0.0, 0.0, 4.0, 30.0]],
            unit: 2,
            magic: None,
            data: Vec::new(),
        };
        made.data = (0..count).flat_map(|n| made.raw(n as i16)).collect();
        made
    }

    fn raw<const N: usize>(&self, value: impl Raw<N>) -> [u8; N] {
        value.raw(self.little)
    }

    fn bytes(&self) -> Vec<u8> {
        let size = if self.two { 540 } else { 348 };
        let mut out = vec![0; size + 4];
        let two = self.two;
        let mut put = |at: usize, raw: &[u8]| out[at..at + raw.len()].copy_from_slice(raw);
        let mut dim = [1i64; 8];
        dim[0] = self.dim.len() as i64;
        dim[1..=self.dim.len()].copy_from_slice(&self.dim);
        put(0, &self.raw(size as i32));
        for (n, size) in dim.into_iter().enumerate() {
            if two { put(16 + 8 * n, &self.raw(size)) } else { put(40 + 2 * n, &self.raw(size as i16)) }
        }
        let mut real = |one: usize, second: usize, value: f64| {
            if two { put(second, &self.raw(value)) } else { put(one, &self.raw(value as f32)) }
        };
        real(112, 176, self.slope);
        real(116, 184, self.inter);
        for (n, value) in self.pixdim.into_iter().enumerate() {
            real(76 + 4 * n, 104 + 8 * n, value);
        }
        for (n, value) in self.quatern.into_iter().enumerate() {
            real(256 + 4 * n, 352 + 8 * n, value);
        }
        for (n, value) in self.srow.as_flattened().iter().enumerate() {
            real(280 + 4 * n, 400 + 8 * n, *value);
        }
        if two {
            put(4, &self.magic.map_or(*b"n+2\0\r\n\x1a\n", |m| [m[0], m[1], m[2], m[3], 13, 10, 26, 10]));
            put(12, &self.raw(self.datatype));
            put(14, &self.raw(self.bitpix));
            put(168, &self.raw(self.vox_offset as i64));
            put(344, &self.raw(i32::from(self.qform_code)));
            put(348, &self.raw(i32::from(self.sform_code)));
            put(500, &self.raw(i32::from(self.unit)));
        } else {
            put(344, &self.magic.unwrap_or(*b"n+1\0"));
            put(70, &self.raw(self.datatype));
            put(72, &self.raw(self.bitpix));
            put(108, &self.raw(self.vox_offset as f32));
            put(252, &self.raw(self.qform_code));
            put(254, &self.raw(self.sform_code));
            put(123, &[self.unit]);
        }
        out.extend(&self.data);
        out
    }

    fn read(&self) -> Result<Volume, VolumeError> {
        read_bytes("scan.nii", &self.bytes(), &ReadOptions::default())
    }

    fn refusal(&self) -> String {
        let error = self.read().unwrap_err();
        assert!(error.is_bad_input(), "{error}");
        let message = error.to_string();
        assert!(
            message.contains("scan.nii") && !message.contains(". "),
            "one sentence that names the file: {message}"
        );
        message
    }
}

trait Raw<const N: usize> {
    fn raw(self, little: bool) -> [u8; N];
}

macro_rules! raw {
    ($($kind:ty)*) => {$(
        impl Raw<{ size_of::<$kind>() }> for $kind {
            fn raw(self, little: bool) -> [u8; size_of::<$kind>()] {
                if little { self.to_le_bytes() } else { self.to_be_bytes() }
            }
        }
    )*};
}
raw!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

fn read_bytes(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Volume, VolumeError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    crate::volume::read(&path, options).map(|mut volumes| volumes.remove(0))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn assert_close(a: &Geometry, b: &Geometry) {
    for (x, y) in a.affine.as_flattened().iter().zip(b.affine.as_flattened()) {
        assert!((x - y).abs() < 1e-5, "{a:?} {b:?}");
    }
}

#[test]
fn both_versions_and_both_byte_orders_give_the_same_volume() {
    for two in [false, true] {
        for little in [false, true] {
            let mut made =
                Made { two, little, vox_offset: if two { 544.0 } else { 352.0 }, ..Made::new(&[2, 3, 4]) };
            made.data = (0..24i16).flat_map(|n| made.raw(n)).collect();
            let volume = made.read().unwrap();
            assert_eq!(volume.dims, [2, 3, 4]);
            assert_eq!(volume.voxels, (0..24).map(|n| n as f32).collect::<Vec<_>>());
            assert_eq!(volume.geometry.affine, made.srow);
            assert_eq!(volume.geometry.axis_codes().to_string(), "LAS");
            assert!(volume.warnings.is_empty());
        }
    }
}

/// Every type, least and largest values, scaled in f64, and equal to what the `nifti` crate reads.
#[test]
fn all_types_are_read_as_the_nifti_crate_reads_them() {
    fn check<const N: usize, T: Raw<N> + Copy + Debug>(datatype: i16, values: &[T], wide: fn(T) -> f64) {
        for little in [true, false] {
            for (slope, inter) in [(1.0, 0.0), (0.5, -3.0)] {
                let made =
                    Made { little, datatype, bitpix: 8 * N as i16, slope, inter, ..Made::new(&[4, 1, 1]) };
                let data = values.iter().flat_map(|v| v.raw(little)).collect();
                let made = Made { data, ..made };
                let volume = made.read().unwrap();
                let expected: Vec<f32> = values.iter().map(|v| (wide(*v) * slope + inter) as f32).collect();
                assert_eq!(volume.voxels, expected, "datatype {datatype}, little {little}");
                let folder = TempDir::new().unwrap();
                let path = folder.path().join("scan.nii");
                std::fs::write(&path, made.bytes()).unwrap();
                let oracle = nifti::ReaderOptions::new().read_file(&path).unwrap().into_volume();
                for (n, value) in volume.voxels.iter().enumerate() {
                    let theirs = oracle.get_f64(&[n as u16, 0, 0]).unwrap();
                    assert!((theirs - f64::from(*value)).abs() <= 1e-6 * theirs.abs(), "{theirs} {value}");
                }
            }
        }
    }
    check(2, &[0u8, 1, 2, 255], f64::from);
    check(256, &[-128i8, -1, 0, 127], f64::from);
    check(4, &[i16::MIN, -1, 0, i16::MAX], f64::from);
    check(512, &[0u16, 1, 2, u16::MAX], f64::from);
    check(8, &[i32::MIN, -1, 0, i32::MAX], f64::from);
    check(768, &[0u32, 1, 2, u32::MAX], f64::from);
    check(1024, &[i64::MIN, -1, 0, i64::MAX], |v| v as f64);
    check(1280, &[0u64, 1, 2, u64::MAX], |v| v as f64);
    check(16, &[-1.5f32, 0.0, 1e-3, 3e38], f64::from);
    check(64, &[-1.5f64, 0.0, 1e-3, 3e38], |v| v);
}

#[test]
fn slope_zero_and_nan_scale_nothing() {
    for slope in [0.0, f64::NAN, f64::INFINITY] {
        let made = Made { slope, inter: f64::NAN, ..Made::new(&[2, 2, 2]) };
        assert_eq!(made.read().unwrap().voxels[7], 7.0);
    }
    let made = Made { slope: 0.25, inter: -1.0, ..Made::new(&[2, 2, 2]) };
    assert_eq!(made.read().unwrap().voxels[7], 0.75);
    let made = Made { slope: 2.0, inter: f64::NAN, ..Made::new(&[2, 2, 2]) };
    assert!(made.refusal().contains("scl_inter is NaN"));
}

#[test]
fn types_that_are_no_numbers_are_refused_by_name() {
    for (datatype, bitpix, name) in [
        (32, 64, "COMPLEX64"),
        (1792, 128, "COMPLEX128"),
        (2048, 256, "COMPLEX256"),
        (128, 24, "RGB24"),
        (2304, 32, "RGBA32"),
        (1536, 128, "FLOAT128"),
        (1, 1, "BINARY"),
    ] {
        let message = Made { datatype, bitpix, ..Made::new(&[2, 2, 2]) }.refusal();
        assert!(message.contains(name), "{message}");
    }
    assert!(Made { datatype: 7, ..Made::new(&[2, 2, 2]) }.refusal().contains("datatype is 7"));
    assert!(Made { bitpix: 8, ..Made::new(&[2, 2, 2]) }.refusal().contains("bitpix is 8, expected 16"));
}

#[test]
fn fields_that_make_no_sense_are_named() {
    let with = |dim: &[i64]| Made { dim: dim.to_vec(), ..Made::new(&[2, 2, 2]) }.refusal();
    assert!(with(&[2, 0, 2]).contains("dim[2] is 0, expected at least 1"));
    assert!(with(&[-5, 2, 2]).contains("dim[1] is -5"));
    assert!(with(&[]).contains("dim[0] is 0, expected 1 to 7"));
    let offset = |vox_offset| Made { vox_offset, ..Made::new(&[2, 2, 2]) }.refusal();
    for (vox_offset, shown) in [(f64::NAN, "NaN"), (3e9, "3000000000"), (0.0, "0"), (352.5, "352.5")] {
        assert!(offset(vox_offset).contains(&format!("vox_offset is {shown}, expected")), "{shown}");
    }
    let magic = |magic: &[u8; 4]| Made { magic: Some(*magic), ..Made::new(&[2, 2, 2]) }.refusal();
    assert!(magic(b"ni1\0").contains(".hdr/.img pair"));
    assert!(magic(b"\0\0\0\0").contains("ANALYZE 7.5"));
    assert!(magic(b"nope").contains("magic is \"nope\""));
    let two = Made { two: true, vox_offset: 544.0, magic: Some(*b"ni2\0"), ..Made::new(&[2, 2, 2]) };
    assert!(two.refusal().contains(".hdr/.img pair"));
}

#[test]
fn sizes_are_bounded_before_anything_is_allocated() {
    let huge = Made { dim: vec![30000, 30000, 30000], ..Made::new(&[2, 2, 2]) };
    assert!(huge.refusal().contains("27000000000000, more than the 1073741824"));
    let dim = vec![i64::MAX; 7];
    let huge = Made { two: true, vox_offset: 544.0, dim, ..Made::new(&[2, 2, 2]) };
    assert!(huge.refusal().contains("number of voxels"));
    // A gigabyte that a few bytes cannot hold, and a bomb that goes on behind the voxels.
    let liar = Made { dim: vec![1000, 1000, 500], ..Made::new(&[2, 2, 2]) };
    assert!(liar.refusal().contains("truncated: its data has 368 of 1000000352 bytes"));
    let error = read_bytes("liar.nii.gz", &gzip(&liar.bytes()), &ReadOptions::default()).unwrap_err();
    assert!(matches!(error, VolumeError::Truncated { .. }), "{error}");
    let padded = |zeros| {
        let mut made = Made::new(&[2, 2, 2]);
        made.data.extend(vec![0; zeros]);
        read_bytes("bomb.nii.gz", &gzip(&made.bytes()), &ReadOptions::default())
    };
    let volume = padded(1000).unwrap();
    assert_eq!(volume.voxels.len(), 8);
    assert_eq!(volume.warnings, ["bytes after the last voxel were ignored"]);
    assert!(
        padded(50_000_000)
            .unwrap_err()
            .to_string()
            .contains("more than 16777216 bytes follow its last voxel")
    );
}

#[test]
fn every_truncation_is_told() {
    let bytes = Made::new(&[3, 4, 5]).bytes();
    for length in [4, 100, 347, 351, 352, 400, bytes.len() - 1] {
        let error = read_bytes("cut.nii", &bytes[..length], &ReadOptions::default()).unwrap_err();
        assert!(matches!(error, VolumeError::Truncated { .. }), "{length}: {error}");
    }
    let packed = gzip(&bytes);
    for length in [2, 5, 12, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
        let error = read_bytes("cut.nii.gz", &packed[..length], &ReadOptions::default()).unwrap_err();
        assert!(error.is_bad_input(), "{length}: {error}");
        let told = matches!(error, VolumeError::Truncated { .. } | VolumeError::Damaged { .. });
        assert!(told, "{length}: {error}");
    }
}

#[test]
fn a_flipped_bit_in_gzip_is_told() {
    let mut noise = Made::new(&[30, 30, 3]);
    noise.data = (0..5400u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut packed = gzip(&noise.bytes());
    for at in (20..packed.len()).step_by(41) {
        packed[at] ^= 1;
        let error = read_bytes("bad.nii.gz", &packed, &ReadOptions::default()).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("bad.nii.gz"), "{at}: {error}");
        packed[at] ^= 1;
    }
}

#[test]
fn gzip_members_are_joined() {
    let bytes = Made::new(&[3, 4, 5]).bytes();
    let members = [gzip(&bytes[..200]), gzip(&bytes[200..361]), gzip(&bytes[361..])].concat();
    let joined = read_bytes("members.nii.gz", &members, &ReadOptions::default()).unwrap();
    assert_eq!(joined.voxels, Made::new(&[3, 4, 5]).read().unwrap().voxels);
}

#[test]
fn voxels_that_are_no_numbers_are_counted() {
    let mut made = Made { datatype: 16, bitpix: 32, ..Made::new(&[3, 4, 5]) };
    let mut values = vec![1.0f32; 60];
    values[17] = f32::NAN; // (2, 1, 1)
    values[40] = f32::INFINITY;
    made.data = values.iter().flat_map(|v| v.raw(true)).collect();
    let message = made.refusal();
    assert!(message.contains("2 voxels are NaN or infinite, the first at index [2, 1, 1]"), "{message}");
    // Finite in the file, but beyond f32.
    let made = Made { datatype: 64, bitpix: 64, data: 1e300f64.raw(true).to_vec(), ..Made::new(&[1, 1, 1]) };
    assert!(made.refusal().contains("1 voxels"));
}

#[test]
fn a_4d_file_asks_which_volume() {
    let made = Made::new(&[2, 2, 2, 3]);
    assert!(made.refusal().contains("holds 3 volumes, say which one with --volume-index, 0 to 2"));
    let pick = |index| {
        let options = ReadOptions { volume_index: Some(index), ..ReadOptions::default() };
        read_bytes("scan.nii.gz", &gzip(&made.bytes()), &options)
    };
    assert_eq!(pick(0).unwrap().voxels[0], 0.0);
    assert_eq!(pick(2).unwrap().voxels[0], 16.0);
    assert_eq!(pick(2).unwrap().dims, [2, 2, 2]);
    assert!(matches!(pick(3), Err(VolumeError::WhichVolume { volumes: 3, .. })));
    assert_eq!(Made::new(&[2, 2, 2, 1]).read().unwrap().dims, [2, 2, 2]);
    assert_eq!(Made::new(&[2, 3]).read().unwrap().dims, [2, 3, 1]);
}

#[test]
fn the_qform_serves_where_there_is_no_sform() {
    // 90° about z: the first stored axis runs to the front, the second to the left.
    let half = 0.5f64.sqrt();
    let quatern = [0.0, 0.0, half, 7.0, 8.0, 9.0];
    let made = Made { sform_code: 0, qform_code: 1, quatern, ..Made::new(&[2, 3, 4]) };
    let expected =
        Geometry::from_columns([[0.0, 2.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 4.0]], [7.0, 8.0, 9.0]);
    assert_close(&made.read().unwrap().geometry, &expected);
    // qfac -1 turns the third axis round.
    let left = Made { pixdim: [-1.0, 2.0, 3.0, 4.0], ..made.clone() };
    assert_eq!(left.read().unwrap().geometry.axis_codes().to_string(), "ALI");
    // No rotation, as for a quaternion that is not one.
    let none = Made { quatern: [3.0, 0.0, 0.0, 0.0, 0.0, 0.0], ..made };
    assert!(none.refusal().contains("singular"));
}

#[test]
fn the_sform_wins_where_both_agree_on_left_and_right() {
    let quatern = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]; // 180° about y, and qfac -1: LAS
    let made = Made { qform_code: 1, quatern, pixdim: [-1.0, 2.0, 3.0, 4.0], ..Made::new(&[2, 3, 4]) };
    let volume = made.read().unwrap();
    assert_eq!(volume.geometry.affine, made.srow);
    assert!(volume.warnings.is_empty());
}

#[test]
fn geometry_that_is_missing_or_contradicts_itself_is_refused_unless_assumed() {
    let sound = Made::new(&[2, 3, 4]);
    let neither = Made { sform_code: 0, ..sound.clone() };
    let singular = Made { srow: [[0.0; 4]; 3], ..sound.clone() };
    let handedness = Made { qform_code: 1, ..sound.clone() }; // identity: RAS against LAS
    let turned = Made { qform_code: 1, quatern: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], ..sound.clone() };
    let both_turned = Made { pixdim: [-1.0, 2.0, 3.0, 4.0], ..turned.clone() };
    for (made, why) in [
        (&neither, "neither sform_code nor qform_code is set"),
        (&singular, "singular"),
        (&handedness, "its sform says LAS and its qform RAS"),
        (&turned, "its sform says LAS and its qform RPI"),
        (&both_turned, "its sform says LAS and its qform RPS"),
    ] {
        let message = made.refusal();
        assert!(message.contains(why) && message.contains("--assume-orientation"), "{message}");
        let codes: AxisCodes = "LPS".parse().unwrap();
        let options = ReadOptions { assume_orientation: Some(codes), ..ReadOptions::default() };
        let volume = read_bytes("scan.nii", &made.bytes(), &options).unwrap();
        assert_eq!(volume.geometry, codes.centred([2.0, 3.0, 4.0], [2, 3, 4]));
        assert!(volume.warnings[0].contains("LPS was assumed"));
        let sized = Made { pixdim: [1.0, 2.0, 0.0, 4.0], ..made.clone() };
        let error = read_bytes("scan.nii", &sized.bytes(), &options);
        assert!(error.is_ok() || error.unwrap_err().to_string().contains("pixdim[2] is 0"));
    }
    // Sound geometry is not overridden.
    let options = ReadOptions { assume_orientation: Some("RPS".parse().unwrap()), ..ReadOptions::default() };
    let volume = read_bytes("scan.nii", &sound.bytes(), &options).unwrap();
    assert_eq!(volume.geometry.axis_codes().to_string(), "LAS");
    // A singular sform beside a sound qform.
    let other = Made { qform_code: 1, ..singular };
    assert_eq!(other.read().unwrap().warnings, ["the sform is singular, the qform was used"]);
}

#[test]
fn sheared_axes_are_refused() {
    let mut made = Made::new(&[2, 3, 4]);
    made.srow[0][1] = 0.3; // about 6° off
    assert!(made.refusal().contains("its sform is sheared"));
    made.srow[0][1] = 0.03;
    assert!(made.read().is_ok());
}

#[test]
fn units_become_millimetres() {
    let metres = Made { unit: 1, ..Made::new(&[2, 3, 4]) };
    assert_eq!(metres.read().unwrap().spacing(), [2000.0, 3000.0, 4000.0]);
    let micrometres = Made { unit: 3 | 8, ..Made::new(&[2, 3, 4]) };
    assert!((micrometres.read().unwrap().spacing()[2] - 0.004).abs() < 1e-12);
}

#[test]
fn the_digest_is_that_of_the_file() {
    let packed = gzip(&Made::new(&[2, 3, 4]).bytes());
    let volume = read_bytes("scan.nii.gz", &packed, &ReadOptions::default()).unwrap();
    let digest = Hashing::new(&packed[..]).finish().unwrap();
    assert_eq!(volume.source.digest, digest);
    // SHA-256 of nothing, FIPS 180-4.
    let nothing = Hashing::new(&[][..]).finish().unwrap();
    assert_eq!(nothing, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

#[test]
fn what_is_written_is_read_again_and_the_same_every_time() {
    let folder = TempDir::new().unwrap();
    let voxels: Vec<f32> = (0..60_000).map(|n| (n as f32).sin()).collect();
    let dims = [20, 30, 100];
    let geometry = "PSL".parse::<AxisCodes>().unwrap().centred([0.5, 1.25, 3.0], dims);
    for name in ["out.nii", "out.nii.gz", "a.b.nii.gz"] {
        let path = folder.path().join(name);
        write_nifti(&path, dims, &voxels, &geometry).unwrap();
        let first = std::fs::read(&path).unwrap();
        write_nifti(&path, dims, &voxels, &geometry).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        let volume = read(&path, &ReadOptions::default()).unwrap();
        assert_eq!((volume.dims, &volume.voxels), (dims, &voxels));
        assert_close(&volume.geometry, &geometry);
        let theirs = nifti::ReaderOptions::new().read_file(&path).unwrap();
        assert_eq!(theirs.volume().get_f32(&[3, 4, 5]).unwrap(), voxels[3 + 20 * (4 + 30 * 5)]);
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "no temporary file is left");
    let nowhere = folder.path().join("no/out.nii");
    assert!(write_nifti(&nowhere, dims, &voxels, &geometry).unwrap_err().is_bad_input());
    let long = write_nifti(&folder.path().join("long.nii"), [40000, 1, 1], &vec![0.0; 40000], &geometry);
    assert!(long.unwrap_err().to_string().contains("dim[1] is 40000"));
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(64)
    })]

    /// The written qform alone says what the sform says, for any orientation.
    #[test]
    fn the_written_qform_equals_the_sform(
        angles in prop::array::uniform3(-180.0..180.0f64),
        mirrored in any::<bool>(),
        spacing in prop::array::uniform3(0.3..7.0f64),
    ) {
        let mut steps = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, if mirrored { -1.0 } else { 1.0 }]];
        for (axis, angle) in angles.iter().enumerate() {
            let (sin, cos) = angle.to_radians().sin_cos();
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            for step in &mut steps {
                (step[a], step[b]) = (cos * step[a] - sin * step[b], sin * step[a] + cos * step[b]);
            }
        }
        let steps = std::array::from_fn(|n| steps[n].map(|x| x * spacing[n]));
        let geometry = Geometry::from_columns(steps, [3.0, -7.0, 11.0]);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("scan.nii");
        write_nifti(&path, [1, 1, 1], &[1.0], &geometry).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[254] = 0; // sform_code
        let volume = read_bytes("scan.nii", &bytes, &ReadOptions::default()).unwrap();
        for (x, y) in volume.geometry.affine.as_flattened().iter().zip(geometry.affine.as_flattened()) {
            prop_assert!((x - y).abs() < 2e-3, "{:?} {:?}", volume.geometry, geometry);
        }
    }

    /// No bytes make the reader panic or take long.
    #[test]
    fn spoiled_headers_never_panic(at in 0usize..348, value in any::<u8>(), zip in any::<bool>(), two in any::<bool>()) {
        let made = Made { two, vox_offset: if two { 544.0 } else { 352.0 }, ..Made::new(&[2, 3, 4]) };
        let mut bytes = made.bytes();
        bytes[at] = value;
        let bytes = if zip { gzip(&bytes) } else { bytes };
        if let Ok(volume) = read_bytes("scan.nii", &bytes, &ReadOptions::default()) {
            prop_assert_eq!(volume.voxels.len(), volume.dims.iter().product::<usize>());
        }
    }
}
