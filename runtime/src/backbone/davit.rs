//! Canonical tensors of a DaViT.

use super::config::Config;
use super::detect::Found;
use super::load::{Stop, Taker, theirs};
use super::{Arch, BackboneError, Body, Davit, Stage};

/// Channels of a head, and of a group, in every published model.
const HEAD: usize = 32;
/// Side of a window in every published model.
const WINDOW: usize = 12;
/// Side of a depthwise convolution.
const DEPTHWISE: usize = 3;

/// Moves the tensors and tells the sizes.
pub(super) fn load(taker: &mut Taker<'_>, found: &Found, config: &Config) -> Result<Arch, Stop> {
    let names = Names { found };
    let count = names.stages(taker);
    let mut stages = Vec::new();
    for s in 0..count {
        stages.push(names.stage(taker, s, stages.last())?);
    }
    let Some(last) = stages.last() else { return Err(Stop::Missing(names.embed(0, "") + ".weight")) };
    let dim = last.dim;
    let per_stage = |keys: [&str; 2]| -> Result<Option<Vec<usize>>, Stop> {
        let found = keys.iter().find_map(|key| config.per_stage(key, count).transpose());
        Ok(found.transpose()?)
    };
    let heads = per_stage(["num_heads", "heads"])?;
    let groups = per_stage(["num_groups", "groups"])?;
    for (s, stage) in stages.iter_mut().enumerate() {
        stage.heads = heads.as_ref().map_or(stage.dim / HEAD, |heads| heads[s]);
        stage.groups = groups.as_ref().map_or(stage.heads, |groups| groups[s]);
        if [stage.heads, stage.groups].iter().any(|&n| n == 0 || !stage.dim.is_multiple_of(n)) {
            return Err(BackboneError::Heads { path: taker.path().into(), dim: stage.dim }.into());
        }
    }
    let window = config.per_stage("window_size", 1)?.map_or(WINDOW, |size| size[0]);
    let norm = theirs(found.layout.optional, "norm").filter(|name| taker.has(&format!("{name}.weight")));
    if let Some(norm) = norm {
        taker.layer("norm", norm, &[dim]);
    }
    let mut block = 0;
    let mut channels = 3;
    for (s, stage) in stages.iter().enumerate() {
        let Stage { dim, kernel, .. } = *stage;
        taker.layer(&format!("embed.{s}"), &names.embed(s, ""), &[dim, channels, kernel, kernel]);
        // The first stage normalises what its convolution gives, the others what theirs is given.
        let normed = if s == 0 { dim } else { channels };
        taker.layer(&format!("embed.{s}.norm"), &names.embed(s, ".norm"), &[normed]);
        for b in 0..2 * stage.depth {
            names.block(taker, [s, b], block, stage);
            block += 1;
        }
        channels = dim;
    }
    let patch = stages.iter().map(|s| s.stride).product();
    let davit = Davit { stages, window, final_norm: norm.is_some() };
    let norm_eps = config.norm_eps().unwrap_or(1e-5);
    Ok(Arch { family: found.layout.family, dim, patch, norm_eps, body: Body::Davit(davit) })
}

/// What a file calls its tensors.
struct Names<'a> {
    found: &'a Found,
}

impl Names<'_> {
    /// The embedding of stage `s`; timm's first stage has names of its own.
    fn embed(&self, s: usize, end: &str) -> String {
        let root = |canonical: String| theirs(self.found.layout.root, &canonical);
        let own = root(format!("embed.{s}{end}"));
        own.or_else(|| root(format!("embed.N{end}"))).unwrap_or_default().replace('N', &s.to_string())
    }

    fn stages(&self, taker: &Taker<'_>) -> usize {
        taker.count(self.found.layout.blocks[0].at.split(".N").next().unwrap_or_default())
    }

    /// Sizes of stage `s`, whose heads and groups are not known yet.
    fn stage(&self, taker: &Taker<'_>, s: usize, before: Option<&Stage>) -> Result<Stage, Stop> {
        let name = self.embed(s, "") + ".weight";
        let [dim, channels, kernel, width] = taker.shape(&name)?;
        // A stage halves the grid, the first one quarters it. A kernel of two is another DaViT, whose channel attention
        // differs too.
        let (expected_kernel, stride) = if s == 0 { (7, 4) } else { (3, 2) };
        let expected = [dim, before.map_or(3, |b| b.dim), expected_kernel, expected_kernel];
        if [dim, channels, kernel, width] != expected {
            return Err(taker.misshapen(&name, &[dim, channels, kernel, width], &expected).into());
        }
        let at = self.found.layout.blocks[0].at;
        let blocks = at.replacen('N', &s.to_string(), 1);
        let depth = taker.count(blocks.split(".N").next().unwrap_or_default());
        let [hidden, _] = taker.shape(&(self.part([s, 0], "fc1") + ".weight"))?;
        Ok(Stage { dim, depth, heads: 0, groups: 0, kernel, stride, hidden })
    }

    /// A part of the window block (even `b`) or channel block (odd) of a stage.
    fn part(&self, [s, b]: [usize; 2], part: &str) -> String {
        let at = self.found.layout.blocks[b % 2].at;
        let at = at.replacen('N', &s.to_string(), 1).replacen('N', &(b / 2).to_string(), 1);
        format!("{at}.{}", theirs(&self.found.blocks[b % 2], part).unwrap_or_default())
    }

    fn block(&self, taker: &mut Taker<'_>, at: [usize; 2], number: usize, stage: &Stage) {
        let Stage { dim, hidden, .. } = *stage;
        let to = |part: &str| format!("blocks.{number}.{part}");
        for (part, shape) in [
            ("conv1", vec![dim, 1, DEPTHWISE, DEPTHWISE]),
            ("norm1", vec![dim]),
            ("o", vec![dim, dim]),
            ("conv2", vec![dim, 1, DEPTHWISE, DEPTHWISE]),
            ("norm2", vec![dim]),
            ("fc1", vec![hidden, dim]),
            ("fc2", vec![dim, hidden]),
        ] {
            taker.layer(&to(part), &self.part(at, part), &shape);
        }
        taker.split(&["q", "k", "v"].map(to), &self.part(at, "qkv"), &[dim, dim]);
    }
}
