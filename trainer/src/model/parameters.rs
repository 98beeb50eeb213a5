use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::{Arch, Tensor as Stored, Tensors};
use runtime::plugin::expected_content;
use tch::{Device, Kind, TchError, Tensor};

use super::Pooling;
use super::decoder::PREFIX;
use crate::random::{Draw, Purpose, generator};

/// Standard deviation of the query's initial values, which are drawn again beyond two of it.
const QUERY_STD: f64 = 0.02;

/// The two parameter groups, which have their own learning rate and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// LoRA factors.
    Lora,
    /// Query and head, and a decoder.
    Head,
}

/// The trainable tensors, sorted by name as [`expected_content`] lists them, then those of a decoder where there is one; each is a
/// leaf that asks for a gradient.
pub struct Parameters {
    /// Rank, scale and form of the factors.
    pub lora: LoraSpec,
    /// Names of the task's views, in order; none where it has no views.
    pub views: Vec<String>,
    /// What pools the slices.
    pub pooling: Pooling,
    /// Name and tensor.
    pub named: Vec<(String, Tensor)>,
}

impl Parameters {
    /// Initial values: A and the head uniform in ±1/√fan-in (Kaiming with a = √5, libtorch's own default for linear
    /// layers), B zero, the query normal with standard deviation 0.02, cut at two of it. Slices are pooled by the query.
    pub fn init(
        arch: &Arch,
        lora: &LoraSpec,
        labels: usize,
        views: &[&str],
        seed: u64,
        device: Device,
    ) -> Result<Self, TchError> {
        let named = expected_content(arch, lora, labels, views)
            .into_iter()
            .enumerate()
            .map(|(index, (name, dims))| {
                let mut rng = generator(seed, Purpose::Init, 0, index as u64);
                let len = dims.iter().product();
                let fan_in: usize = if name == "head.bias" { arch.dim } else { dims[1..].iter().product() };
                let bound = 1.0 / (fan_in as f32).sqrt();
                let draw = match name.as_str() {
                    name if name.ends_with("query") => Draw::NormalWithinTwo(QUERY_STD),
                    name if name.strip_suffix(".B").is_some() => Draw::Fill(0.0),
                    _ => Draw::Uniform(bound.into()),
                };
                let leaf = leaf(&dims, &draw.values(len, &mut rng), device)?;
                Ok((name, leaf))
            })
            .collect::<Result<_, TchError>>()?;
        Ok(Self { lora: lora.clone(), views: owned(views), pooling: Pooling::Query, named })
    }

    /// From stored tensors, which must have exactly the names and shapes of
    /// [`expected_content`], without queries where slices are not pooled by one and with what the pooling itself has; else one sentence.
    pub fn from_stored(
        arch: &Arch,
        lora: &LoraSpec,
        labels: usize,
        views: &[&str],
        pooling: Pooling,
        stored: &Tensors,
        device: Device,
    ) -> Result<Self, String> {
        let mut wanted = expected_content(arch, lora, labels, views);
        wanted.retain(|(name, _)| pooling == Pooling::Query || !name.ends_with("query"));
        wanted.extend(pooling.content(arch.dim));
        if let Some(name) = stored.keys().find(|name| !wanted.iter().any(|(w, _)| w == *name)) {
            return Err(format!("the tensor {name} is not a parameter of this model"));
        }
        let named = wanted
            .into_iter()
            .map(|(name, dims)| {
                let tensor = stored.get(&name).ok_or_else(|| format!("the tensor {name} is missing"))?;
                if tensor.shape != dims {
                    return Err(format!("{name} has shape {:?}, expected {dims:?}", tensor.shape));
                }
                let leaf = leaf(&dims, &tensor.data, device).map_err(|e| e.to_string())?;
                Ok((name, leaf))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { lora: lora.clone(), views: owned(views), pooling, named })
    }

    /// Copies of the values, in a plugin's form.
    pub fn to_stored(&self) -> Result<Tensors, TchError> {
        self.named.iter().map(|(name, tensor)| Ok((name.clone(), stored(tensor)?))).collect()
    }

    /// The same leaves for another thread; nothing is copied.
    #[must_use]
    pub fn share(&self) -> Self {
        let share = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.shallow_clone());
        let named = self.named.iter().map(share).collect();
        Self { lora: self.lora.clone(), views: self.views.clone(), pooling: self.pooling, named }
    }

