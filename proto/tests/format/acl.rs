//! Samples of access control: every kind of change, refusal and row.

use std::sync::Arc;

use hawser_core::acl::{
    Access, AuthMethod, BindKind, BindingRule, Change, Dump, Grants, MethodKind, NodeIdentity,
    Policy, Refusal, Resource, Role, Rules, Secret, ServiceIdentity, Template, Templated, Token,
};
use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};

fn token() -> Token {
    Token {
        accessor: "aaaaaaaa-0000-0000-0000-000000000001".into(),
        secret: Secret::new("bbbbbbbb-0000-0000-0000-000000000002", [0xee; 32]),
        description: "of web".into(),
        grants: grants(),
        roles: vec!["cccccccc-0000-0000-0000-000000000003".into()],
        is_local: true,
        method: None,
        created_at: UnixTime::from_millis(1_790_000_000_001),
        expires_at: Some(UnixTime::from_millis(1_790_000_600_001)),
    }
}

fn bare_token() -> Token {
    Token {
        accessor: "aaaaaaaa-0000-0000-0000-000000000009".into(),
        secret: Secret::new("anonymous", [0xdd; 32]),
        description: "".into(),
        grants: Grants::default(),
        roles: Vec::new(),
        is_local: false,
        method: None,
        created_at: UnixTime::from_millis(1_790_000_000_002),
        expires_at: None,
    }
}

fn grants() -> Grants {
    let templates = Template::ALL.map(|template| Templated {
        template,
        name: template.takes_name().then(|| "web".into()),
        datacenters: vec!["dc1".into()],
    });
    Grants {
        policies: vec!["dddddddd-0000-0000-0000-000000000004".into()],
        services: vec![ServiceIdentity {
            service: "web".into(),
            datacenters: vec!["dc1".into(), "dc2".into()],
        }],
        nodes: vec![NodeIdentity { node: "vm-1".into(), datacenter: "dc1".into() }],
        templates: templates.into(),
    }
}

fn policy() -> Policy {
    let levels = [Access::Read, Access::List, Access::Write, Access::Deny];
    let mut rules = Rules::default();
    for (resource, access) in Resource::ALL.into_iter().zip(levels.into_iter().cycle()) {
        rules = match resource.is_single() {
            true => rules.whole(resource, access),
            false => rules.exact(resource, "a", access).prefix(resource, "", access),
        };
    }
    Policy {
        id: "dddddddd-0000-0000-0000-000000000004".into(),
        name: "all-words".into(),
        description: "every resource".into(),
        text: "as it was written".into(),
        rules,
        datacenters: vec!["dc1".into()],
    }
}

fn role() -> Role {
    Role {
        id: "cccccccc-0000-0000-0000-000000000003".into(),
        name: "clerk".into(),
        description: "".into(),
        grants: grants(),
    }
}

fn method(kind: MethodKind) -> AuthMethod {
    AuthMethod {
        name: "ci".into(),
        kind,
        display_name: "CI".into(),
        description: "builds".into(),
        token_ttl: Some(std::time::Duration::from_secs(600)),
        is_global: true,
        config: r#"{"JWKSURL":"https://ci.example/keys"}"#.into(),
    }
}

fn binding(kind: BindKind) -> BindingRule {
    BindingRule {
        id: "ffffffff-0000-0000-0000-000000000006".into(),
        description: "of builds".into(),
        method: "ci".into(),
        selector: "value.project == web".into(),
        kind,
        name: "${value.project}".into(),
        variable: Some("web".into()),
    }
}

/// Every kind of change, by name.
pub(crate) fn changes() -> Vec<(&'static str, Change)> {
    let all = vec![
        Change::Bootstrap { token: token(), reset: Some(Index(7)) },
        Change::PutToken(bare_token()),
        Change::DropTokens(["aaaaaaaa-0000-0000-0000-000000000001".into()].into()),
        Change::PutPolicy(policy()),
        Change::DropPolicy("dddddddd-0000-0000-0000-000000000004".into()),
        Change::PutRole(role()),
        Change::DropRole("cccccccc-0000-0000-0000-000000000003".into()),
        Change::PutMethod(method(MethodKind::Jwt)),
        Change::DropMethod("ci".into()),
        Change::PutBinding(binding(BindKind::Template)),
        Change::DropBinding("ffffffff-0000-0000-0000-000000000006".into()),
        Change::Replace { expected: Index(9), change: Box::new(Change::PutRole(role())) },
    ];
    let named = all.into_iter().map(|change| (name(&change), change));
    named.collect()
}

