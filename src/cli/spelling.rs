//! Consul's spelling of long options, `-http-addr=…`, made into the one that clap reads.

use std::ffi::OsString;

/// Gives every long option its second dash: `-detailed` becomes `--detailed`.
///
/// An option of one letter, a number, `-` (standard input), what has two dashes already and all
/// that follows `--` stay as they are.
pub(crate) fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_over = false;
    let respell = |argument: OsString| {
        is_over |= argument == "--";
        if is_over || !has_one_dash(argument.as_encoded_bytes()) {
            return argument;
        }
        let mut respelt = OsString::from("-");
        respelt.push(argument);
        respelt
    };
    arguments.into_iter().map(respell).collect()
}

/// Whether it is a long option with one dash: a letter, and then more of its name.
fn has_one_dash(octets: &[u8]) -> bool {
    match octets {
        [b'-', first, second, ..] => {
            first.is_ascii_alphabetic() && (second.is_ascii_alphanumeric() || *second == b'-')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_options_get_their_second_dash_and_nothing_else_does() {
        let cases = [
            // given, expected, why
            ("catalog nodes -detailed", "catalog nodes --detailed", "Consul's way"),
            ("members --detailed", "members --detailed", "already"),
            ("map -http-addr=1.2.3.4:8500", "map --http-addr=1.2.3.4:8500", "with its value"),
            ("map -http-addr 1.2.3.4:8500", "map --http-addr 1.2.3.4:8500", "value apart"),
            ("services register -", "services register -", "standard input"),
            ("map -minutes -1", "map --minutes -1", "a number is a value"),
            ("-h", "-h", "one letter is a short option"),
            ("-V", "-V", "one letter is a short option"),
            ("-meta=a=-b", "--meta=a=-b", "a dash in a value is its own"),
            ("x -- -deny", "x -- -deny", "after -- there are no options"),
            ("web-1 a-b", "web-1 a-b", "a dash inside a name"),
            ("", "", "nothing"),
        ];
        for (given, expected, why) in cases {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(with_two_dashes(words(given)), words(expected), "{why}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_utf_8_is_passed_on_as_it_is() {
        use std::os::unix::ffi::OsStringExt as _;
        let path = OsString::from_vec(b"-data-dir=/tmp/\xff".to_vec());
        let expected = OsString::from_vec(b"--data-dir=/tmp/\xff".to_vec());
        assert_eq!(with_two_dashes([path]), [expected]);
    }
}