    /// Leaves of their own with the same values.
    pub fn copy(&self) -> Result<Self, TchError> {
        let copy = |(name, tensor): &(String, Tensor)| {
            let mut copy = tensor.f_detach()?.f_empty_like()?;
            copy.f_copy_(&tensor.f_detach()?)?;
            Ok((name.clone(), copy.f_set_requires_grad(true)?))
        };
        Ok(Self {
            lora: self.lora.clone(),
            views: self.views.clone(),
            pooling: self.pooling,
            named: self.named.iter().map(copy).collect::<Result<_, TchError>>()?,
        })
    }

    /// All gradients of `total`, one after the other in the order of the parameters, `[P]`; and those of `others`. Threads may
    /// ask side by side, since nothing is added to the leaves.
    pub fn gradients(&self, total: &Tensor, others: &[&Tensor]) -> Result<(Tensor, Vec<Tensor>), TchError> {
        gradients(&self.named, total, others)
    }

    /// Moves these values towards `others`: a running mean with `decay`, which counts less in the first of its `steps`, lest
    /// the initial values linger.
    pub fn follow(&self, others: &Self, decay: f64, steps: u64) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        let decay = decay.min((1.0 + steps as f64) / (10.0 + steps as f64));
        for ((_, mine), (_, other)) in self.named.iter().zip(&others.named) {
            let _ = mine.shallow_clone().f_lerp_(other, 1.0 - decay)?;
        }
        Ok(())
    }

    /// Number of values that a plugin holds; a decoder is not in it.
    pub fn count(&self) -> usize {
        self.count_of(|_| true)
    }

    /// Number of those that `learned` says by name.
    pub fn count_of(&self, learned: impl Fn(&str) -> bool) -> usize {
        let kept = self.named.iter().filter(|(name, _)| !name.starts_with(PREFIX) && learned(name));
        kept.map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Ones at the places of the flat gradients, `[P]`, of those that `learned` says by name, zeros at the others; `None` where all are.
    pub fn mask(&self, learned: impl Fn(&str) -> bool) -> Result<Option<Tensor>, TchError> {
        if self.named.iter().all(|(name, _)| learned(name)) {
            return Ok(None);
        }
        let part = |(name, tensor): &(String, Tensor)| {
            let value = f64::from(u8::from(learned(name)));
            Tensor::f_full([tensor.numel() as i64], value, (Kind::Float, tensor.device()))
        };
        let parts = self.named.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&parts, 0).map(Some)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Result<Tensor, TchError> {
        let found = self.named.iter().find(|(n, _)| n == name);
        found
            .map(|(_, tensor)| tensor.shallow_clone())
            .ok_or_else(|| TchError::Convert(format!("there is no parameter {name}")))
    }

    /// The group that the parameter `name` belongs to.
    pub fn group(name: &str) -> Group {
        if name.contains("lora.") { Group::Lora } else { Group::Head }
    }

    /// Number of views, at least one.
    pub fn inputs(&self) -> usize {
        self.views.len().max(1)
    }

    /// What the names of a view's tensors begin with.
    fn prefix(&self, view: usize) -> String {
        self.views.get(view).map_or(String::new(), |name| format!("views.{name}."))
    }

    /// The query of a view over its slices.
    pub fn query(&self, view: usize) -> Result<Tensor, TchError> {
        self.get(&format!("{}query", self.prefix(view)))
    }

    /// The factors of a view, arranged for the encoder; the gradients go to `self`.
    pub fn factors(&self, view: usize) -> Result<Factors, TchError> {
        let (prefix, scale) = (self.prefix(view), f64::from(self.lora.scale()));
        let pair = |name: String| -> Result<Pair, TchError> {
            Ok(Pair {
                a: self.get(&format!("{prefix}{name}.A"))?.f_mul_scalar(scale)?.f_flatten(1, -1)?,
                b: self.get(&format!("{prefix}{name}.B"))?,
            })
        };
        let patch = if self.named.iter().any(|(name, _)| *name == format!("{prefix}lora.patch.A")) {
            Some(pair("lora.patch".into())?)
        } else {
            None
        };
        let depth = self.named.iter().filter(|(n, _)| n.starts_with(&prefix) && n.ends_with(".o.A")).count();
        let blocks = (0..depth)
            .map(|n| {
                let qkv = match self.lora.attention {
                    AttentionLora::Fused => pair(format!("lora.blocks.{n}.qkv"))?,
                    AttentionLora::Separate => Pair::stacked(&[
                        pair(format!("lora.blocks.{n}.q"))?,
                        pair(format!("lora.blocks.{n}.k"))?,
                        pair(format!("lora.blocks.{n}.v"))?,
                    ])?,
                };
                Ok(BlockFactors { qkv, o: pair(format!("lora.blocks.{n}.o"))? })
            })
            .collect::<Result<_, TchError>>()?;
        Ok(Factors { patch, blocks })
    }
}

