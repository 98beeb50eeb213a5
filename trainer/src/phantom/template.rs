//! Real scans, made ready for sampling.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use runtime::volume::{self, ReadOptions};

use super::suite::{Modality, Range, Raw, Split, Suite, Template};
use super::{PhantomError, tissue};

/// The real scans of a suite, in its order.
pub struct Templates(Vec<Anatomy>);

/// A real scan and where its tissue is.
pub(super) struct Anatomy {
    splits: Vec<Split>,
    mirror: bool,
    /// MR, or with a tone: 1 is the median of the tissue. CT: HU.
    image: Sampled,
    /// Whether only what the maps cover is shown.
    strip: bool,
    /// Their sum is the share of tissue.
    maps: Vec<Arc<Sampled>>,
    /// Only such values are tissue; `None` where the maps were made from the values.
    intensity: Option<Range>,
}

impl Templates {
    /// Reads the scans that a suite names, from the folder `assets`.
    pub fn load(suite: &Suite, assets: &Path) -> Result<Self, PhantomError> {
        let mut maps: HashMap<&str, Arc<Sampled>> = HashMap::new();
        let mut anatomies = Vec::new();
        for template in &suite.templates {
            let mut image = read(template, assets)?;
            for name in &template.tissue.maps {
                if !maps.contains_key(name.as_str()) {
                    let mut map = read_nifti(&template.name, &assets.join(name))?;
                    let most = map.voxels.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
                    map.voxels.iter_mut().for_each(|v| *v /= most);
                    maps.insert(name, Arc::new(map));
                }
            }
            let mut of_this: Vec<Arc<Sampled>> =
                template.tissue.maps.iter().map(|name| Arc::clone(&maps[name.as_str()])).collect();
            let mut intensity = Some(template.tissue.intensity);
            if of_this.is_empty() {
                of_this.push(Arc::new(tissue::connected(&image, &template.tissue)));
                intensity = None;
            } else if suite.modality == Modality::Mr || suite.tone.is_some() {
                scale_to_median(&template.name, &assets.join(&template.file), &mut image, &of_this)?;
            }
            let (splits, mirror, strip) = (template.splits.clone(), template.mirror, template.strip);
            anatomies.push(Anatomy { splits, mirror, image, strip, maps: of_this, intensity });
        }
        Ok(Self(anatomies))
    }

    /// The scan that the `nth` volume of its class in a split is made from: one after the other, so that
    /// both classes see each equally often.
    pub(super) fn pick(&self, split: Split, nth: usize) -> Option<&Anatomy> {
        let of_split: Vec<&Anatomy> = self.0.iter().filter(|a| a.splits.contains(&split)).collect();
        of_split.get(nth % of_split.len().max(1)).copied()
    }
}

impl Anatomy {
    /// Value and share of tissue at a point in mm; left and right change places in a mirrored one.
    ///
    /// Maps are cut to the values that are tissue in this very scan: what a map calls tissue but the
    /// subject has as fluid gets no finding.
    pub(super) fn at(&self, [x, y, z]: [f64; 3]) -> (f64, f64) {
        let point = [if self.mirror { -x } else { x }, y, z];
        let value = self.image.at(point);
        let covered = share(&self.maps, point);
        let is_tissue = self.intensity.is_none_or(|[low, high]| (low..=high).contains(&value));
        let tissue = if is_tissue { covered } else { 0.0 };
        // Fully shown from a quarter of tissue on, so that the cortex keeps its rim.
        (if self.strip { value * (4.0 * covered).min(1.0) } else { value }, tissue)
    }
}

/// The share of tissue that probability maps give a point.
fn share(maps: &[Arc<Sampled>], point: [f64; 3]) -> f64 {
    maps.iter().map(|m| m.at(point)).sum::<f64>().clamp(0.0, 1.0)
}

