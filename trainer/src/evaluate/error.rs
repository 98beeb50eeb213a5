/// Why predictions cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The file cannot be read.
    #[error("cannot read the predictions {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not CSV.
    #[error("{path} is not a sound CSV table: {source}")]
    Csv {
        /// The file.
        path: String,
        /// Why.
        source: csv::Error,
    },
    /// A column is missing.
    #[error("{path} has no column \"{column}\", which predictions need; it has: {found}")]
    Column {
        /// The file.
        path: String,
        /// The column.
        column: String,
        /// The columns that are there.
        found: String,
    },
    /// A cell is not what its column holds.
    #[error("line {line} of {path} has {found:?} in column \"{column}\", where {expected} is expected")]
    Cell {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A case stands in a split twice.
    #[error("line {line} of {path} has the id {id:?} a second time; each case may stand there once")]
    Duplicate {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The id.
        id: String,
    },
    /// Nothing to evaluate.
    #[error("{path} has no case of the split {split:?}; it has: {found}")]
    Split {
        /// The file.
        path: String,
        /// The split that was asked for.
        split: String,
        /// The splits that are there.
        found: String,
    },
    /// A case that the data table does not have.
    #[error("the id {id:?} of {path} is not in the data table; --data must be the table that was predicted")]
    Foreign {
        /// The predictions.
        path: String,
        /// The id.
        id: String,
    },
    /// A column that does not group.
    #[error(
        "column \"{column}\" has {found} values among the cases, expected at most {most}; put ranges of it into a column of their own"
    )]
    Groups {
        /// The column.
        column: String,
        /// Its distinct values.
        found: usize,
        /// What is let through.
        most: usize,
    },
    /// Labels that contradict each other.
    #[error("the labels of the id {id:?} of {path} are not those of one class, expected {expected}")]
    Classes {
        /// The predictions.
        path: String,
        /// The id.
        id: String,
        /// What should be.
        expected: &'static str,
    },
    /// No case has a class that is known.
    #[error("{path} has no case of the split {split:?} of which all labels are known")]
    Unknown {
        /// The predictions.
        path: String,
        /// The split.
        split: String,
    },
    /// Predictions that cannot be compared.
    #[error("{path} and {other} have different {what}; predict the same cases with both models")]
    Other {
        /// The predictions.
        path: String,
        /// The other predictions.
        other: String,
        /// Where they differ.
        what: String,
    },
    /// No label has both classes.
    #[error(
        "no label of {path} has both a positive and a negative case in the split {split:?} ({found}), \
         so there is nothing to tell apart; evaluate a split that has both"
    )]
    OneClass {
        /// The file.
        path: String,
        /// The split.
        split: String,
        /// Positives and negatives of each label.
        found: String,
    },
}

impl EvaluateError {
    /// Whether the user's file or flag is wrong (exit code 2), rather than the machine (1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Csv { source, .. } => !source.is_io_error(),
            _ => true,
        }
    }
}
