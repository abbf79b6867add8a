//! The rules: which names and addresses a guest may reach, on which ports. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::protected;

/// What a guest is granted (`Network` in `channel.py`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Grant {
    pub destinations: Vec<Destination>,
    /// Whether the guest itself may look up the names.
    pub lookups: bool,
    /// Who is asked for names.
    pub nameservers: Vec<SocketAddr>,
    /// Of authorities that outbound HTTPS believes beside the well-known ones, in PEM.
    #[serde(default)]
    pub certificates: String,
    /// What only a rule that names it opens, beside what is so everywhere.
    pub protected: Vec<Protected>,
}

/// One rule: a name or a network, and ports.
#[derive(Clone, Debug, Deserialize)]
pub struct Destination {
    pub host: Host,
    pub ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Host {
    /// In lower case, without a dot at its end.
    Name(String),
    /// All names below this one, at any depth, but not itself.
    Below(String),
    Network(Block),
}

/// From the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "(u16, u16)")]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Block {
    address: IpAddr,
    prefix: u8,
}

/// Addresses that a name never opens, nor a network that is wider.
#[derive(Clone, Debug, Deserialize)]
pub struct Protected {
    pub block: Block,
    /// Only this one; none: all.
    pub port: Option<u16>,
    /// For the message: `it is …`.
    pub what: String,
}

/// Why an address is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule covers it.
    Uncovered,
    /// It has to be named by its address, for it is this.
    Protected(String),
}

impl From<(u16, u16)> for Ports {
    fn from((first, last): (u16, u16)) -> Ports {
        Ports { first, last }
    }
}

impl Ports {
    pub fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl TryFrom<String> for Block {
    type Error = String;

    /// `10.0.0.0/8`, `2001:db8::1/128`.
    fn try_from(text: String) -> Result<Block, String> {
        let wrong = || format!("{text:?} is no network");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        Block::new(address, prefix).ok_or_else(wrong)
    }
}

impl Block {
    /// None if an address has fewer bits.
    pub const fn new(address: IpAddr, prefix: u8) -> Option<Block> {
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        if prefix > bits {
            return None;
        }
        Some(Block { address, prefix })
    }

    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix);
                own.to_bits().checked_shr(shift) == other.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix);
                own.to_bits().checked_shr(shift) == other.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }

    fn is_within(&self, other: &Block) -> bool {
        self.prefix >= other.prefix && other.contains(self.address)
    }

    fn is_single(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

impl Grant {
    /// To which TCP ports connections may be made at all, name servers' included.
    pub fn tcp_ports(&self) -> Vec<(u16, u16)> {
        let servers = self.nameservers.iter().map(|server| (server.port(), server.port()));
        let ports = self.destinations.iter().map(|rule| (rule.ports.first, rule.ports.last));
        ports.chain(servers).collect()
    }

    /// The ports of all rules that cover a name, as `canonical_name` gives it; empty: none does.
    pub fn ports_of(&self, name: &str) -> Vec<Ports> {
        self.destinations
            .iter()
            .filter(|rule| match &rule.host {
                Host::Name(known) => known == name,
                Host::Below(above) => name
                    .strip_suffix(above.as_str())
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
                Host::Network(_) => false,
            })
            .map(|rule| rule.ports)
            .collect()
    }

    /// Whether an address may be used on a port. `named`: the ports on which it may be, for names whose address it is.
    pub fn check(&self, address: IpAddr, port: u16, named: &[Ports]) -> Result<(), Refusal> {
        let address = address.to_canonical();
        let rules: Vec<&Block> = self.blocks(address, Some(port)).collect();
        self.unguarded(address, Some(port), &rules)?;
        if rules.is_empty() && !named.iter().any(|ports| ports.contain(port)) {
            return Err(Refusal::Uncovered);
        }
        Ok(())
    }

    /// Whether an address may be told to a guest that looks up a name.
    pub fn check_answer(&self, address: IpAddr) -> Result<(), Refusal> {
        let address = address.to_canonical();
        let rules: Vec<&Block> = self.blocks(address, None).collect();
        self.unguarded(address, None, &rules)
    }

    /// The networks of all rules that hold for an address, and a port if one is given.
    fn blocks(&self, address: IpAddr, port: Option<u16>) -> impl Iterator<Item = &Block> {
        self.destinations.iter().filter_map(move |rule| match &rule.host {
            Host::Network(block) if block.contains(address) && port.is_none_or(|port| rule.ports.contain(port)) => {
                Some(block)
            }
            _ => None,
        })
    }

    /// An address that is protected must be named by a rule for it: one whose network is not wider than what is protected.
    fn unguarded(&self, address: IpAddr, port: Option<u16>, rules: &[&Block]) -> Result<(), Refusal> {
        let opens = |guard: &Block| rules.iter().any(|rule| rule.is_within(guard) || rule.is_single());
        let forms = protected::forms(address);
        for (block, what) in protected::everywhere() {
            if forms.iter().any(|form| block.contains(*form)) && !opens(&block) {
                return Err(Refusal::Protected(what.to_owned()));
            }
        }
        for guard in &self.protected {
            let meant = guard.port.is_none() || guard.port == port;
            if meant && forms.iter().any(|form| guard.block.contains(*form)) && !opens(&guard.block) {
                return Err(Refusal::Protected(guard.what.clone()));
            }
        }
        Ok(())
    }
}

/// A name as rules have it, in lower case and without a dot at its end; None if no host can have it.
pub fn canonical_name(name: &str) -> Option<String> {
    const MAX_NAME: usize = 253;
    const MAX_LABEL: usize = 63;
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_'))
    };
    (name.len() <= MAX_NAME && name.split('.').all(is_label)).then_some(name)
}

