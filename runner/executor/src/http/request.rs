//! One request: an instance for it alone, a time in which it has to be done, and an answer in any case.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::WasiBody;

use super::counts::Counts;
use super::instances::Instance;
use super::server::Server;
use super::stream::Phase;
use crate::log::Log;
use crate::trap_text;

/// Of a request's target, as much as is told of it in a log.
const TOLD_CHARACTERS: usize = 200;

const WELL: u8 = 0;
const FAILED: u8 = 1;
const OVERDUE: u8 = 2;
const NO_MEMORY: u8 = 3;

/// What became of the guest's part. Set before its store is dropped, for that ends an answer's body as if it were complete.
#[derive(Clone, Default)]
struct Outcome(Arc<AtomicU8>);

impl Outcome {
    fn get(&self) -> u8 {
        self.0.load(Relaxed)
    }
}

/// What a guest gave: an answer, or the code of an error, as a log has it.
pub(super) type Answered = Result<Response<WasiBody>, String>;

/// Handle a request of a connection. It is answered whatever the guest does.
pub async fn handle(
    server: Arc<Server>,
    mut request: Request<Incoming>,
    phase: Phase,
) -> Result<Response<AnswerBody>, Infallible> {
    phase.working();
    let mut tally = Tally::new(server.counts, phase);
    let outcome = Outcome::default();
    let response = match server.requests.clone().try_acquire_owned() {
        Err(_) => {
            server.counts.refused();
            busy("as many requests as this server takes at once are being handled")
        }
        Ok(permit) if has_host(&mut request) => ask_guest(&server, request, &outcome, permit).await,
        Ok(_) => plain(StatusCode::BAD_REQUEST, "the request has no Host header"),
    };
    tally.status = response.status().as_u16();
    Ok(response.map(|body| AnswerBody { body, outcome, tally }))
}

/// Whether a request says which host it is for; a client of HTTP/1.0 need not, and then it is this one.
fn has_host(request: &mut Request<Incoming>) -> bool {
    if request.version() < Version::HTTP_11 && !request.headers().contains_key(HOST) {
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
    }
    request.uri().authority().is_some() || request.headers().contains_key(HOST)
}

async fn ask_guest(
    server: &Arc<Server>,
    request: Request<Incoming>,
    outcome: &Outcome,
    permit: OwnedSemaphorePermit,
) -> Response<WasiBody> {
    let (sender, receiver) = oneshot::channel();
    // A task of its own: a guest may go on when its answer is there, and a client that is gone ends only its connection.
    let guest = Unanswered(Some(tokio::spawn(attend(
        Arc::clone(server),
        request,
        sender,
        outcome.clone(),
        permit,
    ))));
    let answered = receiver.await;
    guest.goes_on();
    match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            server.tell(&format!("the guest answered with an error: {error}"));
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the guest answered with an error")
        }
        // The sender ended with the instance's store.
        Err(_) => match outcome.get() {
            OVERDUE => plain(StatusCode::GATEWAY_TIMEOUT, "the guest did not answer in time"),
            NO_MEMORY => busy("there is no memory for another instance now"),
            FAILED => plain(StatusCode::INTERNAL_SERVER_ERROR, "the guest failed"),
            _ => {
                server.counts.failed();
                server.tell("the guest ended without an answer");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the guest gave no answer")
            }
        },
    }
}

/// A guest whose answer somebody waits for. When nobody does any more, it need not go on.
struct Unanswered(Option<JoinHandle<()>>);

impl Unanswered {
    /// Its task is nobody's any more. A handle that were forgotten would keep the task's memory.
    fn goes_on(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(guest) = &self.0 {
            guest.abort();
        }
    }
}

