//! Heat maps against masks, from the columns that `predict` adds where the table has masks.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Case, EvaluateError};
use crate::metrics::{REPLICATES, bootstrap_mean, wilson};

/// One case's heat map against its mask, as [`crate::localise`] defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heat {
    /// `heat:hit`: whether the peak lies in the mask.
    pub hit: bool,
    /// `heat:share`: the mask's share of the volume.
    pub share: f64,
    /// `heat:dice`: Dice at the level that was chosen on the val cases; `None` where these have no masks.
    pub dice: Option<f64>,
    /// `heat:level`: that level, as a share of the peak.
    pub level: Option<f64>,
    /// `heat:best-dice`: Dice at the level that suits this case best.
    pub best_dice: f64,
}

/// Names of the columns, in their order.
pub(crate) const COLUMNS: [&str; 5] = ["heat:hit", "heat:share", "heat:dice", "heat:level", "heat:best-dice"];

impl Heat {
    /// From the cells of [`COLUMNS`]; `None` where the first is empty. The column that holds something else is the error.
    pub(super) fn parse(cells: [&str; 5]) -> Result<Option<Self>, (usize, &'static str)> {
        let number = |k: usize| {
            let value = cells[k].parse::<f64>().ok().filter(|x| (0.0..=1.0).contains(x));
            value.ok_or((k, "a number from 0 to 1"))
        };
        let optional = |k: usize| if cells[k].is_empty() { Ok(None) } else { number(k).map(Some) };
        let hit = match cells[0] {
            "" => return Ok(None),
            "0" => false,
            "1" => true,
            _ => return Err((0, "0, 1 or nothing")),
        };
        let (share, best_dice) = (number(1)?, number(4)?);
        Ok(Some(Self { hit, share, dice: optional(2)?, level: optional(3)?, best_dice }))
    }

    /// As [`COLUMNS`] have it.
    pub(crate) fn cells(&self) -> [String; 5] {
        let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        let hit = u8::from(self.hit).to_string();
        [hit, self.share.to_string(), number(self.dice), number(self.level), self.best_dice.to_string()]
    }
}

/// How well the heat maps of a split's cases with a mask show where the finding is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Localisation {
    /// Cases with a mask that is not empty.
    pub cases: usize,
    /// Pointing game: the share of cases whose peak lies in the mask.
    pub hits: f64,
    /// Its 95 % score interval.
    pub hits_ci: [f64; 2],
    /// The share that random voxels would reach.
    pub chance: f64,
    /// Mean Dice at one level for all cases, chosen on the val cases; absent where these have no masks, or are those evaluated.
    pub dice: Option<MeanDice>,
    /// Mean Dice where each case has the level that suits it best: what no choice of level can surpass.
    pub best_dice: f64,
    /// Its 95 % bootstrap interval.
    pub best_dice_ci: [f64; 2],
}

/// Mean Dice at one level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanDice {
    /// The mean.
    pub value: f64,
    /// Its 95 % bootstrap interval.
    pub ci: [f64; 2],
    /// The level, as a share of a heat map's peak.
    pub level: f64,
}

/// Of the cases of `split`; `None` where none has a mask.
pub(super) fn localisation(cases: &[Case], split: &str) -> Option<Localisation> {
    let found: Vec<Heat> = cases.iter().filter(|c| c.split == split).filter_map(|c| c.heat).collect();
    let hits = found.iter().filter(|heat| heat.hit).count();
    let n = found.len();
    let mean =
        |values: &[f64]| Some((values.iter().sum::<f64>() / n as f64, bootstrap_mean(values, REPLICATES)?));
    let (best_dice, best_dice_ci) = mean(&found.iter().map(|heat| heat.best_dice).collect::<Vec<_>>())?;
    let dice = || {
        let values: Vec<f64> = found.iter().map(|heat| heat.dice).collect::<Option<_>>()?;
        let (value, ci) = mean(&values)?;
        Some(MeanDice { value, ci, level: found[0].level? })
    };
    Some(Localisation {
        cases: n,
        hits: hits as f64 / n as f64,
        hits_ci: wilson(hits, n)?,
        chance: found.iter().map(|heat| heat.share).sum::<f64>() / n as f64,
        dice: if split == "val" { None } else { dice() },
        best_dice,
        best_dice_ci,
    })
}

