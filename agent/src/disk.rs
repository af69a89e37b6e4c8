//! Files that survive power cuts: written whole, readable by their owner only, set aside when damaged.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a folder is not fit to hold keys.
#[derive(Debug, thiserror::Error)]
pub enum UnsafeFolder {
    /// It is a symbolic link.
    #[error("{0} is a symbolic link: name the folder itself")]
    Symlink(PathBuf),
    /// It is no folder.
    #[error("{0} is not a folder")]
    NotAFolder(PathBuf),
    /// Somebody else owns it.
    #[error("{path} belongs to user {owner}: run as that user, or chown it")]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
    },
    /// Others may write in it or beside it.
    #[error("{0} may be written by other users: chmod go-w it")]
    Writable(PathBuf),
    /// Another agent has it.
    #[error("{0} is used by another running agent: --take-over replaces it")]
    InUse(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes `path` a folder that only its owner can look into, or says why it cannot be trusted.
pub(crate) fn private_folder(path: &Path) -> Result<(), UnsafeFolder> {
    let failed = |source| UnsafeFolder::Io { path: path.to_owned(), source };
    if let Some(parent) = path.parent().filter(|parent| parent.is_dir()) {
        let mode = fs::metadata(parent).map_err(failed)?.mode();
        if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
            return Err(UnsafeFolder::Writable(parent.to_owned()));
        }
    }
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
            fs::symlink_metadata(path).map_err(failed)?
        }
        Err(why) => return Err(failed(why)),
    };
    if found.file_type().is_symlink() {
        return Err(UnsafeFolder::Symlink(path.to_owned()));
    }
    if !found.is_dir() {
        return Err(UnsafeFolder::NotAFolder(path.to_owned()));
    }
    let me = rustix::process::geteuid();
    if !me.is_root() && found.uid() != me.as_raw() {
        return Err(UnsafeFolder::Owner { path: path.to_owned(), owner: found.uid() });
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(UnsafeFolder::Writable(path.to_owned()));
    }
    if found.mode() & OPEN_TO_OTHERS != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Holds `folder` for this process until the answer is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, UnsafeFolder> {
    let failed = |source| UnsafeFolder::Io { path: folder.to_owned(), source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(folder.join(LOCK))
        .map_err(failed)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| UnsafeFolder::InUse(folder.to_owned()))?;
    Ok(file)
}

/// Whether `lock`, which another process holds as well, is the lock of `folder`.
pub(crate) fn is_lock_of(lock: &File, folder: &Path) -> bool {
    let (Ok(held), Ok(file)) = (lock.metadata(), fs::metadata(folder.join(LOCK))) else {
        return false;
    };
    (held.dev(), held.ino()) == (file.dev(), file.ino())
}

/// Replaces the file at `path` by `bytes`, mode 0600: after a power cut it is the old or the new
/// one, never a mixture.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name =
        path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = folder.join(format!(".{name}.{:08x}", rand::random::<u32>()));
    let written = (|| {
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The rename may have happened; then there is nothing to remove.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The file's bytes; none when there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why),
    }
}

/// Sets the time at which the file at `path` was last written to now; where there is none, nothing.
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.set_modified(std::time::SystemTime::now()),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why),
    }
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Moves a damaged file out of the way, so that it can be looked at and is not met again.
pub(crate) fn set_aside(path: &Path, why: &str) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let moved = fs::rename(path, &aside);
    tracing::error!(
        file = %path.display(), moved_to = %Path::new(&aside).display(), moved = moved.is_ok(),
        why, "a damaged file was set aside"
    );
}

const LOCK: &str = "agent.lock";
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const OPEN_TO_OTHERS: u32 = 0o077;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_private_or_refused() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let fresh = base.path().join("fresh");
        private_folder(&fresh).expect("made");
        assert_eq!(fs::metadata(&fresh).expect("there").mode() & 0o777, 0o700);

        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("chmod");
        private_folder(&fresh).expect("tightened");
        assert_eq!(fs::metadata(&fresh).expect("there").mode() & 0o777, 0o700);

        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(matches!(private_folder(&fresh), Err(UnsafeFolder::Writable(_))));

        let link = base.path().join("link");
        std::os::unix::fs::symlink(&fresh, &link).expect("link");
        assert!(matches!(private_folder(&link), Err(UnsafeFolder::Symlink(_))));
    }

    #[test]
    fn a_write_replaces_whole_and_private() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let path = base.path().join("file");
        write(&path, b"one").expect("written");
        write(&path, b"two").expect("replaced");
        assert_eq!(read(&path).expect("readable").as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(base.path()).expect("listed").count(), 1, "nothing left behind");
    }

    #[test]
    fn a_folder_is_held_by_one() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let held = lock(base.path()).expect("free");
        assert!(matches!(lock(base.path()), Err(UnsafeFolder::InUse(_))));
        drop(held);
        lock(base.path()).expect("free again");
    }
}
