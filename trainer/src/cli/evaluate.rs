use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::Error;
use trainer::data::column;
use trainer::evaluate::{Kind, Predictions, classes, evaluate, subgroups, versus};

use super::print;

/// AUROC with confidence intervals, average precision, calibration, operating points and VLM3D's metrics of predictions.
#[derive(Args)]
pub(super) struct Evaluate {
    /// Table written by `predict`
    #[arg(long, value_name = "CSV")]
    predictions: PathBuf,
    /// Rows to evaluate; thresholds come from those with split val
    #[arg(long, default_value = "test")]
    split: String,
    /// Also part the cases by this column of --data, such as scanner or sex; repeatable
    #[arg(long, value_name = "COLUMN", requires = "data")]
    by: Vec<String>,
    /// Data table with the columns of --by
    #[arg(long, value_name = "CSV")]
    data: Option<PathBuf>,
    /// Also call one class a case: exclusive labels, or ordered ones, which are rising grades
    #[arg(long, value_name = "KIND")]
    classes: Option<Kind>,
    /// Also compare with another model's predictions of the same cases, by DeLong's paired test
    #[arg(long, value_name = "CSV")]
    versus: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Evaluates, and prints what was asked for.
pub(super) fn run(args: &Evaluate) -> Result<()> {
    let predictions = Predictions::read(&args.predictions)?;
    let found = evaluate(&predictions, &args.split)?;
    let mut groups = Vec::new();
    for (by, data) in args.by.iter().flat_map(|by| args.data.iter().map(move |data| (by, data))) {
        let values = column(data, by)?.ok_or_else(|| Error::Table {
            path: data.clone(),
            problem: format!("it has no column `{by}`, which --by names"),
        })?;
        groups.push(subgroups(&predictions, &args.split, by, &values)?);
    }
    let calls = args.classes.map(|kind| classes(&predictions, &args.split, kind)).transpose()?;
    let against = match &args.versus {
        Some(other) => Some(versus(&predictions, &Predictions::read(other)?, &args.split)?),
        None => None,
    };
    if args.json {
        let mut json = serde_json::to_value(&found)?;
        json["subgroups"] = serde_json::to_value(&groups)?;
        json["classes"] = serde_json::to_value(&calls)?;
        json["versus"] = serde_json::to_value(&against)?;
        return print(&(serde_json::to_string_pretty(&json)? + "\n"));
    }
    let mut text = groups.iter().fold(format!("{found}\n"), |text, group| text + &group.to_string());
    text += &calls.map_or(String::new(), |calls| calls.to_string());
    text += &against.map_or(String::new(), |against| against.to_string());
    print(&text)
}
