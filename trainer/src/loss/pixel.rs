//! The loss of a volume's voxel logits against its mask: soft Dice and binary cross-entropy, one to one.

use tch::{Kind, Reduction, TchError, Tensor};

/// Keeps Dice defined, in voxels.
const SMOOTH: f64 = 1.0;

/// `(1 - (2 Σ p g + 1) / (Σ p + Σ g + 1)) + BCE`, sums over the volume's voxels and BCE their mean (soft Dice as in
/// arXiv 1606.04797, without its squares); where nothing is in the mask, BCE alone, since Dice then says nothing of how much too
/// much was found. A scalar from logits `[S, h, w]` of tokens and a mask `[S, H, W]` of 0 and 1.
///
/// They are compared at half of the slices' height and width (all of it where these are odd): the logits are brought there
/// bilinearly, between token centres as heat maps are, which adds no detail that a finer grid could show, and a voxel is inside
/// where any of the mask's four pixels is, so that nothing vanishes. It takes a quarter of the memory.
pub fn pixel(logits: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
    let (_, height, width) = mask.size3()?;
    let step = if height % 2 == 0 && width % 2 == 0 { 2 } else { 1 };
    let inside = mask.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_max_pool2d(step, step, 0, 1, false)?;
    let logits =
        logits.f_unsqueeze(1)?.f_upsample_bilinear2d([height / step, width / step], false, None, None)?;
    let bce = logits.f_binary_cross_entropy_with_logits(&inside, None::<&Tensor>, None, Reduction::Mean)?;
    let size = inside.f_sum(None)?;
    if size.f_double_value(&[])? <= 0.0 {
        return Ok(bce);
    }
    let p = logits.f_sigmoid()?;
    let both = p.f_mul(&inside)?.f_sum(None)?.f_mul_scalar(2.0)?.f_add_scalar(SMOOTH)?;
    let dice = both.f_div(&p.f_sum(None)?.f_add(&size)?.f_add_scalar(SMOOTH)?)?;
    bce.f_sub(&dice)?.f_add_scalar(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(logits: &[f32], grid: [i64; 3], mask: &[u8], size: [i64; 3]) -> f64 {
        let mask = Tensor::from_slice(mask).view(size);
        pixel(&Tensor::from_slice(logits).view(grid), &mask).unwrap().double_value(&[])
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} {b}");
    }

    fn sigmoid(z: f64) -> f64 {
        1.0 / (1.0 + (-z).exp())
    }

    #[test]
    fn dice_and_cross_entropy_are_added() {
        // A voxel a token: nothing is resampled; 1 × 3 is odd.
        let found = value(&[2.0, -1.0, 0.5], [1, 1, 3], &[1, 0, 1], [1, 1, 3]);
        let [a, b, c] = [2.0, -1.0, 0.5].map(sigmoid);
        let bce = -(a.ln() + (1.0 - b).ln() + c.ln()) / 3.0;
        let dice = (2.0 * (a + c) + 1.0) / (a + b + c + 2.0 + 1.0);
        close(found, 1.0 - dice + bce);
        // Without a mask, cross-entropy alone.
        let found = value(&[2.0, -1.0, 0.5], [1, 1, 3], &[0; 3], [1, 1, 3]);
        close(found, -((1.0 - a).ln() + (1.0 - b).ln() + (1.0 - c).ln()) / 3.0);
    }

    #[test]
    fn tokens_are_compared_at_half_the_pixels() {
        // Tokens 0 and 4 over 8 pixels: half of these at 0, 0.5 .. : centres of 4 cells lie at -.25, .25, .75, 1.25 tokens.
        let mut mask = [0; 2 * 8];
        mask[8 + 5] = 1;
        let z = [0.0, 1.0, 3.0, 4.0];
        let p = z.map(sigmoid);
        let bce = -(0..4).map(|i| if i == 2 { p[i].ln() } else { (1.0 - p[i]).ln() }).sum::<f64>() / 4.0;
        let dice = (2.0 * p[2] + 1.0) / (p.iter().sum::<f64>() + 1.0 + 1.0);
        close(value(&[0.0, 4.0], [1, 1, 2], &mask, [1, 2, 8]), 1.0 - dice + bce);
    }

    #[test]
    fn the_right_mask_costs_next_to_nothing_and_huge_logits_stay_finite() {
        let mask = [0, 1, 1, 0, 0, 0, 1, 0, 0];
        let logits = mask.map(|m: u8| if m == 1 { 3e4 } else { -3e4 });
        close(value(&logits, [1, 3, 3], &mask, [1, 3, 3]), 0.0);
        for sign in [1.0, -1.0] {
            let logits =
                Tensor::from_slice(&logits.map(|z| sign * z)).view([1, 3, 3]).set_requires_grad(true);
            let loss = pixel(&logits, &Tensor::from_slice(&mask).view([1, 3, 3])).unwrap();
            loss.backward();
            assert!(loss.double_value(&[]).is_finite());
            assert_eq!(logits.grad().isfinite().all().int64_value(&[]), 1);
        }
    }
}
