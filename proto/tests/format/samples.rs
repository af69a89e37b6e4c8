//! One value of everything that travels or is stored, with no field left at its default.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::ca::{Authority, Intermediate, Issuing, Policy, Root, Validity};
use hawser_core::catalog::{
    Check, CheckRun, Instance, Locality, Meta, Node, Protocol, Row, TaggedAddress, Weights,
};
use hawser_core::chain::Chain;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::discovery::{Destination, Misfit};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::entry::{
    AreaLimit, Body, Consumer, Entry, EntryKey, ExportedService, ExportedServices, Failover,
    FailoverTarget, GatewayMode, HeaderEdits, HeaderMatch, HttpMatch, IdleTimeout, JwtProvider,
    Kind, LimitMode, Mesh, MeshGatewayConfig, MutualTlsMode, PerSecond, ProxyDefaults,
    ProxyDefaultsConfig, QueryMatch, RateLimits, RequestLimit, RouteDestination, RouteMatch,
    ServiceDefaults, ServiceResolver, ServiceRoute, ServiceRouter, ServiceSplit, ServiceSplitter,
    Sticky, Subset, Target, Weight,
};
use hawser_core::health::Status;
use hawser_core::intention::{Action, Changes, Expected, Intention, Pair};
use hawser_core::normal::{EscapedSlashes, Forwarded, Rules, Underscores};
use hawser_core::operation::{Autopilot, Operation};
use hawser_core::peering::{Import, PeerGateway, PeerState, PeerUpdate, Peering, Remote};
use hawser_core::permission::Requests;
use hawser_core::policy::Policies;
use hawser_core::revocation::{Revocation, Revoked, Subject, node_tag};
use hawser_core::state::{
    AuthorityChoice, Cluster, Command, Dump, Fits, JoinToken, NodeChanges, PeerConflict, Rejection,
    RestorePart, Staged,
};
use hawser_core::view::{
    Change, Delta, Endpoint, NodeView, PeerView, RouteView, Routing, ServiceView, SplitView,
    TargetView, Trust, View,
};

use crate::acl;

use crate::store;

pub(crate) fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect(text)
}

pub(crate) fn meta(pairs: &[(&str, &str)]) -> Meta {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

pub(crate) fn node() -> Node {
    Node {
        name: parse("vm-1.internal"),
        id: "5d1f5f04-7c0e-4f0e-9f4e-0b7c3e1f2a3b".into(),
        address: parse("10.0.0.1"),
        locality: Locality { region: Some("eu-west-1".into()), zone: Some("eu-west-1a".into()) },
        meta: meta(&[("env", "prod"), ("os", "débian")]),
        tagged: [("wan".into(), TaggedAddress { address: "198.51.100.1".into(), port: 0 })].into(),
    }
}

fn bare_node() -> Node {
    Node {
        name: parse("vm-2"),
        id: "".into(),
        address: parse("2001:db8::2"),
        locality: Locality::default(),
        meta: Meta::new(),
        tagged: Default::default(),
    }
}

pub(crate) fn instance() -> Instance {
    Instance {
        id: parse("web 1"),
        service: parse("web"),
        address: Some(parse("10.0.0.7")),
        port: 8080,
        tags: ["blue", "v1"].map(Into::into).into(),
        meta: meta(&[("version", "1.2")]),
        weights: Weights { passing: 10, warning: 3 },
        protocol: Some(Protocol::Http2),
        mesh_port: Some(21000),
        enable_tag_override: true,
        gateway: Some("gw.example.com:8443".into()),
        socket: None,
        ports: Default::default(),
        tagged: [("lan".into(), TaggedAddress { address: "10.0.0.7".into(), port: 81 })].into(),
    }
}

fn bare_instance() -> Instance {
    Instance {
        id: parse("cron"),
        service: parse("cron"),
        address: None,
        port: 0,
        tags: [].into(),
        meta: Meta::new(),
        weights: Weights { passing: 0, warning: u16::MAX },
        protocol: None,
        mesh_port: None,
        enable_tag_override: false,
        gateway: None,
        socket: None,
        ports: Default::default(),
        tagged: Default::default(),
    }
}

pub(crate) fn check() -> Check {
    Check {
        id: parse("service:web 1"),
        name: "web answers".into(),
        kind: "http".into(),
        status: Status::Critical,
        notes: "ask the web team".into(),
        output: "503 Service Unavailable\n".into(),
        instance: Some(parse("web 1")),
        run: CheckRun {
            interval: "10s".into(),
            timeout: "2s".into(),
            definition: "{\"HTTP\":\"http://10.0.0.7\"}".into(),
        },
    }
}

fn node_check() -> Check {
    Check {
        id: parse("serfHealth"),
        name: "Serf Health Status".into(),
        kind: "".into(),
        status: Status::Warning,
        notes: "".into(),
        output: "".into(),
        instance: None,
        run: Default::default(),
    }
}

pub(crate) fn pair(source: &str, destination: &str) -> Pair {
    Pair { destination: parse(destination), source: parse(source), peer: None }
}

fn jwt_provider() -> JwtProvider {
    let text = r#"{"JSONWebKeySet":{"Remote":{"URI":"https://a.example/keys","CacheDuration":"9s"}},
        "Issuer":"https://a.example","Audiences":["db"],"ClockSkewSeconds":7,
        "Locations":[{"Header":{"Name":"x-token","Forward":true}}],
        "Forwarding":{"HeaderName":"x-claims"}}"#;
    serde_json::from_str(text).expect("good")
}

