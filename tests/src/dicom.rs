//! Writing DICOM series, so that the same scan can be read as NIfTI and as DICOM.

pub mod enhanced;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use runtime::volume::Volume;

/// How pixel data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// Implicit VR little endian.
    ImplicitLittle,
    /// Explicit VR little endian.
    ExplicitLittle,
    /// Explicit VR big endian.
    ExplicitBig,
    /// Deflated explicit VR little endian.
    Deflated,
    /// RLE lossless.
    Rle,
}

impl Syntax {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ImplicitLittle, Self::ExplicitLittle, Self::ExplicitBig, Self::Deflated, Self::Rle];

    fn uid(self) -> &'static str {
        match self {
            Self::ImplicitLittle => uids::IMPLICIT_VR_LITTLE_ENDIAN,
            Self::ExplicitLittle => uids::EXPLICIT_VR_LITTLE_ENDIAN,
            Self::ExplicitBig => "1.2.840.10008.1.2.2",
            Self::Deflated => uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
            Self::Rle => uids::RLE_LOSSLESS,
        }
    }
}

/// How a series is written.
#[derive(Debug, Clone)]
pub struct SeriesOptions {
    /// Transfer syntax.
    pub syntax: Syntax,
    /// 8, 16 or 32.
    pub bits_allocated: u16,
    /// 1 to `bits_allocated`, from the lowest bit.
    pub bits_stored: u16,
    /// Two's complement rather than unsigned.
    pub signed: bool,
    /// Store the least value as white.
    pub monochrome1: bool,
    /// Rescale slope and intercept: voxel = slope × stored + intercept.
    pub rescale: (f64, f64),
    /// Name files so that their order is not that of the slices.
    pub shuffle: bool,
    /// Modality (0008,0060).
    pub modality: String,
    /// Body Part Examined (0018,0015).
    pub body_part: String,
    /// Series Instance UID; instances are numbered below it.
    pub series_uid: String,
}

impl Default for SeriesOptions {
    /// Signed 16 bits in explicit little endian, not rescaled.
    fn default() -> Self {
        Self {
            syntax: Syntax::ExplicitLittle,
            bits_allocated: 16,
            bits_stored: 16,
            signed: true,
            monochrome1: false,
            rescale: (1.0, 0.0),
            shuffle: false,
            modality: "MR".into(),
            body_part: "HEAD".into(),
            series_uid: "1.2.826.0.1.3680043.10.99.1".into(),
        }
    }
}

/// Writes each slice along the third stored axis as one file of `folder`, which must exist.
///
/// Voxels become integers by `options.rescale`; one that does not fit its bits is an error. The patient in the files is
/// "Secret^Name", so that tests can see that no name comes out.
pub fn write_series(folder: &Path, volume: &Volume, options: &SeriesOptions) -> Result<()> {
    write_edited(folder, volume, options, |_, _| ())
}

