//! Leases that grow with the work, for queues that ask for it: never below the lease they have, never above a ceiling.
//!
//! ```text
//!   measured times ──▶ p99.9 ──▶ x 3 ──▶ between the queue's lease and the ceiling ──▶ leases of receives that name none
//!                                             late acks ──▶ the ceiling
//! ```
//!
//! Work that does not fit its lease is never measured: its ack comes too late. So late acks, and they alone, say that what is
//! measured is not the truth, and the ceiling holds until they are forgotten; meanwhile the work fits and is measured. A
//! lease that ends without an ack says nothing: its consumer may have died, and a longer lease would only bring its message
//! back later. There is no state in this loop but what is measured, so a new leader does what the old one did.

use leasehold_partition::Measure;

/// Acks below which p99.9 says nothing.
const ACKS_MIN: u64 = 100;
/// A lease in p99.9.
const FACTOR: u64 = 3;
/// Late acks that one slow consumer may cause.
const LATE_MAX: u32 = 4;
/// Late acks among so many are more than p99.9 covers.
const ACKS_PER_LATE: u64 = 1_000;

/// The lease of a receive that names none, on a queue with this lease and this ceiling.
pub fn lease_ms(floor_ms: u64, ceiling_ms: u64, measured: &Measure) -> u64 {
    let ceiling_ms = ceiling_ms.max(floor_ms);
    let acks = measured.held.total();
    if measured.late > LATE_MAX && u64::from(measured.late) * ACKS_PER_LATE > acks {
        return ceiling_ms;
    }
    match acks {
        0..ACKS_MIN => floor_ms,
        _ => (measured.held.quantile_ms(999) * FACTOR).clamp(floor_ms, ceiling_ms),
    }
}

#[cfg(test)]
mod tests;
