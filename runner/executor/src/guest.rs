//! What a forked child does: it becomes the guest's process, runs the module once, says how it ended, and is gone.
//!
//! It begins as a copy of the executor, so the first thing is to let go of all that isn't this guest's. Everything of the
//! guest's own (its payload above all) is read here and never in the executor. It leaves by `_exit`.
//!
//! Descriptors while it runs: 0, 1 and 2 (/dev/null), the report pipe, the folder and the file of its log, its standard
//! input, the compiled module's, its preopened folders, a server's listening socket and its clients', the sockets of a guest
//! that was granted a network or ports, and what the runtime makes for itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;

use rustix::process::{Pid, Resource, getpriority_process, setpriority_process};
use tokio::runtime::Runtime;
use wasmtime_wasi::p1::WasiP1Ctx;

use crate::allowance::Allowances;
use crate::channel::{GuestDescriptors, ServerDescriptors};
use crate::http::Handler;
use crate::log::Log;
use crate::modules::{Command, Loaded, Program};
use crate::network::{self, Gate};
use crate::output::SharedLog;
use crate::page::Page;
use crate::payload::Payload;
use crate::report::Report;
use crate::sandbox::{Calls, Confinement, Folder, Reach, Sandbox};
use crate::{allocator, ceiling, http, process, run, signals, unused, wasi};

/// What a process may need beside its module's memory: stacks, the host's side of open files and streams, a payload.
pub const HOST_ROOM_BYTES: u64 = 64 << 20;

/// What a child has from its executor.
pub struct Inherited<'a> {
    pub executor: Pid,
    pub null: BorrowedFd<'a>,
    pub allowances: &'a Allowances,
    pub confinement: &'a Confinement,
    /// What RLIMIT_DATA counts of it.
    pub data_bytes: u64,
}

/// A guest's descriptors. The report's is owned by nobody, so that it is open until the end whatever happens.
struct Descriptors {
    payload: OwnedFd,
    report: RawFd,
    log: OwnedFd,
    stdin: Option<OwnedFd>,
    preopens: Vec<OwnedFd>,
    counts: Option<OwnedFd>,
    server: Option<ServerDescriptors>,
}

/// Be the guest. Never returns.
pub fn run(loaded: &Loaded, descriptors: GuestDescriptors, inherited: &Inherited) -> ! {
    unused::begins_here();
    let GuestDescriptors {
        payload,
        report,
        log,
        stdin,
        preopens,
        counts,
        server,
    } = descriptors;
    let report = report.into_raw_fd();
    let descriptors = Descriptors {
        payload,
        report,
        log,
        stdin,
        preopens,
        counts,
        server,
    };
    panic::set_hook(Box::new(move |info| end(report, panicked(info))));
    allocator::report_failure_to(report);
    let outcome = live(loaded, descriptors, inherited);
    end(
        report,
        outcome.unwrap_or_else(|message| Report::failed(format!("could not run: {message}"))),
    )
}

/// Say the last word and be gone.
fn end(report: RawFd, word: Report) -> ! {
    let code = word.exit_code;
    // SAFETY: this descriptor is closed by nobody.
    let report = unsafe { BorrowedFd::borrow_raw(report) };
    // A pipe with no reader means that nobody is left to be told.
    let _ = rustix::io::write(report, word.encode().as_bytes());
    process::exit(code)
}

/// A fault of ours or of a library's, with its place as far as it is the same on every machine.
fn panicked(info: &PanicHookInfo) -> Report {
    let words = info.payload_as_str().unwrap_or("it panicked");
    let place = info.location().map_or(String::new(), |place| {
        let file = place.file();
        let short = file.rmatch_indices('/').nth(2).map_or(file, |(at, _)| &file[at + 1..]);
        format!(" ({short}:{})", place.line())
    });
    Report::failed(format!("the executor failed: {words}{place}"))
}

