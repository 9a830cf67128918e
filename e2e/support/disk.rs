//! A disk of a few MiB for one program, that gets full when a test says so.
//!
//! Where mounting is allowed (root, or a user name space of one's own) it is a file system in a name
//! space that nobody else sees and that goes with its holder, however the test ends; the disk is full
//! then as any is. Elsewhere the program's files may grow no more (`RLIMIT_FSIZE`): its writes fail
//! with another error, at the same places.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

pub enum Disk {
    Mounted(Mounted),
    Limited,
}

/// A tmpfs in a name space that lives as long as the holder.
pub struct Mounted {
    holder: Child,
    at: PathBuf,
    /// What `nsenter` needs to know beside the holder.
    flags: &'static [&'static str],
}

const MEBIBYTES: usize = 8;

impl Disk {
    /// Over the folder `at`, which must exist.
    pub fn mount(at: &Path) -> Self {
        let as_root = || Mounted::start(at, &["--mount"], &["--mount"]);
        let as_other = || {
            let flags = &["--mount", "--user", "--preserve-credentials"];
            Mounted::start(at, &["--mount", "--user", "--map-root-user"], flags)
        };
        as_root()
            .or_else(as_other)
            .map_or(Self::Limited, Self::Mounted)
    }

    /// What a program must be started through to see the disk.
    pub fn through(&self) -> Vec<String> {
        match self {
            Self::Mounted(mounted) => {
                let target = ["--target".to_owned(), mounted.holder.id().to_string()];
                let flags = mounted.flags.iter().map(ToString::to_string);
                let words = ["nsenter".to_owned()].into_iter().chain(target);
                words.chain(flags).chain(["--".to_owned()]).collect()
            }
            Self::Limited => Vec::new(),
        }
    }

    /// Where the disk's files are for those who do not see it.
    pub fn folder(&self, at: &Path) -> PathBuf {
        match self {
            Self::Mounted(mounted) => mounted.seen(),
            Self::Limited => at.to_owned(),
        }
    }

    /// From now on nothing more fits, for `program`.
    pub fn fill(&self, program: u32) {
        match self {
            Self::Mounted(mounted) => {
                let mut filler = fs::File::create(mounted.filler()).expect("a file");
                let zeros = vec![0; 4096];
                while filler.write_all(&zeros).is_ok() {}
            }
            Self::Limited => limit(program, "0:unlimited"),
        }
    }

    /// There is room again; a program that was limited must be started anew.
    pub fn free(&self) {
        if let Self::Mounted(mounted) = self {
            drop(fs::remove_file(mounted.filler()));
        }
    }
}

fn limit(program: u32, size: &str) {
    let set = Command::new("prlimit")
        .args(["--pid", &program.to_string(), &format!("--fsize={size}")])
        .status();
    assert!(set.is_ok_and(|status| status.success()), "prlimit works");
}

impl Mounted {
    fn start(at: &Path, unshare: &[&str], flags: &'static [&'static str]) -> Option<Self> {
        let mount = format!(
            "mount -t tmpfs -o size={MEBIBYTES}m tmpfs '{}' && echo mounted && exec cat",
            at.display()
        );
        let mut holder = Command::new("unshare")
            .args(unshare)
            .args(["--", "sh", "-c", &mount])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let answer = holder.stdout.take().expect("a pipe");
        let read = BufReader::new(answer).read_line(&mut line);
        if read.is_ok() && line == "mounted\n" {
            let at = at.to_owned();
            return Some(Self { holder, at, flags });
        }
        drop(holder.kill());
        drop(holder.wait());
        None
    }

    fn seen(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").expect("an absolute path"))
    }

    fn filler(&self) -> PathBuf {
        self.seen().join("filler")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
