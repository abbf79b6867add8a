//! WASI 0.1 as modules are linked with it: wasmtime's, and three functions in a way of our own.

use tokio::task::yield_now;
use wasmtime::{AsContextMut, Caller, Engine, Extern, Linker, Result, bail};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1;
use wasmtime_wasi::p1::{self, wasi_snapshot_preview1};
use wiggle::{GuestMemory, GuestPtr};

use crate::log::Log;
use crate::state::State;
use crate::unused;

const MODULE: &str = "wasi_snapshot_preview1";

/// Of a `ciovec`: a pointer and a length.
const VECTOR_BYTES: u32 = 8;

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
    linker.func_wrap_async(MODULE, "fd_write", |caller, arguments| {
        Box::new(fd_write(caller, arguments))
    })?;
    Ok(linker)
}

/// wasmtime's blocks this thread where it only has to sleep: so nobody but us sees that the guest waits, and what is done before it
/// does is done here (`run.rs` does it for all other waits).
async fn poll_oneoff(
    mut caller: Caller<'_, State>,
    (subscriptions, events, count, ready): (i32, i32, i32, i32),
) -> Result<i32> {
    if unused::is_due() {
        yield_now().await; // to where the stack is the process's own, and not this call's
    }
    let (mut memory, state) = parts(&mut caller)?;
    state.log.with(Log::flush);
    wasi_snapshot_preview1::poll_oneoff(&mut state.wasi, &mut memory, subscriptions, events, count, ready).await
}

/// wasmtime's writes the first of several pieces and says so. That is allowed, and C libraries go on with the next; others
/// (as-wasi, AssemblyScript's) take it for all, and their lines would have no ends.
async fn fd_write(mut caller: Caller<'_, State>, (file, vectors, count, written): (i32, i32, i32, i32)) -> Result<i32> {
    let (mut memory, state) = parts(&mut caller)?;
    if count as u32 <= 1 {
        return wasi_snapshot_preview1::fd_write(&mut state.wasi, &mut memory, file, vectors, count, written).await;
    }
    let sum = GuestPtr::<u32>::new(written as u32);
    let mut total = 0;
    for number in 0..count as u32 {
        let vector = (vectors as u32).wrapping_add(number.wrapping_mul(VECTOR_BYTES));
        let errno =
            wasi_snapshot_preview1::fd_write(&mut state.wasi, &mut memory, file, vector as i32, 1, written).await?;
        if errno != 0 && total == 0 {
            return Ok(errno);
        }
        let size = if errno == 0 { memory.read(sum)? } else { 0 };
        total = size.saturating_add(total);
        if size < memory.read(GuestPtr::<u32>::new(vector.wrapping_add(VECTOR_BYTES / 2)))? {
            break;
        }
    }
    memory.write(sum, total)?;
    Ok(0)
}

/// A guest's memory and its store's state, for one call.
fn parts<'a>(caller: &'a mut Caller<'_, State>) -> Result<(GuestMemory<'a>, &'a mut State)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        bail!("missing required memory export");
    };
    let room = caller.as_context_mut().hostcall_fuel();
    let (memory, state) = memory.data_and_store_mut(caller);
    state.wasi.set_hostcall_fuel(room);
    Ok((GuestMemory::Unshared(memory), state))
}
