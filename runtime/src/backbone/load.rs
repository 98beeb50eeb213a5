//! From a file's tensors to the canonical ones.

use std::path::Path;

use super::config::Config;
use super::detect::{Found, nearest};
use super::layout::Part;
use super::{Arch, Backbone, BackboneError, Family, Naming, Tensor, Tensors, davit, vit};

/// Canonical tensors and sizes of whatever naming `tensors` are in; `naming` replaces what their names say.
pub(super) fn canonical(
    tensors: Tensors,
    naming: Option<Naming>,
    sha256: String,
    label: Option<String>,
    path: &Path,
) -> Result<Backbone, BackboneError> {
    let unknown = |detail: String| BackboneError::Unknown { path: path.into(), detail };
    let Some(found) = nearest(&tensors) else {
        return Err(unknown(format!("none of its {} tensors has a name of one", tensors.len())));
    };
    let (family, naming) = (found.layout.family, naming.unwrap_or(found.layout.naming));
    if found.there < found.absent.len() {
        let (there, kinds) = (found.there, found.there + found.absent.len());
        return Err(unknown(format!(
            "of the {kinds} kinds of tensor of the nearest, {family} in {naming} naming, it has {there}"
        )));
    }
    let config = Config::beside(path)?;
    let mut taker = Taker::new(tensors, &found, path);
    let arch = match family {
        Family::Davit => davit::load(&mut taker, &found, &config),
        _ => vit::load(&mut taker, &found, &config, naming),
    };
    let (arch, tensors) = taker.finish(arch, &found, naming)?;
    Ok(Backbone { arch, naming, sha256, tensors, label })
}

/// Why the sizes of a backbone cannot be told.
pub(super) enum Stop {
    /// A tensor that tells them is not there.
    Missing(String),
    /// Anything else.
    Error(BackboneError),
}

impl From<BackboneError> for Stop {
    fn from(error: BackboneError) -> Self {
        Self::Error(error)
    }
}

/// Takes tensors by name into the canonical set, and keeps what is missing or misshapen.
pub(super) struct Taker<'a> {
    /// Under the file's names, without the prefix.
    tensors: Tensors,
    /// All of them at the start.
    names: Vec<String>,
    prefix: &'a str,
    path: &'a Path,
    out: Tensors,
    missing: Vec<String>,
    misshapen: Option<BackboneError>,
}

