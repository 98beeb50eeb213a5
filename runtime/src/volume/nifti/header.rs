//! The 348 or 540 bytes at the start, read in either byte order and checked.

use std::path::Path;

use crate::volume::{MAX_VOXELS, VolumeError};

pub(super) const SIZE_1: usize = 348;
pub(super) const SIZE_2: usize = 540;
/// Header extensions beyond this are not skipped over.
const MAX_VOX_OFFSET: u64 = 1 << 26;

/// Version and byte order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub(super) two: bool,
    pub(super) little: bool,
}

impl Layout {
    pub(super) fn size(self) -> usize {
        if self.two { SIZE_2 } else { SIZE_1 }
    }
}

/// Told by the first field, `sizeof_hdr`.
pub(super) fn layout(start: &[u8]) -> Option<Layout> {
    let first: [u8; 4] = start.get(..4)?.try_into().ok()?;
    [(SIZE_1, false), (SIZE_2, true)].into_iter().find_map(|(size, two)| {
        if i32::from_le_bytes(first) == size as i32 {
            Some(Layout { two, little: true })
        } else if i32::from_be_bytes(first) == size as i32 {
            Some(Layout { two, little: false })
        } else {
            None
        }
    })
}

/// The type of a voxel, by its NIfTI code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Kind {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn from_code(code: i16, path: &Path) -> Result<Self, VolumeError> {
        let name = match code {
            2 => return Ok(Self::U8),
            4 => return Ok(Self::I16),
            8 => return Ok(Self::I32),
            16 => return Ok(Self::F32),
            64 => return Ok(Self::F64),
            256 => return Ok(Self::I8),
            512 => return Ok(Self::U16),
            768 => return Ok(Self::U32),
            1024 => return Ok(Self::I64),
            1280 => return Ok(Self::U64),
            1 => "1-bit voxels (datatype 1, BINARY)",
            32 => "complex voxels (datatype 32, COMPLEX64)",
            1792 => "complex voxels (datatype 1792, COMPLEX128)",
            2048 => "complex voxels (datatype 2048, COMPLEX256)",
            128 => "colour voxels (datatype 128, RGB24)",
            2304 => "colour voxels (datatype 2304, RGBA32)",
            1536 => "128-bit voxels (datatype 1536, FLOAT128)",
            _ => {
                let expected =
                    "an integer or float type of NIfTI (2, 4, 8, 16, 64, 256, 512, 768, 1024 or 1280)";
                return Err(VolumeError::field(path, "datatype", code, expected));
            }
        };
        Err(VolumeError::Unsupported {
            path: path.to_owned(),
            found: name.to_owned(),
            instead: "save it with one real number a voxel, at most 64 bits".to_owned(),
        })
    }
}

/// What is used of a NIfTI header, checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) layout: Layout,
    pub(super) dims: [usize; 3],
    /// Product of the fourth and further dimensions, at least 1.
    pub(super) volumes: u64,
    pub(super) kind: Kind,
    /// Bytes before the first voxel.
    pub(super) vox_offset: u64,
    /// Slope and intercept of voxel values; (1, 0) where the file scales nothing.
    pub(super) scale: (f64, f64),
    pub(super) pixdim: [f64; 4],
    pub(super) qform_code: i32,
    pub(super) sform_code: i32,
    /// `quatern_b`, `_c`, `_d`, `qoffset_x`, `_y`, `_z`.
    pub(super) quatern: [f64; 6],
    pub(super) srow: [[f64; 4]; 3],
    /// Spatial unit: 1 metre, 2 millimetre, 3 micrometre, 0 unknown.
    pub(super) unit: u8,
}

impl Header {
    /// Reads the header from its `layout.size()` bytes.
    pub(super) fn parse(layout: Layout, bytes: &[u8], path: &Path) -> Result<Self, VolumeError> {
        check_magic(layout, bytes, path)?;
        let f = Fields { bytes, little: layout.little };
        // Where each field lies: (NIfTI-1, NIfTI-2). Names are the header's own.
        let at = |one: usize, two: usize| if layout.two { two } else { one };
        let real = |one: usize, two: usize, n: usize| {
            if layout.two { f.f64(two + 8 * n) } else { f64::from(f.f32(one + 4 * n)) }
        };
        let dim: [i64; 8] =
            std::array::from_fn(
                |n| {
                    if layout.two { f.i64(16 + 8 * n) } else { i64::from(f.i16(40 + 2 * n)) }
                },
            );
        let code = |one: usize, two: usize| if layout.two { f.i32(two) } else { i32::from(f.i16(one)) };

        let (dims, volumes) = check_dims(dim, path)?;
        let kind = Kind::from_code(f.i16(at(70, 12)), path)?;
        let bitpix = f.i16(at(72, 14));
        if i64::from(bitpix) != 8 * kind.bytes() as i64 {
            let expected = format!("{}, the size of its datatype {}", 8 * kind.bytes(), f.i16(at(70, 12)));
            return Err(VolumeError::field(path, "bitpix", bitpix, expected));
        }
        let vox_offset = if layout.two { f.i64(168) as f64 } else { f64::from(f.f32(108)) };
        Ok(Self {
            layout,
            dims,
            volumes,
            kind,
            vox_offset: check_offset(vox_offset, layout, path)?,
            scale: check_scale(real(112, 176, 0), real(116, 184, 0), path)?,
            pixdim: std::array::from_fn(|n| real(76, 104, n)),
            qform_code: code(252, 344),
            sform_code: code(254, 348),
            quatern: std::array::from_fn(|n| real(256, 352, n)),
            srow: std::array::from_fn(|r| std::array::from_fn(|c| real(280, 400, 4 * r + c))),
            unit: if layout.two { (f.i32(500) & 7) as u8 } else { bytes[123] & 7 },
        })
    }

