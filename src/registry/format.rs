//! Payload formats: one znode in, what it registers or a reason out.
//!
//! It refuses to know other znodes and the tree. Invariant: on any bytes and any name a [`Format`] yields a valid
//! [`Registration`] or a [`Reason`], and never panics. `auto` asks the formats in the order of
//! [`FormatChoice::candidates`], the most telling first, and takes the first that recognises the
//! znode; that one alone decodes it, so that its reason is about the right format:
//!
//! 1. `dubbo`: a name that is an encoded URL
//! 2. `curator`: a JSON object with a key that only Curator's discovery writes
//! 3. `serverset`: one with a key that only server sets have, or in a `member_…` or `vector_…`
//! 4. `nerve`: a name that encodes an object, or an object with a key that only nerve writes
//! 5. `json`: any other JSON object
//! 6. `plain`: everything else
//!
//! A new format is a file here and a row in `candidates`. A decoder sees the znode's name and its
//! Stat beside the data, for formats whose names carry the data. What a format knows beyond one
//! address (named ports, weights of others) is told by its [`Registration`].

mod curator;
mod dubbo;
mod field;
#[cfg(test)]
mod golden;
mod host;
mod json;
mod keys;
mod nerve;
mod plain;
#[cfg(test)]
mod properties;
mod serverset;

use std::{cell::OnceCell, fmt, str::FromStr};

pub use field::weight_under;
pub use host::connectable;
use keys::Keys;

use super::{
    Rejected, Stat,
    layout::Layout,
    reason::{Reason, quoted},
    registration::Registration,
};

/// The largest payload that is looked at, in bytes. Real ones have a few hundred; ZooKeeper itself
/// takes 1 MiB, which times the size of a fleet would be memory in every client.
pub const PAYLOAD_MAX: usize = 64 * 1024;

/// A znode as a decoder sees it.
#[derive(Debug)]
pub struct Znode<'a> {
    /// The last element of its path.
    pub name: &'a str,
    pub stat: Stat,
    text: Result<&'a str, Reason>,
    /// Of the object, once a format has asked.
    keys: OnceCell<Keys>,
}

impl<'a> Znode<'a> {
    pub fn new(name: &'a str, data: &'a [u8], stat: Stat) -> Self {
        Self {
            name,
            stat,
            text: text_of(data),
            keys: OnceCell::new(),
        }
    }

    /// The data without white space around it; never empty.
    pub fn text(&self) -> Result<&'a str, Reason> {
        self.text.clone()
    }

    /// The text of a JSON object, or what looks like one.
    fn object(&self) -> Option<&'a str> {
        self.text
            .as_ref()
            .ok()
            .copied()
            .filter(|t| t.starts_with('{'))
    }

    /// The telling keys of a JSON object, or of what looks like one.
    fn keys(&self) -> Option<Keys> {
        let object = self.object()?;
        Some(*self.keys.get_or_init(|| Keys::of(object)))
    }
}

fn text_of(data: &[u8]) -> Result<&str, Reason> {
    if data.len() > PAYLOAD_MAX {
        let len = data.len();
        let reason = format!("payload has {len} bytes; at most {PAYLOAD_MAX} are read");
        return Err(Reason::new(reason));
    }
    let text = std::str::from_utf8(data).map_err(|error| {
        let offset = error.valid_up_to();
        Reason::new(format!(
            "payload is not UTF-8 at byte {offset}; write host:port or JSON in UTF-8"
        ))
    })?;
    match text.trim() {
        "" => Err(Reason::new("payload is empty: expected host:port or JSON")),
        text => Ok(text),
    }
}

/// One way to write a registration.
pub trait Format: fmt::Debug + Sync {
    /// As operators see it beside an instance or a rejected znode.
    fn name(&self) -> &'static str;

    /// Whether a znode is written in this format, right or wrong. Cheap: asked for each znode.
    fn recognises(&self, znode: &Znode<'_>) -> bool;

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason>;
}

/// The name of a format as [`Format::name`] gives it, or `unknown`.
pub fn named(name: &str) -> &'static str {
    let mut all = FormatChoice::Auto.candidates().iter();
    let format = all.find(|format| format.name() == name);
    format.map_or("unknown", |format| format.name())
}

/// How the znodes of a registry are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FormatChoice {
    /// Found out for each znode.
    #[default]
    Auto,
    /// `host:port` or the simple JSON form.
    Plain,
    /// Curator's service discovery: Spring Cloud, Dubbo 3 at application level and others.
    Curator,
    /// Dubbo at interface level.
    Dubbo,
    /// Server sets of Finagle and Aurora, with their vectors.
    Serverset,
    /// What nerve of `SmartStack` registers.
    Nerve,
}

