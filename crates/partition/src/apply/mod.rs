//! What each command does. One file for each kind of business; every function takes the clocks from the store.

mod configure;
mod damp;
mod expire;
mod outbox;
mod receive;
mod redrive;
mod send;
mod settle;
mod suspect;
