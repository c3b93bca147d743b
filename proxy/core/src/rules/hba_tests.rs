use super::*;
use proptest::prelude::*;

fn host(address: &str, tls: bool) -> Origin {
    Origin::Host { address: address.parse().expect("address"), tls }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let rules = Rules::parse(
        "# TYPE DATABASE USER ADDRESS METHOD\n\
         local all all trust\n\
         hostssl all  carol  all cert map=people\n\
         host all \"all\" 10.0.0.0/8 reject\n\
         host app,\"other db\" alice,bob 10.1.0.0 255.255.0.0 scram-sha-256  # two of each\n\
         hostnossl sameuser all ::/0 reject\n\
         hostssl all all fd00::/8 md5 clientcert=verify-full\n\
         host all all 127.0.0.1/32 password\n",
    )
    .expect("valid");
    let method = |origin, database, user| rules.find(origin, Some(database), user).map(|verdict| verdict.method);
    assert_eq!(method(Origin::Local, "x", "y"), Some(Method::Trust));
    assert_eq!(method(host("1.2.3.4", true), "x", "carol"), Some(Method::Certificate));
    assert_eq!(method(host("1.2.3.4", false), "x", "carol"), None, "needs TLS");
    assert_eq!(method(host("10.9.9.9", true), "x", "all"), Some(Method::Reject), "a role of that name");
    assert_eq!(method(host("10.1.2.3", false), "other db", "bob"), Some(Method::Scram));
    assert_eq!(method(host("10.2.2.3", false), "app", "bob"), None);
    assert_eq!(method(host("fd00::1", false), "eve", "eve"), Some(Method::Reject));
    assert_eq!(method(host("fd00::1", true), "eve", "eve"), Some(Method::Md5));
    assert_eq!(method(host("::ffff:127.0.0.1", false), "x", "y"), Some(Method::Password), "IPv4 in IPv6");
    let verdict = rules.find(host("fd00::1", true), Some("eve"), "eve").expect("fits");
    assert_eq!(verdict.certificate, ClientCertificate::Named);
    let verdict = rules.find(host("1.2.3.4", true), Some("x"), "carol").expect("fits");
    assert_eq!(verdict.map.as_deref(), Some("people"));
    assert!(rules.want_certificates() && !Rules::default().want_certificates());
    assert_eq!(
        Rules::parse("").expect("valid").find(Origin::Local, Some("x"), "y"),
        None,
        "an empty file lets nobody in"
    );
    assert!(Rules::default().find(host("1.2.3.4", false), Some("x"), "y").is_some());
}

#[test]
fn replication_without_a_database_has_rules_of_its_own() {
    let rules = Rules::parse("local all,\"replication\" all trust\nhost replication keeper all md5\n").expect("valid");
    assert_eq!(rules.find(Origin::Local, None, "keeper"), None);
    let from = host("1.2.3.4", false);
    assert!(rules.find(from, None, "keeper").is_some());
    assert_eq!(rules.find(from, None, "other"), None);
    assert_eq!(rules.find(from, Some("replication"), "keeper"), None, "a database of that name");
    assert!(Rules::default().find(from, None, "keeper").is_some(), "the database's own rules decide");
}

#[test]
fn what_is_not_understood_is_named() {
    for (line, wanted) in [
        ("hosts all all all md5", "`hosts` is no type"),
        ("host all all", "address is missing"),
        ("host all all 10.0.0.0/33 md5", "no address"),
        ("host all all 10.0.0.0 md5", "needs a mask"),
        ("host all all 10.0.0.0 255.0.255.0 md5", "no mask"),
        ("host all all example.org md5", "no address"),
        ("host all all all gss", "no method"),
        ("host all all all cert", "hostssl"),
        ("host all all all peer", "local"),
        ("host all all all", "method is missing"),
        ("host all +group all md5", "groups"),
        ("host samerole all all md5", "samerole"),
        ("hostssl all all all md5 clientcert=maybe", "clientcert"),
        ("host all all all md5 ldap=x", "no option"),
    ] {
        let (number, problem) = Rules::parse(&format!("\n{line}")).expect_err(line);
        assert!(number == 2 && problem.contains(wanted), "{line}: {problem}");
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "[a-z0-9 ,\"#/.:=\\n-]{0,80}") {
        let _ = Rules::parse(&text);
    }
}
