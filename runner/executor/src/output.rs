//! A guest's standard output and error, as WASI sees them: streams that write to its log at once, with nothing in between.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::log::{Log, Stream};

/// What a guest may write in one call, and so what it can make the host allocate.
const PERMIT_BYTES: usize = 64 << 10;

/// The log of both streams. One thread uses it; the lock is there because WASI's types ask for it.
#[derive(Clone)]
pub struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    pub fn new(log: Log) -> SharedLog {
        SharedLog(Arc::new(Mutex::new(log)))
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Log) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Write a line of ours.
    pub fn tell(&self, text: &str) {
        self.with(|log| {
            log.write(Stream::Stderr, format!("wherry: {text}\n").as_bytes());
            log.flush();
        });
    }

    pub fn stream(&self, stream: Stream) -> Output {
        Output {
            log: self.clone(),
            stream,
        }
    }
}

/// One of the two streams.
#[derive(Clone)]
pub struct Output {
    log: SharedLog,
    stream: Stream,
}

impl Output {
    fn write(&self, data: &[u8]) {
        self.log.with(|log| log.write(self.stream, data));
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

/// For WASI 0.1 and 0.2.
#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, data: Bytes) -> StreamResult<()> {
        Output::write(self, &data);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }

    async fn blocking_write_and_flush(&mut self, data: Bytes) -> StreamResult<()> {
        Output::write(self, &data);
        Ok(())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

/// For WASI 0.3.
impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Output::write(&self, data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