/// Divides an MR image by the median of its values where the maps have tissue.
fn scale_to_median(
    template: &str,
    path: &Path,
    image: &mut Sampled,
    maps: &[Arc<Sampled>],
) -> Result<(), PhantomError> {
    // Every third voxel along each axis is plenty for a median.
    let mut inside = Vec::new();
    for k in (0..image.dims[2]).step_by(3) {
        for j in (0..image.dims[1]).step_by(3) {
            for i in (0..image.dims[0]).step_by(3) {
                let point = apply(&image.affine, [i as f64, j as f64, k as f64]);
                if share(maps, point) > 0.5 {
                    inside.push(image.voxels[i + image.dims[0] * (j + image.dims[1] * k)]);
                }
            }
        }
    }
    let middle = inside.len() / 2;
    let median =
        if inside.is_empty() { 0.0 } else { *inside.select_nth_unstable_by(middle, f32::total_cmp).1 };
    if median <= 0.0 {
        return Err(scan_error(template, path, "no signal where its tissue maps have tissue", "some"));
    }
    image.voxels.iter_mut().for_each(|v| *v /= median);
    image.background /= median;
    Ok(())
}

/// An image that can be asked for its value at any point.
pub(super) struct Sampled {
    pub(super) dims: [usize; 3],
    pub(super) voxels: Vec<f32>,
    /// From voxel indices to mm.
    pub(super) affine: [[f64; 4]; 3],
    /// From mm to voxel indices.
    inverse: [[f64; 4]; 3],
    /// The value outside.
    background: f32,
}

impl Sampled {
    /// `None` where the affine cannot be inverted.
    fn new(dims: [usize; 3], voxels: Vec<f32>, affine: [[f64; 4]; 3]) -> Option<Self> {
        let background = voxels.iter().copied().fold(f32::INFINITY, f32::min);
        Some(Self { dims, voxels, affine, inverse: invert(&affine)?, background })
    }

    /// Other values at the same place, 0 outside.
    pub(super) fn with_voxels(&self, voxels: Vec<f32>) -> Self {
        Self { voxels, background: 0.0, ..*self }
    }

    /// Trilinear interpolation at a point in mm.
    pub(super) fn at(&self, point: [f64; 3]) -> f64 {
        let index = apply(&self.inverse, point);
        let inside = |a: usize| index[a] > -1.0 && index[a] < self.dims[a] as f64;
        if !(inside(0) && inside(1) && inside(2)) {
            return f64::from(self.background);
        }
        let floor = index.map(f64::floor);
        let mut sum = 0.0;
        for corner in 0..8_usize {
            let mut weight = 1.0;
            let mut at = [0_i64; 3];
            for a in 0..3 {
                let up = corner >> a & 1;
                let fraction = index[a] - floor[a];
                weight *= if up == 1 { fraction } else { 1.0 - fraction };
                at[a] = floor[a] as i64 + up as i64;
            }
            if weight > 0.0 {
                sum += weight * f64::from(self.voxel(at));
            }
        }
        sum
    }

    fn voxel(&self, at: [i64; 3]) -> f32 {
        if (0..3).any(|a| at[a] < 0 || at[a] >= self.dims[a] as i64) {
            return self.background;
        }
        let [i, j, k] = at.map(|x| x as usize);
        self.voxels[i + self.dims[0] * (j + self.dims[1] * k)]
    }
}

fn read(template: &Template, assets: &Path) -> Result<Sampled, PhantomError> {
    let path = assets.join(&template.file);
    match &template.raw {
        Some(raw) => read_raw(&template.name, &path, raw),
        None => read_nifti(&template.name, &path),
    }
}

fn read_nifti(template: &str, path: &Path) -> Result<Sampled, PhantomError> {
    if !path.is_file() {
        return Err(PhantomError::NoScan { template: template.into(), path: path.into() });
    }
    let volume = volume::read(path, &ReadOptions::default())?.into_iter().next();
    let sampled = volume.and_then(|v| Sampled::new(v.dims, v.voxels, v.geometry.affine));
    sampled.ok_or_else(|| scan_error(template, path, "no volume that can be sampled", "one 3D volume"))
}

