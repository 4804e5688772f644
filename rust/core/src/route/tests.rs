//! Patterns and rules as tables: what matches, what does not, what cannot be written.

use super::*;
use alloc::vec;
use httparse::Header;
use proptest::prelude::*;
use std::format;
use std::string::{String, ToString};

/// The facts of a request for `target`.
pub(super) fn facts<'a>(target: &'a str, host: &'a str, fields: &'a [Header<'a>]) -> Facts<'a> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    Facts {
        path,
        host,
        query,
        fields,
    }
}

/// A field of its head.
pub(super) fn field<'a>(name: &'a str, value: &'a str) -> Header<'a> {
    Header {
        name,
        value: value.as_bytes(),
    }
}

#[test]
fn paths() {
    for (pattern, matching, others) in [
        ("/", &["/"][..], &["", "*", "//", "/a", "/."][..]),
        (
            "/*",
            &["/", "/a", "/a/b", "//", "/../a", "/%2e", "*", ""],
            &[],
        ),
        (
            "/chat",
            &["/chat", "/%63hat", "/c%68%61t"],
            &["/chat/", "/Chat", "//chat", "/chat/x", "/cha", "chat"],
        ),
        (
            "/rooms/*",
            &[
                "/rooms",
                "/rooms/",
                "/rooms/7",
                "/rooms/7/x",
                "/rooms//",
                "/r%6Foms/%2F",
            ],
            &["/roomsx", "/room", "//rooms/7", "/rooms%2f7", "/"],
        ),
        (
            "/rooms/{id}",
            &["/rooms/7", "/rooms/%2e7", "/rooms/...", "/rooms/;"],
            &["/rooms", "/rooms/", "/rooms/7/", "/rooms/7/x"],
        ),
        (
            "/rooms/{id}/*",
            &["/rooms/7", "/rooms/7/", "/rooms/7/x/y"],
            &["/rooms", "/rooms/", "/rooms//x"],
        ),
        (
            "/*/x",
            &["/a/x", "//x", "/%2f/x"],
            &["/x", "/a/b/x", "/a/x/"],
        ),
        ("/a//b", &["/a//b"], &["/a/b", "/a///b"]),
        ("/a/", &["/a/"], &["/a", "/a//"]),
        // Escapes of what is not unreserved stay escapes, in either case.
        ("/a%2fb", &["/a%2Fb", "/a%2fb"], &["/a/b", "/a%252fb"]),
        ("/%7euser", &["/~user", "/%7Euser"], &["/%7fuser"]),
        ("/100%25", &["/100%25"], &["/100%", "/100%2"]),
        (
            "/a!$&'()+,;=:@|^`",
            &["/a!$&'()+,;=:@|^`"],
            &["/a%21$&'()+,;=:@|^`"],
        ),
    ] {
        let parsed = Pattern::parse(pattern).unwrap();
        for path in matching {
            assert!(parsed.matches(path), "{pattern} must match {path:?}");
        }
        for path in others {
            assert!(!parsed.matches(path), "{pattern} must not match {path:?}");
        }
    }
}

#[test]
fn what_a_backend_might_resolve_matches_only_the_catch_all() {
    for path in [
        "/rooms/.",
        "/rooms/..",
        "/rooms/./x",
        "/rooms/../admin",
        "/rooms/%2e",
        "/rooms/%2E%2e/admin",
        "/rooms/.%2e",
        "/rooms/x/..",
        "/rooms/..;/admin",
        "/rooms/..;v=1/admin",
        "/rooms/..%2fadmin",
        "/rooms/x%2F..%2fadmin",
        "/rooms/..%5cadmin",
        "/rooms/..\\admin",
        "/rooms/%2e%2e%3b/x",
        "/./rooms/7",
    ] {
        for pattern in [
            "/rooms/*",
            "/rooms/{a}",
            "/rooms/{a}/*",
            "/rooms/*/*",
            "/*/*",
            "/*/rooms/*",
        ] {
            assert!(
                !Pattern::parse(pattern).unwrap().matches(path),
                "{pattern} matches {path}"
            );
        }
        assert!(Pattern::parse("/*").unwrap().matches(path));
    }
    for path in [
        "/rooms/...",
        "/rooms/.x",
        "/rooms/x.",
        "/rooms/a..b",
        "/rooms/;..",
        "/rooms/%252e",
        "/rooms/x/.y%2f",
    ] {
        assert!(Pattern::parse("/rooms/*").unwrap().matches(path), "{path}");
    }
}

