//! Mutated conversations through the entry points of `targets`: a few seconds of them in every test
//! run, hours with `make fuzz` (`MANATEE_FUZZ_SECONDS`). A failure prints the target and the bytes;
//! put them into `REGRESSIONS`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use manatee_proxy::error::{SqlState, encode_response};
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::frontend::{self, Kind};
use manatee_proxy::wire::{put_cstr, put_message};

use targets::{Target, targets};

/// Inputs that once failed: target and bytes.
const REGRESSIONS: &[(&str, &[u8])] = &[];

/// Longest input.
const MAX_BYTES: usize = 2048;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*: repeatable everywhere.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const TEXTS: [&str; 22] = [
    "select 1",
    "select $1::int",
    "insert into t values (1)",
    "begin",
    "begin read only",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to s",
    "set work_mem = '5MB'",
    "set datestyle = 'ymd'",
    "reset all",
    "discard all",
    "listen c",
    "unlisten c",
    "select pg_advisory_lock(1), pg_advisory_unlock(1)",
    "select lastval()",
    "copy t from stdin",
    "copy t to stdout",
    "deallocate a",
    "set manatee.route = 'primary'",
    "select 1; begin; /* manatee: standby */ select $q$x$q$, E'\\'', \"a\"\"b\" -- end",
];

const NAMES: [&str; 4] = ["", "a", "b", "manatee_1"];

fn client_message(random: &mut Random, out: &mut BytesMut) {
    let (name, other) = (random.pick(&NAMES).as_bytes(), random.pick(&NAMES).as_bytes());
    let text = random.pick(&TEXTS).as_bytes();
    match random.below(14) {
        0..=2 => frontend::put_query(out, text),
        3 | 4 => frontend::put_parse(out, name, text, &[0, 0]),
        5 | 6 => frontend::put_bind(out, name, other, &[0; 6]),
        7 => frontend::put_target(out, frontend::DESCRIBE, Kind::Statement, name),
        8 => frontend::put_target(out, frontend::CLOSE, Kind::Statement, name),
        9 => put_message(out, frontend::EXECUTE, |out| {
            put_cstr(out, name);
            out.put_u32(0);
        }),
        10 => frontend::put_empty(out, *random.pick(b"HXcdf")),
        11 => put_message(out, frontend::FUNCTION_CALL, |out| out.put_slice(&[0; 10])),
        _ => frontend::put_empty(out, frontend::SYNC),
    }
}

fn server_message(random: &mut Random, out: &mut BytesMut) {
    const ROWS: [&[u8]; 2] = [&[0, 0], &[0, 1, 0, 0, 0, 1, b't']];
    match random.below(14) {
        0 | 1 => {
            backend::put_command_complete(out, random.pick::<&str>(&["SELECT 1", "COMMIT", "BEGIN", "DEALLOCATE"]))
        }
        2..=4 => {
            backend::put_ready(
                out,
                *random.pick(&[TxStatus::Idle, TxStatus::Idle, TxStatus::InTransaction, TxStatus::Failed]),
            );
        }
        5 | 6 => backend::put_empty(out, *random.pick(b"123nIsc")),
        7 => put_message(out, backend::DATA_ROW, |out| out.put_slice(random.pick::<&[u8]>(&ROWS))),
        8 => put_message(out, backend::ROW_DESCRIPTION, |out| out.put_u16(0)),
        9 => {
            let code = *random.pick(&[*b"25006", *b"42601", *b"57P01", *b"40001", *b"0A000"]);
            let severity = *random.pick::<&str>(&["ERROR", "FATAL"]);
            encode_response(out, b'E', severity, SqlState(code), "no", None);
        }
        10 => put_message(out, backend::NOTICE_RESPONSE, |out| {
            out.put_slice(random.pick::<&[u8]>(&[b"SWARNING\0RSyncRepWaitForLSN\0\0", b"SNOTICE\0\0"]));
        }),
        11 => backend::put_parameter_status(out, b"DateStyle", b"ISO, YMD"),
        12 => put_message(out, *random.pick(b"GHW"), |out| out.put_slice(&[0, 0, 0])),
        _ => put_message(out, backend::NOTIFICATION_RESPONSE, |out| out.put_slice(b"\0\0\0\x01c\0x\0")),
    }
}

