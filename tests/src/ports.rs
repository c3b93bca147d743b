//! Free TCP ports.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// Below the range from which the kernel picks ports for outgoing connections, so that none of
/// those takes the port between this test and its use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port nobody listens on at `address`, other than those in `taken`, to which it is added.
pub fn free(address: Ipv4Addr, taken: &mut Vec<u16>) -> Result<u16> {
    for _ in 0..1000 {
        let port = fastrand::u16(RANGE);
        if !taken.contains(&port) && is_free(address, port) {
            taken.push(port);
            return Ok(port);
        }
    }
    bail!("no free port between {} and {} at {address}", RANGE.start, RANGE.end);
}

/// Whether one could listen there.
pub fn is_free(address: Ipv4Addr, port: u16) -> bool {
    TcpListener::bind((address, port)).is_ok()
}