fn mesh() -> Mesh {
    let text = r#"{"HTTP":{"Incoming":{"RequestNormalization":{"MergeSlashes":false}}}}"#;
    serde_json::from_str(text).expect("good")
}

fn requests() -> Requests {
    let text = r#"{"Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/","Methods":["GET"]},
        "JWT":{"Providers":[{"Name":"okta","VerifyClaims":[{"Path":["a"],"Value":"b"}]}]}}]}"#;
    serde_json::from_str(text).expect("good")
}

pub(crate) fn intention() -> Intention {
    Intention {
        id: "8f246b77-f3e1-ff88-5b48-8ec93abf3e05".into(),
        pair: Pair { peer: Some(parse("west")), ..pair("web", "db") },
        action: Action::Deny,
        requests: Some(Arc::new(requests())),
        description: "the web reads".into(),
        meta: meta(&[("ticket", "42")]),
        created_at: UnixTime::from_millis(1_790_000_000_001),
        updated_at: UnixTime::from_millis(1_790_000_000_002),
    }
}

fn entries() -> [Entry; 9] {
    let note = || [("owner".to_owned(), "web team".to_owned())].into();
    let bodies = [
        (
            "global",
            Body::ProxyDefaults(ProxyDefaults {
                config: ProxyDefaultsConfig { protocol: Some("http".into()) },
                mesh_gateway: MeshGatewayConfig { mode: GatewayMode::Local },
                mutual_tls_mode: MutualTlsMode::Strict,
                prioritize_by_locality: None,
                meta: note(),
            }),
        ),
        (
            "web",
            Body::ServiceDefaults(ServiceDefaults {
                protocol: Some("grpc".into()),
                local_connect_timeout_ms: Some(250),
                max_inbound_connections: Some(1000),
                upstream_config: policies().upstreams.map(Box::new),
                retries: policies().retries.map(Box::new),
                rate_limits: policies()
                    .rates
                    .map(|rates| Box::new(RateLimits { global: policies().global_rates, ..rates })),
                inbound_limits: policies().inbound.map(Box::new),
                connections: policies().connections.map(Box::new),
                mesh_gateway: MeshGatewayConfig { mode: GatewayMode::None },
                mutual_tls_mode: MutualTlsMode::Permissive,
                meta: note(),
            }),
        ),
        (
            "db",
            Body::ServiceResolver(ServiceResolver {
                connect_timeout: Some(Duration::from_micros(1500)),
                request_timeout: Some(Duration::from_secs(90)),
                failover: [("*".to_owned(), failover())].into(),
                load_balancer: policies().load_balancer.map(Box::new),
                default_subset: "v1".into(),
                subsets: [("v1".to_owned(), subset())].into(),
                meta: note(),
                ..Default::default()
            }),
        ),
        (
            "web",
            Body::ServiceSplitter(ServiceSplitter {
                splits: vec![
                    ServiceSplit { weight: Weight(9950), ..Default::default() },
                    ServiceSplit { weight: Weight(50), service: "new".into(), ..split() },
                ],
                sticky: Some(sticky()),
                meta: note(),
            }),
        ),
        ("web", Body::ServiceRouter(ServiceRouter { routes: vec![route()], meta: note() })),
        (
            "default",
            Body::ExportedServices(ExportedServices {
                services: vec![ExportedService {
                    name: "web".into(),
                    consumers: vec![Consumer { peer: "west".into() }],
                }],
                meta: note(),
            }),
        ),
        ("okta", Body::JwtProvider(jwt_provider())),
        ("mesh", Body::Mesh(mesh())),
        ("per-host", Body::RequestLimit(request_limit())),
    ];
    bodies.map(|(name, body)| Entry::new(name, body).expect("a good entry"))
}

