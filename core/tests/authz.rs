//! Authorization, decided twice: by `core`, and by a plain reading of the contract written apart
//! from it. No generated pair of policies and request may part the two.
//!
//! `HAWSER_AUTHZ_CASES=1000000 cargo test --release -p hawser-core --test authz` is the long run.

mod oracle;

use std::sync::Arc;

use hawser_core::clock::{Index, UnixTime};
use hawser_core::intention::{Action, Intention, Pair};
use hawser_core::normal;
use hawser_core::permission::{Asked, Fields, Requests, Tokens, Unproven, Verdict};
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::view::{Change, Delta, Trust, View};
use oracle::{Outcome, Request, Token};
use serde_json::{Value, json};

/// Draws that a seed repeats.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const PATHS: [&str; 9] =
    ["/", "/admin", "/admin/", "/pub", "/v1/users", "/a:b", "/caf%C3%A9", "/x;y=1", "/a%3Ab"];
const VALUES: [&str; 7] = ["admin", "user", "adm", "min", "Admin", "team-a", "a"];
const SENT: [&str; 19] = [
    "admin",
    "user",
    "admin, user",
    "user,admin",
    "Admin",
    "ADMIN",
    "administrator",
    "team-a",
    "a",
    "",
    " admin",
    "\u{e9}admin",
    ",admin,",
    ",",
    "user;admin",
    "\tadmin\t",
    "admin,,user",
    "/v1/x",
    "xadminx, user",
];
const FIELDS: [&str; 6] = ["x-role", "x-team", "accept", "x-roles", "role", "cookie"];
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
const SEGMENTS: [&str; 56] = [
    "admin",
    "pub",
    "v1",
    "users",
    "a:b",
    "x;y=1",
    "caf\u{e9}",
    "caf%C3%A9",
    "caf%c3%A9",
    "%61dmin",
    "..",
    ".",
    "%2e%2e",
    ".%2E",
    "",
    "%2f",
    "%5c",
    "\\",
    "%00",
    "%zz",
    "%2561",
    "%c0%af",
    "..;",
    "%3Ab",
    "a%3Ab",
    "ADMIN",
    "admin%20",
    "%25",
    "[1]",
    "a%3ab",
    // What is no segment to one reader and one to another.
    "...",
    "%2e",
    "%2E.",
    ".%00.",
    "%2e%2e%2f",
    "..%5c",
    ".;",
    "..;x=1",
    "%3b",
    "..%3b",
    "%",
    "%2",
    "%u002e",
    "%252e%252e",
    "%25zz",
    "%0a",
    "%7f",
    "\u{7f}",
    "%ff",
    "%e2%80%ae",
    "%ed%a0%80",
    "%ef%bc%8f",
    "ad min",
    "ad\tmin",
    "v1%2Fusers",
    "v2",
];

fn http(draw: &mut Draw) -> Value {
    let mut http = json!({});
    match draw.below(5) {
        0 => http["PathExact"] = json!(draw.pick(&PATHS)),
        1 | 2 => http["PathPrefix"] = json!(draw.pick(&PATHS)),
        3 => http["PathRegex"] = json!(draw.pick(&oracle::REGEXES).0),
        _ => {}
    }
    if draw.one_in(2) {
        let from = draw.below(METHODS.len());
        http["Methods"] = json!(METHODS[from..=from + draw.below(METHODS.len() - from)]);
    }
    let fields: Vec<Value> = (0..draw.below(3)).map(|_| field(draw)).collect();
    if !fields.is_empty() {
        http["Header"] = json!(fields);
    }
    if http == json!({}) {
        http["PathPrefix"] = json!("/");
    }
    http
}

fn field(draw: &mut Draw) -> Value {
    let name = draw.pick(&["x-role", "X-Team", "accept", "host", "cookie"]);
    let mut field = json!({ "Name": name });
    match draw.below(6) {
        0 => field["Present"] = json!(true),
        5 => field["Regex"] = json!(draw.pick(&oracle::REGEXES).0),
        test => {
            let way = ["", "Exact", "Prefix", "Suffix", "Contains"][test];
            field[way] = json!(draw.pick(&VALUES));
            if draw.one_in(3) {
                field["IgnoreCase"] = json!(true);
            }
        }
    }
    if draw.one_in(3) {
        field["Invert"] = json!(true);
    }
    field
}

