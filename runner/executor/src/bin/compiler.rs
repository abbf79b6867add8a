//! The compiler: `wherry-compiler PARENT_PID MEMORY_BYTES CPU_SECONDS DIGEST OUTPUT_FD VARIANT [--wasi-0.3]`.
//!
//! A process of its own for each module, because a compiler reads strangers' bytes and may need any amount of memory and
//! time. WebAssembly (binary or text) on standard input, native code to OUTPUT_FD, and on standard output what came of it:
//! one JSON object, described in `wherry_runner/modules/compiler.py`, which is the python executor's compiler and says the
//! same. Exit code 0 after an answer; anything else is a crash or a limit, with its words on standard error.
//!
//! It starts threads, for it compiles on all cores, and never forks once it has some. It never runs what it compiles. Of
//! this machine it reaches what it was given and nothing else (`sandbox/`).

#[path = "../config.rs"]
mod config;
#[path = "../outline.rs"]
mod outline;
#[path = "../sandbox/mod.rs"]
mod sandbox;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde::Serialize;
use sha2::{Digest, Sha256};
use wasmtime::OutOfMemory;

use config::{Life, Variant};
use outline::Outline;

/// Native code is two to four times the size of a large module; this only stops what runs away.
const MAX_OUTPUT_BYTES: u64 = 2 << 30;

/// Of a thread. Code generation is not written to recurse without end, but over strangers' code it goes deeper
/// than the two megabytes of an everyday thread may hold.
const STACK_BYTES: usize = 8 << 20;

/// Threads beyond this would gain little, and each counts with its stack against the memory limit.
const MAX_THREADS: usize = 16;

/// Characters of what wasmtime says: it quotes a text module's line, which may be any length.
const MAX_REASON: usize = 2000;

const BINARY_MAGIC: &[u8] = b"\0asm";

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Compiled {
        #[serde(flatten)]
        outline: Outline,
        sha256: String,
    },
    /// The outline as far as it could be read: it may say more than the reason does.
    Refused {
        refused: String,
        #[serde(flatten)]
        outline: Option<Outline>,
    },
    Damaged {
        damaged: bool,
    },
}

struct Arguments {
    parent_pid: i32,
    memory_bytes: u64,
    cpu_seconds: u64,
    digest: String,
    output: RawFd,
    variant: Variant,
    wasi_03: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    die_with_parent(arguments.parent_pid).map_err(|error| format!("can't die with the parent: {error}"))?;
    limit(arguments.memory_bytes, arguments.cpu_seconds).map_err(|error| format!("can't be limited: {error}"))?;
    // Asked before the sandbox hides the files that tell of a container's share.
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get());
    sandbox::Sandbox::new(sandbox::probe(), &sandbox::Reach::default(), sandbox::Calls::default())?.enter()?;
    // Threads have the sandbox of the one that starts them.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.min(MAX_THREADS))
        .stack_size(STACK_BYTES)
        .build_global()
        .map_err(|error| format!("ThreadPoolBuildError: {error}"))?;

    let mut module = Vec::new();
    io::stdin()
        .read_to_end(&mut module)
        .map_err(|error| format!("reading the module: {error}"))?;
    // SAFETY: the descriptor was given to this process to write to, and nothing else here uses its number.
    let output = unsafe { File::from_raw_fd(arguments.output) };
    let answer = if format!("sha256:{}", hex(&module)) == arguments.digest {
        compile(module, output, arguments.variant, arguments.wasi_03)?
    } else {
        Answer::Damaged { damaged: true }
    };
    let text = serde_json::to_string(&answer).map_err(|error| error.to_string())?;
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("writing the answer: {error}"))
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut word = |name: &str| words.next().ok_or(format!("{name} is missing"));
        fn number<T: std::str::FromStr>(text: String) -> Result<T, String> {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number of this kind"))
        }
        let arguments = Arguments {
            parent_pid: number(word("PARENT_PID")?)?,
            memory_bytes: number(word("MEMORY_BYTES")?)?,
            cpu_seconds: number(word("CPU_SECONDS")?)?,
            digest: word("DIGEST")?,
            output: number(word("OUTPUT_FD")?)?,
            variant: word("VARIANT").and_then(|name| Variant::parse(&name).ok_or(format!("no variant {name:?}")))?,
            wasi_03: false,
        };
        let rest: Vec<String> = words.collect();
        match rest.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Ok(arguments),
            ["--wasi-0.3"] => Ok(Arguments {
                wasi_03: true,
                ..arguments
            }),
            _ => Err(format!("unknown arguments: {rest:?}")),
        }
    }
}