fn request_limit() -> RequestLimit {
    let rate = |milli| PerSecond { milli };
    let area = || Some(AreaLimit { read_rate: rate(2_000), write_rate: rate(500) });
    RequestLimit {
        mode: LimitMode::Enforcing,
        read_rate: rate(100_000),
        write_rate: rate(50_000),
        acl: area(),
        catalog: area(),
        config_entry: area(),
        connect_ca: area(),
        coordinate: area(),
        discovery_chain: area(),
        health: area(),
        intention: area(),
        kv: area(),
        prepared_query: area(),
        session: area(),
        txn: area(),
        meta: [("owner".to_owned(), "ops".to_owned())].into(),
    }
}

/// What entries say of traffic, in their own JSON: what travels is that.
fn policies() -> Policies {
    let json = r#"{
        "load_balancer": {
            "Policy": "ring_hash",
            "RingHashConfig": {"MinimumRingSize": 64, "MaximumRingSize": 128},
            "HashPolicies": [
                {"Field": "cookie", "FieldValue": "sid", "CookieConfig": {"TTL": "1h", "Path": "/"}},
                {"SourceIP": true, "Terminal": true}
            ],
            "BoundedLoadPercent": 125,
            "SlowStart": {"Window": "30s", "MinimumPercent": 5}
        },
        "upstreams": {
            "Defaults": {"ConnectTimeoutMs": 900, "Limits": {"MaxConnections": 5}},
            "Overrides": [{"Name": "db", "Peer": "west", "PassiveHealthCheck": {"MaxFailures": 3}}]
        },
        "retries": {"NumRetries": 1, "RetryOn": ["5xx"], "PerTryTimeout": "1s"},
        "rates": {
            "InstanceLevel": {
                "RequestsPerSecond": 100,
                "RequestsMaxBurst": 200,
                "Routes": [{"PathPrefix": "/slow", "RequestsPerSecond": 1, "RequestsMaxBurst": 2}]
            },
            "Callers": [{"Name": "*", "RequestsPerSecond": 10, "RequestsMaxBurst": 20}]
        },
        "global_rates": {
            "RequestsPerSecond": 1000,
            "RequestsMaxBurst": 50,
            "Callers": [{"Name": "web", "RequestsPerSecond": 100, "RequestsMaxBurst": 0}]
        },
        "inbound": {"MaxConcurrentRequests": 50, "Shedding": "adaptive", "NeverShed": ["/alive"]},
        "connections": {"IdleTimeout": "5m", "MoveOnChange": true, "MoveWithin": "10s"}
    }"#;
    serde_json::from_str(json).expect("good")
}

fn failover() -> Failover {
    let (service, peer) = ("db-eu".into(), "west".into());
    let target = FailoverTarget { service, peer, ..Default::default() };
    Failover { targets: vec![target], ..Default::default() }
}

fn subset() -> Subset {
    Subset { filter: "Service.Meta.version == \"1\"".into(), only_passing: true }
}

fn split() -> ServiceSplit {
    ServiceSplit { request_headers: Some(edits()), ..Default::default() }
}

fn sticky() -> Sticky {
    Sticky { field: "cookie".into(), field_value: "sid".into() }
}

fn edits() -> HeaderEdits {
    HeaderEdits {
        add: [("x-a".to_owned(), "1".to_owned())].into(),
        set: [("x-s".to_owned(), "2".to_owned())].into(),
        remove: vec!["x-r".into()],
    }
}

fn route() -> ServiceRoute {
    let header = HeaderMatch { name: "x-v".into(), exact: "2".into(), ..Default::default() };
    let http = HttpMatch {
        path_prefix: "/api".into(),
        header: vec![header],
        query_param: vec![QueryMatch { name: "q".into(), present: true, ..Default::default() }],
        methods: vec!["GET".into()],
        ..Default::default()
    };
    ServiceRoute {
        matching: Some(RouteMatch { http: Some(http) }),
        destination: Some(RouteDestination {
            service_subset: "v1".into(),
            prefix_rewrite: "/".into(),
            request_timeout: Some(Duration::from_secs(5)),
            idle_timeout: Some(IdleTimeout::Off),
            num_retries: 2,
            retry_on: vec!["5xx".into()],
            retry_on_status_codes: vec![429],
            per_try_timeout: Some(Duration::from_millis(1500)),
            response_headers: Some(edits()),
            ..Default::default()
        }),
    }
}

