//! Times as dubbo-go writes them: in seconds where Dubbo for Java has milliseconds, and durations such as `1m30s`.
//!
//! Source: dubbo-go 3.3.2, `server/action.go` (what it writes) and `cluster/loadbalance/util.go` (what it reads).

use crate::registry::registration::WarmUp;

/// How long a provider takes to become warm where it does not say, in milliseconds.
const WARM_UP: i64 = 600_000;

/// A time that is greater is one in milliseconds: in seconds it is in the year 5138.
const SECONDS_MAX: i64 = 100_000_000_000;

/// `None` for a provider that started at an unknown time or wants no warm-up.
pub(super) fn warm_up(timestamp: Option<&str>, warm_up: Option<&str>) -> Option<WarmUp> {
    let since = timestamp?.trim().parse::<i64>().ok()?;
    let since = if since > SECONDS_MAX {
        since
    } else {
        since.checked_mul(1_000)?
    };
    let lasts = warm_up.and_then(millis).unwrap_or(WARM_UP);
    let lasts = u32::try_from(lasts.max(0)).unwrap_or(u32::MAX);
    (since > 0 && lasts > 0).then_some(WarmUp { since, lasts })
}

/// A number of seconds, or a duration of Go's; in milliseconds.
fn millis(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.parse::<i64>() {
        Ok(seconds) => Some(seconds.saturating_mul(1_000)),
        Err(_) => duration(text),
    }
}

/// `1h2m3.5s`, as `time.Duration` prints it.
fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, behind) = rest.split_at(number);
        let unit = behind
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let millis = match unit {
            "ns" => 1e-6,
            "us" | "µs" | "μs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3_600e3,
            _ => return None,
        };
        total += value.parse::<f64>().ok()? * millis;
        rest = behind;
    }
    // Saturates, and what is less than a millisecond is none.
    #[allow(clippy::cast_possible_truncation)]
    let total = total as i64;
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_seconds_and_durations() {
        let since = 1_796_062_268_000;
        let warmed = |warm: Option<&str>| warm_up(Some("1796062268"), warm);
        for (text, lasts) in [
            (None, 600_000),
            (Some("30s"), 30_000),
            (Some("30"), 30_000),
            (Some("1m30s"), 90_000),
            (Some("1h0m0.5s"), 3_600_500),
            (Some("soon"), 600_000),
        ] {
            assert_eq!(warmed(text), Some(WarmUp { since, lasts }), "{text:?}");
        }
        for none in ["0s", "0", "-1"] {
            assert_eq!(warmed(Some(none)), None, "{none}");
        }
        let millis = warm_up(Some("1796062268123"), None).unwrap();
        assert_eq!(millis.since, 1_796_062_268_123);
        for timestamp in [None, Some(""), Some("0"), Some("-5"), Some("now")] {
            assert_eq!(warm_up(timestamp, None), None, "{timestamp:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(timestamp in ".{0,24}", warm in "[0-9.a-zµ]{0,24}") {
            let _ = warm_up(Some(&timestamp), Some(&warm));
        }
    }
}
