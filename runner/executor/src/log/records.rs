//! From what a guest writes to CRI records: `<time> stdout|stderr F|P <content>`, one to a line.
//!
//! The rules are those of `wherry_runner/logs/records.py` (LogWriter): `P` marks content that does not end with a newline, a piece
//! of a line longer than MAX_LINE_BYTES or a line that the guest has not ended. Readers join them, so that what was written
//! comes out byte for byte.

use memchr::memchr;

use super::timestamp::Timestamp;

/// Longer lines are written in pieces: containerd's default (`max_container_log_line_size`).
const MAX_LINE_BYTES: usize = 16 << 10;

/// Records are given on in blocks of about this size, so that a large write needs no large buffer.
const BLOCK_BYTES: usize = 64 << 10;

const FULL: &[u8] = b" F ";
const PARTIAL: &[u8] = b" P ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout",
            Stream::Stderr => b" stderr",
        }
    }
}

/// Makes records, and holds the beginning of a line of each stream until its end is written.
#[derive(Default)]
pub struct Records {
    timestamp: Timestamp,
    block: Vec<u8>,
    held: [Vec<u8>; 2],
}

impl Records {
    /// Give the records of what was written at once to `out`, in blocks of whole records.
    pub fn add(&mut self, stream: Stream, mut data: &[u8], now: u64, mut out: impl FnMut(&[u8])) {
        self.timestamp.format(now);
        while let Some(end) = memchr(b'\n', data) {
            self.add_part(stream, &data[..end], true, now, &mut out);
            data = &data[end + 1..];
        }
        if !data.is_empty() {
            self.add_part(stream, data, false, now, &mut out);
        }
        self.give(&mut out);
    }

