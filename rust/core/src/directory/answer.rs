//! What the directory says, as JSON.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::time::Duration;

/// When a client may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Least pause before it tries to connect again.
    pub min: Duration,
    /// Longest one.
    pub max: Duration,
    /// Of the first try; doubled with each.
    pub base: Duration,
    /// How long a connection must have stood before it counts as a success.
    pub stable: Duration,
    /// Over what time clients spread that are told to go (Close 1012, 1013).
    pub window: Duration,
}

/// A client is sent somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent<'a> {
    /// Where to.
    pub url: &'a str,
    /// Whose that is.
    pub backend: &'a str,
    /// How long that is good for.
    pub expires_in: Duration,
    /// Where else, in the order of its key.
    pub alternatives: &'a [String],
    /// What to do when that fails.
    pub retry: Retry,
    /// The way through the balancer.
    pub fallback: Option<&'a str>,
}

/// Nobody is there for it now, or it is too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put<'a> {
    /// Why, for people.
    pub error: &'a str,
    /// When to come again.
    pub after: Duration,
    /// As above.
    pub retry: Retry,
    /// As above.
    pub fallback: Option<&'a str>,
}

/// Write that a client is sent somewhere.
pub fn write_sent(sent: &Sent<'_>, out: &mut Vec<u8>) {
    let mut text = String::with_capacity(512);
    text.push_str("{\"url\":");
    quote(sent.url, &mut text);
    text.push_str(",\"backend\":");
    quote(sent.backend, &mut text);
    let _ = write!(text, ",\"expires_in\":{}", sent.expires_in.as_secs());
    text.push_str(",\"alternatives\":[");
    for (index, url) in sent.alternatives.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        quote(url, &mut text);
    }
    text.push_str("],\"retry\":{");
    retry(&sent.retry, sent.fallback, &mut text);
    text.push_str("}}\n");
    out.extend_from_slice(text.as_bytes());
}

/// Write that a client is put off.
pub fn write_put(put: &Put<'_>, out: &mut Vec<u8>) {
    let mut text = String::with_capacity(256);
    text.push_str("{\"error\":");
    quote(put.error, &mut text);
    let _ = write!(text, ",\"retry\":{{\"after_ms\":{},", put.after.as_millis());
    retry(&put.retry, put.fallback, &mut text);
    text.push_str("}}\n");
    out.extend_from_slice(text.as_bytes());
}

fn retry(retry: &Retry, fallback: Option<&str>, text: &mut String) {
    for (name, span) in [
        ("min_ms", retry.min),
        ("max_ms", retry.max),
        ("base_ms", retry.base),
        ("stable_ms", retry.stable),
        ("window_ms", retry.window),
    ] {
        let _ = write!(text, "\"{name}\":{},", span.as_millis());
    }
    text.push_str("\"fallback\":");
    match fallback {
        Some(url) => quote(url, text),
        None => text.push_str("null"),
    }
}

/// A string of JSON (RFC 8259 section 7), fit to stand in a page: what could begin a tag is escaped too.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::ToOwned;

    const RETRY: Retry = Retry {
        min: Duration::ZERO,
        max: Duration::from_secs(30),
        base: Duration::from_millis(500),
        stable: Duration::from_secs(10),
        window: Duration::from_secs(5),
    };

    #[test]
    fn what_is_said_reads_back() {
        let alternatives = ["wss://b/\"".to_owned(), "wss://c/?a&b".to_owned()];
        let mut out = Vec::new();
        let sent = Sent {
            url: "wss://a/\\?x=</script>&y",
            backend: "app-\u{7}\u{2028}\u{e9}",
            expires_in: Duration::from_secs(30),
            alternatives: &alternatives,
            retry: RETRY,
            fallback: Some("wss://www/"),
        };
        write_sent(&sent, &mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["url"], sent.url);
        assert_eq!(value["backend"], sent.backend);
        assert_eq!(value["expires_in"], 30);
        assert_eq!(value["alternatives"], serde_json::json!(alternatives));
        let retry = serde_json::json!({
            "min_ms": 0, "max_ms": 30000, "base_ms": 500, "stable_ms": 10000,
            "window_ms": 5000, "fallback": "wss://www/",
        });
        assert_eq!(value["retry"], retry);
        assert!(!out.contains(&b'<') && !out.contains(&b'&'));
    }

    #[test]
    fn who_is_put_off_is_told_for_how_long() {
        let mut out = Vec::new();
        let put = Put {
            error: "no backend is up",
            after: Duration::from_millis(1234),
            retry: RETRY,
            fallback: None,
        };
        write_put(&put, &mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["error"], "no backend is up");
        assert_eq!(value["retry"]["after_ms"], 1234);
        assert_eq!(value["retry"]["fallback"], serde_json::Value::Null);
        assert_eq!(value["retry"]["max_ms"], 30000);
    }
}
