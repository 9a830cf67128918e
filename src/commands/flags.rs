//! Checks of what was typed behind flags, all of it before any problem is told.

use crate::config::{Place, Problem, Problems};

/// The problems so far.
#[derive(Debug, Default)]
pub struct Flags(Vec<Problem>);

impl Flags {
    /// Nothing when `check` refuses the text.
    pub fn check<T>(
        &mut self,
        flag: &'static str,
        text: &str,
        check: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        check(text)
            .map_err(|message| self.refuse(flag, message))
            .ok()
    }

    /// As [`Flags::check`], for a flag that may be absent.
    pub fn check_given<T>(
        &mut self,
        flag: &'static str,
        text: Option<&String>,
        check: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        text.and_then(|text| self.check(flag, text, check))
    }

    pub fn refuse(&mut self, flag: &'static str, message: impl Into<String>) {
        self.0.push(Problem {
            place: Place::Flag(flag),
            key: String::new(),
            message: message.into(),
        });
    }

    /// What was made of the flags, which is there if none had a problem.
    pub fn finish<T>(self, made: Option<T>) -> Result<T, Problems> {
        match made {
            Some(made) if self.0.is_empty() => Ok(made),
            _ => Err(Problems(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_by_flag() {
        let mut flags = Flags::default();
        let refuse = |_: &str| Err::<(), _>("no".to_owned());
        assert!(flags.check("--a", "", refuse).is_none());
        assert!(flags.check_given("--b", Some(&String::new()), refuse).is_none());
        assert!(flags.check_given("--c", None, refuse).is_none());
        let problems = flags.finish(Some(())).unwrap_err();
        assert_eq!(problems.to_string(), "--a: no\n--b: no");
    }

    #[test]
    fn good_flags_give_what_was_made_of_them() {
        assert_eq!(Flags::default().finish(Some(7)).unwrap(), 7);
    }
}