fn jwt(draw: &mut Draw) -> Value {
    let providers: Vec<Value> = (0..=draw.below(2))
        .map(|_| {
            let mut provider = json!({ "Name": draw.pick(&["okta", "own"]) });
            if draw.one_in(2) {
                let paths = [vec!["role"], vec!["realm", "roles"], vec!["n"], vec!["realm.roles"]];
                let path = draw.pick(&paths);
                let value = draw.pick(&["admin", "user", "7", "true"]);
                provider["VerifyClaims"] = json!([{ "Path": path, "Value": value }]);
            }
            provider
        })
        .collect();
    json!({ "Providers": providers })
}

fn says(draw: &mut Draw, is_exact: bool) -> Value {
    let mut says = json!({});
    if is_exact && draw.below(4) > 0 {
        let permissions = (0..=draw.below(4)).map(|_| {
            let mut permission = json!({ "Action": draw.pick(&["allow", "deny"]) });
            let needs_token = draw.one_in(5);
            if needs_token {
                permission["JWT"] = jwt(draw);
            }
            if !needs_token || draw.one_in(2) {
                permission["HTTP"] = http(draw);
            }
            permission
        });
        says["Permissions"] = permissions.collect();
    } else {
        says["Action"] = json!(draw.pick(&["allow", "deny"]));
    }
    if draw.one_in(8) {
        says["JWT"] = jwt(draw);
    }
    says
}

fn policies(draw: &mut Draw) -> Vec<Value> {
    let mut rules = Vec::new();
    for (source, destination) in [("web", "db"), ("*", "db"), ("web", "*"), ("*", "*")] {
        if draw.below(3) > 0 {
            let mut rule = says(draw, destination == "db");
            rule["Source"] = json!(source);
            rule["Destination"] = json!(destination);
            rules.push(rule);
        }
    }
    rules
}

fn request(draw: &mut Draw) -> Request {
    let mut target = String::new();
    for _ in 0..draw.below(5) {
        target.push('/');
        // Mostly what is harmless: what is not must not be all that is ever asked.
        let most = if draw.one_in(3) { SEGMENTS.len() } else { 6 };
        target.push_str(SEGMENTS[draw.below(most)]);
    }
    match draw.below(6) {
        0 => target.push('/'),
        1 => target.push_str("?a=/../b"),
        2 if draw.one_in(9) => target.push_str("#f"),
        _ => {}
    }
    if target.is_empty() {
        target.push('/');
    }
    let methods = ["GET", "POST", "PUT", "DELETE", "get", "FOO", "CONNECT"];
    let most = if draw.one_in(4) { methods.len() } else { 4 };
    let count = draw.below(5);
    Request {
        source: draw.pick(&["web", "web", "cron"]).to_owned(),
        method: methods[draw.below(most)].to_owned(),
        target,
        authority: draw.pick(&["db", "admin", "db.admin:80", "admin:8080", "[::1]:80"]).to_owned(),
        fields: fields(draw, count),
        tokens: ["okta", "own"].map(|name| (name.to_owned(), token(draw))).into(),
    }
}

/// Fields, of which every other request has one more than once.
fn fields(draw: &mut Draw, count: usize) -> Vec<(String, String)> {
    let again = draw.one_in(2).then(|| draw.pick(&FIELDS));
    let name = |draw: &mut Draw| match again {
        Some(name) if draw.one_in(2) => name,
        _ => draw.pick(&FIELDS),
    };
    (0..count).map(|_| (name(draw).to_owned(), draw.pick(&SENT).to_owned())).collect()
}

fn token(draw: &mut Draw) -> Token {
    match draw.below(8) {
        0 => Token::Missing,
        1 => Token::Invalid,
        2 => Token::NoKeys,
        _ => Token::Good(draw.pick(&[
            json!({ "role": "admin" }),
            json!({ "role": ["user", "admin"], "n": 7 }),
            json!({ "role": true, "realm": { "roles": ["user"] } }),
            json!({ "realm": { "roles": "admin" }, "role": { "admin": 1 } }),
            json!({ "role": [["admin"], "user"], "n": 7.5 }),
            json!({ "role": ["Admin", null, true], "realm": ["roles", "admin"] }),
            json!({ "role": "admin ", "n": "7", "realm": { "roles": [] } }),
            json!({ "realm.roles": "admin", "role": "" }),
            json!({}),
        ])),
    }
}

