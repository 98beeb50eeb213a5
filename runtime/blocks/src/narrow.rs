//! Products of fewer bits: weights and their inputs as pairs of bf16, or as four integers of eight bits, in words of 32.
//!
//! A word holds consecutive features of one token (or of one output), so a panel of words lies as a panel of values does, with a half or a
//! quarter of its rows, and the kernel differs from [`super::kernel`]'s in nothing but what it does with two words. Sums are f32 for bf16,
//! and exact for integers.
//!
//! Integers are symmetric: of a weight with a scale for each output, of an input with a scale for each token, found as it comes. On x86 the
//! instructions multiply unsigned inputs, so 128 is added to these and taken from the sums again.

#![allow(unsafe_code, reason = "vector instructions are called where they were found")]
#![allow(
    clippy::inline_always,
    reason = "elsewhere than inside these functions there are no instructions for it"
)]

mod product;

use super::kernel::Aligned;
use super::layout::Layout;
use super::vector::{Isa, Vector, WithVector};
use product::product;

/// Greatest integer of eight bits, on both sides of zero.
const MOST: f32 = 127.0;
/// What is added to an input's integers.
const OFFSET: i32 = if cfg!(target_arch = "x86_64") { 128 } else { 0 };

/// A layer's weight in words `[out / columns, in / values of a word, columns]`.
pub(super) struct Narrow {
    format: Format,
    words: Vec<u32>,
    /// What the sums of each output begin with, as bits: its bias, or of integers what takes the offset away.
    start: Vec<u32>,
    /// Of integers, of each output.
    scales: Vec<f32>,
    inputs: usize,
}

/// What a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Two values of 16 bits, with the exponent of single precision.
    Bf16,
    /// Four integers of 8 bits.
    Int8,
}

impl Format {
    /// Whether this machine has instructions for it, beside those.
    #[cfg(target_arch = "x86_64")]
    pub fn is_there(self, isa: Isa) -> bool {
        use std::is_x86_feature_detected as has;
        isa == Isa::Avx512
            && has!("avx512bw")
            && match self {
                Self::Bf16 => has!("avx512bf16"),
                Self::Int8 => has!("avx512vnni"),
            }
    }

    /// Whether this machine has instructions for it.
    #[cfg(target_arch = "aarch64")]
    pub fn is_there(self, _: Isa) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Self::Bf16 => has!("bf16"),
            Self::Int8 => has!("dotprod"),
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    /// Whether this machine has instructions for it.
    pub fn is_there(self, _: Isa) -> bool {
        false
    }

    /// Values of a word.
    fn values(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Words for so many features.
    pub(super) fn words(self, features: usize) -> usize {
        features.div_ceil(self.values())
    }
}

/// An input in words, and of integers each token's scale.
pub(super) struct Words {
    /// The words' bits.
    words: Aligned,
    scales: Aligned,
}

impl Words {
    /// For panels of that many words.
    pub(super) fn new(layout: Layout, words: usize) -> Self {
        Self { words: Aligned::new(layout.lanes() * words), scales: Aligned::new(layout.lanes()) }
    }

    /// The panels of words of `features`, and of their scales, to be written.
    pub(super) fn panels(
        &mut self,
        layout: Layout,
        format: Format,
        features: usize,
    ) -> Vec<(usize, &mut [f32], &mut [f32])> {
        let words = format.words(features);
        let parts = layout.parts(self.words.values_mut(), words, 0..words, words);
        let scales = layout.parts(self.scales.values_mut(), 1, 0..1, 1);
        parts
            .into_iter()
            .zip(scales)
            .map(|(words, scales)| (words.panel, words.values, scales.values))
            .collect()
    }
}

impl Narrow {
    /// Of a weight `[in, out]` and its bias.
    pub(super) fn new(format: Format, columns: usize, weight: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weight.len() / outputs;
        let at = |k: usize, n: usize| if k < inputs { weight[k * outputs + n] } else { 0.0 };
        let rows = format.words(inputs);
        let mut words = Vec::with_capacity(rows * outputs);
        let (mut start, mut scales) = (Vec::new(), Vec::new());
        match format {
            Format::Bf16 => start.extend(bias.iter().map(|b| b.to_bits())),
            Format::Int8 => {
                for n in 0..outputs {
                    let scale = scale((0..inputs).fold(0.0f32, |most, k| most.max(at(k, n).abs())));
                    let sum: i32 = (0..inputs).map(|k| integer(at(k, n), scale)).sum();
                    scales.push(scale);
                    start.push((-OFFSET * sum).cast_unsigned());
                }
            }
        }
        for tile in 0..outputs / columns {
            for row in 0..rows {
                for n in tile * columns..(tile + 1) * columns {
                    let scale = scales.get(n).copied().unwrap_or(1.0);
                    words.push(match format {
                        Format::Bf16 => pair(at(2 * row, n), at(2 * row + 1, n)),
                        Format::Int8 => {
                            let bytes = [0, 1, 2, 3].map(|b| integer(at(4 * row + b, n), scale) as u8);
                            u32::from_le_bytes(bytes)
                        }
                    });
                }
            }
        }
        Self { format, words, start, scales, inputs }
    }

