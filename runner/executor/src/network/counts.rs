//! What the network refused (`wherry_runner/network_counts.py`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Each is written by this process alone, and is never torn for who reads it.
#[derive(Default)]
#[repr(C)]
pub struct Counts {
    /// Lookups and requests for names that no rule covers.
    names: AtomicU64,
    /// Connections and datagrams to addresses that no rule covers, and answers with such an address.
    addresses: AtomicU64,
    /// Sockets, and what would let one listen.
    sockets: AtomicU64,
    /// Requests for which there were too many connections.
    crowded: AtomicU64,
}

/// What kind of thing was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Name,
    Address,
    Socket,
    Crowded,
}

impl Counts {
    pub fn refused(&self, kind: Kind) {
        let number = match kind {
            Kind::Name => &self.names,
            Kind::Address => &self.addresses,
            Kind::Socket => &self.sockets,
            Kind::Crowded => &self.crowded,
        };
        number.fetch_add(1, Relaxed);
    }
}
