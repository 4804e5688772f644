//! What handshakes say, in words of this crate's own.

/// What backends are called.
pub fn name(backend: usize) -> String {
    format!("app-{backend}")
}

/// A head without the field of a repeated handshake, and what that says: previous, attempt.
pub fn resumed(head: &str) -> (String, Option<(String, u32)>) {
    let mut plain = String::new();
    let mut field = None;
    for line in head.split_inclusive("\r\n") {
        let Some(value) = line.strip_prefix("Pybalancer-Resumed: ") else {
            plain.push_str(line);
            continue;
        };
        let parts: Vec<&str> = value.trim().split("; ").collect();
        assert_eq!(parts.len(), 3, "{value:?}");
        let previous = parts[1].strip_prefix("previous=").unwrap_or_default();
        let attempt = parts[2].strip_prefix("attempt=").unwrap_or_default();
        field = Some((previous.to_string(), attempt.parse().unwrap_or_default()));
    }
    (plain, field)
}
