//! What a component imports and does not get, as a sentence (`missing_imports` in `zygote.py` says the same).

const GIVEN: [&str; 7] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:http/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// What a middleware of WASI 0.3 hands its requests on to.
const NEXT_HANDLER: &str = "wasi:http/handler@0.3.";

/// As many names as a sentence lists.
const LISTED: usize = 5;

/// Why a component with these imports can't be run; none if all is there, as far as names tell. What reaches out is there
/// for all: it is denied when it is used, where nothing is granted.
pub fn missing(names: &[&str], wasi_03: bool) -> Option<String> {
    if wasi_03 && let Some(name) = names.iter().find(|name| name.starts_with(NEXT_HANDLER)) {
        return Some(format!(
            "the component imports {name}, the handler behind it, which no runner provides: a middleware is served when \
             it is composed with what it stands before"
        ));
    }
    let given = |name: &&str| {
        GIVEN.iter().any(|prefix| name.starts_with(prefix)) && (name.contains("@0.2.") || (wasi_03 && is_03(name)))
    };
    let unknown: Vec<_> = names.iter().copied().filter(|name| !given(name)).collect();
    let versions = if wasi_03 { "0.2 and 0.3" } else { "0.2" };
    (!unknown.is_empty()).then(|| {
        format!(
            "the component imports {}, which no runner provides: WASI {versions} is given",
            unknown[..unknown.len().min(LISTED)].join(", ")
        )
    })
}

/// No draft of it, whose name goes on with a hyphen: their functions differ.
fn is_03(name: &str) -> bool {
    name.contains("@0.3.") && !name.rsplit('@').next().is_some_and(|version| version.contains('-'))
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
    fn any_component_may_import_http() {
        let names = ["wasi:http/types@0.2.0", "wasi:http/outgoing-handler@0.2.3"];
        assert_eq!(missing(&names, false), None);
        let newer = ["wasi:http/types@0.3.0", "wasi:http/client@0.3.1"];
        assert!(missing(&newer, false).is_some());
        assert_eq!(missing(&newer, true), None);
    }

    #[test]
    fn drafts_are_not_given() {
        let draft = "wasi:http/types@0.3.0-rc-2026-03-15";
        assert!(missing(&[draft], true).unwrap().contains(draft));
    }

    #[test]
    fn a_middleware_by_itself_is_told_what_it_lacks() {
        let message = missing(&["wasi:http/types@0.3.0", "wasi:http/handler@0.3.0"], true).unwrap();
        assert!(
            message.contains("imports wasi:http/handler@0.3.0, the handler behind it"),
            "{message}"
        );
    }
}
