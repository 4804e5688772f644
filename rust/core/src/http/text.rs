//! The small things that HTTP's grammar is made of.

/// `tchar` (RFC 9110 section 5.6.2).
pub(super) const fn is_tchar(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`'
        | b'|' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

/// `token`.
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_tchar(*byte))
}

/// A byte of a `field-value` (RFC 9110 section 5.5): HTAB, SP, VCHAR, obs-text.
pub(super) const fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= 0x20 && byte != 0x7f
}

/// Without `OWS` around it.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The elements of a list (RFC 9110 section 5.6.1), without the empty ones that a recipient has to
/// ignore.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// `1*DIGIT` without a leading zero, at most `i64::MAX`: there is one way to read it. (RFC 9110
/// section 8.6 allows leading zeros; but who reads them as octal reads another number.)
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let canonical = matches!(text, [b'0'] | [b'1'..=b'9', ..]);
    if !canonical || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // 19 digits fit 64 bits.
    let number = text
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    (number <= i64::MAX as u64).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn numbers_have_one_spelling() {
        for (text, expected) in [
            ("0", Some(0)),
            ("9223372036854775807", Some(i64::MAX as u64)),
            ("9223372036854775808", None),
            ("9999999999999999999", None),
            ("10000000000000000000", None),
            ("", None),
            ("00", None),
            ("01", None),
            ("-1", None),
            ("1 ", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn lists_may_have_empty_elements() {
        let elements: Vec<&[u8]> = list(b",a,, b c ,\t,d\t").collect();
        assert_eq!(elements, [&b"a"[..], b"b c", b"d"]);
        assert_eq!(list(b"").count() + list(b" , ").count(), 0);
    }

    #[test]
    fn whitespace_is_space_and_tab() {
        assert_eq!(trim(b" \ta\x0b\xa0 b\t "), b"a\x0b\xa0 b");
        assert_eq!(trim(b" \t "), b"");
    }

    #[test]
    fn tokens_are_made_of_tchars() {
        let separators = b"\"(),/:;<=>?@[\\]{} \t";
        for byte in 0..=255_u8 {
            let expected = byte.is_ascii_graphic() && !separators.contains(&byte);
            assert_eq!(is_token(&[b'a', byte]), expected, "{byte:#x}");
        }
        assert!(!is_token(b""));
    }
}
