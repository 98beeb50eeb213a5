use std::collections::HashSet;
use std::path::Path;

use runtime::tensor::read_safetensors_where;
use tch::Tensor;

use super::{Method, Rival};
use crate::Error;

/// What PyTorch's `DataParallel` puts before names, MedicalNet's files among them.
const PARALLEL: &str = "module.";

/// Puts the weights of a safetensors file in the place of the network's: all tensors that have a name of the network's but those of its
/// last layer, which is the task's own; what is called otherwise is not looked at. Returns how many values were taken, running
/// statistics too.
///
/// Names are torchvision's for the features of `cnn-bilstm`, MedicalNet's for the ResNets and MONAI's for the DenseNet; a ResNet-18
/// of MedicalNet's has no weights in its shortcuts, which then stay as they were drawn.
pub fn start_from(method: Method, rival: &dyn Rival, path: &Path) -> Result<usize, Error> {
    let weights = rival.weights();
    let head: HashSet<&str> = weights.named().iter().rev().take(2).map(|(name, _)| name.as_str()).collect();
    let bare = |name: &str| name.strip_prefix(PARALLEL).unwrap_or(name).to_owned();
    let mine: HashSet<&str> =
        weights.all().map(|(name, _)| name).filter(|name| !head.contains(name)).collect();
    let file = read_safetensors_where(path, &|name| mine.contains(bare(name).as_str()));
    let file = file.map_err(|e| method.refused(e.to_string()))?;
    let mut taken = 0;
    let _guard = tch::no_grad_guard();
    for (name, stored) in &file.tensors {
        let name = bare(name);
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