/// The gradients of `total` at the leaves `named`, one after the other, `[P]`, zeros where it does not depend on one; and those of
/// `others`.
pub(crate) fn gradients(
    named: &[(String, Tensor)],
    total: &Tensor,
    others: &[&Tensor],
) -> Result<(Tensor, Vec<Tensor>), TchError> {
    let inputs: Vec<&Tensor> = named.iter().map(|(_, tensor)| tensor).chain(others.iter().copied()).collect();
    let mut found = Tensor::f_run_backward(&[total], &inputs, false, false)?;
    let rest = found.split_off(named.len());
    let flat = found.iter().zip(named).map(|(gradient, (_, tensor))| {
        if gradient.defined() {
            gradient.f_flatten(0, -1)
        } else {
            tensor.f_detach()?.f_zeros_like()?.f_flatten(0, -1)
        }
    });
    Ok((Tensor::f_cat(&flat.collect::<Result<Vec<_>, _>>()?, 0)?, rest))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// LoRA factors, arranged as the encoder uses them: in as few products as there are projections, each of which is a call to a
/// GPU that has long been waiting.
pub struct Factors {
    /// A is `[r, 3 p p]`; none where the patch embedding is not adapted.
    pub(super) patch: Option<Pair>,
    pub(super) blocks: Vec<BlockFactors>,
}

/// `scale A` `[r, in]` and B `[out, r]`.
pub(super) struct Pair {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
}

pub(super) struct BlockFactors {
    /// B is `[3 d, r]`; where query, key and value have factors of their own, these are stacked to rank 3 r.
    pub(super) qkv: Pair,
    pub(super) o: Pair,
}

impl Pair {
    /// Pairs that read the same input as one: A one below the other, B on the diagonal.
    fn stacked(pairs: &[Self]) -> Result<Self, TchError> {
        let a: Vec<&Tensor> = pairs.iter().map(|pair| &pair.a).collect();
        let b: Vec<&Tensor> = pairs.iter().map(|pair| &pair.b).collect();
        Ok(Self { a: Tensor::f_cat(&a, 0)?, b: Tensor::f_block_diag(&b)? })
    }
}

impl Factors {
    /// The factors rounded to `kind`.
    pub fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        self.map(|tensor| tensor.f_to_kind(kind))
    }

    /// The same values apart from the parameters that they were made of. Gradients at these leaves can be added up over many
    /// passes and then given to the parameters once.
    pub fn leaves(&self) -> Result<Self, TchError> {
        self.map(|tensor| tensor.f_detach()?.f_set_requires_grad(true))
    }

    /// All tensors, always in the same order.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.qkv, &block.o]);
        self.patch.iter().chain(blocks).flat_map(|pair| [&pair.a, &pair.b]).collect()
    }

    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let pair = |pair: &Pair| Ok::<_, TchError>(Pair { a: change(&pair.a)?, b: change(&pair.b)? });
        let block = |block: &BlockFactors| Ok(BlockFactors { qkv: pair(&block.qkv)?, o: pair(&block.o)? });
        Ok(Self {
            patch: self.patch.as_ref().map(pair).transpose()?,
            blocks: self.blocks.iter().map(block).collect::<Result<_, TchError>>()?,
        })
    }
}

