//! Writing f32 volumes as NIfTI-1.
//!
//! The `nifti` crate's writer needs its ndarray feature, changes the name it is given and writes in place; these
//! 348 bytes are written here instead.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::header::SIZE_1;
use crate::files::write_atomically_with;
use crate::volume::geometry::{cross, dot};
use crate::volume::{Geometry, VolumeError};

/// Writes a volume of f32 voxels, gzip-compressed if the name ends with `.gz`, with sform and qform.
///
/// The same arguments give the same bytes on every machine. The file appears under its name only when it is
/// complete.
///
/// # Errors
/// An axis longer than 32767 voxels, a number of voxels that contradicts `dims`, or a failing disk.
pub fn write_nifti(
    path: &Path,
    dims: [usize; 3],
    voxels: &[f32],
    geometry: &Geometry,
) -> Result<(), VolumeError> {
    if let Some(axis) = dims.iter().position(|&n| n == 0 || n > i16::MAX as usize) {
        return Err(VolumeError::field(path, format!("dim[{}]", axis + 1), dims[axis], "1 to 32767"));
    }
    if voxels.len() != dims.iter().product::<usize>() {
        let expected = format!("{} × {} × {}", dims[0], dims[1], dims[2]);
        return Err(VolumeError::field(path, "number of voxels", voxels.len(), expected));
    }
    let header = header(dims, geometry);
    let compress = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    write_atomically_with(path, |file| fill(file, compress, &header, voxels))
        .map_err(|source| VolumeError::Write { path: path.to_owned(), source })
}

fn fill(file: &File, compress: bool, header: &[u8], voxels: &[f32]) -> io::Result<()> {
    fn all(out: &mut impl Write, header: &[u8], voxels: &[f32]) -> io::Result<()> {
        out.write_all(header)?;
        let mut block = Vec::with_capacity(1 << 16);
        for part in voxels.chunks(1 << 14) {
            block.clear();
            block.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            out.write_all(&block)?;
        }
        Ok(())
    }
    let mut out = BufWriter::new(file);
    if compress {
        // No name and no time in the gzip header: the bytes depend on the volume alone.
        let mut encoder = GzEncoder::new(out, Compression::fast());
        all(&mut encoder, header, voxels)?;
        out = encoder.finish()?;
    } else {
        all(&mut out, header, voxels)?;
    }
    out.flush()
}

/// Header and the four bytes that say "no extensions".
fn header(dims: [usize; 3], geometry: &Geometry) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_1 + 4];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let short = |value: i16| value.to_le_bytes();
    let real = |value: f64| (value as f32).to_le_bytes();
    let spacing = geometry.spacing();
    let (quaternion, qfac) = quaternion(geometry);

    put(0, &(SIZE_1 as i32).to_le_bytes());
    put(38, b"r"); // regular
    put(40, &short(3)); // dim[0]
    for axis in 0..3 {
        put(42 + 2 * axis, &short(dims[axis] as i16));
        put(80 + 4 * axis, &real(spacing[axis]));
        put(256 + 4 * axis, &real(quaternion[axis]));
        put(268 + 4 * axis, &real(geometry.affine[axis][3])); // qoffset
        for column in 0..4 {
            put(280 + 16 * axis + 4 * column, &real(geometry.affine[axis][column])); // srow
        }
    }
    for n in 4..8 {
        put(40 + 2 * n, &short(1));
    }
    put(70, &short(16)); // datatype FLOAT32
    put(72, &short(32)); // bitpix
    put(76, &real(qfac)); // pixdim[0]
    put(108, &real((SIZE_1 + 4) as f64)); // vox_offset
    put(112, &real(1.0)); // scl_slope
    put(123, &[2]); // xyzt_units: mm
    put(252, &short(1)); // qform_code: scanner
    put(254, &short(1)); // sform_code: scanner
    put(344, b"n+1\0");
    bytes
}

/// The rotation nearest to the affine's axes as the parts b, c, d of a unit quaternion with a ≥ 0, and `qfac`.
fn quaternion(geometry: &Geometry) -> ([f64; 3], f64) {
    let spacing = geometry.spacing();
    let qfac = if geometry.determinant() < 0.0 { -1.0 } else { 1.0 };
    let mut m: [[f64; 3]; 3] = std::array::from_fn(|axis| {
        let sign = if axis == 2 { qfac } else { 1.0 };
        geometry.step(axis).map(|x| sign * x / spacing[axis])
    });
    // Newton's iteration to the orthogonal polar factor: the mean of a matrix and its inverse transpose.
    for _ in 0..16 {
        let cofactors = [cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])];
        let determinant = dot(m[0], cofactors[0]);
        m = std::array::from_fn(|a| std::array::from_fn(|r| 0.5 * (m[a][r] + cofactors[a][r] / determinant)));
    }
    let r = |row: usize, column: usize| m[column][row];
    // The largest part is taken first, so that nothing is divided by nearly 0.
    let squares = [
        1.0 + r(0, 0) + r(1, 1) + r(2, 2),
        1.0 + r(0, 0) - r(1, 1) - r(2, 2),
        1.0 - r(0, 0) + r(1, 1) - r(2, 2),
        1.0 - r(0, 0) - r(1, 1) + r(2, 2),
    ];
    let largest = (0..4).fold(0, |best, n| if squares[n] > squares[best] { n } else { best });
    let s = 2.0 * squares[largest].max(0.0).sqrt();
    let [a, b, c, d] = match largest {
        0 => [s / 4.0, (r(2, 1) - r(1, 2)) / s, (r(0, 2) - r(2, 0)) / s, (r(1, 0) - r(0, 1)) / s],
        1 => [(r(2, 1) - r(1, 2)) / s, s / 4.0, (r(0, 1) + r(1, 0)) / s, (r(0, 2) + r(2, 0)) / s],
        2 => [(r(0, 2) - r(2, 0)) / s, (r(0, 1) + r(1, 0)) / s, s / 4.0, (r(1, 2) + r(2, 1)) / s],
        _ => [(r(1, 0) - r(0, 1)) / s, (r(0, 2) + r(2, 0)) / s, (r(1, 2) + r(2, 1)) / s, s / 4.0],
    };
    let sign = if a < 0.0 { -1.0 } else { 1.0 };
    ([b * sign, c * sign, d * sign], qfac)
}
