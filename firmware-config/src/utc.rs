//! An instant as it stands in signed files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// An instant in UTC to the second, `2026-11-26T18:44:04Z` (RFC 3339). In this form the order of the texts is the order of the
/// instants, so that nobody needs a calendar to compare them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Utc(String);

impl Utc {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Utc {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let sound = text.len() == 20
            && text.bytes().zip("dddd-dd-ddTdd:dd:ddZ".bytes()).all(|(found, form)| match form {
                b'd' => found.is_ascii_digit(),
                other => found == other,
            });
        let number = |at: usize| text[at..at + 2].parse::<u8>().unwrap_or(u8::MAX);
        let possible = || {
            (1..=12).contains(&number(5))
                && (1..=31).contains(&number(8))
                && number(11) < 24
                && number(14) < 60
                && number(17) <= 60
        };
        if sound && possible() {
            return Ok(Self(text.into()));
        }
        Err(Invalid::new("time", text, "an instant in UTC such as 2026-11-26T18:44:04Z"))
    }
}

impl TryFrom<String> for Utc {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Utc> for String {
    fn from(at: Utc) -> Self {
        at.0
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_form_are_in_the_order_of_the_instants() {
        let utc = |text: &str| text.parse::<Utc>().unwrap();
        assert!(utc("2026-11-26T18:44:04Z") < utc("2027-01-01T00:00:00Z"));
        for bad in [
            "",
            "2026-11-26",
            "2026-11-26T18:44:04",
            "2026-13-26T18:44:04Z",
            "2026-11-26 18:44:04Z",
            "2026-11-26T24:00:00Z",
            "２026-11-26T18:44:0Z",
        ] {
            assert!(bad.parse::<Utc>().is_err(), "{bad}");
        }
    }
}
