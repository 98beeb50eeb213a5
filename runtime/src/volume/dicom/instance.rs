//! What an instance's attributes say about its one slice.

use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::dataset::{self, Attributes, PixelElement, Walk, missing};
use super::pixels::Format;
use crate::volume::VolumeError;

/// Most pixels of one slice; no single-frame scan comes near.
const MAX_PIXELS: usize = 1 << 26;

/// What is read of a data set. No attribute that says who the patient is, nor when.
const WANTED: [Tag; 25] = [
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::MODALITY,
    tags::BODY_PART_EXAMINED,
    tags::SLICE_THICKNESS,
    tags::IMAGE_POSITION_PATIENT,
    tags::IMAGE_ORIENTATION_PATIENT,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::PIXEL_SPACING,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::RESCALE_INTERCEPT,
    tags::RESCALE_SLOPE,
    tags::MODALITY_LUT_SEQUENCE,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::IMAGES_IN_ACQUISITION,
];

/// Of these an instance without pixel data is a broken one.
const IMAGE_CLASSES: [&str; 6] = [
    uids::CT_IMAGE_STORAGE,
    uids::MR_IMAGE_STORAGE,
    uids::POSITRON_EMISSION_TOMOGRAPHY_IMAGE_STORAGE,
    uids::NUCLEAR_MEDICINE_IMAGE_STORAGE,
    uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
    uids::SECONDARY_CAPTURE_IMAGE_STORAGE,
];

const ENHANCED_CLASSES: [&str; 6] = [
    uids::ENHANCED_CT_IMAGE_STORAGE,
    uids::ENHANCED_MR_IMAGE_STORAGE,
    uids::ENHANCED_PET_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_PET_IMAGE_STORAGE,
];

/// One slice, its pixels left in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Instance {
    pub(super) path: PathBuf,
    pub(super) sop_uid: String,
    pub(super) series_uid: String,
    pub(super) study_uid: Option<String>,
    pub(super) modality: Option<String>,
    pub(super) body_part: Option<String>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Distance between rows, between columns, in mm (PS3.3, 10.7.1.3).
    pub(super) spacing: [f64; 2],
    /// Centre of the first pixel in mm, LPS (PS3.3, C.7.6.2.1.1).
    pub(super) position: [f64; 3],
    /// Direction of a row, and of a column, LPS.
    pub(super) orientation: [[f64; 3]; 2],
    /// Slice thickness in mm.
    pub(super) thickness: Option<f64>,
    pub(super) format: Format,
    /// Rescale slope and intercept.
    pub(super) rescale: (f64, f64),
    /// How many images the scanner says were acquired.
    pub(super) acquired: Option<f64>,
}

/// What a DICOM file holds.
pub(super) enum Content {
    Image(Box<Instance>),
    /// Something else.
    Other(Other),
}

/// What is not an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    /// The index of a medium (PS3.10, 8.6).
    Dicomdir,
    /// A report, a presentation state, …
    Document,
}

impl Instance {
    /// Reads the attributes of a file, not its pixels.
    pub(super) fn read(path: &Path) -> Result<Content, VolumeError> {
        let mut source = dataset::open(path)?;
        Ok(match begin(path, &mut source)? {
            Begun::Image(instance, ..) => Content::Image(instance),
            Begun::Other(other) => Content::Other(other),
        })
    }
}

/// A file read up to its pixels.
pub(super) enum Begun<'a> {
    Image(Box<Instance>, PixelElement, Walk<'a>),
    Other(Other),
}

/// Reads a file up to its pixels.
pub(super) fn begin<'a>(path: &'a Path, source: &'a mut dataset::Source) -> Result<Begun<'a>, VolumeError> {
    let (meta, mut walk) = dataset::begin(path, source)?;
    let (attributes, pixel_data) = walk.attributes(&WANTED)?;
    let class = attributes.text(tags::SOP_CLASS_UID).or(meta.class).unwrap_or_default();
    let Some(pixel_data) = pixel_data else {
        // A cut-off image must not pass for something else, or a series would lack a slice in silence.
        if is_image(&class, &attributes) {
            return Err(missing(tags::PIXEL_DATA, path));
        }
        let dicomdir = class == uids::MEDIA_STORAGE_DIRECTORY_STORAGE;
        return Ok(Begun::Other(if dicomdir { Other::Dicomdir } else { Other::Document }));
    };
    let syntax = dataset::Syntax::from_uid(&meta.syntax, path)?;
    refuse_other_kinds(path, &class, &attributes, pixel_data)?;
    let format = Format::read(path, &attributes, syntax)?;
    let [rows, columns] = size(path, &attributes)?;
    let numbers = |tag| attributes.numbers::<1>(tag, path).map(|n| n.map(|[x]| x));
    let instance = Instance {
        path: path.to_owned(),
        sop_uid: attributes.required_text(tags::SOP_INSTANCE_UID, path)?,
        series_uid: attributes.required_text(tags::SERIES_INSTANCE_UID, path)?,
        study_uid: attributes.text(tags::STUDY_INSTANCE_UID),
        modality: attributes.text(tags::MODALITY),
        body_part: attributes.text(tags::BODY_PART_EXAMINED),
        rows,
        columns,
        spacing: spacing(path, &attributes)?,
        position: attributes
            .numbers(tags::IMAGE_POSITION_PATIENT, path)?
            .ok_or_else(|| missing(tags::IMAGE_POSITION_PATIENT, path))?,
        orientation: orientation(path, &attributes)?,
        thickness: numbers(tags::SLICE_THICKNESS)?.filter(|&mm| mm > 0.0),
        format,
        rescale: rescale(path, &attributes)?,
        acquired: numbers(tags::IMAGES_IN_ACQUISITION).ok().flatten(),
    };
    Ok(Begun::Image(Box::new(instance), pixel_data, walk))
}

