//! The gate of one container's process: asks the rules, remembers what names were told, counts and tells what it refuses.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::counts::{Counts, Kind};
use super::listening::{self, Callers, Protocol};
use super::resolver::{Failure, Resolver};
use super::rules::{Grant, Ports, Refusal, canonical_name};
use super::tls::Roots;
use super::told::Told;
use crate::output::SharedLog;

/// Addresses that were told for names. The oldest is forgotten for one more.
const MAX_REMEMBERED: usize = 4096;

/// Lookups at once; one more waits.
const MAX_LOOKUPS: usize = 16;

/// Connections of outbound HTTP at once; a request for one more fails.
pub const MAX_CONNECTIONS: usize = 100;

/// Of a name, as much as is told of it in a log.
const TOLD_CHARACTERS: usize = 200;

pub struct Gate {
    /// None: nothing is granted.
    grant: Option<Grant>,
    /// Where its own sockets may listen.
    listening: listening::Ports,
    /// Where the rules stand, for messages.
    fields: Fields,
    resolver: Resolver,
    roots: Roots,
    lookups: Semaphore,
    connections: Arc<Semaphore>,
    remembered: Mutex<Remembered>,
    callers: Mutex<Callers>,
    told: Mutex<Told>,
    counts: &'static Counts,
    log: SharedLog,
}

/// What a user writes to allow something.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fields {
    pub allowed_hosts: String,
    pub allow_dns: String,
}

/// Why a name gives no addresses. What is refused was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAddresses {
    Refused,
    /// The name is allowed, and all its addresses are refused.
    AddressesRefused,
    NotFound,
    NoAnswer,
}

/// The addresses that were told for names, and on which ports they may be used.
#[derive(Default)]
struct Remembered {
    ports: HashMap<IpAddr, Vec<Ports>>,
    order: VecDeque<IpAddr>,
}

impl Gate {
    pub fn new(
        mut grant: Option<Grant>,
        listening: listening::Ports,
        fields: Fields,
        counts: &'static Counts,
        log: &SharedLog,
    ) -> Gate {
        let taken = grant.as_mut().map(|grant| {
            let servers = std::mem::take(&mut grant.nameservers);
            (servers, std::mem::take(&mut grant.certificates))
        });
        let (servers, certificates) = taken.unwrap_or_default();
        Gate {
            grant,
            listening,
            fields,
            resolver: Resolver::new(servers),
            roots: Roots::new(certificates),
            lookups: Semaphore::new(MAX_LOOKUPS),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            remembered: Mutex::default(),
            callers: Mutex::default(),
            told: Mutex::new(Told::new()),
            counts,
            log: log.clone(),
        }
    }

    /// Whether anything is granted at all.
    pub fn is_open(&self) -> bool {
        self.grant.is_some() || !self.listening.is_empty()
    }

    /// Whether it may connect to anybody.
    pub fn reaches(&self) -> bool {
        self.grant.is_some()
    }

    /// What an address may be used for: `what` is told if it is refused.
    pub fn allows(&self, what: &str, address: SocketAddr) -> bool {
        match self.check(address) {
            Ok(()) => true,
            Err(refusal) => {
                self.refuse(Kind::Address, format_args!("{what} to {address}"), &self.why(&refusal));
                false
            }
        }
    }

    /// The same, and nobody is told.
    fn covers(&self, address: SocketAddr) -> bool {
        self.check(address).is_ok()
    }

    /// Sockets are refused where nothing is granted, neither to reach out nor to listen.
    pub fn allows_sockets(&self, protocol: Protocol) -> bool {
        let allowed = self.grant.is_some() || self.listening.any(protocol);
        if !allowed {
            let why = self.why(&Refusal::Uncovered);
            self.refuse(Kind::Socket, format_args!("a {protocol} socket"), &why);
        }
        allowed
    }

    pub fn listens(&self, protocol: Protocol) -> bool {
        self.listening.any(protocol)
    }

    /// Where a socket is to be bound that its guest binds to this address.
    pub fn place(&self, protocol: Protocol, address: SocketAddr) -> SocketAddr {
        self.listening.place(protocol, address)
    }

    /// Whether a socket may be bound to this address, or listen on it.
    pub fn allows_binding(&self, protocol: Protocol, address: SocketAddr) -> bool {
        let allowed = self.listening.contain(protocol, address);
        if !allowed {
            let why = self.listening.why_not(protocol, address);
            self.refuse(Kind::Socket, format_args!("binding {address} by {protocol}"), &why);
        }
        allowed
    }

    /// A datagram came. Whether the guest gets it: one that listens gets each, and may answer who sent it.
    pub fn takes_datagram(&self, from: SocketAddr) -> bool {
        let listens = self.listens(Protocol::Udp);
        if listens {
            lock(&self.callers).add(from);
        }
        listens || self.covers(from)
    }

    /// Whether a datagram may be sent there: by the rules, or as an answer.
    pub fn allows_datagram(&self, to: SocketAddr) -> bool {
        lock(&self.callers).contain(to) || self.allows("UDP", to)
    }

