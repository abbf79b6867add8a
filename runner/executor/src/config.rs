//! The one configuration of wasmtime: the compiler's and the executor's must be the same.
//!
//! wasmtime refuses native code that was compiled under other options (most of them), and takes silently what differs in
//! the rest. So both programs make their engines here. Whoever changes what code comes out counts up `OPTIONS` in
//! `wherry_runner/modules/compile.py`, which is part of the key of the compile cache.

use wasmtime::{Config, Engine};

/// The release of wasmtime in both programs, exact in Cargo.toml.
#[allow(dead_code)] // the compiler does not tell it
const WASMTIME: &str = "48.0.8";

/// The executor's name, e.g. `native/wasmtime-48.0.8`: a part of the key of the compile cache.
#[allow(dead_code)] // the compiler does not tell it
pub fn name() -> String {
    format!("native/wasmtime-{WASMTIME}")
}

/// How a module is compiled: each is native code of its own (`engine.Variant` on the supervisor's side).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A command that nothing counts: it is stopped by ending its process.
    Plain,
    /// A command whose instructions are counted.
    Fuel,
}

impl Variant {
    /// The variant of this name, if it is one.
    pub fn parse(name: &str) -> Option<Variant> {
        match name {
            "plain" => Some(Variant::Plain),
            "fuel" => Some(Variant::Fuel),
            _ => None,
        }
    }
}

/// What a module is: whether it runs once and is ended by a kill, or has many instances that share a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Command,
    /// Its code asks at every loop and function whether others are to have their turn.
    Server,
}

/// An engine for modules of this variant. Without `wasi_03` it knows nothing of what only WASI 0.3 needs, and its stores
/// are not made for it.
pub fn engine(variant: Variant, life: Life, wasi_03: bool) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.consume_fuel(variant == Variant::Fuel);
    config.epoch_interruption(life == Life::Server);
    config.concurrency_support(wasi_03);
    if wasi_03 {
        config.wasm_component_model_async(true);
    }
    Engine::new(&config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_that_is_built() {
        assert!(include_str!("../Cargo.toml").contains(&format!("version = \"={WASMTIME}\"")));
    }
}
