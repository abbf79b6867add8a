//! A guest's log, written by the guest's own process: CRI records, rotated within an allowance, no faster than allowed.

mod file;
mod rate;
mod records;
mod timestamp;

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::allowance::Allowance;
use file::LogFile;
use rate::Rate;
use records::Records;
pub use records::Stream;

/// One run's log. A full disk makes a gap in it; the guest goes on.
pub struct Log {
    records: Records,
    file: LogFile,
    rate: Option<Rate>,
}

impl Log {
    /// Create or continue the file `name` in `folder`.
    pub fn open(folder: OwnedFd, name: &str, allowance: Allowance, rate: Option<u64>) -> Result<Log, String> {
        let file =
            LogFile::open(folder, name, allowance).map_err(|error| format!("the log can't be opened: {error}"))?;
        Ok(Log {
            records: Records::default(),
            file,
            rate: rate.map(Rate::new),
        })
    }

    /// What the guest wrote at once. Whole lines are in the file when this returns; a line's beginning may be held.
    pub fn write(&mut self, stream: Stream, data: &[u8]) {
        self.records
            .add(stream, data, now(), |records| self.file.append(records));
        if let Some(rate) = &mut self.rate {
            rate.wait(data.len());
        }
    }

    /// Write what is held of lines without an end, as partial records. It would be lost if the process were killed, so
    /// this is called whenever the guest waits for something, and at its end.
    pub fn flush(&mut self) {
        if self.records.holds() {
            self.records.add_held(now(), |records| self.file.append(records));
        }
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}
