//! One stored file as slices: what its attributes say of it, and its pixels frame by frame.

use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::attributes::{Attributes, label, missing};
use super::dataset::{self, DataSet, PixelElement, Walk};
use super::frame::Frame;
use super::groups::MAX_FRAMES;
use super::pixels::{Format, Frames, Scale};
use super::series;
use super::syntax::Syntax;
use super::{Other, name, not_an_image};
use crate::volume::{Source, SourceKind, Volume, VolumeError};

/// Most pixels of one slice; no scan comes near.
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

/// Storage SOP classes that are read as slices (PS3.4, B.5): what a listener may accept.
///
/// A file is read whatever its class as long as it is a grayscale image with a place in the patient; these are the ones
/// made to be a volume.
pub const STORAGE_CLASSES: &[&str] = &[
    uids::CT_IMAGE_STORAGE,
    uids::MR_IMAGE_STORAGE,
    uids::POSITRON_EMISSION_TOMOGRAPHY_IMAGE_STORAGE,
    ENHANCED_CLASSES[0],
    ENHANCED_CLASSES[1],
    ENHANCED_CLASSES[2],
    ENHANCED_CLASSES[3],
    ENHANCED_CLASSES[4],
    ENHANCED_CLASSES[5],
];

/// Of which the frames are slices, each with its place in functional groups.
const ENHANCED_CLASSES: [&str; 6] = [
    uids::ENHANCED_CT_IMAGE_STORAGE,
    uids::ENHANCED_MR_IMAGE_STORAGE,
    uids::ENHANCED_PET_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE,
    uids::LEGACY_CONVERTED_ENHANCED_PET_IMAGE_STORAGE,
];

/// Of these, too, an instance without pixel data is a broken one.
const OTHER_IMAGE_CLASSES: [&str; 3] = [
    uids::NUCLEAR_MEDICINE_IMAGE_STORAGE,
    uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
    uids::SECONDARY_CAPTURE_IMAGE_STORAGE,
];

/// One stored DICOM image, its pixels left in the file: a slice, or as many as it has frames.
///
/// This is what a series is made of before it is one: [`super::Arrangement::new`] puts instances together, and
/// [`Self::read_slices`] gives the pixels of one as they arrive.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub(super) path: PathBuf,
    pub(super) sop_uid: String,
    pub(super) series_uid: String,
    pub(super) study_uid: Option<String>,
    pub(super) modality: Option<String>,
    pub(super) body_part: Option<String>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) format: Format,
    /// How many images the scanner says were acquired.
    pub(super) acquired: Option<f64>,
    /// Whether its frames have functional groups.
    pub(super) enhanced: bool,
    /// At least one.
    pub(super) frames: Vec<Frame>,
}

/// A file that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRead {
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// What is odd about it, as the beginning of a sentence that ends with where.
    pub odd: Option<String>,
}

/// What a DICOM file holds.
pub(super) enum Content {
    Image(Box<Instance>),
    /// Something else.
    Other(Other),
}

