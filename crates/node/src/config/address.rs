//! `host:port`, as nodes and clients dial it. A name stays a name: it is resolved at each dial, so that hosts may move.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The longest DNS name.
const HOST_BYTES_MAX: usize = 253;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The text is not `host:port` of something that can be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not host:port with a port of 1 to 65535")]
pub struct AddressError;

impl Address {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this host can reach it. Of names only `localhost` is believed.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.to_canonical().is_loopback(),
            Host::Name(name) => name == "localhost",
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::try_from(address);
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError)?;
        let host = host.to_ascii_lowercase();
        // `10.0.0.300` is a wrong number, not a name: the last label of a name is never a number.
        let numeric =
            host.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if host.len() > HOST_BYTES_MAX || numeric || !host.split('.').all(is_label) {
            return Err(AddressError);
        }
        match parse_port(port) {
            Some(port) => Ok(Self { host: Host::Name(host), port }),
            None => Err(AddressError),
        }
    }
}

/// Refuses what can be listened on but not dialled: port 0 and the unspecified address.
impl TryFrom<SocketAddr> for Address {
    type Error = AddressError;

    fn try_from(address: SocketAddr) -> Result<Self, AddressError> {
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(AddressError);
        }
        Ok(Self { host: Host::Ip(address.ip()), port: address.port() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(formatter),
            Host::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        let cases = [
            ("127.0.0.1:7400", "127.0.0.1:7400", true),
            ("[::1]:7400", "[::1]:7400", true),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", true),
            ("localhost:7400", "localhost:7400", true),
            ("Node-A.internal:65535", "node-a.internal:65535", false),
            ("10.0.0.1:7400", "10.0.0.1:7400", false),
            ("localhost.example:1", "localhost.example:1", false),
        ];
        for (given, printed, loopback) in cases {
            let address: Address = given.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(address.is_loopback(), loopback, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for given in [
            "",
            ":",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "0.0.0.0:1",
            "[::]:1",
            "127.0.0.1:0",
            "a b:1",
            "-a:1",
            "a..b:1",
            "::1:7400",
            "10.0.0.300:1",
            "http://a:1",
            "256:1",
        ] {
            assert_eq!(given.parse::<Address>(), Err(AddressError), "{given}");
        }
        assert!(format!("{}:1", "a".repeat(64)).parse::<Address>().is_err());
    }
}
