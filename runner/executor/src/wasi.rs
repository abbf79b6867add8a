//! What a guest is given of the world. Built in its own process: never in the executor, where it would be everybody's.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::net::unix::pipe;
use wasmtime_wasi::cli::AsyncStdinStream;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::log::Stream;
use crate::network::{self, Gate};
use crate::output::SharedLog;
use crate::payload::Payload;
use crate::random::Kernel;

/// What a guest may ask for in one call, and so what it can make the host allocate.
const MAX_RANDOM_BYTES: u64 = 32 << 20;

/// Arguments, environment, folders, streams, clocks and random numbers; sockets as the gate has it. Within a runtime, if
/// there is an input.
///
/// Each folder is opened anew; those that are handed over are closed one by one meanwhile.
pub fn context<F: AsFd>(
    payload: &Payload,
    folders: impl IntoIterator<Item = F, IntoIter: ExactSizeIterator>,
    stdin: Option<OwnedFd>,
    log: &SharedLog,
    gate: &Arc<Gate>,
) -> Result<WasiCtxBuilder, String> {
    let folders = folders.into_iter();
    if folders.len() != payload.preopens.len() {
        return Err(format!(
            "{} folders came, {} are named",
            folders.len(),
            payload.preopens.len()
        ));
    }
    let mut builder = WasiCtxBuilder::new();
    builder
        .args(&payload.argv)
        .envs(&payload.env)
        .secure_random(Kernel)
        .insecure_random(Kernel)
        .insecure_random_seed(u128::from_ne_bytes(Kernel::bytes()))
        .max_random_size(MAX_RANDOM_BYTES)
        // A guest has its process for itself: that it waits for a disk keeps nobody else waiting.
        .allow_blocking_current_thread(true)
        .stdout(log.stream(Stream::Stdout))
        .stderr(log.stream(Stream::Stderr));
    if !payload.working_dir.is_empty() {
        builder.initial_cwd(&payload.working_dir);
    }
    for (folder, (guest_path, writable)) in folders.zip(&payload.preopens) {
        let permissions = if *writable {
            FsPerms::ReadWrite
        } else {
            FsPerms::ReadOnly
        };
        builder
            .preopened_dir(
                format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()),
                guest_path,
                permissions,
            )
            .map_err(|error| format!("the folder for {guest_path} can't be opened: {error:#}"))?;
    }
    if let Some(stdin) = stdin {
        let input = pipe::Receiver::from_owned_fd(stdin).map_err(|error| format!("no standard input: {error}"))?;
        builder.stdin(AsyncStdinStream::new(input));
    }
    network::configure(&mut builder, gate);
    Ok(builder)
}
