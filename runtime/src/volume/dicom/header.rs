//! What one stored file says of itself, for whoever must decide what to do with it before a series is whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use firmware_config::Plane;

use super::attributes::{Attributes, missing};
use super::dataset::{self, DataSet};
use super::frame::{find, orientation};
use super::instance::is_image;
use super::is_dicom;
use crate::volume::geometry::cross;
use crate::volume::{Geometry, VolumeError};

/// The attributes of one DICOM file that say what it is, never who the patient is nor when; its pixels are not read.
///
/// Of an enhanced image, thickness, kernel, orientation and position are those of its first frame. Text is as the file has it, without padding; an attribute that is missing, empty or unreadable is `None`, since
/// nothing of it is needed to store the file. [`crate::volume::open`] is stricter.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// SOP Class UID (0008,0016).
    pub sop_class: String,
    /// SOP Instance UID (0008,0018).
    pub sop_uid: String,
    /// Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// Series Instance UID (0020,000E); every image has one.
    pub series_uid: Option<String>,
    /// Transfer Syntax UID (0002,0010), whether it can be decoded or not.
    pub transfer_syntax: String,
    /// Whether the file holds pixel data: reports, presentation states, waveforms and the index of a medium do not.
    pub is_image: bool,
    /// Modality (0008,0060).
    pub modality: Option<String>,
    /// Body Part Examined (0018,0015).
    pub body_part: Option<String>,
    /// Series Description (0008,103E), free text: a site may have written anything into it.
    pub series_description: Option<String>,
    /// Protocol Name (0018,1030), free text.
    pub protocol_name: Option<String>,
    /// Convolution Kernel (0018,1210).
    pub convolution_kernel: Option<String>,
    /// Whether a contrast agent was given: Contrast/Bolus Agent (0018,0010) names one, or its sequence (0018,0012)
    /// is there.
    pub contrast_agent: bool,
    /// Slice Thickness (0018,0050) in mm.
    pub slice_thickness: Option<f64>,
    /// The values of Image Type (0008,0008), such as `ORIGINAL`, `PRIMARY`, `AXIAL`.
    pub image_type: Vec<String>,
    /// Images in Acquisition (0020,1002).
    pub images_in_acquisition: Option<u32>,
    /// Number of Frames (0028,0008); 1 where the file does not say.
    pub number_of_frames: u32,
    /// Direction of a row, and of a column, as unit vectors in LPS (PS3.3, C.7.6.2.1.1).
    pub orientation: Option<[[f64; 3]; 2]>,
    /// Centre of the first pixel in mm, LPS (PS3.3, C.7.6.2.1.1).
    pub position: Option<[f64; 3]>,
}

const WANTED: [Tag; 23] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::IMAGE_TYPE,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::MODALITY,
    tags::SERIES_DESCRIPTION,
    tags::CONTRAST_BOLUS_AGENT,
    tags::CONTRAST_BOLUS_AGENT_SEQUENCE,
    tags::BODY_PART_EXAMINED,
    tags::SLICE_THICKNESS,
    tags::PROTOCOL_NAME,
    tags::CONVOLUTION_KERNEL,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::IMAGE_POSITION_PATIENT,
    tags::IMAGE_ORIENTATION_PATIENT,
    tags::IMAGES_IN_ACQUISITION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PIXEL_SPACING,
];

