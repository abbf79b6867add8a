//! What only the guest's own process reads: arguments, environment, limits (`Payload` in `channel.py`).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use serde::Deserialize;

use crate::{http, network};

const MAX_PAYLOAD_BYTES: i64 = 64 << 20;

/// Unsealed, it could still change while it is read.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

#[derive(Deserialize)]
pub struct Payload {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// (guest path, writable), one for each descriptor `preopen:N`.
    pub preopens: Vec<(String, bool)>,
    pub working_dir: String,
    pub log_name: String,
    pub log_slot: usize,
    pub memory_bytes: Option<u64>,
    pub cpu_millicores: Option<u64>,
    pub nice: i32,
    pub fuel: Option<u64>,
    pub descriptors: u64,
    pub file_bytes: Option<u64>,
    pub log_bytes_per_second: Option<u64>,
    /// Of a server, what bounds it.
    #[serde(default)]
    pub http: Option<http::Settings>,
    /// What it may reach; none: nothing.
    #[serde(default)]
    pub network: Option<network::Grant>,
    #[serde(default)]
    pub network_fields: network::Fields,
    /// The ports on which its own sockets may listen.
    #[serde(default)]
    pub listening: network::Ports,
}

impl Payload {
    /// Read a payload and close its descriptor.
    pub fn unseal(descriptor: OwnedFd) -> Result<Payload, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("the payload can't be read: {error}");
        if !fcntl_get_seals(&descriptor).is_ok_and(|seals| seals.contains(SEALS)) {
            return Err(wrong(&"it is not sealed"));
        }
        let size = fstat(&descriptor).map_err(|error| wrong(&error))?.st_size;
        if size > MAX_PAYLOAD_BYTES {
            return Err(wrong(&"it is too large"));
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        File::from(descriptor)
            .read_exact(&mut data)
            .map_err(|error| wrong(&error))?;
        // serde_json's own words may quote what it read; a payload holds Secrets, so they are not repeated.
        serde_json::from_slice(&data).map_err(|error| wrong(&format_args!("wrong at byte {}", error.column())))
    }
}
