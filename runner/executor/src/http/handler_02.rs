//! wasi:http/incoming-handler 0.2: a function that is done when the guest is.

use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use wasmtime::{Result, Store};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use super::request::Answered;
use super::state::State;

pub async fn call(
    guest: &Proxy,
    store: &mut Store<State>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> Result<()> {
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let answer = http.new_response_outparam_from_callback(move |answer| {
        // Nobody there to take it: its client is gone.
        let _ = sender.send(answer.map_err(|code| format!("{code:?}")));
    })?;
    guest
        .wasi_http_incoming_handler()
        .call_handle(store, request, answer)
        .await
}
