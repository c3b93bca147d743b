//! A slow and lossy link, in user space: kernels without the netem queueing discipline have none.
//!
//! The host's end of the link leaves the bridge; a thread carries its frames to a TAP device that
//! takes its place there, late and not all of them, and those for the host back at once. Frames
//! keep their offload headers (`virtio_net_hdr`), so that neither checksums nor segmentation are
//! anybody's worry.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;

/// Largest frame that offloading makes, with its headers.
const FRAME_BYTES: usize = 66 * 1024;
/// Most frames under way; more are lost, as in any queue.
const MOST_FRAMES: usize = 20_000;
/// Longest time the thread does not look whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// Do not answer ARP for addresses of this machine (`ip-sysctl`): the bridge does.
const NO_ARP: &str = "8";

/// Quality of a link: its effect on what the host sends.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Each frame comes this much later.
    pub delay: Duration,
    /// Each frame is lost with this probability.
    pub loss_percent: u8,
}

/// A link of bad quality; as it was once this is dropped, except that the link must be given back
/// to the bridge.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Carries frames between `link`, which is not on the bridge any more, and a new TAP device
    /// named `tap`, which exists as long as this does.
    pub fn start(link: &str, tap: &str, quality: Quality) -> Result<Self> {
        fs::write(format!("/proc/sys/net/ipv4/conf/{link}/arp_ignore"), NO_ARP).context("arp_ignore")?;
        let tap = open_tap(tap).context("cannot make a TAP device")?;
        let link = open_link(link).context("cannot listen at the link")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || carry(link, tap, quality, &told));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A device of the kernel's that gives frames and takes them.
fn open_tap(name: &str) -> io::Result<File> {
    let tap = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    name_device(&mut request, name)?;
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which lives through the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) })?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })?;
    Ok(tap)
}

fn name_device(request: &mut libc::ifreq, name: &str) -> io::Result<()> {
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other(format!("`{name}` is too long for a network device")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(())
}

/// A socket that gives the frames that come in at `link`, and sends frames out there.
fn open_link(link: &str) -> io::Result<File> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, libc::c_int::from(protocol)) })?;
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let index: libc::c_int =
        fs::read_to_string(format!("/sys/class/net/{link}/ifindex"))?.trim().parse().map_err(io::Error::other)?;
    set(&socket, libc::PACKET_VNET_HDR, &1_i32)?;
    set(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    let promiscuous = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(&socket, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`, which is plain data.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a `sockaddr_ll` of that length, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(File::from(socket))
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to a value of that length, which lives through the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), length)
    };
    check(done).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn carry(mut link: File, mut tap: File, quality: Quality, told: &AtomicBool) {
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; FRAME_BYTES];
    while !told.load(Ordering::Relaxed) {
        let next = late.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(Instant::now()).min(LOOK));
        wait(&[link.as_raw_fd(), tap.as_raw_fd()], next);
        // What the link's queue had no room for is lost; that is what links do.
        while let Ok(length) = tap.read(&mut buffer) {
            let _ = link.write(&buffer[..length]);
        }
        while let Ok(length) = link.read(&mut buffer) {
            if late.len() < MOST_FRAMES && fastrand::u8(0..100) >= quality.loss_percent {
                late.push_back((Instant::now() + quality.delay, buffer[..length].to_vec()));
            }
        }
        while let Some((_, frame)) = late.pop_front_if(|(due, _)| *due <= Instant::now()) {
            let _ = tap.write(&frame);
        }
    }
}

/// Waits until one of them can be read, at most `limit`.
fn wait(files: &[libc::c_int; 2], limit: Duration) {
    let mut polled = files.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let limit_ms = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the pointer is to two `pollfd`, which live through the call.
    let _ = unsafe { libc::poll(polled.as_mut_ptr(), 2, limit_ms) };
}