impl<'a> Taker<'a> {
    fn new(tensors: Tensors, found: &'a Found, path: &'a Path) -> Self {
        let own =
            |(name, tensor): (String, Tensor)| Some((name.strip_prefix(&found.prefix)?.to_owned(), tensor));
        let tensors: Tensors = tensors.into_iter().filter_map(own).collect();
        let names = tensors.keys().cloned().collect();
        Self {
            tensors,
            names,
            prefix: &found.prefix,
            path,
            out: Tensors::new(),
            missing: vec![],
            misshapen: None,
        }
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether the file has a tensor of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor whose name ends so is in any block, taken or not.
    pub(super) fn has_any(&self, end: &str) -> bool {
        self.names.iter().any(|name| name.ends_with(end))
    }

    /// The shape of a tensor that tells sizes, which must have so many axes.
    pub(super) fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N], Stop> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Stop::Missing(format!("{}{name}", self.prefix)));
        };
        match <[usize; N]>::try_from(tensor.shape.as_slice()) {
            Ok(shape) if !shape.contains(&0) => Ok(shape),
            _ => {
                let (path, shape) = (self.path.into(), &tensor.shape);
                let detail = format!("{}{name} has shape {shape:?}, expected {N} axes", self.prefix);
                Err(BackboneError::Unknown { path, detail }.into())
            }
        }
    }

    /// One more than the largest number that follows `before` and a dot in a name.
    pub(super) fn count(&self, before: &str) -> usize {
        let number = |name: &String| -> Option<usize> {
            name.strip_prefix(before)?.strip_prefix('.')?.split('.').next()?.parse().ok()
        };
        // No file has more blocks than tensors, whatever a name says.
        self.tensors.keys().filter_map(number).filter(|n| *n < self.tensors.len()).max().map_or(0, |n| n + 1)
    }

    /// An error for a tensor whose shape is not the expected one.
    pub(super) fn misshapen(&self, name: &str, found: &[usize], expected: &[usize]) -> BackboneError {
        BackboneError::Shape {
            path: self.path.into(),
            name: format!("{}{name}", self.prefix),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The tensor `name`, which must hold `shape` (leading axes of 1 are ignored); zeros where it does not, for
    /// [`Self::finish`] to refuse.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        let zeros = || Tensor::new(shape, vec![0.0; shape.iter().product()]);
        let Some(tensor) = self.tensors.remove(name) else {
            self.missing.push(format!("{}{name}", self.prefix));
            return zeros();
        };
        let lead = tensor.shape.len().saturating_sub(shape.len());
        if tensor.shape[lead..] != *shape || tensor.shape[..lead].iter().any(|&d| d != 1) {
            let error = self.misshapen(name, &tensor.shape, shape);
            self.misshapen.get_or_insert(error);
            return zeros();
        }
        tensor.reshaped(shape)
    }

    /// Puts a canonical tensor.
    pub(super) fn put(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.out.insert(name.into(), tensor);
    }

    /// Moves the tensor or layer `theirs` to the canonical name `to`; `weight` is the shape of a layer's weight, whose bias
    /// is as long as its first axis.
    pub(super) fn layer(&mut self, to: &str, theirs: &str, weight: &[usize]) {
        for (end, shape) in [("weight", weight), ("bias", &weight[..1])] {
            let tensor = self.take(&format!("{theirs}.{end}"), shape);
            self.put(format!("{to}.{end}"), tensor);
        }
    }

    /// Moves the one tensor `theirs` to the canonical name `to`.
    pub(super) fn tensor(&mut self, to: &str, theirs: &str, shape: &[usize]) {
        let tensor = self.take(theirs, shape);
        self.put(to, tensor);
    }

    /// Splits the rows of the fused layer `theirs` evenly, in order, among the canonical layers `to`, each of `weight` shape.
    pub(super) fn split(&mut self, to: &[String], theirs: &str, weight: &[usize]) {
        for (end, shape) in [("weight", weight), ("bias", &weight[..1])] {
            self.split_tensor(to, end, &format!("{theirs}.{end}"), shape);
        }
    }

    /// One of the tensors of [`Self::split`].
    pub(super) fn split_tensor(&mut self, to: &[String], end: &str, theirs: &str, shape: &[usize]) {
        let mut fused = shape.to_vec();
        fused[0] *= to.len();
        let fused = self.take(theirs, &fused);
        let each = shape.iter().product();
        for (name, values) in to.iter().zip(fused.data.chunks_exact(each)) {
            self.put(format!("{name}.{end}"), Tensor::new(shape, values.to_vec()));
        }
    }

    /// The canonical tensors, unless some are missing, misshapen, or left in the blocks.
    fn finish(
        self,
        arch: Result<Arch, Stop>,
        found: &Found,
        naming: Naming,
    ) -> Result<(Arch, Tensors), BackboneError> {
        let (path, family) = (|| self.path.into(), found.layout.family);
        let arch = match arch {
            Ok(arch) => arch,
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Missing(name)) => {
                // Its sizes are not known, but which kinds of tensor are not there at all is.
                let missing = if found.absent.is_empty() { vec![name] } else { found.absent.clone() };
                return Err(BackboneError::Missing { path: path(), family, naming, missing });
            }
        };
        if !self.missing.is_empty() {
            return Err(BackboneError::Missing { path: path(), family, naming, missing: self.missing });
        }
        if let Some(error) = self.misshapen {
            return Err(error);
        }
        match self.tensors.keys().find(|name| changes_the_network(name)) {
            Some(name) => Err(BackboneError::Unexpected {
                path: path(),
                family,
                name: format!("{}{name}", self.prefix),
            }),
            None => Ok((arch, self.out)),
        }
    }
}

/// Whether a tensor that no layout knows stands where it would have a say: in a block, or before or after the blocks.
fn changes_the_network(name: &str) -> bool {
    const BLOCKS: [&str; 5] = ["blocks.", "encoder.layer.", "layer.", "encoder.layers.", "stages."];
    const AROUND: [&str; 5] =
        ["norm_pre.", "pre_layrnorm.", "fc_norm.", "reg_token", "embeddings.register_tokens"];
    // Which of the three biases a DINOv3 does not use is known.
    let known = name.ends_with(".attn.qkv.bias_mask");
    !known && BLOCKS.iter().chain(&AROUND).any(|start| name.starts_with(start))
}

/// What a block calls the canonical part; every layout names all the parts that its family has.
pub(super) fn theirs(parts: &[Part], part: &str) -> Option<&'static str> {
    parts.iter().find(|(canonical, _)| *canonical == part).map(|(_, theirs)| *theirs)
}
