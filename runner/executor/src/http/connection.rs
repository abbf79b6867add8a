//! One client's connection: hyper speaks HTTP/1.1 on it, or HTTP/2 with who begins with that.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi_http::io::TokioIo;

use super::request::{AnswerBody, handle};
use super::server::Server;
use super::settings::Settings;
use super::stream::{Phase, Stream};

/// Of a connection without a request, when others wait for theirs: then it has to go.
const IDLE_IN_A_CROWD: Duration = Duration::from_secs(1);

/// Of HTTP/2. A client that was told of the end says that it has heard of it, and until then may have sent another request:
/// it has so long to say that.
const FAREWELL: Duration = Duration::from_secs(5);

/// Requests at once on one connection of HTTP/2, as far as the server takes so many.
const STREAMS: usize = 128;

/// Of a request's body, what may come before its guest reads it: of each, and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// Of an answer's body, what may lie here before its client takes it.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Requests that a client takes back before they are looked at, and those that end by its faults: with more of them at once
/// the connection is closed (CVE-2023-44487, RUSTSEC-2024-0003).
const RESETS: usize = 20;

/// Serve a client until it, or the server, is done. What goes wrong on the way is the client's affair.
///
/// When the server drains, the requests that are being worked on are finished and no others are taken. `last`: the
/// connection was made before, but its first request may still come.
pub async fn serve(server: Arc<Server>, client: TcpStream, mut last: bool, _permit: Option<OwnedSemaphorePermit>) {
    let _open = Open::new(Arc::clone(&server));
    let phase = Phase::new();
    let settings = server.settings;
    let mut stream = Stream::new(client, phase.clone(), settings.head_timeout(), settings.idle_timeout());
    let begun = {
        let mut begun = pin!(stream.begins_http_2());
        select! {
            biased;
            begun = &mut begun => begun,
            () = ending(&server, &phase), if !last => {
                if phase.is_waiting() {
                    return;
                }
                last = true;
                begun.await
            }
        }
    };
    let service = service_fn(|request| handle(Arc::clone(&server), request, phase.clone()));
    match begun {
        Ok(false) => {
            let connection = http_1(&settings, last).serve_connection(TokioIo::new(stream), service);
            converse(pin!(connection), &server, &phase, last).await;
        }
        Ok(true) => {
            phase.many_at_once();
            let connection = http_2(&settings).serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            if last {
                connection.as_mut().shut_down();
            }
            converse(connection, &server, &phase, last).await;
        }
        Err(_) => {}
    }
}

fn http_1(settings: &Settings, last: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .keep_alive(!last)
        // Of the stream itself, which tells a slow head from an idle connection.
        .header_read_timeout(None)
        .max_buf_size(settings.head_bytes);
    builder
}

fn http_2(settings: &Settings) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(Tasks);
    builder
        .max_concurrent_streams(settings.max_requests.min(STREAMS) as u32)
        .max_header_list_size(settings.head_bytes.min(u32::MAX as usize) as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS);
    builder
}

/// Speak until the connection is closed; once it is to end, no longer than what was begun takes.
async fn converse<C: Connection>(mut connection: Pin<&mut C>, server: &Server, phase: &Phase, last: bool) {
    let settings = server.settings;
    let stalled = settings.request_timeout() + settings.idle_timeout();
    select! {
        // Before it is told of an end, it sees what has come.
        biased;
        _ = connection.as_mut() => return,
        () = ending(server, phase), if !last => {}
        () = phase.rests(settings.idle_timeout(), stalled) => {}
    }
    connection.as_mut().shut_down();
    select! {
        biased;
        _ = connection.as_mut() => {}
        () = phase.rests(FAREWELL, stalled) => {}
    }
}

/// Until there is a reason to take no more requests: the server drains, or others need the place of this one.
async fn ending(server: &Server, phase: &Phase) {
    let crowded = async {
        loop {
            server.crowded.notified().await;
            if phase.is_idle_for(IDLE_IN_A_CROWD) {
                break;
            }
        }
    };
    let mut lives = server.lives();
    select! {
        _ = lives.wait_for(|draining| *draining) => {}
        () = crowded => {}
    }
}

/// What hyper has of both versions, under different types.
trait Connection: Future {
    /// Take no more requests, and be over when those that were begun are.
    fn shut_down(self: Pin<&mut Self>);
}

impl<S> Connection for http1::Connection<TokioIo<Stream>, S>
where
    S: HttpService<Incoming, ResBody = AnswerBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Connection for http2::Connection<TokioIo<Stream>, S, Tasks>
where
    S: HttpService<Incoming, ResBody = AnswerBody>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Where hyper lets each request of HTTP/2 be worked on.
#[derive(Clone)]
struct Tasks;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// Counts a connection for as long as it is open.
struct Open(Arc<Server>);

impl Open {
    fn new(server: Arc<Server>) -> Open {
        server.counts.connection_opened();
        Open(server)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counts.connection_closed();
    }
}
