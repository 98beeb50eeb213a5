use std::fmt::Write;

use firmware_config::{Activation, Manifest};

use super::{Parity, predictions};
use crate::Error;
use crate::evaluate::{Evaluation, evaluate};
use crate::fit::Summary;
use crate::run::{Run, file};
use crate::task::Augment;

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
        intended(&mut card, manifest),
        data(&mut card, run, summary.as_ref(), manifest),
        training(&mut card, run, summary.as_ref()),
        figures(&mut card, &evaluations, parity),
        decision(&mut card, manifest, &evaluations),
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

fn intended(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    writeln!(card, "## Intended use\n")?;
    writeln!(
        card,
        "- Research on volumes of the kind that \"Input\" describes, by people who can judge its output against the images."
    )?;
    let several = manifest.labels.len() > 1;
    let what = match (manifest.activation, several) {
        (Activation::Softmax, _) => "which one of its labels holds for a whole volume",
        (Activation::Sigmoid, true) => "how likely each of its labels is for a whole volume",
        (Activation::Sigmoid, false) => "how likely its label is for a whole volume",
    };
    writeln!(card, "- It says {what}. It does not find, outline or measure anything.")?;
    writeln!(card, "- Out of scope: diagnosis, triage, treatment, and any use on a patient's behalf.\n")
}

/// How it was fitted, so that it can be fitted again.
fn training(card: &mut String, run: &Run, summary: Option<&Summary>) -> std::fmt::Result {
    let settings = run.settings();
    let (task, train) = (&settings.task, &settings.task.train);
    writeln!(card, "## Training\n")?;
    writeln!(
        card,
        "- Loss: {}; AdamW, learning rates {} (factors) and {} (query and head)",
        toml(&task.loss),
        train.lr_lora,
        train.lr_head
    )?;
    let best = summary.map_or(run.best.state.best, |s| s.best_epoch);
    writeln!(card, "- At most {} epochs, batches of {}; kept: epoch {best}", train.epochs, train.batch)?;
    writeln!(card, "- Augmentation: {}", changed(&train.augment, &Augment::default()))?;
    writeln!(
        card,
        "- Seed {}; {} threads on {}, {}",
        train.seed, settings.threads, settings.device, settings.build
    )?;
    writeln!(card, "- Precision of matrix products: {}", toml(&settings.precision))?;
    if let Some(sha256) = &settings.data.split_sha256 {
        writeln!(card, "- One fit of a cross-validation; the split's SHA-256 is `{sha256}`")?;
    }
    if let Some(sha256) = &settings.init_from_sha256 {
        writeln!(card, "- Started from a PEFT adapter of SHA-256 `{sha256}`")?;
    }
    writeln!(card)
}

/// A value as inline TOML, which is how a task file says it.
fn toml(value: &impl serde::Serialize) -> String {
    let text = ::toml::Value::try_from(value).map(|value| value.to_string());
    text.map_or_else(|_| String::new(), |text| format!("`{text}`"))
}

/// What of `value` differs from `default`.
fn changed(value: &impl serde::Serialize, default: &impl serde::Serialize) -> String {
    let [Ok(::toml::Value::Table(mut value)), Ok(::toml::Value::Table(default))] =
        [::toml::Value::try_from(value), ::toml::Value::try_from(default)]
    else {
        return String::new();
    };
    value.retain(|key, value| default.get(key) != Some(value));
    if value.is_empty() { "none".into() } else { format!("`{}`", ::toml::Value::Table(value)) }
}

fn data(card: &mut String, run: &Run, summary: Option<&Summary>, manifest: &Manifest) -> std::fmt::Result {
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
    writeln!(card, "\nThe table's SHA-256 is `{}`. {checkpoint}\n", data.sha256)?;
    if let Some(cases) = manifest.patient_golden() {
        writeln!(
            card,
            "**The plugin holds patients' scans**, its golden cases {cases}: whoever has it has them.\n"
        )?;
    }
    Ok(())
}

fn figures(card: &mut String, evaluations: &[Evaluation], parity: &Parity) -> std::fmt::Result {
    writeln!(card, "## Figures\n")?;
    if evaluations.is_empty() {
        writeln!(
            card,
            "None: there were no validation or test volumes of both classes, or the fit had not finished.\n"
        )?;
    } else {
        writeln!(
            card,
            "| split | label | positive / negative | AUROC (95 % CI) | average precision (95 % CI) | Brier | ECE |\n\
             | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for (evaluation, label) in evaluations.iter().flat_map(|e| e.labels.iter().map(move |l| (e, l))) {
            let Some(auroc) = &label.auroc else { continue };
            let area = share(auroc.value, Some(auroc.ci));
            let precision =
                label.average_precision.map_or("–".into(), |x| share(x, label.average_precision_ci));
            let [brier, error] =
                [label.brier, label.calibration_error].map(|x| x.map_or("–".into(), |x| share(x, None)));
            writeln!(
                card,
                "| {} | {} | {} / {} | {area} | {precision} | {brier} | {error} |",
                evaluation.split, label.label, label.positives, label.negatives
            )?;
        }
        writeln!(
            card,
            "\nValidation volumes chose the checkpoint, the temperature and the thresholds, so that their figures are too good. \
             AUROC: DeLong's interval; average precision: bootstrap; ECE: ten bins."
        )?;
    }
    writeln!(
        card,
        "\nThe exported graph differs from libtorch by at most {:.1e} in a logit, over {} volumes.\n",
        parity.logits, parity.volumes
    )
}

/// Temperature and thresholds, and what these make of the test volumes.
fn decision(card: &mut String, manifest: &Manifest, evaluations: &[Evaluation]) -> std::fmt::Result {
    writeln!(card, "## Probabilities and thresholds\n")?;
    writeln!(
        card,
        "- Logits are divided by a temperature of {}, fitted on the validation volumes (1 where none could be).",
        manifest.temperature
    )?;
    let test = evaluations.iter().find(|evaluation| evaluation.split == "test");
    for (index, label) in manifest.labels.iter().enumerate() {
        let Some(t) = &label.threshold else {
            writeln!(card, "- {}: no threshold was chosen", label.name)?;
            continue;
        };
        write!(card, "- {}: positive from a probability of {:.4} ({})", label.name, t.probability, t.rule)?;
        let points = test.and_then(|test| test.labels.get(index)).map(|label| label.operating_points.iter());
        if let Some(point) = points.and_then(|mut points| points.find(|point| point.rule == t.rule)) {
            let sensitivity = share(point.sensitivity, Some(point.sensitivity_ci));
            let specificity = share(point.specificity, Some(point.specificity_ci));
            write!(card, "; sensitivity {sensitivity} and specificity {specificity} on the test volumes")?;
        }
        writeln!(card)?;
    }
    writeln!(card)
}

fn share(x: f64, ci: Option<[f64; 2]>) -> String {
    ci.map_or_else(|| format!("{x:.3}"), |[low, high]| format!("{x:.3} ({low:.3} to {high:.3})"))
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
    writeln!(
        card,
        "- Probabilities hold for the share of positives that the validation volumes had; where a finding is rarer they are too high."
    )
}
