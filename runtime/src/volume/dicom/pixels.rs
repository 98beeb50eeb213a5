//! Pixels, from how they are stored to modality units.

use std::path::Path;

use dicom_core::VR;
use dicom_dictionary_std::tags;

use super::attributes::{Attributes, label};
use super::dataset::{PixelElement, Walk};
use super::fragments::Fragments;
use super::syntax::Syntax;
use super::{codec, rle};
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

/// Reads the frames of one file's pixel data, one after the other.
pub(super) struct Frames {
    element: PixelElement,
    format: Format,
    size: [usize; 2],
    count: usize,
    given: usize,
    /// Where the frames are codestreams or runs.
    fragments: Option<Fragments>,
    /// A frame as it is in the file, and its pixels; kept between frames.
    coded: Vec<u8>,
    raw: Vec<u8>,
}

impl Frames {
    /// `walk` stands behind the header of the pixel data, `element`; `size` is Rows × Columns.
    pub(super) fn begin(
        walk: &mut Walk,
        element: PixelElement,
        format: Format,
        size: [usize; 2],
        frames: usize,
    ) -> Result<Self, VolumeError> {
        let frame = size[0] * size[1] * format.bytes();
        let fragments = match (element.length, format.syntax) {
            (Some(_), Syntax::Little | Syntax::Big) => None,
            (None, Syntax::Rle | Syntax::Coded(_)) => {
                Some(Fragments::begin(walk, format.syntax, frames, frame)?)
            }
            (None, _) => {
                let problem = "its pixel data is encapsulated although its transfer syntax is not";
                return Err(walk.damaged(problem));
            }
            (Some(_), _) => {
                let name = format.syntax.name();
                let problem = format!("its pixel data is not encapsulated although it should hold {name}");
                return Err(walk.damaged(&problem));
            }
        };
        let (coded, raw) = (Vec::new(), Vec::new());
        Ok(Self { element, format, size, count: frames, given: 0, fragments, coded, raw })
    }

    /// Puts the next frame's pixels into `voxels`, rows from the top.
    pub(super) fn read(
        &mut self,
        walk: &mut Walk,
        scale: Scale,
        voxels: &mut Vec<f32>,
    ) -> Result<(), VolumeError> {
        let [rows, columns] = self.size;
        let mut format = self.format;
        match (&mut self.fragments, format.syntax) {
            (Some(fragments), syntax) => {
                fragments.read(walk, &mut self.coded)?;
                if let Syntax::Coded(coding) = syntax {
                    format = codec::decode(&self.coded, coding, self.size, format, &mut self.raw)
                        .map_err(|fault| walk.fault(coding.name(), fault))?;
                } else {
                    rle::decode(&self.coded, rows * columns, format.bytes(), &mut self.raw)
                        .map_err(|problem| walk.damaged(&format!("its RLE data {problem}")))?;
                }
            }
            (None, _) => self.read_native(walk, rows * columns * format.bytes())?,
        }
        self.given += 1;
        voxels.clear();
        convert(&self.raw, self.element.vr, format, scale, voxels);
        Ok(())
    }

    fn read_native(&mut self, walk: &mut Walk, frame: usize) -> Result<(), VolumeError> {
        let start = self.given * frame;
        let left = (self.element.length.unwrap_or(0) as usize).saturating_sub(start);
        self.raw.clear();
        walk.read(left.min(frame) as u32, &mut self.raw)?;
        if self.raw.len() < frame {
            let (found, expected) = ((start + self.raw.len()) as u64, (self.count * frame) as u64);
            return Err(walk.truncated("pixel data", found, expected));
        }
        Ok(())
    }

    /// After the last frame: what was odd behind it.
    pub(super) fn finish(&self, walk: &mut Walk) -> Result<Option<String>, VolumeError> {
        let mut odd = None;
        if let (None, Some(length)) = (&self.fragments, self.element.length) {
            let [rows, columns] = self.size;
            let more = (length as usize).saturating_sub(self.count * rows * columns * self.format.bytes());
            walk.skip(more as u32)?;
            // An odd number of bytes is padded to an even one.
            if more > 1 {
                odd = Some(format!("{more} bytes of pixel data beyond Rows × Columns were ignored"));
            }
        }
        if walk.trailing_bytes() {
            odd = Some("bytes after the pixel data were ignored".to_owned());
        }
        Ok(odd)
    }
}

fn convert(raw: &[u8], vr: VR, format: Format, scale: Scale, voxels: &mut Vec<f32>) {
    let put = |raw: u32| (scale.slope * format.value(raw) + scale.intercept) as f32;
    let little = format.syntax != Syntax::Big;
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
