//! The little that has to be known of a certificate beyond what rustls checks: when it expires, whose
//! it is, and its hash for channel binding. The certificates are ours, or were verified before.

use std::time::SystemTime;

use pkcs1::RsaPssParams;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_cert::attr::AttributeValue;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::asn1::{Any, Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode as _, Encode as _};

/// id-at-commonName
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// RSASSA-PSS: the hash is in its parameters.
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// Signature and hash algorithms by the hash they use. MD5 and SHA-1 count as SHA-256 (RFC 5929, 4.1).
const HASHES: [(ObjectIdentifier, Hash); 13] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("1.3.14.3.2.26"), Hash::Sha256),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// Reads DER without the profile of RFC 5280: what rustls has verified is not judged again.
fn read(certificate: &[u8]) -> Option<CertificateInner<Raw>> {
    CertificateInner::from_der(certificate).ok()
}

/// Expiry; `None` if it cannot be read.
pub fn expires(certificate: &[u8]) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + read(certificate)?.tbs_certificate().validity().not_after.to_unix_duration())
}

/// The first common name of its subject. One with a NUL in it is none: it would look like another
/// where texts end there.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let certificate = read(certificate)?;
    let mut pairs = certificate.tbs_certificate().subject().iter();
    pairs
        .find_map(|pair| (pair.oid == COMMON_NAME).then(|| text(&pair.value)).flatten())
        .filter(|name| !name.contains('\0'))
}

fn text(value: &AttributeValue) -> Option<String> {
    let utf8 = || value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
    let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned());
    let ia5 = || value.decode_as::<Ia5StringRef<'_>>().map(|text| text.as_str().to_owned());
    utf8().or_else(|_| printable()).or_else(|_| ia5()).ok()
}

/// Binding for tls-server-end-point: the certificate's hash by its signature's algorithm (RFC 5929,
/// section 4.1). `None` where that algorithm has no hash of its own, as Ed25519: then channel binding
/// cannot be offered.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = read(certificate)?;
    let algorithm = parsed.signature_algorithm();
    let mut oid = algorithm.oid;
    if oid == RSA_PSS {
        // RFC 4055, 3.1: without a hash SHA-1 is meant.
        let parameters = algorithm.parameters.as_ref()?.to_der().ok()?;
        oid = RsaPssParams::<Any>::from_der(&parameters).ok()?.hash.oid;
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
