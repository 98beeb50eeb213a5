use std::collections::HashSet;
use std::path::Path;

use runtime::tensor::read_safetensors_where;
use tch::Tensor;

use super::{Method, Rival};
use crate::Error;

/// What stands before names in some files: PyTorch's `DataParallel` puts the first there, as in MedicalNet's, VoCo's pre-training the
/// second.
const PREFIXES: [&str; 2] = ["module.", "backbone."];

/// The name of which of `mine` a file's tensor has, in whole or behind prefixes; VoCo's encoder has two names.
fn known<'a>(name: &str, mine: &HashSet<&'a str>) -> Option<&'a str> {
    let name = name.replace("swin_vit.", "swinViT.");
    let mut rest = Some(name.as_str());
    while let Some(name) = rest {
        if let Some(&known) = mine.get(name) {
            return Some(known);
        }
        rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    }
    None
}

/// The channels after the patch embedding of VoCo's network in a file.
pub(super) fn voco_width(method: Method, path: &Path) -> Result<i64, Error> {
    let mine = HashSet::from(["swinViT.patch_embed.proj.bias"]);
    let file = read_safetensors_where(path, &|name| known(name, &mine).is_some());
    let file = file.map_err(|e| method.refused(e.to_string()))?;
    let width = file.tensors.values().next().map_or(0, |tensor| tensor.data.len());
    if width == 0 || width % 3 != 0 {
        return Err(method.refused(format!(
            "{} has {width} values of swinViT.patch_embed.proj.bias, expected 48 (VoCo-B), 96 (L) or 192 (H)",
            path.display()
        )));
    }
    Ok(width as i64)
}

/// Puts the weights of a safetensors file in the place of the network's: all tensors that have a name of the network's but those of its
/// last layer, which is the task's own; what is called otherwise is not looked at. Returns how many values were taken, running
/// statistics too.
///
/// Names are torchvision's for the features of `cnn-bilstm`, MedicalNet's for the ResNets, MONAI's for the DenseNet and VoCo's for
/// its Swin UNETR; a ResNet-18 of MedicalNet's has no weights in its shortcuts and a file of VoCo's may have no decoder, which then stay
/// as they were drawn.
pub fn start_from(method: Method, rival: &dyn Rival, path: &Path) -> Result<usize, Error> {
    let weights = rival.weights();
    let head: HashSet<&str> = weights.named().iter().rev().take(2).map(|(name, _)| name.as_str()).collect();
    let mine: HashSet<&str> =
        weights.all().map(|(name, _)| name).filter(|name| !head.contains(name)).collect();
    let file = read_safetensors_where(path, &|name| known(name, &mine).is_some());
    let file = file.map_err(|e| method.refused(e.to_string()))?;
    let mut taken = 0;
    let _guard = tch::no_grad_guard();
    for (name, stored) in &file.tensors {
        let Some(name) = known(name, &mine) else { continue };
        let Some((_, tensor)) = weights.all().find(|(mine, _)| *mine == name) else { continue };
        let shape: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
        if shape != tensor.size() {
            return Err(method.refused(format!(
                "{} has {name} of shape {shape:?}, expected {:?}; take weights of this network, with as many channels",
                path.display(),
                tensor.size()
            )));
        }
        tensor.shallow_clone().f_copy_(&Tensor::f_from_slice(&stored.data)?.f_reshape(shape)?)?;
        taken += tensor.numel();
    }
    if taken == 0 {
        let name = weights.named().first().map_or("", |(name, _)| name.as_str());
        return Err(method.refused(format!(
            "{} has none of its weights, expected names such as {name}; rename the tensors",
            path.display()
        )));
    }
    Ok(taken)
}
