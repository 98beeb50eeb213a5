//! What the headers of a series say together.

use std::collections::BTreeSet;

use firmware_config::Plane;

use crate::volume::Header;

/// A series as selection rules see it. Where its images disagree, all that they say is listed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedSeries {
    /// Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// Series Instance UID (0020,000E).
    pub series_uid: String,
    /// Modality (0008,0060).
    pub modality: Vec<String>,
    /// Body Part Examined (0018,0015).
    pub body_part: Vec<String>,
    /// Series Description (0008,103E): free text, which must not be logged or published.
    pub description: Vec<String>,
    /// Convolution Kernel (0018,1210).
    pub kernel: Vec<String>,
    /// The values of Image Type (0008,0008).
    pub image_type: Vec<String>,
    /// Whether an image names a contrast agent.
    pub contrast: bool,
    /// The planes of the images; empty where none says.
    pub plane: Vec<Plane>,
    /// Least and greatest Slice Thickness (0018,0050) in mm, where every image has one.
    pub slice_thickness_mm: Option<[f64; 2]>,
    /// The median distance from one slice to the next by their positions, in mm; `None` where a position is missing or
    /// not all images lie in one plane.
    pub slice_spacing_mm: Option<f64>,
    /// Number of slices: images, or their frames.
    pub slices: usize,
}

impl ObservedSeries {
    /// From the headers of one series' images; those without pixel data are passed over. `None` if no image is left.
    pub fn from_headers(headers: &[Header]) -> Option<Self> {
        let images: Vec<&Header> = headers.iter().filter(|header| header.is_image).collect();
        let first = images.first()?;
        let distinct = |value: &dyn Fn(&Header) -> Option<String>| -> Vec<String> {
            images.iter().filter_map(|header| value(header)).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let split = |value: &dyn Fn(&Header) -> Vec<String>| -> Vec<String> {
            images.iter().flat_map(|header| value(header)).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let mut plane: Vec<Plane> = Vec::new();
        for found in images.iter().filter_map(|header| header.plane()) {
            if !plane.contains(&found) {
                plane.push(found);
            }
        }
        let thickness: Option<Vec<f64>> = images.iter().map(|header| header.slice_thickness).collect();
        let ends = |mm: Vec<f64>| {
            mm.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], &x| [low.min(x), high.max(x)])
        };
        Some(Self {
            study_uid: first.study_uid.clone(),
            series_uid: first.series_uid.clone().unwrap_or_default(),
            modality: distinct(&|header| header.modality.clone()),
            body_part: distinct(&|header| header.body_part.clone()),
            description: distinct(&|header| header.series_description.clone()),
            kernel: split(&|header| {
                let kernel = header.convolution_kernel.as_deref().unwrap_or_default();
                kernel.split('\\').map(|k| k.trim().to_owned()).filter(|k| !k.is_empty()).collect()
            }),
            image_type: split(&|header| header.image_type.clone()),
            contrast: images.iter().any(|header| header.contrast_agent),
            slice_spacing_mm: if plane.len() == 1 { spacing(&images) } else { None },
            plane,
            slice_thickness_mm: thickness.map(ends),
            slices: images.iter().map(|header| header.number_of_frames as usize).sum(),
        })
    }
}

/// Median distance along the first image's normal.
fn spacing(images: &[&Header]) -> Option<f64> {
    let [[a, b, c], [d, e, f]] = images.first()?.orientation?;
    let normal = [b * f - c * e, c * d - a * f, a * e - b * d];
    let along = |header: &&Header| {
        let [x, y, z] = header.position?;
        Some(x * normal[0] + y * normal[1] + z * normal[2])
    };
    let mut places: Vec<f64> = images.iter().map(along).collect::<Option<_>>()?;
    places.sort_by(f64::total_cmp);
    let mut steps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_by(f64::total_cmp);
    steps.get(steps.len() / 2).copied()
}