pub(super) fn leaf(dims: &[usize], values: &[f32], device: Device) -> Result<Tensor, TchError> {
    let dims: Vec<i64> = dims.iter().map(|&n| n as i64).collect();
    Tensor::f_from_slice(values)?.f_reshape(dims)?.f_to_device(device)?.f_set_requires_grad(true)
}

/// A copy of a tensor's values in C order.
pub(crate) fn stored(tensor: &Tensor) -> Result<Stored, TchError> {
    let tensor = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut data = vec![0.0f32; tensor.numel()];
    let len = data.len();
    tensor.f_copy_data(&mut data, len)?;
    Ok(Stored { shape: tensor.size().iter().map(|&n| n as usize).collect(), data })
}

#[cfg(test)]
mod tests {
    use runtime::backbone::{Body, Embedding, Family, Mlp, Position, PositionResize, Vit};

    use super::*;

    fn arch(dim: usize, depth: usize, patch: usize) -> Arch {
        let vit = Vit {
            depth,
            heads: 2,
            embedding: Embedding::Cls,
            registers: 0,
            mlp: Mlp::Gelu { hidden: 4 * dim },
            layer_scale: true,
            position: Position::Table { grid: 4, resize: PositionResize::Bicubic },
        };
        Arch { family: Family::Dinov2, dim, patch, norm_eps: 1e-6, body: Body::Vit(vit) }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        use AttentionLora::{Fused, Separate};
        for (what, dim, depth, patch, labels, attention, count) in [
            ("DINOv2 ViT-S/14", 384, 12, 14, 1, Fused, 229_729),
            ("DINOv3 ViT-S/16", 384, 12, 16, 1, Fused, 231_169),
            ("DINOv3 ViT-B/16", 768, 12, 16, 1, Fused, 456_193),
            ("DINOv2 ViT-B/14, 18 labels", 768, 12, 14, 18, Fused, 467_826),
            ("DINOv3 ViT-L/16", 1024, 24, 16, 1, Fused, 1_196_033),
            ("DINOv3 ViT-L/16, separate", 1024, 24, 16, 1, Separate, 1_589_249),
            ("MedSigLIP-400M", 1152, 27, 14, 1, Fused, 1_509_217),
            ("MedSigLIP-400M, separate", 1152, 27, 14, 1, Separate, 2_006_881),
        ] {
            let lora = LoraSpec { rank: 8, alpha: 16.0, attention };
            let arch = arch(dim, depth, patch);
            let parameters = Parameters::init(&arch, &lora, labels, &[], 0, Device::Cpu).unwrap();
            assert_eq!(parameters.count(), count, "{what}");
            // Mean and median have nothing to learn.
            let median = parameters.pooled_by(Pooling::Median, &arch, 0, Device::Cpu).unwrap();
            assert_eq!(median.count(), count - dim, "{what}");
        }
    }

