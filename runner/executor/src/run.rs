//! Runs a loaded module once and tells how it ended.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::{Builder, Runtime};
use wasmtime::{Engine, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi_http::WasiHttpCtx;

use crate::limiter::Limiter;
use crate::log::Log;
use crate::modules::Command;
use crate::network::{Gate, Outbound};
use crate::output::SharedLog;
use crate::report::{Outcome, Report, TRAP_EXIT_CODE};
use crate::state::State;
use crate::{trap_text, unused};

/// What a component may hand to the host in one call, and so what it can make the host allocate.
pub const HOSTCALL_BYTES: usize = 32 << 20;

/// What one run may use.
pub struct Bounds {
    pub fuel: Option<u64>,
    pub memory_bytes: Option<u64>,
}

/// For one guest: on this thread, and at most one more for what can't be done without blocking (facts: executor.md, trap 9).
pub fn runtime(io: bool) -> io::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().max_blocking_threads(1);
    if io {
        builder.enable_io();
    }
    builder.build()
}

/// A core module has no notion of a working directory; a component is told one.
pub fn check_working_dir(command: &Command, working_dir: &str) -> Result<(), String> {
    match command {
        Command::Wasi01(_) if !matches!(working_dir, "" | "/") => Err(format!(
            "workingDir {working_dir:?}: a WASI 0.1 module has no working directory but /. Use absolute paths; a module \
             built by Go takes the variable PWD for its working directory"
        )),
        _ => Ok(()),
    }
}

/// Run the module to its end.
pub fn run(
    engine: &Engine,
    command: &Command,
    runtime: &Runtime,
    wasi: Box<WasiP1Ctx>,
    log: &SharedLog,
    gate: &Arc<Gate>,
    bounds: Bounds,
) -> Report {
    let mut store = store(engine, wasi, log, gate, bounds.memory_bytes);
    // Fails only for code that counts nothing; which variant runs is the supervisor's choice, and it knows the limit.
    let counted = store.set_fuel(bounds.fuel.unwrap_or(u64::MAX));
    if bounds.fuel.is_some() && counted.is_err() {
        return Report::failed("could not run the module: it was compiled without fuel, which its limit wants".into());
    }
    // Pinned here: what is handed on by value is copied by each that hands it on, and these copies stay on the stack all the while.
    let result = runtime.block_on(pin!(resting(log, call(command, &mut store))));
    let refused = store.data().limiter.refused();
    let mut report = match result {
        Ok(code) => Report::exited(code),
        Err(failure) => failure.report(refused),
    };
    report.memory_refused = refused.is_some();
    report
}

/// What the module runs in. A function of its own, so that what it takes to make one is on the stack no longer when the module runs.
#[inline(never)]
fn store(
    engine: &Engine,
    wasi: Box<WasiP1Ctx>,
    log: &SharedLog,
    gate: &Arc<Gate>,
    memory_bytes: Option<u64>,
) -> Store<State> {
    let mut store = Store::new(
        engine,
        State {
            wasi: *wasi,
            limiter: Limiter::new(memory_bytes),
            log: log.clone(),
            http: WasiHttpCtx::new(),
            outbound: Outbound::new(gate),
            gate: Arc::clone(gate),
        },
    );
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store
}

/// An error, and whether the module was being made or was running.
struct Failure {
    error: wasmtime::Error,
    instantiated: bool,
}

/// Instantiate and run. The exit code, as far as it isn't told by an error (`I32Exit`).
async fn call(command: &Command, store: &mut Store<State>) -> Result<i32, Failure> {
    let making = |error| Failure {
        error,
        instantiated: false,
    };
    let running = |error| Failure {
        error,
        instantiated: true,
    };
    let result = match command {
        Command::Wasi01(module) => {
            let instance = module.instantiate_async(&mut *store).await.map_err(making)?;
            let start = instance
                .get_typed_func::<(), ()>(&mut *store, "_start")
                .map_err(making)?;
            start.call_async(store, ()).await.map(Ok)
        }
        Command::Wasi02(component) => {
            let instance = component.instantiate_async(&mut *store).await.map_err(making)?;
            instance.wasi_cli_run().call_run(store).await
        }
        Command::Wasi03(component) => {
            let instance = component.instantiate_async(&mut *store).await.map_err(making)?;
            let run = instance.wasi_cli_run();
            store
                .run_concurrent(async |accessor| run.call_run(accessor).await)
                .await
                .and_then(|result| result)
        }
    };
    match result.map_err(running)? {
        Ok(()) => Ok(0),
        // `result` without payloads: as `wasmtime run` has it.
        Err(()) => Ok(1),
    }
}

impl Failure {
    /// What the supervisor is told. `refused`: what a refused growth would have made of the memory, and its limit.
    fn report(self, refused: Option<(u64, u64)>) -> Report {
        if let Some(exit) = self.error.downcast_ref::<I32Exit>() {
            return Report::exited(exit.0);
        }
        let text = format!("{:?}", self.error);
        if trap_text::is_trap(&text) {
            let out_of_fuel = self.error.downcast_ref::<Trap>() == Some(&Trap::OutOfFuel);
            let outcome = if out_of_fuel {
                Outcome::OutOfFuel
            } else {
                Outcome::Trapped
            };
            let message = trap_text::readable(&text);
            return Report {
                outcome,
                exit_code: TRAP_EXIT_CODE,
                message,
                memory_refused: false,
            };
        }
        match refused {
            Some((wanted, limit)) if !self.instantiated => Report::failed(format!(
                "could not run the module: its memories and tables begin with at least {wanted} bytes, and its limit is \
                 {limit}"
            )),
            _ => Report::failed(format!("could not run the module: {:#}", self.error)),
        }
    }
}

/// The guest's future. Whenever it waits for something its log's unfinished lines are written, for who waits can be killed there, and
/// what was held in memory would be lost; and memory that it does not use is given back, for who waits may do so for days.
async fn resting<F: Future>(log: &SharedLog, guest: F) -> F::Output {
    let mut guest = pin!(guest);
    std::future::poll_fn(|context| {
        let poll = guest.as_mut().poll(context);
        if matches!(poll, Poll::Pending) {
            log.with(Log::flush);
            unused::give_back();
        }
        poll
    })
    .await
}
