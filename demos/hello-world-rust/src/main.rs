//! Says hello on both streams, then shows what Kubernetes handed to the program: environment, arguments, a mounted file.

use std::io::{self, Write};
use std::{env, fs, process};

/// A key of the ConfigMap that k8s.yaml mounts.
const MOUNTED_FILE: &str = "/mnt/storage/bacon_ipsum.txt";

fn main() {
    if let Err(error) = run() {
        eprintln!("hello-world-rust: {error}");
        process::exit(1);
    }
}

fn run() -> io::Result<()> {
    say("hello from stdout!")?;
    eprintln!("hello from stderr!");
    for (name, value) in env::vars() {
        say(&format!("{name}={value}"))?;
    }
    say(&format!("Args are: {:?}", env::args().collect::<Vec<_>>()))?;
    say("")?;

    let content = fs::read(MOUNTED_FILE).map_err(|error| {
        io::Error::new(error.kind(), format!("can't read {MOUNTED_FILE}: {error}"))
    })?;
    io::stdout().write_all(&content)?;
    io::stdout().flush()
}

/// Writes one line and flushes it, so that the log shows both streams in the order in which they were written.
fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