/// Whether the attributes are those of an image, pixel data or not.
pub(super) fn is_image(class: &str, attributes: &Attributes) -> bool {
    IMAGE_CLASSES.contains(&class) || ENHANCED_CLASSES.contains(&class) || attributes.has(tags::ROWS)
}

fn refuse_other_kinds(
    path: &Path,
    class: &str,
    attributes: &Attributes,
    pixel_data: PixelElement,
) -> Result<(), VolumeError> {
    let refuse = |found: String, instead: &str| {
        Err(VolumeError::Unsupported { path: path.to_owned(), found, instead: instead.to_owned() })
    };
    let frames = attributes.numbers::<1>(tags::NUMBER_OF_FRAMES, path)?.map_or(1.0, |[n]| n);
    let functional_groups =
        [tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE];
    #[allow(clippy::float_cmp, reason = "a count, exact in the file")]
    if frames != 1.0
        || ENHANCED_CLASSES.contains(&class)
        || functional_groups.iter().any(|&tag| attributes.has(tag))
    {
        return refuse(
            format!("a multi-frame or enhanced image (NumberOfFrames {frames})"),
            "convert it to one file a slice",
        );
    }
    if pixel_data.tag != tags::PIXEL_DATA {
        return refuse(dataset::label(pixel_data.tag), "convert it to integers with a rescale slope");
    }
    if attributes.has(tags::MODALITY_LUT_SEQUENCE) {
        let found = dataset::label(tags::MODALITY_LUT_SEQUENCE);
        return refuse(found, "convert it to rescale slope and intercept");
    }
    let photometric = attributes.required_text(tags::PHOTOMETRIC_INTERPRETATION, path)?;
    let samples = attributes.required_short(tags::SAMPLES_PER_PIXEL, path)?;
    if samples != 1 || !["MONOCHROME1", "MONOCHROME2"].contains(&photometric.as_str()) {
        let photometric = photometric.escape_debug();
        return refuse(
            format!("a colour image ({samples} samples a pixel, {photometric})"),
            "give a grayscale series",
        );
    }
    Ok(())
}

fn size(path: &Path, attributes: &Attributes) -> Result<[usize; 2], VolumeError> {
    let mut size = [0; 2];
    for (size, tag) in size.iter_mut().zip([tags::ROWS, tags::COLUMNS]) {
        *size = usize::from(attributes.required_short(tag, path)?);
        if *size == 0 {
            return Err(VolumeError::field(path, dataset::label(tag), 0, "at least 1"));
        }
    }
    let pixels = size[0] * size[1];
    if pixels > MAX_PIXELS {
        return Err(VolumeError::TooLarge {
            path: path.to_owned(),
            what: format!("its number of pixels ({} × {})", size[0], size[1]),
            found: pixels as u128,
            limit: MAX_PIXELS as u64,
        });
    }
    Ok(size)
}

fn spacing(path: &Path, attributes: &Attributes) -> Result<[f64; 2], VolumeError> {
    let tag = tags::PIXEL_SPACING;
    let spacing: [f64; 2] = attributes.numbers(tag, path)?.ok_or_else(|| missing(tag, path))?;
    if spacing.iter().all(|mm| (1e-6..=1e6).contains(mm)) {
        Ok(spacing)
    } else {
        let found = format!("{} and {}", spacing[0], spacing[1]);
        Err(VolumeError::field(path, dataset::label(tag), found, "two distances above 0 mm"))
    }
}

/// Two unit vectors at right angles (PS3.3, C.7.6.2.1.1); rounding in the file's decimals is mended.
pub(super) fn orientation(path: &Path, attributes: &Attributes) -> Result<[[f64; 3]; 2], VolumeError> {
    use crate::volume::geometry::{dot, norm};
    let tag = tags::IMAGE_ORIENTATION_PATIENT;
    let [a, b, c, d, e, f] = attributes.numbers(tag, path)?.ok_or_else(|| missing(tag, path))?;
    let (row, column) = ([a, b, c], [d, e, f]);
    let unit = |v| (norm(v) - 1.0).abs() < 0.01;
    if unit(row) && unit(column) && dot(row, column).abs() < 0.01 {
        Ok([row.map(|x| x / norm(row)), column.map(|x| x / norm(column))])
    } else {
        let found = format!("{row:?} and {column:?}");
        Err(VolumeError::field(path, dataset::label(tag), found, "two unit vectors at right angles"))
    }
}

/// Slope and intercept of modality units (PS3.3, C.11.1); (1, 0) where the file says neither.
fn rescale(path: &Path, attributes: &Attributes) -> Result<(f64, f64), VolumeError> {
    let slope = attributes.numbers::<1>(tags::RESCALE_SLOPE, path)?.map_or(1.0, |[x]| x);
    let intercept = attributes.numbers::<1>(tags::RESCALE_INTERCEPT, path)?.map_or(0.0, |[x]| x);
    // So that no 32-bit pixel leaves the range of f32.
    let fits = slope.abs() * 4.3e9 + intercept.abs() < f64::from(f32::MAX);
    if slope != 0.0 && fits {
        Ok((slope, intercept))
    } else {
        let found = format!("{slope} with intercept {intercept}");
        let field = dataset::label(tags::RESCALE_SLOPE);
        Err(VolumeError::field(
            path,
            field,
            found,
            "a slope other than 0 that keeps voxels within 32-bit floats",
        ))
    }
}
