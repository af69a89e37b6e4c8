//! What permissions allow, deny and refuse to say, as tables.

use serde_json::json;

use super::*;

fn requests(json: Value) -> Requests {
    serde_json::from_value(json).expect("Consul's shape")
}

struct Sent(&'static [(&'static str, &'static str)]);

impl Fields for Sent {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let of_name = self.0.iter().filter(|(own, _)| *own == name);
        of_name.for_each(|(_, value)| see(value.as_bytes()));
    }
}

struct NoTokens;

impl Tokens for NoTokens {
    fn claims(&mut self, _: &str) -> Result<Arc<Value>, Unproven> {
        Err(Unproven::Missing)
    }
}

fn decide(guard: &Guard, method: &str, path: &str, sent: &Sent) -> Verdict {
    let asked = Asked { method, path, authority: "db", fields: sent };
    guard.decide(&asked, Action::Deny, &mut NoTokens)
}

#[test]
fn the_first_permission_that_applies_decides() {
    let guard = Guard::compile(
        &requests(json!({ "Permissions": [
            { "Action": "deny", "HTTP": { "PathPrefix": "/admin" } },
            { "Action": "allow", "HTTP": { "PathExact": "/pub", "Methods": ["GET", "HEAD"] } },
            { "Action": "allow", "HTTP": { "PathRegex": "/v[0-9]+/.*" } },
            { "Action": "allow", "HTTP": { "PathPrefix": "/" }, "JWT": { "Providers": [{ "Name": "a" }] } },
        ] })),
        Action::Deny,
    )
    .expect("good");
    let cases = [
        // method, path, expected, why
        ("GET", "/pub", Verdict::Allowed(By::Permission(1)), "exact"),
        ("POST", "/pub", Verdict::Unproven(Unproven::Missing), "another method goes on"),
        ("GET", "/admin/x", Verdict::Denied(By::Permission(0)), "a prefix"),
        ("GET", "/%61dmin", Verdict::Denied(By::Permission(0)), "a deny sees through escapes"),
        ("GET", "/v12/x", Verdict::Allowed(By::Permission(2)), "an expression"),
        ("GET", "/x/v1/x", Verdict::Unproven(Unproven::Missing), "for the whole path"),
    ];
    for (method, path, expected, why) in cases {
        assert_eq!(decide(&guard, method, path, &Sent(&[])), expected, "{method} {path}: {why}");
    }
}

#[test]
fn where_fields_can_be_read_in_two_ways_the_refusal_counts() {
    let allow = |field: Value| json!({ "Permissions": [{ "Action": "allow", "HTTP": { "Header": [field] } }] });
    let deny = |field: Value| {
        json!({ "Permissions": [
            { "Action": "deny", "HTTP": { "Header": [field] } },
            { "Action": "allow", "HTTP": { "PathPrefix": "/" } },
        ] })
    };
    let exact = || json!({ "Name": "X-Role", "Exact": "admin" });
    let not = || json!({ "Name": "X-Role", "Exact": "admin", "Invert": true });
    let absent = || json!({ "Name": "X-Role", "Present": true, "Invert": true });
    let any_case = || json!({ "Name": "X-Role", "Suffix": "MIN", "IgnoreCase": true });
    type Lines = &'static [(&'static str, &'static str)];
    let (one, list): (Lines, Lines) = (&[("x-role", "admin")], &[("x-role", "user, admin")]);
    let (two, none): (Lines, Lines) = (&[("x-role", "admin"), ("x-role", "user")], &[]);
    let user: Lines = &[("x-role", "user")];
    let (ends, crumbs): (Lines, Lines) =
        (&[("x-role", "ad"), ("x-role", "min")], &[("cookie", "a=1"), ("cookie", "b=2")]);
    let whole = |name: &str, whole: &str| json!({ "Name": name, "Exact": whole });
    let holds = |part: &str| json!({ "Name": "X-Role", "Contains": part });
    let pattern = || json!({ "Name": "X-Role", "Regex": "ad,.?min" });
    let cases: [(Value, Lines, bool, &str); 24] = [
        (deny(whole("X-Role", "ad, min")), ends, false, "two lines are one list"),
        (deny(whole("X-Role", "ad,min")), ends, false, "however it is joined"),
        (deny(holds("d, m")), ends, false, "over the joint"),
        (deny(pattern()), ends, false, "so for expressions"),
        (deny(whole("X-Role", "admin")), ends, true, "but nothing reads them as one word"),
        (allow(whole("X-Role", "ad, min")), ends, false, "which allows nothing"),
        (deny(whole("Cookie", "a=1; b=2")), crumbs, false, "crumbs of a cookie are one cookie"),
        (deny(whole("Cookie", "b=2")), crumbs, false, "and each is one"),
        (allow(exact()), one, true, "one value"),
        (allow(exact()), two, false, "two are ambiguous"),
        (allow(exact()), list, false, "so is a list"),
        (allow(exact()), none, false, "nothing is not it"),
        (deny(exact()), one, false, "the value itself"),
        (deny(exact()), two, false, "any of two"),
        (deny(exact()), list, false, "any of a list"),
        (deny(exact()), none, true, "nothing is none of them"),
        (allow(not()), user, true, "plainly another"),
        (allow(not()), none, false, "nothing is not plainly another"),
        (allow(not()), list, false, "a list may hold it"),
        (deny(not()), one, true, "plainly it"),
        (deny(not()), none, false, "nothing is not it"),
        (deny(not()), two, false, "two are not plainly it"),
        (allow(absent()), none, true, "not there"),
        (allow(any_case()), one, true, "case is of no account"),
    ];
    for (rules, lines, expected, why) in cases {
        let guard = Guard::compile(&requests(rules), Action::Deny).expect("good");
        let verdict = decide(&guard, "GET", "/", &Sent(lines));
        assert_eq!(matches!(verdict, Verdict::Allowed(_)), expected, "{why}: {verdict:?}");
    }
}