fn gateway() -> PeerGateway {
    PeerGateway { address: parse("192.0.2.7:8443"), locality: node().locality }
}

fn remote() -> Remote {
    Remote {
        peering: "99999999-2222-3333-4444-555555555555".into(),
        trust_domain: parse("22222222-2222-3333-4444-555555555555.consul"),
        datacenter: parse("dc2"),
        calls_us: parse("east"),
        server_roots: vec![[5, 5].into()],
        roots: vec![[6].into(), [7].into()],
        revoked: revoked(),
        servers: vec!["192.0.2.1:8300".into()],
        gateways: vec![gateway()],
        rtt_ms: Some(64),
    }
}

fn peering() -> Peering {
    Peering {
        id: "33333333-2222-3333-4444-555555555555".into(),
        name: parse("west"),
        meta: meta(&[("team", "net")]),
        state: PeerState::Active,
        invitation: Some([0xef; 32]),
        remote: Some(remote()),
    }
}

fn bare_peering() -> Peering {
    let (name, meta) = (parse("south"), Meta::new());
    let (state, invitation, remote) = (PeerState::Pending, None, None);
    Peering { id: "4".into(), name, meta, state, invitation, remote }
}

fn import() -> Import {
    Import {
        service: parse("db"),
        protocol: Protocol::Grpc,
        endpoints: vec![endpoint(), bare_endpoint()].into(),
    }
}

fn validity(from: u64) -> Validity {
    Validity {
        not_before: UnixTime::from_secs(from),
        not_after: UnixTime::from_secs(from + 86_400),
    }
}

fn authority() -> Authority {
    let root = |id: &str, active| Root {
        id: id.into(),
        name: "Hawser root".into(),
        certificate: [0x30, 0x82, 0, 0xff].into(),
        serial: 17,
        validity: validity(1_790_000_000),
        active,
        sealed_key: [9, 9].into(),
        cross: Some([0x30, 0x83].into()),
        rotated_out: Some(UnixTime::from_secs(1_790_000_900)),
        created: Index(3),
        modified: Index(4),
    };
    Authority {
        roots: vec![root("aa:01", false), root("aa:02", true)],
        intermediate: Intermediate {
            certificate: [0x30, 0x81].into(),
            validity: validity(1_790_000_500),
            sealed_key: [7].into(),
        },
        leaf_lifetime: Duration::from_secs(86_400),
        policy: Policy {
            intermediate_lifetime: Duration::from_secs(864_000),
            root_lifetime: Duration::from_secs(8_640_000),
            overlap: Duration::from_secs(60),
            is_set: true,
        },
        retired: Vec::new(),
        created: Index(3),
        index: Index(4),
    }
}

fn revocation(subject: Subject) -> Revocation {
    Revocation { subject, reason: "stolen".into(), at: UnixTime::from_millis(1_790_000_000_007) }
}

fn revoked() -> Arc<Revoked> {
    let node = parse("vm-1");
    Arc::new(Revoked {
        nodes: [(node_tag(&node), node)].into(),
        services: [parse("web")].into(),
        certificates: [parse("5f:0a")].into(),
    })
}

fn cluster() -> Cluster {
    Cluster {
        id: "11111111-2222-3333-4444-555555555555".into(),
        trust_domain: parse("11111111-2222-3333-4444-555555555555.consul"),
        datacenter: parse("dc1"),
        default_action: Action::Deny,
    }
}

fn join_token() -> JoinToken {
    JoinToken {
        hash: [0xab; 32],
        node: parse("vm-3"),
        expires_at: UnixTime::from_millis(1_790_000_600_000),
        used_by: None,
    }
}

