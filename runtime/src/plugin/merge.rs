//! Factors into weights: `W' = W + (alpha / r) B A`; or beside them, where the weights are other tasks' too.

use blocks::{Factors, LayerFactors};
use firmware_config::{AttentionLora, LoraSpec};

use super::PluginError;
use crate::backbone::{Arch, Backbone, Body, Tensor, Tensors};

/// What the names of a view's tensors begin with, in a plugin of several views.
fn prefix(view: &str) -> String {
    format!("views.{view}.")
}

/// Names and shapes of a plugin's content on a backbone of this shape, sorted by name; `views` are the names of a task's views,
/// if it has any.
pub fn expected_content(
    arch: &Arch,
    lora: &LoraSpec,
    labels: usize,
    views: &[&str],
) -> Vec<(String, Vec<usize>)> {
    let d = arch.dim;
    let mut all = vec![
        ("query".to_owned(), vec![d]),
        ("head.weight".into(), vec![labels, d]),
        ("head.bias".into(), vec![labels]),
    ];
    let factors = factors(arch, lora);
    if views.is_empty() {
        all.extend(factors);
    } else {
        for view in views {
            let of_view = factors.iter().cloned().chain([("query".to_owned(), vec![d])]);
            all.extend(of_view.map(|(name, shape)| (prefix(view) + &name, shape)));
        }
    }
    all.sort();
    all
}

/// Names and shapes of one view's factors.
fn factors(arch: &Arch, lora: &LoraSpec) -> Vec<(String, Vec<usize>)> {
    let (d, r, p) = (arch.dim, lora.rank, arch.patch);
    let mut all = Vec::new();
    if arch.adapts_patches() {
        all.push(("lora.patch.A".into(), vec![r, 3, p, p]));
        all.push(("lora.patch.B".into(), vec![d, r]));
    }
    let projections: &[(&str, usize)] = match lora.attention {
        AttentionLora::Fused => &[("qkv", 3), ("o", 1)],
        AttentionLora::Separate => &[("q", 1), ("k", 1), ("v", 1), ("o", 1)],
    };
    for (n, width) in arch.widths().into_iter().enumerate() {
        for (name, parts) in projections {
            all.push((format!("lora.blocks.{n}.{name}.A"), vec![r, width]));
            all.push((format!("lora.blocks.{n}.{name}.B"), vec![parts * width, r]));
        }
    }
    all
}

/// The content of one view of several, as that of a plugin of that view alone.
pub fn view_content(content: &Tensors, view: &str) -> Tensors {
    let prefix = prefix(view);
    let own = content
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
    let head = content.iter().filter(|(name, _)| name.starts_with("head."));
    own.chain(head.map(|(name, tensor)| (name.clone(), tensor.clone()))).collect()
}

