//! The messages and services of `/proto`, generated at build time. Nothing is written by hand here.

/// What programs use: `leasehold.v1`.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("leasehold.v1");
}

/// What the nodes of one cluster say to each other: `leasehold.peer.v1`.
pub mod peer {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("leasehold.peer.v1");
}

/// The encoded descriptors of all files, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
