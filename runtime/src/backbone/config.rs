//! What `config.json` beside a backbone says of it, in any of the places where it is written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::BackboneError;

/// A configuration; empty where there is no file.
pub(super) struct Config {
    path: PathBuf,
    json: Value,
}

impl Config {
    /// The `config.json` in the folder of `path`.
    pub(super) fn beside(path: &Path) -> Result<Self, BackboneError> {
        let path = path.with_file_name("config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Self { path, json: Value::Null }) };
        let json = serde_json::from_str(&text)
            .map_err(|e| BackboneError::Config { path: path.clone(), detail: format!("not JSON ({e})") })?;
        Ok(Self { path, json })
    }

    /// The first of `keys` that is there: in the part for the image tower, in the whole, among timm's arguments.
    fn get(&self, keys: &[&str]) -> Option<&Value> {
        let parts = [&self.json["vision_config"], &self.json, &self.json["model_args"]];
        parts.into_iter().find_map(|part| keys.iter().find_map(|key| part.get(key)))
    }

    /// The attention heads of a block of width `dim`, which they must divide.
    pub(super) fn heads(&self, dim: usize) -> Result<Option<usize>, BackboneError> {
        let Some(heads) = self.get(&["num_attention_heads", "num_heads", "heads"]).and_then(Value::as_u64)
        else {
            return Ok(None);
        };
        let heads = heads as usize;
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(self.wrong(format!("{heads} attention heads do not divide a width of {dim}")));
        }
        Ok(Some(heads))
    }

    /// Epsilon of the norms.
    pub(super) fn norm_eps(&self) -> Option<f32> {
        self.get(&["layer_norm_eps", "norm_eps"]).and_then(Value::as_f64).map(|x| x as f32)
    }

    /// Base of the rotary frequencies.
    pub(super) fn rope_theta(&self) -> Option<f32> {
        self.get(&["rope_theta"]).and_then(Value::as_f64).map(|x| x as f32)
    }

    /// Whether the GELU of an ungated MLP is the tanh approximation.
    pub(super) fn gelu_tanh(&self) -> Result<Option<bool>, BackboneError> {
        match self.get(&["hidden_act", "activation_function"]).and_then(Value::as_str) {
            None => Ok(None),
            Some("gelu") => Ok(Some(false)),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_tanh") => Ok(Some(true)),
            Some(other) => Err(self.wrong(format!(
                "the activation {other} is not known here, expected gelu or gelu_pytorch_tanh"
            ))),
        }
    }

    /// One number a stage under `key`, or one for all; `None` where the key is absent.
    pub(super) fn per_stage(&self, key: &str, stages: usize) -> Result<Option<Vec<usize>>, BackboneError> {
        let wrong = || self.wrong(format!("{key} is expected to hold {stages} positive numbers"));
        let number = |v: &Value| v.as_u64().filter(|&n| n > 0).map(|n| n as usize);
        match self.get(&[key]) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() == stages => {
                values.iter().map(number).collect::<Option<Vec<_>>>().map(Some).ok_or_else(wrong)
            }
            Some(value) => number(value).map(|n| Some(vec![n; stages])).ok_or_else(wrong),
        }
    }

    fn wrong(&self, detail: String) -> BackboneError {
        BackboneError::Config { path: self.path.clone(), detail }
    }
}
