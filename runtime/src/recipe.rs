//! Preprocessing: a volume becomes the slices `[S, 3, H, W]` that the network sees.
//!
//! [`Prepared`] is the one implementation of [`Recipe`], used by trainer and device. In this order:
//!
//! 1. **Orientation.** Slices are cut along a patient axis (R, A or S), read through the stored order's
//!    strides; an oblique volume is read along its nearest axes. Slices are displayed radiologically:
//!    axial rows run anterior to posterior, coronal and sagittal rows superior to inferior; columns run
//!    from the patient's right to left, in sagittal slices from anterior to posterior.
//! 2. **Crop**, along all three axes.
//! 3. **Slice selection.** `AtMost(n)` takes positions `i (N - 1) / (n - 1)` of N, halves rounded up; the
//!    middle slice where n is 1. `Body` takes the slices that a crop to the body would keep, without cropping them.
//! 4. **Resize** of raw values: bilinear, antialiased when shrinking, pixel-centre aligned. Raw values come
//!    first because their average is what a scan at that resolution would have measured, whereas averages
//!    of clipped values depend on the window; it also resamples once for three windows.
//! 5. **Intensity**, then **normalisation**. Padding holds the channel's least value: 0 before
//!    normalisation, for z-scores the volume's minimum.
//!
//! Statistics are taken over the whole volume, not the crop. Only additions, multiplications, divisions and
//! square roots of f32 and f64 in a fixed order are used, so that all machines get the same bits.

mod crop;
mod error;
mod heat;
mod intensity;
mod mask;
mod resample;
mod statistics;
mod view;

use std::ops::Range;

use firmware_config::{Crop, Fit, Plane, Recipe, SliceSelection};

use crate::volume::Volume;
pub use error::RecipeError;
pub(crate) use heat::Between;
use intensity::Channels;
use resample::Filter;
use view::{Lattice, View};

/// A volume made ready to be read slice by slice as a recipe asks; the voxels are borrowed, not copied.
#[derive(Debug)]
pub struct Prepared<'a> {
    volume: &'a Volume,
    lattice: Lattice<'a>,
    view: View,
    /// Index range kept along R, A, S.
    crop: [Range<usize>; 3],
    /// Index of each slice along the view's slicing axis, ascending.
    slices: Vec<usize>,
    size: [usize; 2],
    /// Row and column at which the slice's content begins, the rest being padding.
    corner: [usize; 2],
    /// Along a row.
    columns: Filter,
    /// Down a column: for each row of the crop, the output rows it counts in.
    rows: Vec<Vec<(usize, f32)>>,
    /// Rows of the content.
    height: usize,
    channels: Channels,
}

impl<'a> Prepared<'a> {
    /// Prepares a volume: finds the crop, the slices, the resampling weights and the intensity scale.
    ///
    /// # Errors
    /// A recipe against its own rules; a volume that is empty, has a voxel that is not finite, or has no
    /// contrast where the recipe's intensity needs some.
    pub fn new(volume: &'a Volume, recipe: &'a Recipe) -> Result<Self, RecipeError> {
        recipe.validate()?;
        check(volume)?;
        let lattice = Lattice::new(volume);
        let view = View::new(recipe.plane, lattice.stored_axis);
        let crop = crop::ranges(&lattice, recipe.crop);
        let slices = match recipe.slices {
            // Within the crop of a body all slices show it.
            SliceSelection::Body => crop::ranges(&lattice, Crop::Body)[view.slice].clone().collect(),
            selection => select(crop[view.slice].clone(), selection),
        };
        let pixels = [crop[view.row].len(), crop[view.column].len()];
        let spacing = [lattice.spacing[view.row], lattice.spacing[view.column]];
        let content = content(pixels, spacing, recipe.size, recipe.fit);
        Ok(Self {
            volume,
            slices,
            size: recipe.size,
            corner: std::array::from_fn(|i| (recipe.size[i] - content[i]) / 2),
            columns: Filter::new(pixels[1], content[1]),
            rows: Filter::new(pixels[0], content[0]).transposed(),
            height: content[0],
            channels: Channels::new(volume, &lattice, recipe)?,
            lattice,
            view,
            crop,
        })
    }

    /// The volume that is read.
    pub fn volume(&self) -> &Volume {
        self.volume
    }

    /// Number of slices S.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// Height and width of a slice, in pixels.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The anatomical plane of the slices, also where the recipe says `acquisition`.
    pub fn plane(&self) -> Plane {
        self.view.plane()
    }

    /// Patient direction of the left and right edge of every slice: `['R', 'L']`, or `['A', 'P']` in a
    /// sagittal slice.
    pub fn edges(&self) -> [char; 2] {
        self.view.edges()
    }

    /// Index of slice `s` along the plane's RAS axis in the whole volume: 0 is the most inferior slice, or
    /// the most posterior (coronal) or leftmost (sagittal).
    pub fn slice_index(&self, s: usize) -> usize {
        self.slices[s]
    }

    /// SOP Instance UID (0008,0018) of slice `s`, where it is one stored slice of a DICOM series.
    pub fn instance(&self, s: usize) -> Option<&str> {
        self.volume.source.instances.get(self.stored_slice(s)?).map(String::as_str)
    }

