//! What stands between the matrix products: every value has its token's lane, so that all of it is done to whole registers.

#![allow(
    clippy::inline_always,
    reason = "elsewhere than inside `Isa::with_vector` there are no instructions for it"
)]

use super::vector::{Vector, WithVector};

/// LayerNorm over the features of a panel `[d, lanes]`: `out = (x - mean) / sqrt(variance + epsilon) * weight + bias`.
pub(super) struct LayerNorm<'a> {
    pub(super) lanes: usize,
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) epsilon: f32,
    pub(super) out: &'a mut [f32],
}

impl WithVector for LayerNorm<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { lanes, x, weight, bias, epsilon, out } = self;
        let count = V::splat((x.len() / lanes) as f32);
        for lane in (0..lanes).step_by(V::LANES) {
            let mean = sum::<V, false>(lanes, &x[lane..], V::splat(0.0)).div(count);
            let variance = sum::<V, true>(lanes, &x[lane..], mean).div(count);
            let scale = V::splat(1.0).div(variance.add(V::splat(epsilon)).sqrt());
            let rows = x[lane..].chunks(lanes).zip(out[lane..].chunks_mut(lanes));
            for ((x, out), (weight, bias)) in rows.zip(weight.iter().zip(bias)) {
                let normed = V::load(x).sub(mean).mul(scale);
                normed.fused(V::splat(*weight), V::splat(*bias)).store(out);
            }
        }
    }
}

/// The sum of the rows' first values beyond `from`, or of their squares, in four sums that do not wait for one another.
#[inline(always)]
fn sum<V: Vector, const SQUARES: bool>(lanes: usize, x: &[f32], from: V) -> V {
    let mut sums = [V::splat(0.0); 4];
    for rows in x.chunks(4 * lanes) {
        for (row, sum) in rows.chunks(lanes).zip(&mut sums) {
            let beyond = V::load(row).sub(from);
            *sum = if SQUARES { beyond.fused(beyond, *sum) } else { sum.add(beyond) };
        }
    }
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(d))
}

/// Softmax over the rows of `[T, lanes]`, but for the division: `x = exp(x - max)`, and `inverse` of their sum a lane.
pub(super) struct Softmax<'a> {
    pub(super) lanes: usize,
    pub(super) x: &'a mut [f32],
    pub(super) inverse: &'a mut [f32],
}

impl WithVector for Softmax<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { lanes, x, inverse } = self;
        for lane in (0..lanes).step_by(V::LANES) {
            let mut max = V::splat(f32::NEG_INFINITY);
            for row in x.chunks_exact(lanes) {
                max = max.max(V::load(&row[lane..]));
            }
            let mut sum = V::splat(0.0);
            for row in x.chunks_exact_mut(lanes) {
                let e = exp(V::load(&row[lane..]).sub(max));
                e.store(&mut row[lane..]);
                sum = sum.add(e);
            }
            V::splat(1.0).div(sum).store(&mut inverse[lane..]);
        }
    }
}

/// Multiplies the rows of `[n, lanes]` by a factor a lane.
pub(super) struct Scale<'a> {
    pub(super) lanes: usize,
    pub(super) factors: &'a [f32],
    pub(super) x: &'a mut [f32],
}

impl WithVector for Scale<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        for lane in (0..self.lanes).step_by(V::LANES) {
            let factor = V::load(&self.factors[lane..]);
            for row in self.x.chunks_exact_mut(self.lanes) {
                V::load(&row[lane..]).mul(factor).store(&mut row[lane..]);
            }
        }
    }
}

/// Exchanges the halves of `x` and rotates: `x cos + exchanged sin`.
pub(super) struct Rotate<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

impl WithVector for Rotate<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let half = self.x.len() / 2;
        let (first, second) = self.x.split_at_mut(half);
        for i in (0..half).step_by(V::LANES) {
            let (a, b) = (V::load(&first[i..]), V::load(&second[i..]));
            let [cos_a, sin_a] = [V::load(&self.cos[i..]), V::load(&self.sin[i..])];
            let [cos_b, sin_b] = [V::load(&self.cos[half + i..]), V::load(&self.sin[half + i..])];
            a.fused(cos_a, b.mul(sin_a)).store(&mut first[i..]);
            b.fused(cos_b, a.mul(sin_b)).store(&mut second[i..]);
        }
    }
}

/// What is done to each value that a linear layer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    None,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// The same by the hyperbolic tangent.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Applies an activation to values.
pub(super) struct Activate<'a> {
    pub(super) activation: Activation,
    pub(super) x: &'a mut [f32],
}

