//! A heat map of the slices, put back into the input's voxels.

use super::Prepared;

impl Prepared<'_> {
    /// Puts a heat map `[S, gh, gw]` (C order, patches of the prepared slices) into the input's stored
    /// order and lengths: bilinear between patch centres within a slice, undoing padding, resizing and
    /// cropping; linear between used slices where the recipe skipped some. 0 outside the crop and, where
    /// only one slice is used, outside it.
    ///
    /// # Panics
    /// If `heat` does not hold S·gh·gw values, or a side of `grid` is 0.
    pub fn heatmap_volume(&self, heat: &[f32], grid: [usize; 2]) -> Vec<f32> {
        let patches = grid[0] * grid[1];
        assert!(patches > 0, "a heat map has patches");
        assert_eq!(heat.len(), self.slices() * patches, "a heat map holds S x gh x gw values");

        let content = [self.height, self.columns.output()];
        let [rows, columns] = [(self.view.row, 0), (self.view.column, 1)].map(|(axis, side)| {
            let n = self.crop[axis].len();
            let (corner, content) = (self.corner[side] as f64, content[side] as f64);
            let patch = self.size[side] as f64 / grid[side] as f64;
            let at = move |i: usize| corner + (i as f64 + 0.5) * (content / n as f64);
            (0..n).map(|i| Between::new(at(i) / patch - 0.5, grid[side])).collect::<Vec<_>>()
        });

        let mut out = vec![0.0; self.volume.voxels.len()];
        let mut line = vec![0.0; grid[1]];
        for index in self.slices[0]..=self.slices[self.slices() - 1] {
            let slice = self.slice_heat(index, heat, patches);
            for (y, row) in rows.iter().enumerate() {
                for (x, value) in line.iter_mut().enumerate() {
                    *value = row.of(|gy| slice[gy * grid[1] + x]);
                }
                let (start, step) = self.lattice.line(self.view, &self.crop, index, y);
                for (x, column) in columns.iter().enumerate() {
                    out[(start + x as isize * step) as usize] = column.of(|gx| line[gx]);
                }
            }
        }
        out
    }

    /// The patches of the slice at `index`, between those of the used slices around it.
    fn slice_heat(&self, index: usize, heat: &[f32], patches: usize) -> Vec<f32> {
        let of = |s: usize| &heat[s * patches..][..patches];
        let next = self.slices.partition_point(|&used| used < index);
        if self.slices[next] == index {
            return of(next).to_vec();
        }
        let [a, b] = [self.slices[next - 1], self.slices[next]];
        let between = Between { low: 0, high: 1, weight: (index - a) as f32 / (b - a) as f32 };
        let pair = [of(next - 1), of(next)];
        (0..patches).map(|p| between.of(|i| pair[i][p])).collect()
    }
}

/// A place between two samples.
pub(crate) struct Between {
    low: usize,
    high: usize,
    weight: f32,
}

impl Between {
    /// Position `at` among `n` samples, the outermost held beyond their centres.
    pub fn new(at: f64, n: usize) -> Self {
        let at = at.clamp(0.0, (n - 1) as f64);
        let low = at.floor() as usize;
        Self { low, high: (low + 1).min(n - 1), weight: (at - low as f64) as f32 }
    }

    /// The value there, linear between the samples.
    pub fn of(&self, sample: impl Fn(usize) -> f32) -> f32 {
        let (low, high) = (sample(self.low), sample(self.high));
        low + self.weight * (high - low)
    }
}
