//! The slices of one series: ordered, checked, given a geometry from headers alone, and then read.

use std::path::{Path, PathBuf};

use firmware_config::Observed;

use super::frame::{Frame, KINDS};
use super::instance::Instance;
use super::{attributes, name};
use crate::volume::geometry::{Fault, Geometry, cross, dot};
use crate::volume::hashing::Hashing;
use crate::volume::{MAX_VOXELS, Source, SourceKind, Volume, VolumeError};

/// How far a step between slices may be off the usual one, as a part of it.
const STEP_TOLERANCE: f64 = 0.1;
/// Slices nearer than this part of a millimetre lie at one place.
const SAME_PLACE: f64 = 0.01;

/// A series put in order: which slice comes where, and where that is in the patient. No pixel has been read yet.
///
/// The reader of whole series goes through this type, so what is arranged slice by slice is arranged as it would be.
#[derive(Debug, Clone)]
pub struct Arrangement {
    origin: PathBuf,
    /// Without those that repeat another.
    instances: Vec<Instance>,
    /// Index of instance and frame of each slice, along the third axis.
    order: Vec<(usize, usize)>,
    geometry: Geometry,
    mirror: Option<f64>,
    warnings: Vec<String>,
}

impl Arrangement {
    /// Orders the slices of a series by their position and checks that they are one volume: one size, one orientation, one
    /// kind of frame, at equal distances, without holes or two slices in one place. Neither file names, instance numbers
    /// nor the order of `instances` matter.
    ///
    /// `origin` is the file or folder that messages name.
    ///
    /// # Errors
    /// Instances that are no volume, in one sentence that names the slices which do not fit.
    pub fn new(origin: &Path, mut instances: Vec<Instance>) -> Result<Self, VolumeError> {
        let series = |problem| VolumeError::Series { path: origin.to_owned(), problem };
        let mut warnings = Vec::new();
        let duplicates = drop_duplicates(&mut instances).map_err(series)?;
        if duplicates > 0 {
            warnings
                .push(format!("{duplicates} files repeat the SOP Instance UID of another and were skipped"));
        }
        let mut slices: Vec<Slice> = (0..instances.len()).flat_map(|n| Slice::all(&instances, n)).collect();
        if slices.is_empty() {
            return Err(series("it has no image".to_owned()));
        }
        check_uniform(&slices).map_err(series)?;
        let step = order(&mut slices).map_err(series)?;
        let first = &slices[0];
        let step = step.unwrap_or_else(|| {
            let said = match first.frame.thickness {
                Some(_) => "its SliceThickness",
                None => "1 mm, for want of SliceThickness",
            };
            warnings
                .push(format!("the series has one slice, the distance between slices was taken from {said}"));
            step_alone(first.frame)
        });
        let found = slices.len() as f64;
        if let Some(said) = first.instance.acquired.filter(|&n| n > found) {
            let all = slices.iter().all(|slice| slice.instance.acquired == Some(said));
            if all && slices.len() > 1 {
                warnings.push(format!("ImagesInAcquisition says {said}, the series has {found} slices"));
            }
        }
        let geometry = geometry(first.frame, step);
        if let Some(fault) = geometry.fault() {
            let problem = match fault {
                Fault::Singular => "its slices lie at no distance from each other".to_owned(),
                Fault::Sheared { degrees } => {
                    format!("its slices are stacked {degrees:.1}° off their normal, as with a tilted gantry")
                }
            };
            return Err(VolumeError::Geometry { path: origin.to_owned(), problem });
        }
        let order = slices.iter().map(|slice| slice.place).collect();
        let mirror = mirror(slices.iter().map(|slice| (slice.instance, slice.frame)));
        Ok(Self { origin: origin.to_owned(), instances, order, geometry, mirror, warnings })
    }

    /// Number of columns, rows and slices.
    pub fn dims(&self) -> [usize; 3] {
        [self.instances[0].columns, self.instances[0].rows, self.order.len()]
    }

