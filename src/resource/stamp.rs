//! What makes the names of a collection new on each stream, and each time that a stream tells of it.
//!
//! It refuses to know what a collection is. A client that reconnects does not say which members of a
//! collection it holds (Envoy does not know their versions), and one that builds a cluster anew does
//! not ask for a collection again that it knows by name. Under a name that was never used it begins
//! with nothing and asks. Invariant: a stream issues no stamp twice, and two streams issue the same
//! one as good as never, as each begins at a random number.

use std::fmt;

/// Stands in names where a stream puts its stamp. Of the same length as one.
pub const STAMP: &str = "!!!!!!!!!!!!!!!!";

/// What a stream puts there, 16 hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

/// The stamps of one stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamps {
    first: u64,
    issued: u64,
}

impl Stamp {
    pub fn parse(text: &str) -> Option<Self> {
        let stamp = u64::from_str_radix(text, 16).ok().map(Self)?;
        (stamp.to_string() == text).then_some(stamp)
    }

    /// Stands from then on in the first so many places.
    pub(super) fn put(self, bytes: &mut [u8], places: usize) {
        let (mark, stamp) = (STAMP.as_bytes(), self.to_string());
        let mut from = 0;
        for _ in 0..places {
            let found = bytes[from..].windows(mark.len()).position(|w| w == mark);
            let Some(at) = found.map(|at| from + at) else {
                return;
            };
            from = at + mark.len();
            bytes[at..from].copy_from_slice(stamp.as_bytes());
        }
    }

    /// The name with this stamp.
    pub fn name(self, name: &str) -> String {
        name.replacen(STAMP, &self.to_string(), 1)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Stamps {
    /// `first` should be random.
    pub fn new(first: u64) -> Self {
        Self { first, issued: 0 }
    }

    pub fn issue(&mut self) -> Stamp {
        let stamp = Stamp(self.first.wrapping_add(self.issued));
        self.issued += 1;
        stamp
    }

    pub fn issued(&self, stamp: Stamp) -> bool {
        stamp.0.wrapping_sub(self.first) < self.issued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_knows_its_own_stamps_also_past_the_last_number() {
        let mut stamps = Stamps::new(u64::MAX);
        let [a, b] = [stamps.issue(), stamps.issue()];
        assert!(stamps.issued(a) && stamps.issued(b) && a != b);
        assert!(!stamps.issued(Stamp(1)) && !stamps.issued(Stamp(u64::MAX - 1)));
        assert_eq!(Stamp::parse(&a.to_string()), Some(a));
    }

    #[test]
    fn only_what_is_letter_by_letter_a_stamp_is_one() {
        for text in ["", "1", "+000000000000001", "00000000000000AB", STAMP] {
            assert_eq!(Stamp::parse(text), None, "{text}");
        }
        assert_eq!(
            Stamp::parse("00000000000000ab")
                .unwrap()
                .name("a/!!!!!!!!!!!!!!!!/*"),
            "a/00000000000000ab/*"
        );
    }

    #[test]
    fn as_many_places_are_stamped_as_there_may_be() {
        let stamped = |places| {
            let mut bytes = format!("a{STAMP}b{STAMP}c").into_bytes();
            Stamp(10).put(&mut bytes, places);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(stamped(1), format!("a000000000000000ab{STAMP}c"));
        assert_eq!(stamped(9), "a000000000000000ab000000000000000ac");
    }
}