#[test]
fn paths_that_cannot_be_written() {
    for (text, why) in [
        ("", "slash"),
        ("rooms", "slash"),
        ("*", "slash"),
        ("/ro*", "whole segments"),
        ("/*x/y", "whole segments"),
        ("/a{id}", "whole segments"),
        ("/{id", "whole segments"),
        ("/id}", "whole segments"),
        ("/{id}s", "whole segments"),
        ("/{}", "name"),
        ("/{1}", "name"),
        ("/{a-b}", "name"),
        ("/{a}/{a}", "twice"),
        ("/**", "whole segments"),
        ("/a?b=1", "query"),
        ("/a#b", "fragment"),
        ("/a b", "ASCII"),
        ("/caf\u{e9}", "ASCII"),
        ("/a\\b", "ASCII"),
        ("/a\n", "ASCII"),
        ("/%", "hexadecimal"),
        ("/%4", "hexadecimal"),
        ("/%4g", "hexadecimal"),
        ("/../a", "dot"),
        ("/a/.", "dot"),
        ("/%2e%2E/a", "dot"),
        ("/a/..;x/*", "dot"),
    ] {
        let error = Pattern::parse(text).unwrap_err();
        assert!(
            error.contains(why) && error.contains(&format!("{text:?}")),
            "{text}: {error}"
        );
    }
}

#[test]
fn hosts() {
    for (pattern, matching, others) in [
        (
            "example.com",
            &[
                "example.com",
                "EXAMPLE.com",
                "example.com:8080",
                "example.com.",
                "example.com.:80",
            ][..],
            &[
                "www.example.com",
                "example.org",
                "xample.com",
                "",
                "example.com..",
                "example.comx",
            ][..],
        ),
        (
            "*.Example.com",
            &["www.example.com", "a.b.EXAMPLE.com:1"],
            &["example.com", ".example.com.org", "wwwexample.com"],
        ),
        (
            "example.com:8080",
            &["example.com:8080", "Example.Com.:8080"],
            &["example.com", "example.com:80", "example.com:"],
        ),
        (
            "*.example.com:1",
            &["x.example.com:1"],
            &["example.com:1", "x.example.com"],
        ),
        ("192.0.2.1", &["192.0.2.1", "192.0.2.1:9"], &["192.0.2.11"]),
        (
            "[2001:DB8::0:1]",
            &["[2001:db8::1]", "[2001:db8::1]:80"],
            &["[2001:db8::2]", "2001:db8::1"],
        ),
        ("[::1]:80", &["[::1]:80"], &["[::1]", "[::1]:81"]),
        ("chat_1", &["chat_1"], &["chat-1"]),
    ] {
        let parsed = HostPattern::parse(pattern).unwrap();
        for host in matching {
            assert!(parsed.matches(host), "{pattern} must match {host:?}");
        }
        for host in others {
            assert!(!parsed.matches(host), "{pattern} must not match {host:?}");
        }
    }
    let long = format!("{}.com", "a".repeat(64));
    for text in [
        "",
        "*",
        "*.",
        "*.*.com",
        "www.*.com",
        "a..b",
        ".com",
        "com.",
        "a b",
        "a/b",
        "a@b",
        "[::1",
        "[::g]",
        "::1",
        "a:0",
        "a:",
        "a:+1",
        "a:080",
        "a:65536",
        "a:x",
        "b\u{fc}cher.example",
        "*.[::1]",
        &long,
    ] {
        HostPattern::parse(text).unwrap_err();
    }
}

