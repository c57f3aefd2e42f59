//! One network namespace with a TUN device in it. It has no name: it lives as long as this value or a process in it, so a
//! harness that is killed leaves nothing behind.

use std::ffi::OsString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::MTU_BYTES;

const DEVICE: &str = "leasehold";
/// `TUNSETIFF` of `linux/if_tun.h`.
const ATTACH: Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
/// `IFF_TUN | IFF_NO_PI`: whole IP packets and nothing before them.
const PLAIN_PACKETS: u16 = 0x0001 | 0x1000;

/// `struct ifreq` of `linux/if.h`, with the flags of its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest_of_union: [u8; 22],
}

pub struct Namespace {
    /// Keeps it alive, and is the way in.
    handle: File,
    /// Gives the packets that leave it and takes those that shall enter it; does not block.
    pub device: File,
}

impl Namespace {
    /// Makes a namespace whose only way out is the device, under `address`.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn new(address: Ipv4Addr) -> Result<Self, String> {
        // A thread moves alone, and what was made from it stays when it ends.
        let made = std::thread::spawn(move || make(address)).join();
        made.map_err(|_| "the thread that makes a namespace panicked".to_owned())?
    }

    /// Moves the calling thread, and those that it starts from now on, into the namespace.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn enter(&self) -> Result<(), String> {
        move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("cannot enter a network namespace: {error}"))
    }

    /// A command that runs another one in here, and ends it with the thread that started it: the thread that drives the run.
    pub fn launcher(&self) -> Vec<OsString> {
        let path = format!("--net=/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd());
        ["nsenter", &path, "setpriv", "--pdeathsig", "KILL"].map(OsString::from).to_vec()
    }
}

#[allow(unsafe_code)]
fn make(address: Ipv4Addr) -> Result<Namespace, String> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} a network namespace: {error}");
    // SAFETY: only the network of this thread becomes another one; its file descriptors stay those of the process.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| failed("make", &error))?;
    let handle = File::open("/proc/thread-self/ns/net").map_err(|error| failed("open", &error))?;
    let device = open_device().map_err(|error| failed("make a TUN device in", &error))?;
    let mtu = MTU_BYTES.to_string();
    ip(&["link", "set", "lo", "up"])?;
    ip(&["address", "add", &format!("{address}/24"), "dev", DEVICE])?;
    ip(&["link", "set", DEVICE, "mtu", &mtu, "up"])?;
    Ok(Namespace { handle, device })
}

/// Makes the device in the namespace of the calling thread.
#[allow(unsafe_code)]
fn open_device() -> std::io::Result<File> {
    let device = File::options().read(true).write(true).open(Path::new("/dev/net/tun"))?;
    let mut name = [0; 16];
    name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    let request = InterfaceRequest { name, flags: PLAIN_PACKETS, rest_of_union: [0; 22] };
    // SAFETY: this request of a TUN device reads one `ifreq`, and that is its layout.
    unsafe { ioctl(&device, Setter::<ATTACH, InterfaceRequest>::new(request)) }?;
    rustix::io::ioctl_fionbio(&device, true)?;
    Ok(device)
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output = command.args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("ip {}: {error}", arguments.join(" "))),
    }
}
