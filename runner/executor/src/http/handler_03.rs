//! wasi:http/handler 0.3: an async function, which may go on when it has answered. What is told of an answer's body comes
//! from the guest's store, so the store is kept going until the body is over and the guest's tasks are.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::HOST;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;
use wasmtime::component::Accessor;
use wasmtime::{Result, Store};
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{Error, FieldMap, WasiBody, WasiHttpView, p3};

use super::request::{Answered, plain};
use super::state::State;

pub async fn call(
    guest: &Service,
    store: &mut Store<State>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> Result<()> {
    let Some(authority) = authority(&request) else {
        let _ = sender.send(Ok(plain(
            StatusCode::BAD_REQUEST,
            "the request's Host header names no host",
        )));
        return Ok(());
    };
    store
        .run_concurrent(async |accessor| answer(guest, accessor, request, authority, sender).await)
        .await?
}

/// Whom a request is for. A guest never sees the header.
fn authority(request: &Request<Incoming>) -> Option<Authority> {
    match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => Authority::try_from(request.headers().get(HOST)?.as_bytes()).ok(),
    }
}

async fn answer(
    guest: &Service,
    accessor: &Accessor<State>,
    request: Request<Incoming>,
    authority: Authority,
    sender: oneshot::Sender<Answered>,
) -> Result<()> {
    let (head, body) = request.into_parts();
    let (request, received) = accessor.with(|mut access| {
        p3::Request::new(
            head.method,
            Some(Scheme::HTTP),
            Some(authority),
            head.uri.into_parts().path_and_query,
            FieldMap::new_immutable(access.data_mut().http().hooks, head.headers),
            None,
            body,
        )
    });
    let over = match guest.handle(accessor, request).await? {
        Ok(answer) => {
            let answer = accessor.with(|access| answer.into_http(access, received))?;
            let (task, over) = oneshot::channel();
            let _ = sender.send(Ok(answer.map(|body| Watched { body, task }.boxed_unsync())));
            Some(over)
        }
        Err(code) => {
            let _ = sender.send(Err(format!("{code:?}")));
            None
        }
    };
    if let Some(over) = over {
        // With nothing: the body was dropped, at its end or with its client.
        let _ = over.await;
    }
    poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
    Ok(())
}

/// An answer's body that its guest's task waits for, and that ends with this task: a body that the host hands through would
/// go on, and one of a guest that is given up would look complete.
struct Watched {
    body: WasiBody,
    task: oneshot::Sender<()>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.task.poll_closed(context).is_ready() {
            return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