/// Become the guest's process and run the module. An error says why it could not be run.
fn live(loaded: &Loaded, descriptors: Descriptors, inherited: &Inherited) -> Result<Report, String> {
    let life = begin(loaded, descriptors, inherited)?;
    let log = life.log.clone();
    let report = match &loaded.program {
        Program::Command(command) => life.command(loaded, command),
        Program::Server(handler) => life.server(loaded, handler),
    }?;
    log.with(Log::flush);
    Ok(report)
}

/// What a process has that became a guest's.
struct Life {
    payload: Payload,
    stdin: Option<OwnedFd>,
    preopens: Vec<OwnedFd>,
    server: Option<ServerDescriptors>,
    log: SharedLog,
    page: &'static Page,
    gate: Arc<Gate>,
    sandbox: Sandbox,
    priority: i32,
}

/// Become the guest's process. A function of its own, as those below that make something: what they need is on the stack no longer
/// when the module runs, and a guest's stack is its own from the first page to the last.
#[inline(never)]
fn begin(loaded: &Loaded, descriptors: Descriptors, inherited: &Inherited) -> Result<Box<Life>, String> {
    let failed = |error: io::Error| format!("could not let go: {error}");
    process::die_with_parent(inherited.executor).map_err(failed)?;
    signals::reset().map_err(failed)?;
    if matches!(loaded.program, Program::Command(_)) {
        signals::release_termination().map_err(failed)?;
    }
    keep_only(loaded, &descriptors, inherited.null).map_err(failed)?;
    process::forbid_inspection().map_err(failed)?;

    let mut payload = Payload::unseal(descriptors.payload)?;
    // The module's `working_dir` is a matter of its kind, so it is asked here and not in the executor.
    if let Program::Command(command) = &loaded.program {
        run::check_working_dir(command, &payload.working_dir)?;
    }

    let folder = descriptors.log.as_raw_fd();
    let allowance = inherited
        .allowances
        .slot(payload.log_slot)
        .no_more_than(payload.file_bytes);
    let log = Log::open(
        descriptors.log,
        &payload.log_name,
        allowance,
        payload.log_bytes_per_second,
    )?;
    let log = SharedLog::new(log);

    let folders: Vec<_> = descriptors
        .preopens
        .iter()
        .zip(&payload.preopens)
        .map(|(folder, (_, writable))| Folder {
            descriptor: folder.as_raw_fd(),
            writable: *writable,
        })
        .collect();
    let calls = Calls {
        server: matches!(loaded.program, Program::Server(_)),
        network: payload.network.is_some(),
        listens: !payload.listening.is_empty(),
    };
    let ports = payload.network.as_ref().map(network::Grant::tcp_ports);
    let listening = payload.listening.tcp();
    let reach = Reach {
        folders: &folders,
        log: Some(folder),
        connect: ports.as_deref(),
        bind: &listening,
    };
    let sandbox = Sandbox::new(*inherited.confinement, &reach, calls)?;
    limit(&payload, inherited.data_bytes).map_err(|error| format!("could not be limited: {error}"))?;
    // On top of the runner's own, below which nobody without a privilege can go.
    let priority = getpriority_process(None).map_err(|error| format!("has no priority: {error}"))? + payload.nice;
    let page = match descriptors.counts {
        Some(counts) => Page::map(counts).map_err(|error| format!("could not count: {error}"))?,
        None => Page::own(),
    };
    let (grant, fields) = (payload.network.take(), std::mem::take(&mut payload.network_fields));
    let listening = std::mem::take(&mut payload.listening);
    let gate = Arc::new(Gate::new(grant, listening, fields, &page.network, &log));
    Ok(Box::new(Life {
        payload,
        stdin: descriptors.stdin,
        preopens: descriptors.preopens,
        server: descriptors.server,
        log,
        page,
        gate,
        sandbox,
        priority,
    }))
}

fn no_runtime(error: io::Error) -> String {
    format!("no runtime: {error}")
}

