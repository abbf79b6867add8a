//! WASI 0.1 as modules are linked with it: wasmtime's, and two functions in a way of our own.

use wasmtime::{AsContextMut, Caller, Engine, Extern, Linker, Result, bail};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::{self, wasi_snapshot_preview1, wasi_snapshot_preview1::WasiSnapshotPreview1};
use wiggle::GuestMemory;

use crate::log::Log;
use crate::state::State;

const MODULE: &str = "wasi_snapshot_preview1";

/// Everything of WASI 0.1.
pub fn linker(engine: &Engine) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    // The async functions: the others would start a runtime of many threads (facts: executor.md, trap 9).
    p1::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
    linker.allow_shadowing(true);
    // wasmtime's own refuses codes above 125.
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> Result<()> {
        Err(I32Exit(code).into())
    })?;
    linker.func_wrap_async(MODULE, "poll_oneoff", |caller, arguments| {
        Box::new(poll_oneoff(caller, arguments))
    })?;
    Ok(linker)
}

/// wasmtime's, which blocks this thread where it only has to sleep: so nobody but us sees that the guest waits, and what
/// its log holds of unfinished lines is written before (`run.rs` does it for all other waits).
async fn poll_oneoff(
    mut caller: Caller<'_, State>,
    (subscriptions, events, count, ready): (i32, i32, i32, i32),
) -> Result<i32> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        bail!("missing required memory export");
    };
    let room = caller.as_context_mut().hostcall_fuel();
    let (memory, state) = memory.data_and_store_mut(&mut caller);
    state.wasi.set_hostcall_fuel(room);
    state.log.with(Log::flush);
    let mut memory = GuestMemory::Unshared(memory);
    wasi_snapshot_preview1::poll_oneoff(&mut state.wasi, &mut memory, subscriptions, events, count, ready).await
}
