use std::collections::HashMap;
use std::path::Path;

use tch::{TchError, Tensor};

use super::Weights;
use super::fit::State;
use crate::Error;
use crate::optim::AdamW;

/// Name of the tensor of bytes that is [`State`] as JSON.
const STATE: &str = "state";

/// A fit after an epoch: weights and running statistics (`param.NAME`), those of the best epoch (`best.NAME`) and moments (`m.NAME`,
/// `v.NAME`).
pub(super) struct Checkpoint {
    pub(super) state: State,
    tensors: HashMap<String, Tensor>,
}

impl Checkpoint {
    /// Reads what [`Checkpoint::write`] wrote.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let unusable = |problem: String| Error::Run { path: path.into(), problem };
        let damaged = |e: String| unusable(format!("it is no checkpoint, or a damaged one ({e}); remove it"));
        let found = Tensor::read_safetensors(path).map_err(|e| damaged(e.to_string()))?;
        let tensors: HashMap<String, Tensor> = found.into_iter().collect();
        let bytes = tensors.get(STATE).ok_or_else(|| damaged(format!("it has no {STATE}")))?;
        let bytes = Vec::<u8>::try_from(bytes).map_err(|e| damaged(e.to_string()))?;
        let state = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        Ok(Self { state, tensors })
    }

    /// Writes a fit's state; a power cut leaves the old file or the new one.
    pub(super) fn write(
        path: &Path,
        state: &State,
        weights: &Weights,
        best: &[Tensor],
        optimiser: &AdamW,
    ) -> Result<(), Error> {
        let json = serde_json::to_vec(state).map_err(|e| Error::io(path)(e.into()))?;
        let mut tensors = vec![(STATE.to_owned(), Tensor::f_from_slice(&json)?)];
        for ((name, tensor), best) in weights.all().zip(best) {
            tensors.push((format!("param.{name}"), tensor.f_detach()?));
            tensors.push((format!("best.{name}"), best.shallow_clone()));
        }
        for moments in optimiser.moments()? {
            tensors.push((format!("m.{}", moments.name), moments.m));
            tensors.push((format!("v.{}", moments.name), moments.v));
        }
        let beside = path.with_extension("new");
        Tensor::write_safetensors(&tensors, &beside)?;
        let synced = std::fs::File::open(&beside).and_then(|file| file.sync_all());
        synced.and_then(|()| std::fs::rename(&beside, path)).map_err(Error::io(path))
    }

    /// Puts weights and moments back; gives those of the best epoch, as [`Weights::copy`] has them.
    pub(super) fn restore(&self, weights: &Weights, optimiser: &mut AdamW) -> Result<Vec<Tensor>, TchError> {
        let of = |prefix: &str| {
            let get = |(name, like): (&str, &Tensor)| self.get(prefix, name)?.f_to_device(like.device());
            weights.all().map(get).collect::<Result<Vec<_>, _>>()
        };
        weights.restore(&of("param")?)?;
        let moments = |name: &str| Ok((self.get("m", name)?, self.get("v", name)?));
        optimiser.restore(self.state.step, moments)?;
        of("best")
    }

    fn get(&self, prefix: &str, name: &str) -> Result<Tensor, TchError> {
        let found = self.tensors.get(&format!("{prefix}.{name}")).map(Tensor::shallow_clone);
        found.ok_or_else(|| TchError::Convert(format!("the checkpoint has no {prefix}.{name}")))
    }
}
