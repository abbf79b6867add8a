//! One client's connection: hyper speaks HTTP/1.1 on it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi_http::io::TokioIo;

use super::request::handle;
use super::server::Server;
use super::stream::{Phase, Stream};

/// Of a connection without a request, when others wait for theirs: then it has to go.
const IDLE_IN_A_CROWD: Duration = Duration::from_secs(1);

/// Serve a client until it, or the server, is done. What goes wrong on the way is the client's affair.
///
/// When the server drains, a request that is being worked on is finished and no other is taken. `last`: the connection was
/// made before, but its first request may still come.
pub async fn serve(server: Arc<Server>, client: TcpStream, last: bool, _permit: Option<OwnedSemaphorePermit>) {
    let _open = Open::new(Arc::clone(&server));
    let phase = Phase::new();
    let settings = server.settings;
    let stream = Stream::new(client, phase.clone(), settings.head_timeout(), settings.idle_timeout());
    let mut drained = server.lives();
    let service = service_fn(|request| handle(Arc::clone(&server), request, phase.clone()));
    let mut connection = pin!(
        http1::Builder::new()
            .keep_alive(!last)
            // Of the stream itself, which tells a slow head from an idle connection.
            .header_read_timeout(None)
            .max_buf_size(settings.head_bytes)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut draining = pin!(drained.wait_for(|draining| *draining));
    let mut crowded = pin!(server.crowded.notified());
    let mut told = last;
    let _ = poll_fn(|context| {
        if !told && draining.as_mut().poll(context).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        while crowded.as_mut().poll(context).is_ready() {
            crowded.set(server.crowded.notified());
            if phase.is_idle_for(IDLE_IN_A_CROWD) {
                connection.as_mut().graceful_shutdown();
            }
        }
        connection.as_mut().poll(context)
    })
    .await;
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
