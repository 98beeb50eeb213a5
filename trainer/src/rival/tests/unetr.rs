use super::*;

/// Weights of a Swin UNETR of the second version with so many channels after its embedding, for one channel: of the encoder, which
/// VoCo's files without labels hold, and of the decoder.
pub(super) fn swin_unetr(width: usize) -> [usize; 2] {
    let residual = |input: usize, output: usize| {
        27 * output * (input + output) + if input == output { 0 } else { input * output }
    };
    let mut encoder = 8 * width + width;
    for (stage, heads) in [3, 6, 12, 24].into_iter().enumerate() {
        let d = width << stage;
        let block = 4 * d + 13usize.pow(3) * heads + 4 * (d * d + d) + 8 * d * d + 5 * d;
        encoder += residual(d, d) + 2 * block + 16 * d + 16 * d * d;
    }
    encoder +=
        residual(1, width) + [1, 2, 4, 16].map(|n| residual(n * width, n * width)).iter().sum::<usize>();
    let up = |input: usize, output: usize| 8 * input * output + residual(2 * output, output);
    let decoder = [[16, 8], [8, 4], [4, 2], [2, 1], [1, 1]].map(|[a, b]| up(a * width, b * width));
    [encoder, decoder.iter().sum()]
}

#[test]
fn vocos_networks_have_the_published_sizes() {
    // As MONAI counts them; published as 53 M (B, the encoder), 72 M (B) and 290 M (L).
    assert_eq!(swin_unetr(48), [53_164_146, 19_597_824]);
    assert_eq!(swin_unetr(96), [211_999_362, 78_391_296]);
    let mut task = task(TASK);
    for labels in 1..=2 {
        let built = build(Method::Voco, &task, None, None, Device::Cpu).unwrap();
        let all: usize = swin_unetr(48).iter().sum();
        assert_eq!(built.weights().count(), all + labels * 49);
        let shape = tch::no_grad(|| built.forward(&volumes(1, 3), false).unwrap().size());
        assert_eq!(shape, [1, labels as i64]);
        task.labels.push("dark".into());
    }
}

#[test]
fn vocos_network_sees_what_the_window_gave() {
    let normalize = Normalize::Channels { mean: [0.5, 0.4, 0.3], std: [0.2, 0.25, 0.5] };
    let new = |normalize| Voco::new(maker(), 12, 1, true, normalize).unwrap();
    let grey = volumes(1, 3).narrow(2, 0, 1).expand([-1, -1, 3, -1, -1], false);
    let (mean, std) = normalize.mean_std();
    let [mean, std] = [mean, std].map(|each| Tensor::from_slice(&each).view([3, 1, 1]));
    let given = |network: Voco, volume: &Tensor| tch::no_grad(|| network.forward(volume, false).unwrap());
    let expected = given(new(&Normalize::None), &grey);
    assert!(off(&given(new(&normalize), &((&grey - mean) / std)), &expected) < 1e-5);
}

#[test]
fn vocos_volumes_one_by_one_give_the_gradients_of_the_batch() {
    let (rival, volumes) = (small(Method::Voco), volumes(2, 3));
    let loss = |logits: &Tensor| (logits + 0.5).f_square()?.f_sum(Kind::Float);
    let whole = loss(&rival.forward(&volumes, true).unwrap()).unwrap();
    let (expected, _) = rival.weights().gradients(&whole, &[]).unwrap();
    let (value, found) = rival.gradients(&volumes, &loss).unwrap();
    assert!(off(&value, &whole.detach()) < 1e-5);
    let largest = expected.abs().max().double_value(&[]);
    assert!(largest > 1e-2 && off(&expected, &found) < 1e-5 * largest, "{}", off(&expected, &found));
}
