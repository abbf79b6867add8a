//! A guest that serves HTTP: a component that exports wasi:http/incoming-handler, behind a listening socket that the
//! supervisor has opened.
//!
//! One process and one thread for each container. A connection is hyper's (`connection.rs`), each request has an instance
//! of its own, or one that others had before (`request.rs`, `instances.rs`), and what they do together is bounded here (`server.rs`): requests and connections at once, and
//! the memory of all instances. The supervisor reads what was counted (`counts.rs`) whenever it likes, and is told once
//! when connections are accepted. SIGTERM lets the server finish what it has begun and end.

mod connection;
mod counts;
mod epochs;
mod instances;
mod request;
mod server;
mod settings;
mod state;
mod stream;

pub use counts::Counts;
pub use server::{Server, runtime};
pub use settings::Settings;
pub use state::{State, linker};
