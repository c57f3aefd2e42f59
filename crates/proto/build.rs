//! Compiles the protocol files without a system `protoc`.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const PROTOCOL_FILES: [&str; 2] = ["leasehold/v1/leasehold.proto", "leasehold/peer/v1/peer.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("../../proto");
    for file in PROTOCOL_FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(PROTOCOL_FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
