#[allow(clippy::wildcard_imports, reason = "the names say whose they are")]
use std::arch::x86_64::*;
use std::mem::transmute;

use super::{WordVector, of};

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512bf16")]
pub(super) fn bf16(lanes: usize, tokens: &[u32], weights: &[u32], start: &[u32], tile: &mut [f32]) {
    if lanes.is_multiple_of(16) {
        of::<Bf16Wide>(lanes, tokens, weights, start, tile);
    } else {
        of::<Bf16Half>(lanes, tokens, weights, start, tile);
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512vnni")]
pub(super) fn int8(lanes: usize, tokens: &[u32], weights: &[u32], start: &[u32], tile: &mut [f32]) {
    if lanes.is_multiple_of(16) {
        of::<Int8Wide>(lanes, tokens, weights, start, tile);
    } else {
        of::<Int8Half>(lanes, tokens, weights, start, tile);
    }
}

/// Implements [`WordVector`] by intrinsics of these names.
macro_rules! words {
    (
        $name:ident($register:ty), $lanes:literal, $sum:ty, $load:ident, $splat:ident, |$bits:ident| $start:expr,
        |$s:ident, $a:ident, $b:ident| $dot:expr, |$stored:ident| $floats:expr, $store:ident
    ) => {
        #[derive(Clone, Copy)]
        struct $name($register);

        // SAFETY, of all that follows: whoever runs this has found the instructions; slices are as long as a register.
        impl WordVector for $name {
            const LANES: usize = $lanes;
            type Sum = $sum;

            #[inline(always)]
            fn load(words: &[u32]) -> Self {
                Self(unsafe { $load(words[..$lanes].as_ptr().cast()) })
            }

            #[inline(always)]
            fn splat(word: u32) -> Self {
                Self(unsafe { $splat(word.cast_signed()) })
            }

            #[inline(always)]
            fn start($bits: u32) -> $sum {
                unsafe { $start }
            }

            #[inline(always)]
            fn dot($s: $sum, tokens: Self, weights: Self) -> $sum {
                let ($a, $b) = (tokens.0, weights.0);
                unsafe { $dot }
            }

            #[inline(always)]
            fn store($stored: $sum, values: &mut [f32]) {
                unsafe { $store(values[..$lanes].as_mut_ptr(), $floats) }
            }
        }
    };
}

words! {
    Bf16Wide(__m512i), 16, __m512, _mm512_loadu_si512, _mm512_set1_epi32, |bits| _mm512_set1_ps(f32::from_bits(bits)),
    |sum, a, b| _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)),
    |sum| sum, _mm512_storeu_ps
}
words! {
    Bf16Half(__m256i), 8, __m256, _mm256_loadu_si256, _mm256_set1_epi32, |bits| _mm256_set1_ps(f32::from_bits(bits)),
    |sum, a, b| _mm256_dpbf16_ps(sum, transmute::<__m256i, __m256bh>(a), transmute::<__m256i, __m256bh>(b)),
    |sum| sum, _mm256_storeu_ps
}
words! {
    Int8Wide(__m512i), 16, __m512i, _mm512_loadu_si512, _mm512_set1_epi32, |bits| _mm512_set1_epi32(bits.cast_signed()),
    |sum, a, b| _mm512_dpbusd_epi32(sum, a, b), |sum| _mm512_cvtepi32_ps(sum), _mm512_storeu_ps
}
words! {
    Int8Half(__m256i), 8, __m256i, _mm256_loadu_si256, _mm256_set1_epi32, |bits| _mm256_set1_epi32(bits.cast_signed()),
    |sum, a, b| _mm256_dpbusd_epi32(sum, a, b), |sum| _mm256_cvtepi32_ps(sum), _mm256_storeu_ps
}
