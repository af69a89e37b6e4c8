//! The real binary against moto, which checks signatures: `cargo xtask aws` starts it.

#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "the other test binary uses the rest")]
mod harness;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use harness::{Net, Process, eventually, get_json, hawser};

/// What `setup.py` made.
struct Moto {
    endpoint: String,
    made: Value,
}

impl Moto {
    /// Empties moto and fills it anew; `server` is what an instance's tag will lead to.
    fn fill(server: &str) -> Self {
        let said = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run cargo xtask aws"))
        };
        let endpoint = said("HAWSER_MOTO");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws/setup.py");
        let made = Command::new(said("HAWSER_MOTO_PYTHON"))
            .args([script, &endpoint, server])
            .output()
            .expect("Python runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { endpoint, made: serde_json::from_slice(&made.stdout).expect("JSON") }
    }

    /// What `join.py` is answered.
    fn join_by_hand(&self, arguments: &[&str]) -> Value {
        let python = std::env::var("HAWSER_MOTO_PYTHON").expect("set: moto was filled by it");
        let mut child = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws/join.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python runs");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(self.made["roles"].to_string().as_bytes()).expect("it reads");
        drop(input);
        let told = child.wait_with_output().expect("it ends");
        assert!(told.status.success(), "join.py failed");
        serde_json::from_slice(&told.stdout).expect("JSON")
    }

    /// The variables that make a process one of `role`'s.
    fn role(&self, role: &str) -> Vec<(&'static str, String)> {
        let keys = &self.made["roles"][role];
        let key = |at: usize| keys[at].as_str().expect("a key").to_owned();
        vec![
            ("AWS_ACCESS_KEY_ID", key(0)),
            ("AWS_SECRET_ACCESS_KEY", key(1)),
            ("AWS_SESSION_TOKEN", key(2)),
        ]
    }

    fn user(&self) -> Vec<(&'static str, String)> {
        let key = |at: usize| self.made["user"][at].as_str().expect("a key").to_owned();
        vec![("AWS_ACCESS_KEY_ID", key(0)), ("AWS_SECRET_ACCESS_KEY", key(1))]
    }

    fn policy(&self) -> Value {
        json!({ "aws_iam": {
            "region": "eu-west-1",
            "sts_endpoint": self.endpoint,
            "allowed_accounts": ["123456789012"],
            "allowed_roles": { "arn:aws:iam::123456789012:role/web": "web-*" },
        } })
    }
}

/// An agent with an environment of its own.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts one; it knows the servers by its file, or by its environment where that says how.
    fn start(net: &Net, node: &str, n: u8, variables: &[(&str, String)], join: &str) -> Self {
        let mut config = json!({
            "node_name": node,
            "data_dir": net.folder().join(node),
            "bind_addr": net.address(n),
            "client_addr": net.address(n),
            "retry_join": [join],
            "join_method": "aws-iam",
        });
        if !variables.iter().any(|(name, _)| *name == SERVER_PIN) {
            config["server_pin"] = pin(net).trim().into();
        }
        let path = net.folder().join(format!("{node}.json"));
        std::fs::write(&path, config.to_string()).expect("written");
        let log = net.folder().join(format!("{node}.log"));
        let out = std::fs::File::create(&log).expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
        for name in ["AWS_SESSION_TOKEN", "AWS_PROFILE"] {
            command.env_remove(name);
        }
        let child = command
            .args(["agent", "--config-file"])
            .arg(path)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("HAWSER_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .expect("the binary runs");
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for it to give up, and returns what it said.
    fn refused(&mut self) -> String {
        let status = eventually("the agent to end", || self.child.try_wait().expect("waited for"));
        assert!(!status.success(), "{}", self.log());
        self.log()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has ended already cannot be killed again, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let told: Vec<String> = self
                .log()
                .lines()
                .filter(|line| ["WARN", "ERROR", "hawser"].iter().any(|word| line.contains(word)))
                .map(str::to_owned)
                .collect();
            // A test that fails anyway has nobody else to tell.
            let _ = std::io::stderr().write_all(told.join("\n").as_bytes());
        }
    }
}

/// What hosts know the servers of `net` by.
fn pin(net: &Net) -> String {
    let key = net.operator_key();
    let printed = hawser(&["pin", key.to_str().expect("UTF-8")]);
    String::from_utf8(printed.stdout).expect("text")
}

fn server(net: &Net, moto: &Moto) -> Process {
    let server = net.server(1, 1, moto.policy());
    let http = net.http(1);
    eventually("the server to be ready", || get_json(http, "/v1/hawser/ready"));
    server
}

fn is_member(net: &Net, node: &str) -> Option<()> {
    let nodes = get_json(net.http(1), "/v1/catalog/nodes")?;
    nodes.as_array()?.iter().any(|row| row["Node"] == node).then_some(())
}

