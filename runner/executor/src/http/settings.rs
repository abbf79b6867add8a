//! What bounds a server (`HttpSettings` in `channel.py`).

use std::time::Duration;

use serde::Deserialize;

#[derive(Clone, Copy, Deserialize)]
pub struct Settings {
    /// Requests that are worked on at once; one more is answered 503.
    pub max_requests: usize,
    /// Open connections; one more waits until another is closed.
    pub max_connections: usize,
    /// For a request: from its head until the guest is done with it.
    pub request_seconds: f64,
    /// For a request's head to come, from its first byte on.
    pub head_seconds: f64,
    /// For the next request of a connection to begin, and for a client to take anything of an answer.
    pub idle_seconds: f64,
    /// Of a request's head.
    pub head_bytes: usize,
    /// That one instance is given, one after the other.
    pub instance_reuse: u32,
}

impl Settings {
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.request_seconds)
    }

    /// What the host's side of all that may go on at once takes at most, as the kernel counts it: of an instance the stack and
    /// what of an answer lies between it and the client, of a connection its buffers.
    pub fn host_bytes(&self) -> u64 {
        const INSTANCE_BYTES: u64 = 4 << 20;
        const CONNECTION_BYTES: u64 = 64 << 10;
        let connection = CONNECTION_BYTES + self.head_bytes as u64;
        self.max_requests as u64 * INSTANCE_BYTES + self.max_connections as u64 * connection
    }

    pub fn head_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.head_seconds)
    }

    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.idle_seconds)
    }
}
