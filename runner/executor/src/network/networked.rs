//! What a store must have for its instances to be linked with the network.

use std::sync::Arc;

use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi::WasiView;

use super::gate::Gate;
use super::{lookup, sockets, wasi_03};

/// A store's state with a gate.
pub trait Networked: WasiView + 'static {
    fn gate(&self) -> &Arc<Gate>;
}

/// Put our own functions in place of wasmtime's, where those know no names or tell nobody; of WASI 0.3 too, where it is linked.
/// Were one not replaced, because its interface has another version there: wasmtime's own denies.
pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>, with_03: bool) -> Result<()> {
    linker.allow_shadowing(true);
    lookup::add_to_linker(linker)?;
    sockets::add_to_linker(linker)?;
    if with_03 {
        wasi_03::add_to_linker(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}
