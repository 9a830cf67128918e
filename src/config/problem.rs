//! What is wrong with a configuration, and where.

use std::{error::Error, fmt};

/// Where a value comes from. Lines and columns begin at 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(String),
    Line {
        file: String,
        line: usize,
        column: usize,
    },
    /// With its dashes.
    Flag(&'static str),
    /// By name: where a problem is with what the configuration names.
    Registry(String),
}

/// One thing to put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// `registries[0].connect`; empty where the whole file or a flag is meant.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// All of them, in the order of the file, then the flags. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.write_str(file),
            Self::Line { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Flag(flag) => f.write_str(flag),
            Self::Registry(name) => write!(f, "registry {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for Problems {}
