//! Prepared statements of clients that share servers: what a client is told and what its statements do is what
//! it would be without the proxy.

use super::harness::Setup;
use super::raw::{Raw, bind, execute, parse, sync};

/// Two sessions whose settings differ prepare the unnamed statement in one unit and run it in another one, in
/// turns, on one server, as lib/pq and pg8000 do.
#[test]
fn an_unnamed_statement_outlives_what_the_proxy_does_between_units() {
    let (_primary, proxy) = super::alone(Setup { size: 1, ..Setup::default() });
    let mut clients = ["one", "two"].map(|name| Raw::connect(proxy.port, &[("application_name", name)]));
    let text = "select current_setting('application_name')";
    for round in 0..300 {
        for client in &mut clients {
            assert_eq!(client.ask(&[parse("", text), sync()].concat()), "1 ZI", "{round}");
        }
        for (client, name) in clients.iter_mut().zip(["one", "two"]) {
            let answer = client.ask(&[bind("", &[]), execute(), sync()].concat());
            assert_eq!(answer, format!("2 D({name}) SELECT_1 ZI"), "{round}");
        }
    }
}
