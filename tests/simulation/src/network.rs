//! The network: connections between nodes, and from clients to nodes. As TCP's, each direction is a stream in order: a packet that is
//! lost comes again later, behind a cut link it waits, and what a process leaves open is closed when it dies, but not when its
//! machine loses power. Packets of different connections overtake each other.
//!
//! ```text
//!   a node's task ─push─▶ pipe (queue of packets, each with its time) ─deliver, between two steps─▶ effect at the other end
//! ```

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leasehold_histories::random::Random;

use crate::machine::Process;
use crate::trace;

/// How long a lost packet is missed before it is sent again.
const SENT_AGAIN_US: u64 = 200_000;

/// A node by its position, or all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Node(usize),
    Clients,
}

/// What a packet does where it arrives. There is no process when the machine is on and the node is not.
pub type Effect = Box<dyn FnOnce(Option<&Process>) + Send>;

/// What holds one end of a connection open; it is dropped when the other end closes.
pub type Keep = Arc<dyn Any + Send + Sync>;

/// How packets travel from one end to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub is_cut: bool,
    pub delay_us_min: u64,
    pub delay_us_max: u64,
    pub lost_percent: u64,
}

const HEALTHY: Link = Link { is_cut: false, delay_us_min: 50, delay_us_max: 1_500, lost_percent: 0 };

/// What a node's end of the network is like at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The process with this number listens.
    Up(u64),
    /// It is stopped: what comes waits.
    Paused(u64),
    /// Nobody listens: what comes is refused.
    Down,
    /// Nothing is heard of it.
    Off,
}

impl Host {
    fn process(self) -> Option<u64> {
        match self {
            Self::Up(process) | Self::Paused(process) => Some(process),
            Self::Down | Self::Off => None,
        }
    }
}

struct Packet {
    due_us: u64,
    hash: u64,
    /// None closes the other end.
    effect: Option<Effect>,
}

/// One direction of a connection.
struct Pipe {
    from: End,
    to: End,
    /// The process at the far end when the connection was opened.
    process: Option<u64>,
    queue: VecDeque<Packet>,
    last_due_us: u64,
    keep: Option<Keep>,
}

/// A connection; its two directions follow each other in number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forth,
    Back,
}

impl Connection {
    fn pipe(self, direction: Direction) -> u64 {
        self.0 * 2 + u64::from(direction == Direction::Back)
    }
}

struct State {
    now_us: u64,
    random: Random,
    next: u64,
    pipes: BTreeMap<u64, Pipe>,
    hosts: Vec<Host>,
    links: BTreeMap<(End, End), Link>,
    packets: u64,
    snapshots: u64,
}

pub struct Network {
    state: Mutex<State>,
}

