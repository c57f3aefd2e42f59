//! Everything that happens, folded into one number: two runs with the same number went the same way.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::system;

/// Whether events are also told to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    Silent,
    Events,
}

thread_local! {
    static HASH: Cell<u64> = const { Cell::new(0xcbf2_9ce4_8422_2325) };
    static TELLING: Cell<Telling> = const { Cell::new(Telling::Silent) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Begins the trace of this thread. What nodes log is told as well, for a reader.
pub fn start(telling: Telling) {
    TELLING.set(telling);
    if telling == Telling::Events {
        // On a thread of its own: its hash maps would draw numbers that the run without it does not draw.
        let _ = std::thread::spawn(subscribe).join();
    }
    // A task that panics takes nobody with it: it has to be noticed here.
    std::panic::set_hook(Box::new(|panic| {
        // As everywhere, RUST_BACKTRACE says whether there is one.
        let _ = writeln!(std::io::stderr(), "{panic}\n{}", std::backtrace::Backtrace::capture());
        PANICS.with_borrow_mut(|panics| panics.push(panic.to_string().replace('\n', ": ")));
    }));
}

/// RUST_LOG says what is told, as everywhere.
fn subscribe() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new("warn,leasehold_node=debug,leasehold_raft_log=debug,openraft=off")
    });
    // Another subscriber is only there when another run of this process has set it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(VirtualTime)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Panics so far, on this thread.
pub fn panics() -> Vec<String> {
    PANICS.with_borrow(Clone::clone)
}

/// An event: its numbers go into the hash, its words to the reader.
pub fn event(numbers: &[u64], words: fmt::Arguments<'_>) {
    let mut hash = HASH.get();
    for number in std::iter::once(&system::clock().now_us).chain(numbers) {
        hash = (hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
    HASH.set(hash);
    if TELLING.get() == Telling::Events {
        let _ = writeln!(std::io::stderr(), "{} {words}", now());
    }
}

/// The hash of all events so far.
pub fn hash() -> u64 {
    HASH.get()
}

fn now() -> String {
    let now_us = system::clock().now_us;
    format!("{:4}.{:03}", now_us / 1_000_000, now_us / 1_000 % 1_000)
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&now())
    }
}
