//! AdamW over two groups of tensors, and the learning-rate schedule.
//!
//! tch's own optimiser cannot give out its state, so a fit could not be resumed exactly.

use tch::{Kind, TchError, Tensor};

use crate::model::Group;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Learning rate and decoupled weight decay of a group of tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay; each step multiplies the values by `1 - lr * decay`.
    pub decay: f64,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101; β 0.9 and 0.999, ε 1e-8), as libtorch computes it.
pub struct AdamW {
    slots: Vec<Slot>,
    step: u64,
}

struct Slot {
    name: String,
    value: Tensor,
    group: Group,
    m: Tensor,
    v: Tensor,
}

/// First and second moments of a parameter.
pub struct Moments<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// First moment.
    pub m: &'a Tensor,
    /// Second moment.
    pub v: &'a Tensor,
}

impl AdamW {
    /// Moments of zero for leaf tensors that ask for gradients.
    pub fn new(parameters: impl IntoIterator<Item = (String, Tensor, Group)>) -> Result<Self, TchError> {
        let slots = parameters
            .into_iter()
            .map(|(name, value, group)| {
                let zeros = || Tensor::f_zeros(value.size(), (Kind::Float, value.device()));
                Ok(Slot { m: zeros()?, v: zeros()?, name, group, value })
            })
            .collect::<Result<_, TchError>>()?;
        Ok(Self { slots, step: 0 })
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The moments, in the order of the parameters.
    pub fn moments(&self) -> impl Iterator<Item = Moments<'_>> {
        self.slots.iter().map(|s| Moments { name: &s.name, m: &s.m, v: &s.v })
    }

    /// Puts back what [`AdamW::moments`] and [`AdamW::steps`] gave; `moments` yields first and second moment by name.
    pub fn restore(
        &mut self,
        step: u64,
        mut moments: impl FnMut(&str) -> Result<(Tensor, Tensor), TchError>,
    ) -> Result<(), TchError> {
        for slot in &mut self.slots {
            let (m, v) = moments(&slot.name)?;
            slot.m.f_copy_(&m)?;
            slot.v.f_copy_(&v)?;
        }
        self.step = step;
        Ok(())
    }

    /// One step from the parameters' gradients, in their order.
    pub fn step(&mut self, gradients: &[Tensor], rates: impl Fn(Group) -> Rates) -> Result<(), TchError> {
        self.step += 1;
        let t = self.step as f64;
        let correction1 = 1.0 - libm::pow(BETA1, t);
        let correction2 = libm::sqrt(1.0 - libm::pow(BETA2, t));
        let _guard = tch::no_grad_guard();
        for (slot, grad) in self.slots.iter_mut().zip(gradients) {
            let Rates { lr, decay } = rates(slot.group);
            let _ = slot.value.f_mul_scalar_(1.0 - lr * decay)?;
            let _ = slot.m.f_lerp_(grad, 1.0 - BETA1)?;
            let _ = slot.v.f_mul_scalar_(BETA2)?;
            let _ = slot.v.f_add_(&grad.f_mul(grad)?.f_mul_scalar(1.0 - BETA2)?)?;
            let denominator = slot.v.f_sqrt()?.f_div_scalar(correction2)?.f_add_scalar(EPS)?;
            let update = slot.m.f_div(&denominator)?.f_mul_scalar(lr / correction1)?;
            let _ = slot.value.f_sub_(&update)?;
        }
        Ok(())
    }
}

