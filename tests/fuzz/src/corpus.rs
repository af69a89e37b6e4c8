//! Inputs as lines of text.

use std::path::Path;

/// The corpus of the target called `name`; nothing where there is no such file.
pub(crate) fn read(name: &str) -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let lines: Option<Vec<_>> = text.lines().map(unescaped).collect();
    assert!(lines.is_some(), "{}: a wrong escape", file.display());
    lines.unwrap_or_default()
}

/// An input as one line of text.
#[must_use]
pub fn escaped(input: &[u8]) -> String {
    let mut line = String::with_capacity(input.len());
    for octet in input {
        match octet {
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            b'\\' => line.push_str("\\\\"),
            b' '..=b'~' => line.push(char::from(*octet)),
            octet => line.push_str(&format!("\\x{octet:02x}")),
        }
    }
    line
}

/// The input that a line of text stands for; none for a wrong escape.
#[must_use]
pub fn unescaped(line: &str) -> Option<Vec<u8>> {
    let mut input = Vec::with_capacity(line.len());
    let mut rest = line.bytes();
    while let Some(octet) = rest.next() {
        input.push(match (octet, octet == b'\\') {
            (octet, false) => octet,
            (_, true) => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'\\' => b'\\',
                b'x' => {
                    let digits = [char::from(rest.next()?), char::from(rest.next()?)];
                    let [high, low] = digits.map(|digit| digit.to_digit(16));
                    u8::try_from(high? << 4 | low?).ok()?
                }
                _ => return None,
            },
        });
    }
    Some(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_octet_comes_back_from_its_line() {
        let all: Vec<u8> = (0..=255).collect();
        let line = escaped(&all);
        assert!(line.is_ascii() && !line.contains('\n'));
        assert_eq!(unescaped(&line), Some(all));
        for wrong in ["\\", "\\q", "\\x", "\\x1", "\\xg0"] {
            assert_eq!(unescaped(wrong), None, "{wrong}");
        }
    }
}