    /// With the outputs of another layer of the same input after its own.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.words.extend(other.words);
        self.start.extend(other.start);
        self.scales.extend(other.scales);
        self
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Writes a panel of the layer's input `[in, lanes]` in words, and each token's scale.
    pub(super) fn read(&self, lanes: usize, values: &[f32], words: &mut [f32], scales: &mut [f32]) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(words);
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
            fn wide(format: Format, lanes: usize, values: &[f32], words: &mut [u32], scales: &mut [f32]) {
                write_words(format, lanes, values, words, scales);
            }
            // SAFETY: `Blocks::new` has asked for the instructions.
            unsafe { wide(self.format, lanes, values, words, scales) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        write_words(self.format, lanes, values, words, scales);
    }

    /// The products of a panel of `input` with the outputs from `feature` on, bias included.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        lanes: usize,
        (words, scales): (&[f32], &[f32]),
        feature: usize,
        bias: &[f32],
        tile: &mut [f32],
    ) {
        let (columns, rows) = (bias.len(), self.format.words(self.inputs));
        let tokens: &[u32] = bytemuck::cast_slice(words);
        let weights = &self.words[feature * rows..][..columns * rows];
        let start = &self.start[feature..][..columns];
        assert!((tokens.len(), tile.len()) == (rows * lanes, columns * lanes), "operands of one product");
        product(self.format, lanes, tokens, weights, start, tile);
        if self.format == Format::Int8 {
            let of_output = &self.scales[feature..][..columns];
            isa.with_vector(lanes, Rescale { lanes, of_token: scales, of_output, bias, x: tile });
        }
    }

    /// Where a panel's words and scales lie.
    pub(super) fn panel<'a>(&self, layout: Layout, panel: usize, words: &'a Words) -> (&'a [f32], &'a [f32]) {
        let (lanes, rows) = (layout.kernel(panel).lanes, self.format.words(self.inputs));
        let of_panel = &words.words.values()[layout.start(panel, rows)..][..rows * lanes];
        (of_panel, &words.scales.values()[layout.start(panel, 1)..][..lanes])
    }
}

/// What an integer stands for, where `most` stands for the greatest.
#[inline(always)]
fn scale(most: f32) -> f32 {
    if most > 0.0 { most / MOST } else { 1.0 }
}

#[inline(always)]
fn integer(value: f32, scale: f32) -> i32 {
    (value / scale).round_ties_even() as i32
}

/// Two values as bf16, to the nearest, ties to even; the first is the lower half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    let rounded = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1));
    rounded(low) >> 16 | rounded(high) & 0xffff_0000
}