/// Every kind of command, by name. The match keeps the table whole: a kind that is added to core
/// does not compile here until it has a name and a sample.
pub(crate) fn commands() -> Vec<(&'static str, Command)> {
    let [global, defaults, resolver, splitter, router, exported, provider, mesh, limit] = entries();
    let all = vec![
        Command::Found(cluster()),
        Command::SyncNode(NodeChanges {
            node: node(),
            put_instances: vec![instance(), bare_instance()],
            put_checks: vec![check(), node_check()],
            drop_instances: vec![parse("old web")],
            drop_checks: vec![parse("old check")],
        }),
        Command::DropNode(parse("vm-2")),
        Command::SetLiveness {
            dead: vec![parse("vm-1"), parse("vm-2")],
            alive: vec![parse("vm-3")],
        },
        Command::PutIntention(intention()),
        Command::DropIntention(pair("*", "*")),
        Command::ChangeIntentions {
            changes: Changes {
                put: vec![intention()],
                remove: vec![pair("web", "*")],
                only: Some(parse("db")),
                expected: Some(Expected::Callee(parse("db"), Index(7))),
            },
            fits: None,
        },
        Command::PutEntry { entry: global, expected: None, fits: None },
        Command::PutEntry { entry: defaults, expected: Some(Index(0)), fits: None },
        Command::PutEntry { entry: resolver, expected: Some(Index(7)), fits: None },
        Command::PutEntry { entry: exported, expected: None, fits: None },
        Command::PutEntry { entry: provider, expected: None, fits: None },
        Command::PutEntry { entry: mesh, expected: None, fits: None },
        Command::PutEntry { entry: limit, expected: None, fits: None },
        Command::PutEntry { entry: splitter, expected: None, fits: None },
        Command::PutEntry { entry: router.clone(), expected: None, fits: None },
        Command::DropEntry {
            key: EntryKey { kind: Kind::ServiceResolver, name: "db".into() },
            expected: Some(Index(7)),
            fits: None,
        },
        Command::SetAuthority { authority: authority(), expected: Index(2) },
        Command::SetAutopilot { rules: autopilot(), expected: Some(Index(7)) },
        Command::SetLevel(1),
        Command::Stage(RestorePart {
            id: "r".into(),
            number: 0,
            rows: Box::new(Dump { applied: Index(3), ..Dump::default() }),
        }),
        Command::Restore { id: "r".into(), parts: 1, choice: AuthorityChoice::Restore },
        Command::Revoke(revocation(Subject::Node(parse("vm-1")))),
        Command::Reinstate(Subject::Certificate(parse("5f:0a"))),
        Command::PutJoinToken(join_token()),
        Command::UseJoinToken { hash: [0xcd; 32], node: parse("vm-3"), key: None },
        Command::PutPeering(peering()),
        Command::DropPeering(parse("west")),
        Command::AcceptPeering { invitation: [0xef; 32], remote: remote() },
        Command::SetPeerState { name: parse("west"), id: "33".into(), state: PeerState::Failing },
        Command::SyncPeer(PeerUpdate {
            name: parse("west"),
            id: "33".into(),
            remote: Some(remote()),
            is_snapshot: true,
            put: vec![import()],
            drop: vec![parse("web")],
        }),
    ];
    let all = all.into_iter().chain(acl::changes().into_iter().map(|(_, it)| Command::Acl(it)));
    let name = |command: &Command| match command {
        Command::Found(_) => "found",
        Command::SyncNode(_) => "sync-node",
        Command::DropNode(_) => "drop-node",
        Command::SetLiveness { .. } => "set-liveness",
        Command::PutIntention(_) => "put-intention",
        Command::DropIntention(_) => "drop-intention",
        Command::ChangeIntentions { .. } => "change-intentions",
        Command::PutEntry { entry, .. } => match entry.key().kind {
            Kind::ProxyDefaults => "put-entry-proxy-defaults",
            Kind::ServiceDefaults => "put-entry-service-defaults",
            Kind::ServiceResolver => "put-entry-service-resolver",
            Kind::ServiceSplitter => "put-entry-service-splitter",
            Kind::ServiceRouter => "put-entry-service-router",
            Kind::ExportedServices => "put-entry-exported-services",
            Kind::JwtProvider => "put-entry-jwt-provider",
            Kind::Mesh => "put-entry-mesh",
            Kind::RequestLimit => "put-entry-control-plane-request-limit",
        },
        Command::DropEntry { .. } => "drop-entry",
        Command::SetAuthority { .. } => "set-authority",
        Command::SetAutopilot { .. } => "set-autopilot",
        Command::SetLevel(_) => "set-level",
        Command::Stage(_) => "stage",
        Command::Restore { .. } => "restore",
        Command::Revoke(_) => "revoke",
        Command::Reinstate(_) => "reinstate",
        Command::PutJoinToken(_) => "put-join-token",
        Command::UseJoinToken { .. } => "use-join-token",
        Command::Acl(change) => acl::name(change),
        Command::PutPeering(_) => "put-peering",
        Command::DropPeering(_) => "drop-peering",
        Command::AcceptPeering { .. } => "accept-peering",
        Command::SetPeerState { .. } => "set-peer-state",
        Command::SyncPeer(_) => "sync-peer",
        Command::Kv(_)
        | Command::CreateSession(_)
        | Command::EndSession(_)
        | Command::Txn(_)
        | Command::FireEvent(_)
        | Command::PutQuery(_)
        | Command::DropQuery(_) => {
            unreachable!("the store's samples have names of their own")
        }
    };
    let key = EntryKey { kind: Kind::ServiceResolver, name: "db".into() };
    let drop = Command::DropEntry { key, expected: None, fits: None };
    let put = Command::PutEntry { entry: router, expected: None, fits: None };
    let fitting = [("put-entry-fitting", put.clone()), ("drop-entry-fitting", drop.clone())];
    let entries_alone = Fits { entries: Index(9), intentions: None };
    let fitting = fitting.map(|(name, command)| (name, command.fitting(entries_alone)));
    let both = Fits { entries: Index(9), intentions: Some(Index(8)) };
    let fitting_both = [
        ("put-entry-fitting-intentions", put),
        ("drop-entry-fitting-intentions", drop),
        ("change-intentions-fitting", one_intention()),
    ];
    let fitting_both = fitting_both.map(|(name, command)| (name, command.fitting(both)));
    let all = all.map(|command| (name(&command), command));
    all.chain(fitting).chain(fitting_both).chain(store::commands()).collect()
}

