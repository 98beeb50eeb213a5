//! As many values as a register holds, in the words of each instruction set.
//!
//! Multiplications are fused with additions everywhere but on x86 without FMA, and nothing depends on how many values a register holds, so
//! the wider registers of a machine give the same bits as its narrower ones.

#![allow(unsafe_code, reason = "vector instructions are called where they were found")]
#![allow(
    clippy::inline_always,
    reason = "elsewhere than inside `Isa::with_vector` there are no instructions for it"
)]

/// A register of values.
///
/// Its functions are for code that [`with_vector`] runs, since only there the instructions are known to exist.
pub(super) trait Vector: Copy {
    /// How many values.
    const LANES: usize;
    /// How many rows of a product to multiply before asking whether there are more.
    const ROWS: usize = 1;

    fn splat(value: f32) -> Self;
    /// The first values of a slice, which has at least that many.
    fn load(values: &[f32]) -> Self;
    fn store(self, values: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + summand`.
    fn fused(self, factor: Self, summand: Self) -> Self;
    /// `sums[c][n] += row[n] * weights[c]`, fused.
    #[inline(always)]
    fn outer<const N: usize, const C: usize>(row: [Self; N], weights: &[f32], sums: &mut [[Self; N]; C]) {
        for c in 0..C {
            let weight = Self::splat(weights[c]);
            for n in 0..N {
                sums[c][n] = row[n].fused(weight, sums[c][n]);
            }
        }
    }
    fn sqrt(self) -> Self;
    /// The greater; where `self` is a number and `other` is none, `other`.
    fn max(self, other: Self) -> Self;
    /// As [`Self::max`].
    fn min(self, other: Self) -> Self;
    /// 2ⁿ for the whole number n, from -126 to 127, that was added to 3 · 2²².
    fn power_of_two(self) -> Self;
}

/// What is done to vectors of any kind.
pub(super) trait WithVector {
    fn run<V: Vector>(self);
}

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256 bits, with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 128 bits.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What the compiler makes of ordinary code.
    #[cfg(not(target_arch = "aarch64"))]
    Plain,
}

impl Isa {
    /// All that this machine has, the widest first.
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = match Self::here() {
            Self::Avx512 => vec![Self::Avx512, Self::Avx2, Self::Plain],
            Self::Avx2 => vec![Self::Avx2, Self::Plain],
            Self::Plain => vec![Self::Plain],
        };
        #[cfg(not(target_arch = "x86_64"))]
        let all = vec![Self::here()];
        all
    }

    /// The widest one of this machine.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            let fused = has!("avx2") && has!("fma");
            if fused && has!("avx512f") && has!("avx512vl") {
                return Self::Avx512;
            }
            if fused {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Self::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        Self::Plain
    }

    /// Runs `work` on vectors of which a row of `lanes` values is a whole number.
    #[inline]
    pub(super) fn with_vector(self, lanes: usize, work: impl WithVector) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            fn avx512(work: impl WithVector) {
                work.run::<x86::Wide>();
            }
            // With the other one's number of registers.
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            fn avx512_half(work: impl WithVector) {
                work.run::<x86::Half>();
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2(work: impl WithVector) {
                work.run::<x86::Half>();
            }
            // SAFETY: `Blocks::new` has asked for the instructions on this machine.
            match self {
                Self::Avx512 if lanes.is_multiple_of(x86::Wide::LANES) => unsafe { avx512(work) },
                Self::Avx512 => unsafe { avx512_half(work) },
                Self::Avx2 => unsafe { avx2(work) },
                Self::Plain => work.run::<plain::Plain>(),
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let _ = (self, lanes);
            work.run::<neon::Quad>();
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            let _ = (self, lanes);
            work.run::<plain::Plain>();
        }
    }
}

/// Implements [`Vector`] by intrinsics of these names.
macro_rules! vector {
    (
        $name:ident($register:ty), $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident,
        $div:ident, |$a:ident, $b:ident, $sum:ident| $fused:expr, $sqrt:ident, $max:ident, $min:ident, |$x:ident| $power:expr
        $(; $($own:tt)*)?
    ) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name($register);

        // SAFETY, of all that follows: whoever runs this has found the instructions; slices are as long as a register.
        #[allow(unused_unsafe, reason = "on aarch64 NEON is always there")]
        impl Vector for $name {
            const LANES: usize = $lanes;
            $($($own)*)?

            #[inline(always)]
            fn splat(value: f32) -> Self {
                Self(unsafe { $splat(value) })
            }

            #[inline(always)]
            fn load(values: &[f32]) -> Self {
                Self(unsafe { $load(values[..$lanes].as_ptr()) })
            }

            #[inline(always)]
            fn store(self, values: &mut [f32]) {
                unsafe { $store(values[..$lanes].as_mut_ptr(), self.0) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                Self(unsafe { $sub(self.0, other.0) })
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self(unsafe { $mul(self.0, other.0) })
            }

            #[inline(always)]
            fn div(self, other: Self) -> Self {
                Self(unsafe { $div(self.0, other.0) })
            }

            #[inline(always)]
            fn fused(self, factor: Self, summand: Self) -> Self {
                let ($a, $b, $sum) = (self.0, factor.0, summand.0);
                Self(unsafe { $fused })
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                Self(unsafe { $sqrt(self.0) })
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                Self(unsafe { $max(self.0, other.0) })
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                Self(unsafe { $min(self.0, other.0) })
            }

            #[inline(always)]
            fn power_of_two(self) -> Self {
                let $x = self.0;
                Self(unsafe { $power })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "the names say whose they are")]
    use std::arch::x86_64::*;

    use super::Vector;

    vector! {
        Wide(__m512), 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps,
        _mm512_div_ps, |a, b, sum| _mm512_fmadd_ps(a, b, sum), _mm512_sqrt_ps, _mm512_max_ps, _mm512_min_ps,
        |x| {
            let exponent = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))
        }
    }
    vector! {
        Half(__m256), 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps,
        _mm256_div_ps, |a, b, sum| _mm256_fmadd_ps(a, b, sum), _mm256_sqrt_ps, _mm256_max_ps, _mm256_min_ps,
        |x| {
            let exponent = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    #[allow(clippy::wildcard_imports, reason = "the names say whose they are")]
    use std::arch::aarch64::*;

    use super::Vector;

    vector! {
        Quad(float32x4_t), 4, vld1q_f32, vst1q_f32, vdupq_n_f32, vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32,
        |a, b, sum| vfmaq_f32(sum, a, b), vsqrtq_f32, vmaxq_f32, vminq_f32,
        |x| {
            let exponent = vaddq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23))
        };

        const ROWS: usize = 4;

        /// By the lane, since a weight of its own in every register would be a load each.
        #[inline(always)]
        fn outer<const N: usize, const C: usize>(row: [Self; N], weights: &[f32], sums: &mut [[Self; N]; C]) {
            const { assert!(C.is_multiple_of(Self::LANES)) };
            for c in (0..C).step_by(Self::LANES) {
                let four = unsafe { vld1q_f32(weights[c..][..Self::LANES].as_ptr()) };
                for n in 0..N {
                    unsafe {
                        sums[c][n].0 = vfmaq_laneq_f32::<0>(sums[c][n].0, row[n].0, four);
                        sums[c + 1][n].0 = vfmaq_laneq_f32::<1>(sums[c + 1][n].0, row[n].0, four);
                        sums[c + 2][n].0 = vfmaq_laneq_f32::<2>(sums[c + 2][n].0, row[n].0, four);
                        sums[c + 3][n].0 = vfmaq_laneq_f32::<3>(sums[c + 3][n].0, row[n].0, four);
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "aarch64"))]
mod plain {
    use super::Vector;

    #[derive(Clone, Copy)]
    pub(super) struct Plain([f32; 8]);

    impl Plain {
        #[inline(always)]
        fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
            Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
        }
    }

    impl Vector for Plain {
        const LANES: usize = 8;

        fn splat(value: f32) -> Self {
            Self([value; 8])
        }

        fn load(values: &[f32]) -> Self {
            Self(std::array::from_fn(|lane| values[lane]))
        }

        fn store(self, values: &mut [f32]) {
            values[..Self::LANES].copy_from_slice(&self.0);
        }

        fn add(self, other: Self) -> Self {
            self.with(other, |a, b| a + b)
        }

        fn sub(self, other: Self) -> Self {
            self.with(other, |a, b| a - b)
        }

        fn mul(self, other: Self) -> Self {
            self.with(other, |a, b| a * b)
        }

        fn div(self, other: Self) -> Self {
            self.with(other, |a, b| a / b)
        }

        fn fused(self, factor: Self, summand: Self) -> Self {
            self.mul(factor).add(summand)
        }

        fn sqrt(self) -> Self {
            Self(self.0.map(f32::sqrt))
        }

        fn max(self, other: Self) -> Self {
            self.with(other, |a, b| if a > b { a } else { b })
        }

        fn min(self, other: Self) -> Self {
            self.with(other, |a, b| if a < b { a } else { b })
        }

        fn power_of_two(self) -> Self {
            Self(self.0.map(|x| f32::from_bits(x.to_bits().wrapping_add(127) << 23)))
        }
    }
}