    /// The number of slice `s` among the frames of [`Self::instance`], from 1, where that is an enhanced image.
    pub fn frame_number(&self, s: usize) -> Option<u32> {
        self.volume.source.frames.get(self.stored_slice(s)?).copied()
    }

    /// Index of slice `s` along the third stored axis, where that is the axis across its plane.
    fn stored_slice(&self, s: usize) -> Option<usize> {
        let across = self.lattice.stored_axis[self.view.slice] == 2;
        across.then(|| self.lattice.stored(self.view.slice, self.slices[s]))
    }

    /// Writes slice `s` as `[3, H, W]`, C order. A pure function of `s`; any number of threads may call it.
    ///
    /// # Panics
    /// If `s` is not below [`Self::slices`], or `out` does not hold 3·H·W values.
    pub fn write_slice(&self, s: usize, out: &mut [f32]) {
        let [height, width] = self.size;
        assert_eq!(out.len(), 3 * height * width, "a slice holds 3 x {height} x {width} values");
        let (raw, others) = out.split_at_mut(height * width);
        self.resample(self.slices[s], raw);

        let others = others.split_at_mut(height * width);
        for (c, plane) in [(1, others.0), (2, others.1)] {
            plane.fill(self.channels.padding(c));
            for row in self.content_rows() {
                self.channels.map(c, &raw[row.clone()], &mut plane[row]);
            }
        }
        let mut padded = 0;
        for row in self.content_rows() {
            raw[padded..row.start].fill(self.channels.padding(0));
            self.channels.map_in_place(0, &mut raw[row.clone()]);
            padded = row.end;
        }
        raw[padded..].fill(self.channels.padding(0));
    }

    /// Where the content's rows lie in a plane of H·W values.
    fn content_rows(&self) -> impl Iterator<Item = Range<usize>> {
        let (width, [top, left]) = (self.size[1], self.corner);
        let columns = self.columns.output();
        (top..top + self.height).map(move |y| y * width + left).map(move |at| at..at + columns)
    }

    /// Raw values of the slice at `index` along the slicing axis, resampled into the content's rows of
    /// `plane`. One source row at a time, added to the output rows that it counts in.
    fn resample(&self, index: usize, plane: &mut [f32]) {
        plane.fill(0.0);
        let (width, [top, left]) = (self.size[1], self.corner);
        let mut line = vec![0.0; self.crop[self.view.column].len()];
        let mut resampled = vec![0.0; self.columns.output()];
        for (y, targets) in self.rows.iter().enumerate() {
            if targets.is_empty() {
                continue;
            }
            self.lattice.read_line(self.view, &self.crop, index, y, &mut line);
            self.columns.apply(&line, &mut resampled);
            for &(row, weight) in targets {
                let at = (top + row) * width + left;
                let sums = &mut plane[at..at + resampled.len()];
                sums.iter_mut().zip(&resampled).for_each(|(sum, x)| *sum += weight * x);
            }
        }
    }
}

/// What the readers promise, checked, because volumes are also made by programs.
fn check(volume: &Volume) -> Result<(), RecipeError> {
    let path = || volume.source.path.clone();
    let [ni, nj, nk] = volume.dims;
    let expected = ni.checked_mul(nj).and_then(|n| n.checked_mul(nk));
    if expected != Some(volume.voxels.len()) || volume.voxels.is_empty() {
        return Err(RecipeError::Dims { path: path(), dims: volume.dims, voxels: volume.voxels.len() });
    }
    let spacing = volume.spacing();
    if !spacing.iter().all(|mm| mm.is_finite() && *mm > 0.0) {
        return Err(RecipeError::Spacing { path: path(), spacing });
    }
    match volume.voxels.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(RecipeError::NotFinite {
            path: path(),
            index: [at % ni, at / ni % nj, at / ni / nj],
            value: volume.voxels[at],
        }),
        None => Ok(()),
    }
}

/// The slices that are used, ascending.
fn select(range: Range<usize>, selection: SliceSelection) -> Vec<usize> {
    let n = range.len();
    match selection {
        SliceSelection::AtMost(1) => vec![range.start + n / 2],
        SliceSelection::AtMost(most) if most < n => {
            let gaps = most - 1;
            (0..most).map(|i| range.start + (2 * i * (n - 1) + gaps) / (2 * gaps)).collect()
        }
        _ => range.collect(),
    }
}

/// Height and width of the slice's content within `size`: all of it, or with `Fit::Pad` the largest that
/// keeps the physical aspect ratio.
fn content(pixels: [usize; 2], spacing: [f64; 2], size: [usize; 2], fit: Fit) -> [usize; 2] {
    if fit == Fit::Stretch {
        return size;
    }
    let [height, width] = [0, 1].map(|i| pixels[i] as f64 * spacing[i]);
    let [rows, columns] = size.map(|n| n as f64);
    // Halves go up, also when the last digits of the spacing were lost in a file format.
    let within = |n: f64, most: usize| ((n + 0.5 + 1e-6).floor() as usize).clamp(1, most);
    if height * columns >= width * rows {
        [size[0], within(width * (rows / height), size[1])]
    } else {
        [within(height * (columns / width), size[0]), size[1]]
    }
}

#[cfg(test)]
mod tests;