impl FormatChoice {
    pub const ALL: [Self; 6] = [
        Self::Auto,
        Self::Plain,
        Self::Curator,
        Self::Dubbo,
        Self::Serverset,
        Self::Nerve,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Plain => "plain",
            Self::Curator => "curator",
            Self::Dubbo => "dubbo",
            Self::Serverset => "serverset",
            Self::Nerve => "nerve",
        }
    }

    /// Where services and instances stand, unless the configuration says otherwise.
    pub fn layout(self) -> Layout {
        match self {
            Self::Auto => Layout::mixed(),
            Self::Plain | Self::Curator | Self::Serverset => Layout::flat(),
            Self::Dubbo => Layout::dubbo(),
            Self::Nerve => Layout::nerve(),
        }
    }

    /// In the order in which they are asked.
    fn candidates(self) -> &'static [&'static dyn Format] {
        match self {
            Self::Auto => &[
                &dubbo::Dubbo,
                &curator::Curator,
                &serverset::Serverset,
                &nerve::Nerve,
                &json::Json,
                &plain::Plain,
            ],
            Self::Plain => &[&json::Json, &plain::Plain],
            Self::Curator => &[&curator::Curator],
            Self::Dubbo => &[&dubbo::Dubbo],
            Self::Serverset => &[&serverset::Serverset],
            Self::Nerve => &[&nerve::Nerve],
        }
    }

    /// The format that a znode is taken for: the first that recognises it, or the only one.
    fn format_of(self, znode: &Znode<'_>) -> Option<&'static dyn Format> {
        match self.candidates() {
            [only] => Some(*only),
            several => several.iter().copied().find(|f| f.recognises(znode)),
        }
    }

    /// Decodes a znode and names the format that it was decoded with.
    pub fn decode(self, znode: &Znode<'_>) -> Result<(&'static str, Registration), Rejected> {
        let reject = |format, reason: Reason| Rejected {
            format,
            reason: reason.into_string(),
        };
        let Some(format) = self.format_of(znode) else {
            let unknown = || Reason::new("payload is in no known format; write host:port or JSON");
            let reason = znode.text().err().unwrap_or_else(unknown);
            return Err(reject(self.as_str(), reason));
        };
        match format.decode(znode) {
            Ok(decoded) => Ok((format.name(), decoded)),
            Err(reason) => Err(reject(format.name(), reason)),
        }
    }
}

impl fmt::Display for FormatChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A `format` that cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("format {0} is unknown; use {known}", known = known())]
pub struct UnknownFormat(String);

fn known() -> String {
    FormatChoice::ALL.map(FormatChoice::as_str).join(", ")
}

impl FromStr for FormatChoice {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let known = Self::ALL.into_iter().find(|c| c.as_str() == text);
        known.ok_or_else(|| UnknownFormat(quoted(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(choice: FormatChoice, data: &[u8]) -> Rejected {
        choice
            .decode(&Znode::new("i-1", data, Stat::default()))
            .unwrap_err()
    }

    #[test]
    fn names_of_formats_are_read_as_they_are_written() {
        for choice in FormatChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let error = "Curator\n".parse::<FormatChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r"format `Curator\n` is unknown; use auto, plain, curator, dubbo, serverset, nerve"
        );
    }

    #[test]
    fn a_payload_of_the_largest_size_is_read_and_one_over_it_is_not() {
        let mut data = b"10.0.0.7:8080".to_vec();
        data.resize(PAYLOAD_MAX, b' ');
        let znode = Znode::new("i-1", &data, Stat::default());
        assert!(FormatChoice::Auto.decode(&znode).is_ok());
        data.push(b' ');
        assert_eq!(
            rejected(FormatChoice::Auto, &data).reason,
            "payload has 65537 bytes; at most 65536 are read"
        );
    }

    #[test]
    fn what_is_no_text_is_rejected_under_the_chosen_name() {
        for choice in [FormatChoice::Auto, FormatChoice::Plain] {
            let rejected = rejected(choice, b"10.0.0.7\xff:80");
            assert_eq!(rejected.format, choice.as_str());
            assert_eq!(
                rejected.reason,
                "payload is not UTF-8 at byte 8; write host:port or JSON in UTF-8"
            );
        }
    }

    #[test]
    fn a_fixed_format_reads_no_other() {
        use FormatChoice::{Curator, Dubbo, Nerve, Serverset};
        for choice in [Curator, Dubbo, Nerve, Serverset] {
            let rejected = rejected(choice, b"10.0.0.7:8080");
            assert_eq!(rejected.format, choice.as_str());
        }
    }
}
