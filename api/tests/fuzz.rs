//! What agents, operators and programs write in Consul's dialect is read or refused, never more.

use hawser_api::definition::Definitions;
use hawser_api::query::{Query, QueryOptions};
use hawser_api::{fields, rules};
use hawser_fuzz::Target;

#[test]
fn definitions_are_read_or_refused() {
    Target::new("definitions").run(|input| {
        let Ok(value) = fields::parse(input) else { return false };
        Definitions::from_json(&value).is_ok()
    });
}

#[test]
fn rules_are_read_or_refused() {
    Target::new("acl_rules").run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(rules) = rules::parse(text) else { return false };
        assert_eq!(rules::parse(text), Ok(rules));
        true
    });
}

#[test]
fn queries_are_read_or_refused() {
    Target::new("query").cases(50_000).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(query) = Query::parse(text) else { return false };
        let Ok(options) = QueryOptions::with_filter(&query) else { return false };
        for permille in [0, 500, 1_000] {
            options.wait_with_jitter(permille);
        }
        true
    });
}