impl WithVector for Activate<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        // No closures, which could not be told to be inlined.
        macro_rules! each {
            ($function:ident) => {
                for x in self.x.chunks_exact_mut(V::LANES) {
                    $function(V::load(x)).store(x);
                }
            };
        }
        match self.activation {
            Activation::None => {}
            Activation::Gelu => each!(gelu),
            Activation::GeluTanh => each!(gelu_tanh),
            Activation::Silu => each!(silu),
        }
    }
}

#[inline(always)]
fn gelu<V: Vector>(x: V) -> V {
    let erf = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
    let half = x.mul(V::splat(0.5));
    half.fused(erf, half)
}

#[inline(always)]
fn gelu_tanh<V: Vector>(x: V) -> V {
    /// -2 sqrt(2 / π): `(1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))`.
    const ROOT: f32 = -1.595_769;
    let square = x.mul(x).fused(V::splat(0.044_715), V::splat(1.0));
    x.div(exp(x.mul(V::splat(ROOT)).mul(square)).add(V::splat(1.0)))
}

#[inline(always)]
fn silu<V: Vector>(x: V) -> V {
    x.div(exp(V::splat(0.0).sub(x)).add(V::splat(1.0)))
}

/// How a second one of two results is joined to the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    Add,
    Multiply,
}

/// `x = x + other`, or times it.
pub(super) struct Joined<'a> {
    pub(super) join: Join,
    pub(super) x: &'a mut [f32],
    pub(super) other: &'a [f32],
}

impl WithVector for Joined<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (x, other) in self.x.chunks_exact_mut(V::LANES).zip(self.other.chunks_exact(V::LANES)) {
            let (a, b) = (V::load(x), V::load(other));
            let joined = if self.join == Join::Add { a.add(b) } else { a.mul(b) };
            joined.store(x);
        }
    }
}

/// `exp(x)` to 2 in the last place, for x from -87 to 88, and the ends' beyond them: 2ⁿ times a polynomial of what is left of x
/// beside n ln 2.
#[inline(always)]
fn exp<V: Vector>(x: V) -> V {
    /// Adding it rounds to a whole number, which then is the last bits.
    const ROUND: f32 = 12_582_912.0;
    /// -ln 2 in two parts, the first of few bits so that n times it is exact.
    const LN2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
    // The bound first: where x is no number, x.
    let x = V::splat(88.0).min(V::splat(-87.0).max(x));
    let shifted = x.fused(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let n = shifted.sub(V::splat(ROUND));
    let r = n.fused(V::splat(LN2[1]), n.fused(V::splat(LN2[0]), x));
    let mut p = V::splat(1.987_569_2e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = p.fused(r, V::splat(c));
    }
    p.mul(shifted.power_of_two())
}

/// `erf(x)` to 4e-7: odd, a quotient of polynomials of x² that was fitted to the least greatest error up to where single precision
/// knows 1 only.
#[inline(always)]
#[allow(clippy::approx_constant, reason = "fitted, not the derivative at 0")]
fn erf<V: Vector>(x: V) -> V {
    const END: f32 = 3.92;
    let x = V::splat(END).min(V::splat(-END).max(x));
    let z = x.mul(x);
    let mut p = V::splat(2.034_729e-6);
    for c in [2.874_806_5e-4, 3.868_374_7e-3, 5.306_062_5e-2, 1.927_651_3e-1, 1.128_379] {
        p = p.fused(z, V::splat(c));
    }
    let mut q = V::splat(3.807_064_4e-5);
    for c in [1.188_127e-3, 1.517_239e-2, 1.150_850_65e-1, 5.041_653_5e-1, 1.0] {
        q = q.fused(z, V::splat(c));
    }
    x.mul(p).div(q)
}

#[cfg(test)]
mod tests {
    use super::super::vector::Isa;
    use super::*;

    fn activated(isa: Isa, activation: Activation, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        isa.with_vector(16, Activate { activation, x: &mut x });
        x
    }

    #[test]
    fn activations_are_as_defined() {
        let x: Vec<f32> = (-1600..1600).map(|n| n as f32 / 100.0).collect();
        let exact = |x: f64| [0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())), x / (1.0 + (-x).exp())];
        let by_tanh = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        };
        for isa in Isa::all() {
            let [gelu, silu, tanh] = [Activation::Gelu, Activation::Silu, Activation::GeluTanh]
                .map(|activation| activated(isa, activation, &x));
            for (n, &x) in x.iter().enumerate() {
                let [expected_gelu, expected_silu] = exact(f64::from(x));
                let bound = 1e-6 * f64::from(x.abs()).max(1.0);
                for (found, expected) in
                    [(gelu[n], expected_gelu), (silu[n], expected_silu), (tanh[n], by_tanh(f64::from(x)))]
                {
                    assert!((f64::from(found) - expected).abs() < bound, "{isa:?} {x}: {found}, {expected}");
                }
            }
        }
    }
}
