//! What a guest's store holds: the same for modules and components.

use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};

use crate::limiter::Limiter;
use crate::output::SharedLog;

pub struct State {
    pub wasi: WasiP1Ctx,
    pub limiter: Limiter,
    pub log: SharedLog,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}
