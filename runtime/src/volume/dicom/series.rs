//! The slices of one series, ordered, checked and put together.

use std::path::Path;

use super::instance::{Begun, Instance, begin};
use super::pixels::{self, Scale, Slice};
use super::{dataset, name};
use crate::volume::geometry::{Fault, Geometry, cross, dot};
use crate::volume::hashing::Hashing;
use crate::volume::{MAX_VOXELS, Source, SourceKind, Volume, VolumeError};

/// How far a step between slices may be off the usual one, as a part of it.
const STEP_TOLERANCE: f64 = 0.1;
/// Slices nearer than this part of a millimetre lie at one place.
const SAME_PLACE: f64 = 0.01;

/// Puts a series together: `origin` is the file or folder given, `instances` at least one.
pub(super) fn assemble(origin: &Path, mut instances: Vec<Instance>) -> Result<Volume, VolumeError> {
    let series = |problem| VolumeError::Series { path: origin.to_owned(), problem };
    let mut warnings = Vec::new();
    let duplicates = drop_duplicates(&mut instances).map_err(series)?;
    if duplicates > 0 {
        warnings.push(format!("{duplicates} files repeat the SOP Instance UID of another and were skipped"));
    }
    check_uniform(&instances).map_err(series)?;
    let step = order(&mut instances).map_err(series)?;
    let step = step.unwrap_or_else(|| {
        let first = &instances[0];
        let mm = first.thickness.unwrap_or(1.0);
        let said =
            if first.thickness.is_some() { "its SliceThickness" } else { "1 mm, for want of SliceThickness" };
        warnings.push(format!("the series has one slice, the distance between slices was taken from {said}"));
        normal(first).map(|x| x * mm)
    });
    let found = instances.len() as f64;
    if let Some(said) = instances[0].acquired.filter(|&n| n > found) {
        let all = instances.iter().all(|instance| instance.acquired == Some(said));
        if all && instances.len() > 1 {
            warnings.push(format!("ImagesInAcquisition says {said}, the series has {found} slices"));
        }
    }
    let geometry = geometry(&instances[0], step);
    if let Some(fault) = geometry.fault() {
        let problem = match fault {
            Fault::Singular => "its slices lie at no distance from each other".to_owned(),
            Fault::Sheared { degrees } => {
                format!("its slices are stacked {degrees:.1}° off their normal, as with a tilted gantry")
            }
        };
        return Err(VolumeError::Geometry { path: origin.to_owned(), problem });
    }
    let (voxels, digest) = read_pixels(origin, &instances, &mut warnings)?;
    let first = &instances[0];
    let source = Source {
        kind: SourceKind::Dicom,
        path: origin.to_owned(),
        digest,
        study_uid: first.study_uid.clone(),
        series_uid: Some(first.series_uid.clone()),
        modality: first.modality.clone(),
        body_part: first.body_part.clone(),
        instances: instances.iter().map(|instance| instance.sop_uid.clone()).collect(),
    };
    Ok(Volume { dims: [first.columns, first.rows, instances.len()], voxels, geometry, source, warnings })
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

/// Size, pixel spacing, orientation and kind of pixel must be the same in all slices.
fn check_uniform(instances: &[Instance]) -> Result<(), String> {
    let first = &instances[0];
    let near = |a: &[f64], b: &[f64], most: f64| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= most);
    for other in instances {
        let differs = |what: &str, a: String, b: String| {
            Err(format!("{what} is {a} in {} and {b} in {}", name(&first.path), name(&other.path)))
        };
        if (other.rows, other.columns) != (first.rows, first.columns) {
            let show = |i: &Instance| format!("{} × {}", i.rows, i.columns);
            return differs("Rows × Columns", show(first), show(other));
        }
        if !near(&other.spacing, &first.spacing, 1e-3 * first.spacing[0].min(first.spacing[1])) {
            return differs("PixelSpacing", format!("{:?}", first.spacing), format!("{:?}", other.spacing));
        }
        if !near(other.orientation.as_flattened(), first.orientation.as_flattened(), 1e-3) {
            let show = |i: &Instance| format!("{:?}", i.orientation);
            return differs("ImageOrientationPatient", show(first), show(other));
        }
        if other.format.inverted != first.format.inverted {
            let show =
                |i: &Instance| if i.format.inverted { "MONOCHROME1" } else { "MONOCHROME2" }.to_owned();
            return differs("PhotometricInterpretation", show(first), show(other));
        }
    }
    Ok(())
}

/// Direction in which slices follow each other so that rows, columns and slices form a right-handed frame.
fn normal(instance: &Instance) -> [f64; 3] {
    cross(instance.orientation[0], instance.orientation[1])
}

