//! Requests that a guest sends: none are allowed.

use std::future::ready;

use hyper::http::{Request, Response};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// What wasmtime asks of its host.
pub struct Outbound;

/// How a request or an answer goes on once its head is there.
type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        _request: Request<WasiBody>,
        _options: Option<RequestOptions>,
        _transfer: Transfer,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Transfer), Error>> + Send> {
        Box::new(ready(Err(Error::HttpRequestDenied)))
    }
}