impl Life {
    /// Run a command once.
    fn command(self: Box<Self>, loaded: &Loaded, command: &Command) -> Result<Report, String> {
        let runtime = run::runtime(self.stdin.is_some() || self.gate.is_open()).map_err(no_runtime)?;
        let bounds = run::Bounds {
            fuel: self.payload.fuel,
            memory_bytes: self.payload.memory_bytes,
        };
        let (log, gate) = (self.log.clone(), Arc::clone(&self.gate));
        let wasi = self.confined(&runtime)?;
        Ok(run::run(&loaded.engine, command, &runtime, wasi, &log, &gate, bounds))
    }

    /// What a command is given of the world; from then on this process has no more than it.
    #[inline(never)]
    fn confined(self: Box<Self>, runtime: &Runtime) -> Result<Box<WasiP1Ctx>, String> {
        let wasi = {
            let _entered = runtime.enter();
            Box::new(wasi::context(&self.payload, self.preopens, self.stdin, &self.log, &self.gate)?.build_p1())
        };
        // After our own part: what is the module's has the module's weight.
        setpriority_process(None, self.priority).map_err(|error| format!("could not be made nice: {error}"))?;
        self.sandbox.enter()?;
        Ok(wasi)
    }

    /// Serve until told to end.
    #[inline(never)]
    fn server(self: Box<Self>, loaded: &Loaded, handler: &Handler) -> Result<Report, String> {
        let Some(given) = self.server else {
            return Err("it is a server, and was given nothing to serve on".into());
        };
        let failed = |error: io::Error| format!("could not serve: {error}");
        let termination = signals::termination().map_err(failed)?;
        let runtime = http::runtime().map_err(no_runtime)?;
        let engine = &loaded.engine;
        let counts = &self.page.http;
        let server = http::Server::new(
            engine,
            handler,
            self.payload,
            self.preopens,
            &self.log,
            self.gate,
            counts,
        )
        .map_err(failed)?;
        self.sandbox.enter()?;
        Ok(server.serve(&runtime, given.listener, given.ready, termination, self.priority))
    }
}

/// Close all that isn't this guest's.
fn keep_only(loaded: &Loaded, descriptors: &Descriptors, null: BorrowedFd) -> io::Result<()> {
    for number in 0..3 {
        // SAFETY: nobody in this process owns one of the standard descriptors; `forget` keeps it that way.
        let mut standard = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::dup2(null, &mut standard)?;
        std::mem::forget(standard);
    }
    let mut kept = vec![0, 1, 2, loaded.descriptor, descriptors.report];
    kept.extend([&descriptors.payload, &descriptors.log].map(AsRawFd::as_raw_fd));
    kept.extend(descriptors.stdin.as_ref().map(AsRawFd::as_raw_fd));
    kept.extend(descriptors.preopens.iter().map(AsRawFd::as_raw_fd));
    kept.extend(descriptors.counts.as_ref().map(AsRawFd::as_raw_fd));
    if let Some(server) = &descriptors.server {
        kept.extend([&server.listener, &server.ready].map(AsRawFd::as_raw_fd));
    }
    process::close_all_but(&mut kept)
}

/// What the kernel keeps for us. Not the address space: an engine reserves far more of it than it ever uses.
fn limit(payload: &Payload, data_bytes: u64) -> io::Result<()> {
    process::limit(Resource::Core, 0)?;
    process::limit(Resource::Nofile, payload.descriptors)?;
    if let Some(bytes) = payload.file_bytes {
        process::limit(Resource::Fsize, bytes)?;
    }
    if let Some(bytes) = payload.memory_bytes {
        let has_sockets = payload.network.is_some() || !payload.listening.is_empty();
        process::limit(
            Resource::Data,
            data_bytes
                .saturating_add(bytes)
                .saturating_add(HOST_ROOM_BYTES)
                .saturating_add(payload.http.map_or(0, |settings| settings.host_bytes()))
                .saturating_add(if has_sockets { network::HOST_BYTES } else { 0 }),
        )?;
    }
    if let Some(millicores) = payload.cpu_millicores {
        ceiling::keep(millicores)?;
    }
    Ok(())
}
