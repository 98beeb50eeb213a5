//! The pixels of one slice, in modality units.

use std::path::Path;

use dicom_core::VR;
use dicom_dictionary_std::tags;

use super::dataset::{Attributes, PixelElement, Syntax, Walk, label};
use super::rle;
use crate::volume::VolumeError;

/// How a pixel is stored (PS3.5, 8.1): `bits_stored` bits up to `high_bit` of `bits_allocated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) syntax: Syntax,
    pub(super) bits_allocated: u16,
    pub(super) bits_stored: u16,
    pub(super) high_bit: u16,
    pub(super) signed: bool,
    /// MONOCHROME1: the least value is white.
    pub(super) inverted: bool,
}

impl Format {
    pub(super) fn read(path: &Path, attributes: &Attributes, syntax: Syntax) -> Result<Self, VolumeError> {
        let wrong =
            |tag, found: u16, expected: &str| Err(VolumeError::field(path, label(tag), found, expected));
        let bits_allocated = attributes.required_short(tags::BITS_ALLOCATED, path)?;
        if ![8, 16, 32].contains(&bits_allocated) {
            return wrong(tags::BITS_ALLOCATED, bits_allocated, "8, 16 or 32");
        }
        let bits_stored = attributes.required_short(tags::BITS_STORED, path)?;
        if !(1..=bits_allocated).contains(&bits_stored) {
            let expected = format!("1 to {bits_allocated}, the bits allocated");
            return wrong(tags::BITS_STORED, bits_stored, &expected);
        }
        let high_bit = attributes.short(tags::HIGH_BIT, path)?.unwrap_or(bits_stored - 1);
        if !(bits_stored - 1..bits_allocated).contains(&high_bit) {
            let expected = format!("{} to {}", bits_stored - 1, bits_allocated - 1);
            return wrong(tags::HIGH_BIT, high_bit, &expected);
        }
        let signed = match attributes.required_short(tags::PIXEL_REPRESENTATION, path)? {
            0 => false,
            1 => true,
            other => return wrong(tags::PIXEL_REPRESENTATION, other, "0 or 1"),
        };
        let inverted = attributes.text(tags::PHOTOMETRIC_INTERPRETATION).as_deref() == Some("MONOCHROME1");
        Ok(Self { syntax, bits_allocated, bits_stored, high_bit, signed, inverted })
    }

    /// Least and greatest value that can be stored.
    pub(super) fn range(&self) -> [f64; 2] {
        let size = f64::from(self.bits_stored).exp2();
        if self.signed { [-size / 2.0, size / 2.0 - 1.0] } else { [0.0, size - 1.0] }
    }

    fn bytes(&self) -> usize {
        usize::from(self.bits_allocated / 8)
    }

    /// The value in a raw pixel: shifted down, other bits (old overlays) removed, sign extended.
    fn value(&self, raw: u32) -> f64 {
        let unused = u32::from(32 - self.bits_stored);
        let high = raw << (31 - self.high_bit);
        if self.signed { f64::from(high.cast_signed() >> unused) } else { f64::from(high >> unused) }
    }
}

/// Value in modality units as `slope * stored + intercept`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) slope: f64,
    pub(super) intercept: f64,
}

/// One slice to be read.
pub(super) struct Slice<'a> {
    pub(super) path: &'a Path,
    /// The header of its pixel data.
    pub(super) element: PixelElement,
    pub(super) format: Format,
    /// Rows × Columns.
    pub(super) pixels: usize,
    pub(super) scale: Scale,
}

/// Appends the pixels of a slice to `voxels`, rows from the top, and says what was odd.
///
/// `walk` stands behind the header of the pixel data; `raw` is scratch.
pub(super) fn read(
    slice: &Slice,
    walk: &mut Walk,
    raw: &mut Vec<u8>,
    voxels: &mut Vec<f32>,
) -> Result<Option<String>, VolumeError> {
    let &Slice { path, element, format, pixels, scale } = slice;
    let expected = pixels * format.bytes();
    let mut warning = None;
    match (element.length, format.syntax) {
        (None, Syntax::Rle) => read_rle(path, walk, format, pixels, raw)?,
        (Some(length), syntax) if syntax != Syntax::Rle => {
            raw.clear();
            walk.read(length.min(expected as u32), raw)?;
            if raw.len() < expected {
                let (found, expected) = (raw.len() as u64, expected as u64);
                return Err(VolumeError::Truncated {
                    path: path.to_owned(),
                    what: "pixel data",
                    found,
                    expected,
                });
            }
            // An odd number of bytes is padded to an even one.
            let more = length as usize - expected;
            walk.skip(more as u32)?;
            if more > 1 {
                warning = Some(format!("{more} bytes of pixel data beyond Rows × Columns were ignored"));
            }
        }
        (None, _) => {
            return Err(walk.damaged("its pixel data is encapsulated although its transfer syntax is not"));
        }
        (Some(_), _) => {
            return Err(walk.damaged("its pixel data is not encapsulated although it should hold RLE"));
        }
    }
    if walk.trailing_bytes() {
        warning = Some("bytes after the pixel data were ignored".to_owned());
    }
    convert(raw, element.vr, format, scale, voxels);
    Ok(warning)
}

fn read_rle(
    path: &Path,
    walk: &mut Walk,
    format: Format,
    pixels: usize,
    out: &mut Vec<u8>,
) -> Result<(), VolumeError> {
    let table = walk.fragment()?.ok_or_else(|| walk.damaged("its pixel data has no fragment"))?;
    walk.skip(table)?;
    let length = walk.fragment()?.ok_or_else(|| walk.damaged("its pixel data has no fragment"))?;
    // PackBits never needs more than one byte more for 128, and each segment may be padded.
    let most = 64 + 2 * (pixels * format.bytes()) as u64 + 64;
    if u64::from(length) > most {
        let problem = format!("its RLE data declares {length} bytes where {most} would be too many");
        return Err(walk.damaged(&problem));
    }
    let mut fragment = Vec::new();
    walk.read(length, &mut fragment)?;
    if fragment.len() < length as usize {
        let (found, expected) = (fragment.len() as u64, u64::from(length));
        return Err(VolumeError::Truncated { path: path.to_owned(), what: "RLE fragment", found, expected });
    }
    rle::decode(&fragment, pixels, format.bytes(), out)
        .map_err(|problem| walk.damaged(&format!("its RLE data {problem}")))?;
    match walk.fragment() {
        Ok(Some(_)) => Err(walk.damaged("its RLE data has several fragments for one frame")),
        // The frame is whole, even where the mark of the end was cut off.
        Ok(None) | Err(_) => Ok(()),
    }
}

fn convert(raw: &[u8], vr: VR, format: Format, scale: Scale, voxels: &mut Vec<f32>) {
    let put = |raw: u32| (scale.slope * format.value(raw) + scale.intercept) as f32;
    let little = format.syntax.little();
    match format.bits_allocated {
        // Bytes within big-endian words (VR OW) are swapped (PS3.5, 7.3).
        8 if !little && vr == VR::OW => {
            voxels.extend((0..raw.len()).map(|n| put(u32::from(*raw.get(n ^ 1).unwrap_or(&raw[n])))));
        }
        8 => voxels.extend(raw.iter().map(|&byte| put(u32::from(byte)))),
        16 => voxels.extend(raw.as_chunks().0.iter().map(|&pair| {
            put(u32::from(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }))
        })),
        _ => voxels.extend(
            raw.as_chunks()
                .0
                .iter()
                .map(|&quad| put(if little { u32::from_le_bytes(quad) } else { u32::from_be_bytes(quad) })),
        ),
    }
}
