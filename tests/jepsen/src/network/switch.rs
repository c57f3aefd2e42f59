//! The switch between the namespaces: one thread that reads every packet, asks the rules, and passes it on.
//!
//! ```text
//!   device of a place ──▶ rules ──▶ at once ──────────────────────▶ device of another place
//!                               ├─▶ later ──▶ ordered by due time ──▶
//!                               └─▶ never
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rules::{Disturbance, Link, Place, Rules};
use super::{MTU_BYTES, place_of};

/// How often it looks whether it shall end.
const STOP_INTERVAL: Duration = Duration::from_millis(100);
/// Packets read from one device before the next one has its turn.
const PACKETS_A_TURN_MAX: usize = 64;
/// Delayed packets beyond this are lost, as in a router that is full.
const DELAYED_MAX: usize = 20_000;

/// What became of packets.
#[derive(Debug, Default)]
pub struct Tally {
    pub passed: AtomicU64,
    pub delayed: AtomicU64,
    pub duplicated: AtomicU64,
    pub lost: AtomicU64,
}

struct Shared {
    rules: Mutex<Rules>,
    tally: Tally,
    is_over: AtomicBool,
}

/// A running switch; it ends with this value.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// `devices` are those of the places, in their order; the luck of packets follows from `seed`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(devices: Vec<File>, seed: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            rules: Mutex::new(Rules::new(seed)),
            tally: Tally::default(),
            is_over: AtomicBool::new(false),
        });
        let forwarding =
            Forwarding { shared: shared.clone(), devices, delayed: BinaryHeap::new(), numbered: 0 };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(move || forwarding.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn impose(&self, number: usize, disturbance: Disturbance) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).impose(number, disturbance);
    }

    pub fn lift(&self, number: usize) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).lift(number);
    }

    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed; the packets that it lost show in the run.
            let _ = thread.join();
        }
    }
}

/// A packet that is under way; ordered by its due time, and by its number within the same.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    number: u64,
    to: Place,
    packet: Vec<u8>,
}

struct Forwarding {
    shared: Arc<Shared>,
    devices: Vec<File>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    numbered: u64,
}

impl Forwarding {
    fn run(mut self) {
        let mut buffer = vec![0; MTU_BYTES];
        while !self.shared.is_over.load(Ordering::Relaxed) {
            for place in self.wait() {
                for _ in 0..PACKETS_A_TURN_MAX {
                    let Ok(length) = (&self.devices[place]).read(&mut buffer) else { break };
                    self.route(place, &buffer[..length]);
                }
            }
            self.deliver_due();
        }
    }

    /// The places that have something to say, as soon as one has or a delayed packet is due.
    fn wait(&self) -> Vec<Place> {
        let until_due =
            |Reverse(first): &Reverse<Delayed>| first.due.saturating_duration_since(Instant::now());
        let patience = self.delayed.peek().map_or(STOP_INTERVAL, until_due).min(STOP_INTERVAL);
        let mut polled =
            self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect::<Vec<_>>();
        let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        // An interrupted wait is one that found nothing.
        let _ = poll(&mut polled, Some(&timeout));
        let is_ready =
            |(place, polled): (Place, &PollFd<'_>)| polled.revents().contains(PollFlags::IN).then_some(place);
        polled.iter().enumerate().filter_map(is_ready).collect()
    }

    fn route(&mut self, from: Place, packet: &[u8]) {
        let Some(to) = destination(packet).filter(|to| *to < self.devices.len()) else { return };
        let fate = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).fate(Link { from, to });
        let tally = &self.shared.tally;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match fate.len() {
            0 => count(&tally.lost),
            1 => count(&tally.passed),
            _ => count(&tally.duplicated),
        };
        for delay in fate {
            if delay.is_zero() {
                self.deliver(to, packet);
            } else if self.delayed.len() < DELAYED_MAX {
                count(&self.shared.tally.delayed);
                self.numbered += 1;
                let (due, number) = (Instant::now() + delay, self.numbered);
                self.delayed.push(Reverse(Delayed { due, number, to, packet: packet.to_vec() }));
            } else {
                count(&self.shared.tally.lost);
            }
        }
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(next)) = self.delayed.pop() {
            if next.due > now {
                self.delayed.push(Reverse(next));
                return;
            }
            self.deliver(next.to, &next.packet);
        }
    }

    /// A device that is full loses the packet, as real ones do; the protocols above it live with that.
    fn deliver(&self, to: Place, packet: &[u8]) {
        if (&self.devices[to]).write(packet).is_err() {
            self.shared.tally.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where an IPv4 packet goes; nothing else is spoken here.
fn destination(packet: &[u8]) -> Option<Place> {
    let is_v4 = packet.first()? >> 4 == 4;
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    place_of(Ipv4Addr::from(address)).filter(|_| is_v4)
}

#[cfg(test)]
mod tests {
    use super::super::address_of;
    use super::*;

    fn packet(first: u8, to: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = first;
        packet[16..20].copy_from_slice(&to.octets());
        packet
    }

    #[test]
    fn packets_of_the_places_go_there_and_others_nowhere() {
        assert_eq!(destination(&packet(0x45, address_of(2))), Some(2));
        assert_eq!(destination(&packet(0x45, Ipv4Addr::new(10, 78, 0, 1))), None);
        assert_eq!(destination(&packet(0x60, address_of(2))), None);
        assert_eq!(destination(&packet(0x45, address_of(2))[..19]), None);
        assert_eq!(destination(&[]), None);
    }

    #[test]
    fn what_is_due_first_leaves_first() {
        let (now, packet) = (Instant::now(), Vec::new());
        let later = Delayed { due: now + Duration::from_millis(1), number: 1, to: 0, packet: packet.clone() };
        let sooner = Delayed { due: now, number: 2, to: 0, packet: packet.clone() };
        let next = Delayed { due: now, number: 3, to: 0, packet };
        let mut heap = BinaryHeap::from([Reverse(later), Reverse(next), Reverse(sooner)]);
        let order = std::iter::from_fn(|| heap.pop()).map(|Reverse(delayed)| delayed.number);
        assert_eq!(order.collect::<Vec<_>>(), [2, 3, 1]);
    }
}