impl fmt::Display for Block {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(rules: &[(&str, (u16, u16))]) -> Grant {
        let destinations = rules
            .iter()
            .map(|(host, ports)| Destination {
                host: match (host.strip_prefix("*."), host.contains('/')) {
                    (Some(above), _) => Host::Below(above.into()),
                    (None, true) => Host::Network(block(host)),
                    (None, false) => Host::Name((*host).into()),
                },
                ports: (*ports).into(),
            })
            .collect();
        Grant {
            destinations,
            ..Grant::default()
        }
    }

    fn block(text: &str) -> Block {
        Block::try_from(text.to_owned()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const WEB: (u16, u16) = (443, 443);
    const ANY: (u16, u16) = (1, 65535);

    #[test]
    fn a_network_holds_what_begins_as_it_does() {
        assert!(block("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!block("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(block("0.0.0.0/0").contains(ip("203.0.113.9")));
        assert!(!block("0.0.0.0/0").contains(ip("2001:db8::1")));
        assert!(block("::/0").contains(ip("2001:db8::1")));
        assert!(block("2001:db8::7/128").contains(ip("2001:db8::7")));
        assert!(!block("2001:db8::7/128").contains(ip("2001:db8::8")));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "::/129", "ten/8", "10.0.0.0/-1"] {
            assert!(Block::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_covered_by_itself_and_by_a_wildcard_above_it() {
        let grant = grant(&[("api.example.com", WEB), ("*.example.org", (80, 90))]);
        assert_eq!(grant.ports_of("api.example.com"), [WEB.into()]);
        assert_eq!(grant.ports_of("a.b.example.org"), [(80, 90).into()]);
        for other in [
            "example.com",
            "x.api.example.com",
            "example.org",
            ".example.org",
            "evilexample.org",
            "example.org.evil.net",
            "api.example.com.evil.net",
        ] {
            assert!(grant.ports_of(other).is_empty(), "{other}");
        }
    }

    #[test]
    fn names_are_compared_as_dns_does() {
        assert_eq!(canonical_name("API.Example.COM.").as_deref(), Some("api.example.com"));
        assert_eq!(canonical_name("_srv.example.com").as_deref(), Some("_srv.example.com"));
        let long = "a".repeat(64);
        let many = "a.".repeat(127);
        for wrong in [
            "",
            ".",
            "a..b",
            "a b",
            "ä.example",
            "a\0.example",
            "*.example",
            &long,
            &format!("{many}aa"),
        ] {
            assert_eq!(canonical_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_address_is_covered_by_a_network_or_by_a_name_that_it_was_told_for_on_their_ports() {
        let grant = grant(&[("10.0.0.0/8", (5432, 5433)), ("api.example.com", WEB)]);
        assert_eq!(grant.check(ip("10.1.2.3"), 5433, &[]), Ok(()));
        assert_eq!(grant.check(ip("10.1.2.3"), 5434, &[]), Err(Refusal::Uncovered));
        assert_eq!(grant.check(ip("203.0.113.9"), 443, &[]), Err(Refusal::Uncovered));
        assert_eq!(grant.check(ip("203.0.113.9"), 443, &[WEB.into()]), Ok(()));
        assert_eq!(
            grant.check(ip("203.0.113.9"), 80, &[WEB.into()]),
            Err(Refusal::Uncovered)
        );
    }

    #[test]
    fn a_mapped_address_is_the_one_that_it_maps() {
        let grant = grant(&[("10.0.0.0/8", ANY)]);
        assert_eq!(grant.check(ip("::ffff:10.0.0.1"), 80, &[]), Ok(()));
        let everything = super::tests::grant(&[("::/0", ANY), ("0.0.0.0/0", ANY)]);
        for hidden in [
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(
                matches!(everything.check(ip(hidden), 80, &[]), Err(Refusal::Protected(_))),
                "{hidden}"
            );
        }
    }

    #[test]
    fn what_is_protected_is_opened_by_its_own_network_alone() {
        let special = [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "168.63.129.16",
            "100.100.100.200",
        ];
        let wide = grant(&[("0.0.0.0/0", ANY), ("::/0", ANY), ("128.0.0.0/1", ANY)]);
        let named = [ANY.into()];
        for address in special {
            let address = ip(address);
            assert!(
                matches!(wide.check(address, 80, &named), Err(Refusal::Protected(_))),
                "{address}"
            );
            assert!(wide.check_answer(address).is_err(), "{address}");
            let own = grant(&[(
                &format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
                (80, 80),
            )]);
            assert_eq!(own.check(address, 80, &[]), Ok(()), "{address}");
            assert_eq!(own.check_answer(address), Ok(()), "{address}");
            assert!(
                own.check(address, 81, &named).is_err(),
                "{address}: the name's port, and not its own"
            );
        }
        let loopback = grant(&[("127.0.0.0/8", ANY)]);
        assert_eq!(loopback.check(ip("127.1.2.3"), 80, &[]), Ok(()));
    }

    #[test]
    fn what_the_runner_protects_is_named_too() {
        let mut grant = grant(&[("10.0.0.0/8", ANY), ("10.9.0.1/32", (6443, 6443))]);
        let protect = |block_: &str, port, what: &str| Protected {
            block: block(block_),
            port,
            what: what.into(),
        };
        grant.protected = vec![
            protect("10.96.0.1/32", None, "the API server's"),
            protect("10.9.0.1/32", None, "the node's"),
            protect("10.244.0.7/32", Some(8443), "the runner's own"),
        ];
        let refused = |what: &str| Err(Refusal::Protected(what.into()));
        assert_eq!(grant.check(ip("10.96.0.1"), 443, &[]), refused("the API server's"));
        assert_eq!(grant.check(ip("10.96.0.2"), 443, &[]), Ok(()));
        assert_eq!(grant.check(ip("10.9.0.1"), 6443, &[]), Ok(()));
        assert_eq!(grant.check(ip("10.9.0.1"), 10250, &[]), refused("the node's"));
        assert_eq!(grant.check(ip("10.244.0.7"), 8443, &[]), refused("the runner's own"));
        assert_eq!(
            grant.check(ip("10.244.0.7"), 8080, &[]),
            Ok(()),
            "its guests' ports are not its own"
        );
        assert_eq!(grant.check_answer(ip("10.96.0.1")), refused("the API server's"));
        assert_eq!(grant.check_answer(ip("10.244.0.7")), Ok(()));
    }
}