/// The view that `core` decides by.
fn view(rules: &[Value], default: Action) -> View {
    let intentions = rules.iter().map(|rule| {
        let text = |key: &str| rule[key].as_str().expect("a text");
        let mut requests = json!({});
        for key in ["Permissions", "JWT"] {
            if let Some(value) = rule.get(key) {
                requests[key] = value.clone();
            }
        }
        let decides_requests = requests != json!({});
        let requests: Requests = serde_json::from_value(requests).expect("Consul's shape");
        Arc::new(Intention {
            id: "".into(),
            pair: Pair {
                source: text("Source").parse().expect("a side"),
                destination: text("Destination").parse().expect("a side"),
                peer: None,
            },
            action: match rule.get("Action").and_then(Value::as_str) {
                Some("allow") => Action::Allow,
                _ => Action::Deny,
            },
            requests: decides_requests.then(|| Arc::new(requests)),
            description: "".into(),
            meta: Default::default(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        })
    });
    let trust = Trust {
        trust_domain: "t.consul".parse().expect("good"),
        datacenter: "dc1".parse().expect("a name"),
        roots: Vec::new(),
        default_action: default,
        issuing: Default::default(),
        revoked: Default::default(),
    };
    View::default().advanced(Delta {
        index: Index(1),
        is_snapshot: true,
        changes: vec![
            Change::Trust(trust),
            Change::Intentions(intentions.collect(), Default::default()),
        ],
    })
}

struct Sent<'a>(&'a Request);

impl Fields for Sent<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let of_name = self.0.fields.iter().filter(|(own, _)| own == name);
        of_name.for_each(|(_, value)| see(value.trim().as_bytes()));
    }
}

impl Tokens for Sent<'_> {
    fn claims(&mut self, name: &str) -> Result<Arc<Value>, Unproven> {
        match &self.0.tokens[name] {
            Token::Missing => Err(Unproven::Missing),
            Token::Invalid => Err(Unproven::Invalid),
            Token::NoKeys => Err(Unproven::NoKeys),
            Token::Good(claims) => Ok(Arc::new(claims.clone())),
        }
    }
}

/// What `core` decides, called as the proxy calls it.
fn decided(view: &View, request: &Request) -> Outcome {
    if !normal::is_method(&request.method) {
        return Outcome::Bad;
    }
    let target = match normal::target(request.target.as_bytes(), &view.normal) {
        Ok(new) => new.unwrap_or_else(|| request.target.clone()),
        Err(_) => return Outcome::Bad,
    };
    let caller = SpiffeId {
        trust_domain: "t.consul".parse().expect("good"),
        datacenter: "dc1".parse().expect("a name"),
        role: Role::Service(request.source.parse().expect("a name")),
    };
    let decision = view.decide(&caller, &"db".parse().expect("a name"));
    let Some(guard) = view.guard(&decision) else {
        return if decision.is_allowed() { Outcome::Allowed } else { Outcome::Denied };
    };
    let asked = Asked {
        method: &request.method,
        path: target.split_once('?').map_or(&*target, |(path, _)| path),
        authority: &request.authority,
        fields: &Sent(request),
    };
    let default = view.trust.as_ref().expect("trust").default_action;
    match guard.decide(&asked, default, &mut Sent(request)) {
        Verdict::Allowed(_) => Outcome::Allowed,
        Verdict::Denied(_) => Outcome::Denied,
        Verdict::Unproven(Unproven::Missing) => Outcome::Missing,
        Verdict::Unproven(Unproven::Invalid) => Outcome::Invalid,
        Verdict::Unproven(Unproven::NoKeys) => Outcome::NoKeys,
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "how long a test runs is no rule")]
#[allow(clippy::print_stderr, reason = "the figure that the long run is for")]
fn core_decides_as_the_contract_reads() {
    let cases: usize = match std::env::var("HAWSER_AUTHZ_CASES") {
        Ok(text) => text.parse().expect("HAWSER_AUTHZ_CASES is a number"),
        Err(_) => 60_000,
    };
    let mut counts = std::collections::BTreeMap::new();
    let mut draw = Draw(0xA117_0001);
    let mut made = 0;
    while made < cases {
        let (rules, default) = (policies(&mut draw), draw.pick(&[Action::Allow, Action::Deny]));
        let view = view(&rules, default);
        for _ in 0..50 {
            let request = request(&mut draw);
            let expected = oracle::outcome(&rules, default == Action::Allow, &request);
            let got = decided(&view, &request);
            let shown = || serde_json::to_string_pretty(&rules).expect("JSON");
            assert_eq!(got, expected, "default {default:?}, {request:#?} under {}", shown());
            *counts.entry(expected).or_insert(0_usize) += 1;
            made += 1;
        }
    }
    // A run that only ever refuses, or only ever allows, shows nothing.
    for outcome in Outcome::ALL {
        let count = counts.get(&outcome).copied().unwrap_or(0);
        assert!(count * 200 >= made, "{outcome:?} came {count} times of {made}: {counts:?}");
    }
    eprintln!("{made} pairs, 0 differences: {counts:?}");
}
