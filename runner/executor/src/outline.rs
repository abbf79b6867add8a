//! What a module imports and exports, by name: by this the supervisor tells a command from what can't be run
//! (`wherry_runner/modules/classify.py`, whose lists of well-known names are the same).

use serde::Serialize;
use wasmparser::{BinaryReaderError, Parser, Payload};

/// Imports, and exports, that are named. A module may have a hundred thousand.
const MAX_NAMES: usize = 64;

/// As much as is told of each.
const MAX_NAME_CHARACTERS: usize = 200;

/// Kind of a component that serves HTTP.
const HTTP: &str = "http";

const FOREIGN_IMPORTS: [&str; 5] = ["wasi_unstable", "gojs", "go", "wbg", "__wbindgen_placeholder__"];
const EMSCRIPTEN: [&str; 4] = ["emscripten_", "invoke_", "__cxa_", "_abort_js"];

/// The part of an answer that tells what a module is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outline {
    kind: &'static str,
    /// (module, name), the well-known first; of a component (name, "").
    imports: Vec<(String, String)>,
    exports: Vec<String>,
    export_count: usize,
}

impl Outline {
    /// Whether it is a server, by what it exports.
    pub fn serves(&self) -> bool {
        self.kind == HTTP
    }

    /// Read the names from a binary module; fails if its outermost sections can't be read. Nothing is validated.
    pub fn read(module: &[u8], component: bool) -> Result<Outline, BinaryReaderError> {
        let mut imports = Vec::new();
        let mut exports = Vec::new();
        // What lies inside a component belongs to it alone; this counts how deep the parser is in there.
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) if depth > 0 => depth -= 1,
                _ if depth > 0 => {}
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        imports.push((import.module, import.name));
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        exports.push(("", export?.name));
                    }
                }
                Payload::ComponentImportSection(section) => {
                    for import in section {
                        imports.push((import?.name.name, ""));
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section {
                        exports.push(("", export?.name.name));
                    }
                }
                _ => {}
            }
        }
        Ok(Outline {
            kind: match component {
                false => "core",
                true if is_server(&exports) => HTTP,
                true => "component",
            },
            export_count: exports.len(),
            imports: named(imports),
            exports: named(exports).into_iter().map(|(_, name)| name).collect(),
        })
    }
}

/// What can be run as a command is one, whatever else it exports.
fn is_server(exports: &[(&str, &str)]) -> bool {
    let exports_any = |prefix: &str| exports.iter().any(|(_, name)| name.starts_with(prefix));
    let serves = exports_any("wasi:http/incoming-handler@0.2.") || exports_any("wasi:http/handler@0.3.");
    serves && !exports_any("wasi:cli/run@")
}

/// The first of them, those by which a module is judged before all others.
fn named(mut names: Vec<(&str, &str)>) -> Vec<(String, String)> {
    names.sort_by_key(|(module, name)| !is_well_known(module, name));
    names.truncate(MAX_NAMES);
    let cut = |text: &str| text.chars().take(MAX_NAME_CHARACTERS).collect();
    names
        .into_iter()
        .map(|(module, name)| (cut(module), cut(name)))
        .collect()
}

fn is_well_known(module: &str, name: &str) -> bool {
    FOREIGN_IMPORTS.contains(&module)
        || (module, name) == ("wasi", "thread-spawn")
        || module.starts_with("wasi:")
        || name.starts_with("wasi:")
        || name == "_start"
        || name == "_initialize"
        || (module == "env" && EMSCRIPTEN.iter().any(|prefix| name.starts_with(prefix)))
}
