//! A component that serves, of either version of WASI: what they have in common ends here.

use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use wasmtime::component::InstancePre;
use wasmtime::{Result, Store};
use wasmtime_wasi_http::{p2, p3};

use super::request::Answered;
use super::state::State;
use super::{handler_02, handler_03};

/// By which way it is given requests.
#[derive(Clone)]
pub enum Handler {
    Wasi02(p2::bindings::ProxyPre<State>),
    Wasi03(p3::bindings::ServicePre<State>),
}

impl Handler {
    /// Fails if the component does not export what its version says.
    pub fn new(component: InstancePre<State>, is_03: bool) -> Result<Handler> {
        Ok(if is_03 {
            Handler::Wasi03(p3::bindings::ServicePre::new(component)?)
        } else {
            Handler::Wasi02(p2::bindings::ProxyPre::new(component)?)
        })
    }

    pub async fn instantiate(&self, store: &mut Store<State>) -> Result<Made> {
        Ok(match self {
            Handler::Wasi02(component) => Made::Wasi02(component.instantiate_async(store).await?),
            Handler::Wasi03(component) => Made::Wasi03(component.instantiate_async(store).await?),
        })
    }
}

/// An instance of it.
pub enum Made {
    Wasi02(p2::bindings::Proxy),
    Wasi03(p3::bindings::Service),
}

impl Made {
    /// Handle a request to the end of the guest's part. The answer goes to `sender` when its head is there.
    pub async fn call(
        &self,
        store: &mut Store<State>,
        request: Request<Incoming>,
        sender: oneshot::Sender<Answered>,
    ) -> Result<()> {
        match self {
            Made::Wasi02(guest) => handler_02::call(guest, store, request, sender).await,
            // In a box: a request of 0.2 has no room for it in its task.
            Made::Wasi03(guest) => Box::pin(handler_03::call(guest, store, request, sender)).await,
        }
    }
}