    /// The addresses of a name that the guest looks up.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NoAddresses> {
        if let Ok(address) = name.parse() {
            // Tells nothing to anybody: it is checked when it is used.
            return Ok(vec![address]);
        }
        if self.grant.as_ref().is_some_and(|grant| !grant.lookups) {
            let why = format!("{} is false", self.fields.allow_dns);
            self.refuse(Kind::Name, format_args!("looking up {}", told(name)), &why);
            return Err(NoAddresses::Refused);
        }
        self.addresses(name, |name| format!("looking up {name}"), |_| true)
            .await
    }

    /// Where a request for a host is to be sent: addresses that were checked.
    pub async fn destinations(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NoAddresses> {
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = literal.unwrap_or(host).parse() {
            let address = SocketAddr::new(address, port);
            return if self.allows("HTTP", address) {
                Ok(vec![address])
            } else {
                Err(NoAddresses::AddressesRefused)
            };
        }
        let found = self
            .addresses(
                host,
                |host| format!("HTTP to {host}:{port}"),
                |ports| ports.contain(port),
            )
            .await?;
        let mut allowed = Vec::new();
        for address in found {
            let address = SocketAddr::new(address, port);
            if self.allows("HTTP", address) {
                allowed.push(address);
            }
        }
        if allowed.is_empty() {
            return Err(NoAddresses::AddressesRefused);
        }
        Ok(allowed)
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Room for a connection of outbound HTTP, as long as the permit lives.
    pub fn room_for_connection(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.connections).try_acquire_owned().ok();
        if permit.is_none() {
            let why = format!("{MAX_CONNECTIONS} are open");
            self.refuse(Kind::Crowded, "another connection for HTTP", &why);
        }
        permit
    }

    /// Looks up a name, if rules with such ports cover it, and remembers what it answers. `what`: how it is told.
    async fn addresses(
        &self,
        name: &str,
        what: impl Fn(&str) -> String,
        fits: impl Fn(&Ports) -> bool,
    ) -> Result<Vec<IpAddr>, NoAddresses> {
        let canonical = canonical_name(name);
        let ports = match (&self.grant, &canonical) {
            (Some(grant), Some(name)) => grant.ports_of(name),
            _ => Vec::new(),
        };
        let Some(canonical) = canonical.filter(|_| ports.iter().any(fits)) else {
            let why = self.why(&Refusal::Uncovered);
            self.refuse(Kind::Name, what(&told(name)), &why);
            return Err(NoAddresses::Refused);
        };
        let found = {
            // Never closed.
            let _turn = self.lookups.acquire().await;
            self.resolver.addresses(&canonical).await
        };
        let found = found.map_err(|failure| match failure {
            Failure::NotFound => NoAddresses::NotFound,
            Failure::NoAnswer => NoAddresses::NoAnswer,
        })?;
        let mut allowed = Vec::new();
        for address in found {
            let checked = self.grant.as_ref().map(|grant| grant.check_answer(address));
            match checked {
                Some(Ok(())) => allowed.push(address),
                Some(Err(refusal)) => {
                    let which = format!("{}, which is {address},", what(&canonical));
                    self.refuse(Kind::Address, which, &self.why(&refusal));
                }
                None => {}
            }
        }
        if allowed.is_empty() {
            return Err(NoAddresses::AddressesRefused);
        }
        let mut remembered = lock(&self.remembered);
        for address in &allowed {
            remembered.add(address.to_canonical(), &ports);
        }
        Ok(allowed)
    }

    fn check(&self, address: SocketAddr) -> Result<(), Refusal> {
        let Some(grant) = &self.grant else {
            return Err(Refusal::Uncovered);
        };
        let remembered = lock(&self.remembered);
        let named = remembered.ports.get(&address.ip().to_canonical());
        grant.check(address.ip(), address.port(), named.map_or(&[], Vec::as_slice))
    }

    fn why(&self, refusal: &Refusal) -> String {
        let field = &self.fields.allowed_hosts;
        match refusal {
            Refusal::Uncovered if self.grant.is_none() => format!("{field} grants nothing"),
            Refusal::Uncovered => format!("{field} does not name it"),
            Refusal::Protected(what) => format!("this is {what}, and needs an address of its own in {field}"),
        }
    }

    /// Count a refusal, and tell it, unless too many were told.
    fn refuse(&self, kind: Kind, what: impl Display, why: &str) {
        self.counts.refused(kind);
        if let Some(untold) = lock(&self.told).next(Instant::now()) {
            let more = if untold > 0 {
                format!(" ({untold} more were refused before)")
            } else {
                String::new()
            };
            self.log.tell(&format!("network: {what} is refused: {why}{more}"));
        }
    }
}

impl Remembered {
    fn add(&mut self, address: IpAddr, ports: &[Ports]) {
        if !self.ports.contains_key(&address) {
            if self.order.len() == MAX_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.ports.remove(&oldest);
            }
            self.order.push_back(address);
        }
        let known = self.ports.entry(address).or_default();
        for range in ports {
            if !known.contains(range) {
                known.push(*range);
            }
        }
    }
}

/// What a guest wrote, for a log: cut, and without what could make a line of its own.
fn told(name: &str) -> String {
    name.chars()
        .take(TOLD_CHARACTERS)
        .flat_map(char::escape_debug)
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        let address = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        let ports = [Ports { first: 443, last: 443 }];
        for number in 0..MAX_REMEMBERED + 10 {
            remembered.add(address(number), &ports);
            remembered.add(address(number), &ports);
        }
        assert_eq!(remembered.ports.len(), MAX_REMEMBERED);
        assert_eq!(remembered.order.len(), MAX_REMEMBERED);
        assert!(!remembered.ports.contains_key(&address(9)));
        assert_eq!(remembered.ports[&address(10)], ports);
    }

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        assert_eq!(told("a\nwherry: b\u{7}"), "a\\nwherry: b\\u{7}");
        assert_eq!(told(&"x".repeat(1000)).len(), TOLD_CHARACTERS);
    }
}
