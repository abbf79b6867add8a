//! Asks name servers for a name's addresses.
//!
//! Not the C library: it reads files, which Landlock forbids, wants a thread, and looks in search lists. A name is looked up
//! as it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::Cache;
use super::dns::{self, A, AAAA, Answer};
use crate::random::Kernel;

/// For one server to answer one question.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often each server is asked.
const ROUNDS: usize = 2;

/// Why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The name does not exist, or has none.
    NotFound,
    /// No server could say. Later one may.
    NoAnswer,
}

pub struct Resolver {
    servers: Vec<SocketAddr>,
    cache: Mutex<Cache>,
}

/// Addresses, and for how many seconds they hold.
type Found = (Vec<IpAddr>, u32);

impl Resolver {
    pub fn new(servers: Vec<SocketAddr>) -> Resolver {
        Resolver {
            servers,
            cache: Mutex::default(),
        }
    }

    /// The addresses of a name, as `canonical_name` gives it; never none. Those of IPv4 first.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        if let Some(addresses) = self.cache().get(name, Instant::now()) {
            return Ok(addresses);
        }
        let (four, six) = tokio::join!(self.ask(name, A), self.ask(name, AAAA));
        let failure = match (&four, &six) {
            (Err(Failure::NoAnswer), _) | (_, Err(Failure::NoAnswer)) => Failure::NoAnswer,
            _ => Failure::NotFound,
        };
        let both = [four.unwrap_or_default(), six.unwrap_or_default()];
        let seconds = both
            .iter()
            .filter(|(found, _)| !found.is_empty())
            .map(|(_, seconds)| *seconds);
        let seconds = seconds.min().unwrap_or(0);
        let found: Vec<IpAddr> = both.into_iter().flat_map(|(found, _)| found).collect();
        if found.is_empty() {
            return Err(failure);
        }
        // One that could not say is asked again.
        if failure == Failure::NotFound {
            self.cache().keep(name, &found, seconds, Instant::now());
        }
        Ok(found)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, name: &str, record_type: u16) -> Result<Found, Failure> {
        for _ in 0..ROUNDS {
            for server in &self.servers {
                match timeout(PATIENCE, ask(*server, name, record_type)).await {
                    Ok(Ok(Answer::Addresses(addresses, seconds))) => return Ok((addresses, seconds)),
                    Ok(Ok(Answer::NoName)) => return Err(Failure::NotFound),
                    _ => {}
                }
            }
        }
        Err(Failure::NoAnswer)
    }
}

async fn ask(server: SocketAddr, name: &str, record_type: u16) -> io::Result<Answer> {
    let own: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question, and a number that nobody can guess: who is not the server can't answer for it.
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    let id = u16::from_ne_bytes(Kernel::bytes());
    let question = dns::question(id, name, record_type);
    socket.send(&question).await?;
    let mut buffer = [0; dns::UDP_BYTES as usize];
    loop {
        let count = socket.recv(&mut buffer).await?;
        match dns::answer(&buffer[..count], id, name, record_type) {
            Some(Answer::Cut) => return ask_by_tcp(server, &question, id, name, record_type).await,
            Some(answer) => return Ok(answer),
            None => {}
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &[u8], id: u16, name: &str, record_type: u16) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let mut message = (question.len() as u16).to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(dns::answer(&message, id, name, record_type).unwrap_or(Answer::Failed))
}
