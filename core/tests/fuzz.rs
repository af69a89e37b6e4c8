//! What others write is read without a panic, and what was read says the same when it is read again.

#[allow(dead_code, reason = "of the oracle only its reading of paths is asked here")]
mod oracle;

use hawser_core::chain;
use hawser_core::clock::{Index, Stamp, UnixTime};
use hawser_core::entry::{Body, Entry, Kind};
use hawser_core::filter::Filter;
use hawser_core::jwks::KeySet;
use hawser_core::name::ServiceName;
use hawser_core::normal::{self, EscapedSlashes, Rules};
use hawser_core::sni::Sni;
use hawser_core::spiffe::SpiffeId;
use hawser_core::state::{Command, State};
use hawser_fuzz::Target;
use serde_json::json;

#[test]
fn a_target_has_one_normal_form_which_the_oracle_finds_too() {
    Target::new("request_target").cases(100_000).run(|input| {
        let default = normal_twice(input, &Rules::default());
        for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Decode] {
            for (is_on, merges_slashes) in [(true, true), (true, false), (false, true)] {
                let rules = Rules { escaped_slashes, is_on, merges_slashes, ..Rules::default() };
                normal_twice(input, &rules);
            }
        }
        let path = |target: &str| target.split('?').next().unwrap_or_default().to_owned();
        // The oracle reads texts; half a character may be escaped and the other half not.
        let text = std::str::from_utf8(input);
        let expected = text.ok().and_then(oracle::normal_path);
        match &default {
            Some(normal) if text.is_ok() => {
                let path = path(normal);
                assert_eq!(Some(&path), expected.as_ref());
                assert!(!path.contains("//") && !path.split('/').any(|it| it == ".."), "{path}");
            }
            Some(_) => {}
            // The oracle does not look at queries.
            None => assert!(expected.is_none() || input.contains(&b'?'), "{expected:?}"),
        }
        default.is_some()
    });
}

/// The normal form, which is its own.
fn normal_twice(input: &[u8], rules: &Rules) -> Option<String> {
    let normal = match normal::target(input, rules).ok()? {
        Some(normal) => normal,
        None => String::from_utf8(input.to_vec()).expect("what is normal is ASCII"),
    };
    assert!(normal.is_ascii() && normal.starts_with('/'), "{normal}");
    assert_eq!(normal::target(normal.as_bytes(), rules), Ok(None), "{normal} under {rules:?}");
    Some(normal)
}

#[test]
fn an_authority_is_one_host_with_at_most_one_port() {
    Target::new("authority").cases(100_000).run(|input| {
        let Ok(changed) = normal::authority(input) else { return false };
        let normal = changed.unwrap_or_else(|| String::from_utf8_lossy(input).into_owned());
        assert_eq!(normal::authority(normal.as_bytes()), Ok(None));
        let is_plain = |octet: u8| octet.is_ascii_graphic() && !b"@,/?#\\%\"".contains(&octet);
        assert!(normal.bytes().all(is_plain), "{normal}");
        assert!(!normal.bytes().any(|octet| octet.is_ascii_uppercase()), "{normal}");
        true
    });
}

#[test]
fn identities_and_server_names_have_one_spelling() {
    Target::new("spiffe_id").cases(100_000).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(id) = text.parse::<SpiffeId>() else { return false };
        assert_eq!(id.to_string(), text);
        true
    });
    Target::new("sni").cases(100_000).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(sni) = text.parse::<Sni>() else { return false };
        assert_eq!(sni.to_string(), text);
        true
    });
}

#[test]
fn a_filter_is_refused_or_decides() {
    let item = json!({
        "Node": { "Node": "n1", "Meta": { "rack": "r1" }, "Address": "10.0.0.1" },
        "Service": {
            "ID": "web-1", "Service": "web", "Tags": ["v1", "blue"], "Port": 80,
            "Meta": { "version": "v1", "k": "" }, "Weights": { "Passing": 1 },
        },
        "Checks": [{ "Status": "passing", "Name": "c" }, { "Status": "critical", "Name": "d" }],
    });
    Target::new("filter").run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(filter) = Filter::parse(text) else { return false };
        let (once, twice) = (filter.matches(&item), filter.matches(&item));
        assert_eq!(once.is_ok(), twice.is_ok());
        let not = Filter::parse(&format!("not ({text})"));
        if let (Ok(is), Ok(Ok(is_not))) = (once, not.map(|not| not.matches(&item))) {
            assert_ne!(is, is_not, "{text}");
        }
        let mut list = vec![item.clone(), json!({})];
        let _ = filter.retain(&mut list);
        true
    });
}

/// An entry that is taken is written as it reads, fits into the state with others or is refused,
/// and whatever stands there compiles.
#[test]
fn a_config_entry_is_refused_or_means_the_same_when_read_again() {
    let names: Vec<ServiceName> =
        ["web", "api", "db"].iter().map(|name| name.parse().expect("a name")).collect();
    let mut state = State::default();
    let mut index = 0;
    Target::new("config_entry").cases(6_000).run(|input| {
        let Some(entry) = entry(input) else { return false };
        let again = serde_json::to_string(entry.body()).expect("JSON");
        let kind = entry.key().kind;
        let body = Body::read(kind, &mut serde_json::Deserializer::from_str(&again));
        let same = Entry::new(&entry.key().name, body.expect("what we wrote")).expect("as before");
        assert_eq!(same, entry, "{again}");
        index += 1;
        let stamp = Stamp { index: Index(index), time: UnixTime::from_secs(index) };
        let put = Command::PutEntry { entry, expected: None, fits: None };
        if state.fit(&put).is_err() || state.apply(stamp, put).is_err() {
            return false;
        }
        for name in &names {
            let chain = chain::compile(state.entries(), None, name);
            assert_eq!(chain, chain::compile(state.entries(), None, name));
        }
        true
    });
}

/// `kind/name` and JSON.
fn entry(input: &[u8]) -> Option<Entry> {
    let (key, json) = std::str::from_utf8(input).ok()?.split_once(' ')?;
    let (kind, name) = key.split_once('/')?;
    let body =
        Body::read(kind.parse::<Kind>().ok()?, &mut serde_json::Deserializer::from_str(json));
    Entry::new(name, body.ok()?).ok()
}

#[test]
fn a_key_set_is_read_or_refused() {
    Target::new("jwks").run(|input| KeySet::read(input).is_ok());
}