    /// Give what is held as partial records.
    pub fn add_held(&mut self, now: u64, mut out: impl FnMut(&[u8])) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = std::mem::take(&mut self.held[stream as usize]);
            if !held.is_empty() {
                self.record(stream, PARTIAL, &held, &[], now, &mut out);
            }
            self.hold(stream, held);
        }
        self.give(&mut out);
    }

    /// Whether the beginning of a line is held.
    pub fn holds(&self) -> bool {
        self.held.iter().any(|held| !held.is_empty())
    }

    /// Add a part of a line, which continues what is held and is the line's last if it `ends`.
    fn add_part(&mut self, stream: Stream, mut part: &[u8], ends: bool, now: u64, out: &mut impl FnMut(&[u8])) {
        let mut held = std::mem::take(&mut self.held[stream as usize]);
        let room = MAX_LINE_BYTES - held.len();
        if part.len() > room && !held.is_empty() {
            self.record(stream, PARTIAL, &held, &part[..room], now, out);
            held.clear();
            part = &part[room..];
        }
        while part.len() > MAX_LINE_BYTES {
            self.record(stream, PARTIAL, &part[..MAX_LINE_BYTES], &[], now, out);
            part = &part[MAX_LINE_BYTES..];
        }
        if ends {
            self.record(stream, FULL, &held, part, now, out);
            self.hold(stream, held);
        } else {
            held.extend_from_slice(part);
            self.held[stream as usize] = held;
        }
    }

    /// One record, of content in two pieces.
    fn record(
        &mut self,
        stream: Stream,
        tag: &[u8],
        first: &[u8],
        second: &[u8],
        now: u64,
        out: &mut impl FnMut(&[u8]),
    ) {
        self.block.extend_from_slice(self.timestamp.format(now));
        for piece in [stream.name(), tag, first, second, b"\n"] {
            self.block.extend_from_slice(piece);
        }
        if self.block.len() >= BLOCK_BYTES {
            self.give(out);
        }
    }

    fn give(&mut self, out: &mut impl FnMut(&[u8])) {
        if !self.block.is_empty() {
            out(&self.block);
            self.block.clear();
        }
    }

    /// Nothing, in a buffer that was used before.
    fn hold(&mut self, stream: Stream, mut buffer: Vec<u8>) {
        buffer.clear();
        self.held[stream as usize] = buffer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "1970-01-01T00:00:00.000000007Z";

    #[derive(Default)]
    struct Written {
        records: Records,
        text: Vec<u8>,
        largest: usize,
    }

    impl Written {
        fn add(&mut self, stream: Stream, data: impl AsRef<[u8]>) {
            self.records.add(stream, data.as_ref(), 7, |block| {
                self.text.extend_from_slice(block);
                self.largest = self.largest.max(block.len());
            });
        }

        fn flush(&mut self) {
            self.records.add_held(7, |block| self.text.extend_from_slice(block));
        }

        /// (stream and tag, content) of all records so far.
        fn lines(&self) -> Vec<(String, String)> {
            let text = String::from_utf8(self.text.clone()).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            let line = |line: &str| {
                let rest = line.strip_prefix(TIME).unwrap();
                (rest[1..9].to_string(), rest[10..].to_string())
            };
            text.lines().map(line).collect()
        }
    }

    fn expected(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        lines
            .iter()
            .map(|(tag, content)| (tag.to_string(), content.to_string()))
            .collect()
    }

    #[test]
    fn whole_lines_are_records_at_once() {
        let mut written = Written::default();
        written.add(Stream::Stdout, "one\n\ntwo\n");
        written.add(Stream::Stderr, "three\n");
        assert_eq!(
            written.lines(),
            expected(&[
                ("stdout F", "one"),
                ("stdout F", ""),
                ("stdout F", "two"),
                ("stderr F", "three")
            ])
        );
    }

    #[test]
    fn a_line_is_held_until_its_end() {
        let mut written = Written::default();
        written.add(Stream::Stdout, "on");
        written.add(Stream::Stderr, "other\n");
        assert!(written.records.holds());
        written.add(Stream::Stdout, "e\nrest");
        assert_eq!(written.lines(), expected(&[("stderr F", "other"), ("stdout F", "one")]));
        written.flush();
        assert_eq!(written.lines()[2..], expected(&[("stdout P", "rest")]));
        assert!(!written.records.holds());
        written.add(Stream::Stdout, "\n");
        assert_eq!(written.lines()[3..], expected(&[("stdout F", "")]));
    }

    #[test]
    fn long_lines_are_written_in_pieces() {
        let line = "x".repeat(MAX_LINE_BYTES);
        let mut written = Written::default();
        written.add(Stream::Stdout, format!("{line}\n"));
        written.add(Stream::Stdout, format!("{line}yz\n"));
        written.add(Stream::Stdout, "a");
        written.add(Stream::Stdout, format!("{line}\n"));
        let shifted = format!("a{}", &line[1..]);
        assert_eq!(
            written.lines(),
            expected(&[
                ("stdout F", &line),
                ("stdout P", &line),
                ("stdout F", "yz"),
                ("stdout P", &shifted),
                ("stdout F", "x")
            ])
        );
    }

    #[test]
    fn a_full_hold_waits_to_see_whether_the_line_ends() {
        let line = "x".repeat(MAX_LINE_BYTES);
        let mut written = Written::default();
        written.add(Stream::Stdout, &line);
        assert!(written.text.is_empty());
        written.add(Stream::Stdout, "\n");
        assert_eq!(written.lines(), expected(&[("stdout F", &line)]));
        written.add(Stream::Stdout, &line);
        written.add(Stream::Stdout, "y");
        assert_eq!(written.lines()[1..], expected(&[("stdout P", &line)]));
    }

    #[test]
    fn a_large_write_needs_no_large_buffer() {
        let mut written = Written::default();
        written.add(Stream::Stdout, "x".repeat(1 << 20));
        written.add(Stream::Stdout, "line\n".repeat(100_000));
        written.flush();
        assert!(written.largest < BLOCK_BYTES + MAX_LINE_BYTES + 64);
        assert!(
            written
                .records
                .held
                .iter()
                .all(|held| held.capacity() <= 2 * MAX_LINE_BYTES)
        );
        let content: usize = written.lines().iter().map(|(_, content)| content.len()).sum();
        assert_eq!(content, (1 << 20) + 400_000);
    }

    #[test]
    fn any_cut_of_the_same_text_reads_the_same() {
        let text = format!(
            "a\n\n{}\nb{}",
            "x".repeat(2 * MAX_LINE_BYTES),
            "y".repeat(MAX_LINE_BYTES + 1)
        );
        for size in [1, 7, 4_096, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 100_000] {
            let mut written = Written::default();
            for piece in text.as_bytes().chunks(size) {
                written.add(Stream::Stderr, piece);
            }
            written.flush();
            let joined: String = written
                .lines()
                .iter()
                .map(|(tag, content)| format!("{content}{}", if tag == "stderr F" { "\n" } else { "" }))
                .collect();
            assert!(joined == text, "in pieces of {size} bytes");
        }
    }
}
