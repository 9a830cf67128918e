//! What was measured, beside floor, peers and target: a table to read and one for the README.
//!
//! It refuses to know how a figure came about. A target is about a ratio where there is a floor, else
//! about the figure. Invariant: a figure without a target is never called met or missed.

use std::fmt::Write as _;

const COLUMNS: usize = 8;
const HEAD: [&str; COLUMNS] = [
    "#",
    "measure",
    "MeshKeeper",
    "floor",
    "ratio",
    "LinearCache",
    "istiod",
    "target",
];

/// One measure.
#[derive(Debug, Default)]
pub struct Row {
    number: u8,
    measure: String,
    unit: &'static str,
    ours: f64,
    spread: Option<(f64, f64)>,
    floor: Option<f64>,
    linear: Option<f64>,
    istiod: Option<f64>,
    target: Option<Target>,
}

/// At most, or at least, so much.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Ratio(f64),
    AtMost(f64),
    AtLeast(f64),
    /// So much, within the second.
    Around(f64, f64),
}

impl Row {
    pub fn new(number: u8, measure: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            number,
            measure: measure.into(),
            unit,
            ours,
            ..Self::default()
        }
    }

    /// From the least to the greatest that was seen.
    pub fn spread(mut self, least: f64, greatest: f64) -> Self {
        self.spread = Some((least, greatest));
        self
    }

    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }

    pub fn linear(mut self, figure: Option<f64>) -> Self {
        self.linear = figure;
        self
    }

    pub fn istiod(mut self, figure: Option<f64>) -> Self {
        self.istiod = figure;
        self
    }

    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.ours / floor)
    }

    fn met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Ratio(most) => self.ratio()? <= most,
            Target::AtMost(most) => self.ours <= most,
            Target::AtLeast(least) => self.ours >= least,
            Target::Around(middle, width) => (self.ours - middle).abs() <= width,
        })
    }

    fn cells(&self) -> [String; COLUMNS] {
        let with_unit = |value: f64| format!("{} {}", short(value), self.unit).trim().to_owned();
        let spread = self
            .spread
            .map(|(from, to)| format!(" ({}–{})", short(from), short(to)));
        let beside = |peer: Option<f64>| {
            let Some(peer) = peer else {
                return String::new();
            };
            let times = if self.ours > 0.0 {
                peer / self.ours
            } else {
                f64::NAN
            };
            format!("{} ({}×)", with_unit(peer), short(times))
        };
        let target = self.target.map(|target| match target {
            Target::Ratio(most) => format!("≤ {most} × floor"),
            Target::AtMost(most) => format!("≤ {}", with_unit(most)),
            Target::AtLeast(least) => format!("≥ {}", with_unit(least)),
            Target::Around(middle, width) => format!("{middle:.2} ± {width}"),
        });
        let verdict = self.met().map_or("", |met| if met { " ✓" } else { " ✗" });
        [
            self.number.to_string(),
            self.measure.clone(),
            with_unit(self.ours) + &spread.unwrap_or_default(),
            self.floor.map(with_unit).unwrap_or_default(),
            self.ratio().map(short).unwrap_or_default(),
            beside(self.linear),
            beside(self.istiod),
            target.unwrap_or_default() + verdict,
        ]
    }
}

/// About three digits.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || size == 0.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    /// What no row has room for.
    notes: Vec<String>,
}

impl Report {
    /// Shows the row at once, as a run takes minutes.
    pub fn add(&mut self, row: Row) {
        let [_, measure, ours, floor, ratio, linear, istiod, target] = row.cells();
        let mut line = format!("  {measure}: {ours}");
        for (name, cell) in [
            ("floor", floor),
            ("ratio", ratio),
            ("LinearCache", linear),
            ("istiod", istiod),
            ("target", target),
        ] {
            if !cell.trim().is_empty() {
                write!(line, "; {name} {}", cell.trim()).expect("memory");
            }
        }
        println!("{line}");
        self.rows.push(row);
    }

    pub fn note(&mut self, note: String) {
        println!("  {note}");
        self.notes.push(note);
    }

    pub fn table(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::cells).collect();
        let head = HEAD.map(String::from);
        let width = |column: usize| {
            let cells = rows
                .iter()
                .chain([&head])
                .map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        let mut table = String::new();
        for row in [&head].into_iter().chain(&rows) {
            let cells = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(table, "{}", line.trim_end()).expect("memory");
        }
        table
    }

    pub fn markdown(&self) -> String {
        let mut text = format!(
            "| {} |\n|{}\n",
            HEAD.join(" | "),
            " --- |".repeat(HEAD.len())
        );
        for row in &self.rows {
            writeln!(text, "| {} |", row.cells().join(" | ")).expect("memory");
        }
        for note in &self.notes {
            writeln!(text, "\n- {note}").expect("memory");
        }
        text
    }
}
