//! A set of IP networks: merged and sorted once, searched in logarithmic time.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks of both families. An IPv4-mapped IPv6 address is looked up as the IPv4 address it holds.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Networks {
    /// Whether `address` lies in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => covers(&self.v4, u32::from(address)),
            IpAddr::V6(address) => covers(&self.v6, u128::from(address)),
        }
    }

    /// Whether no address lies in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The networks that no public address lies in: RFC 1918, RFC 6598 (which VPCs may use), loopback,
    /// link-local and unique local addresses.
    pub fn private() -> Vec<IpNet> {
        [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        let mut set = Self::default();
        for network in networks {
            match network {
                IpNet::V4(net) => set.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => set.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }
}

/// Sorts ranges and joins the overlapping ones, so that each address is in at most one of them.
fn merge<N: Ord + Copy>(ranges: &mut Vec<(N, N)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

fn covers<N: Ord + Copy>(ranges: &[(N, N)], address: N) -> bool {
    let after = ranges.partition_point(|range| range.0 <= address);
    after > 0 && address <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> Networks {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn overlapping_networks_are_one() {
        let set = set(&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "192.168.1.7/24"]);
        assert_eq!(set.v4.len(), 2);
        assert!(set.contains(ip("10.255.255.255")));
        assert!(set.contains(ip("192.168.1.0")));
        assert!(!set.contains(ip("11.0.0.0")));
        assert!(!set.contains(ip("9.255.255.255")));
        assert!(!set.contains(ip("::1")));
    }

    #[test]
    fn an_empty_set_holds_nothing_and_a_zero_prefix_everything_of_its_family() {
        assert!(set(&[]).is_empty() && !set(&[]).contains(ip("127.0.0.1")));
        assert!(set(&["0.0.0.0/0"]).contains(ip("255.255.255.255")));
        assert!(!set(&["0.0.0.0/0"]).contains(ip("2001:db8::1")));
        assert!(set(&["::/0"]).contains(ip("ffff::")));
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert!(set(&["10.0.0.0/8"]).contains(ip("::ffff:10.1.2.3")));
    }

    #[test]
    fn private_is_what_the_internet_does_not_route() {
        let private: Networks = Networks::private().into_iter().collect();
        for inside in [
            "10.0.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(private.contains(ip(inside)), "{inside}");
        }
        for outside in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(!private.contains(ip(outside)), "{outside}");
        }
    }
}
