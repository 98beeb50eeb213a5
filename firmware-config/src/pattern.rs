//! Text patterns that a device's operator can write without a second look: no regular expressions, so no pattern can
//! take long.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Longest pattern, in characters: DICOM's descriptions have 64 (PS3.5, 6.2, VR LO).
const MAX_LENGTH: usize = 128;

/// Matches text without regard to case. With `*` (any characters, also none) or `?` (one character) the pattern
/// describes the whole text; without them it may stand anywhere in it.
///
/// ```
/// let pattern = |text| firmware_config::Pattern::new(text).unwrap();
/// assert!(pattern("head").matches("CT HEAD 5.0 H31s"));
/// assert!(pattern("ct*5.0*").matches("CT HEAD 5.0 H31s"));
/// assert!(!pattern("head*").matches("CT HEAD 5.0 H31s"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// A pattern from its text.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let length = text.chars().count();
        if text.trim().is_empty() || length > MAX_LENGTH {
            let found =
                if length > MAX_LENGTH { format!("{length} characters long") } else { "empty".into() };
            return Err(Invalid::new("pattern", found, format!("1 to {MAX_LENGTH} characters")));
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` fits. At most the product of the two lengths in steps.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.to_lowercase(), text.to_lowercase());
        if !pattern.contains(['*', '?']) {
            return text.contains(&pattern);
        }
        let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
        let (mut p, mut t) = (0, 0);
        // Behind the last star: its place in the pattern, and how far it reaches in the text so far.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p + 1, t));
                    p += 1;
                }
                Some(&c) if c == '?' || c == text[t] => {
                    p += 1;
                    t += 1;
                }
                // Only the last star can usefully take more: what stood before it is matched already.
                _ => match star {
                    Some((behind, reach)) => {
                        star = Some((behind, reach + 1));
                        (p, t) = (behind, reach + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == '*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Pattern {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::new(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By definition, without regard to time.
    fn slow(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                slow(rest, text) || text.split_first().is_some_and(|(_, text)| slow(pattern, text))
            }
            (Some((p, rest)), Some((t, text))) if *p == '?' || p == t => slow(rest, text),
            _ => false,
        }
    }

    #[test]
    fn every_short_pattern_agrees_with_the_definition() {
        let words = |letters: &[char], longest: u32| -> Vec<Vec<char>> {
            let n = letters.len();
            let of_length = |length| {
                (0..n.pow(length)).map(move |mut word| {
                    let mut out = Vec::new();
                    for _ in 0..length {
                        out.push(letters[word % n]);
                        word /= n;
                    }
                    out
                })
            };
            (0..=longest).flat_map(of_length).collect()
        };
        let mut checked = 0;
        for pattern in words(&['a', 'b', '*', '?'], 5) {
            if !pattern.iter().any(|c| "*?".contains(*c)) {
                continue;
            }
            let text = Pattern::new(&pattern.iter().collect::<String>()).unwrap();
            for word in words(&['a', 'b'], 5) {
                let upper = word.iter().collect::<String>().to_uppercase();
                assert_eq!(text.matches(&upper), slow(&pattern, &word), "{text} on {upper}");
                checked += 1;
            }
        }
        assert!(checked > 50_000, "{checked}");
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = Pattern::new(&"a*".repeat(60)).unwrap();
        assert!(!pattern.matches(&("a".repeat(4000) + "b").replace('a', "c")));
        assert!(!Pattern::new(&("a*".repeat(60) + "z")).unwrap().matches(&"a".repeat(4000)));
    }

    #[test]
    fn empty_and_endless_patterns_are_refused() {
        for text in ["", "  ", &"x".repeat(129)] {
            assert!(Pattern::new(text).is_err(), "{text:?}");
        }
        let error = serde_json::from_str::<Pattern>("\"\"").unwrap_err().to_string();
        assert!(error.starts_with("pattern is empty, but must be 1 to 128 characters"), "{error}");
    }
}
