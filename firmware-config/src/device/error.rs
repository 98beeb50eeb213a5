use std::fmt;

/// Where a value of the configuration came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file, at this line, counted from 1.
    Line(usize),
    /// This environment variable.
    Environment(String),
    /// The default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Why a configuration cannot be used. The file's name is the caller's to tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is no TOML.
    #[error("line {line}: not TOML: {detail}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// The parser's word, on one line.
        detail: String,
    },
    /// A key that there is not.
    #[error("{origin}: there is no key `{key}`; the nearest is `{nearest}`")]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// Its dotted path.
        key: String,
        /// The key of the closest spelling.
        nearest: String,
    },
    /// A value of the wrong type, or out of its range.
    #[error("{origin}: `{key}` is {found}, expected {expected}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The key's dotted path.
        key: String,
        /// The value as written.
        found: String,
        /// What would be valid.
        expected: String,
    },
    /// A key without a default is not there.
    #[error("`{key}` is missing; give it, for example {example}")]
    Missing {
        /// The key's dotted path.
        key: String,
        /// A line of TOML.
        example: String,
    },
    /// Keys that do not go together.
    #[error("{origin}: `{key}` {problem}")]
    Conflict {
        /// Where the key stands.
        origin: Origin,
        /// The key's dotted path.
        key: String,
        /// What is wrong and what to do, as the rest of a sentence.
        problem: String,
    },
    /// A `[[task]]` table that its own rules forbid.
    #[error("line {line}: {detail}")]
    Task {
        /// Counted from 1.
        line: usize,
        /// What is wrong, on one line.
        detail: String,
    },
}