#[inline(always)]
fn write_words(format: Format, lanes: usize, values: &[f32], words: &mut [u32], scales: &mut [f32]) {
    const ZEROS: [f32; 64] = [0.0; 64];
    let zeros = &ZEROS[..lanes];
    let mut rows = values.chunks_exact(lanes);
    match format {
        Format::Bf16 => {
            for out in words.chunks_exact_mut(lanes) {
                let [a, b] = [0, 1].map(|_| rows.next().unwrap_or(zeros));
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = pair(*a, *b);
                }
            }
        }
        Format::Int8 => {
            scales.fill(0.0);
            for row in values.chunks_exact(lanes) {
                for (most, x) in scales.iter_mut().zip(row) {
                    *most = most.max(x.abs());
                }
            }
            let mut inverse = [0.0; 64];
            let inverse = &mut inverse[..lanes];
            for (inverse, most) in inverse.iter_mut().zip(scales) {
                *most = scale(*most);
                *inverse = 1.0 / *most;
            }
            for out in words.chunks_exact_mut(lanes) {
                let [a, b, c, d] = [0, 1, 2, 3].map(|_| rows.next().unwrap_or(zeros));
                for lane in 0..lanes {
                    let byte = |x: &[f32]| {
                        // A sum with 3 · 2²² has the whole number in its last bits; no integer is beyond ±127.
                        let sum = x[lane] * inverse[lane] + 12_582_912.0;
                        sum.to_bits().wrapping_add(OFFSET.cast_unsigned()) & 0xff
                    };
                    out[lane] = byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
                }
            }
        }
    }
}

/// `x = x * scale of its token * scale of its output + bias`.
struct Rescale<'a> {
    lanes: usize,
    of_token: &'a [f32],
    of_output: &'a [f32],
    bias: &'a [f32],
    x: &'a mut [f32],
}

impl WithVector for Rescale<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let outputs = self.of_output.iter().zip(self.bias).zip(self.x.chunks_exact_mut(self.lanes));
        for ((scale, bias), row) in outputs {
            for lane in (0..self.lanes).step_by(V::LANES) {
                let factor = V::load(&self.of_token[lane..]).mul(V::splat(*scale));
                V::load(&row[lane..]).fused(factor, V::splat(*bias)).store(&mut row[lane..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "aarch64")]
    const LANES: [usize; 5] = [12, 8, 4, 12, 8];
    #[cfg(not(target_arch = "aarch64"))]
    const LANES: [usize; 5] = [48, 32, 24, 16, 8];

    #[test]
    fn products_of_words_are_those_of_what_they_hold() {
        let isa = Isa::here();
        for format in [Format::Bf16, Format::Int8].into_iter().filter(|format| format.is_there(isa)) {
            for (lanes, inputs) in LANES.into_iter().zip([40, 38, 37, 7, 64]) {
                let (columns, outputs) = (8, 16);
                let wave =
                    |n: usize, by: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * by).sin()).collect() };
                let (weight, bias) = (wave(inputs * outputs, 0.7), wave(outputs, 1.3));
                let tokens = wave(inputs * lanes, 0.3);
                let narrow = Narrow::new(format, columns, &weight, &bias);
                let (mut words, mut scales) = (vec![0.0; format.words(inputs) * lanes], vec![0.0; lanes]);
                narrow.read(lanes, &tokens, &mut words, &mut scales);
                let mut tile = vec![f32::NAN; columns * lanes];
                let feature = 8;
                let bias = &bias[feature..][..columns];
                narrow.multiply(isa, lanes, (&words, &scales), feature, bias, &mut tile);
                for (at, found) in tile.iter().enumerate() {
                    let (j, i) = (at / lanes, at % lanes);
                    let terms =
                        (0..inputs).map(|k| (tokens[k * lanes + i], weight[k * outputs + feature + j]));
                    let exact = bias[j] + terms.clone().map(|(a, b)| a * b).sum::<f32>();
                    // Half a step of each factor, for every term.
                    let step = if format == Format::Bf16 { 1.0 / 256.0 } else { 1.0 / 254.0 };
                    let most: f32 = terms.map(|(a, b)| step * (a.abs() + b.abs() + step)).sum();
                    let off = (found - exact).abs();
                    assert!(off <= most + 1e-5, "{format:?} {lanes} {inputs}: off by {off}, at most {most}");
                    assert!(off < 0.1, "{format:?} {lanes} {inputs}: off by {off}");
                }
            }
        }
    }

    #[test]
    fn values_are_rounded_to_the_nearest() {
        assert_eq!(pair(1.0, -2.0), 0xc000_3f80);
        // Half a step above 1 goes down to the even one, three quarters go up.
        let step = 2f32.powi(-7);
        assert_eq!(pair(1.0 + step / 2.0, 1.0 + 0.75 * step), 0x3f81_3f80);
        assert_eq!([integer(2.5, 1.0), integer(-127.0, 1.0), integer(3.0, 2.0)], [2, -127, 2]);
    }
}
