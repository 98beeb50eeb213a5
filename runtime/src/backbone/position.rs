//! Position tables for another grid, as PyTorch's bicubic interpolations compute them (half-pixel centres).
//!
//! Everything is polynomial and computed in f64 in a fixed order, so that every machine gets the same table.

use super::{PositionResize, Tensor};

/// Weights of the source cells of one target cell, from source index `start`.
struct Taps {
    start: usize,
    weights: Vec<f64>,
}

/// `table` `[native * native, d]` resized to `[grid[0] * grid[1], d]`; unchanged where the grid is the native one.
pub(super) fn resize(table: &Tensor, native: usize, grid: [usize; 2], how: PositionResize) -> Tensor {
    if grid == [native, native] {
        return table.clone();
    }
    let d = table.shape[1];
    let [rows, columns] = grid.map(|n| (0..n).map(|i| taps(i, n, native, how)).collect::<Vec<_>>());
    // Along the columns first, as PyTorch does where it antialiases.
    let mut narrow = vec![0.0; native * grid[1] * d];
    for y in 0..native {
        for (x, taps) in columns.iter().enumerate() {
            let out = &mut narrow[(y * grid[1] + x) * d..][..d];
            for (k, w) in taps.weights.iter().enumerate() {
                let from = &table.data[(y * native + taps.start + k) * d..][..d];
                for (o, &v) in out.iter_mut().zip(from) {
                    *o += w * f64::from(v);
                }
            }
        }
    }
    let mut data = Vec::with_capacity(grid[0] * grid[1] * d);
    let mut sum = vec![0.0; d];
    for taps in &rows {
        for x in 0..grid[1] {
            sum.fill(0.0);
            for (k, w) in taps.weights.iter().enumerate() {
                let from = &narrow[((taps.start + k) * grid[1] + x) * d..][..d];
                for (o, &v) in sum.iter_mut().zip(from) {
                    *o += w * v;
                }
            }
            data.extend(sum.iter().map(|&x| x as f32));
        }
    }
    Tensor::new([grid[0] * grid[1], d], data)
}

fn taps(i: usize, n: usize, native: usize, how: PositionResize) -> Taps {
    match how {
        PositionResize::Bicubic => plain(i, native as f64 / n as f64, native),
        PositionResize::BicubicOffset => plain(i, native as f64 / (n as f64 + 0.1), native),
        PositionResize::BicubicAntialias => antialiased(i, native as f64 / n as f64, native),
    }
}

/// Four taps around the source coordinate; those outside count for the edge cell.
fn plain(i: usize, scale: f64, native: usize) -> Taps {
    let centre = (i as f64 + 0.5) * scale - 0.5;
    let floor = centre.floor();
    let last = native as i64 - 1;
    let cell = |k: i64| (floor as i64 - 1 + k).clamp(0, last) as usize;
    let start = cell(0);
    let mut weights = vec![0.0; cell(3) - start + 1];
    for k in 0..4 {
        weights[cell(k) - start] += cubic(centre - floor + 1.0 - k as f64, -0.75);
    }
    Taps { start, weights }
}

/// The filter widened by the scale when shrinking, cut at the edges and normalised.
fn antialiased(i: usize, scale: f64, native: usize) -> Taps {
    let stretch = scale.max(1.0);
    let centre = (i as f64 + 0.5) * scale;
    let support = 2.0 * stretch;
    let start = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(native);
    let mut weights: Vec<f64> =
        (start..end).map(|j| cubic((j as f64 - centre + 0.5) / stretch, -0.5)).collect();
    let sum: f64 = weights.iter().sum();
    for w in &mut weights {
        *w /= sum;
    }
    Taps { start, weights }
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_table_stays_constant() {
        let table = Tensor::new([49, 2], vec![0.25; 98]);
        for how in [PositionResize::Bicubic, PositionResize::BicubicOffset, PositionResize::BicubicAntialias]
        {
            for grid in [[3, 4], [7, 7], [12, 9], [1, 1]] {
                let out = resize(&table, 7, grid, how);
                assert_eq!(out.shape, [grid[0] * grid[1], 2]);
                assert!(out.data.iter().all(|x| (x - 0.25).abs() < 1e-7), "{how:?} {grid:?}");
            }
        }
    }

    #[test]
    fn rows_and_columns_are_not_exchanged() {
        // Values grow along the rows' index only.
        let table = Tensor::new([16, 1], (0..16).map(|i| (i / 4) as f32).collect());
        let out = resize(&table, 4, [8, 2], PositionResize::BicubicAntialias);
        for y in 0..8 {
            assert!((out.data[2 * y] - out.data[2 * y + 1]).abs() < 1e-6);
        }
        assert!(out.data[0] < 0.5 && out.data[15] > 2.5);
    }
}