    /// Where the voxels will be.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What a reader should know, a sentence each. `odd` is what was found while the files were read
    /// ([`super::FileRead::odd`]), in the order of [`Self::instances`].
    pub fn warnings<'a>(&self, odd: impl IntoIterator<Item = (String, &'a Path)>) -> Vec<String> {
        let mut files: Vec<(String, &Path, usize)> = Vec::new();
        for (found, path) in odd {
            match files.iter_mut().find(|(text, ..)| *text == found) {
                Some((_, _, files)) => *files += 1,
                None => files.push((found, path, 1)),
            }
        }
        let told = files.into_iter().map(|(text, first, files)| match files {
            1 => format!("{text} in {}", name(first)),
            n => format!("{text} in {n} files, the first is {}", name(first)),
        });
        self.warnings.iter().cloned().chain(told).collect()
    }

    /// The instances that the slices come from, without those that repeat another, by SOP Instance UID.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// The slices along the third axis: of which instance, and which of its frames, from 0.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = (&Instance, usize)> {
        self.order.iter().map(|&(instance, frame)| (&self.instances[instance], frame))
    }

    /// The indices of the slices along the third axis in the order in which a recipe in the plane of acquisition shows them:
    /// ascending along the patient axis across that plane.
    pub fn ascending(&self) -> Vec<usize> {
        let map = self.geometry.reorientation();
        let flip = (0..3).any(|r| map.axis[r] == 2 && map.flip[r]);
        let slices = 0..self.order.len();
        if flip { slices.rev().collect() } else { slices.collect() }
    }

    /// What a plugin's `accepts` is compared with, as for the volume.
    pub fn observed(&self) -> Observed {
        let (first, geometry) = (&self.instances[self.order[0].0], &self.geometry);
        Observed {
            modality: first.modality.clone(),
            body_part: first.body_part.clone(),
            plane: geometry.plane(),
            slice_spacing_mm: geometry.spacing()[2],
            slices: self.order.len(),
        }
    }

    /// Whether slice `k` along the third axis, read by itself ([`Instance::read_slices`]), has the same voxels and the same
    /// steps along rows and columns, bit for bit, and lies along the same patient axes as within the series.
    ///
    /// Not so where files differ in the last decimals of spacing or orientation, which are then those of the first slice,
    /// nor where MONOCHROME1 slices differ in the range of what they can store. Such a series is to be read whole.
    pub fn stands_alone(&self, k: usize) -> bool {
        let (instance, frame) = self.order[k];
        let instance = &self.instances[instance];
        let alone = geometry_alone(&instance.frames[frame]);
        let bits = |geometry: &Geometry, axis| geometry.step(axis).map(f64::to_bits);
        [0, 1].iter().all(|&axis| bits(&alone, axis) == bits(&self.geometry, axis))
            && alone.reorientation() == self.geometry.reorientation()
            && instance.own_mirror(frame).map(f64::to_bits) == self.mirror.map(f64::to_bits)
    }

    /// What the volume says of where it comes from; `digest` by [`series_digest`].
    pub fn source(&self, digest: String) -> Source {
        let first = &self.instances[self.order[0].0];
        Source {
            kind: SourceKind::Dicom,
            path: self.origin.clone(),
            digest,
            study_uid: first.study_uid.clone(),
            series_uid: Some(first.series_uid.clone()),
            modality: first.modality.clone(),
            body_part: first.body_part.clone(),
            instances: self.slices().map(|(instance, _)| instance.sop_uid.clone()).collect(),
            // None where any is a file of its own: a number would say nothing there.
            frames: self
                .slices()
                .map(|(instance, frame)| instance.frame_number(frame))
                .collect::<Option<Vec<_>>>()
                .unwrap_or_default(),
        }
    }

    /// Reads the pixels of all slices, each file once.
    pub fn read(&self) -> Result<Volume, VolumeError> {
        let dims @ [columns, rows, slices] = self.dims();
        let pixels = columns * rows;
        let count = pixels * slices;
        if count > MAX_VOXELS {
            return Err(VolumeError::TooLarge {
                path: self.origin.clone(),
                what: format!("its number of voxels ({columns} × {rows} × {slices})"),
                found: count as u128,
                limit: MAX_VOXELS as u64,
            });
        }
        let mut voxels = Vec::new();
        voxels
            .try_reserve_exact(count)
            .map_err(|_| VolumeError::Memory { path: self.origin.clone(), bytes: 4 * count })?;
        voxels.resize(count, 0.0);
        let mut places: Vec<Vec<usize>> = self.instances.iter().map(|i| vec![0; i.slices()]).collect();
        for (k, &(instance, frame)) in self.order.iter().enumerate() {
            places[instance][frame] = k;
        }
        let mut digests = Vec::with_capacity(self.instances.len());
        let mut odd = Vec::new();
        for (instance, places) in self.instances.iter().zip(&places) {
            let (found, digest) = instance.read_frames(
                |_| self.mirror,
                |frame, slice| {
                    let start = places[frame] * pixels;
                    voxels[start..start + pixels].copy_from_slice(slice);
                },
            )?;
            odd.extend(found.map(|found| (found, instance.path.as_path())));
            digests.push(digest);
        }
        let warnings = self.warnings(odd);
        let source = self.source(series_digest(digests));
        Ok(Volume { dims, voxels, geometry: self.geometry, source, warnings })
    }
}

