//! What one entry by itself may say: a row for every refusal.

use serde_json::Deserializer;

use super::*;

fn written(key: &str, json: &str) -> Result<Entry, String> {
    let (kind, name) = key.split_once('/').expect("kind/name");
    let kind: Kind = kind.parse().expect(kind);
    let body =
        Body::read(kind, &mut Deserializer::from_str(json)).map_err(|why| why.to_string())?;
    Entry::new(name, body).map_err(|why| why.to_string())
}

#[test]
fn a_bad_entry_is_refused_with_its_field() {
    let route = |http: &str| format!(r#"{{"Routes":[{{"Match":{{"HTTP":{http}}}}}]}}"#);
    let to = |to: &str| format!(r#"{{"Routes":[{{"Destination":{to}}}]}}"#);
    let cases = [
        ("service-defaults/web", r#"{"Protocol":"htp"}"#.into(), "Protocol: \"htp\" is none of"),
        ("service-defaults/web", r#"{"Protcol":"http"}"#.into(), "unknown field `Protcol`"),
        ("service-defaults/*", "{}".into(), "service-defaults/*: Name: "),
        (
            "service-defaults/web",
            r#"{"LocalConnectTimeoutMs":0}"#.into(),
            "LocalConnectTimeoutMs: must",
        ),
        ("proxy-defaults/all", "{}".into(), "proxy-defaults: Name must be \"global\""),
        (
            "service-resolver/web",
            r#"{"ConnectTimeout":"0s"}"#.into(),
            "ConnectTimeout: must be more",
        ),
        ("service-resolver/web", r#"{"RequestTimeout":"25h"}"#.into(), "RequestTimeout: must be"),
        (
            "service-resolver/web",
            r#"{"DefaultSubset":"v1"}"#.into(),
            "DefaultSubset: \"v1\" is none of Subsets",
        ),
        ("service-resolver/web", r#"{"Subsets":{"V1":{}}}"#.into(), "Subsets[\"V1\"]: use at most"),
        (
            "service-resolver/web",
            r#"{"Subsets":{"v1":{"Filter":"=="}}}"#.into(),
            "Subsets[\"v1\"].Filter: ",
        ),
        ("service-resolver/web", r#"{"Redirect":{}}"#.into(), "Redirect: it names neither"),
        (
            "service-resolver/web",
            r#"{"Redirect":{"ServiceSubset":"v1"}}"#.into(),
            "Redirect.ServiceSubset: it needs Service",
        ),
        (
            "service-resolver/web",
            r#"{"Redirect":{"Peer":"west","Service":"a","ServiceSubset":"v1"}}"#.into(),
            "Redirect.ServiceSubset: subsets of peers",
        ),
        (
            "service-resolver/web",
            r#"{"Redirect":{"Service":"a","Datacenter":"dc2"}}"#.into(),
            "Redirect.Datacenter: other clusters are peers",
        ),
        (
            "service-resolver/web",
            r#"{"Redirect":{"Service":"a","Namespace":"x"}}"#.into(),
            "Redirect.Namespace: only \"default\"",
        ),
        (
            "service-resolver/web",
            r#"{"Redirect":{"Service":"a"},"Failover":{"*":{"Service":"b"}}}"#.into(),
            "Redirect: it cannot stand beside Failover",
        ),
        (
            "service-resolver/web",
            r#"{"Redirect":{"Service":"a"},"Subsets":{"v1":{}}}"#.into(),
            "Redirect: it cannot stand beside Subsets",
        ),
        (
            "service-resolver/web",
            r#"{"Failover":{"v1":{"Service":"b"}}}"#.into(),
            "Failover[\"v1\"]: it is none of Subsets",
        ),
        (
            "service-resolver/web",
            r#"{"Failover":{"*":{"Service":"b","Targets":[{"Peer":"w"}]}}}"#.into(),
            "Service: it cannot stand beside Targets",
        ),
        (
            "service-resolver/web",
            r#"{"Failover":{"*":{"Targets":[{}]}}}"#.into(),
            "Targets[0]: it names neither",
        ),
        (
            "service-resolver/web",
            r#"{"Failover":{"*":{"Targets":[{"Peer":"w","ServiceSubset":"v1"}]}}}"#.into(),
            "Targets[0].ServiceSubset: subsets of peers",
        ),
        ("service-splitter/web", "{}".into(), "Splits: there is none"),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":90},{"Weight":9.99,"Service":"b"}]}"#.into(),
            "Splits: their weights are 99.99 together: make them 100",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":101}]}"#.into(),
            "Weight must be from 0 to 100",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":50},{"Weight":50}]}"#.into(),
            "Splits[1]: it is listed before",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":100,"Service":"B"}]}"#.into(),
            "Splits[0].Service: use at most",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":100,"RequestHeaders":{"Set":{"host":"a"}}}]}"#.into(),
            "Splits[0].RequestHeaders.Set: \"host\" is written by the proxies",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":100}],"Sticky":{"Field":"ip","FieldValue":"a"}}"#.into(),
            "Sticky.Field: use header, cookie",
        ),
        (
            "service-splitter/web",
            r#"{"Splits":[{"Weight":100}],"Sticky":{"Field":"cookie"}}"#.into(),
            "Sticky.FieldValue: ",
        ),
        (
            "service-router/web",
            route(r#"{"PathExact":"/a","PathPrefix":"/b"}"#),
            "Routes[0].Match.HTTP: it may have one of",
        ),
        (
            "service-router/web",
            route(r#"{"PathExact":"a"}"#),
            "Match.HTTP.PathExact: it must begin with /",
        ),
        (
            "service-router/web",
            route(r#"{"PathPrefix":"a"}"#),
            "Match.HTTP.PathPrefix: it must begin with /",
        ),
        (
            "service-router/web",
            route(r#"{"PathRegex":"("}"#),
            "Match.HTTP.PathRegex: it is no regular expression",
        ),
        (
            "service-router/web",
            route(r#"{"PathRegex":"a)|(b"}"#),
            "Match.HTTP.PathRegex: it is no regular expression",
        ),
        (
            "service-router/web",
            route(r#"{"PathRegex":"(?:[a-z]{1000}){1000}"}"#),
            "Match.HTTP.PathRegex: it is no regular expression, or takes",
        ),
        (
            "service-router/web",
            route(r#"{"PathRegex":"/a","CaseInsensitive":true}"#),
            "Match.HTTP.CaseInsensitive: it goes with",
        ),
        (
            "service-router/web",
            route(r#"{"Header":[{"Name":"x"}]}"#),
            "Match.HTTP.Header[0]: it must have one of",
        ),
        (
            "service-router/web",
            route(r#"{"Header":[{"Name":"x","Exact":"a","Prefix":"b"}]}"#),
            "Match.HTTP.Header[0]: it must have one of",
        ),
        (
            "service-router/web",
            route(r#"{"Header":[{"Name":"a b","Present":true}]}"#),
            "Match.HTTP.Header[0].Name: \"a b\" is no header's name",
        ),
        (
            "service-router/web",
            route(r#"{"QueryParam":[{"Present":true}]}"#),
            "Match.HTTP.QueryParam[0].Name: it is missing",
        ),
        (
            "service-router/web",
            route(r#"{"QueryParam":[{"Name":"a"}]}"#),
            "Match.HTTP.QueryParam[0]: it must have one of",
        ),
        (
            "service-router/web",
            route(r#"{"Methods":["get"]}"#),
            "Match.HTTP.Methods: \"get\" is no method",
        ),
        (
            "service-router/web",
            route(r#"{"Methods":["GET","GET"]}"#),
            "Match.HTTP.Methods: GET is there twice",
        ),
        ("service-router/web", to(r#"{"Service":"-"}"#), "Destination.Service: use at most"),
        (
            "service-router/web",
            to(r#"{"Partition":"x"}"#),
            "Destination.Partition: only \"default\"",
        ),
        (
            "service-router/web",
            to(r#"{"PrefixRewrite":"/a"}"#),
            "Destination.PrefixRewrite: it needs PathExact",
        ),
        (
            "service-router/web",
            to(r#"{"NumRetries":11}"#),
            "Destination.NumRetries: 10 is the most",
        ),
        (
            "service-router/web",
            to(r#"{"RetryOn":["503"]}"#),
            "Destination.RetryOn: \"503\" is none of",
        ),
        (
            "service-router/web",
            to(r#"{"RetryOnStatusCodes":[200]}"#),
            "Destination.RetryOnStatusCodes: 200 is no status",
        ),
        (
            "service-router/web",
            to(r#"{"RequestTimeout":"25h"}"#),
            "Destination.RequestTimeout: 24h is the most",
        ),
        (
            "service-router/web",
            to(r#"{"RequestTimeout":"1s","PerTryTimeout":"2s"}"#),
            "Destination.PerTryTimeout: it must be below RequestTimeout",
        ),
        (
            "service-router/web",
            to(r#"{"ResponseHeaders":{"Remove":["content-length"]}}"#),
            "Destination.ResponseHeaders.Remove: \"content-length\" is written",
        ),
        (
            "service-router/web",
            to(r#"{"RequestHeaders":{"Set":{"x":"a\nb"}}}"#),
            "Destination.RequestHeaders.Set[\"x\"]: use at most",
        ),
        (
            "service-router/web",
            to(r#"{"RequestHeaders":{"Add":{"x-hawser-reason":"ok"}}}"#),
            "Destination.RequestHeaders.Add: \"x-hawser-reason\" is written",
        ),
        (
            "service-router/web",
            to(r#"{"Mirror":{"Percentage":5}}"#),
            "Destination.Mirror: name a Service or a ServiceSubset",
        ),
        (
            "service-router/web",
            to(r#"{"FaultInjection":{"Abort":{"HTTPStatus":500}}}"#),
            "Destination.FaultInjection.Abort.Percentage: it must be above 0",
        ),
        ("service-router/web", to(r#"{"Copies":{}}"#), "unknown field `Copies`"),
    ];
    for (key, json, expected) in cases {
        let json: String = json;
        let refused = written(key, &json).expect_err(&json);
        assert!(refused.contains(expected), "{key} {json}: {refused:?} has no {expected:?}");
    }
}

#[test]
fn both_spellings_are_read_and_consuls_is_written() {
    let cases = [
        (
            "service-router/web",
            r#"{"routes":[{"match":{"http":{"path_prefix":"/a","query_param":[{"name":"q","present":true}]}},
                "destination":{"service":"b","idle_timeout":"-1s","num_retries":1,"request_timeout":1000000000}}]}"#,
            r#"{"Routes":[{"Match":{"HTTP":{"PathPrefix":"/a","QueryParam":[{"Name":"q","Present":true}]}},
                "Destination":{"Service":"b","IdleTimeout":"-1s","NumRetries":1,"RequestTimeout":"1s"}}]}"#,
        ),
        (
            "service-splitter/web",
            r#"{"splits":[{"weight":99.5},{"weight":0.5,"service_subset":"v2"}]}"#,
            r#"{"Splits":[{"Weight":99.5},{"Weight":0.5,"ServiceSubset":"v2"}]}"#,
        ),
        (
            "service-resolver/web",
            r#"{"default_subset":"v1","subsets":{"v1":{"only_passing":true}},
                "failover":{"v1":{"targets":[{"service_subset":"v1"}]}}}"#,
            r#"{"DefaultSubset":"v1","Subsets":{"v1":{"OnlyPassing":true}},
                "Failover":{"v1":{"Targets":[{"ServiceSubset":"v1"}]}}}"#,
        ),
        (
            "service-resolver/web",
            r#"{"redirect":{"service":"b"}}"#,
            r#"{"Redirect":{"Service":"b"}}"#,
        ),
    ];
    for (key, json, expected) in cases {
        let entry = written(key, json).expect(json);
        let shown = serde_json::to_value(entry.body()).expect("JSON");
        let expected: serde_json::Value = serde_json::from_str(expected).expect("JSON");
        assert_eq!(shown, expected, "{key}");
    }
}
