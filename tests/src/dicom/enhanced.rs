//! Writing enhanced multi-frame images: every slice a frame, its place in functional groups.

use std::path::Path;

use anyhow::{Context, Result};
use dicom_core::value::{DataSetSequence, PixelFragmentSequence, Value};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use runtime::volume::Volume;

use super::{SeriesOptions, Syntax, decimals, lps, pixel_data, put_short, put_text, rle, slice, stored};

/// An enhanced image before it is written.
pub struct Enhanced {
    /// The data set without its functional groups.
    pub top: InMemDicomObject,
    /// The item of the Shared Functional Groups Sequence (5200,9229).
    pub shared: InMemDicomObject,
    /// The items of the Per-Frame Functional Groups Sequence (5200,9230).
    pub frames: Vec<InMemDicomObject>,
}

/// Sets a macro of a functional group: a sequence of one item of text attributes.
pub fn put_macro(group: &mut InMemDicomObject, sequence: Tag, attributes: &[(Tag, VR, &str)]) {
    let mut item = InMemDicomObject::new_empty();
    for &(tag, vr, value) in attributes {
        put_text(&mut item, tag, vr, value);
    }
    put_items(group, sequence, vec![item]);
}

/// Sets a macro of one attribute that is no text.
pub fn put_number(group: &mut InMemDicomObject, sequence: Tag, tag: Tag, vr: VR, value: PrimitiveValue) {
    let mut item = InMemDicomObject::new_empty();
    item.put(DataElement::new(tag, vr, value));
    put_items(group, sequence, vec![item]);
}

/// Sets a sequence.
pub fn put_items(object: &mut InMemDicomObject, sequence: Tag, items: Vec<InMemDicomObject>) {
    object.put(DataElement::new(sequence, VR::SQ, Value::Sequence(DataSetSequence::from(items))));
}

/// Gives an image shared and per-frame functional groups.
pub fn put_groups(top: &mut InMemDicomObject, shared: InMemDicomObject, frames: Vec<InMemDicomObject>) {
    put_items(top, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
    put_items(top, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames);
}

/// Writes a volume as one enhanced CT or MR image; `order` has the slice that each frame shows.
///
/// `edit` may change it before.
pub fn write_enhanced(
    path: &Path,
    volume: &Volume,
    options: &SeriesOptions,
    order: &[usize],
    edit: impl FnOnce(&mut Enhanced),
) -> Result<()> {
    let mut top = slice(volume, options, 0)?;
    for tag in [
        tags::IMAGE_POSITION_PATIENT,
        tags::IMAGE_ORIENTATION_PATIENT,
        tags::PIXEL_SPACING,
        tags::SLICE_THICKNESS,
        tags::RESCALE_SLOPE,
        tags::RESCALE_INTERCEPT,
    ] {
        top.remove_element(tag);
    }
    let ct = options.modality == "CT";
    let class = if ct { uids::ENHANCED_CT_IMAGE_STORAGE } else { uids::ENHANCED_MR_IMAGE_STORAGE };
    put_text(&mut top, tags::SOP_CLASS_UID, VR::UI, class);
    put_text(&mut top, tags::NUMBER_OF_FRAMES, VR::IS, &order.len().to_string());
    put_short(&mut top, tags::ROWS, volume.dims[1] as u16);
    let pixels = order.iter().map(|&k| stored(volume, options, k)).collect::<Result<Vec<_>>>()?;
    top.put(if options.syntax == Syntax::Rle {
        let fragments = pixels.iter().map(|frame| rle(frame, usize::from(options.bits_allocated / 8)));
        let fragments = PixelFragmentSequence::new_fragments(fragments.collect::<Vec<_>>());
        DataElement::new(tags::PIXEL_DATA, VR::OB, Value::PixelSequence(fragments))
    } else {
        pixel_data(&pixels.concat(), options)
    });

    let spacing = volume.spacing();
    let direction = |axis: usize| lps(volume.geometry.step(axis)).map(|x| x / spacing[axis]);
    let orientation = decimals([direction(0), direction(1)].as_flattened());
    let mut shared = InMemDicomObject::new_empty();
    let plane = tags::PLANE_ORIENTATION_SEQUENCE;
    put_macro(&mut shared, plane, &[(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &orientation)]);
    let measures = [
        (tags::SLICE_THICKNESS, VR::DS, &*decimals(&[spacing[2]])),
        (tags::PIXEL_SPACING, VR::DS, &*decimals(&[spacing[1], spacing[0]])),
    ];
    put_macro(&mut shared, tags::PIXEL_MEASURES_SEQUENCE, &measures);
    let rescale = [
        (tags::RESCALE_INTERCEPT, VR::DS, &*decimals(&[options.rescale.1])),
        (tags::RESCALE_SLOPE, VR::DS, &*decimals(&[options.rescale.0])),
    ];
    put_macro(&mut shared, tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, &rescale);
    let frames = order.iter().map(|&k| {
        let mut frame = InMemDicomObject::new_empty();
        let position = decimals(&lps(volume.geometry.position([0.0, 0.0, k as f64])));
        let place = [(tags::IMAGE_POSITION_PATIENT, VR::DS, &*position)];
        put_macro(&mut frame, tags::PLANE_POSITION_SEQUENCE, &place);
        frame
    });
    let frames = frames.collect();
    let mut enhanced = Enhanced { top, shared, frames };
    edit(&mut enhanced);
    let Enhanced { mut top, shared, frames } = enhanced;
    put_groups(&mut top, shared, frames);
    top.with_meta(FileMetaTableBuilder::new().transfer_syntax(options.syntax.uid()))
        .context("file meta information")?
        .write_to_file(path)
        .with_context(|| path.display().to_string())
}