/// The digest of a series: SHA-256 of the sorted SHA-256 of its files (lower-case hexadecimal, one after the other), so that
/// neither names nor order matter.
pub fn series_digest(files: impl IntoIterator<Item = String>) -> String {
    let mut files: Vec<String> = files.into_iter().collect();
    files.sort();
    Hashing::of(files.concat().as_bytes())
}

/// A frame within its series.
struct Slice<'a> {
    instance: &'a Instance,
    frame: &'a Frame,
    /// Index of instance and frame.
    place: (usize, usize),
}

impl<'a> Slice<'a> {
    fn all(instances: &'a [Instance], n: usize) -> impl Iterator<Item = Self> {
        let instance = &instances[n];
        instance.frames.iter().enumerate().map(move |(f, frame)| Self { instance, frame, place: (n, f) })
    }

    fn label(&self) -> String {
        self.instance.label(self.place.1)
    }
}

/// Keeps one file of those with the same SOP Instance UID; how many went. They must say the same.
fn drop_duplicates(instances: &mut Vec<Instance>) -> Result<usize, String> {
    instances.sort_by(|a, b| a.sop_uid.cmp(&b.sop_uid).then_with(|| a.path.cmp(&b.path)));
    for pair in instances.windows(2) {
        let [a, b] = pair else { continue };
        let same = Instance { path: a.path.clone(), format: a.format, ..b.clone() } == *a;
        if a.sop_uid == b.sop_uid && !same {
            return Err(format!("{} and {} differ under one SOP Instance UID", name(&a.path), name(&b.path)));
        }
    }
    let before = instances.len();
    instances.dedup_by(|b, a| a.sop_uid == b.sop_uid);
    Ok(before - instances.len())
}

/// Series, size, kind of frame, pixel spacing, orientation and kind of pixel must be the same in all slices.
fn check_uniform(slices: &[Slice]) -> Result<(), String> {
    let first = &slices[0];
    let near = |a: &[f64], b: &[f64], most: f64| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= most);
    for other in slices {
        let differs = |what: &str, a: String, b: String| {
            Err(format!("{what} is {a} in {} and {b} in {}", first.label(), other.label()))
        };
        if other.instance.series_uid != first.instance.series_uid {
            return Err(format!("{} and {} are of different series", first.label(), other.label()));
        }
        if (other.instance.rows, other.instance.columns) != (first.instance.rows, first.instance.columns) {
            let show = |s: &Slice| format!("{} × {}", s.instance.rows, s.instance.columns);
            return differs("Rows × Columns", show(first), show(other));
        }
        for ((tag, what), (a, b)) in KINDS.iter().zip(first.frame.kind.iter().zip(&other.frame.kind)) {
            if let (Some(a), Some(b)) = (a, b)
                && a != b
            {
                let field = format!("it holds several {what}: {}", attributes::label(*tag));
                return differs(&field, a.clone(), b.clone());
            }
        }
        let (a, b) = (first.frame, other.frame);
        if !near(&b.spacing, &a.spacing, 1e-3 * a.spacing[0].min(a.spacing[1])) {
            return differs("PixelSpacing", format!("{:?}", a.spacing), format!("{:?}", b.spacing));
        }
        if !near(b.orientation.as_flattened(), a.orientation.as_flattened(), 1e-3) {
            let show = |frame: &Frame| format!("{:?}", frame.orientation);
            return differs("ImageOrientationPatient", show(a), show(b));
        }
        if other.instance.format.inverted != first.instance.format.inverted {
            let show =
                |s: &Slice| if s.instance.format.inverted { "MONOCHROME1" } else { "MONOCHROME2" }.to_owned();
            return differs("PhotometricInterpretation", show(first), show(other));
        }
    }
    Ok(())
}

