//! Why a znode is left out, in words for the operator who has to put it right.
//!
//! It refuses to know what was wrong. Invariant: a reason is one line of at most [`Reason::MAX`]
//! characters without control characters, whatever a hostile znode holds, so that it can go into a
//! log, a table and a page as it is. It names the field, the value and the remedy.

use std::fmt;

/// How much of an offending value a reason quotes, in characters.
const VALUE_MAX: usize = 48;
/// How much of a path a reason quotes: its end, which tells siblings apart.
const PATH_MAX: usize = 80;

#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Reason(String);

impl Reason {
    /// In characters.
    pub const MAX: usize = 200;

    pub fn new(text: impl AsRef<str>) -> Self {
        Self(escaped(text.as_ref(), Self::MAX))
    }

    /// Adds `more`, which stays whole; what does not fit beside it is cut from this reason.
    #[must_use]
    pub fn and(&self, more: &str) -> Self {
        let more = escaped(more, Self::MAX - VALUE_MAX);
        let room = Self::MAX - more.chars().count() - 2;
        Self(format!("{}; {more}", escaped(&self.0, room)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A value in back quotes, cut and escaped.
pub fn quoted(value: &str) -> String {
    format!("`{}`", shown(value))
}

/// A value cut and escaped, without quotes.
pub fn shown(value: &str) -> String {
    escaped(value, VALUE_MAX)
}

/// A path in back quotes; where it is too long its end is kept.
pub fn quoted_path(path: &str) -> String {
    let count = path.chars().count();
    if count <= PATH_MAX {
        return format!("`{}`", escaped(path, PATH_MAX));
    }
    let tail: String = path.chars().skip(count - (PATH_MAX - 1)).collect();
    format!("`…{}`", escaped(&tail, PATH_MAX - 1))
}

/// At most `max` characters, none of them a control, a separator of lines or a change of direction.
fn escaped(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    let mut room = max;
    for c in text.chars() {
        let start = out.len();
        match c {
            '"' | '\'' | '\\' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
        let width = out[start..].chars().count();
        if width > room {
            out.truncate(start);
            return cut(out);
        }
        room -= width;
    }
    out
}

/// Marks the end as cut, within the length that `text` has.
fn cut(mut text: String) -> String {
    text.pop();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_reason_stays_as_it_is() {
        let reason = Reason::new("port `0`: use 1..=65535");
        assert_eq!(reason.as_str(), "port `0`: use 1..=65535");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(quoted("a\r\n\0\u{202e}b"), r"`a\r\n\0\u{202e}b`");
    }

    #[test]
    fn a_long_path_keeps_its_end() {
        let path = format!("/services/{}/instance-7", "s".repeat(300));
        let shown = quoted_path(&path);
        assert!(shown.starts_with("`…s") && shown.ends_with("s/instance-7`"));
        assert_eq!(shown.chars().count(), PATH_MAX + 2);
    }

    #[test]
    fn what_is_added_stays_whole() {
        let reason = Reason::new("x".repeat(500)).and("the remedy");
        assert_eq!(reason.as_str().chars().count(), Reason::MAX);
        assert!(reason.as_str().ends_with("x…; the remedy"));
    }

    proptest! {
        #[test]
        fn every_text_becomes_one_bounded_line(text in ".{0,400}", more in "(?s).{0,400}") {
            for reason in [Reason::new(&text), Reason::new(&text).and(&more), Reason::new(quoted_path(&more))] {
                prop_assert!(reason.as_str().chars().count() <= Reason::MAX);
                prop_assert!(!reason.as_str().contains(char::is_control));
            }
        }
    }
}
