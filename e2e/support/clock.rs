//! A wall clock of a process's own, which can be set while the process runs and while it does not.
//!
//! A small library, loaded before the C library's, adds what a file says to the time of day and leaves every other
//! clock alone.

use std::{fs, path::Path};

use tokio::process::Command;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (result != 0 || id != CLOCK_REALTIME) return result;
    char text[32] = {0};
    int file = open(getenv("TEST_CLOCK"), O_RDONLY);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
        close(file);
    }
    return result;
}
"#;

/// Builds the library in a folder, from which [`through`] loads it.
pub fn build(folder: &Path) {
    let source = folder.join("clock.c");
    fs::write(&source, SOURCE).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(folder.join("clock.so"))
        .arg(source)
        .status();
    assert!(built.unwrap().success());
}

pub fn set(folder: &Path, seconds: i64) {
    let new = folder.join("clock.new");
    fs::write(&new, seconds.to_string()).unwrap();
    fs::rename(new, folder.join("clock")).unwrap();
}

/// Where a library was built, the command goes by its clock.
pub fn through(folder: &Path, command: &mut Command) {
    let library = folder.join("clock.so");
    if library.exists() {
        command
            .env("LD_PRELOAD", library)
            .env("TEST_CLOCK", folder.join("clock"));
    }
}
