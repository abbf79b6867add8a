//! Addresses that are never meant by a name or by a wide network: this machine, this link, and where clouds keep credentials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rules::Block;

/// (address, bits of it, what it is), by the registries of special-purpose addresses (RFC 6890 and what followed), and by the
/// documents of the clouds where they put their metadata outside the link-local networks.
const V4: &[([u8; 4], u8, &str)] = &[
    ([0, 0, 0, 0], 8, "unspecified"),
    ([127, 0, 0, 0], 8, "a loopback address"),
    ([169, 254, 0, 0], 16, "link-local, where clouds keep metadata"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved or broadcast"),
    ([100, 100, 100, 200], 32, "Alibaba Cloud's metadata"),
    ([168, 63, 129, 16], 32, "Azure's WireServer"),
    ([192, 0, 0, 192], 32, "Oracle Cloud's metadata"),
];

const V6: &[([u16; 8], u8, &str)] = &[
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified"),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, "a loopback address"),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local"),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, "AWS's metadata"),
    ([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, "Google Cloud's metadata"),
];

pub fn everywhere() -> impl Iterator<Item = (Block, &'static str)> {
    let v4 = V4
        .iter()
        .map(|(bytes, prefix, what)| (IpAddr::V4(Ipv4Addr::from(*bytes)), *prefix, *what));
    let v6 = V6
        .iter()
        .map(|(groups, prefix, what)| (IpAddr::V6(Ipv6Addr::from(*groups)), *prefix, *what));
    v4.chain(v6)
        .filter_map(|(address, prefix, what)| Block::new(address, prefix).map(|block| (block, what)))
}

/// The address, and the IPv4 address that somebody on the way may turn it into: mapped and compatible (RFC 4291), NAT64
/// (RFC 6052), 6to4 (RFC 3056).
pub fn forms(address: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![address];
    if let IpAddr::V6(v6) = address {
        let [a, b, c, d, e, f, g, h] = v6.segments();
        let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
        match [a, b, c, d, e, f] {
            [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => forms.push(v4(g, h)),
            // Not :: and ::1, which have entries of their own.
            [0, 0, 0, 0, 0, 0] if g != 0 => forms.push(v4(g, h)),
            [0x2002, high, low, ..] => forms.push(v4(high, low)),
            _ => {}
        }
    }
    forms
}