/// Compile a module whose digest is right. An error is one of this process, not of the module.
fn compile(module: Vec<u8>, mut output: File, variant: Variant, wasi_03: bool) -> Result<Answer, String> {
    let refused = |reason: String, outline| {
        Ok(Answer::Refused {
            refused: reason.chars().take(MAX_REASON).collect(),
            outline,
        })
    };
    let module = if module.starts_with(BINARY_MAGIC) {
        module
    } else if module.starts_with(b"\x7fELF") {
        return refused(
            "is native code (ELF): precompiled modules are never taken, they would run unchecked".into(),
            None,
        );
    } else if !begins_like_text(&module) {
        return refused("is not WebAssembly".into(), None);
    } else {
        match wat::parse_bytes(&module) {
            Ok(binary) => binary.into_owned(),
            Err(error) => return refused(format!("is not valid WebAssembly: {error}"), None),
        }
    };
    let component = match module.get(4..8) {
        Some(b"\x01\0\0\0") => false,
        Some(b"\x0d\0\x01\0") => true,
        Some(version) => {
            let digits: String = version.iter().map(|byte| format!("{byte:02x}")).collect();
            return refused(
                format!("is WebAssembly of a version that this runner doesn't know ({digits})"),
                None,
            );
        }
        None => {
            return refused(
                format!("is not valid WebAssembly: it ends after {} bytes", module.len()),
                None,
            );
        }
    };
    let outline = Outline::read(&module, component);
    let life = match &outline {
        Ok(outline) if outline.serves() => Life::Server,
        _ => Life::Command,
    };
    let engine = config::engine(variant, life, wasi_03).map_err(|error| format!("{error:#}"))?;
    let code = if component {
        engine.precompile_component(&module)
    } else {
        engine.precompile_module(&module)
    };
    let code = match code {
        Ok(code) => code,
        Err(error) if error.is::<OutOfMemory>() => return Err(format!("memory allocation failed: {error:#}")),
        Err(error) => return refused(format!("is not valid WebAssembly: {error:#}"), outline.ok()),
    };
    output
        .write_all(&code)
        .map_err(|error| format!("writing native code: {error}"))?;
    let outline = outline.map_err(|error| format!("a valid module can't be read: {error}"))?;
    Ok(Answer::Compiled {
        outline,
        sha256: hex(&code),
    })
}

/// As `wherry_runner/modules/sniff.py` has it.
fn begins_like_text(module: &[u8]) -> bool {
    let module = module
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(module)
        .trim_ascii_start();
    module.starts_with(b"(") || module.starts_with(b";;")
}

/// sha256 in hexadecimal digits.
fn hex(data: &[u8]) -> String {
    format!("{:x}", Sha256::digest(data))
}

/// Let the kernel kill this process when its parent dies, and end at once if that has happened already.
fn die_with_parent(parent_pid: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Pid::from_raw(parent_pid) {
        return Err(io::Error::other("it is gone"));
    }
    Ok(())
}

/// Limits of the kernel's, for this process and its threads. Not of its address space, of which an engine reserves more
/// than it ever uses. At the first limit of CPU time comes SIGXCPU, which tells it from a kill. Where the runner's own
/// limits are lower they stay.
fn limit(memory_bytes: u64, cpu_seconds: u64) -> io::Result<()> {
    for (resource, current, maximum) in [
        (Resource::Data, memory_bytes, memory_bytes),
        (Resource::Cpu, cpu_seconds, cpu_seconds.saturating_add(1)),
        (Resource::Fsize, MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES),
        // The first thread's, which grows by use and is not counted as data.
        (Resource::Stack, STACK_BYTES as u64, STACK_BYTES as u64),
        (Resource::Core, 0, 0),
    ] {
        let maximum = rustix::process::getrlimit(resource)
            .maximum
            .map_or(maximum, |lower| lower.min(maximum));
        let limit = Rlimit {
            current: Some(current.min(maximum)),
            maximum: Some(maximum),
        };
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}
