//! Files that client commands read: HCL or JSON, or standard input.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Reads one file, or standard input where it is called `-`.
///
/// # Errors
/// A file that cannot be read, is above 4 MiB or is neither HCL nor JSON; each names the file.
pub(crate) fn read(file: &Path) -> Result<Value> {
    let named = || if is_standard(file) { "standard input".into() } else { file.to_string_lossy() };
    let mut text = String::new();
    let read = if is_standard(file) {
        std::io::stdin().lock().take(OCTETS_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)
            .and_then(|opened| opened.take(OCTETS_MAX + 1).read_to_string(&mut text))
    };
    let length = read.with_context(|| format!("reading {}", named()))?;
    ensure!(length as u64 <= OCTETS_MAX, "{}: it is longer than {OCTETS_MAX} bytes", named());
    parse(&text).with_context(|| named().into_owned())
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Reads JSON where the text begins as an object does, and HCL otherwise.
fn parse(text: &str) -> Result<Value> {
    let value: Value = if text.trim_start().starts_with(['{', '[']) {
        serde_json::from_str(text).context("it is no JSON")?
    } else {
        hcl::from_str(text).context("it is no HCL")?
    };
    match value {
        Value::Object(ref keys) if !keys.is_empty() => Ok(value),
        _ => bail!("it must hold keys and values"),
    }
}

/// Far above any definition or config entry.
const OCTETS_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hcl_and_json_say_the_same() {
        let expected = json!({"Kind": "proxy-defaults", "Config": {"protocol": "http"}});
        for text in [
            "Kind = \"proxy-defaults\"\nConfig {\n  protocol = \"http\"\n}\n",
            " {\"Kind\": \"proxy-defaults\", \"Config\": {\"protocol\": \"http\"}}",
        ] {
            assert_eq!(parse(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for (text, why) in [
            ("{\"a\": ", "it is no JSON"),
            ("a = ", "it is no HCL"),
            ("[1]", "it must hold keys and values"),
            ("", "it must hold keys and values"),
            ("{}", "it must hold keys and values"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.to_string().contains(why), "{text:?}: {refused:#}");
        }
        let refused = read(Path::new("/there/is/no/such")).expect_err("no file");
        assert!(refused.to_string().contains("/there/is/no/such"), "{refused:#}");
    }
}
