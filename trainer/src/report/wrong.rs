use std::path::Path;

use runtime::recipe::Prepared;
use runtime::report::picture::{self, Picture};

use crate::Error;
use crate::data::{Study, Table, single, unusable};
use crate::evaluate::{Case, Predictions};
use crate::html;
use crate::model::Network;
use crate::task::Task;

/// A probability of 0 costs as much as this one.
const LEAST: f64 = 1e-12;

/// The `most` test cases of the greatest loss, the worst first; of equal ones the earlier.
///
/// A case's loss is the mean of `-log` of the probability given to the truth of each label that is known.
pub(super) fn worst(predictions: &Predictions, most: usize) -> Vec<(&Case, f64)> {
    let loss = |case: &Case| -> Option<f64> {
        let known = case.truth.iter().zip(&case.probabilities);
        let terms: Vec<f64> = known
            .filter_map(|(truth, &p)| truth.map(|truth| -if truth { p } else { 1.0 - p }.max(LEAST).ln()))
            .collect();
        (!terms.is_empty()).then(|| terms.iter().sum::<f64>() / terms.len() as f64)
    };
    let test = predictions.cases.iter().filter(|case| case.split == "test");
    let mut cases: Vec<(&Case, f64)> = test.filter_map(|case| Some((case, loss(case)?))).collect();
    cases.sort_by(|a, b| b.1.total_cmp(&a.1));
    cases.truncate(most);
    cases
}

/// A case for the page, without picture.
pub(super) fn entry(case: &Case, loss: f64, labels: &[String]) -> html::Wrong {
    let known = labels.iter().zip(&case.truth).zip(&case.probabilities);
    html::Wrong {
        id: case.id.clone(),
        loss,
        labels: known.filter_map(|((label, truth), &p)| Some((label.clone(), (*truth)?, p))).collect(),
        png: None,
    }
}

/// The key slices of a case's scan with the heat map over them, as PNG: what the network weighs, by the same attention that the
/// exported graph gives out.
pub(super) fn draw(network: &Network, task: &Task, table: &Table, case: &Case) -> Result<Vec<u8>, Error> {
    let sample = table.samples.iter().find(|sample| sample.id == case.id).ok_or_else(|| Error::Table {
        path: table.path.clone(),
        problem: format!("it has no row with the id `{}`, which the run's predictions have", case.id),
    })?;
    let seen = network.predict(&Study::load(table, sample, task)?, task.train.chunk)?;
    // Of several views the one that counted most.
    let weights = &seen.view_weights;
    let view = (0..weights.len()).max_by(|&a, &b| weights[a].total_cmp(&weights[b])).unwrap_or(0);
    let (_, recipe) = task.inputs()[view];
    let image = sample.images[view].as_deref().unwrap_or(sample.image());
    let volume = single(table, sample, image, "image")?;
    let prepared = Prepared::new(&volume, recipe).map_err(|e| unusable(table, sample, e.into()))?;
    let labels: Vec<(&str, f64)> =
        task.labels.iter().map(String::as_str).zip(case.probabilities.iter().copied()).collect();
    let grid = network.encoder.arch().grid(recipe.size).unwrap_or([1, 1]);
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let path: &Path = &folder.path().join("picture.png");
    let picture = Picture {
        task: &task.name,
        version: &task.version,
        labels: &labels,
        prepared: &prepared,
        slice_weights: &seen.views[view].slice_weights,
        heatmap: &seen.views[view].heatmap,
        grid,
    };
    picture::write(path, &picture).map_err(runtime::Error::from)?;
    std::fs::read(path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_loss_comes_first() {
        let csv = "id,split,x,y,logit:x,prob:x,logit:y,prob:y\n\
            a,test,1,0,0,0.9,0,0.1\nb,test,1,,0,0.2,0,0.9\nc,val,1,1,0,0.0,0,0.0\nd,test,0,1,0,0.5,0,0.0\ne,test,,,0,0,0,0\n";
        let predictions = Predictions::parse("p.csv", csv.as_bytes()).unwrap();
        let worst = worst(&predictions, 3);
        assert_eq!(worst.iter().map(|(case, _)| case.id.as_str()).collect::<Vec<_>>(), ["d", "b", "a"]);
        let losses = [(-(0.5f64.ln()) - LEAST.ln()) / 2.0, -(0.2f64.ln()), -(0.9f64.ln())];
        assert!(worst.iter().zip(losses).all(|((_, found), expected)| (found - expected).abs() < 1e-12));
        let entry = entry(worst[1].0, worst[1].1, &predictions.labels);
        assert_eq!(entry.labels, [("x".to_owned(), true, 0.2)]);
    }
}
