//! Matrix products, one tile at a time.
//!
//! A product's left operand is a panel `[K, lanes]`: the values of as many tokens side by side, feature after feature. Its right
//! operand is `[K, columns]`, and what comes out is a tile `[columns, lanes]`, in its turn features of those tokens side by side. So
//! what one product writes is what the next one reads, and nothing is transposed between them.
//!
//! tract-linalg's kernels were tried here: their inner loop is as fast, but they write a tile value by value, for any strides, which is a
//! quarter of the time of a head's short products and a thirtieth of the long ones'.

#![allow(
    clippy::inline_always,
    reason = "elsewhere than inside `Isa::with_vector` there are no instructions for it"
)]

use super::vector::{Isa, Vector, WithVector};

/// Values of the largest tile.
pub(super) const TILE: usize = 384;

/// Values that begin where a vector does.
pub(super) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

/// Values of the widest vector.
const LINE: usize = 16;

impl Aligned {
    /// Zeros.
    pub(super) fn new(len: usize) -> Self {
        let values = vec![0.0; len + LINE];
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>());
        Self { values, start, len }
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}

/// A kernel for tiles of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) isa: Isa,
    /// Tokens in a panel.
    pub(super) lanes: usize,
    /// Features in a tile.
    pub(super) columns: usize,
}

/// A kernel for most of the tokens, and one of as many columns that wastes less on those that are left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    pub(super) main: Kernel,
    pub(super) rest: Kernel,
}

impl Kernels {
    /// Those for so many tokens: the more of the registers are sums, the less is read for each product, so three vectors of tokens times
    /// eight features where there are 32 registers, times four where there are 16.
    pub(super) fn new(isa: Isa, tokens: usize) -> Self {
        let (lanes, columns, rest): (usize, usize, &[usize]) = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (48, 8, &[8, 16, 24, 32]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (24, 4, &[8, 16]),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => (12, 8, &[4, 8]),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Plain => (8, 4, &[]),
        };
        let left = tokens % lanes;
        let fits = rest.iter().copied().find(|lanes| *lanes >= left);
        let kernel = |lanes| Kernel { isa, lanes, columns };
        Self { main: kernel(lanes), rest: kernel(fits.unwrap_or(lanes)) }
    }
}

impl Kernel {
    /// Values of a tile.
    pub(super) fn tile(&self) -> usize {
        self.lanes * self.columns
    }

    /// `tile[j, i] = bias[j] + sum over k of tokens[k, i] weights[k, j]`, in that order, for tokens and weights of one product after
    /// another's.
    pub(super) fn multiply<const P: usize>(
        &self,
        operands: [(&[f32], &[f32]); P],
        bias: &[f32],
        tile: &mut [f32],
    ) {
        let Self { isa, lanes, columns } = *self;
        for (tokens, weights) in operands {
            let rows = tokens.len() / lanes;
            assert!(
                (rows * lanes, rows * columns) == (tokens.len(), weights.len()),
                "operands of one product"
            );
        }
        assert!((columns, self.tile()) == (bias.len(), tile.len()), "operands of one product");
        isa.with_vector(lanes, Product { lanes, columns, operands, bias, tile });
    }
}

struct Product<'a, const P: usize> {
    lanes: usize,
    columns: usize,
    /// Tokens and weights.
    operands: [(&'a [f32], &'a [f32]); P],
    bias: &'a [f32],
    tile: &'a mut [f32],
}

impl<const P: usize> WithVector for Product<'_, P> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        match (self.lanes / V::LANES, self.columns) {
            (1, 4) => self.of::<V, 1, 4>(),
            (2, 4) => self.of::<V, 2, 4>(),
            (3, 4) => self.of::<V, 3, 4>(),
            (1, 8) => self.of::<V, 1, 8>(),
            (2, 8) => self.of::<V, 2, 8>(),
            (3, 8) => self.of::<V, 3, 8>(),
            (vectors, columns) => unreachable!("no kernel is {vectors} by {columns}"),
        }
    }
}

impl<const P: usize> Product<'_, P> {
    /// `C` columns of `N` vectors.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "counted, the loops are unrolled and the sums stay in registers"
    )]
    fn of<V: Vector, const N: usize, const C: usize>(self) {
        let mut sums = [[V::splat(0.0); N]; C];
        for c in 0..C {
            sums[c] = [V::splat(self.bias[c]); N];
        }
        for (tokens, weights) in self.operands {
            // Several rows a turn where a turn's own instructions weigh; what is left of them one by one.
            let turns = weights.len() / C / V::ROWS * V::ROWS;
            let (tokens, last_tokens) = tokens.split_at(turns * N * V::LANES);
            let (weights, last_weights) = weights.split_at(turns * C);
            let turns = tokens.chunks_exact(V::ROWS * N * V::LANES).zip(weights.chunks_exact(V::ROWS * C));
            for (tokens, weights) in turns {
                for k in 0..V::ROWS {
                    row::<V, N, C>(&tokens[k * N * V::LANES..], &weights[k * C..], &mut sums);
                }
            }
            if V::ROWS > 1 {
                let rows = last_tokens.chunks_exact(N * V::LANES).zip(last_weights.chunks_exact(C));
                for (tokens, weights) in rows {
                    row::<V, N, C>(tokens, weights, &mut sums);
                }
            }
        }
        for c in 0..C {
            for n in 0..N {
                sums[c][n].store(&mut self.tile[(c * N + n) * V::LANES..]);
            }
        }
    }
}

/// Adds the products of a row of tokens and a row of weights to the sums.
#[inline(always)]
fn row<V: Vector, const N: usize, const C: usize>(tokens: &[f32], weights: &[f32], sums: &mut [[V; N]; C]) {
    let mut row = [V::splat(0.0); N];
    for n in 0..N {
        row[n] = V::load(&tokens[n * V::LANES..]);
    }
    V::outer(row, weights, sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_the_product_of_its_operands() {
        let each = |isa| [1, 9, 17, 30, 47, 257, 264].map(|tokens| (isa, tokens));
        for (isa, tokens) in Isa::all().into_iter().flat_map(each) {
            let Kernels { main, rest } = Kernels::new(isa, tokens);
            for kernel in [main, rest] {
                let Kernel { lanes, columns, .. } = kernel;
                let rows = 37;
                let left: Vec<f32> = (0..rows * lanes).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
                let right: Vec<f32> = (0..rows * columns).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
                let mut found = vec![f32::NAN; kernel.tile()];
                let bias: Vec<f32> = (0..columns).map(|j| j as f32).collect();
                kernel.multiply([(&left, &right)], &bias, &mut found);
                // In two parts, which is the same.
                let ((a, more_a), (b, more_b)) = (left.split_at(30 * lanes), right.split_at(30 * columns));
                let mut parts = vec![f32::NAN; kernel.tile()];
                kernel.multiply([(a, b), (more_a, more_b)], &bias, &mut parts);
                assert_eq!(parts, found);
                for (at, found) in found.iter().enumerate() {
                    let (j, i) = (at / lanes, at % lanes);
                    // Whole numbers, so that every order of summing gives the same.
                    let product: f32 = (0..rows).map(|k| left[k * lanes + i] * right[k * columns + j]).sum();
                    let off = found - (product + bias[j]);
                    assert!(off.abs() < f32::EPSILON, "{lanes}x{columns} at {i}, {j}: off by {off}");
                }
            }
            let left = tokens % main.lanes;
            assert!(
                rest.columns == main.columns && (left..=main.lanes).contains(&rest.lanes),
                "{tokens}: {rest:?}"
            );
        }
    }
}