/// An intention that is to be new.
fn one_intention() -> Command {
    let expected = Some(Expected::Pair(pair("web", "*"), Index(0)));
    let changes = Changes { put: vec![intention()], expected, ..Changes::default() };
    Command::ChangeIntentions { changes, fits: None }
}

/// Every kind of rejection, by name, and every table that may be full.
pub(crate) fn rejections() -> Vec<(&'static str, Rejection)> {
    let mut all = vec![
        Rejection::AlreadyFounded,
        Rejection::UnknownNode { node: parse("vm-9") },
        Rejection::NodeNameTaken { node: parse("vm-1") },
        Rejection::UnknownInstance {
            node: parse("vm-1"),
            check: parse("c"),
            instance: parse("web 9"),
        },
        Rejection::UnknownIntention { pair: pair("web", "*") },
        Rejection::IndexMismatch { expected: Index(0), actual: Index(12) },
        Rejection::JoinToken { node: parse("vm-1") },
        Rejection::NotStaged,
        Rejection::NotRevoked { subject: Subject::Service(parse("web")) },
        Rejection::Misfit(Misfit {
            key: EntryKey { kind: Kind::ServiceRouter, name: "web".into() },
            field: "Routes[0].Destination.Service".into(),
            why: "it leads in a circle".into(),
        }),
        Rejection::IntentionMisfit {
            pair: pair("web", "*"),
            field: "JWT.Providers[0].Name".into(),
            why: "there is no jwt-provider/okta".into(),
        },
        Rejection::EntriesChanged { checked: Index(9), actual: Index(12) },
        Rejection::PeeringToken,
        Rejection::UnknownPeering { name: parse("west") },
        Rejection::PeerTaken {
            name: parse("west"),
            trust_domain: remote().trust_domain,
            why: PeerConflict::OtherName,
        },
    ];
    let tables = [
        "nodes",
        "instances on this node",
        "checks on this node",
        "intentions",
        "config entries",
        "unused join tokens",
        "peerings",
        "imported services",
        "imported instances",
        "keys",
        "octets of keys and values",
        "sessions",
        "operations",
        "revocations",
        "parts of a snapshot",
        "prepared queries",
    ];
    all.extend(tables.map(|what| Rejection::Full { what, max: 1024 }));
    all.extend(acl::refusals().into_iter().map(Rejection::Acl));
    let name = |rejection: &Rejection| match rejection {
        Rejection::AlreadyFounded => "already-founded",
        Rejection::UnknownNode { .. } => "unknown-node",
        Rejection::NodeNameTaken { .. } => "node-name-taken",
        Rejection::UnknownInstance { .. } => "unknown-instance",
        Rejection::UnknownIntention { .. } => "unknown-intention",
        Rejection::IndexMismatch { .. } => "index-mismatch",
        Rejection::JoinToken { .. } => "join-token",
        Rejection::NotStaged => "not-staged",
        Rejection::NotRevoked { .. } => "not-revoked",
        Rejection::PeeringToken => "peering-token",
        Rejection::UnknownPeering { .. } => "unknown-peering",
        Rejection::PeerTaken { .. } => "peer-taken",
        Rejection::Misfit(_) => "misfit",
        Rejection::IntentionMisfit { .. } => "intention-misfit",
        Rejection::EntriesChanged { .. } => "entries-changed",
        Rejection::Full { .. } => "full",
        Rejection::Acl(refusal) => acl::refusal_name(refusal),
        Rejection::Locked { .. }
        | Rejection::NotHolder { .. }
        | Rejection::UnknownSession { .. }
        | Rejection::UnknownCheck { .. }
        | Rejection::CriticalCheck { .. }
        | Rejection::QueryNameTaken { .. }
        | Rejection::Txn { .. } => unreachable!("the store's samples have names of their own"),
    };
    let all = all.into_iter().map(|rejection| (name(&rejection), rejection));
    all.chain(store::rejections()).collect()
}

