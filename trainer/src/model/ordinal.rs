//! A head for ordered grades.

use tch::{Kind, TchError, Tensor};

use super::{Parameters, stored};

/// Ties the rows of the head, so that the probabilities of "at least grade k" never rise with k: all of them read one
/// direction of the pooled feature and differ by their biases only, which fall (CORAL: Cao, Mirjalili and Raschka, Pattern
/// Recognition Letters 2020). The plugin holds an ordinary head, of which the rows are equal.
pub struct Ordinal {
    /// Where the head's weight lies among all parameters.
    start: i64,
    /// `[C, d]`.
    shape: [i64; 2],
}

impl Ordinal {
    /// Gives every row of the head the first row's values, and orders the biases.
    pub fn new(parameters: &Parameters) -> Result<Self, TchError> {
        let start = parameters.named.iter().take_while(|(name, _)| name != "head.weight");
        let start = start.map(|(_, tensor)| tensor.numel() as i64).sum();
        let weight = parameters.get("head.weight")?;
        let (classes, dim) = weight.size2()?;
        let _guard = tch::no_grad_guard();
        let first = weight.f_narrow(0, 0, 1)?.f_detach_copy()?;
        weight.shallow_clone().f_copy_(&first.f_expand([classes, dim], false)?)?;
        order(parameters)?;
        Ok(Self { start, shape: [classes, dim] })
    }

    /// Makes the gradients `[P]` those of one direction: each row's is the sum of all rows'. Equal rows with equal gradients
    /// stay equal, to the bit.
    pub fn tie(&self, gradients: &Tensor) -> Result<(), TchError> {
        let [classes, dim] = self.shape;
        let rows = gradients.f_narrow(0, self.start, classes * dim)?;
        let sum = rows.f_view([classes, dim])?.f_sum_dim_intlist(0i64, true, Kind::Float)?;
        rows.shallow_clone().f_copy_(&sum.f_expand([classes, dim], false)?.f_reshape([classes * dim])?)
    }

    /// Brings the biases back into their order after a step.
    pub fn order(&self, parameters: &Parameters) -> Result<(), TchError> {
        order(parameters)
    }
}

/// Puts the nearest falling sequence in the place of the biases.
fn order(parameters: &Parameters) -> Result<(), TchError> {
    let bias = parameters.get("head.bias")?;
    let values = stored(&bias)?.data;
    let falling = falling(&values);
    if falling != values {
        let _guard = tch::no_grad_guard();
        bias.shallow_clone().f_copy_(&Tensor::f_from_slice(&falling)?)?;
    }
    Ok(())
}

/// The falling sequence of least squared distance (pool adjacent violators, Ayer et al. 1955).
fn falling(values: &[f32]) -> Vec<f32> {
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &value in values {
        let mut block = (f64::from(value), 1);
        while let Some(&(sum, n)) = blocks.last() {
            // Means are compared crosswise, since divisions round.
            if sum * block.1 as f64 >= block.0 * n as f64 {
                break;
            }
            blocks.pop();
            block = (sum + block.0, n + block.1);
        }
        blocks.push(block);
    }
    blocks.iter().flat_map(|&(sum, n)| std::iter::repeat_n((sum / n as f64) as f32, n)).collect()
}

#[cfg(test)]
mod tests {
    use firmware_config::{AttentionLora, LoraSpec};
    use tch::Device;

    use super::*;
    use crate::fit::tests::backbone_path;
    use crate::loss::Loss;
    use crate::run::open_backbone;

    #[test]
    fn biases_that_rise_are_pooled() {
        assert_eq!(falling(&[3.0, 1.0, -2.0]), [3.0, 1.0, -2.0]);
        assert_eq!(falling(&[1.0, 2.0, 0.0]), [1.5, 1.5, 0.0]);
        // 4 joins 1 and 2: 7/3 each.
        assert_eq!(falling(&[1.0, 2.0, 4.0]), [7.0 / 3.0; 3]);
        assert_eq!(falling(&[5.0, 1.0, 3.0, 2.0]), [5.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn tied_gradients_are_those_of_one_direction() {
        let backbone = open_backbone(&backbone_path(), Some(1)).unwrap();
        let spec = LoraSpec { rank: 2, alpha: 4.0, attention: AttentionLora::Fused };
        let parameters = Parameters::init(&backbone.arch, &spec, 3, &[], 5, Device::Cpu).unwrap();
        let ordinal = Ordinal::new(&parameters).unwrap();
        let (weight, bias) = (parameters.get("head.weight").unwrap(), parameters.get("head.bias").unwrap());
        let rows = stored(&weight).unwrap().data;
        let dim = rows.len() / 3;
        assert!(rows[..dim] == rows[dim..2 * dim] && rows[..dim] == rows[2 * dim..]);
        assert!(stored(&bias).unwrap().data.is_sorted_by(|a, b| a >= b));

        let pooled = Tensor::linspace(-1.0, 2.0, dim as i64, (Kind::Float, Device::Cpu));
        let targets = [Some(true), Some(false), None];
        let loss = |logits: &Tensor| Loss::Ordinal.sum(logits, &targets).unwrap();
        let (flat, _) = parameters.gradients(&loss(&(weight.mv(&pooled) + &bias)), &[]).unwrap();
        ordinal.tie(&flat).unwrap();
        // The same model with one leaf for the direction.
        let shared = weight.detach().get(0).copy().set_requires_grad(true);
        loss(&((&shared * &pooled).sum(Kind::Float) + bias.detach())).backward();
        let expected = stored(&shared.grad()).unwrap().data;
        let flat: Vec<f32> = stored(&flat).unwrap().data;
        for row in flat[ordinal.start as usize..][..3 * dim].chunks_exact(dim) {
            assert!(row.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0)));
        }
        assert!(expected.iter().any(|g| g.abs() > 1e-3));
    }
}
