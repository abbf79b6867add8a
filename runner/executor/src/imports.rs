//! What a component imports and does not get, as a sentence (`missing_imports` in `zygote.py` says the same).

const GIVEN: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// As many names as a sentence lists.
const LISTED: usize = 5;

/// Why a component with these imports can't be run; none if all is there, as far as names tell.
/// `serves`: it is a server, so it has to do with HTTP; what it sends is denied when it does.
pub fn missing(names: &[&str], serves: bool, wasi_03: bool) -> Option<String> {
    let listed = |names: Vec<&str>| names[..names.len().min(LISTED)].join(", ");
    let http: Vec<_> = names
        .iter()
        .copied()
        .filter(|name| !serves && name.starts_with("wasi:http/"))
        .collect();
    if !http.is_empty() {
        return Some(format!(
            "the component wants outbound HTTP (it imports {}), which this runner does not give",
            listed(http)
        ));
    }
    let given = |name: &&str| {
        (GIVEN.iter().any(|prefix| name.starts_with(prefix)) || (serves && name.starts_with("wasi:http/")))
            && (name.contains("@0.2.") || (wasi_03 && name.contains("@0.3.")))
    };
    let unknown: Vec<_> = names.iter().copied().filter(|name| !given(name)).collect();
    let versions = if wasi_03 { "0.2 and 0.3" } else { "0.2" };
    (!unknown.is_empty()).then(|| {
        format!(
            "the component imports {}, which no runner provides: WASI {versions} commands are run",
            listed(unknown)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let plain = ["wasi:cli/environment@0.2.3", "wasi:sockets/tcp@0.2.12"];
        assert_eq!(missing(&plain, false, false), None);
        let http = missing(&["wasi:http/types@0.2.0", "wasi:io/poll@0.2.0"], false, false).unwrap();
        assert!(
            http.contains("outbound HTTP (it imports wasi:http/types@0.2.0)"),
            "{http}"
        );
        let newer = ["wasi:cli/stdout@0.3.0"];
        let message = missing(&newer, false, false).unwrap();
        assert!(
            message.contains("imports wasi:cli/stdout@0.3.0, which no runner provides"),
            "{message}"
        );
        assert_eq!(missing(&newer, false, true), None);
    }

    #[test]
    fn a_server_may_import_http() {
        let names = ["wasi:http/types@0.2.0", "wasi:http/outgoing-handler@0.2.3"];
        assert_eq!(missing(&names, true, false), None);
        assert!(missing(&["wasi:http/types@0.3.0"], true, false).is_some());
    }
}
