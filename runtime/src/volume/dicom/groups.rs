//! Functional groups of an enhanced image (PS3.3, C.7.6.16): what all frames share, and what each has for itself.

use dicom_core::Tag;
use dicom_core::header::{HasLength, Header};
use dicom_dictionary_std::tags;

use super::attributes::Attributes;
use super::dataset::Walk;
use crate::volume::VolumeError;

/// The sequences and, of their one item, the attributes that are read.
const MACROS: [(Tag, &[Tag]); 13] = [
    (tags::PLANE_POSITION_SEQUENCE, &[tags::IMAGE_POSITION_PATIENT]),
    (tags::PLANE_ORIENTATION_SEQUENCE, &[tags::IMAGE_ORIENTATION_PATIENT]),
    (tags::PIXEL_MEASURES_SEQUENCE, &[tags::PIXEL_SPACING, tags::SLICE_THICKNESS]),
    (tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, &[tags::RESCALE_INTERCEPT, tags::RESCALE_SLOPE]),
    (tags::FRAME_CONTENT_SEQUENCE, &[tags::STACK_ID, tags::TEMPORAL_POSITION_INDEX]),
    (tags::CT_IMAGE_FRAME_TYPE_SEQUENCE, &[tags::FRAME_TYPE]),
    (tags::MR_IMAGE_FRAME_TYPE_SEQUENCE, &[tags::FRAME_TYPE]),
    (tags::PET_FRAME_TYPE_SEQUENCE, &[tags::FRAME_TYPE]),
    (tags::MR_ECHO_SEQUENCE, &[tags::EFFECTIVE_ECHO_TIME]),
    (tags::MR_DIFFUSION_SEQUENCE, &[tags::DIFFUSION_B_VALUE]),
    (tags::CT_RECONSTRUCTION_SEQUENCE, &[tags::CONVOLUTION_KERNEL]),
    // Where a conversion of single-frame images keeps what has no place of its own (PS3.3, C.7.6.16.2.25 and .26).
    (tags::UNASSIGNED_SHARED_CONVERTED_ATTRIBUTES_SEQUENCE, CONVERTED),
    (tags::UNASSIGNED_PER_FRAME_CONVERTED_ATTRIBUTES_SEQUENCE, CONVERTED),
];

const CONVERTED: &[Tag] = &[tags::ECHO_TIME, tags::TEMPORAL_POSITION_IDENTIFIER];

/// Most frames that one file may hold.
pub(super) const MAX_FRAMES: usize = 1 << 16;

/// The functional groups that were read.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Those of the Shared Functional Groups Sequence (5200,9229): one item, or none.
    pub(super) shared: Vec<Attributes>,
    /// Those of the Per-Frame Functional Groups Sequence (5200,9230): an item a frame.
    pub(super) frames: Vec<Attributes>,
}

impl Groups {
    /// Where to look for an attribute of a frame: its own groups, then the shared ones.
    pub(super) fn of_frame(&self, frame: usize) -> Vec<&Attributes> {
        self.frames.get(frame).into_iter().chain(&self.shared).collect()
    }
}

/// Reads a functional groups sequence; `length` as in its header.
pub(super) fn read(walk: &mut Walk, length: Option<u32>) -> Result<Vec<Attributes>, VolumeError> {
    let mut items = Vec::new();
    walk.items(length, |walk, length| {
        if items.len() == MAX_FRAMES {
            return Err(walk.damaged(&format!("it has functional groups of more than {MAX_FRAMES} frames")));
        }
        let mut attributes = walk.no_attributes();
        walk.elements(length, |walk, header| {
            match MACROS.iter().find(|(sequence, _)| *sequence == header.tag()) {
                Some((_, wanted)) => {
                    let length = header.length().get();
                    walk.items(length, |walk, length| take(walk, length, wanted, &mut attributes))
                }
                None => walk.pass(header),
            }
        })?;
        items.push(attributes);
        Ok(())
    })?;
    Ok(items)
}

fn take(
    walk: &mut Walk,
    length: Option<u32>,
    wanted: &[Tag],
    out: &mut Attributes,
) -> Result<(), VolumeError> {
    walk.elements(length, |walk, header| {
        if wanted.contains(&header.tag()) {
            let value = walk.value(header)?;
            out.insert(header.tag(), value);
            return Ok(());
        }
        walk.pass(header)
    })
}