/// Merges the factors of `content`, of one view, into the backbone's weights, after checking every name and shape.
///
/// Plain f32 in a fixed order (sum over the rank in order, then scale, then add), so that every machine gets the
/// same bits; rustc neither contracts to fused multiply-add nor reorders sums.
pub fn merge(backbone: &mut Backbone, content: &Tensors, lora: &LoraSpec) -> Result<(), PluginError> {
    let labels = content.get("head.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0);
    check(&backbone.arch, content, lora, labels, &[])?;
    let scale = lora.scale();
    let mut adapt = |weight: &str, factors: &str, rows: std::ops::Range<usize>| {
        let (a, b) = (&content[&format!("lora.{factors}.A")], &content[&format!("lora.{factors}.B")]);
        if let Some(weight) = backbone.tensors.get_mut(weight) {
            add_product(weight, a, b, rows, scale);
        }
    };
    if backbone.arch.adapts_patches() {
        adapt("patch.weight", "patch", 0..backbone.arch.dim);
    }
    for (n, d) in backbone.arch.widths().into_iter().enumerate() {
        for (k, part) in ["q", "k", "v"].into_iter().enumerate() {
            let weight = format!("blocks.{n}.{part}.weight");
            match lora.attention {
                AttentionLora::Fused => adapt(&weight, &format!("blocks.{n}.qkv"), k * d..(k + 1) * d),
                AttentionLora::Separate => adapt(&weight, &format!("blocks.{n}.{part}"), 0..d),
            }
        }
        adapt(&format!("blocks.{n}.o.weight"), &format!("blocks.{n}.o"), 0..d);
    }
    Ok(())
}

/// The factors of `content`, of one view, as they are computed beside the weights, after checking every name and shape. What a graph
/// folds into a layer is folded into its `B`: `alpha / r`, `1 / sqrt(head width)` of the queries, the LayerScale after the attention.
/// `None` on a backbone that is no vision transformer.
///
/// `backbone` needs no tensors but its LayerScales.
pub(crate) fn side_factors(
    backbone: &Backbone,
    content: &Tensors,
    lora: &LoraSpec,
) -> Result<Option<Factors>, PluginError> {
    let labels = content.get("head.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0);
    check(&backbone.arch, content, lora, labels, &[])?;
    let Body::Vit(vit) = &backbone.arch.body else { return Ok(None) };
    let d = backbone.arch.dim;
    let factor = |name: &str| content[&format!("lora.{name}")].data.clone();
    let rank = lora.rank;
    // Rows of B, each times what its layer's output is multiplied by.
    let scaled = |mut b: Vec<f32>, of_row: &dyn Fn(usize) -> f32| {
        for (row, values) in b.chunks_exact_mut(rank).enumerate() {
            for x in values {
                *x *= lora.scale() * of_row(row);
            }
        }
        b
    };
    let query = 1.0 / ((d / vit.heads) as f32).sqrt();
    let block = |n: usize| {
        let of = |part: &str| format!("blocks.{n}.{part}");
        let parts: &[&str] = match lora.attention {
            AttentionLora::Fused => &["qkv"],
            AttentionLora::Separate => &["q", "k", "v"],
        };
        let all = |letter: &str| -> Vec<Vec<f32>> {
            parts.iter().map(|part| factor(&of(&format!("{part}.{letter}")))).collect()
        };
        let b = scaled(all("B").concat(), &|row| if row < d { query } else { 1.0 });
        let qkv = LayerFactors { rank, a: all("A"), b };
        let layer_scale = backbone.tensors.get(&of("scale1"));
        let b = scaled(factor(&of("o.B")), &|row| layer_scale.map_or(1.0, |scale| scale.data[row]));
        [qkv, LayerFactors { rank, a: vec![factor(&of("o.A"))], b }]
    };
    let b = scaled(factor("patch.B"), &|_| 1.0);
    let patch = LayerFactors { rank, a: vec![factor("patch.A")], b };
    Ok(Some(Factors { patch, blocks: (0..vit.depth).map(block).collect() }))
}

/// Checks that `content` is what [`expected_content`] lists.
pub(super) fn check(
    arch: &Arch,
    content: &Tensors,
    lora: &LoraSpec,
    labels: usize,
    views: &[&str],
) -> Result<(), PluginError> {
    let expected = expected_content(arch, lora, labels.max(1), views);
    for (name, shape) in &expected {
        let found = content.get(name).map(|t| &t.shape);
        if found != Some(shape) {
            return Err(PluginError::Content {
                name: name.clone(),
                found: found.map_or_else(|| "missing".into(), |s| format!("{s:?}")),
                expected: format!("{shape:?}"),
            });
        }
    }
    match content.iter().find(|(name, _)| expected.binary_search_by(|(e, _)| e.cmp(name)).is_err()) {
        Some((name, tensor)) => Err(PluginError::Content {
            name: name.clone(),
            found: format!("{:?}", tensor.shape),
            expected: "nothing of that name".into(),
        }),
        None => Ok(()),
    }
}

/// `weight += scale * b[rows] a`, where `weight` `[rows, …]` and `a` `[r, …]` have the same trailing size, `b` is `[_, r]`.
fn add_product(weight: &mut Tensor, a: &Tensor, b: &Tensor, rows: std::ops::Range<usize>, scale: f32) {
    let rank = a.shape[0];
    let width = a.data.len() / rank;
    let mut sum = vec![0.0f32; width];
    let targets = weight.data.chunks_exact_mut(width);
    for (target, b) in targets.zip(b.data.chunks_exact(rank).skip(rows.start).take(rows.len())) {
        sum.fill(0.0);
        for (factor, a) in b.iter().zip(a.data.chunks_exact(width)) {
            for (s, x) in sum.iter_mut().zip(a) {
                *s += factor * x;
            }
        }
        for (w, s) in target.iter_mut().zip(&sum) {
            *w += scale * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_of_the_factors_is_added() {
        let mut weight = Tensor::new([2, 3], vec![1.0; 6]);
        let a = Tensor::new([2, 3], vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
        let b = Tensor::new([4, 2], vec![9.0, 9.0, 9.0, 9.0, 1.0, 0.0, 0.5, 1.0]);
        add_product(&mut weight, &a, &b, 2..4, 2.0);
        assert_eq!(weight.data, [3.0, 5.0, 7.0, 22.0, 43.0, 64.0]);
    }
}
