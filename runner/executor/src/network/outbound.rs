//! wasi:http/outgoing-handler 0.2 and wasi:http/client 0.3: a request goes to an address that was checked, or nowhere.
//!
//! A connection for each request, as wasmtime has it; redirections are answers like others, and where they lead is the
//! guest's next request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::http::uri::Scheme;
use hyper::{Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, timeout, timeout_at};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::gate::{Gate, NoAddresses};
use super::tls;

/// For a connection, unless the guest says less. wasmtime's ten minutes would keep its place for nothing.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// For one of several addresses, before the next is tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// For an answer to begin, and for it to go on, unless the guest says less: wasmtime's.
const ANSWER_PATIENCE: Duration = Duration::from_secs(600);

/// Of an answer's head, and of what lies between a peer and the guest.
const BUFFER_BYTES: usize = 64 << 10;

/// What wasmtime asks of its host.
pub struct Outbound(Arc<Gate>);

/// How a request or an answer goes on once its head is there.
type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;

type Answered = Result<(Response<WasiBody>, Transfer), Error>;

impl Outbound {
    pub fn new(gate: &Arc<Gate>) -> Outbound {
        Outbound(Arc::clone(gate))
    }
}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _transfer: Transfer,
    ) -> Box<dyn Future<Output = Answered> + Send> {
        let gate = Arc::clone(&self.0);
        Box::new(async move { send(&gate, request, options).await })
    }
}

async fn send(gate: &Gate, mut request: Request<WasiBody>, options: Option<RequestOptions>) -> Answered {
    let patience = |wanted: fn(&RequestOptions) -> Option<Duration>, most: Duration| {
        options
            .as_ref()
            .and_then(wanted)
            .map_or(most, |wanted| wanted.min(most))
    };
    let until = Instant::now() + patience(|options| options.connect_timeout, CONNECT_PATIENCE);
    let first_byte = patience(|options| options.first_byte_timeout, ANSWER_PATIENCE);
    let between_bytes = patience(|options| options.between_bytes_timeout, ANSWER_PATIENCE);

    let uri = request.uri();
    let secure = uri.scheme() != Some(&Scheme::HTTP);
    let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?.to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let connecting = async {
        let addresses = gate.destinations(&host, port).await.map_err(no_addresses)?;
        let permit = gate.room_for_connection().ok_or(Error::ConnectionLimitReached)?;
        let stream = connect(&addresses).await?;
        // Small requests are not kept waiting for more.
        let _ = stream.set_nodelay(true);
        if secure {
            let stream = tls::connect(gate.roots(), &host, stream).await?;
            shake_hands(stream, permit).await
        } else {
            shake_hands(stream, permit).await
        }
    };
    let (mut sender, connection) = timeout_at(until, connecting)
        .await
        .map_err(|_| Error::ConnectionTimeout)??;

    // The host stands in its header.
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder()
        .path_and_query(path)
        .build()
        .map_err(|_| Error::HttpRequestUriInvalid)?;
    let answer = timeout(first_byte, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let answer = answer.map(|incoming| Answer::new(incoming, between_bytes).boxed_unsync());
    Ok((answer, Box::new(connection)))
}

fn no_addresses(reason: NoAddresses) -> Error {
    match reason {
        NoAddresses::Refused => Error::HttpRequestDenied,
        NoAddresses::AddressesRefused => Error::DestinationIpProhibited,
        NoAddresses::NotFound => Error::DnsError {
            rcode: Some("NXDOMAIN".into()),
            info_code: None,
        },
        NoAddresses::NoAnswer => Error::DnsTimeout,
    }
}

/// To the first address that answers.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
    let mut failure = Error::DestinationUnavailable;
    for (place, address) in addresses.iter().enumerate() {
        let connecting = TcpStream::connect(address);
        // The last one has all the time that is left.
        let connected = if place + 1 == addresses.len() {
            connecting.await
        } else {
            timeout(ADDRESS_PATIENCE, connecting)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Error::Connect(error),
        }
    }
    Err(failure)
}

type Sender = http1::SendRequest<WasiBody>;

async fn shake_hands<S>(stream: S, permit: OwnedSemaphorePermit) -> Result<(Sender, Connection), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let going_on = tokio::spawn(async move {
        let _permit = permit;
        connection.await
    });
    Ok((sender, Connection(going_on)))
}

/// A connection that goes on by itself, and ends with who has it.
struct Connection(JoinHandle<Result<(), hyper::Error>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for Connection {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::ConnectionTerminated),
        })
    }
}

/// An answer's body, whose next piece is not waited for without end.
struct Answer {
    incoming: Incoming,
    patience: Duration,
    until: Pin<Box<Sleep>>,
}

impl Answer {
    fn new(incoming: Incoming, patience: Duration) -> Answer {
        Answer {
            incoming,
            patience,
            until: Box::pin(sleep(patience)),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(frame) => {
                let patience = self.patience;
                self.until.as_mut().reset(Instant::now() + patience);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                ready!(self.until.as_mut().poll(context));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
