//! From wasmtime's error text to a message that a user can read: what happened first, then the wasm backtrace.
//!
//! In the words of `wherry_runner/execution/trap_text.py`, so that a trap reads the same whichever executor ran it.

/// A stack overflow has twenty, all alike; the status cuts a message at 1,024 characters anyway.
const MAX_FRAMES: usize = 12;

const IN_GUEST: &str = "error while executing at wasm backtrace";

/// Whether an error's text speaks of a trap.
///
/// A host call that the guest made with nonsense (a misaligned pointer) ends it just as a trap does, with a backtrace.
pub fn is_trap(text: &str) -> bool {
    text.starts_with(IN_GUEST) || text.lines().any(|line| cause(line).starts_with("wasm trap: "))
}

/// E.g. ``wasm trap: wasm `unreachable` instruction executed`` and, below, `  at hello.wasm!main`.
///
/// Text in another form than wasmtime's is returned as it is, trimmed.
pub fn readable(text: &str) -> String {
    let (mut what, mut fault) = ("", "");
    let mut causes = Vec::new();
    let mut frames = Vec::new();
    for line in text.lines() {
        let said = cause(line);
        if let Some(trap) = said.strip_prefix("wasm trap: ") {
            what = trap;
        } else if said.starts_with("memory fault at ") {
            fault = said;
        } else if let Some(place) = frame(line) {
            frames.push(place);
        } else if !frames.is_empty() && !matches!(line.trim(), "" | "Caused by:") {
            causes.push(said);
        }
    }
    let mut message = if !what.is_empty() && !fault.is_empty() {
        format!("wasm trap: {what} ({fault})")
    } else if !what.is_empty() {
        format!("wasm trap: {what}")
    } else if !causes.is_empty() {
        format!("a host call failed: {}", causes.join(": "))
    } else {
        return text.trim().to_string();
    };
    for place in frames.iter().take(MAX_FRAMES) {
        message += "\n  at ";
        message += place;
    }
    if frames.len() > MAX_FRAMES {
        message += &format!("\n  and {} more", frames.len() - MAX_FRAMES);
    }
    message
}

/// A line without its indent, and without its number among several causes.
fn cause(line: &str) -> &str {
    let line = line.trim_start();
    match line.split_once(": ") {
        Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => rest.trim_start(),
        _ => line,
    }
}

/// `hello.wasm!main` of a line `    0:   0x3eb4 - hello.wasm!main`.
fn frame(line: &str) -> Option<&str> {
    let (number, rest) = line.trim_start().split_once(':')?;
    let (offset, place) = rest.trim_start().split_once(" - ")?;
    let numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (numbered && offset.starts_with("0x")).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNREACHABLE: &str = "error while executing at wasm backtrace:\n    0:   0x3eb4 - hello.wasm!abort\n    \
        1:   0x3f00 - <unknown>!<wasm function 54>\n\nCaused by:\n    wasm trap: wasm `unreachable` instruction executed";
    const FAULT: &str = "error while executing at wasm backtrace:\n    0:     0x29 - a!main\n\nCaused by:\n    \
        0: memory fault at wasm address 0xfffffff0 in linear memory of size 0x10000\n    \
        1: wasm trap: out of bounds memory access";
    const HOST: &str = "error while executing at wasm backtrace:\n    0:     0x29 - a!main\n\nCaused by:\n    \
        Pointer not aligned to 4: Region { start: 1, len: 4 }";
    const HOSTS: &str = "error while executing at wasm backtrace:\n    0:     0x29 - a!main\n\nCaused by:\n    \
        0: failed to call `get-random-bytes`\n    1: requested len 99 exceeds limit 9";

    #[test]
    fn what_happened_comes_first_and_then_where() {
        let expected = "wasm trap: wasm `unreachable` instruction executed\n  at hello.wasm!abort\n  at <unknown>!<wasm function 54>";
        assert_eq!(readable(UNREACHABLE), expected);
        assert!(is_trap(UNREACHABLE));
    }

    #[test]
    fn a_fault_names_its_address() {
        let expected = "wasm trap: out of bounds memory access (memory fault at wasm address 0xfffffff0 in linear memory \
            of size 0x10000)\n  at a!main";
        assert_eq!(readable(FAULT), expected);
    }

    #[test]
    fn a_host_call_made_with_nonsense_is_named() {
        let expected = "a host call failed: Pointer not aligned to 4: Region { start: 1, len: 4 }\n  at a!main";
        assert_eq!(readable(HOST), expected);
        assert!(is_trap(HOST));
        let expected =
            "a host call failed: failed to call `get-random-bytes`: requested len 99 exceeds limit 9\n  at a!main";
        assert_eq!(readable(HOSTS), expected);
    }

    #[test]
    fn deep_backtraces_are_cut() {
        let frames: String = (0..20)
            .map(|number| format!("{number:>5}: {number:#8x} - a!f\n"))
            .collect();
        let message = readable(&format!(
            "{IN_GUEST}:\n{frames}\nCaused by:\n    wasm trap: call stack exhausted"
        ));
        assert_eq!(
            message,
            format!(
                "wasm trap: call stack exhausted{}\n  and 8 more",
                "\n  at a!f".repeat(12)
            )
        );
    }

    #[test]
    fn other_text_stays_as_it_is() {
        assert_eq!(readable(" unknown import: `a::b` \n"), "unknown import: `a::b`");
        assert!(!is_trap("unknown import: `a::b`"));
    }
}
