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
///
/// The moments of a group lie one after the other in one tensor, so that a step is a dozen operations a group, however many
/// parameters there are; on a GPU an operation for each would cost more than the arithmetic.
pub struct AdamW {
    groups: Vec<Slots>,
    step: u64,
}

/// The parameters of one group.
struct Slots {
    group: Group,
    named: Vec<Slot>,
    m: Tensor,
    v: Tensor,
}

struct Slot {
    name: String,
    value: Tensor,
    /// Where its gradient starts among all of them.
    start: i64,
}

/// First and second moments of a parameter.
pub struct Moments {
    /// The parameter's name.
    pub name: String,
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
}

impl AdamW {
    /// Moments of zero for leaf tensors that ask for gradients.
    pub fn new(parameters: impl IntoIterator<Item = (String, Tensor, Group)>) -> Result<Self, TchError> {
        let mut groups: Vec<(Group, Vec<Slot>)> = Vec::new();
        let mut start = 0;
        for (name, value, group) in parameters {
            let length = value.numel() as i64;
            let slot = Slot { name, value, start };
            start += length;
            match groups.iter_mut().find(|(g, _)| *g == group) {
                Some((_, named)) => named.push(slot),
                None => groups.push((group, vec![slot])),
            }
        }
        let groups = groups.into_iter().map(|(group, named)| {
            let length: i64 = named.iter().map(|slot| slot.value.numel() as i64).sum();
            let zeros = || Tensor::f_zeros([length], (Kind::Float, named[0].value.device()));
            Ok(Slots { m: zeros()?, v: zeros()?, group, named })
        });
        Ok(Self { groups: groups.collect::<Result<_, TchError>>()?, step: 0 })
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The moments of all parameters, group by group.
    pub fn moments(&self) -> Result<Vec<Moments>, TchError> {
        let mut all = Vec::new();
        for group in &self.groups {
            let parts = group.split(&group.m)?.into_iter().zip(group.split(&group.v)?);
            for (slot, (m, v)) in group.named.iter().zip(parts) {
                all.push(Moments { name: slot.name.clone(), m, v });
            }
        }
        Ok(all)
    }

    /// Puts back what [`AdamW::moments`] and [`AdamW::steps`] gave; `moments` yields first and second moment by name.
    pub fn restore(
        &mut self,
        step: u64,
        mut moments: impl FnMut(&str) -> Result<(Tensor, Tensor), TchError>,
    ) -> Result<(), TchError> {
        for here in self.moments()? {
            let Moments { name, mut m, mut v } = here;
            let (stored_m, stored_v) = moments(&name)?;
            m.f_copy_(&stored_m)?;
            v.f_copy_(&stored_v)?;
        }
        self.step = step;
        Ok(())
    }

    /// One step from the parameters' gradients, `[P]`, one after the other in the order of the parameters.
    pub fn step(&mut self, gradients: &Tensor, rates: impl Fn(Group) -> Rates) -> Result<(), TchError> {
        self.step += 1;
        let t = self.step as f64;
        let correction1 = 1.0 - libm::pow(BETA1, t);
        let correction2 = libm::sqrt(1.0 - libm::pow(BETA2, t));
        let _guard = tch::no_grad_guard();
        for slots in &mut self.groups {
            let Rates { lr, decay } = rates(slots.group);
            let part = |slot: &Slot| gradients.f_narrow(0, slot.start, slot.value.numel() as i64);
            let grad = Tensor::f_cat(&slots.named.iter().map(part).collect::<Result<Vec<_>, _>>()?, 0)?;
            let values = slots.named.iter().map(|slot| slot.value.f_flatten(0, -1));
            let mut values = Tensor::f_cat(&values.collect::<Result<Vec<_>, _>>()?, 0)?;
            let _ = values.f_mul_scalar_(1.0 - lr * decay)?;
            let _ = slots.m.f_lerp_(&grad, 1.0 - BETA1)?;
            let _ = slots.v.f_mul_scalar_(BETA2)?;
            let _ = slots.v.f_add_(&grad.f_mul(&grad)?.f_mul_scalar(1.0 - BETA2)?)?;
            let denominator = slots.v.f_sqrt()?.f_div_scalar(correction2)?.f_add_scalar(EPS)?;
            let update = slots.m.f_div(&denominator)?.f_mul_scalar(lr / correction1)?;
            let _ = values.f_sub_(&update)?;
            for (slot, value) in slots.named.iter().zip(slots.split(&values)?) {
                slot.value.shallow_clone().f_copy_(&value)?;
            }
        }
        Ok(())
    }
}

impl Slots {
    /// Views of the group's parts of a tensor, in the parameters' shapes.
    fn split(&self, whole: &Tensor) -> Result<Vec<Tensor>, TchError> {
        let lengths: Vec<i64> = self.named.iter().map(|slot| slot.value.numel() as i64).collect();
        let parts = whole.f_split_with_sizes(&lengths, 0)?;
        parts.iter().zip(&self.named).map(|(part, slot)| part.f_view(slot.value.size().as_slice())).collect()
    }
}

/// √(Σ g²).
pub fn norm(gradients: &Tensor) -> Result<f64, TchError> {
    Ok(gradients.f_dot(gradients)?.f_double_value(&[])?.sqrt())
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
    use std::collections::HashMap;

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
        let flat: Vec<Tensor> = gradients.iter().map(|g| g.flatten(0, -1)).collect();
        optimiser.step(&Tensor::cat(&flat, 0), rates).unwrap();
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
                let moments: HashMap<_, _> = optimiser
                    .moments()
                    .unwrap()
                    .into_iter()
                    .map(|x| (x.name, (x.m.copy(), x.v.copy())))
                    .collect();
                kept =
                    Some((straight.iter().map(Tensor::copy).collect::<Vec<_>>(), moments, optimiser.steps()));
            }
            advance(&mut optimiser, &straight, step);
        }
        let (values, moments, steps) = kept.unwrap();
        let resumed: Vec<Tensor> = values.iter().map(|t| t.detach().set_requires_grad(true)).collect();
        let mut optimiser = ours(&resumed);
        optimiser.restore(steps, |name| Ok((moments[name].0.copy(), moments[name].1.copy()))).unwrap();
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
