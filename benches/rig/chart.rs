//! Line charts on two logarithmic or two linear scales, as SVG.
//!
//! It refuses to know what is drawn. The text takes the reader's colours, light or dark. Invariant:
//! every point lies inside the frame, as the scales end at whole decades, or begin at zero and end at a
//! round number.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
/// A line with more points than this is drawn without them.
const MARKED: usize = 20;
const COLOURS: [&str; 4] = ["#2a78d6", "#8a8a86", "#eb6834", "#1baf7a"];

#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub axes: Axes,
    pub x: &'static str,
    pub y: &'static str,
    /// A name and its points; a series without points is left out.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axes {
    Logarithmic,
    /// From zero.
    Linear,
}

/// One axis: what it holds, and where that lies.
#[derive(Clone, Copy, Debug)]
struct Scale {
    axes: Axes,
    /// Powers of ten, or steps.
    low: i32,
    high: i32,
    step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(axes: Axes, values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let greatest = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high, step) = match axes {
            Axes::Logarithmic => {
                let low = whole(least.log10().floor());
                (low, whole(greatest.log10().ceil()).max(low + 1), 1.0)
            }
            Axes::Linear => {
                let step = round_step(greatest / 6.0);
                (0, whole((greatest / step).ceil()).max(1), step)
            }
        };
        Self {
            axes,
            low,
            high,
            step,
            from,
            to,
        }
    }

    fn place(self, value: f64) -> f64 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let at = match self.axes {
            Axes::Logarithmic => value.log10(),
            Axes::Linear => value / self.step,
        };
        self.from + (self.to - self.from) * (at - low) / (high - low)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(move |place| match self.axes {
            Axes::Logarithmic => 10f64.powi(place),
            Axes::Linear => f64::from(place) * self.step,
        })
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// Powers of ten and steps here have two digits.
#[allow(clippy::cast_possible_truncation)]
fn whole(power: f64) -> i32 {
    power as i32
}

impl Chart {
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let x = Scale::new(self.axes, points().map(|p| p.0), LEFT, WIDTH - RIGHT);
        let y = Scale::new(self.axes, points().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
             <title>{title}</title>\n\
             <style>text{{fill:#444}}.grid{{stroke:#8884;stroke-width:1}}.head{{font-weight:600;font-size:14px}}\
             path{{fill:none;stroke-width:2}}\
             @media(prefers-color-scheme:dark){{text{{fill:#ccc}}}}</style>\n\
             <text class=\"head\" x=\"{LEFT}\" y=\"22\">{title}</text>\n",
            title = escaped(&self.title),
        );
        self.axes(&mut svg, x, y);
        let mut labels: Vec<f64> = Vec::new();
        let drawn = self
            .series
            .iter()
            .zip(COLOURS)
            .filter(|((_, points), _)| !points.is_empty());
        for ((name, points), colour) in drawn {
            series(&mut svg, (name, points, colour), (x, y), &mut labels);
        }
        svg + "</svg>\n"
    }

    fn axes(&self, svg: &mut String, x: Scale, y: Scale) {
        for decade in x.ticks() {
            let at = x.place(decade);
            writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y.from,
                y.to,
                y.from + 18.0,
                tick(decade)
            )
            .expect("memory");
        }
        for decade in y.ticks() {
            let at = y.place(decade);
            writeln!(
                svg,
                "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x.from,
                x.to,
                x.from - 8.0,
                at + 4.0,
                tick(decade)
            )
            .expect("memory");
        }
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            x.from.midpoint(x.to),
            HEIGHT - 12.0,
            escaped(self.x),
            y.from.midpoint(y.to),
            escaped(self.y)
        )
        .expect("memory");
    }
}

/// A line with its points, and its name at the end, where no other name is.
fn series(
    svg: &mut String,
    (name, points, colour): (&str, &[(f64, f64)], &str),
    (x, y): (Scale, Scale),
    labels: &mut Vec<f64>,
) {
    let mut path = String::new();
    for (place, (px, py)) in points.iter().enumerate() {
        let command = if place == 0 { 'M' } else { 'L' };
        write!(path, "{command}{:.1} {:.1}", x.place(*px), y.place(*py)).expect("memory");
    }
    writeln!(svg, "<path stroke=\"{colour}\" d=\"{path}\"/>").expect("memory");
    let shown = if points.len() > MARKED {
        0
    } else {
        points.len()
    };
    for (px, py) in &points[..shown] {
        let (cx, cy) = (x.place(*px), y.place(*py));
        writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\">\
             <title>{}: {px} → {py:.3}</title></circle>",
            escaped(name)
        )
        .expect("memory");
    }
    let (end_x, end_y) = points[points.len() - 1];
    let mut at = y.place(end_y) + 4.0;
    while labels.iter().any(|label| (label - at).abs() < 14.0) {
        at += 2.0;
    }
    labels.push(at);
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{at:.1}\" style=\"fill:{colour}\">{}</text>",
        x.place(end_x) + 10.0,
        escaped(name)
    )
    .expect("memory");
}

fn tick(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.0} M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.0},000", value / 1e3)
    } else {
        // Steps are products: 3 × 0.2 is not quite 0.6.
        ((value * 1e6).round() / 1e6).to_string()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
