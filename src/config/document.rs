//! A YAML document as a plain tree, and the line of each of its parts.
//!
//! It refuses to know which keys mean something. The YAML library tells a line only in its errors,
//! so [`locate`] reads the text once more, follows the way to the part and fails there on purpose.
//! Mappings keep every entry in the order of the text, so that duplicates can be told.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, VariantAccess,
        Visitor,
    },
};

/// A part of a document. Scalars other than text keep the text that they stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// `!something …`, which means nothing here.
    Tagged,
}

impl Node {
    /// As error messages name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "a truth value",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged => "tagged with `!`",
        }
    }

    /// A mapping's key as it is written in a key path.
    pub fn key(&self) -> String {
        match self {
            Self::Text(text) | Self::Number(text) => text.escape_debug().to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Null => "null".to_owned(),
            other => format!("({})", other.kind()),
        }
    }
}

/// One step into a document, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The value of a mapping's nth entry.
    Value(usize),
    /// The key of a mapping's nth entry; the last step only.
    Key(usize),
    Item(usize),
}

/// Where a text is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    pub location: Option<(usize, usize)>,
    pub message: String,
}

pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    if text.trim().is_empty() {
        return Ok(Node::Null);
    }
    serde_yaml::from_str(text).map_err(|error| {
        let message = error.to_string();
        // The library repeats the place at the end of its message.
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        SyntaxError {
            location: location(&error),
            message,
        }
    })
}

/// Line and column of the part that `steps` lead to.
pub fn locate(text: &str, steps: &[Step]) -> Option<(usize, usize)> {
    let error = Walk(steps)
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    location(&error)
}

fn location(error: &serde_yaml::Error) -> Option<(usize, usize)> {
    error
        .location()
        .map(|location| (location.line(), location.column()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML document")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Node, A::Error> {
        let (_tag, content) = data.variant::<String>()?;
        content.newtype_variant::<IgnoredAny>()?;
        Ok(Node::Tagged)
    }
}

/// Follows the steps and fails behind the last one. What it deserializes to does not exist.
struct Walk<'a>(&'a [Step]);

enum Never {}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Never;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Never, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Never;

    /// Every method that is not written out below fails with this, which is what is wanted.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("to stop here")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Never, A::Error> {
        let Some((Step::Item(index), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(""));
        };
        for _ in 0..*index {
            items.next_element::<IgnoredAny>()?;
        }
        items
            .next_element_seed(Walk(rest))?
            .ok_or_else(|| A::Error::custom(""))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Never, A::Error> {
        let Some((Step::Key(index) | Step::Value(index), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(""));
        };
        for _ in 0..*index {
            entries.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if matches!(self.0, [Step::Key(_)]) {
            return entries
                .next_key_seed(Walk(rest))?
                .ok_or_else(|| A::Error::custom(""));
        }
        // Asked for a value without a key, the library panics.
        match entries.next_key::<IgnoredAny>()? {
            Some(_) => entries.next_value_seed(Walk(rest)),
            None => Err(A::Error::custom("")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a: 1\nlist:\n  - x: {deep: [7, 8]}\n    y: 2\n  - 'quoted'\na: again\n";

    #[test]
    fn a_mapping_keeps_its_duplicates_in_order() {
        let Node::Map(entries) = parse(TEXT).unwrap() else {
            panic!("a mapping");
        };
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.key()).collect();
        assert_eq!(keys, ["a", "list", "a"]);
    }

    #[test]
    fn every_part_is_found_by_position() {
        for (steps, place) in [
            (&[Step::Key(0)][..], (1, 1)),
            (&[Step::Value(0)], (1, 4)),
            (&[Step::Key(2)], (6, 1)),
            (&[Step::Value(2)], (6, 4)),
            (&[Step::Value(1), Step::Item(1)], (5, 5)),
            (&[Step::Value(1), Step::Item(0), Step::Key(1)], (4, 5)),
            (
                &[
                    Step::Value(1),
                    Step::Item(0),
                    Step::Value(0),
                    Step::Value(0),
                    Step::Item(1),
                ],
                (3, 19),
            ),
        ] {
            assert_eq!(locate(TEXT, steps), Some(place), "{steps:?}");
        }
    }

    #[test]
    fn a_way_that_leads_nowhere_does_not_panic() {
        for steps in [
            &[Step::Key(9)][..],
            &[Step::Value(9)],
            &[Step::Item(0)],
            &[Step::Value(0), Step::Value(0)],
        ] {
            let _ = locate(TEXT, steps);
        }
    }

    #[test]
    fn a_syntax_error_has_its_place_once() {
        let error = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(error.location.is_some());
        assert!(!error.message.contains("line"), "{}", error.message);
    }

    #[test]
    fn tags_and_odd_keys_are_parts_too() {
        assert_eq!(parse("!tag x").unwrap(), Node::Tagged);
        let Node::Map(entries) = parse("1: a\ntrue: b\n~: c\n[x]: d\n").unwrap() else {
            panic!("a mapping");
        };
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.key()).collect();
        assert_eq!(keys, ["1", "true", "null", "(a list)"]);
    }

    #[test]
    fn a_text_without_content_is_null() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert_eq!(parse(text).unwrap(), Node::Null, "{text:?}");
        }
    }
}
