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

/// Of a server, as many instances as memory is reserved for where it is kept from one to the next.
#[cfg(feature = "executor")]
const POOLED_INSTANCES: u32 = 1_000;

/// Core modules in one of them, with what each may have: components of many parts have dozens.
#[cfg(feature = "executor")]
const POOLED_MODULES: u32 = 20;
#[cfg(feature = "executor")]
const POOLED_TABLE_ELEMENTS: usize = 100_000;
#[cfg(feature = "executor")]
const POOLED_INSTANCE_BYTES: usize = 4 << 20;

/// An engine for servers whose instances take their memory from a pool: they are made sooner, and a server takes more memory.
/// The code is that of others.
#[cfg(feature = "executor")]
pub fn pooling_engine(variant: Variant, wasi_03: bool) -> wasmtime::Result<Engine> {
    let mut pool = wasmtime::PoolingAllocationConfig::default();
    pool.total_component_instances(POOLED_INSTANCES)
        .total_core_instances(POOLED_INSTANCES * POOLED_MODULES)
        .total_memories(POOLED_INSTANCES)
        .total_tables(POOLED_INSTANCES * POOLED_MODULES)
        .total_stacks(POOLED_INSTANCES)
        .max_core_instances_per_component(POOLED_MODULES * 10)
        .max_tables_per_component(POOLED_MODULES * 10)
        .max_component_instance_size(POOLED_INSTANCE_BYTES)
        .max_core_instance_size(POOLED_INSTANCE_BYTES)
        .table_elements(POOLED_TABLE_ELEMENTS);
    let mut config = config(variant, Life::Server, wasi_03);
    config.allocation_strategy(pool);
    Engine::new(&config)
}

/// An engine for modules of this variant. Without `wasi_03` it knows nothing of what only WASI 0.3 needs, and its stores
/// are not made for it.
pub fn engine(variant: Variant, life: Life, wasi_03: bool) -> wasmtime::Result<Engine> {
    Engine::new(&config(variant, life, wasi_03))
}

fn config(variant: Variant, life: Life, wasi_03: bool) -> Config {
    let mut config = Config::new();
    config.consume_fuel(variant == Variant::Fuel);
    config.epoch_interruption(life == Life::Server);
    config.concurrency_support(wasi_03);
    if wasi_03 {
        config.wasm_component_model_async(true);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_that_is_built() {
        assert!(include_str!("../Cargo.toml").contains(&format!("version = \"={WASMTIME}\"")));
    }
}