/// The name of a change among all commands.
pub(crate) fn name(change: &Change) -> &'static str {
    match change {
        Change::Bootstrap { .. } => "acl-bootstrap",
        Change::PutToken(_) => "acl-put-token",
        Change::DropTokens(_) => "acl-drop-tokens",
        Change::PutPolicy(_) => "acl-put-policy",
        Change::DropPolicy(_) => "acl-drop-policy",
        Change::PutRole(_) => "acl-put-role",
        Change::DropRole(_) => "acl-drop-role",
        Change::PutMethod(_) => "acl-put-auth-method",
        Change::DropMethod(_) => "acl-drop-auth-method",
        Change::PutBinding(_) => "acl-put-binding-rule",
        Change::DropBinding(_) => "acl-drop-binding-rule",
        Change::Replace { .. } => "acl-replace",
    }
}

/// Every kind of refusal.
pub(crate) fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Bootstrapped { reset: Index(7) },
        Refusal::NameTaken { what: "policy", name: "p".into() },
        Refusal::NameTaken { what: "role", name: "r".into() },
        Refusal::Secret,
        Refusal::Changed,
        Refusal::Builtin { what: "global-management".into() },
        Refusal::Full { what: "ACL tokens", max: 100_000 },
        Refusal::Full { what: "ACL policies", max: 10_000 },
        Refusal::Full { what: "ACL roles", max: 10_000 },
        Refusal::Full { what: "ACL auth methods", max: 1_000 },
        Refusal::Full { what: "ACL binding rules", max: 10_000 },
    ]
}

/// The name of a refusal among all rejections.
pub(crate) fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Bootstrapped { .. } => "acl-bootstrapped",
        Refusal::NameTaken { .. } => "acl-name-taken",
        Refusal::Secret => "acl-secret",
        Refusal::Changed => "acl-changed",
        Refusal::Builtin { .. } => "acl-builtin",
        Refusal::Full { .. } => "acl-full",
    }
}

/// Tables with rows of every kind.
pub(crate) fn dump() -> Dump {
    fn row<T>(value: T, created: u64) -> Row<T> {
        Row { value: Arc::new(value), created: Index(created), modified: Index(created + 1) }
    }
    Dump {
        tokens: vec![row(token(), 30), row(bare_token(), 32)],
        policies: vec![row(policy(), 34)],
        roles: vec![row(role(), 36)],
        methods: vec![],
        bindings: vec![],
        bootstrapped: Some(Index(30)),
        index: Index(37),
    }
}

/// Tables with somebody who logged in, and how.
pub(crate) fn logins() -> Dump {
    fn row<T>(value: T, created: u64) -> Row<T> {
        Row { value: Arc::new(value), created: Index(created), modified: Index(created + 1) }
    }
    let aws = AuthMethod { name: "vms".into(), token_ttl: None, ..method(MethodKind::AwsIam) };
    let kinds = [BindKind::Service, BindKind::Node, BindKind::Role, BindKind::Policy];
    let bare = |(n, kind): (usize, BindKind)| {
        let id = format!("ffffffff-0000-0000-0000-00000000000{n}").into();
        row(BindingRule { id, variable: None, ..binding(kind) }, 44)
    };
    Dump {
        tokens: vec![row(Token { method: Some("ci".into()), ..token() }, 40)],
        methods: vec![row(method(MethodKind::Jwt), 41), row(aws, 42)],
        bindings: kinds.into_iter().enumerate().map(bare).collect(),
        index: Index(45),
        ..Dump::default()
    }
}
