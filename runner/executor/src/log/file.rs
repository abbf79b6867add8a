//! The log's file, and the older one behind it.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, fstat, openat, renameat};
use rustix::io::Errno;

use crate::allowance::Allowance;

/// A file that is moved to `.1` when it is as large as it may be; one older file is kept.
pub struct LogFile {
    folder: OwnedFd,
    name: CString,
    rotated: CString,
    allowance: Allowance,
    /// None while it can't be opened again after a rotation.
    file: Option<OwnedFd>,
    size: u64,
    /// The last write failed, and may have left a piece of a record.
    torn: bool,
}

impl LogFile {
    /// Create or continue the file.
    pub fn open(folder: OwnedFd, name: &str, allowance: Allowance) -> io::Result<LogFile> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(io::Error::other(format!("{name:?} is no name for a log")));
        }
        let (name, rotated) = (CString::new(name)?, CString::new(format!("{name}.1"))?);
        let mut log = LogFile {
            folder,
            name,
            rotated,
            allowance,
            file: None,
            size: 0,
            torn: false,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Append whole records. If the disk is full they are lost.
    pub fn append(&mut self, records: &[u8]) {
        self.torn = self.try_append(records).is_err();
    }

    fn try_append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + records.len() as u64 > self.allowance.bytes() {
            self.file = None;
            match renameat(&self.folder, &self.name, &self.folder, &self.rotated) {
                Ok(()) | Err(Errno::NOENT) => self.size = 0,
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.torn && self.size > 0 {
            self.write_all(b"\n")?;
        }
        self.write_all(records)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder, &self.name, flags, Mode::RUSR | Mode::WUSR)?;
        self.size = fstat(&file)?.st_size as u64;
        self.file = Some(file);
        Ok(())
    }

    fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        while !data.is_empty() {
            match rustix::io::write(file, data) {
                Ok(count) => {
                    self.size += count as u64;
                    data = &data[count..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A folder of this test's own, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("wherry-log-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn log(&self, allowance: Allowance) -> LogFile {
            let folder = OwnedFd::from(fs::File::open(&self.0).unwrap());
            LogFile::open(folder, "a.log", allowance).unwrap()
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_full_file_is_moved_and_one_older_is_kept() {
        let folder = Folder::new("rotates");
        let mut log = folder.log(Allowance::of(10));
        for record in ["first\n", "2nd\n", "third\n", "4th\n", "a very long fifth\n", "6\n"] {
            log.append(record.as_bytes());
        }
        assert_eq!(folder.read("a.log"), "6\n");
        assert_eq!(folder.read("a.log.1"), "a very long fifth\n");
    }

    #[test]
    fn an_older_file_is_continued() {
        let folder = Folder::new("continues");
        folder.log(Allowance::of(10)).append(b"first\n");
        let mut log = folder.log(Allowance::of(10));
        log.append(b"2nd\n");
        log.append(b"third\n");
        assert_eq!(
            (folder.read("a.log.1"), folder.read("a.log")),
            ("first\n2nd\n".into(), "third\n".into())
        );
    }

    #[test]
    fn a_failed_write_makes_a_gap_and_no_more() {
        let folder = Folder::new("gap");
        let mut log = folder.log(Allowance::of(1 << 20));
        log.append(b"first\n");
        let full = OwnedFd::from(fs::File::options().write(true).open("/dev/full").unwrap());
        let file = log.file.replace(full);
        log.append(b"lost\n");
        log.file = file;
        log.append(b"third\n");
        assert_eq!(folder.read("a.log"), "first\n\nthird\n");
    }

    #[test]
    fn a_file_that_somebody_removed_is_made_anew() {
        let folder = Folder::new("removed");
        let mut log = folder.log(Allowance::of(10));
        fs::remove_file(folder.0.join("a.log")).unwrap();
        for record in ["first\n", "second\n"] {
            log.append(record.as_bytes());
        }
        assert_eq!(folder.read("a.log"), "second\n");
    }

    #[test]
    fn names_stay_in_the_folder() {
        let folder = Folder::new("names");
        for name in ["", ".", "..", "../a", "a/b", "a\0b"] {
            let descriptor = OwnedFd::from(fs::File::open(&folder.0).unwrap());
            assert!(LogFile::open(descriptor, name, Allowance::of(10)).is_err(), "{name:?}");
        }
    }
}
