//! Ranks of methods over tasks (Demšar, JMLR 2006).

/// Mean rank of each method over the tasks on which every method has a figure, 1 being the best, ties sharing their ranks; and the
/// number of these tasks. `figures[task][method]`, higher is better.
pub fn mean_ranks(figures: &[Vec<Option<f64>>]) -> (Vec<f64>, usize) {
    let whole: Vec<Vec<f64>> =
        figures.iter().filter_map(|row| row.iter().copied().collect::<Option<Vec<f64>>>()).collect();
    let methods = figures.first().map_or(0, Vec::len);
    let rank = |row: &[f64], method: usize| {
        let above = row.iter().filter(|&&x| x > row[method]).count() as f64;
        let tied = row.iter().filter(|&&x| x.total_cmp(&row[method]).is_eq()).count() as f64;
        above + 0.5 * (tied + 1.0)
    };
    let mean = |method| whole.iter().map(|row| rank(row, method)).sum::<f64>() / whole.len().max(1) as f64;
    ((0..methods).map(mean).collect(), whole.len())
}

/// Two-sided Nemenyi quantiles at 5 %: the studentised range over √2, for 2 to 20 methods.
const NEMENYI: [f64; 19] = [
    1.960, 2.344, 2.569, 2.728, 2.850, 2.948, 3.031, 3.102, 3.164, 3.219, 3.268, 3.313, 3.354, 3.391, 3.426,
    3.458, 3.489, 3.517, 3.544,
];

/// By how much mean ranks must differ to differ at 5 % (Nemenyi); `None` with fewer than two methods or tasks, or more than 20
/// methods.
pub fn critical_difference(methods: usize, tasks: usize) -> Option<f64> {
    let quantile = NEMENYI.get(methods.checked_sub(2)?)?;
    let k = methods as f64;
    (tasks > 1).then(|| quantile * (k * (k + 1.0) / (6.0 * tasks as f64)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_shared_by_ties_and_taken_over_whole_tasks() {
        let figures = [
            vec![Some(0.9), Some(0.8), Some(0.8)],
            vec![Some(0.5), Some(0.7), Some(0.6)],
            vec![None, Some(1.0), Some(0.0)],
        ];
        assert_eq!(mean_ranks(&figures), (vec![2.0, 1.75, 2.25], 2));
        assert_eq!(mean_ranks(&[]), (vec![], 0));
    }

    #[test]
    fn the_critical_difference_is_demsars() {
        // His example: four classifiers on 14 data sets, 2.569 √(4·5 / (6·14)) = 1.25.
        assert!((critical_difference(4, 14).unwrap() - 1.25).abs() < 0.005);
        assert_eq!(
            (critical_difference(1, 14), critical_difference(4, 1), critical_difference(21, 9)),
            (None, None, None)
        );
    }
}