/// Every kind of change, by name.
pub(crate) fn changes() -> Vec<(&'static str, Change)> {
    let service = ServiceView {
        chain: Chain {
            service: parse("db"),
            protocol: Protocol::Tcp,
            connect_timeout: Duration::from_millis(250),
            request_timeout: Duration::from_secs(15),
            local_connect_timeout: Duration::from_secs(1),
            inbound_connections_max: Some(100),
            policies: Arc::new(policies()),
        },
        peer: None,
        gateway_mode: GatewayMode::Default,
        endpoints: vec![endpoint(), bare_endpoint()].into(),
        failover: vec![TargetView {
            target: Target { service: parse("db"), peer: Some(parse("west")) },
            gateway_mode: GatewayMode::Remote,
            endpoints: vec![endpoint()].into(),
        }]
        .into(),
        index: Index(40),
        routing: None,
    };
    let end = Destination { service: parse("db"), subset: Some("v1".into()), peer: None };
    let share = SplitView {
        weight: Weight(10_000),
        end: 0,
        request_headers: Some(edits()),
        response_headers: None,
    };
    let routing = Routing {
        routes: vec![RouteView {
            definition: Some(route()),
            sticky: Some(sticky()),
            splits: vec![share],
            mirror: Some(0),
        }],
        ends: vec![(end, Arc::new(service.clone()))],
    };
    let routed = ServiceView { routing: Some(Arc::new(routing)), ..service.clone() };
    let import = ServiceView {
        peer: Some(parse("west")),
        gateway_mode: GatewayMode::None,
        failover: [].into(),
        ..service.clone()
    };
    let peer = PeerView {
        trust_domain: remote().trust_domain,
        datacenter: remote().datacenter,
        roots: remote().roots,
        revoked: remote().revoked,
        calls_us: remote().calls_us,
        is_live: true,
        gateways: vec![gateway()],
    };
    let all = vec![
        Change::Trust(Trust {
            trust_domain: cluster().trust_domain,
            datacenter: parse("dc1"),
            roots: vec![[1, 2, 3].into(), [4].into()],
            default_action: Action::Deny,
            issuing: Issuing { root: "aa:02".into(), reissue_within: Duration::from_secs(2) },
            revoked: revoked(),
        }),
        Change::Service(service),
        Change::Service(routed),
        Change::Intentions(
            vec![Arc::new(intention())],
            [("okta".into(), Arc::new(jwt_provider()))].into(),
        ),
        Change::Normal(Rules {
            is_on: false,
            merges_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            underscores: Underscores::Drop,
            forwarded: Forwarded::Keep,
        }),
        Change::Node(
            parse("vm-1"),
            Some(NodeView { address: parse("10.0.0.1"), meta: meta(&[("env", "prod")]) }),
        ),
        Change::Node(parse("vm-9"), None),
        Change::Import(import),
        Change::Peers([(parse("west"), peer)].into()),
        Change::Exports([(parse("web"), [parse("west")].into())].into()),
        Change::Gateways(vec![gateway()]),
    ];
    let name = |change: &Change| match change {
        Change::Trust(_) => "trust",
        Change::Service(service) if service.routing.is_some() => "service-routed",
        Change::Service(_) => "service",
        Change::Intentions(..) => "intentions",
        Change::Normal(_) => "normal",
        Change::Node(_, Some(_)) => "node",
        Change::Node(_, None) => "node-gone",
        Change::Import(_) => "import",
        Change::Peers(_) => "peers",
        Change::Exports(_) => "exports",
        Change::Gateways(_) => "gateways",
    };
    all.into_iter().map(|change| (name(&change), change)).collect()
}

fn endpoint() -> Endpoint {
    Endpoint {
        node: parse("vm-1"),
        instance: parse("db-1"),
        address: parse("10.0.0.9"),
        has_own_address: true,
        ports: Default::default(),
        port: 5432,
        mesh: Some(parse("10.0.0.1:21001")),
        locality: node().locality,
        tags: ["primary"].map(Into::into).into(),
        weights: Weights { passing: 5, warning: 1 },
        status: Status::Passing,
    }
}