fn read_raw(template: &str, path: &Path, raw: &Raw) -> Result<Sampled, PhantomError> {
    if !path.is_file() {
        return Err(PhantomError::NoScan { template: template.into(), path: path.into() });
    }
    let bytes = std::fs::read(path).map_err(PhantomError::io("read", path))?;
    let expected = raw.dims.iter().product::<usize>() * 2;
    if bytes.len() != expected {
        let (found, expected) = (format!("{} bytes", bytes.len()), format!("{expected} of {:?}", raw.dims));
        return Err(scan_error(template, path, &found, &expected));
    }
    let sign = |axis: usize, letter: char| match (axis, letter) {
        (0, 'R') | (1, 'A') | (2, 'S') => Some(1.0),
        (0, 'L') | (1, 'P') | (2, 'I') => Some(-1.0),
        _ => None,
    };
    let signs: Vec<f64> = raw.axes.chars().enumerate().filter_map(|(a, letter)| sign(a, letter)).collect();
    let &[x, y, z] = signs.as_slice() else {
        let found = format!("raw.axes {:?}", raw.axes);
        return Err(scan_error(template, path, &found, "R or L, then A or P, then S or I"));
    };
    let mut affine = [[0.0; 4]; 3];
    for (axis, sign) in [x, y, z].into_iter().enumerate() {
        affine[axis][axis] = sign * raw.spacing_mm[axis];
        affine[axis][3] = -sign * raw.spacing_mm[axis] * (raw.dims[axis] as f64 - 1.0) / 2.0;
    }
    let voxels = bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]]))).collect();
    let sampled = Sampled::new(raw.dims, voxels, affine);
    sampled.ok_or_else(|| scan_error(template, path, "raw.spacing_mm of 0", "a positive spacing"))
}

fn scan_error(template: &str, path: &Path, found: &str, expected: &str) -> PhantomError {
    PhantomError::Scan {
        template: template.into(),
        path: path.into(),
        found: found.into(),
        expected: expected.into(),
    }
}

/// `affine` applied to a point.
pub(super) fn apply(affine: &[[f64; 4]; 3], [x, y, z]: [f64; 3]) -> [f64; 3] {
    affine.map(|row| row[0] * x + row[1] * y + row[2] * z + row[3])
}

/// The inverse of an affine, if it has one.
pub(super) fn invert(affine: &[[f64; 4]; 3]) -> Option<[[f64; 4]; 3]> {
    let m = |r: usize, c: usize| affine[r % 3][c % 3];
    let cofactor = |r: usize, c: usize| m(r + 1, c + 1) * m(r + 2, c + 2) - m(r + 1, c + 2) * m(r + 2, c + 1);
    let determinant: f64 = (0..3).map(|c| m(0, c) * cofactor(0, c)).sum();
    if determinant.abs() < 1e-12 || !determinant.is_finite() {
        return None;
    }
    Some(std::array::from_fn(|r| {
        let [x, y, z] = std::array::from_fn(|c| cofactor(c, r) / determinant);
        [x, y, z, -(x * affine[0][3] + y * affine[1][3] + z * affine[2][3])]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inverse_undoes_its_affine() {
        let affine = [[0.0, -2.0, 0.1, 30.0], [0.9, 0.0, 0.0, -7.0], [0.2, 0.0, 3.0, 11.0]];
        let inverse = invert(&affine).unwrap();
        let back = apply(&inverse, apply(&affine, [3.0, -4.0, 5.0]));
        assert!(back.iter().zip([3.0, -4.0, 5.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{back:?}");
        assert!(invert(&[[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).is_none());
    }

    #[test]
    fn sampling_is_exact_for_a_linear_image_and_background_outside() {
        let value = |[i, j, k]: [f64; 3]| 1.0 + i + 10.0 * j + 100.0 * k;
        let voxels = (0..27).map(|n| value([n % 3, n / 3 % 3, n / 9].map(f64::from)) as f32).collect();
        let affine = [[2.0, 0.0, 0.0, -1.0], [0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 4.0, 0.0]];
        let image = Sampled::new([3, 3, 3], voxels, affine).unwrap();
        for index in [[0.0, 0.0, 0.0], [1.5, 0.25, 1.75], [2.0, 2.0, 2.0]] {
            assert!((image.at(apply(&affine, index)) - value(index)).abs() < 1e-9);
        }
        assert!((image.at([50.0, 0.0, 0.0]) - 1.0).abs() < 1e-9);
    }
}