impl fmt::Display for Localisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |x: f64, [low, high]: [f64; 2]| format!("{x:.3} ({low:.3}–{high:.3})");
        let hits = of(self.hits, self.hits_ci);
        writeln!(
            f,
            "heat maps against {} masks: peak inside {hits}, by chance {:.3}",
            self.cases, self.chance
        )?;
        if let Some(dice) = self.dice {
            let level = 100.0 * dice.level;
            writeln!(
                f,
                "Dice {} at {level:.1} % of the peak, chosen on the val cases",
                of(dice.value, dice.ci)
            )?;
        }
        writeln!(f, "Dice {} at each case's best level", of(self.best_dice, self.best_dice_ci))
    }
}

impl EvaluateError {
    /// A cell of [`COLUMNS`] that is wrong.
    pub(super) fn heat(path: &str, line: u64, (k, expected): (usize, &'static str), found: &str) -> Self {
        Self::Cell { path: path.into(), line, column: COLUMNS[k].into(), found: found.into(), expected }
    }
}

#[cfg(test)]
mod tests {
    use crate::evaluate::{EvaluateError, Evaluation, Predictions, evaluate};

    const HEADER: &str =
        "id,split,x,logit:x,prob:x,heat:hit,heat:share,heat:dice,heat:level,heat:best-dice\n";

    fn evaluated(rows: &str, split: &str) -> Result<Evaluation, EvaluateError> {
        evaluate(&Predictions::parse("p.csv", format!("{HEADER}{rows}").as_bytes())?, split)
    }

    #[test]
    fn figures_are_means_over_the_splits_cases_with_a_mask() {
        let rows = "a,test,1,2,0.9,1,0.02,0.5,0.25,0.6\nb,test,1,1,0.7,0,0.04,0.1,0.25,0.3\nc,test,0,-1,0.2,,,,,\n\
                    d,test,1,1,0.7,1,0.03,0.3,0.25,0.3\ne,val,1,1,0.7,1,0.5,0.9,0.25,0.9\nf,val,0,1,0.7,,,,,\n";
        let found = evaluated(rows, "test").unwrap();
        let heat = found.localisation.clone().unwrap();
        assert_eq!(heat.cases, 3);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(heat.hits, 2.0 / 3.0) && close(heat.chance, 0.03) && close(heat.best_dice, 0.4));
        let dice = heat.dice.unwrap();
        assert!(close(dice.value, 0.3) && close(dice.level, 0.25));
        assert!(dice.ci[0] >= 0.1 && dice.ci[0] < 0.3 && dice.ci[1] > 0.3 && dice.ci[1] <= 0.5);
        // Wilson's interval of 2 in 3.
        assert!((heat.hits_ci[0] - 0.207_66).abs() < 1e-5 && (heat.hits_ci[1] - 0.938_51).abs() < 1e-5);
        let text = found.to_string();
        assert!(text.contains("against 3 masks: peak inside 0.667 (0.208–0.939), by chance 0.030"), "{text}");
        assert!(text.contains("at 25.0 % of the peak, chosen on the val cases"), "{text}");
        // Nothing that was chosen on a split is told of it.
        assert_eq!(evaluated(rows, "val").unwrap().localisation.unwrap().dice, None);
        let bare = "id,split,x,logit:x,prob:x\na,test,1,2,0.9\nb,test,0,1,0.7\n";
        let bare = evaluate(&Predictions::parse("p.csv", bare.as_bytes()).unwrap(), "test").unwrap();
        assert!(bare.localisation.is_none() && !bare.to_string().contains("heat maps"));
    }

    #[test]
    fn wrong_cells_are_named() {
        for (cells, told) in [
            ("2,0.1,,,0.5", "\"2\" in column \"heat:hit\""),
            ("1,,,,0.5", "\"\" in column \"heat:share\""),
            ("1,0.1,no,,0.5", "\"no\" in column \"heat:dice\""),
            ("1,0.1,,,1.5", "\"1.5\" in column \"heat:best-dice\""),
        ] {
            let error = evaluated(&format!("a,test,1,2,0.9,{cells}\n"), "test").unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(told), "{error}");
        }
    }
}