/// √(Σ g²) over all gradients.
pub fn norm(gradients: &[Tensor]) -> Result<f64, TchError> {
    let mut sum = 0.0;
    for gradient in gradients {
        let gradient = gradient.f_flatten(0, -1)?;
        sum += gradient.f_dot(&gradient)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

/// Factor on the learning rates at `step` (from 0) of `total`: a linear rise over the first `warmup` steps, then half
/// a cosine down to zero.
pub fn schedule(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + libm::cos(std::f64::consts::PI * done.min(1.0)))
}

#[cfg(test)]
mod tests {
    use tch::nn::{self, OptimizerConfig};
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::random::{Purpose, generator, unit};

    fn random(dims: &[i64], sample: u64) -> Tensor {
        let mut rng = generator(11, Purpose::Init, 0, sample);
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| 2.0 * unit(&mut rng) - 1.0).collect();
        Tensor::from_slice(&values).view(dims)
    }

    /// A loss whose gradient changes from step to step.
    fn loss(values: &[Tensor], step: u64) -> Tensor {
        let x = random(&[7, 5], 100 + step);
        let hidden = x.matmul(&values[0]).tanh();
        (hidden.matmul(&values[1]) - 0.3).square().mean(Kind::Float)
    }

    fn advance(optimiser: &mut AdamW, values: &[Tensor], at: u64) {
        let gradients = Tensor::run_backward(&[loss(values, at)], values, false, false);
        optimiser.step(&gradients, rates).unwrap();
    }

    fn start() -> Vec<Tensor> {
        [random(&[5, 4], 0), random(&[4, 3], 1)].map(|t| t.set_requires_grad(true)).into()
    }

    fn ours(values: &[Tensor]) -> AdamW {
        let groups = [Group::Lora, Group::Head];
        let named = values.iter().zip(groups).enumerate();
        AdamW::new(named.map(|(i, (t, g))| (format!("p{i}"), t.shallow_clone(), g))).unwrap()
    }

    fn rates(group: Group) -> Rates {
        match group {
            Group::Lora => Rates { lr: 3e-3, decay: 1e-2 },
            Group::Head => Rates { lr: 1e-2, decay: 1e-1 },
        }
    }

    #[test]
    fn thirty_steps_equal_libtorchs_adamw() {
        let mine = start();
        let mut optimiser = ours(&mine);
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let theirs: Vec<Tensor> = start()
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let mut var = root.set_group(i).zeros(&format!("p{i}"), &t.size());
                tch::no_grad(|| var.copy_(t));
                var
            })
            .collect();
        let mut reference = nn::AdamW { wd: 0.0, ..nn::AdamW::default() }.build(&store, 1.0).unwrap();
        for (i, group) in [Group::Lora, Group::Head].into_iter().enumerate() {
            reference.set_lr_group(i, rates(group).lr);
            reference.set_weight_decay_group(i, rates(group).decay);
        }
        for step in 0..30 {
            advance(&mut optimiser, &mine, step);
            reference.backward_step(&loss(&theirs, step));
        }
        for (a, b) in mine.iter().zip(&theirs) {
            let off = (a - b).abs().max().double_value(&[]);
            assert!(off <= 1e-6, "{off}");
            let moved = (a - &start()[usize::from(a.size() != [5, 4])]).abs().max().double_value(&[]);
            assert!(moved > 1e-2, "the parameters hardly moved: {moved}");
        }
    }

    #[test]
    fn restored_state_continues_bit_for_bit() {
        let straight = start();
        let mut optimiser = ours(&straight);
        let mut kept = None;
        for step in 0..20 {
            if step == 8 {
                let moments: Vec<_> = optimiser.moments().map(|x| (x.m.copy(), x.v.copy())).collect();
                kept =
                    Some((straight.iter().map(Tensor::copy).collect::<Vec<_>>(), moments, optimiser.steps()));
            }
            advance(&mut optimiser, &straight, step);
        }
        let (values, moments, steps) = kept.unwrap();
        let resumed: Vec<Tensor> = values.iter().map(|t| t.detach().set_requires_grad(true)).collect();
        let mut optimiser = ours(&resumed);
        let of = |name: &str| &moments[name[1..].parse::<usize>().unwrap()];
        optimiser.restore(steps, |name| Ok((of(name).0.copy(), of(name).1.copy()))).unwrap();
        for step in 8..20 {
            advance(&mut optimiser, &resumed, step);
        }
        assert_eq!(straight, resumed);
    }

    #[test]
    fn the_schedule_rises_then_falls_to_zero() {
        assert!((schedule(0, 4, 20) - 0.25).abs() < 1e-12);
        assert!((schedule(3, 4, 20) - 1.0).abs() < 1e-12);
        assert!((schedule(4, 4, 20) - 1.0).abs() < 1e-12);
        assert!((schedule(12, 4, 20) - 0.5).abs() < 1e-12);
        assert!(schedule(19, 4, 20) < 0.02 && schedule(20, 4, 20).abs() < 1e-12);
        assert!((schedule(0, 0, 1) - 1.0).abs() < 1e-12);
    }
}
