//! What a store must have for its instances to be linked with the network.

use std::sync::Arc;

use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi::WasiView;

use super::gate::Gate;
use super::{lookup, sockets};

/// A store's state with a gate.
pub trait Networked: WasiView + 'static {
    fn gate(&self) -> &Arc<Gate>;
}

/// Put our own functions in place of wasmtime's, where those know no names or tell nobody. Were one not replaced, because
/// its interface has another version there: wasmtime's own denies.
pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>) -> Result<()> {
    linker.allow_shadowing(true);
    lookup::add_to_linker(linker)?;
    sockets::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}
