//! A guest that serves HTTP: a component that exports wasi:http/incoming-handler 0.2 or wasi:http/handler 0.3, behind a
//! listening socket that the supervisor has opened.
//!
//! One process and one thread for each container. A connection is hyper's (`connection.rs`), each request has an instance
//! of its own, or one that others had before (`request.rs`, `instances.rs`), which takes it the way of its version of WASI
//! (`handler.rs`). What they do together is bounded here (`server.rs`): requests and connections at once, and the memory of
//! all instances. The supervisor reads what was counted (`counts.rs`) whenever it likes, and is told once when connections
//! are accepted. SIGTERM lets the server finish what it has begun and end.

mod connection;
mod counts;
mod epochs;
mod handler;
mod handler_02;
mod handler_03;
mod instances;
mod request;
mod server;
mod settings;
mod state;
mod stream;

pub use counts::Counts;
pub use handler::Handler;
pub use server::{Server, runtime};
pub use settings::Settings;
pub use state::{State, linker};
