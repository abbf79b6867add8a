//! What a guest's store holds: the same for modules and components.

use std::sync::Arc;

use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limiter::Limiter;
use crate::network::{Gate, Networked, Outbound};
use crate::output::SharedLog;

pub struct State {
    pub wasi: WasiP1Ctx,
    pub limiter: Limiter,
    pub log: SharedLog,
    pub http: WasiHttpCtx,
    pub outbound: Outbound,
    pub gate: Arc<Gate>,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: self.wasi.ctx().table,
            ctx: &mut self.http,
        }
    }
}

impl Networked for State {
    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}