impl Instance {
    /// Reads the attributes of an image, not its pixels.
    ///
    /// # Errors
    /// A file that is no image, or one of a kind that is not read, with the reason.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        match Self::look_at(path)? {
            Content::Image(instance) => Ok(*instance),
            Content::Other(other) => Err(not_an_image(path, other)),
        }
    }

    pub(super) fn look_at(path: &Path) -> Result<Content, VolumeError> {
        let mut source = dataset::open(path)?;
        Ok(match begin(path, &mut source)? {
            Begun::Image(instance, ..) => Content::Image(instance),
            Begun::Other(other) => Content::Other(other),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SOP Instance UID (0008,0018).
    pub fn sop_uid(&self) -> &str {
        &self.sop_uid
    }

    /// Series Instance UID (0020,000E).
    pub fn series_uid(&self) -> &str {
        &self.series_uid
    }

    /// How many slices it holds: 1, or its frames.
    pub fn slices(&self) -> usize {
        self.frames.len()
    }

    /// Whether its least value is white (MONOCHROME1). The voxels of such a slice are turned by the range of the whole
    /// series, which is not known before all of it is there: [`super::Arrangement::stands_alone`] then says whether what
    /// was read before was right.
    pub fn is_inverted(&self) -> bool {
        self.format.inverted
    }

    /// Reads every slice as a volume of its own, as if the series consisted of it alone, and hands it to `each` with its
    /// index among the file's frames.
    ///
    /// The voxels are those of the slice within its series, bit for bit, and so are the steps along rows and columns,
    /// wherever [`super::Arrangement::stands_alone`] says so. The third step is along the slice's normal by its thickness,
    /// or 1 mm.
    pub fn read_slices(&self, mut each: impl FnMut(usize, Volume)) -> Result<FileRead, VolumeError> {
        let mirror = |n: usize| self.own_mirror(n);
        let (odd, sha256) = self.read_frames(mirror, |n, voxels| each(n, self.slice(n, voxels)))?;
        Ok(FileRead { sha256, odd })
    }

    /// A slice as a volume; its digest is that of no series and left empty.
    fn slice(&self, frame: usize, voxels: &[f32]) -> Volume {
        let source = Source {
            kind: SourceKind::Dicom,
            path: self.path.clone(),
            digest: String::new(),
            study_uid: self.study_uid.clone(),
            series_uid: Some(self.series_uid.clone()),
            instances: vec![self.sop_uid.clone()],
            frames: self.frame_number(frame).into_iter().collect(),
            modality: self.modality.clone(),
            body_part: self.body_part.clone(),
        };
        let geometry = series::geometry_alone(&self.frames[frame]);
        let dims = [self.columns, self.rows, 1];
        Volume { dims, voxels: voxels.to_vec(), geometry, source, warnings: Vec::new() }
    }

    /// The number of a frame as Referenced Frame Number (0008,1160) counts; `None` where there is but the file.
    pub(super) fn frame_number(&self, frame: usize) -> Option<u32> {
        self.enhanced.then_some(frame as u32 + 1)
    }

    /// What a frame is called in messages.
    pub(super) fn label(&self, frame: usize) -> String {
        match self.frame_number(frame) {
            Some(number) => format!("frame {number} of {}", name(&self.path)),
            None => name(&self.path),
        }
    }

    /// Of a MONOCHROME1 frame, the sum that [`series::mirror`] gives for it alone.
    pub(super) fn own_mirror(&self, frame: usize) -> Option<f64> {
        series::mirror([(self, &self.frames[frame])].into_iter())
    }

    /// Reads the frames in the file's order, in modality units; `mirror` as [`series::mirror`] gives it. What was odd, and
    /// the file's SHA-256.
    pub(super) fn read_frames(
        &self,
        mirror: impl Fn(usize) -> Option<f64>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(Option<String>, String), VolumeError> {
        let path = &self.path;
        let mut source = dataset::open(path)?;
        let Begun::Image(again, element, mut walk) = begin(path, &mut source)? else {
            return Err(changed(path));
        };
        if *again != *self {
            return Err(changed(path));
        }
        let size = [self.rows, self.columns];
        let mut frames = Frames::begin(&mut walk, element, self.format, size, self.frames.len())?;
        let mut voxels = Vec::new();
        for (n, frame) in self.frames.iter().enumerate() {
            let (slope, intercept) = frame.rescale;
            let scale = match mirror(n) {
                Some(sum) => Scale { slope: -slope, intercept: sum - intercept },
                None => Scale { slope, intercept },
            };
            frames.read(&mut walk, scale, &mut voxels)?;
            each(n, &voxels);
        }
        let odd = frames.finish(&mut walk)?;
        drop(walk);
        let digest = source.into_inner().finish().map_err(|error| VolumeError::io(path, error))?;
        Ok((odd, digest))
    }
}

fn changed(path: &Path) -> VolumeError {
    VolumeError::Damaged { path: path.to_owned(), problem: "it changed while it was read".to_owned() }
}

/// A file read up to its pixels.
enum Begun<'a> {
    Image(Box<Instance>, PixelElement, Walk<'a>),
    Other(Other),
}

/// Reads a file up to its pixels.
fn begin<'a>(path: &'a Path, source: &'a mut dataset::Source) -> Result<Begun<'a>, VolumeError> {
    let (meta, mut walk) = dataset::begin(path, source)?;
    let data_set = walk.data_set(&WANTED)?;
    let attributes = &data_set.attributes;
    let class = attributes.text(tags::SOP_CLASS_UID).or(meta.class).unwrap_or_default();
    let Some(pixel_data) = data_set.pixel_data else {
        // A cut-off image must not pass for something else, or a series would lack a slice in silence.
        if is_image(&class, attributes) {
            return Err(missing(tags::PIXEL_DATA, path));
        }
        let dicomdir = class == uids::MEDIA_STORAGE_DIRECTORY_STORAGE;
        return Ok(Begun::Other(if dicomdir { Other::Dicomdir } else { Other::Document }));
    };
    let syntax = Syntax::from_uid(&meta.syntax, path)?;
    let enhanced = ENHANCED_CLASSES.contains(&class.as_str());
    let frames = refuse_other_kinds(path, enhanced, attributes, pixel_data)?;
    let format = Format::read(path, attributes, syntax)?;
    let [rows, columns] = size(path, attributes)?;
    let instance = Instance {
        path: path.to_owned(),
        sop_uid: attributes.required_text(tags::SOP_INSTANCE_UID, path)?,
        series_uid: attributes.required_text(tags::SERIES_INSTANCE_UID, path)?,
        study_uid: attributes.text(tags::STUDY_INSTANCE_UID),
        modality: attributes.text(tags::MODALITY),
        body_part: attributes.text(tags::BODY_PART_EXAMINED),
        rows,
        columns,
        format,
        acquired: attributes.numbers::<1>(tags::IMAGES_IN_ACQUISITION, path).ok().flatten().map(|[n]| n),
        enhanced,
        frames: if enhanced {
            enhanced_frames(path, &data_set, frames)?
        } else {
            vec![Frame::read(path, &[attributes], false)?]
        },
    };
    Ok(Begun::Image(Box::new(instance), pixel_data, walk))
}

/// Every frame by its functional groups.
fn enhanced_frames(path: &Path, data_set: &DataSet, frames: usize) -> Result<Vec<Frame>, VolumeError> {
    let found = data_set.groups.frames.len();
    if found != frames {
        let problem = format!(
            "{} has {found} items where NumberOfFrames (0028,0008) is {frames}",
            label(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)
        );
        return Err(VolumeError::Damaged { path: path.to_owned(), problem });
    }
    (0..frames).map(|n| Frame::read(path, &data_set.groups.of_frame(n), true)).collect()
}

/// Whether the attributes are those of an image, pixel data or not.
pub(super) fn is_image(class: &str, attributes: &Attributes) -> bool {
    STORAGE_CLASSES.contains(&class) || OTHER_IMAGE_CLASSES.contains(&class) || attributes.has(tags::ROWS)
}

/// Refuses what is no grayscale slice; how many frames there are.
fn refuse_other_kinds(
    path: &Path,
    enhanced: bool,
    attributes: &Attributes,
    pixel_data: PixelElement,
) -> Result<usize, VolumeError> {
    let refuse = |found: String, instead: &str| {
        Err(VolumeError::Unsupported { path: path.to_owned(), found, instead: instead.to_owned() })
    };
    let frames = attributes.numbers::<1>(tags::NUMBER_OF_FRAMES, path)?.map_or(1.0, |[n]| n);
    let groups = [tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE];
    #[allow(clippy::float_cmp, reason = "a count, exact in the file")]
    if !enhanced && (frames != 1.0 || groups.iter().any(|&tag| attributes.has(tag))) {
        return refuse(
            format!("a multi-frame image that is neither enhanced CT, MR nor PET (NumberOfFrames {frames})"),
            "convert it to one file a slice",
        );
    }
    if !(1.0..=MAX_FRAMES as f64).contains(&frames) || frames.fract() != 0.0 {
        let expected = format!("a number from 1 to {MAX_FRAMES}");
        return Err(VolumeError::field(path, label(tags::NUMBER_OF_FRAMES), frames, expected));
    }
    if pixel_data.tag != tags::PIXEL_DATA {
        return refuse(label(pixel_data.tag), "convert it to integers with a rescale slope");
    }
    if attributes.has(tags::MODALITY_LUT_SEQUENCE) {
        let found = label(tags::MODALITY_LUT_SEQUENCE);
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
    Ok(frames as usize)
}

fn size(path: &Path, attributes: &Attributes) -> Result<[usize; 2], VolumeError> {
    let mut size = [0; 2];
    for (size, tag) in size.iter_mut().zip([tags::ROWS, tags::COLUMNS]) {
        *size = usize::from(attributes.required_short(tag, path)?);
        if *size == 0 {
            return Err(VolumeError::field(path, label(tag), 0, "at least 1"));
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
