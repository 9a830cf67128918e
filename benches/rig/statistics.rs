//! Percentiles and slopes.
//!
//! It refuses to know what the numbers mean. Invariant: nothing is asked of an empty sample.

use std::time::Duration;

/// Of an unsorted sample, 0 to 100.
pub fn percentile(sample: &[f64], percent: usize) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

pub fn median(sample: &[f64]) -> f64 {
    percentile(sample, 50)
}

pub fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

/// Of the straight line through the points with the least squares.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = float(points.len());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    above / below
}

/// The exponent with which y grows with x.
pub fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    slope(&logs)
}

/// Counts here are far below the 52 bits that stay exact.
#[allow(clippy::cast_precision_loss)]
pub fn float(count: usize) -> f64 {
    count as f64
}