#[test]
fn a_host_is_denied_whatever_port_stands_behind_it() {
    let rules = |action: &str, field: Value| {
        let other = if action == "deny" { "allow" } else { "deny" };
        json!({ "Permissions": [
            { "Action": action, "HTTP": { "Header": [field] } },
            { "Action": other, "HTTP": { "PathPrefix": "/" } },
        ] })
    };
    let host = || json!({ "Name": "Host", "Exact": "admin.db" });
    let not = || json!({ "Name": "Host", "Exact": "admin.db", "Invert": true });
    let cases = [
        // action, field, authority, allowed, why
        ("deny", host(), "admin.db", false, "as written"),
        ("deny", host(), "admin.db:8080", false, "with a port"),
        ("deny", host(), "admin.db.", false, "with the root's dot"),
        ("deny", host(), "admin.db.:80", false, "with both"),
        ("deny", host(), "admin.db.example", true, "another host"),
        ("allow", host(), "admin.db:8080", false, "what allows is plain"),
        ("allow", host(), "admin.db", true, "as this is"),
        ("allow", not(), "admin.db:8080", false, "not plainly another"),
        ("allow", not(), "db:8080", true, "plainly another"),
    ];
    for (action, field, authority, expected, why) in cases {
        let guard = Guard::compile(&requests(rules(action, field)), Action::Deny).expect("good");
        let asked = Asked { method: "GET", path: "/", authority, fields: &Sent(&[]) };
        let verdict = guard.decide(&asked, Action::Deny, &mut NoTokens);
        let is_allowed = matches!(verdict, Verdict::Allowed(_));
        assert_eq!(is_allowed, expected, "{authority}: {why}: {verdict:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_field() {
    let with = |http: Value| json!({ "Permissions": [{ "Action": "allow", "HTTP": http }] });
    let field = |field: Value| with(json!({ "Header": [field] }));
    let token = |jwt: Value| json!({ "JWT": jwt });
    let long = "a".repeat(2_000);
    let cases = [
        (with(json!({})), "Permissions[0]"),
        (with(json!({ "PathExact": "/a", "PathPrefix": "/" })), "Permissions[0].HTTP"),
        (with(json!({ "PathExact": "a" })), "Permissions[0].HTTP.PathExact"),
        (with(json!({ "PathExact": "/a/../b" })), "Permissions[0].HTTP.PathExact"),
        (with(json!({ "PathPrefix": "/%61" })), "Permissions[0].HTTP.PathPrefix"),
        (with(json!({ "PathPrefix": "/a?b" })), "Permissions[0].HTTP.PathPrefix"),
        (with(json!({ "PathRegex": "(" })), "Permissions[0].HTTP.PathRegex"),
        (with(json!({ "PathRegex": "a)|(?:b" })), "Permissions[0].HTTP.PathRegex"),
        (with(json!({ "PathRegex": "(a{1000}){1000}" })), "Permissions[0].HTTP.PathRegex"),
        (with(json!({ "PathRegex": long })), "Permissions[0].HTTP.PathRegex"),
        (with(json!({ "Methods": ["get"] })), "Permissions[0].HTTP.Methods[0]"),
        (with(json!({ "Methods": ["GET", "GET"] })), "Permissions[0].HTTP.Methods[1]"),
        (field(json!({ "Name": "x" })), "Permissions[0].HTTP.Header[0]"),
        (
            field(json!({ "Name": "x", "Exact": "a", "Regex": "b" })),
            "Permissions[0].HTTP.Header[0]",
        ),
        (field(json!({ "Name": ":path", "Exact": "a" })), "Permissions[0].HTTP.Header[0].Name"),
        (field(json!({ "Name": "te", "Exact": "a" })), "Permissions[0].HTTP.Header[0].Name"),
        (
            field(json!({ "Name": "X-Hawser-A", "Exact": "a" })),
            "Permissions[0].HTTP.Header[0].Name",
        ),
        (
            field(json!({ "Name": "x", "Present": true, "IgnoreCase": true })),
            "Permissions[0].HTTP.Header[0].IgnoreCase",
        ),
        (token(json!({})), "JWT.Providers"),
        (token(json!({ "Providers": [{ "Name": "" }] })), "JWT.Providers[0].Name"),
        (
            token(
                json!({ "Providers": [{ "Name": "a", "VerifyClaims": [{ "Path": [], "Value": "" }] }] }),
            ),
            "JWT.Providers[0].VerifyClaims[0].Path",
        ),
    ];
    for (json, expected) in cases {
        let shown = json.to_string();
        let fault = Guard::compile(&requests(json), Action::Deny).expect_err(&shown);
        assert_eq!(fault.field, expected, "{shown}: {fault}");
    }
}
