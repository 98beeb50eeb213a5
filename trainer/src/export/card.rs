use std::fmt::Write;

use firmware_config::Manifest;

use super::{Parity, predictions};
use crate::Error;
use crate::evaluate::{Evaluation, evaluate};
use crate::fit::Summary;
use crate::run::{Run, file};

/// The model card.
pub(super) fn markdown(run: &Run, manifest: &Manifest, parity: &Parity) -> Result<String, Error> {
    let predictions = predictions(run)?;
    let evaluations: Vec<Evaluation> =
        ["test", "val"].into_iter().filter_map(|split| evaluate(predictions.as_ref()?, split).ok()).collect();
    let path = run.folder.join(file::SUMMARY);
    let summary: Option<Summary> =
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());

    let mut card = String::new();
    let parts = [
        model(&mut card, manifest),
        data(&mut card, run, summary.as_ref()),
        figures(&mut card, manifest, &evaluations, parity),
        input(&mut card, manifest),
        limits(&mut card, manifest),
    ];
    debug_assert!(parts.iter().all(Result::is_ok), "writing to a string cannot fail");
    Ok(card)
}

fn model(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    let labels: Vec<&str> = manifest.labels.iter().map(|l| l.name.as_str()).collect();
    let blocks = manifest.backbone.blocks.map_or(String::new(), |n| format!(", first {n} blocks"));
    writeln!(card, "# {} {}\n", manifest.task.name, manifest.task.version)?;
    writeln!(card, "**For research only.** Not a medical device; no diagnosis may rest on its output.\n")?;
    writeln!(card, "Classifies a volume: {}.\n\n## Model\n", labels.join(", "))?;
    let backbone = &manifest.backbone;
    writeln!(card, "- Backbone: {}{blocks}, frozen; SHA-256 `{}`", backbone.name, backbone.sha256)?;
    writeln!(card, "- Backbone licence: {}", backbone.licence)?;
    writeln!(
        card,
        "- LoRA of rank {} and alpha {} on the patch embedding and the attention projections, attention pooling over \
         slices, linear head: {} trainable parameters",
        manifest.lora.rank, manifest.lora.alpha, manifest.parameters
    )?;
    writeln!(card, "- Method: arXiv 2512.12887\n")
}

fn data(card: &mut String, run: &Run, summary: Option<&Summary>) -> std::fmt::Result {
    let data = &run.settings().data;
    writeln!(card, "## Data\n\n| volumes | train | validation | test |\n| --- | --- | --- | --- |")?;
    writeln!(card, "| all | {} | {} | {} |", data.train, data.val, data.test)?;
    for (label, figures) in summary.iter().flat_map(|s| &s.labels) {
        let count = |split: &str| {
            let counts = figures.counts.get(split);
            counts.map_or("–".into(), |[p, n]| format!("{p} positive, {n} negative"))
        };
        writeln!(card, "| {label} | {} | {} | {} |", count("train"), count("val"), count("test"))?;
    }
    let checkpoint = "The checkpoint was chosen by validation AUROC.";
    writeln!(card, "\nThe table's SHA-256 is `{}`. {checkpoint}\n", data.sha256)
}

fn figures(
    card: &mut String,
    manifest: &Manifest,
    evaluations: &[Evaluation],
    parity: &Parity,
) -> std::fmt::Result {
    writeln!(card, "## Figures\n")?;
    if evaluations.is_empty() {
        writeln!(
            card,
            "None: there were no validation or test volumes of both classes, or the fit had not finished.\n"
        )?;
    } else {
        writeln!(card, "| split | label | AUROC (95 % CI) | average precision |\n| --- | --- | --- | --- |")?;
        for (evaluation, label) in evaluations.iter().flat_map(|e| e.labels.iter().map(move |l| (e, l))) {
            let Some(auroc) = &label.auroc else { continue };
            let (split, [low, high]) = (&evaluation.split, auroc.ci);
            let area = format!("{:.3} ({low:.3} to {high:.3})", auroc.value);
            let precision = label.average_precision.map_or("–".into(), |x| format!("{x:.3}"));
            writeln!(card, "| {split} | {} | {area} | {precision} |", label.label)?;
        }
        writeln!(card)?;
    }
    for label in &manifest.labels {
        match &label.threshold {
            Some(t) => {
                let (name, probability, rule) = (&label.name, t.probability, &t.rule);
                writeln!(card, "- {name}: positive from a probability of {probability:.4} ({rule})")?;
            }
            None => writeln!(card, "- {}: no threshold was chosen", label.name)?,
        }
    }
    writeln!(
        card,
        "\nThe exported graph differs from libtorch by at most {:.1e} in a logit, over {} volumes.\n",
        parity.logits, parity.volumes
    )
}

fn input(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    let recipe = serde_json::to_string_pretty(&manifest.recipe).unwrap_or_default();
    writeln!(card, "## Input\n\n```json\n{recipe}\n```\n")?;
    match &manifest.accepts {
        Some(accepts) => {
            let accepts = serde_json::to_string_pretty(accepts).unwrap_or_default();
            writeln!(card, "Accepts:\n\n```json\n{accepts}\n```\n")
        }
        None => writeln!(card, "It is not said what it accepts, so the service does not run it.\n"),
    }
}

fn limits(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    writeln!(card, "## Limits\n")?;
    writeln!(
        card,
        "- Known to work on data like the above only; on other scanners, protocols and populations it may fail silently."
    )?;
    let heat = match manifest.heatmap.as_str() {
        "pooled-similarity" => "each token's share in the slice's embedding",
        _ => "attention",
    };
    writeln!(card, "- The heat map is {heat}: it shows where the network looked, not why it decided.")?;
    writeln!(card, "- Probabilities are not calibrated beyond a temperature of {}.", manifest.temperature)
}
