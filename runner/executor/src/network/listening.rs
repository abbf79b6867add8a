//! Where a guest's own sockets may listen: on the ports that its container names, and nowhere else. Pure.
//!
//! A guest binds the port that it knows, on any address (`0.0.0.0`). Its socket gets the address that the runner keeps for that
//! port: its own address, so that runners on one machine do not meet, and another port where that one was taken.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;

use serde::Deserialize;

/// Who sent a datagram and may be answered: so many. The oldest is forgotten for one more.
const MAX_CALLERS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// One port (`Listening` in `engine.py`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Port {
    pub protocol: Protocol,
    /// By which the guest knows it.
    pub named: u16,
    /// Where it is.
    pub at: SocketAddr,
}

/// All of a guest's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Ports(Vec<Port>);

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

impl Ports {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, protocol: Protocol) -> impl Iterator<Item = &Port> {
        self.0.iter().filter(move |port| port.protocol == protocol)
    }

    pub fn any(&self, protocol: Protocol) -> bool {
        self.of(protocol).next().is_some()
    }

    /// The TCP ports that are bound, as the kernel knows them.
    pub fn tcp(&self) -> Vec<u16> {
        self.of(Protocol::Tcp).map(|port| port.at.port()).collect()
    }

    /// Where a socket is to be bound that its guest binds to this address: there, unless it is one of these ports.
    pub fn place(&self, protocol: Protocol, address: SocketAddr) -> SocketAddr {
        self.of(protocol)
            .find(|port| {
                let meant = address.ip().is_unspecified() || address.ip() == port.at.ip();
                port.named == address.port() && meant && address.is_ipv4() == port.at.is_ipv4()
            })
            .map_or(address, |port| port.at)
    }

    /// Whether that is one of the places.
    pub fn contain(&self, protocol: Protocol, address: SocketAddr) -> bool {
        self.of(protocol).any(|port| port.at == address)
    }

    /// Why a socket can't be bound there.
    pub fn why_not(&self, protocol: Protocol, address: SocketAddr) -> String {
        match self.of(protocol).find(|port| port.named == address.port()) {
            Some(port) if port.at.is_ipv4() != address.is_ipv4() => {
                format!("the runner's address is {}", port.at.ip())
            }
            Some(port) => format!("its own ports are on 0.0.0.0, or {}", port.at.ip()),
            None if address.port() == 0 => "only a port that its container names can be had".to_owned(),
            None => format!("its container names no {protocol} port {}", address.port()),
        }
    }
}

/// Who sent datagrams to a guest that listens.
#[derive(Default)]
pub struct Callers {
    known: HashSet<SocketAddr>,
    order: VecDeque<SocketAddr>,
}

impl Callers {
    pub fn add(&mut self, address: SocketAddr) {
        if !self.known.insert(address) {
            return;
        }
        if self.order.len() == MAX_CALLERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(address);
    }

    pub fn contain(&self, address: SocketAddr) -> bool {
        self.known.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Ports {
        let port = |protocol, named, at: &str| Port {
            protocol,
            named,
            at: at.parse().unwrap(),
        };
        Ports(vec![
            port(Protocol::Tcp, 8080, "10.0.0.7:8080"),
            port(Protocol::Tcp, 9090, "10.0.0.7:20001"),
            port(Protocol::Udp, 5353, "10.0.0.7:5353"),
        ])
    }

    #[test]
    fn a_named_port_is_where_the_runner_keeps_it() {
        let place = |protocol, address: &str| ports().place(protocol, address.parse().unwrap()).to_string();
        assert_eq!(place(Protocol::Tcp, "0.0.0.0:8080"), "10.0.0.7:8080");
        assert_eq!(place(Protocol::Tcp, "0.0.0.0:9090"), "10.0.0.7:20001");
        assert_eq!(place(Protocol::Tcp, "10.0.0.7:9090"), "10.0.0.7:20001");
        assert_eq!(place(Protocol::Udp, "0.0.0.0:5353"), "10.0.0.7:5353");
        for other in [
            "127.0.0.1:8080",
            "10.0.0.8:8080",
            "[::]:8080",
            "0.0.0.0:5353",
            "0.0.0.0:0",
        ] {
            assert_eq!(place(Protocol::Tcp, other), other);
        }
    }

    #[test]
    fn nothing_else_can_be_bound() {
        let may = |protocol, address: &str| ports().contain(protocol, address.parse().unwrap());
        assert!(may(Protocol::Tcp, "10.0.0.7:20001"));
        for other in ["0.0.0.0:8080", "127.0.0.1:8080", "10.0.0.7:9090", "10.0.0.7:5353"] {
            assert!(!may(Protocol::Tcp, other), "{other}");
        }
        assert!(!may(Protocol::Udp, "10.0.0.7:8080"));
        let why = |address: &str| ports().why_not(Protocol::Tcp, address.parse().unwrap());
        assert_eq!(why("0.0.0.0:5353"), "its container names no TCP port 5353");
        assert_eq!(why("[::]:8080"), "the runner's address is 10.0.0.7");
        assert_eq!(why("127.0.0.1:8080"), "its own ports are on 0.0.0.0, or 10.0.0.7");
    }

    #[test]
    fn callers_are_bounded() {
        let mut callers = Callers::default();
        let address = |number: usize| SocketAddr::from(((number as u32).to_be_bytes(), 53));
        for number in 0..MAX_CALLERS + 10 {
            callers.add(address(number));
            callers.add(address(number));
        }
        assert_eq!(callers.known.len(), MAX_CALLERS);
        assert_eq!(callers.order.len(), MAX_CALLERS);
        assert!(!callers.contain(address(9)));
        assert!(callers.contain(address(10)));
    }
}
