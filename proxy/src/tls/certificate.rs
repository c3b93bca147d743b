//! The little that has to be known of a certificate beyond what rustls checks: when it expires, whose
//! it is, and its hash for channel binding. A reader of DER (X.690) that goes where it has to and
//! believes nothing; the certificates are ours, or were verified before.

use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const CONTEXT_0: u8 = 0xA0;

/// id-at-commonName, 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// RSASSA-PSS, 1.2.840.113549.1.1.10: the hash is in its parameters.
const RSA_PSS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0A];
/// Signature and hash algorithms by the hash they use. MD5 and SHA-1 count as SHA-256 (RFC 5929, 4.1).
const HASHES: [(&[u8], Hash); 13] = [
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x04], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x05], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0B], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0C], Hash::Sha384),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0D], Hash::Sha512),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x03], Hash::Sha384),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x04], Hash::Sha512),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], Hash::Sha256),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02], Hash::Sha384),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03], Hash::Sha512),
    (&[0x2B, 0x0E, 0x03, 0x02, 0x1A], Hash::Sha256),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The element at the head of `bytes`: tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The content of the element at the head, which must have this tag, and what follows.
fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

/// Without the element at the head.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    element(bytes).map(|(_, _, rest)| rest)
}

/// TBSCertificate from its validity on (RFC 5280, 4.1), and what follows TBSCertificate.
fn parts(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (tbs, after) = expect(certificate, SEQUENCE)?;
    let tbs = match expect(tbs, CONTEXT_0) {
        Some((_version, rest)) => rest,
        None => tbs,
    };
    // serialNumber, signature, issuer
    let validity = skip(skip(skip(tbs)?)?)?;
    Some((validity, after))
}

/// When it expires; `None` if that cannot be read.
pub fn expires(certificate: &[u8]) -> Option<SystemTime> {
    let (validity, _) = parts(certificate)?;
    let (validity, _) = expect(validity, SEQUENCE)?;
    let (tag, text, _) = element(skip(validity)?)?;
    let text = std::str::from_utf8(text).ok()?;
    // Two digits of the year below 50 are in this century (RFC 5280, 4.1.2.5.1).
    let text = match tag {
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    let seconds = u64::try_from(time.timestamp().as_second()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The first common name of its subject. One with a NUL in it is none: it would look like another
/// where texts end there.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (validity, _) = parts(certificate)?;
    let (mut names, _) = expect(skip(validity)?, SEQUENCE)?;
    while let Some((mut set, rest)) = expect(names, SET) {
        while let Some((pair, others)) = expect(set, SEQUENCE) {
            let (oid, value) = expect(pair, OID)?;
            // UTF8String, PrintableString, IA5String
            if let (true, (0x0C | 0x13 | 0x16, text, _)) = (oid == COMMON_NAME, element(value)?) {
                let text = std::str::from_utf8(text).ok()?;
                return (!text.contains('\0')).then(|| text.to_owned());
            }
            set = others;
        }
        names = rest;
    }
    None
}

/// What tls-server-end-point binds to: the certificate's hash by its signature's algorithm (RFC 5929,
/// section 4.1). `None` where that algorithm has no hash of its own, as Ed25519: then channel binding
/// cannot be offered.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, after) = parts(certificate)?;
    let (algorithm, _) = expect(after, SEQUENCE)?;
    let (mut oid, parameters) = expect(algorithm, OID)?;
    if oid == RSA_PSS {
        // RSASSA-PSS-params (RFC 4055, 3.1): the hash is first; without it SHA-1 is meant.
        let (parameters, _) = expect(parameters, SEQUENCE)?;
        let (hash, _) = expect(parameters, CONTEXT_0)?;
        (oid, _) = expect(expect(hash, SEQUENCE)?.0, OID)?;
    }
    let (_, hash) = HASHES.iter().find(|(known, _)| *known == oid)?;
    Some(match hash {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    fn make(arguments: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("folder");
        let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "10", "-subj", "/O=Sea cows/CN=alice/OU=x"])
            .args(arguments)
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(key)
            .output()
            .expect("openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        CertificateDer::from_pem_file(certificate).expect("certificate").to_vec()
    }

    #[test]
    fn certificates_of_openssl_are_read() {
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        for (arguments, bytes) in [
            (vec!["-newkey", "rsa:2048"], 32),
            (vec!["-newkey", "rsa:2048", "-sha512"], 64),
            (vec!["-newkey", "rsa:2048", "-sha384", "-sigopt", "rsa_padding_mode:pss"], 48),
            ([&curve[..], &["-sha256"]].concat(), 32),
            ([&curve[..], &["-sha384"]].concat(), 48),
        ] {
            let certificate = make(&arguments);
            assert_eq!(end_point(&certificate).map(|hash| hash.len()), Some(bytes), "{arguments:?}");
            assert_eq!(common_name(&certificate).as_deref(), Some("alice"));
            let left = expires(&certificate).and_then(|time| time.duration_since(SystemTime::now()).ok());
            let days = left.expect("in the future").as_secs() / 86400;
            assert!((8..=10).contains(&days), "{days}");
        }
        assert_eq!(end_point(&make(&["-newkey", "ed25519"])), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (end_point(&bytes), common_name(&bytes), expires(&bytes));
        }
    }
}
