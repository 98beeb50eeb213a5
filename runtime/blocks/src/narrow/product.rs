//! Sums of the products of words, in registers: one tile of tokens and outputs at a time.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use self::neon as native;
#[cfg(target_arch = "x86_64")]
use self::x86 as native;
use super::Format;

/// A register of words.
trait WordVector: Copy {
    const LANES: usize;
    type Sum: Copy;

    fn load(words: &[u32]) -> Self;
    fn splat(word: u32) -> Self;
    fn start(bits: u32) -> Self::Sum;
    /// `sum` and the products of what the words hold.
    fn dot(sum: Self::Sum, tokens: Self, weights: Self) -> Self::Sum;
    /// [`Self::dot`] of each register of a row with each column's word.
    #[inline(always)]
    fn outer<const N: usize>(row: [Self; N], weights: &[u32; COLUMNS], sums: &mut [[Self::Sum; N]; COLUMNS]) {
        for c in 0..COLUMNS {
            let weight = Self::splat(weights[c]);
            for n in 0..N {
                sums[c][n] = Self::dot(sums[c][n], row[n], weight);
            }
        }
    }
    fn store(sum: Self::Sum, values: &mut [f32]);
}

/// Features in a tile, wherever there are instructions for words.
const COLUMNS: usize = 8;

/// As [`kernel`](crate::kernel)'s product, of `N` registers of tokens.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "counted, the loops are unrolled and the sums stay in registers"
)]
fn product_of<W: WordVector, const N: usize>(
    tokens: &[u32],
    weights: &[u32],
    start: &[u32],
    tile: &mut [f32],
) {
    let mut sums = [[W::start(0); N]; COLUMNS];
    for c in 0..COLUMNS {
        sums[c] = [W::start(start[c]); N];
    }
    for (tokens, weights) in tokens.chunks_exact(N * W::LANES).zip(weights.as_chunks::<COLUMNS>().0) {
        let mut row = [W::splat(0); N];
        for n in 0..N {
            row[n] = W::load(&tokens[n * W::LANES..]);
        }
        W::outer(row, weights, &mut sums);
    }
    for c in 0..COLUMNS {
        for n in 0..N {
            W::store(sums[c][n], &mut tile[(c * N + n) * W::LANES..]);
        }
    }
}

#[inline(always)]
fn of<W: WordVector>(lanes: usize, tokens: &[u32], weights: &[u32], start: &[u32], tile: &mut [f32]) {
    match lanes / W::LANES {
        1 => product_of::<W, 1>(tokens, weights, start, tile),
        2 => product_of::<W, 2>(tokens, weights, start, tile),
        3 => product_of::<W, 3>(tokens, weights, start, tile),
        vectors => unreachable!("no kernel is of {vectors} registers"),
    }
}

/// One tile; `format` is one that this machine has instructions for.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn product(
    format: Format,
    lanes: usize,
    tokens: &[u32],
    weights: &[u32],
    start: &[u32],
    tile: &mut [f32],
) {
    // SAFETY: `Blocks::new` has asked for the instructions.
    match format {
        Format::Bf16 => unsafe { native::bf16(lanes, tokens, weights, start, tile) },
        Format::Int8 => unsafe { native::int8(lanes, tokens, weights, start, tile) },
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn product(format: Format, _: usize, _: &[u32], _: &[u32], _: &[u32], _: &mut [f32]) {
    unreachable!("there are no instructions for {format:?} here")
}