fn bare_endpoint() -> Endpoint {
    Endpoint {
        node: parse("vm-2"),
        instance: parse("db-2"),
        address: parse("2001:db8::2"),
        has_own_address: false,
        ports: Default::default(),
        port: 0,
        mesh: None,
        locality: Locality::default(),
        tags: [].into(),
        weights: Weights { passing: 0, warning: 0 },
        status: Status::Critical,
    }
}

/// A delta with every kind of change: the whole picture when `is_snapshot`.
pub(crate) fn delta(is_snapshot: bool) -> Delta {
    let changes = changes().into_iter().map(|(_, change)| change).collect();
    Delta { index: Index(41), is_snapshot, changes }
}

pub(crate) fn view() -> View {
    View::default().advanced(delta(true))
}

pub(crate) fn edge() -> (EdgeKey, Tally) {
    let mut tally = Tally {
        count: 100,
        errors: 3,
        bytes_sent: 1 << 40,
        bytes_received: 77,
        ..Tally::default()
    };
    for micros in [0, 17, 900, 900, 1 << 33] {
        tally.latency.record(Duration::from_micros(micros));
    }
    let key = EdgeKey {
        source: parse("web"),
        destination: parse("db"),
        cluster: "eu".into(),
        verdict: "connect-timeout".into(),
    };
    (key, tally)
}

/// A state with at least one row in each table.
pub(crate) fn operation() -> Operation {
    let (value, created, modified) = (Arc::new(autopilot()), Index(36), Index(37));
    Operation::restore(Row { value, created, modified }, 1, [7, 9].into())
}

fn autopilot() -> Autopilot {
    Autopilot {
        cleanup_dead_servers: false,
        last_contact_threshold: Duration::from_millis(1_500),
        max_trailing_logs: 99,
        min_quorum: 3,
        server_stabilization_time: Duration::from_secs(20),
    }
}

pub(crate) fn dump() -> Dump {
    fn row<T>(value: T, created: u64) -> Row<T> {
        Row { value: Arc::new(value), created: Index(created), modified: Index(created + 1) }
    }
    let mut dump = Dump {
        applied: Index(50),
        cluster: Some(cluster()),
        nodes: vec![row(node(), 10), row(bare_node(), 12)],
        instances: vec![
            (parse("vm-1.internal"), row(bare_instance(), 14)),
            (parse("vm-1.internal"), row(instance(), 16)),
        ],
        checks: vec![
            (parse("vm-1.internal"), row(check(), 18)),
            (parse("vm-2"), row(node_check(), 20)),
        ],
        down_since: [(parse("vm-2"), UnixTime::from_millis(1_790_000_000_003))].into(),
        intentions: vec![row(intention(), 22)],
        intentions_index: Index(23),
        entries: entries().into_iter().map(|entry| row(entry, 24)).collect(),
        entries_index: Index(25),
        authority: Some(authority()),
        revocations: [
            Subject::Node(parse("vm-1")),
            Subject::Service(parse("web")),
            Subject::Certificate(parse("5f:0a")),
        ]
        .map(|subject| row(revocation(subject), 34))
        .into(),
        revocations_index: Index(35),
        operation: operation(),
        staged: Some(Staged {
            id: "r".into(),
            parts: vec![Arc::new(Dump { applied: Index(3), ..Dump::default() })],
        }),
        join_tokens: vec![join_token()],
        acl: acl::dump(),
        peerings: vec![row(bare_peering(), 28), row(peering(), 30)],
        peerings_index: Index(31),
        imports: vec![(parse("west"), row(import(), 32))],
        imports_index: Index(33),
        ..store::dump()
    };
    // By kind and name, as a state holds them.
    dump.entries.sort_by(|one, other| one.value.key().cmp(other.value.key()));
    dump.indexes.nodes = Index(13);
    dump.indexes.checks = Index(21);
    dump.indexes.names = Index(17);
    dump.indexes.emptied = Index(9);
    dump.indexes.services = [(parse("cron"), Index(15)), (parse("web"), Index(19))].into();
    dump
}

/// The state's octets as a snapshot file.
pub(crate) fn snapshot(dump: &Dump) -> Vec<u8> {
    let mut file = Vec::new();
    hawser_proto::codec::snapshot::write(dump, &mut file).expect("memory takes all");
    file
}
