//! Which addresses a store may have. A RedisBackup or RedisRestore names its endpoint, and the controller dials it: without
//! this rule a tenant reaches what only the controller's pod can reach, such as the metadata service of the cloud.

use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The operator's rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressRule {
    /// Every address except loopback, link-local, site-local, metadata, unspecified, multicast and locally translated ones.
    #[default]
    Ordinary,
    /// Only addresses in these networks, of any kind.
    Listed(Vec<IpNet>),
}

/// An address that the rule refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {kind}")]
pub struct RefusedAddress {
    address: IpAddr,
    kind: AddressKind,
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    Unspecified,
    Loopback,
    LinkLocal,
    SiteLocal,
    Translated,
    Metadata,
    Multicast,
    Unlisted,
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::SiteLocal => "a site-local address",
            Self::Translated => "an address of a local NAT64, which hides an IPv4 address",
            Self::Metadata => "the address of a cloud's metadata service",
            Self::Multicast => "a multicast or broadcast address",
            Self::Unlisted => "in none of the allowed networks",
        })
    }
}

impl AddressRule {
    /// The rule for these networks; without any, the ordinary one.
    pub fn of(networks: Vec<IpNet>) -> Self {
        if networks.is_empty() {
            return Self::Ordinary;
        }
        Self::Listed(networks)
    }

    /// Refuses an address that must not be dialled.
    pub fn check(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        let reached = reached(address);
        let kind = match self {
            Self::Ordinary => extraordinary(reached),
            Self::Listed(networks) => {
                let listed = networks.iter().any(|network| network.contains(&reached));
                (!listed).then_some(AddressKind::Unlisted)
            }
        };
        kind.map_or(Ok(()), |kind| Err(RefusedAddress { address, kind }))
    }
}

fn extraordinary(address: IpAddr) -> Option<AddressKind> {
    if METADATA.contains(&address) {
        return Some(AddressKind::Metadata);
    }
    match address {
        IpAddr::V4(address) => extraordinary_v4(address),
        IpAddr::V6(address) => extraordinary_v6(address),
    }
}

/// Metadata services at addresses that no class below covers: Alibaba, Azure, Oracle, AWS (two), Google.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

fn extraordinary_v4(address: Ipv4Addr) -> Option<AddressKind> {
    match address.octets() {
        // RFC 1122: this host on this network. Linux dials 0.0.0.0 as loopback.
        [0, ..] => Some(AddressKind::Unspecified),
        [127, ..] => Some(AddressKind::Loopback),
        [169, 254, ..] => Some(AddressKind::LinkLocal),
        [224..=239, ..] | [255, 255, 255, 255] => Some(AddressKind::Multicast),
        _ => None,
    }
}

fn extraordinary_v6(address: Ipv6Addr) -> Option<AddressKind> {
    if address.is_unspecified() {
        Some(AddressKind::Unspecified)
    } else if address.is_loopback() {
        Some(AddressKind::Loopback)
    } else if address.is_unicast_link_local() {
        Some(AddressKind::LinkLocal)
    } else if let [0xfec0..=0xfeff, ..] = address.segments() {
        // Deprecated by RFC 3879, routed by some all the same.
        Some(AddressKind::SiteLocal)
    } else if let [0x64, 0xff9b, 1, ..] = address.segments() {
        // RFC 8215: only its network knows the length of its prefix, and so where the IPv4 address stands.
        Some(AddressKind::Translated)
    } else if address.is_multicast() {
        Some(AddressKind::Multicast)
    } else {
        None
    }
}

/// The address that is reached: an IPv6 address may embed an IPv4 one.
fn reached(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(outer) => embedded(outer).map_or(address, IpAddr::V4),
    }
}

fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // :: and ::1 are IPv6 addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // Mapped (RFC 4291), compatible (deprecated by it), translated (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056).
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(rule: &AddressRule, address: &str) -> Option<AddressKind> {
        let checked = rule.check(address.parse().unwrap());
        checked.err().map(|refused| refused.kind)
    }

    #[test]
    fn addresses_of_the_pod_itself_and_of_metadata_are_refused() {
        use AddressKind::{
            LinkLocal, Loopback, Metadata, Multicast, SiteLocal, Translated, Unspecified,
        };
        for (address, kind) in [
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("::", Unspecified),
            ("127.0.0.1", Loopback),
            ("127.255.0.9", Loopback),
            ("::1", Loopback),
            ("169.254.169.254", LinkLocal),
            ("169.254.170.2", LinkLocal),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("192.0.0.192", Metadata),
            ("fd00:ec2::254", Metadata),
            ("fd00:ec2::23", Metadata),
            ("fd20:ce::254", Metadata),
            ("224.0.0.1", Multicast),
            ("255.255.255.255", Multicast),
            ("ff02::1", Multicast),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", LinkLocal),
            ("::ffff:0:169.254.169.254", LinkLocal),
            ("::ffff:100.100.100.200", Metadata),
            ("::127.0.0.1", Loopback),
            ("64:ff9b::169.254.169.254", LinkLocal),
            ("2002:a9fe:a9fe::1", LinkLocal),
            ("fec0::1", SiteLocal),
            ("feff:ffff::1", SiteLocal),
            ("64:ff9b:1::169.254.169.254", Translated),
            ("64:ff9b:1:a9fe:a9:fe00::", Translated),
            ("64:ff9b:1:ffff::1", Translated),
        ] {
            let refused = refusal(&AddressRule::Ordinary, address);
            assert_eq!(refused, Some(kind), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "52.216.0.1",
            "fd00::1",
            "2600::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:2::1",
        ] {
            assert_eq!(refusal(&AddressRule::Ordinary, address), None, "{address}");
        }
    }

    #[test]
    fn listed_networks_allow_what_they_hold_and_nothing_else() {
        let networks = ["127.0.0.0/8", "10.1.0.0/16", "fd00::/8"];
        let rule = AddressRule::of(networks.map(|text| text.parse().unwrap()).into());
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::1"] {
            assert_eq!(refusal(&rule, address), None, "{address}");
        }
        for address in ["10.2.0.1", "169.254.169.254", "::1", "52.216.0.1"] {
            let refused = refusal(&rule, address);
            assert_eq!(refused, Some(AddressKind::Unlisted), "{address}");
        }
        assert_eq!(AddressRule::of(Vec::new()), AddressRule::Ordinary);
    }

    proptest! {
        #[test]
        fn an_embedding_does_not_change_the_answer(bits in any::<u32>()) {
            let plain = Ipv4Addr::from(bits);
            let [a, b, c, d] = plain.octets();
            let (high, low) = (u16::from(a) << 8 | u16::from(b), u16::from(c) << 8 | u16::from(d));
            let refused = |address: IpAddr| AddressRule::Ordinary.check(address).is_err();
            let expected = refused(plain.into());
            prop_assert_eq!(refused(plain.to_ipv6_mapped().into()), expected);
            prop_assert_eq!(refused(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into()), expected);
            prop_assert_eq!(refused(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into()), expected);
        }
    }
}
