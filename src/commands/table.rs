//! Columns of text for a terminal.
//!
//! Invariant: a cell is one line without control characters, whatever a znode or a client put in it.

use std::fmt::Write;

/// Rows under a head, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub fn new(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned)],
        }
    }

    pub fn push(&mut self, row: [String; N]) {
        self.rows.push(row.map(|cell| plain(&cell)));
    }

    pub fn render(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
        };
        let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Without what a terminal would obey; `-` for nothing.
pub fn plain(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars().fold(String::new(), |mut plain, c| {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "ZONE"]);
        table.push(["örders".into(), String::new()]);
        table.push(["b".into(), "zone-a".into()]);
        assert_eq!(table.render(), "NAME    ZONE\nörders  -\nb       zone-a\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        let mut table = Table::new(["NAME"]);
        table.push(["\u{1b}[2J\n\u{9b}x".into()]);
        assert_eq!(table.render(), "NAME\n\\u{1b}[2J\\n\\u{9b}x\n");
    }
}
