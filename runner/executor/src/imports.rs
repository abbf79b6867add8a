//! What a component imports and does not get, as a sentence (`missing_imports` in `zygote.py` says the same).

const GIVEN: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// Given too, of WASI 0.2 alone.
const HTTP: &str = "wasi:http/";

/// As many names as a sentence lists.
const LISTED: usize = 5;

/// Why a component with these imports can't be run; none if all is there, as far as names tell. What reaches out is there
/// for all: it is denied when it is used, where nothing is granted.
pub fn missing(names: &[&str], wasi_03: bool) -> Option<String> {
    let given = |name: &&str| {
        let is_02 = name.contains("@0.2.");
        (GIVEN.iter().any(|prefix| name.starts_with(prefix)) && (is_02 || (wasi_03 && name.contains("@0.3."))))
            || (name.starts_with(HTTP) && is_02)
    };
    let unknown: Vec<_> = names.iter().copied().filter(|name| !given(name)).collect();
    let versions = if wasi_03 { "0.2 and 0.3" } else { "0.2" };
    (!unknown.is_empty()).then(|| {
        format!(
            "the component imports {}, which no runner provides: WASI {versions} commands are run",
            unknown[..unknown.len().min(LISTED)].join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let plain = ["wasi:cli/environment@0.2.3", "wasi:sockets/tcp@0.2.12"];
        assert_eq!(missing(&plain, false), None);
        let newer = ["wasi:cli/stdout@0.3.0"];
        let message = missing(&newer, false).unwrap();
        assert!(
            message.contains("imports wasi:cli/stdout@0.3.0, which no runner provides"),
            "{message}"
        );
        assert_eq!(missing(&newer, true), None);
    }

    #[test]
    fn any_component_may_import_http_of_wasi_02() {
        let names = ["wasi:http/types@0.2.0", "wasi:http/outgoing-handler@0.2.3"];
        assert_eq!(missing(&names, false), None);
        assert!(missing(&["wasi:http/types@0.3.0"], false).is_some());
        assert!(missing(&["wasi:http/types@0.3.0"], true).is_some());
    }
}
