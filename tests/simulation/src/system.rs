//! What the code of a node asks its system for by itself: randomness and time. The program has its own `getrandom` and
//! `clock_gettime`, which take the place of the C library's, so that hash maps, Raft's time-outs and wall clocks follow the seed
//! without a word about it in the nodes. On a thread that simulates nothing they ask the kernel as ever.
#![allow(unsafe_code, reason = "the two functions have the C library's signatures")]

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};

/// Wall clocks begin here: milliseconds since 1970.
use leasehold_histories::random::Random;

const WALL_START_MS: i64 = 1_800_000_000_000;

thread_local! {
    static DRAWN: Cell<Option<u64>> = const { Cell::new(None) };
    static CLOCK: Cell<Clock> = const { Cell::new(Clock { now_us: 0, skew_ms: 0 }) };
}

/// What the clocks show on this thread.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Since the start of the run, the same for all.
    pub now_us: u64,
    /// Of the wall clock.
    pub skew_ms: i64,
}

/// From here on this thread gets numbers and times of the simulation alone.
pub fn simulate(seed: u64) {
    DRAWN.set(Some(seed));
}

pub fn set_clock(clock: Clock) {
    CLOCK.set(clock);
}

pub fn clock() -> Clock {
    CLOCK.get()
}

fn draw() -> Option<[u8; 8]> {
    let drawn = DRAWN.get()?;
    let mut random = Random::new(drawn, 0);
    DRAWN.set(Some(drawn.wrapping_add(1)));
    Some(random.draw().to_le_bytes())
}

/// As in the C library.
///
/// # Safety
/// `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize {
    if DRAWN.get().is_none() {
        // SAFETY: the arguments are passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize };
    }
    for at in (0..len).step_by(8) {
        let Some(bytes) = draw() else { return -1 };
        // SAFETY: no byte behind `len` is written.
        unsafe { buffer.byte_add(at).cast::<u8>().copy_from(bytes.as_ptr(), (len - at).min(8)) };
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}

/// As in the C library.
///
/// # Safety
/// `time` is where a time can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    if DRAWN.get().is_none() {
        // SAFETY: the arguments are passed on.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    let Clock { now_us, skew_ms } = CLOCK.get();
    let wall_us = if clock == libc::CLOCK_REALTIME { (WALL_START_MS + skew_ms) * 1_000 } else { 1_000_000 };
    let us = wall_us + now_us as i64;
    // SAFETY: the caller gives a place for a time.
    unsafe { time.write(libc::timespec { tv_sec: us / 1_000_000, tv_nsec: us % 1_000_000 * 1_000 }) };
    0
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};
    use std::time::{Instant, SystemTime};

    use super::*;

    /// What a thread sees that hashes and looks at the clocks.
    fn seen(seed: u64, skew_ms: i64) -> (u64, Instant, SystemTime) {
        let thread = std::thread::spawn(move || {
            simulate(seed);
            set_clock(Clock { now_us: 5, skew_ms });
            (RandomState::new().hash_one(1), Instant::now(), SystemTime::now())
        });
        thread.join().unwrap()
    }

    #[test]
    fn hashes_and_clocks_follow_the_seed() {
        assert_eq!(seen(1, 0), seen(1, 0));
        assert_ne!(seen(1, 0).0, seen(2, 0).0);
        assert_eq!(seen(1, 3_600_000).1, seen(1, 0).1);
        assert_eq!(seen(1, 3_600_000).2.duration_since(seen(1, 0).2).unwrap().as_secs(), 3_600);
    }

    #[test]
    fn other_threads_have_the_real_ones() {
        assert_ne!(RandomState::new().hash_one(1), RandomState::new().hash_one(1));
        assert!(Instant::now().duration_since(seen(1, 0).1).as_secs() > 0);
    }
}
