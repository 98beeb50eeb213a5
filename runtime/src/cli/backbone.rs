//! `scanside backbone`.

use std::path::{Path, PathBuf};

use clap::Args;
use runtime::backbone::{Arch, Backbone, Body, Davit, Mlp, Position, Tensor, Tensors, Vit};
use runtime::engine::run_graph;
use runtime::files::write_atomically;
use runtime::graph::backbone_graph;
use runtime::tensor::{read_safetensors, safetensors_bytes};

use super::{Fault, outputs, say};

/// Tell what a backbone file is; run it or write it under Hugging Face's names.
#[derive(Args)]
pub struct Inspect {
    /// The backbone: safetensors, the index of a sharded one or the folder with it, or the ONNX file of a published model.
    file: PathBuf,
    /// Use the first N blocks and the final norm.
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,
    /// Run the backbone on the tensor `input` `[S, 3, H, W]` of this file.
    #[arg(long, value_name = "IN.safetensors", requires = "out")]
    input: Option<PathBuf>,
    /// Where `cls` (or `pooled`) `[S, d]`, `patch` `[S, N, d]` and `cls_attention` `[S, N]`, or what stands for it, are written.
    #[arg(long, value_name = "OUT.safetensors", requires = "input")]
    out: Option<PathBuf>,
    /// Write the backbone as safetensors under Hugging Face's names.
    #[arg(long, value_name = "OUT.safetensors")]
    save: Option<PathBuf>,
    /// What the saved file calls itself.
    #[arg(long, requires = "save")]
    name: Option<String>,
}

impl Inspect {
    pub fn run(self) -> Result<(), Fault> {
        for (flag, path) in [("--out", &self.out), ("--save", &self.save)] {
            if let Some(path) = path {
                outputs::check(flag, path, &[".safetensors"])?;
            }
        }
        let mut backbone = Backbone::open(&self.file)?;
        let depth = backbone.arch.depth();
        if let Some(blocks) = self.blocks {
            backbone.truncate(blocks)?;
        }
        let table = describe(&backbone, depth);
        if let Some(path) = &self.save {
            let name = self.name.clone().unwrap_or_else(|| backbone.name());
            let bytes = backbone.to_hugging_face(&name).ok_or_else(|| Fault::File {
                path: self.file.clone(),
                problem: format!(
                    "is a {} in {} naming, which cannot be said in Hugging Face's; use it as it is",
                    backbone.arch.family, backbone.naming
                ),
            })?;
            write_atomically(path, &bytes).map_err(|source| Fault::write(path, source))?;
        }
        if let (Some(input), Some(out)) = (&self.input, &self.out) {
            evaluate(backbone, input, out)?;
        }
        say::table(&table)
    }
}

fn describe(backbone: &Backbone, depth: usize) -> Vec<(&'static str, String)> {
    let Arch { family, dim, patch, body, .. } = &backbone.arch;
    let used = backbone.arch.depth();
    let blocks = if used == depth { depth.to_string() } else { format!("the first {used} of {depth}") };
    let mut rows = vec![
        ("name", backbone.name()),
        ("family", family.to_string()),
        ("width", dim.to_string()),
        ("blocks", blocks),
    ];
    match body {
        Body::Vit(vit) => rows.extend(vision_transformer(vit, *patch)),
        Body::Davit(davit) => rows.extend(stages(davit)),
    }
    let parameters: usize = backbone.tensors.values().map(|t| t.data.len()).sum();
    rows.extend([
        ("heat map", backbone.arch.heatmap().into()),
        ("parameters", parameters.to_string()),
        ("naming", backbone.naming.to_string()),
        ("licence", backbone.licence().into()),
        ("SHA-256", backbone.sha256.clone()),
    ]);
    rows
}

fn vision_transformer(vit: &Vit, patch: usize) -> Vec<(&'static str, String)> {
    let mlp = match vit.mlp {
        Mlp::Gelu { hidden } => format!("GELU, {hidden} wide"),
        Mlp::GeluTanh { hidden } => format!("GELU (tanh), {hidden} wide"),
        Mlp::SwiGlu { hidden } => format!("SwiGLU, {hidden} wide"),
    };
    let grid = match vit.position {
        Position::Table { grid, .. } => {
            format!("{grid} x {grid} patches, {n} x {n} pixels", n = grid * patch)
        }
        Position::Rope { .. } => "any (rotary positions)".into(),
    };
    vec![
        ("heads", vit.heads.to_string()),
        ("patch", format!("{patch} x {patch} pixels")),
        ("grid", grid),
        ("registers", vit.registers.to_string()),
        ("MLP", mlp),
    ]
}

fn stages(davit: &Davit) -> Vec<(&'static str, String)> {
    let each = |of: &dyn Fn(&runtime::backbone::Stage) -> usize| {
        davit.stages.iter().map(|stage| of(stage).to_string()).collect::<Vec<_>>().join(", ")
    };
    vec![
        ("stages", format!("widths {}, pairs of blocks {}", each(&|s| s.dim), each(&|s| s.depth))),
        ("heads", each(&|s| s.heads)),
        ("groups", each(&|s| s.groups)),
        ("window", format!("{n} x {n} tokens", n = davit.window)),
    ]
}

fn evaluate(backbone: Backbone, input: &Path, out: &Path) -> Result<(), Fault> {
    let unusable = |problem: String| Fault::File { path: input.into(), problem };
    let mut tensors = read_safetensors(input)?.tensors;
    let Some(slices) = tensors.remove("input") else {
        return Err(unusable("has no tensor `input`, expected one of shape [S, 3, H, W]".into()));
    };
    let &[s, 3, height, width] = slices.shape.as_slice() else {
        return Err(unusable(format!(
            "has a tensor `input` of shape {:?}, expected [S, 3, H, W]",
            slices.shape
        )));
    };
    if s == 0 {
        return Err(unusable("has a tensor `input` of no slices, expected at least one".into()));
    }
    let outputs: Tensors = run_graph(backbone_graph(backbone, [height, width])?, &slices)?;
    write_atomically(out, &safetensors_bytes(&outputs, None)).map_err(|source| Fault::write(out, source))?;
    for (name, Tensor { shape, .. }) in &outputs {
        say::message(&format!("{name} {shape:?}"));
    }
    Ok(())
}
