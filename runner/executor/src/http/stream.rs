//! A client's connection as bytes, with the patience that hyper does not have: a client that sends no request, or one too
//! slowly, or takes no answer, is cut off.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// What a client of HTTP/2 says first (RFC 9113, 3.4). No request of HTTP/1.1 begins like that.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const WAITING: u8 = 0;
const HEAD: u8 = 1;
const WORKING: u8 = 2;

/// Where a connection is: waiting for a request, reading a request's head, working on a request or several.
#[derive(Clone)]
pub struct Phase(Arc<Shared>);

struct Shared {
    phase: AtomicU8,
    /// Being worked on.
    requests: AtomicU32,
    /// Of HTTP/2: heads of requests come among other things, and are not told from them.
    many: AtomicBool,
    /// When the connection was opened.
    opened: Instant,
    /// When a request began, went on or was over last, in milliseconds from then on.
    moved: AtomicU64,
}

impl Phase {
    pub fn new() -> Phase {
        Phase(Arc::new(Shared {
            phase: AtomicU8::new(WAITING),
            requests: AtomicU32::new(0),
            many: AtomicBool::new(false),
            opened: Instant::now(),
            moved: AtomicU64::new(0),
        }))
    }

    /// From here on there may be several requests at once.
    pub fn many_at_once(&self) {
        self.0.many.store(true, Relaxed);
        self.0.phase.store(WAITING, Relaxed);
    }

    /// A request is there: from here on it has a time of its own.
    pub fn working(&self) {
        self.0.requests.fetch_add(1, Relaxed);
        self.0.phase.store(WORKING, Relaxed);
        self.moved();
    }

    /// Something of an answer is on its way.
    pub fn moved(&self) {
        // Nobody asks for it of a connection that has one request at a time.
        if self.is_many() {
            self.note_time();
        }
    }

    /// A request's answer is over.
    pub fn done(&self) {
        if self.0.requests.fetch_sub(1, Relaxed) == 1 {
            self.0.phase.store(WAITING, Relaxed);
        }
        self.note_time();
    }

    pub fn is_waiting(&self) -> bool {
        self.get() == WAITING
    }

    /// Whether it has been waiting for a request for so long.
    pub fn is_idle_for(&self, time: Duration) -> bool {
        self.is_waiting() && self.still() >= time
    }

    /// Of a connection with many requests at once: until it has been waiting for one for so long, or no request has gone on
    /// for so long.
    pub async fn rests(&self, waiting: Duration, working: Duration) {
        if !self.is_many() {
            return pending().await;
        }
        loop {
            let most = if self.is_waiting() { waiting } else { working };
            match most.checked_sub(self.still()).filter(|left| !left.is_zero()) {
                None => return,
                // No longer than the other time is: the phase may change meanwhile.
                Some(left) => sleep(left.min(waiting)).await,
            }
        }
    }

    fn get(&self) -> u8 {
        self.0.phase.load(Relaxed)
    }

    fn is_many(&self) -> bool {
        self.0.many.load(Relaxed)
    }

    fn note_time(&self) {
        self.0.moved.store(self.0.opened.elapsed().as_millis() as u64, Relaxed);
    }

    /// Since when nothing has moved.
    fn still(&self) -> Duration {
        let moved = Duration::from_millis(self.0.moved.load(Relaxed));
        self.0.opened.elapsed().saturating_sub(moved)
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
    /// Read already, to see what is spoken.
    ahead: Vec<u8>,
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
            ahead: Vec::new(),
            phase,
            head_timeout,
            idle_timeout,
            reading: Patience::new(),
            writing: Patience::new(),
        }
    }
    /// Whether the client speaks HTTP/2, as its first bytes tell.
    pub async fn begins_http_2(&mut self) -> io::Result<bool> {
        poll_fn(|context| {
            while self.ahead.is_empty() || (self.ahead.len() < PREFACE.len() && PREFACE.starts_with(&self.ahead)) {
                let mut space = [0; PREFACE.len()];
                let mut buffer = ReadBuf::new(&mut space[self.ahead.len()..]);
                ready!(self.poll_client(context, &mut buffer))?;
                if buffer.filled().is_empty() {
                    break;
                }
                self.ahead.extend_from_slice(buffer.filled());
            }
            Poll::Ready(Ok(self.ahead == PREFACE))
        })
        .await
    }

    fn poll_client(&mut self, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.client).poll_read(context, buffer);
        if self.phase.is_many() {
            return read; // the connection looks after the time
        }
        if read.is_ready() {
            if self.phase.is_waiting() {
                self.phase.0.phase.store(HEAD, Relaxed);
                self.reading.end();
            }
            return read;
        }
        let phase = self.phase.get();
        let timeout = match phase {
            WAITING => self.idle_timeout,
            HEAD => self.head_timeout,
            _ => {
                self.reading.end();
                return Poll::Pending;
            }
        };
        match self.reading.poll(phase, timeout, context) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return this.poll_client(context, buffer);
        }
        let length = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..length]);
        this.ahead.drain(..length);
        Poll::Ready(Ok(()))
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