impl Network {
    pub fn new(nodes: usize, random: Random) -> Arc<Self> {
        let hosts = vec![Host::Down; nodes];
        let (pipes, links) = (BTreeMap::new(), BTreeMap::new());
        Arc::new(Self {
            state: Mutex::new(State {
                now_us: 0,
                random,
                next: 0,
                pipes,
                hosts,
                links,
                packets: 0,
                snapshots: 0,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets delivered so far.
    pub fn packets(&self) -> u64 {
        self.lock().packets
    }

    /// Snapshots that a node began to send so far.
    pub fn snapshots(&self) -> u64 {
        self.lock().snapshots
    }

    pub fn snapshot_begins(&self) {
        self.lock().snapshots += 1;
    }

    pub fn set_host(&self, node: usize, host: Host) {
        self.lock().hosts[node] = host;
    }

    /// Changes how packets travel from one end to another.
    pub fn change(&self, from: End, to: End, change: impl FnOnce(&mut Link)) {
        change(self.lock().links.entry((from, to)).or_insert(HEALTHY));
    }

    /// Every link is as at the start.
    pub fn heal(&self) {
        self.lock().links.clear();
    }

    /// Opens a connection. `keep` is what the opener loses when the other end closes.
    pub fn connect(&self, from: End, to: End, keep: Keep) -> Connection {
        let mut state = self.lock();
        state.next += 1;
        let connection = Connection(state.next);
        let pipe = |from: End, to: End, keep: Option<Keep>, state: &State| Pipe {
            from,
            to,
            process: state.process_at(to),
            queue: VecDeque::new(),
            last_due_us: 0,
            keep,
        };
        let (forth, back) = (pipe(from, to, None, &state), pipe(to, from, Some(keep), &state));
        state.pipes.insert(connection.pipe(Direction::Forth), forth);
        state.pipes.insert(connection.pipe(Direction::Back), back);
        connection
    }

    /// What the end that was connected to loses when the opener closes.
    pub fn keep_open(&self, connection: Connection, keep: Keep) {
        if let Some(pipe) = self.lock().pipes.get_mut(&connection.pipe(Direction::Forth)) {
            pipe.keep = Some(keep);
        }
    }

    /// Sends a packet; false when the connection is closed.
    pub fn push(&self, connection: Connection, direction: Direction, hash: u64, effect: Effect) -> bool {
        self.lock().push(connection.pipe(direction), hash, Some(effect))
    }

    /// Says the other end that nothing more comes.
    pub fn close(&self, connection: Connection, direction: Direction) {
        self.lock().push(connection.pipe(direction), 0, None);
    }

    /// The process of a node has ended: its machine closes what it had open.
    pub fn closed_by_death(&self, node: usize) {
        let mut state = self.lock();
        let open = state.pipes.iter().filter(|(_, pipe)| pipe.from == End::Node(node));
        for id in open.map(|(id, _)| *id).collect::<Vec<_>>() {
            state.push(id, 0, None);
        }
    }

    /// Breaks connections between two ends, those that chance takes.
    pub fn reset(&self, one: End, other: End, percent: u64) {
        let mut state = self.lock();
        let between =
            |pipe: &Pipe| (pipe.from, pipe.to) == (one, other) || (pipe.to, pipe.from) == (one, other);
        let found = state.pipes.iter().filter(|(id, pipe)| *id % 2 == 0 && between(pipe));
        let found = found.map(|(id, _)| *id).collect::<Vec<_>>();
        let mut lost = Vec::new();
        for id in found {
            if !state.random.percent(percent) {
                continue;
            }
            // What was on its way is lost in both directions, from some packet on.
            for id in [id, id + 1] {
                let waiting = state.pipes.get(&id).map_or(0, |pipe| pipe.queue.len());
                let kept = state.random.below(waiting as u64 + 1) as usize;
                lost.extend(state.pipes.get_mut(&id).map(|pipe| pipe.queue.split_off(kept)));
                state.push(id, 0, None);
            }
        }
        // What it holds may use the network when it is dropped.
        drop(state);
        drop(lost);
    }

    /// Delivers what is due. `process` finds the process of a node that is up.
    pub fn deliver<'a>(&self, now_us: u64, process: impl Fn(usize) -> Option<&'a Process>) {
        self.lock().now_us = now_us;
        let due = self
            .lock()
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.is_due(now_us))
            .map(|(id, _)| *id)
            .collect::<Vec<_>>();
        for id in due {
            loop {
                let taken = self.lock().take(id);
                match taken {
                    Taken::Nothing => break,
                    // What it held may push again when it is dropped: not under the lock.
                    Taken::Closed(keep) => drop(keep),
                    Taken::Arrived(End::Clients, effect) => effect(None),
                    Taken::Arrived(End::Node(node), effect) => match process(node) {
                        Some(process) => process.enter(|| effect(Some(process))),
                        None => effect(None),
                    },
                }
            }
        }
    }
}

enum Taken {
    Nothing,
    Closed((Option<Keep>, VecDeque<Packet>)),
    Arrived(End, Effect),
}

impl Pipe {
    fn is_due(&self, now_us: u64) -> bool {
        self.queue.front().is_some_and(|packet| packet.due_us <= now_us)
    }
}

impl State {
    fn process_at(&self, end: End) -> Option<u64> {
        match end {
            End::Node(node) => self.hosts[node].process(),
            End::Clients => None,
        }
    }

    fn link(&self, from: End, to: End) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(HEALTHY)
    }

    fn push(&mut self, id: u64, hash: u64, effect: Option<Effect>) -> bool {
        let Some((from, to)) = self.pipes.get(&id).map(|pipe| (pipe.from, pipe.to)) else { return false };
        let link = self.link(from, to);
        let spread_us = link.delay_us_max.saturating_sub(link.delay_us_min);
        let mut delay_us = link.delay_us_min + self.random.below(spread_us);
        if self.random.percent(link.lost_percent) {
            delay_us += SENT_AGAIN_US;
        }
        let due_us = self.now_us + delay_us;
        let Some(pipe) = self.pipes.get_mut(&id) else { return false };
        pipe.last_due_us = pipe.last_due_us.max(due_us);
        pipe.queue.push_back(Packet { due_us: pipe.last_due_us, hash, effect });
        true
    }

    /// The next packet of a pipe, if it arrives now.
    fn take(&mut self, id: u64) -> Taken {
        let now_us = self.now_us;
        let Some(pipe) = self.pipes.get(&id) else { return Taken::Nothing };
        let (from, to, process) = (pipe.from, pipe.to, pipe.process);
        let is_cut = self.link(from, to).is_cut;
        let host = match to {
            End::Node(node) => Some(self.hosts[node]),
            End::Clients => None,
        };
        let Some(pipe) = self.pipes.get_mut(&id).filter(|pipe| pipe.is_due(now_us)) else {
            return Taken::Nothing;
        };
        if is_cut || matches!(host, Some(Host::Paused(_))) {
            let due_us = now_us + SENT_AGAIN_US / 4;
            pipe.queue.iter_mut().for_each(|packet| packet.due_us = packet.due_us.max(due_us));
            pipe.last_due_us = pipe.last_due_us.max(due_us);
            return Taken::Nothing;
        }
        let Some(packet) = pipe.queue.pop_front() else { return Taken::Nothing };
        self.packets += 1;
        let Some(effect) = packet.effect else {
            let closed = self.pipes.remove(&id).map(|pipe| (pipe.keep, pipe.queue)).unwrap_or_default();
            // Who closes one direction closes both, soon.
            self.push(id ^ 1, 0, None);
            trace::event(&[id, 1], format_args!("{from:?} closes pipe {id} to {to:?}"));
            return Taken::Closed(closed);
        };
        trace::event(
            &[id, 2, packet.hash],
            format_args!("{from:?} ─▶ {to:?} on pipe {id}: {:x}", packet.hash),
        );
        match host {
            Some(Host::Off) => self.take(id),
            Some(Host::Down) => {
                self.push(id ^ 1, 0, None);
                Taken::Arrived(to, effect)
            }
            // It was meant for a process before this one.
            Some(host) if host.process() != process => {
                self.push(id ^ 1, 0, None);
                self.take(id)
            }
            Some(_) | None => Taken::Arrived(to, effect),
        }
    }
}