/// As [`write_series`]; `edit` may change each slice before it is written, by its index along the third axis.
pub fn write_edited(
    folder: &Path,
    volume: &Volume,
    options: &SeriesOptions,
    mut edit: impl FnMut(usize, &mut InMemDicomObject),
) -> Result<()> {
    for k in 0..volume.dims[2] {
        let mut slice = slice(volume, options, k)?;
        edit(k, &mut slice);
        let number = if options.shuffle { (k as u32 + 1).wrapping_mul(2_654_435_761) } else { k as u32 };
        let path = folder.join(format!("{number:010}.dcm"));
        slice
            .with_meta(FileMetaTableBuilder::new().transfer_syntax(options.syntax.uid()))
            .context("file meta information")?
            .write_to_file(&path)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Sets a text attribute.
pub fn put_text(slice: &mut InMemDicomObject, tag: Tag, vr: VR, value: &str) {
    slice.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
}

/// Sets an attribute of one unsigned 16-bit number.
pub fn put_short(slice: &mut InMemDicomObject, tag: Tag, value: u16) {
    slice.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
}

fn slice(volume: &Volume, options: &SeriesOptions, k: usize) -> Result<InMemDicomObject> {
    let mut slice = InMemDicomObject::new_empty();
    let class = if options.modality == "CT" { uids::CT_IMAGE_STORAGE } else { uids::MR_IMAGE_STORAGE };
    let spacing = volume.spacing();
    let direction = |axis: usize| lps(volume.geometry.step(axis)).map(|x| x / spacing[axis]);
    let position = lps(volume.geometry.position([0.0, 0.0, k as f64]));
    let texts = [
        (tags::SOP_CLASS_UID, VR::UI, class.to_owned()),
        (tags::SOP_INSTANCE_UID, VR::UI, format!("{}.{}", options.series_uid, k + 1)),
        (tags::MODALITY, VR::CS, options.modality.clone()),
        (tags::PATIENT_NAME, VR::PN, "Secret^Name".to_owned()),
        (tags::PATIENT_ID, VR::LO, "SECRET-ID".to_owned()),
        (tags::STUDY_DATE, VR::DA, "19991231".to_owned()),
        (tags::BODY_PART_EXAMINED, VR::CS, options.body_part.clone()),
        (tags::SLICE_THICKNESS, VR::DS, decimals(&[spacing[2]])),
        // Wrong on purpose: the distance comes from the positions.
        (tags::SPACING_BETWEEN_SLICES, VR::DS, "0.125".to_owned()),
        (tags::STUDY_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.99".to_owned()),
        (tags::SERIES_INSTANCE_UID, VR::UI, options.series_uid.clone()),
        (tags::INSTANCE_NUMBER, VR::IS, (volume.dims[2] - k).to_string()),
        (tags::IMAGE_POSITION_PATIENT, VR::DS, decimals(&position)),
        (tags::IMAGE_ORIENTATION_PATIENT, VR::DS, decimals([direction(0), direction(1)].as_flattened())),
        (tags::PIXEL_SPACING, VR::DS, decimals(&[spacing[1], spacing[0]])),
        (
            tags::PHOTOMETRIC_INTERPRETATION,
            VR::CS,
            if options.monochrome1 { "MONOCHROME1" } else { "MONOCHROME2" }.to_owned(),
        ),
        (tags::RESCALE_SLOPE, VR::DS, decimals(&[options.rescale.0])),
        (tags::RESCALE_INTERCEPT, VR::DS, decimals(&[options.rescale.1])),
    ];
    for (tag, vr, value) in texts {
        put_text(&mut slice, tag, vr, &value);
    }
    let shorts = [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, volume.dims[1] as u16),
        (tags::COLUMNS, volume.dims[0] as u16),
        (tags::BITS_ALLOCATED, options.bits_allocated),
        (tags::BITS_STORED, options.bits_stored),
        (tags::HIGH_BIT, options.bits_stored - 1),
        (tags::PIXEL_REPRESENTATION, u16::from(options.signed)),
    ];
    for (tag, value) in shorts {
        put_short(&mut slice, tag, value);
    }
    slice.put(pixel_data(&stored(volume, options, k)?, options));
    Ok(slice)
}

fn lps([x, y, z]: [f64; 3]) -> [f64; 3] {
    [-x, -y, z]
}

/// The stored values of a slice, as the low `bits_stored` bits.
fn stored(volume: &Volume, options: &SeriesOptions, k: usize) -> Result<Vec<u32>> {
    let size = 1i64 << options.bits_stored;
    let (least, most) = if options.signed { (-size / 2, size / 2 - 1) } else { (0, size - 1) };
    let pixels = volume.dims[0] * volume.dims[1];
    let (slope, intercept) = options.rescale;
    let value = |&voxel: &f32| {
        let value = ((f64::from(voxel) - intercept) / slope).round() as i64;
        ensure!((least..=most).contains(&value), "voxel {voxel} does not fit {} bits", options.bits_stored);
        let value = if options.monochrome1 { least + most - value } else { value };
        Ok((value & (size - 1)) as u32)
    };
    volume.voxels[k * pixels..(k + 1) * pixels].iter().map(value).collect()
}

fn pixel_data(stored: &[u32], options: &SeriesOptions) -> DataElement<InMemDicomObject> {
    if options.syntax == Syntax::Rle {
        let fragment = rle(stored, usize::from(options.bits_allocated / 8));
        let fragments = PixelFragmentSequence::new_fragments(vec![fragment]);
        return DataElement::new(tags::PIXEL_DATA, VR::OB, Value::PixelSequence(fragments));
    }
    let (vr, value) = match options.bits_allocated {
        8 => (VR::OB, PrimitiveValue::U8(stored.iter().map(|&v| v as u8).collect())),
        16 => (VR::OW, PrimitiveValue::U16(stored.iter().map(|&v| v as u16).collect())),
        // 32-bit pixels are OW too, two words each, the order of which is that of the bytes.
        _ if options.syntax == Syntax::ExplicitBig => {
            let words = stored.iter().flat_map(|&v| [(v >> 16) as u16, v as u16]);
            (VR::OW, PrimitiveValue::U16(words.collect()))
        }
        _ => {
            let words = stored.iter().flat_map(|&v| [v as u16, (v >> 16) as u16]);
            (VR::OW, PrimitiveValue::U16(words.collect()))
        }
    };
    DataElement::new(tags::PIXEL_DATA, vr, value)
}

/// RLE lossless (PS3.5, Annex G) with runs where two bytes or more are equal.
fn rle(stored: &[u32], bytes: usize) -> Vec<u8> {
    let mut out = vec![0; 64];
    out[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    for segment in 0..bytes {
        let start = (out.len() as u32).to_le_bytes();
        out[4 * segment + 4..4 * segment + 8].copy_from_slice(&start);
        let shift = 8 * (bytes - 1 - segment);
        let plane: Vec<u8> = stored.iter().map(|&v| (v >> shift) as u8).collect();
        let mut rest = &plane[..];
        while let [first, ..] = rest {
            let run = rest.iter().take(128).take_while(|byte| *byte == first).count();
            if run > 1 {
                out.extend([(257 - run) as u8, *first]);
                rest = &rest[run..];
            } else {
                let pairs = rest.windows(2).take(127);
                let literal = pairs.take_while(|pair| pair[0] != pair[1]).count().max(1);
                out.push((literal - 1) as u8);
                out.extend(&rest[..literal]);
                rest = &rest[literal..];
            }
        }
        if out.len() % 2 == 1 {
            out.push(0x80);
        }
    }
    out
}

/// Decimal strings (VR DS) of at most 16 characters each.
fn decimals(values: &[f64]) -> String {
    let one = |value: &f64| {
        let exact = value.to_string();
        if exact.len() <= 16 {
            return exact;
        }
        let rounded = |digits: usize| format!("{value:.digits$}");
        (0..14).rev().map(rounded).find(|text| text.len() <= 16).unwrap_or_else(|| format!("{value:.8e}"))
    };
    values.iter().map(one).collect::<Vec<_>>().join("\\")
}