#[test]
fn a_role_joins_a_server_that_is_found_by_its_tag() {
    let net = Net::new();
    let moto = Moto::fill(&net.address(1));
    let _server = server(&net, &moto);
    let found = format!(
        "provider=aws tag_key=hawser tag_value=\"a server & more\" region=eu-west-1 endpoint={}",
        moto.endpoint
    );
    let keys = moto.role("web");
    let agent = Agent::start(&net, "web-1", 11, &keys, &found);
    eventually("the agent to join", || is_member(&net, "web-1"));
    let log = agent.log();
    assert!(log.contains("joined the cluster"), "{log}");
    for (name, secret) in &keys[1..] {
        assert!(!log.contains(secret.as_str()), "{name} is in the log");
    }
    let mut told = keys.clone();
    told.push((SERVER_PIN, pin(&net)));
    let _task = Agent::start(&net, "web-9", 13, &told, &found);
    eventually("an agent that is told the pin by its environment", || is_member(&net, "web-9"));
    let other = format!(
        "provider=aws tag_key=hawser tag_value=\"something else\" region=eu-west-1 endpoint={}",
        moto.endpoint
    );
    let lost = Agent::start(&net, "web-2", 12, &keys, &other);
    eventually("the other tag to lead elsewhere", || {
        lost.log().contains(&net.address(250)).then_some(())
    });
    assert!(is_member(&net, "web-2").is_none());
}

#[test]
fn who_may_not_join_is_told_why() {
    let net = Net::new();
    let moto = Moto::fill(&net.address(1));
    let server = server(&net, &moto);
    let join = net.address(1);
    let mut wrong = moto.role("web");
    wrong[1].1.replace_range(..4, "AAAA");
    let unknown = vec![
        ("AWS_ACCESS_KEY_ID", "AKIAUNKNOWNUNKNOWN".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
    ];
    let cases = [
        // node, keys, what the agent and the server must say
        ("web-3", wrong, "SignatureDoesNotMatch"),
        ("web-4", unknown, "InvalidClientTokenId"),
        ("web-5", moto.role("other"), "role/other may not join"),
        ("web-6", moto.role("web-but-not"), "role/web-but-not may not join"),
        ("db-1", moto.role("web"), "may not be node db-1"),
    ];
    for (at, (node, keys, says)) in (21..).zip(cases) {
        let said = Agent::start(&net, node, at, &keys, &join).refused();
        assert!(said.contains(says), "{node}: {said} does not say {says}");
        assert!(server.log().contains(says), "{says} is not in the server's log");
        assert!(is_member(&net, node).is_none(), "{node} is a member");
        for (name, secret) in &keys[1..] {
            assert!(!said.contains(secret.as_str()), "{name} is in the agent's log");
            assert!(!server.log().contains(secret.as_str()), "{name} is in the server's log");
        }
    }
}

#[test]
fn a_user_is_no_role_and_no_server_is_believed_without_its_pin() {
    let net = Net::new();
    let moto = Moto::fill(&net.address(1));
    let _server = server(&net, &moto);
    let join = net.address(1);
    let said = Agent::start(&net, "web-7", 31, &moto.user(), &join).refused();
    assert!(said.contains("no role's session"), "{said}");

    let other = Net::new();
    let stranger = Agent::start(&other, "web-8", 32, &moto.role("web"), &join);
    eventually("the server to be refused", || {
        stranger.log().contains("not joined yet").then_some(())
    });
    assert!(is_member(&net, "web-8").is_none());
}

#[test]
fn a_signature_holds_once_and_for_what_it_was_made_for() {
    let net = Net::new();
    let moto = Moto::fill(&net.address(1));
    let server = server(&net, &moto);
    let roots = get_json(net.http(1), "/v1/connect/ca/roots").expect("roots");
    let trust_domain = roots["TrustDomain"].as_str().expect("a trust domain");
    let address = net.address(1);
    let network = address.rsplit_once('.').expect("an address").0;
    let answers = moto.join_by_hand(&[&address, network, trust_domain]);
    let cases = [
        // what was done to a good request, what the server must say; none: it lets the host in
        ("whole", None),
        ("replayed", Some("the nonce was used before")),
        ("replayed for another node", Some("the nonce was used before")),
        ("csr", Some("SignatureDoesNotMatch")),
        ("nonce", Some("the nonce is not of this server")),
        ("access_key_id", Some("AWS refuses the signature")),
        ("date", Some("SignatureDoesNotMatch")),
        ("session_token", Some("AWS refuses the signature")),
        ("signature", Some("SignatureDoesNotMatch")),
        ("foreign", Some("account 999999999999 may not join")),
    ];
    assert_eq!(answers.as_object().expect("answers").len(), cases.len());
    for (case, says) in cases {
        let told = answers[case].as_str();
        assert_eq!(told.is_some(), says.is_some(), "{case}: {told:?}");
        let told = told.unwrap_or_default();
        assert!(told.contains(says.unwrap_or_default()), "{case}: {told}");
        assert!(server.log().contains(says.unwrap_or_default()), "{case} is not in the log");
    }
    for node in ["web-102", "web-111", "web-121"] {
        assert!(is_member(&net, node).is_none(), "{node} is a member");
    }
}

const SERVER_PIN: &str = "HAWSER_SERVER_PIN";
