//! What a file's attributes say about one frame: where it lies, and what kind of frame it is.

use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::attributes::{Attributes, label, missing};
use crate::volume::VolumeError;
use crate::volume::geometry::{dot, norm};

/// One frame, its pixels left in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    /// Distance between rows, between columns, in mm (PS3.3, 10.7.1.3).
    pub(super) spacing: [f64; 2],
    /// Centre of the first pixel in mm, LPS (PS3.3, C.7.6.2.1.1).
    pub(super) position: [f64; 3],
    /// Direction of a row, and of a column, LPS.
    pub(super) orientation: [[f64; 3]; 2],
    /// Slice thickness in mm.
    pub(super) thickness: Option<f64>,
    /// Rescale slope and intercept.
    pub(super) rescale: (f64, f64),
    /// For each of [`KINDS`] what the frame says of it.
    pub(super) kind: [Option<String>; KINDS.len()],
}

/// What the frames of one volume must agree in, and how a series is called in which they do not.
pub(super) const KINDS: [(Tag, &str); 7] = [
    (tags::FRAME_TYPE, "frame types"),
    (tags::STACK_ID, "stacks"),
    (tags::TEMPORAL_POSITION_INDEX, "temporal positions"),
    (tags::TEMPORAL_POSITION_IDENTIFIER, "temporal positions"),
    (tags::EFFECTIVE_ECHO_TIME, "echoes"),
    (tags::ECHO_TIME, "echoes"),
    (tags::DIFFUSION_B_VALUE, "diffusion weightings"),
];

impl Frame {
    /// `layers` are the places where the frame's attributes may stand, the first that has one being right: the data set
    /// itself, or the frame's own functional groups and then the shared ones.
    pub(super) fn read(path: &Path, layers: &[&Attributes], enhanced: bool) -> Result<Self, VolumeError> {
        let of = |tag| find(layers, tag).ok_or_else(|| missing(tag, path));
        let kind = |(tag, _): (Tag, _)| find(layers, tag).filter(|_| enhanced).and_then(|l| l.shown(tag));
        let thickness = find(layers, tags::SLICE_THICKNESS);
        let thickness = thickness.map(|l| l.numbers::<1>(tags::SLICE_THICKNESS, path)).transpose()?.flatten();
        Ok(Self {
            spacing: spacing(path, of(tags::PIXEL_SPACING)?)?,
            position: of(tags::IMAGE_POSITION_PATIENT)?
                .numbers(tags::IMAGE_POSITION_PATIENT, path)?
                .ok_or_else(|| missing(tags::IMAGE_POSITION_PATIENT, path))?,
            orientation: orientation(path, of(tags::IMAGE_ORIENTATION_PATIENT)?)?,
            thickness: thickness.map(|[mm]| mm).filter(|&mm| mm > 0.0),
            rescale: rescale(path, layers)?,
            kind: KINDS.map(kind),
        })
    }
}

/// The first of `layers` that has an attribute.
pub(super) fn find<'a>(layers: &[&'a Attributes], tag: Tag) -> Option<&'a Attributes> {
    layers.iter().copied().find(|layer| layer.has(tag))
}

fn spacing(path: &Path, attributes: &Attributes) -> Result<[f64; 2], VolumeError> {
    let tag = tags::PIXEL_SPACING;
    let spacing: [f64; 2] = attributes.numbers(tag, path)?.ok_or_else(|| missing(tag, path))?;
    if spacing.iter().all(|mm| (1e-6..=1e6).contains(mm)) {
        Ok(spacing)
    } else {
        let found = format!("{} and {}", spacing[0], spacing[1]);
        Err(VolumeError::field(path, label(tag), found, "two distances above 0 mm"))
    }
}

/// Two unit vectors at right angles (PS3.3, C.7.6.2.1.1); rounding in the file's decimals is mended.
pub(super) fn orientation(path: &Path, attributes: &Attributes) -> Result<[[f64; 3]; 2], VolumeError> {
    let tag = tags::IMAGE_ORIENTATION_PATIENT;
    let [a, b, c, d, e, f] = attributes.numbers(tag, path)?.ok_or_else(|| missing(tag, path))?;
    let (row, column) = ([a, b, c], [d, e, f]);
    let unit = |v| (norm(v) - 1.0).abs() < 0.01;
    if unit(row) && unit(column) && dot(row, column).abs() < 0.01 {
        Ok([row.map(|x| x / norm(row)), column.map(|x| x / norm(column))])
    } else {
        let found = format!("{row:?} and {column:?}");
        Err(VolumeError::field(path, label(tag), found, "two unit vectors at right angles"))
    }
}

/// Slope and intercept of modality units (PS3.3, C.11.1); (1, 0) where the file says neither.
fn rescale(path: &Path, layers: &[&Attributes]) -> Result<(f64, f64), VolumeError> {
    let number = |tag| find(layers, tag).map(|l| l.numbers::<1>(tag, path)).transpose().map(Option::flatten);
    let slope = number(tags::RESCALE_SLOPE)?.map_or(1.0, |[x]| x);
    let intercept = number(tags::RESCALE_INTERCEPT)?.map_or(0.0, |[x]| x);
    // So that no 32-bit pixel leaves the range of f32.
    let fits = slope.abs() * 4.3e9 + intercept.abs() < f64::from(f32::MAX);
    if slope != 0.0 && fits {
        Ok((slope, intercept))
    } else {
        let found = format!("{slope} with intercept {intercept}");
        let expected = "a slope other than 0 that keeps voxels within 32-bit floats";
        Err(VolumeError::field(path, label(tags::RESCALE_SLOPE), found, expected))
    }
}