/// Sorts slices along their normal by position alone; the step from one to the next, in mm, LPS.
///
/// SpacingBetweenSlices and SliceLocation are not asked: scanners fill them with other things.
fn order(instances: &mut [Instance]) -> Result<Option<[f64; 3]>, String> {
    let normal = normal(&instances[0]);
    let along = |instance: &Instance| dot(instance.position, normal);
    instances.sort_by(|a, b| along(a).total_cmp(&along(b)));
    let mut steps: Vec<f64> = instances.windows(2).map(|pair| along(&pair[1]) - along(&pair[0])).collect();
    if let Some(n) = steps.iter().position(|&step| step < SAME_PLACE) {
        let (a, b) = (name(&instances[n].path), name(&instances[n + 1].path));
        return Err(format!("{a} and {b} are different slices at one position"));
    }
    let gaps = steps.clone();
    steps.sort_by(f64::total_cmp);
    let Some(&usual) = steps.get(steps.len() / 2) else { return Ok(None) };
    if let Some(n) = gaps.iter().position(|step| (step - usual).abs() > STEP_TOLERANCE * usual) {
        let (a, b) = (name(&instances[n].path), name(&instances[n + 1].path));
        let missing = (gaps[n] / usual).round() - 1.0;
        let hole = if missing >= 1.0 { format!(", as if {missing} were missing") } else { String::new() };
        return Err(format!("slices are {usual:.3} mm apart, but {a} and {b} {:.3} mm{hole}", gaps[n]));
    }
    let (first, last) = (instances[0].position, instances[instances.len() - 1].position);
    let step: [f64; 3] = std::array::from_fn(|r| (last[r] - first[r]) / gaps.len() as f64);
    for (n, instance) in instances.iter().enumerate() {
        let off = std::array::from_fn(|r| instance.position[r] - first[r] - step[r] * n as f64);
        let aside = (dot(off, off) - dot(off, normal).powi(2)).max(0.0).sqrt();
        if aside > STEP_TOLERANCE * usual + SAME_PLACE {
            return Err(format!(
                "{} lies {aside:.3} mm beside the line of the other slices",
                name(&instance.path)
            ));
        }
    }
    Ok(Some(step))
}

/// PS3.3, C.7.6.2.1.1: rows run along the first axis, columns along the second. LPS becomes RAS.
fn geometry(first: &Instance, step: [f64; 3]) -> Geometry {
    // 0 - x and not -x: no negative zeros.
    let ras = |[x, y, z]: [f64; 3]| [0.0 - x, 0.0 - y, z];
    let [row, column] = first.orientation;
    let [between_rows, between_columns] = first.spacing;
    let steps = [row.map(|x| x * between_columns), column.map(|x| x * between_rows), step];
    Geometry::from_columns(steps.map(ras), ras(first.position))
}

/// The voxels slice by slice, and the digest of the series.
fn read_pixels(
    origin: &Path,
    instances: &[Instance],
    warnings: &mut Vec<String>,
) -> Result<(Vec<f32>, String), VolumeError> {
    let first = &instances[0];
    let count = first.rows * first.columns * instances.len();
    if count > MAX_VOXELS {
        return Err(VolumeError::TooLarge {
            path: origin.to_owned(),
            what: format!("its number of voxels ({} × {} × {})", first.columns, first.rows, instances.len()),
            found: count as u128,
            limit: MAX_VOXELS as u64,
        });
    }
    let mut voxels = Vec::new();
    voxels
        .try_reserve_exact(count)
        .map_err(|_| VolumeError::Memory { path: origin.to_owned(), bytes: 4 * count })?;
    let mirror = mirror(instances);
    let mut digests = Vec::with_capacity(instances.len());
    let mut odd: Vec<(String, String, usize)> = Vec::new();
    let mut raw = Vec::new();
    for instance in instances {
        let path = &instance.path;
        let mut source = dataset::open(path)?;
        let Begun::Image(again, element, mut walk) = begin(path, &mut source)? else {
            return Err(changed(path));
        };
        if *again != *instance {
            return Err(changed(path));
        }
        let (slope, intercept) = instance.rescale;
        let scale = match mirror {
            Some(sum) => Scale { slope: -slope, intercept: sum - intercept },
            None => Scale { slope, intercept },
        };
        let pixels = instance.rows * instance.columns;
        let slice = Slice { path, element, format: instance.format, pixels, scale };
        let warning = pixels::read(&slice, &mut walk, &mut raw, &mut voxels)?;
        drop(walk);
        if let Some(warning) = warning {
            match odd.iter_mut().find(|(text, ..)| *text == warning) {
                Some((_, _, files)) => *files += 1,
                None => odd.push((warning, name(path), 1)),
            }
        }
        digests.push(source.into_inner().finish().map_err(|error| VolumeError::io(path, error))?);
    }
    warnings.extend(odd.into_iter().map(|(text, file, files)| match files {
        1 => format!("{text} in {file}"),
        n => format!("{text} in {n} files, the first is {file}"),
    }));
    digests.sort();
    let digest = Hashing::new(digests.concat().as_bytes()).finish();
    Ok((voxels, digest.map_err(|error| VolumeError::io(origin, error))?))
}

/// For MONOCHROME1, least plus greatest value that the series can store, in modality units: a value `v` becomes
/// this sum less `v`, so that bright is more in all slices alike, whatever the slope of each.
fn mirror(instances: &[Instance]) -> Option<f64> {
    if !instances[0].format.inverted {
        return None;
    }
    let ends = instances.iter().flat_map(|instance| {
        let (slope, intercept) = instance.rescale;
        instance.format.range().map(|end| slope * end + intercept)
    });
    let (least, most) =
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| (low.min(end), high.max(end)));
    Some(least + most)
}

fn changed(path: &Path) -> VolumeError {
    VolumeError::Damaged { path: path.to_owned(), problem: "it changed while it was read".to_owned() }
}