/// A conversation in the form that `targets::session` reads.
fn conversation(random: &mut Random) -> Vec<u8> {
    let mut data = vec![u8::try_from(random.below(16)).unwrap()];
    let mut message = BytesMut::new();
    for _ in 0..random.below(40) {
        let of_server = random.below(2) == 0;
        message.clear();
        for _ in 0..=random.below(4) {
            if of_server { server_message(random, &mut message) } else { client_message(random, &mut message) }
        }
        for chunk in message.chunks(1 + random.below(120)) {
            data.push(u8::try_from(chunk.len()).unwrap() | if of_server { 0x80 } else { 0 });
            data.extend_from_slice(chunk);
        }
        if random.below(25) == 0 {
            data.push(*random.pick(&[0xFF, 0xFE, 0xFD]));
        }
    }
    data
}

fn seed_for(target: &str, random: &mut Random) -> Vec<u8> {
    let mut out = BytesMut::new();
    match target {
        "session" => return conversation(random),
        "classify" => {
            out.put_u8(u8::try_from(random.below(4)).unwrap());
            for _ in 0..=random.below(3) {
                out.put_slice(random.pick(&TEXTS).as_bytes());
                out.put_slice(random.pick(&[";", " ", "/*", "*/", "$a$", "'", "\u{e4}"]).as_bytes());
            }
        }
        "startup" => {
            let body = b"user\0a\0database\0b\0options\0-c a=b --c=d\0_pq_.x\0y\0replication\0true\0\0";
            out.put_u32(u32::try_from(body.len()).unwrap() + 8);
            out.put_u32(*random.pick(&[3 << 16, (3 << 16) + 2, 80_877_102, 80_877_103]));
            out.put_slice(body);
        }
        _ => out.put_slice(b"SCRAM-SHA-256\0\0\0\0\x12n,,n=,r=abcdefghij r=nonceX,s=AAAA,i=4096,v=AAAA"),
    }
    out.to_vec()
}

fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(6) {
        if data.is_empty() {
            return;
        }
        let at = random.below(data.len());
        match random.below(6) {
            0 => data[at] = u8::try_from(random.below(256)).unwrap(),
            1 => data[at] ^= 1 << random.below(8),
            2 => drop(data.remove(at)),
            3 => data.insert(at, *random.pick(&[0, 1, 0x7F, 0xFF, b'S', b'Q', b'Z', b'\''])),
            4 => data.truncate(at),
            _ => {
                let end = (at + random.below(64)).min(data.len());
                let copy = data[at..end].to_vec();
                let to = random.below(data.len());
                data.splice(to..to, copy);
            }
        }
    }
    data.truncate(MAX_BYTES);
}

fn run(name: &str, target: &Target, data: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| target(data)));
    assert!(result.is_ok(), "target {name} fails with b\"{}\"", data.escape_ascii());
}

#[test]
fn nothing_that_is_sent_does_harm() {
    let seconds = std::env::var("MANATEE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let seed = std::env::var("MANATEE_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64)
    });
    println!("MANATEE_FUZZ_SEED={seed}");
    let targets = targets();
    for (name, data) in REGRESSIONS {
        let (_, target) = targets.iter().find(|(known, _)| known == name).expect("a known target");
        run(name, target, data);
    }
    let mut random = Random(seed | 1);
    let begun = Instant::now();
    let mut runs = 0_u64;
    while begun.elapsed() < Duration::from_secs(seconds) {
        for (name, target) in &targets {
            // The session is where most can go wrong.
            for _ in 0..if *name == "session" { 20 } else { 1 } {
                let mut data = seed_for(name, &mut random);
                mutate(&mut data, &mut random);
                run(name, target, &data);
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
    assert!(runs > 100);
}
