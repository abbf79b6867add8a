//! A client's connection as bytes, with the patience that hyper does not have: a client that sends no request, or one too
//! slowly, or takes no answer, is cut off.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

const WAITING: u8 = 0;
const HEAD: u8 = 1;
const WORKING: u8 = 2;

/// Where a connection is: waiting for a request, reading a request's head, working on a request.
#[derive(Clone)]
pub struct Phase(Arc<Shared>);

struct Shared {
    phase: AtomicU8,
    /// When the connection was opened.
    opened: Instant,
    /// Since when it waits for a request, in milliseconds from then on.
    waiting_since: AtomicU64,
}

impl Phase {
    pub fn new() -> Phase {
        Phase(Arc::new(Shared {
            phase: AtomicU8::new(WAITING),
            opened: Instant::now(),
            waiting_since: AtomicU64::new(0),
        }))
    }

    /// A request is there: from here on it has a time of its own.
    pub fn working(&self) {
        self.0.phase.store(WORKING, Relaxed);
    }

    /// Its answer is over.
    pub fn waiting(&self) {
        self.0.waiting_since.store(self.milliseconds(), Relaxed);
        self.0.phase.store(WAITING, Relaxed);
    }

    /// Whether it has been waiting for a request for so long.
    pub fn is_idle_for(&self, time: Duration) -> bool {
        let waited = self.milliseconds() - self.0.waiting_since.load(Relaxed);
        self.get() == WAITING && u128::from(waited) >= time.as_millis()
    }

    fn get(&self) -> u8 {
        self.0.phase.load(Relaxed)
    }

    fn milliseconds(&self) -> u64 {
        self.0.opened.elapsed().as_millis() as u64
    }
}

/// How long to wait for one thing that the client has to do.
struct Patience {
    /// In which phase the wait began; none: nothing is waited for.
    phase: Option<u8>,
    until: Pin<Box<Sleep>>,
}

impl Patience {
    fn new() -> Patience {
        Patience {
            phase: None,
            until: Box::pin(sleep(Duration::ZERO)),
        }
    }

    /// Wait on, or begin to. Fails when the time is over.
    fn poll(&mut self, phase: u8, timeout: Duration, context: &mut Context) -> io::Result<()> {
        if self.phase.replace(phase) != Some(phase) {
            self.until.as_mut().reset(Instant::now() + timeout);
        }
        match self.until.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn end(&mut self) {
        self.phase = None;
    }
}

pub struct Stream {
    client: TcpStream,
    phase: Phase,
    head_timeout: Duration,
    idle_timeout: Duration,
    reading: Patience,
    writing: Patience,
}

impl Stream {
    pub fn new(client: TcpStream, phase: Phase, head_timeout: Duration, idle_timeout: Duration) -> Stream {
        Stream {
            client,
            phase,
            head_timeout,
            idle_timeout,
            reading: Patience::new(),
            writing: Patience::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.client).poll_read(context, buffer);
        if read.is_ready() {
            if this.phase.get() == WAITING {
                this.phase.0.phase.store(HEAD, Relaxed);
                this.reading.end();
            }
            return read;
        }
        let phase = this.phase.get();
        let timeout = match phase {
            WAITING => this.idle_timeout,
            HEAD => this.head_timeout,
            _ => {
                this.reading.end();
                return Poll::Pending;
            }
        };
        match this.reading.poll(phase, timeout, context) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.client).poll_write(context, data);
        if written.is_ready() {
            this.writing.end();
            return written;
        }
        match this.writing.poll(WORKING, this.idle_timeout, context) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().client).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().client).poll_shutdown(context)
    }
}
