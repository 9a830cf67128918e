//! What happened in a trial and when, for whoever has to find out why it failed.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Instant,
};

/// All clones write into one.
#[derive(Clone)]
pub struct Timeline {
    began: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Timeline {
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            lines: Arc::default(),
        }
    }

    pub fn note(&self, text: &str) {
        let at = self.began.elapsed().as_secs_f64();
        let mut lines = self.lines.lock().unwrap();
        lines.push(format!("{at:9.3} s  {text}"));
    }

    /// The last ones, oldest first.
    pub fn last(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap();
        let from = lines.len().saturating_sub(count);
        let mut text = String::new();
        for line in &lines[from..] {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}
