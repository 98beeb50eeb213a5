use std::collections::BTreeMap;
use std::path::Path;

use runtime::backbone::Tensors;
use runtime::tensor::{read_safetensors, round_to_f16, safetensors_bytes};
use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use super::Epoch;
use crate::Error;
use crate::data::Cache;
use crate::model::decoder::PREFIX;
use crate::model::{Network, Parameters, stored};
use crate::optim::AdamW;
use crate::precision::Scaler;
use crate::run::Settings;

const KEY: &str = "scanside.checkpoint";

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What the fit was started with; also the thread count, which resuming keeps, since sums depend on it.
    pub settings: Settings,
    /// Optimiser steps done.
    pub step: u64,
    /// The epochs done.
    pub history: Vec<Epoch>,
    /// The best of them, from 1.
    pub best: usize,
    /// f16's loss scaling as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaler: Option<Scaler>,
    /// Volumes that were skipped, by id, with the reason.
    #[serde(default)]
    pub skipped: BTreeMap<String, String>,
}

impl State {
    /// Notes what has been skipped by now.
    pub(super) fn add_skipped(&mut self, cache: &Cache<'_>) {
        let id = |index: usize| cache.table().samples[index].id.clone();
        self.skipped.extend(cache.skipped().into_iter().map(|(index, reason)| (id(index), reason)));
    }
}

/// A fit after an epoch: parameters, moments and, where asked for, the parameters' running mean (`param.NAME`, `m.NAME`,
/// `v.NAME`, `ema.NAME`) and the state as JSON in the metadata.
/// There is no generator in it, since every draw follows from seed, epoch and sample.
pub struct Checkpoint {
    /// What is not a tensor.
    pub state: State,
    tensors: Tensors,
}

impl Checkpoint {
    /// Copies everything out of a running fit.
    pub fn of(
        state: State,
        network: &Network,
        average: Option<&Parameters>,
        optimiser: &AdamW,
    ) -> Result<Self, Error> {
        let mut tensors = Tensors::new();
        for (name, tensor) in network.parameters.to_stored()? {
            tensors.insert(format!("param.{name}"), tensor);
        }
        for (name, tensor) in average.map_or_else(|| Ok(Tensors::new()), Parameters::to_stored)? {
            tensors.insert(format!("ema.{name}"), tensor);
        }
        for moments in optimiser.moments()? {
            tensors.insert(format!("m.{}", moments.name), stored(&moments.m)?);
            tensors.insert(format!("v.{}", moments.name), stored(&moments.v)?);
        }
        Ok(Self { state, tensors })
    }

    /// Reads a checkpoint.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = read_safetensors(path).map_err(runtime::Error::from)?;
        let unusable = |problem: String| Error::Run { path: path.into(), problem };
        let json = file.metadata.get(KEY).ok_or_else(|| unusable(format!("it has no metadata {KEY}")))?;
        let state = serde_json::from_str(json)
            .map_err(|e| unusable(format!("its metadata is of another version or damaged ({e})")))?;
        Ok(Self { state, tensors: file.tensors })
    }

    /// Writes the checkpoint; a power cut leaves the old file or the new one.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_string(&self.state).map_err(|e| Error::io(path)(e.into()))?;
        let bytes = safetensors_bytes(&self.tensors, Some((KEY, &json)));
        runtime::files::write_atomically(path, &bytes).map_err(Error::io(path))
    }

    /// Factors, query and head, as they stand in a plugin, so without a decoder: the running mean where there is one.
    pub fn content(&self) -> Tensors {
        let prefix = self.judged();
        let of = |(name, tensor): (&String, &_)| {
            let name = name.strip_prefix(prefix).filter(|name| !name.starts_with(PREFIX))?;
            Some((name.to_owned(), runtime::backbone::Tensor::clone(tensor)))
        };
        self.tensors.iter().filter_map(of).collect()
    }

    /// Rounds what [`Checkpoint::content`] gives to half precision.
    pub fn round_to_f16(&mut self) {
        let prefix = self.judged();
        for (name, tensor) in &mut self.tensors {
            if name.strip_prefix(prefix).is_some_and(|name| !name.starts_with(PREFIX)) {
                round_to_f16(&mut tensor.data);
            }
        }
    }

    /// Puts what [`Checkpoint::content`] gives, and a decoder where `parameters` have one, into `parameters`.
    pub fn load_into(&self, parameters: &Parameters) -> Result<(), Error> {
        self.load(self.judged(), parameters)
    }

    /// The prefix of the tensors that were validated.
    fn judged(&self) -> &'static str {
        if self.tensors.keys().any(|name| name.starts_with("ema.")) { "ema." } else { "param." }
    }

    pub(super) fn load(&self, prefix: &str, parameters: &Parameters) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        for (name, tensor) in &parameters.named {
            tensor.shallow_clone().f_copy_(&self.get(&format!("{prefix}{name}"))?)?;
        }
        Ok(())
    }

    /// Puts parameters, their running mean and moments back.
    pub fn restore(
        &self,
        parameters: &Parameters,
        average: Option<&Parameters>,
        optimiser: &mut AdamW,
    ) -> Result<(), Error> {
        self.load("param.", parameters)?;
        if let Some(average) = average {
            self.load("ema.", average)?;
        }
        let moments = |name: &str| Ok((self.get(&format!("m.{name}"))?, self.get(&format!("v.{name}"))?));
        Ok(optimiser.restore(self.state.step, moments)?)
    }

    fn get(&self, name: &str) -> Result<Tensor, TchError> {
        let found = self.tensors.get(name);
        let found = found.ok_or_else(|| TchError::Convert(format!("the checkpoint has no {name}")))?;
        let dims: Vec<i64> = found.shape.iter().map(|&n| n as i64).collect();
        Tensor::f_from_slice(&found.data)?.f_reshape(dims)
    }
}
