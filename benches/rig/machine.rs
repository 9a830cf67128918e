//! The machine the rig runs on: cores, limits, and what a process has used.
//!
//! It refuses to know what is measured. Processor time is read from the scheduler's own counts, in
//! nanoseconds, and holds all threads of a process that are still there. Source: `proc(5)`.

use std::{fs, process::Command, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The core of what is measured, and the core of ZooKeeper and the load client.
pub const SERVER: &str = "0";
pub const LOAD: &str = "1";

/// Puts this process, and what it starts from now on, on the core of the load.
/// Must be called before there is a second thread.
pub fn settle() {
    let pid = std::process::id().to_string();
    let moved = Command::new("taskset")
        .args(["-c", "-p", LOAD, &pid])
        .output();
    if !moved.is_ok_and(|output| output.status.success()) {
        println!("There is no second core, or no taskset: everything shares what there is.\n");
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit is allowed");
}

/// Runs the program on the server's core, where there is one.
pub fn on_server_core(program: &str) -> Command {
    if std::thread::available_parallelism().is_ok()
        && fs::metadata("/sys/devices/system/cpu/cpu1").is_ok()
    {
        let mut command = Command::new("taskset");
        command.args(["-c", SERVER, program]);
        return command;
    }
    Command::new(program)
}

/// How many files, and so connections, a process may have open.
pub fn files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().take(3).collect();
    words.join(" ")
}

/// Processor time of all threads of the process.
pub fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let spent = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// Resident memory in bytes.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    let kibibytes: u64 = kibibytes.and_then(|n| n.parse().ok()).expect("a size");
    kibibytes << 10
}
