//! The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): who a balancer in front of us
//! speaks for. Pure. Exactly the header's bytes are asked for, so that nothing of what follows is taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The twelve bytes that version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 before its addresses.
const V2_HEAD_BYTES: usize = 16;
/// Addresses and extensions of version 2; more than this is nobody's balancer.
const MAX_V2_BYTES: usize = 4096;
/// Longest line of version 1, with its end.
const MAX_V1_BYTES: usize = 107;
/// Shortest header of all: `PROXY UNKNOWN` and the line's end.
const MIN_BYTES: usize = 15;

/// Next step of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// So many more bytes are needed.
    Read(usize),
    /// The header is complete. The client's address; none if the balancer speaks for itself (health
    /// checks) or does not say.
    Done(Option<SocketAddr>),
}

/// Input that is not the header of a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a PROXY protocol header: {0}")]
pub struct NotAProxy(&'static str);

/// Looks at what was read so far.
///
/// # Errors
/// [`NotAProxy`] as soon as it cannot become a header.
pub fn next(bytes: &[u8]) -> Result<Next, NotAProxy> {
    if bytes.len() < MIN_BYTES {
        return Ok(Next::Read(MIN_BYTES - bytes.len()));
    }
    if bytes.starts_with(&SIGNATURE) {
        version_2(bytes)
    } else if bytes.starts_with(b"PROXY ") {
        version_1(bytes)
    } else {
        Err(NotAProxy("neither version 1 nor 2"))
    }
}

fn version_1(bytes: &[u8]) -> Result<Next, NotAProxy> {
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        return if bytes.len() < MAX_V1_BYTES { Ok(Next::Read(1)) } else { Err(NotAProxy("the line is too long")) };
    };
    let malformed = NotAProxy("the line is malformed");
    let line = std::str::from_utf8(line).map_err(|_| malformed)?;
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(Next::Done(None)),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, port, _] => {
            let address: IpAddr = source.parse().map_err(|_| malformed)?;
            let port = port.parse().map_err(|_| malformed)?;
            if address.is_ipv4() != (*family == "TCP4") {
                return Err(malformed);
            }
            Ok(Next::Done(Some(SocketAddr::new(address, port))))
        }
        _ => Err(malformed),
    }
}

fn version_2(bytes: &[u8]) -> Result<Next, NotAProxy> {
    let Some(&[.., command, family, high, low]) = bytes.first_chunk::<V2_HEAD_BYTES>() else {
        return Ok(Next::Read(V2_HEAD_BYTES - bytes.len()));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2_BYTES {
        return Err(NotAProxy("it is too long"));
    }
    let rest = &bytes[V2_HEAD_BYTES..];
    if rest.len() < length {
        return Ok(Next::Read(length - rest.len()));
    }
    match (command, family) {
        // LOCAL: the balancer itself.
        (0x20, _) => Ok(Next::Done(None)),
        // PROXY, TCP over IPv4: two addresses of four bytes, two ports.
        (0x21, 0x11) => {
            let &[a, b, c, d, _, _, _, _, high, low, ..] = rest.first_chunk::<12>().ok_or(NotAProxy("no addresses"))?;
            let port = u16::from_be_bytes([high, low]);
            Ok(Next::Done(Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))))
        }
        // The same over IPv6: two of sixteen.
        (0x21, 0x21) => {
            let addresses = rest.first_chunk::<36>().ok_or(NotAProxy("no addresses"))?;
            let (source, after) = addresses.split_first_chunk::<16>().ok_or(NotAProxy("no addresses"))?;
            let port = after.get(16..18).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
            Ok(Next::Done(Some(SocketAddr::new(Ipv6Addr::from(*source).into(), port))))
        }
        // PROXY for something that has no address we know: as if it did not say.
        (0x21, _) => Ok(Next::Done(None)),
        _ => Err(NotAProxy("neither LOCAL nor PROXY")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads as a driver would: exactly what is asked for. What it found, and what is left.
    fn read(mut stream: &[u8]) -> Result<(Option<SocketAddr>, Vec<u8>), NotAProxy> {
        let mut bytes = Vec::new();
        loop {
            match next(&bytes)? {
                Next::Done(address) => return Ok((address, stream.to_vec())),
                Next::Read(count) => {
                    let (now, later) = stream.split_at_checked(count).ok_or(NotAProxy("end"))?;
                    bytes.extend_from_slice(now);
                    stream = later;
                }
            }
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn headers_are_read_and_nothing_more() {
        let ip4 = [&[10, 0, 0, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 1][..], b"extension"].concat();
        let mut ip6 = [0; 36];
        (ip6[0], ip6[15], ip6[33]) = (0xFD, 1, 9);
        for (mut header, wanted) in [
            (b"PROXY TCP4 10.0.0.7 10.0.0.1 4660 5432\r\n".to_vec(), Some("10.0.0.7:4660")),
            (b"PROXY TCP6 fd00::1 fd00::2 9 5432\r\n".to_vec(), Some("[fd00::1]:9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 x 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &ip4), Some("10.0.0.7:4660")),
            (v2(0x21, 0x21, &ip6), Some("[fd00::1]:9")),
            (v2(0x20, 0x00, b""), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            header.extend_from_slice(b"\0\0\0\x08");
            let (address, left) = read(&header).expect("a header");
            assert_eq!(address.map(|address| address.to_string()).as_deref(), wanted);
            assert_eq!(left, b"\0\0\0\x08");
        }
    }

    #[test]
    fn anything_else_is_refused_early() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        for bytes in [
            &b"\0\0\0\x08\x04\xd2\x16\x2f0123456789"[..],
            b"PROXY TCP4 fd00::1 fd00::2 9 5432\r\n",
            b"PROXY TCP4 10.0.0.7 10.0.0.1 99999 1\r\n",
            b"PROXY TCP5 10.0.0.7 10.0.0.1 1 1\r\n",
            &long,
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 4]),
            &v2(0x21, 0x11, &[0; 5000]),
        ] {
            assert_ne!(read(bytes).expect_err("no header").0, "end", "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), v1: bool) {
            let _ = next(&bytes);
            let head: &[u8] = if v1 { b"PROXY TCP4 " } else { &SIGNATURE };
            let _ = next(&[head, &bytes].concat());
        }
    }
}
