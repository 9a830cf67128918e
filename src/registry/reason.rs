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

/// A path in back quotes; where it is too long its end is kept. Secrets of a URL in it are not.
pub fn quoted_path(path: &str) -> String {
    let path = &without_secrets(path);
    let count = path.chars().count();
    if count <= PATH_MAX {
        return format!("`{}`", escaped(path, PATH_MAX));
    }
    let tail: String = path.chars().skip(count - (PATH_MAX - 1)).collect();
    format!("`…{}`", escaped(&tail, PATH_MAX - 1))
}

/// A text without what may be secret of the URLs in it, whether they are percent-encoded or not: who logs in,
/// and what stands behind the `?`.
pub fn without_secrets(text: &str) -> String {
    // Of the same length, so that places in it are places in the text.
    let small = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    while let Some((at, mark)) = first_of(&small, done, &["://", "%3a%2f%2f"]) {
        let begin = at + mark.len();
        // A slash within an encoded URL is encoded; one as it stands is of the path around it.
        let ends: &[&str] = if mark == "://" {
            &[" ", "`", "\""]
        } else {
            &[" ", "`", "\"", "/"]
        };
        let place = |marks: &[&str]| first_of(&small, begin, marks).map(|(at, _)| at);
        let end = place(ends).unwrap_or(text.len());
        let query = place(&["?", "%3f"]).filter(|at| *at < end);
        let authority = place(&["/", "%2f"]).unwrap_or(end);
        let authority = &small[begin..authority.min(query.unwrap_or(end))];
        let user = [authority.rfind('@'), authority.rfind("%40")];
        let user = user.into_iter().flatten().max();
        out.push_str(&text[done..begin]);
        out.push_str(if user.is_some() { "…" } else { "" });
        out.push_str(&text[begin + user.unwrap_or(0)..query.unwrap_or(end)]);
        out.push_str(if query.is_some() { "?…" } else { "" });
        done = end;
    }
    out.push_str(&text[done..]);
    out
}

/// Where the first of the marks stands, from a place on, and which it is.
fn first_of<'m>(text: &str, from: usize, marks: &[&'m str]) -> Option<(usize, &'m str)> {
    let places = marks
        .iter()
        .filter_map(|mark| Some((from + text[from..].find(mark)?, *mark)));
    places.min()
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
    fn what_a_url_keeps_secret_is_left_out() {
        for (text, shown) in [
            (
                "/d/a/providers/dubbo%3A%2F%2F10.0.0.1%3A20880%2Fa.B%3Ftoken%3Dx%26y%3D1",
                "/d/a/providers/dubbo%3A%2F%2F10.0.0.1%3A20880%2Fa.B?…",
            ),
            (
                "/d/dubbo%3a%2f%2fuser%3apass%4010.0.0.1%2fa.B%3ftoken%3dx/below",
                "/d/dubbo%3a%2f%2f…%4010.0.0.1%2fa.B?…/below",
            ),
            (
                "`dubbo://user:pa@ss@10.0.0.1/a@b?token=x` and `tri://10.0.0.2?y` too",
                "`dubbo://…@10.0.0.1/a@b?…` and `tri://10.0.0.2?…` too",
            ),
            ("http://user:pw@é", "http://…@é"),
            ("/services/orders/what?", "/services/orders/what?"),
            ("a://", "a://"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
        let long = format!("/d/dubbo%3A%2F%2F10.0.0.1%3Ftoken%3D{}", "x".repeat(200));
        assert_eq!(quoted_path(&long), "`/d/dubbo%3A%2F%2F10.0.0.1?…`");
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

        #[test]
        fn nothing_behind_a_question_mark_of_a_url_is_shown(
            before in "[a-zé/@:%`? ]{0,20}", host in "[a-zé.]{0,9}", secret in "[A-Z]{3,9}", mark in "(://|%3A%2F%2F)", query in "(\\?|%3F|%3f)",
        ) {
            let text = format!("{before}x{mark}{host}{query}k={secret}");
            prop_assert!(!without_secrets(&text).contains(&secret));
        }
    }
}
