//! A guest's last word (`Report` in `channel.py`).

use serde::Serialize;

/// PIPE_BUF: a report is written at once or not at all, and never blocks.
const MAX_REPORT_BYTES: usize = 4096;

/// Of a guest that trapped: 128 + SIGABRT, as `wasmtime run` returns it.
pub const TRAP_EXIT_CODE: i32 = 134;

/// Of a module that could not be run at all: the kubelet's code of a container that could not be started.
pub const FAILED_EXIT_CODE: i32 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Exited,
    Trapped,
    OutOfFuel,
    /// It could not be run at all.
    Failed,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub outcome: Outcome,
    pub exit_code: i32,
    pub message: String,
    /// Growing a memory or a table was refused for the limit at least once.
    pub memory_refused: bool,
}

impl Report {
    pub fn exited(exit_code: i32) -> Report {
        Report {
            outcome: Outcome::Exited,
            exit_code: exit_code & 0xff,
            message: String::new(),
            memory_refused: false,
        }
    }

    pub fn failed(message: String) -> Report {
        Report {
            outcome: Outcome::Failed,
            exit_code: FAILED_EXIT_CODE,
            message,
            memory_refused: false,
        }
    }

    /// As it is written, its message cut so that it fits.
    pub fn encode(mut self) -> String {
        self.message
            .truncate(self.message.floor_char_boundary(MAX_REPORT_BYTES / 2));
        loop {
            let text = serde_json::to_string(&self).unwrap_or_default();
            if text.len() <= MAX_REPORT_BYTES {
                return text;
            }
            // Full of characters that JSON escapes.
            self.message
                .truncate(self.message.floor_char_boundary(self.message.len() / 2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_what_the_supervisor_reads() {
        let text = Report {
            memory_refused: true,
            ..Report::exited(300)
        }
        .encode();
        assert_eq!(
            text,
            r#"{"outcome":"exited","exitCode":44,"message":"","memoryRefused":true}"#
        );
    }

    #[test]
    fn a_report_fits_whatever_its_message_is() {
        for message in ["x".repeat(10_000), "\u{1}".repeat(10_000), "ü€".repeat(3_000)] {
            let text = Report::failed(message).encode();
            assert!(text.len() <= MAX_REPORT_BYTES);
            assert!(text.starts_with(r#"{"outcome":"failed","exitCode":128,"message":""#));
        }
    }
}
