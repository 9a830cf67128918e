//! A state's file: read at the start, replaced as a whole.
//!
//! A new state goes to a file beside the old one, is forced to the disk, takes the old one's name, and the
//! directory is forced to the disk as well: so whoever opens the name finds one or the other. Where that fails, on a
//! full disk say, the new file is removed. Only the stamp, which says until when the state was true, is written in
//! place: it is short and near the beginning, so that it is never half written. A lock file beside it keeps other
//! processes from writing; the kernel ends the lock with the process. Source: rename(2), fsync(2), flock(2).

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Identity, Picture, Restored,
    clock::Stamp,
    codec::{self, DecodeError},
};

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not used: {source}; it is kept as {aside}", path = path.display(), aside = aside.display())]
    Decode {
        path: PathBuf,
        aside: PathBuf,
        source: DecodeError,
    },
    #[error(
        "{path} is not used: it is of registry {found}; it is kept as {aside}",
        path = path.display(), aside = aside.display()
    )]
    Other {
        path: PathBuf,
        aside: PathBuf,
        found: String,
    },
}

/// The right to write a registry's state.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Where a registry's state is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    pub fn new(directory: &Path, registry: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: format!("{registry}.state"),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.directory.join(format!("{}.{ending}", self.name))
    }

    /// Takes the right to write the state, until the lock is dropped.
    pub fn lock(&self) -> io::Result<Lock> {
        fs::create_dir_all(&self.directory)?;
        let path = self.beside("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut owner);
                return Err(io::Error::other(format!(
                    "another MeshKeeper ({}) writes it: it holds the lock of {}; give each server its own `state.directory`",
                    owner.trim(),
                    path.display()
                )));
            }
            // Some network file systems know no locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let owner = format!("process {} on {}\n", std::process::id(), host.trim());
        // The lock stands without it, on a full disk say.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(owner.as_bytes()));
        Ok(Lock { _file: file })
    }

    /// Replaces the file, which lives through the end of the process and of the machine then.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let new = self.beside("new");
        let replaced = Self::create(&new, bytes).and_then(|()| fs::rename(&new, self.path()));
        if replaced.is_err() {
            // Half a file would only take space from the next attempt.
            let _ = fs::remove_file(&new);
        }
        replaced?;
        File::open(&self.directory)?.sync_all()
    }

    fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // Payloads may hold what not everybody should read.
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Says that the state is still true.
    pub fn touch(&self, stamp: &Stamp) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path())?;
        file.write_all_at(&codec::stamp(stamp), codec::STAMP.start as u64)
    }

    /// Puts away a file that cannot be used, in place of the last such one.
    fn set_aside(&self) -> PathBuf {
        let aside = self.beside("bad");
        // Where that fails the next write replaces it.
        let _ = fs::rename(self.path(), &aside);
        aside
    }
}

/// Writes the state of a registry; its size in bytes.
pub fn write(
    directory: &Path,
    identity: &Identity,
    written: &Stamp,
    picture: &Picture,
) -> io::Result<usize> {
    let bytes = codec::encode(identity, written, picture);
    Place::new(directory, &identity.name).write(&bytes)?;
    Ok(bytes.len())
}

/// The state that the registry has there, if it has one.
pub fn read(directory: &Path, identity: &Identity) -> Result<Option<Restored>, Error> {
    let place = Place::new(directory, &identity.name);
    let path = place.path();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path, source }),
    };
    let (of, stamp, restored) = codec::decode(&bytes).map_err(|source| Error::Decode {
        path: path.clone(),
        aside: place.set_aside(),
        source,
    })?;
    if !identity.accepts(&of) {
        return Err(Error::Other {
            path,
            aside: place.set_aside(),
            found: format!("{} at {}{} as {}", of.name, of.connect, of.root, of.format),
        });
    }
    Ok(Some(restored.since(&stamp, &Stamp::now())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, connect: &str) -> Identity {
        Identity {
            name: name.into(),
            connect: connect.into(),
            root: "/services".into(),
            format: "auto".into(),
        }
    }

    fn written(folder: &Path, of: &Identity) {
        write(folder, of, &Stamp::default(), &Picture::default()).unwrap();
    }

    #[test]
    fn what_was_written_is_read_and_without_a_file_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("made/when/missing");
        let main = identity("main", "zk-1:2181,zk-2:2181");
        assert!(read(&directory, &main).unwrap().is_none());
        written(&directory, &main);
        let restored = read(&directory, &main).unwrap().unwrap();
        assert!(restored.away > 1_600_000_000_000, "{}", restored.away);
        let place = Place::new(&directory, "main");
        place.touch(&Stamp::now()).unwrap();
        let restored = read(&directory, &main).unwrap().unwrap();
        assert!(restored.away < 10_000, "{}", restored.away);
        // Members of an ensemble come and go.
        let moved = identity("main", "zk-2:2181,zk-3:2181");
        assert!(read(&directory, &moved).unwrap().is_some());
    }

    #[test]
    fn a_broken_file_is_told_of_and_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let main = identity("main", "zk-1:2181");
        written(folder.path(), &main);
        let path = Place::new(folder.path(), "main").path();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = read(folder.path(), &main).unwrap_err().to_string();
        assert!(
            error.contains("checksum") && error.contains("main.state.bad"),
            "{error}"
        );
        assert!(folder.path().join("main.state.bad").exists());
        assert!(read(folder.path(), &main).unwrap().is_none());
    }

    #[test]
    fn a_state_of_another_tree_is_told_of_and_kept_aside() {
        let main = identity("main", "zk-1:2181/mesh");
        let roots = Identity {
            root: "/others".into(),
            ..main.clone()
        };
        for other in [
            identity("main", "zk-1:2181"),
            identity("main", "zk-9:2181/mesh"),
            roots,
        ] {
            let folder = tempfile::tempdir().unwrap();
            written(folder.path(), &other);
            let error = read(folder.path(), &main).unwrap_err().to_string();
            assert!(error.contains("it is of registry main at zk-"), "{error}");
            assert!(folder.path().join("main.state.bad").exists());
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_state_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let main = identity("main", "zk-1:2181");
        written(folder.path(), &main);
        let place = Place::new(folder.path(), "main");
        let before = fs::read(place.path()).unwrap();
        // A device that is always full.
        std::os::unix::fs::symlink("/dev/full", place.beside("new")).unwrap();
        let error = write(folder.path(), &main, &Stamp::now(), &Picture::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(place.path()).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_state_has_one_writer_at_a_time_and_others_learn_which() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path(), "main");
        let lock = place.lock().unwrap();
        let error = place.lock().unwrap_err().to_string();
        let owner = format!("another MeshKeeper (process {} on ", std::process::id());
        assert!(error.starts_with(&owner), "{error}");
        Place::new(folder.path(), "other").lock().unwrap();
        drop(lock);
        place.lock().unwrap();
    }

    #[test]
    fn a_write_that_was_cut_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let main = identity("main", "zk-1:2181");
        written(folder.path(), &main);
        fs::write(folder.path().join("main.state.new"), b"half").unwrap();
        assert!(read(folder.path(), &main).unwrap().is_some());
        // And is no obstacle to the next one.
        written(folder.path(), &main);
        assert!(!folder.path().join("main.state.new").exists());
    }
}
