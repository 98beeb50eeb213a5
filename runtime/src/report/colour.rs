//! Colours of heat.

/// Matplotlib's `inferno` at eighths: perceptually uniform, and readable to the colour-blind.
const INFERNO: [[u8; 3]; 9] = [
    [0, 0, 4],
    [31, 12, 72],
    [85, 15, 109],
    [136, 34, 106],
    [186, 54, 85],
    [227, 89, 51],
    [249, 140, 10],
    [249, 201, 50],
    [252, 255, 164],
];

/// Heat below this part of the greatest is not shown.
const LEAST: f32 = 0.1;
/// How much the hottest place covers the grey.
const OPACITY: f32 = 0.6;

/// The colour of heat 0 to 1.
pub(super) fn colour(heat: f32) -> [f32; 3] {
    let at = heat.clamp(0.0, 1.0) * (INFERNO.len() - 1) as f32;
    let low = (at as usize).min(INFERNO.len() - 2);
    let weight = at - low as f32;
    std::array::from_fn(|c| {
        let [a, b] = [INFERNO[low][c], INFERNO[low + 1][c]].map(f32::from);
        a + weight * (b - a)
    })
}

/// Grey 0 to 255 with heat 0 to 1 over it, more opaque where hotter.
pub(super) fn over(grey: f32, heat: f32) -> [u8; 3] {
    let shown = ((heat - LEAST) / (1.0 - LEAST)).clamp(0.0, 1.0);
    // Rises fast at first, so that what is shown at all is seen.
    let opacity = OPACITY * shown * (2.0 - shown);
    colour(heat).map(|c| (grey + opacity * (c - grey) + 0.5) as u8)
}