    #[test]
    fn initial_values_follow_their_distributions_and_the_seed() {
        let lora = LoraSpec { rank: 4, alpha: 8.0, attention: AttentionLora::Separate };
        let init = |seed| Parameters::init(&arch(64, 2, 14), &lora, 3, &[], seed, Device::Cpu).unwrap();
        let values = init(1).to_stored().unwrap();
        assert_eq!(values, init(1).to_stored().unwrap());
        assert_ne!(values["query"], init(2).to_stored().unwrap()["query"]);
        for (name, tensor) in &values {
            let max = tensor.data.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let bound = match name.as_str() {
                "query" => 0.04,
                "lora.patch.A" => 1.0 / (3.0f32 * 14.0 * 14.0).sqrt(),
                name if name.strip_suffix(".B").is_some() => 0.0,
                _ => 1.0 / 8.0,
            };
            assert!(max <= bound, "{name}: {max} {bound}");
            assert!(max >= 0.8 * bound || tensor.data.len() < 64, "{name}: {max} {bound}");
        }
        let query = &values["query"].data;
        let std = (query.iter().map(|x| x * x).sum::<f32>() / query.len() as f32).sqrt();
        assert!((0.013..0.025).contains(&std), "{std}");
    }

    #[test]
    fn a_running_mean_follows_faster_at_first() {
        let arch = arch(8, 1, 2);
        let lora = LoraSpec { rank: 2, alpha: 4.0, attention: AttentionLora::Fused };
        let init = |seed| Parameters::init(&arch, &lora, 1, &[], seed, Device::Cpu).unwrap();
        let query = |p: &Parameters| f64::from(p.to_stored().unwrap()["query"].data[3]);
        let (average, other) = (init(1), init(2));
        let start = query(&average);
        average.follow(&other, 0.9, 1).unwrap();
        let early = 2.0 / 11.0 * start + 9.0 / 11.0 * query(&other);
        assert!((query(&average) - early).abs() < 1e-7);
        average.follow(&other, 0.9, 1000).unwrap();
        assert!((query(&average) - (0.9 * early + 0.1 * query(&other))).abs() < 1e-7);
        assert!((query(&average) - query(&other)).abs() > 1e-6);
    }

    #[test]
    fn stored_parameters_come_back_and_wrong_ones_are_named() {
        let arch = arch(8, 1, 2);
        let lora = LoraSpec { rank: 2, alpha: 4.0, attention: AttentionLora::Fused };
        let mut kept = Parameters::init(&arch, &lora, 1, &[], 3, Device::Cpu).unwrap().to_stored().unwrap();
        let back = Parameters::from_stored(&arch, &lora, 1, &[], Pooling::Query, &kept, Device::Cpu).unwrap();
        assert_eq!(back.to_stored().unwrap(), kept);
        let pooled = |pooling, tensors: &Tensors| {
            Parameters::from_stored(&arch, &lora, 1, &[], pooling, tensors, Device::Cpu)
        };
        let load = |tensors: &Tensors| pooled(Pooling::Query, tensors).err().unwrap();
        assert!(pooled(Pooling::Mean, &kept).err().unwrap().contains("query is not a parameter"));
        let query = kept.remove("query").unwrap();
        assert!(load(&kept).contains("query is missing"));
        assert_eq!(pooled(Pooling::Mean, &kept).unwrap().to_stored().unwrap(), kept);
        let mean = back.pooled_by(Pooling::Mean, &arch, 0, Device::Cpu).unwrap();
        assert_eq!(mean.to_stored().unwrap(), kept);
        let lstm = mean.pooled_by(Pooling::Lstm, &arch, 0, Device::Cpu).unwrap().to_stored().unwrap();
        let back = pooled(Pooling::Lstm, &lstm).unwrap();
        assert_eq!((back.to_stored().unwrap(), lstm.len()), (lstm, kept.len() + 8));
        kept.insert("query".into(), Stored { shape: vec![2, 4], data: query.data });
        assert!(load(&kept).contains("[2, 4], expected [8]"));
        kept.insert("mystery".into(), Stored { shape: vec![1], data: vec![0.0] });
        assert!(load(&kept).contains("mystery"));
    }
}
