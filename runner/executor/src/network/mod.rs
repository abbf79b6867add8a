//! What a guest may reach: nothing, but what its rules name (docs/network.md).
//!
//! Every way out leads through a host call, and each is decided there, by the address that is then used:
//!
//! - **names** (`lookup.rs`, and `wasi_03.rs` for WASI 0.3): a lookup of our own answers for names that a rule covers, and
//!   for no other; no query is made for any other either. What it answered is remembered (`gate.rs`).
//! - **addresses** (`sockets.rs`): wasmtime asks before each connect, send and receive. Allowed are those that a rule names and
//!   those that were answered for a name, on the rule's ports.
//! - **outbound HTTP** (`outbound.rs`): resolved, checked, and connected to the address that was checked.
//!
//! And a way in: its own sockets listen on the ports that its container names (`listening.rs`), and on no other.
//!
//! `rules.rs` decides, without a system call; `protected.rs` says what no name and no wide network opens. Behind it stand
//! seccomp and Landlock (`sandbox/`).

mod cache;
mod counts;
mod dns;
mod gate;
mod listening;
mod lookup;
mod networked;
mod outbound;
mod protected;
mod resolver;
mod rules;
mod sockets;
mod tls;
mod told;
mod wasi_03;

/// What the host's side of all outbound requests at once takes at most: their buffers, TLS, and the roots of trust. The buffers of
/// a listening guest's connections are within it too: it has no more of them than files.
pub const HOST_BYTES: u64 = gate::MAX_CONNECTIONS as u64 * (256 << 10) + (8 << 20);

pub use counts::Counts;
pub use gate::{Fields, Gate};
pub use listening::Ports;
pub use networked::{Networked, add_to_linker};
pub use outbound::Outbound;
pub use rules::Grant;
pub use sockets::configure;
