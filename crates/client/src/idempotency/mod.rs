//! Effects that happen once although messages may come twice.
//!
//! [`Idempotent`] wraps a handler: it claims the operation that a message asks for in a store, runs the effect, and records its
//! result. A message that comes again finds the result. An operation is named by its message unless told otherwise; name it by
//! what it does, such as an order number, and two messages for the same order have one effect as well. Different operations need
//! different names: a text that leaves out what it cannot show, such as that of `String::from_utf8_lossy`, is none.
//!
//! ```
//! use std::time::Duration;
//! use leasehold_client::idempotency::{Idempotent, MemoryStore};
//!
//! # fn example(queue: leasehold_client::Queue) {
//! let once = Idempotent::new(MemoryStore::default())
//!     .key(|job| format!("order {}", job.body.escape_ascii()))
//!     .keep_for(Duration::from_secs(30 * 24 * 60 * 60));
//! let handler = once.handler(|job| async move {
//!     println!("this happens once for each order: {:?}", job.body);
//!     Ok(())
//! });
//! # let running =
//! queue.consumer().run(handler)
//! # ;
//! # drop(running);
//! # }
//! ```
//!
//! # Stores
//!
//! | store | feature | the record is | survives |
//! |---|---|---|---|
//! | [`MemoryStore`] | | apart from the effect | nothing: for tests, and effects that need no more |
//! | `redb::RedbStore` | `redb` | apart | the process and the machine: a file, synced at each write |
//! | `redis::RedisStore` | `redis` | apart | what the server's persistence survives |
//! | [`Conditional`] over a [`Table`] of one's own | | apart | what the table survives; DynamoDB fits |
//! | `postgres::PostgresStore` | `postgres` | in the transaction of the effect | with the effect, always |
//!
//! # What a crash leaves behind
//!
//! | crash | record apart from the effect | record in the effect's transaction |
//! |---|---|---|
//! | before the claim | the effect runs at the next delivery | the same |
//! | after the claim, before the effect | the next delivery takes the claim over at once, by its larger fencing token; another message for the same operation waits for [`Idempotent::claim_for`] | the server rolls the transaction back when the connection breaks, or after [`Idempotent::claim_for`] where it cannot see that; then the effect runs at the next delivery |
//! | after the effect, before the record, for which a store that fails is tried for 30 s | the effect runs **again**: make it conditional on the fencing token, or harmless to repeat | the effect is rolled back with the claim, and runs at the next delivery |
//! | after the record, before the ack | the next delivery gets the recorded result, and is acked | the same |
//! | after the ack | nothing comes again; the record is kept for [`Idempotent::keep_for`] | the same |
//!
//! A handler that lost its lease and goes on is treated as one that crashed: its claim is taken over, and it cannot record any
//! more. It begins no effect, as far as it knows; with a record apart its effect may have happened, or happen yet, and in a
//! transaction it has not.

mod conditional;
mod memory;
mod once;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redb")]
pub mod redb;
#[cfg(feature = "redis")]
pub mod redis;
mod rule;
mod store;
#[cfg(test)]
mod tests;

pub use conditional::{Claim, Conditional, ConditionalError, Table};
pub use memory::{MemoryStore, MemoryTable};
pub use once::Idempotent;
pub use store::{Begun, Finished, Operation, Store, Times};
