//! What every guest would do first, done once before there is any.
//!
//! What a library writes down when it is used for the first time is then written in the executor, where all guests share it. Written
//! in each of them, a word is a page of its own.

/// To be called once. Fails if the kernel gives no random numbers.
pub fn prepare() -> Result<(), getrandom::Error> {
    // Asks the C library for a key.
    let _ = std::thread::current();
    // The stack for signals, which a guest has from its executor: three calls of the kernel less for each.
    wasmtime::Engine::tls_eager_initialize();
    // How to ask the kernel is looked up (by the dynamic loader, which writes too). The byte is nobody's: none is kept that a
    // guest could be given.
    getrandom::fill(&mut [0])
}