impl Header {
    /// Reads a file up to its pixel data, whatever its storage class and however its pixels are compressed.
    ///
    /// # Errors
    /// A file that is not DICOM, that is damaged up to its pixel data, that lacks the UIDs by which it is told apart,
    /// or an image that lacks its pixel data altogether. Pixel data that ends early is told when it is read.
    pub fn read(path: &Path) -> Result<Self, VolumeError> {
        check_prefix(path)?;
        let mut source = dataset::open(path)?;
        let (meta, mut walk) = dataset::begin(path, &mut source)?;
        let DataSet { attributes, groups, pixel_data } = walk.data_set(&WANTED)?;
        let sop_class = attributes.text(tags::SOP_CLASS_UID).or(meta.class);
        let sop_class = sop_class.ok_or_else(|| missing(tags::SOP_CLASS_UID, path))?;
        let sop_uid = attributes.text(tags::SOP_INSTANCE_UID).or(meta.instance);
        let sop_uid = sop_uid.ok_or_else(|| missing(tags::SOP_INSTANCE_UID, path))?;
        if pixel_data.is_none() && is_image(&sop_class, &attributes) {
            return Err(missing(tags::PIXEL_DATA, path));
        }
        let series_uid = attributes.text(tags::SERIES_INSTANCE_UID);
        if pixel_data.is_some() && series_uid.is_none() {
            return Err(missing(tags::SERIES_INSTANCE_UID, path));
        }
        // Of an enhanced image, what its first frame says.
        let layers: Vec<&Attributes> = groups.of_frame(0).into_iter().chain([&attributes]).collect();
        let of = |tag| find(&layers, tag).unwrap_or(&attributes);
        let number = |tag| of(tag).numbers::<1>(tag, path).ok().flatten().map(|[x]| x);
        let count = |tag| number(tag).filter(|n| (1.0..=f64::from(u32::MAX)).contains(n)).map(|n| n as u32);
        Ok(Self {
            sop_class,
            sop_uid,
            study_uid: attributes.text(tags::STUDY_INSTANCE_UID),
            series_uid,
            transfer_syntax: meta.syntax,
            is_image: pixel_data.is_some(),
            modality: attributes.text(tags::MODALITY),
            body_part: attributes.text(tags::BODY_PART_EXAMINED),
            series_description: attributes.free_text(tags::SERIES_DESCRIPTION),
            protocol_name: attributes.free_text(tags::PROTOCOL_NAME),
            convolution_kernel: of(tags::CONVOLUTION_KERNEL).free_text(tags::CONVOLUTION_KERNEL),
            contrast_agent: contrast_agent(&attributes),
            slice_thickness: number(tags::SLICE_THICKNESS).filter(|&mm| mm > 0.0),
            image_type: values(attributes.text(tags::IMAGE_TYPE)),
            images_in_acquisition: count(tags::IMAGES_IN_ACQUISITION),
            number_of_frames: count(tags::NUMBER_OF_FRAMES).unwrap_or(1),
            orientation: orientation(path, of(tags::IMAGE_ORIENTATION_PATIENT)).ok(),
            position: of(tags::IMAGE_POSITION_PATIENT)
                .numbers(tags::IMAGE_POSITION_PATIENT, path)
                .ok()
                .flatten(),
        })
    }

    /// The plane of the slices, to the nearest patient axis; `None` without an orientation.
    pub fn plane(&self) -> Option<Plane> {
        let [row, column] = self.orientation?;
        // From LPS to RAS; planes have no direction, but one that is 45° off is settled as for a volume.
        let ras = |[x, y, z]: [f64; 3]| [0.0 - x, 0.0 - y, z];
        let steps = [ras(row), ras(column), ras(cross(row, column))];
        Some(Geometry::from_columns(steps, [0.0; 3]).plane())
    }
}

fn check_prefix(path: &Path) -> Result<(), VolumeError> {
    let io = |source| VolumeError::io(path, source);
    let mut start = Vec::with_capacity(132);
    File::open(path).map_err(io)?.take(132).read_to_end(&mut start).map_err(io)?;
    if is_dicom(&start) {
        return Ok(());
    }
    Err(VolumeError::Format { path: path.to_owned(), found: "not DICOM".to_owned() })
}

/// Some scanners write that there was none rather than leave the attribute out.
fn contrast_agent(attributes: &Attributes) -> bool {
    let none = ["NONE", "NO", "N", "WITHOUT", "NO CONTRAST", "0"];
    attributes.has(tags::CONTRAST_BOLUS_AGENT_SEQUENCE)
        || attributes
            .text(tags::CONTRAST_BOLUS_AGENT)
            .is_some_and(|agent| !none.contains(&agent.to_ascii_uppercase().as_str()))
}

fn values(text: Option<String>) -> Vec<String> {
    text.map(|text| text.split('\\').map(|value| value.trim().to_owned()).collect()).unwrap_or_default()
}
