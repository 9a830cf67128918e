//! What the trial showed: rows, charts, and one line for an operator.
//!
//! It refuses to know how the trial ran. Invariant: the line names every kind of loss and repetition that
//! was seen, and a growth of memory over the bound; how long something took is for the rows alone.

use super::{
    super::{
        Rig,
        chart::{Axes, Chart},
        report::{Row, Target},
        statistics::{float, median, percentile, slope},
    },
    Sample, Trial,
};

/// The last fifth of the samples against the first may have so many times the memory.
const FLAT: f64 = 1.05;

pub fn rows(rig: &mut Rig, trial: &Trial) {
    let clients = trial.clients;
    rig.report.note(format!(
        "{clients} clients opened in {:.1} s, of which the server computed {:.1} s and the load client {:.1} s; then {:.1} minutes of {:.1} changes/s.",
        trial.opened.as_secs_f64(),
        trial.opening_cpu[0].as_secs_f64(),
        trial.opening_cpu[1].as_secs_f64(),
        trial.took.as_secs_f64() / 60.0,
        float(trial.changes) / trial.took.as_secs_f64()
    ));
    let (steady, restarted) = (&trial.steady, &trial.restarted);
    for (what, figure) in [
        ("streams that ended", float(steady.streams)),
        ("latest states lost", float(steady.states)),
        ("older states after newer ones", count(steady.backwards)),
        ("resources sent to who held them", count(steady.needless)),
    ] {
        none(rig, format!("{clients} clients: {what}"), figure);
    }
    latency(rig, trial);
    memory(rig, trial);
    restart(rig, trial);
    for (what, figure) in [
        ("resources sent to who held them", count(restarted.needless)),
        ("older states after newer ones", count(restarted.backwards)),
        ("latest states lost", float(restarted.states)),
    ] {
        none(rig, format!("restart: {what}"), figure);
    }
}

fn none(rig: &mut Rig, what: String, figure: f64) {
    let row = Row::new(7, what, "", figure);
    rig.report.add(row.target(Target::AtMost(0.0)));
}

fn plain(rig: &mut Rig, what: &str, unit: &'static str, figure: f64) {
    rig.report.add(Row::new(7, what, unit, figure));
}

fn latency(rig: &mut Rig, trial: &Trial) {
    let p50 = Row::new(
        7,
        "write begun → a client that watches it has it, p50",
        "ms",
        median(&trial.lags),
    );
    let (p10, p99) = (percentile(&trial.lags, 10), percentile(&trial.lags, 99));
    rig.report.add(p50.spread(p10, p99));
    let p99 = trial.samples.iter().map(|sample| sample.p99);
    plain(
        rig,
        "the same, p99 of the worst stretch",
        "ms",
        p99.fold(0.0, f64::max),
    );
    let share = trial.cpu.as_secs_f64() / trial.took.as_secs_f64() * 100.0;
    plain(rig, "CPU of the server", "%", share);
}

fn memory(rig: &mut Rig, trial: &Trial) {
    let (first, last) = ends(&trial.samples);
    plain(
        rig,
        "memory when all had connected",
        "MiB",
        mebibytes(trial.cold),
    );
    plain(
        rig,
        "memory, median of the last fifth of the time",
        "MiB",
        last,
    );
    let grown = Row::new(
        7,
        "memory, the last fifth against the first",
        "",
        last / first,
    );
    rig.report.add(grown.target(Target::AtMost(FLAT)));
    let slope = drift(&trial.samples);
    plain(rig, "slope of memory over the second half", "MiB/h", slope);
}

fn restart(rig: &mut Rig, trial: &Trial) {
    let back = Row::new(
        7,
        "kill -9 and restart: until all were answered",
        "s",
        trial.back.answered.as_secs_f64(),
    );
    rig.report.add(back.target(Target::AtMost(5.0)));
    let ready = trial.back.ready.as_secs_f64();
    plain(rig, "restart: until the server was ready", "s", ready);
    let computed = trial.back.cpu.as_secs_f64();
    plain(rig, "restart: CPU of the server by then", "s", computed);
    let resent = trial.back.traffic;
    plain(
        rig,
        "restart: resources sent by then",
        "",
        count(resent.resources),
    );
    plain(
        rig,
        "restart: sent in all by then",
        "kB",
        count(resent.bytes) / 1e3,
    );
}

/// In one line, what an operator would say.
pub fn in_a_line(trial: &Trial) -> String {
    let (first, last) = ends(&trial.samples);
    let again = trial.restarted.streams.saturating_sub(trial.clients);
    let failed: Vec<&str> = [
        (trial.steady.streams > 0, "streams ended"),
        (
            trial.steady.states + trial.restarted.states > 0,
            "final states were lost",
        ),
        (
            trial.steady.backwards + trial.restarted.backwards > 0,
            "a client went back in time",
        ),
        (
            trial.steady.needless + trial.restarted.needless > 0,
            "known resources were re-sent",
        ),
        (last > first * FLAT, "memory grew"),
        (again > 0, "streams ended again after the restart"),
    ]
    .into_iter()
    .filter_map(|(failed, what)| failed.then_some(what))
    .collect();
    if failed.is_empty() {
        "Verdict of the trial: no stream ended, no state was lost, memory stayed flat, and nothing known was sent again.".into()
    } else {
        format!("Verdict of the trial: failed; {}.", failed.join(", "))
    }
}

/// The median memory of the first and of the last fifth.
fn ends(samples: &[Sample]) -> (f64, f64) {
    let memory: Vec<_> = samples.iter().map(|sample| sample.mebibytes).collect();
    let fifth = (memory.len() / 5).max(1);
    (
        median(&memory[..fifth]),
        median(&memory[memory.len() - fifth..]),
    )
}

/// In MiB an hour, over the second half.
fn drift(samples: &[Sample]) -> f64 {
    let later = &samples[samples.len() / 2..];
    let points: Vec<_> = later
        .iter()
        .map(|s| (s.minutes / 60.0, s.mebibytes))
        .collect();
    slope(&points)
}

pub fn charts(rig: &mut Rig, samples: &[Sample]) {
    let line = |of: fn(&Sample) -> f64| samples.iter().map(|s| (s.minutes, of(s))).collect();
    let chart = |title: &str, y, series| Chart {
        title: title.into(),
        axes: Axes::Linear,
        x: "minutes",
        y,
        series,
    };
    rig.charts.push((
        "soak-memory",
        chart(
            "The trial: resident memory of the server",
            "MiB",
            vec![("memory".into(), line(|sample| sample.mebibytes))],
        ),
    ));
    rig.charts.push((
        "soak-propagation",
        chart(
            "The trial: write begun → a client that watches it has it",
            "ms",
            vec![
                ("p50".into(), line(|sample| sample.p50)),
                ("p99".into(), line(|sample| sample.p99)),
            ],
        ),
    ));
}

#[allow(clippy::cast_precision_loss)]
fn count(count: u64) -> f64 {
    count as f64
}

pub fn mebibytes(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 20)
}
