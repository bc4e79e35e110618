//! IPv4 address ranges.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// An IPv4 address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The range of `prefix` leading bits that holds `address`.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            base: Ipv4Addr::from_bits(address.to_bits() & Self::mask(prefix)),
            prefix,
        }
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }

    /// Address number `n` of the range, counted from its base.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(n))
    }

    /// Number of leading bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = Self::mask(self.prefix.min(other.prefix));
        self.base.to_bits() & mask == other.base.to_bits() & mask
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address
            .parse()
            .with_context(|| format!("{text:?} is not an IPv4 range"))?;
        let prefix: u8 = prefix
            .parse()
            .with_context(|| format!("{text:?} is not an IPv4 range"))?;
        ensure!(
            prefix <= 32,
            "{text:?} is not an IPv4 range: the prefix has at most 32 bits"
        );
        let range = Self::of(address, prefix);
        ensure!(
            range.base == address,
            "{text:?} is not a range: its first address is {}",
            range.base
        );
        Ok(range)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_and_overlap() {
        let range: Cidr = "10.244.0.0/24".parse().unwrap();
        assert_eq!(range.nth(1), Ipv4Addr::new(10, 244, 0, 1));
        assert_eq!(range.to_string(), "10.244.0.0/24");
        for (other, overlaps) in [
            ("10.244.0.128/25", true),
            ("10.0.0.0/8", true),
            ("0.0.0.0/0", true),
            ("10.244.1.0/24", false),
            ("10.244.0.7/32", true),
        ] {
            assert_eq!(range.overlaps(other.parse().unwrap()), overlaps, "{other}");
        }
        for bad in ["10.244.0.1/24", "10.244.0.0/33", "pods", "10.244.0.0/x", "::/0"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
