#[allow(clippy::wildcard_imports, reason = "the names say whose they are")]
use std::arch::aarch64::*;
use std::arch::asm;

use super::{COLUMNS, WordVector, of};

#[target_feature(enable = "neon,bf16")]
pub(super) fn bf16(lanes: usize, tokens: &[u32], weights: &[u32], start: &[u32], tile: &mut [f32]) {
    of::<Bf16>(lanes, tokens, weights, start, tile);
}

#[target_feature(enable = "neon,dotprod")]
pub(super) fn int8(lanes: usize, tokens: &[u32], weights: &[u32], start: &[u32], tile: &mut [f32]) {
    of::<Int8>(lanes, tokens, weights, start, tile);
}

/// Implements [`WordVector`] by one instruction, which std has no stable name for.
macro_rules! words {
    ($name:ident, $sum:ty, |$bits:ident| $start:expr, $instruction:literal, $wide:literal, $group:literal, |$stored:ident| $floats:expr) => {
        #[derive(Clone, Copy)]
        struct $name(uint32x4_t);

        impl $name {
            /// With word `K` of `weights`.
            #[inline(always)]
            fn dot_lane<const K: i32>(mut sum: $sum, tokens: Self, weights: uint32x4_t) -> $sum {
                // SAFETY: whoever runs this has found the instruction.
                unsafe {
                    asm!(
                        concat!($instruction, " {s:v}.4s, {a:v}.", $wide, ", {b:v}.", $group, "[{k}]"),
                        s = inout(vreg) sum,
                        a = in(vreg) tokens.0,
                        b = in(vreg) weights,
                        k = const K,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                sum
            }
        }

        // SAFETY, of all that follows: slices are as long as a register.
        #[allow(unused_unsafe, reason = "NEON is always there")]
        impl WordVector for $name {
            const LANES: usize = 4;
            type Sum = $sum;

            #[inline(always)]
            fn load(words: &[u32]) -> Self {
                Self(unsafe { vld1q_u32(words[..4].as_ptr()) })
            }

            #[inline(always)]
            fn splat(word: u32) -> Self {
                Self(unsafe { vdupq_n_u32(word) })
            }

            #[inline(always)]
            fn start($bits: u32) -> $sum {
                unsafe { $start }
            }

            #[inline(always)]
            fn dot(sum: $sum, tokens: Self, weights: Self) -> $sum {
                Self::dot_lane::<0>(sum, tokens, weights.0)
            }

            #[inline(always)]
            fn outer<const N: usize>(
                row: [Self; N],
                weights: &[u32; COLUMNS],
                sums: &mut [[$sum; N]; COLUMNS],
            ) {
                for c in (0..COLUMNS).step_by(4) {
                    let four = Self::load(&weights[c..]).0;
                    for n in 0..N {
                        sums[c][n] = Self::dot_lane::<0>(sums[c][n], row[n], four);
                        sums[c + 1][n] = Self::dot_lane::<1>(sums[c + 1][n], row[n], four);
                        sums[c + 2][n] = Self::dot_lane::<2>(sums[c + 2][n], row[n], four);
                        sums[c + 3][n] = Self::dot_lane::<3>(sums[c + 3][n], row[n], four);
                    }
                }
            }

            #[inline(always)]
            fn store($stored: $sum, values: &mut [f32]) {
                unsafe { vst1q_f32(values[..4].as_mut_ptr(), $floats) }
            }
        }
    };
}

words! { Bf16, float32x4_t, |bits| vdupq_n_f32(f32::from_bits(bits)), "bfdot", "8h", "2h", |sum| sum }
words! { Int8, int32x4_t, |bits| vdupq_n_s32(bits.cast_signed()), "sdot", "16b", "4b", |sum| vcvtq_f32_s32(sum) }