#[test]
fn everything_given_must_match_and_the_first_rule_counts() {
    let fields = [
        field("x-user", "5"),
        field("X-User", "6"),
        field("Cookie", "beta=1"),
    ];
    let request = facts("/rooms/7?v=2", "www.example.com:80", &fields);
    let wanted = |name: &str, value: Option<&str>| vec![(name.into(), value.map(Into::into))];
    let path = |text| Pattern::parse(text).ok();
    let host = |text| HostPattern::parse(text).ok();
    let full = Match {
        path: path("/rooms/{id}"),
        host: host("*.example.com"),
        headers: wanted("X-USER", Some("5")),
        cookies: wanted("beta", Some("1")),
        query: wanted("v", Some("2")),
    };
    assert!(full.matches(&request));
    let misses = [
        Match {
            path: path("/rooms"),
            ..full.clone()
        },
        Match {
            host: host("example.com"),
            ..full.clone()
        },
        Match {
            headers: wanted("X-User", Some("6")),
            ..full.clone()
        },
        Match {
            headers: wanted("X-Other", None),
            ..full.clone()
        },
        Match {
            cookies: wanted("Beta", None),
            ..full.clone()
        },
        Match {
            cookies: wanted("beta", Some("")),
            ..full.clone()
        },
        Match {
            query: wanted("v", Some("3")),
            ..full.clone()
        },
        Match {
            query: wanted("w", None),
            ..full.clone()
        },
    ];
    for miss in &misses {
        assert!(!miss.matches(&request), "{miss:?}");
    }
    let present = Match {
        headers: wanted("x-user", None),
        cookies: wanted("beta", None),
        query: wanted("v", None),
        ..Match::default()
    };
    let mut routes = Routes(misses.into());
    assert_eq!(routes.first(&request), None);
    routes.0.extend([present, full, Match::default()]);
    assert_eq!(routes.first(&request), Some(8));
    let fields = [];
    assert_eq!(routes.first(&facts("/", "h", &fields)), Some(10));
    assert_eq!(Routes::default().first(&request), None);
}

proptest! {
    #[test]
    fn a_path_matches_itself_however_it_is_escaped(
        segments in proptest::collection::vec("[a-zA-Z0-9._~!$&'()+,;=:@-]{0,6}", 1..5),
        escaped in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        // Only a dot segment makes such a pattern wrong.
        let Ok(pattern) = Pattern::parse(&path) else {
            let dotted = |s: &String| matches!(s.split(';').next(), Some("." | ".."));
            prop_assert!(segments.iter().any(dotted), "{path}");
            return Ok(());
        };
        prop_assert!(pattern.matches(&path));
        let respelt: String = path.chars().zip(escaped.iter().cycle()).map(|(c, escape)| {
            if *escape && (c.is_ascii_alphanumeric() || "-._~".contains(c)) { format!("%{:02x}", c as u32) } else { c.into() }
        }).collect();
        prop_assert!(pattern.matches(&respelt), "{respelt}");
        let (longer, slashed) = (format!("{path}x"), format!("{path}/"));
        prop_assert!(!pattern.matches(&longer) && !pattern.matches(&slashed));
        let open = Pattern::parse(&format!("{path}/*")).unwrap();
        prop_assert!(open.matches(&path) && open.matches(&slashed) && !open.matches(&longer));
    }

    #[test]
    fn nothing_panics(text: String, path: String, host: String, query: String, cookie: Vec<u8>) {
        let fields = [Header { name: "cookie", value: &cookie }];
        let facts = Facts { path: &path, host: &host, query: Some(&query), fields: &fields };
        let rule = Match { path: Pattern::parse(&text).ok(), host: HostPattern::parse(&text).ok(), ..Match::default() };
        rule.matches(&facts);
        if let Ok(key) = Key::parse(&text) {
            prop_assert_eq!(Key::parse(&key.to_string()), Ok(key));
        }
        facts.cookie(&text);
        facts.query_value(&text);
        let _ = Pattern::parse(&path).ok().is_some_and(|pattern| pattern.matches(&path));
    }
}
