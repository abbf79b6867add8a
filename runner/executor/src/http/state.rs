//! What the store of a request's instance holds, and what the instance is linked with.

use std::sync::Arc;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, Result};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, p2, p3};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limiter::Limiter;
use crate::network::{self, Gate, Networked, Outbound};

pub struct State {
    pub table: ResourceTable,
    pub wasi: WasiCtx,
    pub http: WasiHttpCtx,
    pub outbound: Outbound,
    pub gate: Arc<Gate>,
    pub limiter: Limiter,
}

impl State {
    pub fn new(wasi: WasiCtx, gate: &Arc<Gate>, limiter: Limiter) -> State {
        State {
            table: ResourceTable::new(),
            wasi,
            http: WasiHttpCtx::new(),
            outbound: Outbound::new(gate),
            gate: Arc::clone(gate),
            limiter,
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

impl Networked for State {
    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

/// WASI 0.2 with HTTP, and 0.3 where it is wanted. Sockets, name lookup and outbound requests are there and give what is
/// granted.
pub fn linker(engine: &Engine, wasi_03: bool) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if wasi_03 {
        p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    network::add_to_linker(&mut linker, wasi_03)?;
    Ok(linker)
}