/// Direction in which slices follow each other so that rows, columns and slices form a right-handed frame.
fn normal(frame: &Frame) -> [f64; 3] {
    cross(frame.orientation[0], frame.orientation[1])
}

/// The step to a next slice where there is none.
fn step_alone(frame: &Frame) -> [f64; 3] {
    normal(frame).map(|x| x * frame.thickness.unwrap_or(1.0))
}

/// Sorts slices along their normal by position alone; the step from one to the next, in mm, LPS.
///
/// SpacingBetweenSlices and SliceLocation are not asked: scanners fill them with other things.
fn order(slices: &mut [Slice]) -> Result<Option<[f64; 3]>, String> {
    let normal = normal(slices[0].frame);
    let along = |slice: &Slice| dot(slice.frame.position, normal);
    slices.sort_by(|a, b| along(a).total_cmp(&along(b)));
    let mut steps: Vec<f64> = slices.windows(2).map(|pair| along(&pair[1]) - along(&pair[0])).collect();
    if let Some(n) = steps.iter().position(|&step| step < SAME_PLACE) {
        let (a, b) = (slices[n].label(), slices[n + 1].label());
        return Err(format!("{a} and {b} are different slices at one position"));
    }
    let gaps = steps.clone();
    steps.sort_by(f64::total_cmp);
    let Some(&usual) = steps.get(steps.len() / 2) else { return Ok(None) };
    if let Some(n) = gaps.iter().position(|step| (step - usual).abs() > STEP_TOLERANCE * usual) {
        let (a, b) = (slices[n].label(), slices[n + 1].label());
        let missing = (gaps[n] / usual).round() - 1.0;
        let hole = if missing >= 1.0 { format!(", as if {missing} were missing") } else { String::new() };
        return Err(format!("slices are {usual:.3} mm apart, but {a} and {b} {:.3} mm{hole}", gaps[n]));
    }
    let (first, last) = (slices[0].frame.position, slices[slices.len() - 1].frame.position);
    let step: [f64; 3] = std::array::from_fn(|r| (last[r] - first[r]) / gaps.len() as f64);
    for (n, slice) in slices.iter().enumerate() {
        let off = std::array::from_fn(|r| slice.frame.position[r] - first[r] - step[r] * n as f64);
        let aside = (dot(off, off) - dot(off, normal).powi(2)).max(0.0).sqrt();
        if aside > STEP_TOLERANCE * usual + SAME_PLACE {
            return Err(format!("{} lies {aside:.3} mm beside the line of the other slices", slice.label()));
        }
    }
    Ok(Some(step))
}

/// PS3.3, C.7.6.2.1.1: rows run along the first axis, columns along the second. LPS becomes RAS.
fn geometry(first: &Frame, step: [f64; 3]) -> Geometry {
    // 0 - x and not -x: no negative zeros.
    let ras = |[x, y, z]: [f64; 3]| [0.0 - x, 0.0 - y, z];
    let [row, column] = first.orientation;
    let [between_rows, between_columns] = first.spacing;
    let steps = [row.map(|x| x * between_columns), column.map(|x| x * between_rows), step];
    Geometry::from_columns(steps.map(ras), ras(first.position))
}

/// The geometry of a slice as a series of its own.
pub(super) fn geometry_alone(frame: &Frame) -> Geometry {
    geometry(frame, step_alone(frame))
}

/// For MONOCHROME1, least plus greatest value that the slices can store, in modality units: a value `v` becomes this sum
/// less `v`, so that bright is more in all slices alike, whatever the slope of each. `None` for MONOCHROME2.
pub(super) fn mirror<'a>(slices: impl Iterator<Item = (&'a Instance, &'a Frame)>) -> Option<f64> {
    let ends = slices.filter(|(instance, _)| instance.format.inverted).flat_map(|(instance, frame)| {
        let (slope, intercept) = frame.rescale;
        instance.format.range().map(|end| slope * end + intercept)
    });
    let (least, most) =
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| (low.min(end), high.max(end)));
    (least <= most).then_some(least + most)
}