/// Have an instance handle a request, in its time.
async fn attend(
    server: Arc<Server>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
    outcome: Outcome,
    _permit: OwnedSemaphorePermit,
) {
    let _lives = server.lives();
    let (method, target) = (request.method().clone(), request.uri().clone());
    let mut instance = match server.instance() {
        Ok(instance) => instance,
        Err(message) => {
            outcome.0.store(FAILED, Relaxed);
            server.counts.failed();
            return server.tell(&message);
        }
    };
    let until = tokio::time::Instant::now() + server.settings.request_timeout();
    let result = timeout_at(until, call(&server, &mut instance, request, sender)).await;
    let (what, word) = match result {
        Ok(Ok(())) => (WELL, None),
        Ok(Err(error)) => {
            server.counts.failed();
            let refused = instance.store.data().limiter.refused();
            let text = format!("{:?}", error.error);
            let word = if trap_text::is_trap(&text) {
                trap_text::readable(&text)
            } else {
                format!("{:#}", error.error)
            };
            match refused {
                Some((wanted, limit)) => (
                    if error.instantiated { FAILED } else { NO_MEMORY },
                    Some(format!(
                        "{word}\n(all instances together wanted {wanted} bytes of memory, and the limit is {limit})"
                    )),
                ),
                // All that the pool has is in use.
                None if error.error.is::<PoolConcurrencyLimitError>() => (NO_MEMORY, Some(word)),
                None => (FAILED, Some(word)),
            }
        }
        Err(_) => {
            server.counts.overdue();
            let seconds = server.settings.request_seconds;
            (OVERDUE, Some(format!("not done within {seconds} s")))
        }
    };
    outcome.0.store(what, Relaxed);
    match word {
        Some(word) => server.tell(&format!("{}: {word}", told(&method, &target))),
        None => server.log.with(Log::flush),
    }
    if what == WELL {
        if instance.requests >= server.settings.instance_reuse && server.is_at_its_last() {
            // Its client has the answer before the instance is taken apart, which is the kernel's work for a while. Where others
            // are being worked on, they come first anyway.
            tokio::task::yield_now().await;
        }
        server.spares.keep(instance);
    }
}

/// An error, and whether the instance was being made or was running.
struct Failure {
    error: wasmtime::Error,
    instantiated: bool,
}

async fn call(
    server: &Server,
    instance: &mut Instance,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> Result<(), Failure> {
    let making = |error| Failure {
        error,
        instantiated: false,
    };
    let running = |error| Failure {
        error,
        instantiated: true,
    };
    instance.requests += 1;
    let Instance { store, made, .. } = instance;
    let made = match made {
        Some(made) => made,
        None => made.insert(server.handler.instantiate(store).await.map_err(making)?),
    };
    made.call(store, request, sender).await.map_err(running)
}

/// A request as a log names it: what a client wrote is cut, and can't make a line of its own.
fn told(method: &Method, target: &Uri) -> String {
    let text = format!("{method} {target}");
    text.chars().take(TOLD_CHARACTERS).collect()
}

pub(super) fn plain(status: StatusCode, message: &'static str) -> Response<WasiBody> {
    let body = Full::new(Bytes::from_static(message.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn busy(message: &'static str) -> Response<WasiBody> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, message);
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Counts a request, from when it came until its answer is over, and its connection's phase with it.
struct Tally {
    counts: &'static Counts,
    phase: Phase,
    begun: Instant,
    /// Of its answer; 0: there was none, for the client is gone.
    status: u16,
}

impl Tally {
    fn new(counts: &'static Counts, phase: Phase) -> Tally {
        counts.request_begun();
        Tally {
            counts,
            phase,
            begun: Instant::now(),
            status: 0,
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.phase.done();
        self.counts.request_over();
        if self.status != 0 {
            self.counts.answered(self.status, self.begun.elapsed());
        }
    }
}

/// An answer's body. One whose guest failed in the middle does not end as if it were complete.
pub struct AnswerBody {
    body: WasiBody,
    outcome: Outcome,
    tally: Tally,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(None) if !self.body.is_end_stream() && matches!(self.outcome.get(), FAILED | OVERDUE) => {
                Poll::Ready(Some(Err("the guest failed".into())))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(format!("{error:?}").into()))),
            Poll::Ready(Some(Ok(frame))) => {
                self.tally.phase.moved();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
