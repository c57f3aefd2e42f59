//! A network of our own: each node and the clients have a namespace, and every packet between them passes the switch.
//!
//! ```text
//!   n1 10.77.0.1 ── TUN ──┐            ┌── TUN ── 10.77.0.3 n3
//!                         ├── switch ──┤
//!   n2 10.77.0.2 ── TUN ──┘            └── TUN ── 10.77.0.4 clients
//! ```

mod namespace;
mod rules;
mod switch;

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leasehold::processes::Place as ProcessPlace;

use namespace::Namespace;
pub use rules::{Disturbance, Effect, Link, Place};
pub use switch::Switch;

/// Large, so that few packets carry much: what a packet costs is a read and a write of the switch.
const MTU_BYTES: usize = 60_000;
const PREFIX: [u8; 3] = [10, 77, 0];

/// What the nodes talk over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Namespaces where a fault needs them and they are permitted, or else loopback.
    Auto,
    /// Faults of the network are skipped.
    Loopback,
    /// Nothing else will do.
    Namespaces,
}

/// The namespaces of one run and the switch between them.
pub struct Network {
    pub switch: Arc<Switch>,
    nodes: Vec<Namespace>,
}

impl Network {
    /// Makes the network and moves the calling thread into the namespace of the clients: call it before there are threads that
    /// shall be clients. `None` is loopback.
    ///
    /// # Errors
    /// When namespaces are asked for and not permitted.
    pub fn make(kind: Kind, nodes: usize, seed: u64) -> Result<Option<Self>, String> {
        if kind == Kind::Loopback {
            return Ok(None);
        }
        let made = (0..=nodes).map(|place| Namespace::new(address_of(place))).collect::<Result<Vec<_>, _>>();
        match made {
            Ok(namespaces) => Self::connect(namespaces, seed).map(Some),
            Err(error) if kind == Kind::Auto => {
                eprintln!("no faults of the network: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn connect(mut namespaces: Vec<Namespace>, seed: u64) -> Result<Self, String> {
        let duplicate = |namespace: &Namespace| namespace.device.try_clone();
        let devices = namespaces.iter().map(duplicate).collect::<std::io::Result<Vec<File>>>();
        let switch = devices.and_then(|devices| Switch::start(devices, seed));
        let switch = switch.map_err(|error| format!("cannot start the switch: {error}"))?;
        if let Some(clients) = namespaces.pop() {
            clients.enter()?;
        }
        Ok(Self { switch: Arc::new(switch), nodes: namespaces })
    }

    /// Where the nodes run.
    pub fn places(&self) -> Vec<ProcessPlace> {
        let place = |(node, namespace): (Place, &Namespace)| ProcessPlace {
            host: address_of(node).into(),
            launcher: namespace.launcher(),
        };
        self.nodes.iter().enumerate().map(place).collect()
    }

    /// What became of packets, for the verdict.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let tally = self.switch.tally();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("packets_passed", read(&tally.passed)),
            ("packets_delayed", read(&tally.delayed)),
            ("packets_duplicated", read(&tally.duplicated)),
            ("packets_lost", read(&tally.lost)),
        ]
    }
}

fn address_of(place: Place) -> Ipv4Addr {
    let [a, b, c] = PREFIX;
    Ipv4Addr::new(a, b, c, place as u8 + 1)
}

fn place_of(address: Ipv4Addr) -> Option<Place> {
    let [a, b, c, host] = address.octets();
    ([a, b, c] == PREFIX).then(|| usize::from(host).checked_sub(1)).flatten()
}
