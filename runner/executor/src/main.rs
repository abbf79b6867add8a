//! The native executor: `wherry-executor FD PARENT_PID ALLOWANCES_FD [--wasi-0.3] [--pooling-allocator]`, or `wherry-executor --version`.
//!
//! It speaks `wherry_runner/execution/channel.py` on FD: for each start it forks a process that runs one module once.
//! README.md tells how it is laid out.

mod ahead;
mod allocator;
mod allowance;
mod ceiling;
mod channel;
mod config;
mod destructors;
mod guest;
mod heap;
mod http;
mod imports;
mod limiter;
mod log;
mod modules;
mod network;
mod output;
mod page;
mod payload;
mod process;
mod random;
mod report;
mod run;
mod sandbox;
mod signals;
mod state;
mod trap_text;
mod unused;
mod wasi;
mod wasi_01;
mod zygote;

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use rustix::io::FdFlags;
use rustix::process::{Pid, Resource};

use allowance::Allowances;
use channel::Channel;
use modules::Modules;
use zygote::Zygote;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("{}", config::name());
        return ExitCode::SUCCESS;
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    zygote()?.serve().map_err(|fault| fault.to_string())
}

/// Made in a function of its own: what that takes is not on a guest's stack.
#[inline(never)]
fn zygote() -> Result<Box<Zygote>, String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let told = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    process::die_with_parent(arguments.parent).map_err(told("prctl"))?;
    process::limit(Resource::Core, 0).map_err(told("no limit of core files"))?;
    process::forbid_new_privileges().map_err(told("prctl"))?;
    process::raise_descriptor_limit().map_err(told("setrlimit"))?;

    let channel = Channel::new(inherited(arguments.channel)?);
    let allowances = Allowances::map(inherited(arguments.allowances)?).map_err(told("no log allowances"))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(told("/dev/null"))?;
    // Tried in children of this process, which are gone before anybody else counts children.
    let confinement = sandbox::probe();
    let ends = signals::child_ends().map_err(told("signalfd"))?;
    let modules =
        Modules::new(arguments.wasi_03, arguments.pooling).map_err(|error| format!("no engine: {error:#}"))?;

    ahead::prepare().map_err(|error| format!("no random numbers: {error}"))?;
    let mut zygote = Box::new(Zygote::new(
        channel,
        modules,
        confinement,
        allowances,
        ends,
        null.into(),
    ));
    zygote
        .introduce(&config::name(), arguments.wasi_03)
        .map_err(|fault| fault.to_string())?;
    Ok(zygote)
}

struct Arguments {
    channel: RawFd,
    parent: Pid,
    allowances: RawFd,
    wasi_03: bool,
    pooling: bool,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut number = |name: &str| -> Result<i32, String> {
            let word = words.next().ok_or(format!("{name} is missing"))?;
            word.parse()
                .ok()
                .filter(|&number| number >= 0)
                .ok_or(format!("{name} {word:?} is not a number"))
        };
        let channel = number("FD")?;
        let parent = Pid::from_raw(number("PARENT_PID")?).ok_or("PARENT_PID is 0")?;
        let allowances = number("ALLOWANCES_FD")?;
        let mut arguments = Arguments {
            channel,
            parent,
            allowances,
            wasi_03: false,
            pooling: false,
        };
        for word in words {
            match word.as_str() {
                "--wasi-0.3" => arguments.wasi_03 = true,
                "--pooling-allocator" => arguments.pooling = true,
                _ => return Err(format!("unknown argument {word:?}")),
            }
        }
        Ok(arguments)
    }
}

/// Take over a descriptor that this process was started with.
fn inherited(number: RawFd) -> Result<OwnedFd, String> {
    // SAFETY: the number was given to this process to use, and it is taken once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC).map_err(|errno| format!("descriptor {number}: {errno}"))?;
    Ok(descriptor)
}
