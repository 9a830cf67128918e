//! What time it is, by a clock that is never set and by the wall clock, and how to compare times of different
//! processes.
//!
//! The steady clock shows the time since the machine was started, so that the times of two processes compare as long
//! as it is not started again, whatever becomes of the wall clock. Source: `proc_uptime(5)`, `random(4)`.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::registry::{Moment, guard::Time};

/// What tells one start of the machine from another; all zero where that is not known.
pub type Boot = [u8; 16];

/// A moment with the start of the machine that its steady time counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub boot: Boot,
    pub at: Moment,
}

impl Stamp {
    pub fn now() -> Self {
        Self::of(now())
    }

    /// A moment that this process has measured.
    pub fn of(at: Moment) -> Self {
        let boot = ORIGIN.boot;
        Self { boot, at }
    }

    /// How long ago it was, seen from a later one. Where only the wall clocks compare, one that was set back counts
    /// as no time at all.
    pub fn until(&self, later: &Self) -> Time {
        let steady = later.at.time.saturating_sub(self.at.time);
        let wall = later.at.wall.saturating_sub(self.at.wall);
        let comparable = self.boot == later.boot && self.boot != Boot::default() && steady >= 0;
        if comparable { steady } else { wall.max(0) }
    }
}

pub fn now() -> Moment {
    let time = ORIGIN.uptime.saturating_add(ORIGIN.read.elapsed());
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment {
        time: millis(time),
        wall: millis(wall.unwrap_or_default()),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Where the steady clock of this process begins.
struct Origin {
    boot: Boot,
    /// Of the machine, when it was read.
    uptime: Duration,
    read: Instant,
}

static ORIGIN: LazyLock<Origin> = LazyLock::new(|| {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let uptime = fs::read_to_string("/proc/uptime").ok();
    let seconds = uptime.and_then(|text| text.split(' ').next()?.parse().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Origin {
        // Without its uptime a machine's start says nothing.
        boot: (boot.filter(|_| uptime.is_some()))
            .and_then(|text| parse(&text))
            .unwrap_or_default(),
        uptime: uptime.unwrap_or_default(),
        read: Instant::now(),
    }
});

/// A UUID with its dashes.
fn parse(text: &str) -> Option<Boot> {
    let digits = text.trim().replace('-', "");
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(boot: u8, time: i64, wall: i64) -> Stamp {
        Stamp {
            boot: [boot; 16],
            at: Moment { time, wall },
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_counts_for_nothing_while_the_machine_runs() {
        for wall in [0, 7_200_000, -7_200_000] {
            assert_eq!(stamp(1, 100, 0).until(&stamp(1, 600, wall)), 500);
        }
    }

    #[test]
    fn across_starts_of_the_machine_the_wall_clock_tells_and_never_less_than_nothing() {
        for boot in [0, 2] {
            let before = stamp(boot, 900_000, 1_000);
            assert_eq!(before.until(&stamp(boot % 2 * 3, 10, 61_000)), 60_000);
            assert_eq!(before.until(&stamp(boot + 1, 10, 500)), 0);
        }
        // An uptime that went back, as containers may have one of their own.
        assert_eq!(stamp(1, 900_000, 1_000).until(&stamp(1, 10, 4_000)), 3_000);
    }

    #[test]
    fn the_steady_clock_goes_on() {
        let before = Stamp::now();
        std::thread::sleep(Duration::from_millis(20));
        let after = Stamp::now();
        let passed = before.until(&after);
        assert!((20..10_000).contains(&passed), "{passed}");
    }

    #[test]
    fn a_boot_id_is_a_uuid() {
        let id = parse("b7a3f1c2-0000-4000-8000-0000000000ff\n").unwrap();
        assert_eq!((id[0], id[15]), (0xb7, 0xff));
        assert_eq!(parse("none"), None);
    }
}