    /// Bytes of the header itself.
    pub(super) fn size(&self) -> u64 {
        self.layout.size() as u64
    }

    /// Voxels of one volume, at most [`MAX_VOXELS`].
    pub(super) fn voxels(&self) -> usize {
        self.dims.iter().product()
    }

    /// The volume to read of a 4D file.
    pub(super) fn choose_volume(&self, wanted: Option<usize>, path: &Path) -> Result<u64, VolumeError> {
        match wanted {
            None if self.volumes == 1 => Ok(0),
            Some(index) if (index as u64) < self.volumes => Ok(index as u64),
            _ => Err(VolumeError::WhichVolume { path: path.to_owned(), volumes: self.volumes }),
        }
    }
}

/// The error for a header and voxels in two files.
pub(super) fn pair(path: &Path) -> VolumeError {
    VolumeError::Unsupported {
        path: path.to_owned(),
        found: "one half of a .hdr/.img pair".to_owned(),
        instead: "save it as a single .nii or .nii.gz file".to_owned(),
    }
}

fn check_magic(layout: Layout, bytes: &[u8], path: &Path) -> Result<(), VolumeError> {
    let (magic, single, two_files): (&[u8], &[u8], &[u8]) = if layout.two {
        (&bytes[4..12], b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")
    } else {
        (&bytes[344..348], b"n+1\0", b"ni1\0")
    };
    if magic == single {
        Ok(())
    } else if magic == two_files {
        Err(pair(path))
    } else if !layout.two && magic == [0; 4] {
        Err(VolumeError::Unsupported {
            path: path.to_owned(),
            found: "an ANALYZE 7.5 header, which does not tell left from right".to_owned(),
            instead: "save it as .nii or .nii.gz".to_owned(),
        })
    } else {
        let found = format!("\"{}\"", magic.escape_ascii());
        Err(VolumeError::field(path, "magic", found, format!("\"{}\"", single.escape_ascii())))
    }
}

fn check_dims(dim: [i64; 8], path: &Path) -> Result<([usize; 3], u64), VolumeError> {
    if !(1..=7).contains(&dim[0]) {
        return Err(VolumeError::field(path, "dim[0]", dim[0], "1 to 7 dimensions"));
    }
    let used = dim[0] as usize;
    if let Some(n) = (1..=used).find(|&n| dim[n] < 1) {
        return Err(VolumeError::field(path, format!("dim[{n}]"), dim[n], "at least 1"));
    }
    let size = |n: usize| if n <= used { dim[n] as u128 } else { 1 };
    let voxels = [1, 2, 3].into_iter().fold(1u128, |product, n| product.saturating_mul(size(n)));
    if voxels > MAX_VOXELS as u128 {
        let what = format!("its number of voxels ({} × {} × {})", size(1), size(2), size(3));
        return Err(VolumeError::TooLarge {
            path: path.to_owned(),
            what,
            found: voxels,
            limit: MAX_VOXELS as u64,
        });
    }
    let volumes = (4..=7).fold(1u128, |product, n| product.saturating_mul(size(n)));
    let limit = u64::from(u32::MAX);
    if volumes > u128::from(limit) {
        let what = "its number of volumes".to_owned();
        return Err(VolumeError::TooLarge { path: path.to_owned(), what, found: volumes, limit });
    }
    Ok(([1, 2, 3].map(|n| size(n) as usize), volumes as u64))
}

fn check_offset(offset: f64, layout: Layout, path: &Path) -> Result<u64, VolumeError> {
    let least = layout.size() as f64 + 4.0;
    if offset >= least && offset <= MAX_VOX_OFFSET as f64 && offset.fract() == 0.0 {
        Ok(offset as u64)
    } else {
        let expected = format!("a whole number of bytes, {least} to {MAX_VOX_OFFSET}");
        Err(VolumeError::field(path, "vox_offset", offset, expected))
    }
}

/// A slope of 0 means that nothing is scaled; so does NaN or infinity, which nibabel writes for "not set".
fn check_scale(slope: f64, inter: f64, path: &Path) -> Result<(f64, f64), VolumeError> {
    if slope == 0.0 || !slope.is_finite() {
        Ok((1.0, 0.0))
    } else if inter.is_finite() {
        Ok((slope, inter))
    } else {
        Err(VolumeError::field(path, "scl_inter", inter, "a number, since scl_slope is one"))
    }
}

/// Fixed-size numbers at byte offsets inside the header, whose length was checked.
struct Fields<'a> {
    bytes: &'a [u8],
    little: bool,
}

macro_rules! number {
    ($name:ident) => {
        fn $name(&self, at: usize) -> $name {
            let mut raw = [0; size_of::<$name>()];
            raw.copy_from_slice(&self.bytes[at..at + size_of::<$name>()]);
            if self.little { $name::from_le_bytes(raw) } else { $name::from_be_bytes(raw) }
        }
    };
}

impl Fields<'_> {
    number!(i16);
    number!(i32);
    number!(i64);
    number!(f32);
    number!(f64);
}
