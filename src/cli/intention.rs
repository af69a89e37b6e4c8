//! `hawser intention`: who may call whom.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hawser_api::client::{Client, ClientError, segment};
use hawser_api::json::{Intention, IntentionCheck};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::output::{self, Formatted, Table, visible};
use super::services::pair;

/// Who may call whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Let one service call another, or forbid it; * stands for every service.
    Create {
        /// The caller; peer:PEER/SERVICE for one of a peer.
        source: String,
        /// The callee.
        destination: String,
        /// Let it: what holds unless -deny is said.
        #[arg(long, conflicts_with = "deny")]
        allow: bool,
        /// Forbid it.
        #[arg(long)]
        deny: bool,
        /// Replace the intention that there is.
        #[arg(long)]
        replace: bool,
        /// A sentence for people.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// A pair; may be given several times.
        #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
        meta: Vec<(String, String)>,
    },
    /// Remove an intention.
    Delete {
        /// The caller (peer:PEER/SERVICE for one of a peer), or the intention's id.
        #[arg(value_name = "SOURCE|ID")]
        source: String,
        /// The callee; left out with an id.
        destination: Option<String>,
    },
    /// Show one intention.
    Get {
        /// The caller (peer:PEER/SERVICE for one of a peer), or the intention's id.
        #[arg(value_name = "SOURCE|ID")]
        source: String,
        /// The callee; left out with an id.
        destination: Option<String>,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// List all intentions.
    List {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// List the intentions that cover a service, most specific first.
    Match {
        /// The service.
        service: String,
        /// Those that cover it as the caller, instead of as the callee.
        #[arg(long, conflicts_with = "destination")]
        source: bool,
        /// Those that cover it as the callee.
        #[arg(long)]
        destination: bool,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Ask whether one service may call another: exit status 0 if it may, 2 if it may not.
    Check {
        /// The caller; peer:PEER/SERVICE for one of a peer.
        source: String,
        /// The callee.
        destination: String,
    },
}

/// Does what was asked for.
///
/// # Errors
/// The API's, an intention that is there already, and one that is not there.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Create { source, destination, deny, replace, description, meta, .. } => {
            let action = if deny { "deny" } else { "allow" };
            let what = format!("{} => {} ({action})", visible(&source), visible(&destination));
            let wanted = Which::Pair(&source, &destination);
            if !replace && wanted.find(client).await?.is_some() {
                bail!("creating {what}: there is an intention for the pair already: use -replace");
            }
            let meta: BTreeMap<String, String> = meta.into_iter().collect();
            let body = json!({"Action": action, "Description": description, "Meta": meta});
            client
                .put::<_, Value>(EXACT, &pair_query(&source, &destination), &body)
                .await
                .with_context(|| format!("creating {what}"))?;
            output::print(&format!("Created: {what}\n"))?;
        }
        What::Delete { source, destination } => {
            let which = Which::new(&source, destination.as_deref());
            let Some(found) = which.find(client).await? else { bail!(which.is_missing()) };
            let source = source_of(&found);
            let pair = pair_query(&source, &found.destination_name);
            client.delete::<Value>(EXACT, &pair).await?;
            output::print("Intention deleted.\n")?;
        }
        What::Get { source, destination, formatted } => {
            let which = Which::new(&source, destination.as_deref());
            let Some(intention) = which.find(client).await? else { bail!(which.is_missing()) };
            formatted.print(&intention, details)?;
        }
        What::List { formatted } => {
            let (all, _) = client.get::<Vec<Intention>>("/v1/connect/intentions", &[]).await?;
            formatted.print(&all, |all| table(all))?;
        }
        What::Match { service, source, formatted, .. } => {
            let by = if source { "source" } else { "destination" };
            let query = [("by", by), ("name", service.as_str())];
            let path = "/v1/connect/intentions/match";
            let (mut found, _) =
                client.get::<BTreeMap<String, Vec<Intention>>>(path, &query).await?;
            let all = found.remove(&service).unwrap_or_default();
            formatted.print(&all, |all| table(all))?;
        }
        What::Check { source, destination } => {
            let query = pair_query(&source, &destination);
            let path = "/v1/connect/intentions/check";
            let (check, _) = client.get::<IntentionCheck>(path, &query).await?;
            let word = if check.allowed { "Allowed\n" } else { "Denied\n" };
            output::print(word)?;
            return Ok(if check.allowed { ExitCode::SUCCESS } else { ExitCode::from(DENIED) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Which intention is meant.
#[derive(Clone, Copy)]
enum Which<'a> {
    Pair(&'a str, &'a str),
    Id(&'a str),
}

impl<'a> Which<'a> {
    fn new(source_or_id: &'a str, destination: Option<&'a str>) -> Self {
        match destination {
            Some(destination) => Self::Pair(source_or_id, destination),
            None => Self::Id(source_or_id),
        }
    }

    /// The intention; none where there is none.
    async fn find(self, client: &Client) -> Result<Option<Intention>> {
        let found = match self {
            Self::Pair(source, destination) => {
                client.get(EXACT, &pair_query(source, destination)).await
            }
            Self::Id(id) => {
                client.get(&format!("/v1/connect/intentions/{}", segment(id)), &[]).await
            }
        };
        match found {
            Ok((intention, _)) => Ok(Some(intention)),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_missing(self) -> String {
        match self {
            Self::Pair(source, destination) => {
                format!("there is no intention {} => {}", visible(source), visible(destination))
            }
            Self::Id(id) => format!("there is no intention with id {}", visible(id)),
        }
    }
}

fn pair_query<'a>(source: &'a str, destination: &'a str) -> [(&'static str, &'a str); 2] {
    [("source", source), ("destination", destination)]
}

fn table(intentions: &[Intention]) -> String {
    let mut table = Table::new(["ID", "Source", "Action", "Destination", "Precedence"]);
    for intention in intentions {
        let Intention { id, action, destination_name, precedence, .. } = intention;
        let source = source_of(intention);
        table.row([id, &source, action, destination_name, &precedence.to_string()]);
    }
    table.into_text()
}

/// The caller as it is typed: `web`, or `peer:west/web` for one of a peer.
fn source_of(intention: &Intention) -> String {
    match intention.source_peer.as_str() {
        "" => intention.source_name.clone(),
        peer => format!("peer:{peer}/{}", intention.source_name),
    }
}

fn details(intention: &Intention) -> String {
    let source = source_of(intention);
    let precedence = intention.precedence.to_string();
    let mut lines = vec![
        ("ID:".to_owned(), intention.id.as_str()),
        ("Source:".to_owned(), source.as_str()),
        ("Destination:".to_owned(), intention.destination_name.as_str()),
        ("Action:".to_owned(), intention.action.as_str()),
        ("Precedence:".to_owned(), precedence.as_str()),
        ("Description:".to_owned(), intention.description.as_str()),
        ("Created At:".to_owned(), intention.created_at.as_str()),
        ("Updated At:".to_owned(), intention.updated_at.as_str()),
    ];
    let meta = intention.meta.iter();
    lines.extend(meta.map(|(key, value)| (format!("Meta[{}]:", visible(key)), value.as_str())));
    lines.retain(|(_, value)| !value.is_empty());
    lines.iter().map(|(name, value)| format!("{name:<16}{}\n", visible(value))).collect()
}

const EXACT: &str = "/v1/connect/intentions/exact";
/// Consul's exit status for "it may not", apart from that for "I could not find out".
const DENIED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    const PAIR: &str = "/v1/connect/intentions/exact?source=web&destination=db";
    const FOUND: &str = r#"{"SourceName": "web", "DestinationName": "db", "Action": "deny"}"#;

    fn put(action: &str, description: &str, meta: &str) -> String {
        let body =
            format!(r#"{{"Action":"{action}","Description":"{description}","Meta":{{{meta}}}}}"#);
        format!("PUT {PAIR} {body}")
    }

    #[tokio::test]
    async fn an_intention_is_created_as_consuls_users_type_it() {
        let cases = [
            // line, what is written
            ("create --allow web db", put("allow", "", "")),
            ("create web db", put("allow", "", "")),
            ("create --deny web db", put("deny", "", "")),
            ("create --deny web db --meta a=b --description x", put("deny", "x", r#""a":"b""#)),
        ];
        for (line, expected) in cases {
            let stub = Stub::answering(&[(404, ""), (200, "true")]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS);
            assert_eq!(stub.requests(), [format!("GET {PAIR}"), expected], "{line}");
        }
        let stub = Stub::answering(&[(200, "true")]).await;
        asked!(Arguments, "create --deny --replace web db", &stub).expect("replaced");
        assert_eq!(stub.requests(), [put("deny", "", "")], "replacing asks for nothing first");
    }

    #[tokio::test]
    async fn what_is_there_is_not_overwritten_unasked() {
        let stub = Stub::answering(&[(200, FOUND)]).await;
        let refused = asked!(Arguments, "create web db", &stub).expect_err("it is there");
        assert!(refused.to_string().contains("use -replace"), "{refused}");
        assert_eq!(stub.requests(), [format!("GET {PAIR}")]);
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_tried_and_why_not() {
        let stub = Stub::answering(&[(404, ""), (400, "source: it is no name")]).await;
        let refused = asked!(Arguments, "create web db", &stub).expect_err("refused");
        let text = format!("{refused:#}");
        assert!(text.contains("web => db (allow)"), "{text}");
        assert!(text.contains("source: it is no name"), "{text}");
    }

    #[tokio::test]
    async fn a_check_answers_by_its_exit_status() {
        for (reply, code) in [("true", ExitCode::SUCCESS), ("false", ExitCode::from(2))] {
            let reply = format!(r#"{{"Allowed": {reply}}}"#);
            let stub = Stub::answering(&[(200, &reply)]).await;
            assert_eq!(asked!(Arguments, "check web db", &stub).expect("an answer"), code);
            let asked = "GET /v1/connect/intentions/check?source=web&destination=db";
            assert_eq!(stub.requests(), [asked]);
        }
    }

    #[tokio::test]
    async fn a_caller_of_a_peer_is_written_as_it_is_shown() {
        let found = r#"{"SourceName": "web", "SourcePeer": "west", "DestinationName": "db"}"#;
        let stub = Stub::answering(&[(200, found), (200, "true")]).await;
        asked!(Arguments, "delete peer:west/web db", &stub).expect("deleted");
        let pair = "/v1/connect/intentions/exact?source=peer%3Awest%2Fweb&destination=db";
        assert_eq!(stub.requests(), [format!("GET {pair}"), format!("DELETE {pair}")]);
        let intention: Intention = serde_json::from_str(found).expect("an intention");
        assert!(table(std::slice::from_ref(&intention)).contains("peer:west/web"));
        assert!(details(&intention).contains("Source:         peer:west/web\n"));
    }

    #[tokio::test]
    async fn what_is_not_there_cannot_be_shown_or_removed() {
        for line in ["get web db", "delete web db"] {
            let stub = Stub::answering(&[(404, "")]).await;
            let refused = asked!(Arguments, line, &stub).expect_err(line);
            assert_eq!(refused.to_string(), "there is no intention web => db", "{line}");
        }
        let stub = Stub::answering(&[(200, FOUND), (200, "true")]).await;
        asked!(Arguments, "delete web db", &stub).expect("removed");
        assert_eq!(stub.requests(), [format!("GET {PAIR}"), format!("DELETE {PAIR}")]);
        let stub = Stub::answering(&[(200, FOUND), (200, "true")]).await;
        asked!(Arguments, "delete 8f24", &stub).expect("removed by id");
        let by_id = "GET /v1/connect/intentions/8f24".to_owned();
        assert_eq!(stub.requests(), [by_id, format!("DELETE {PAIR}")]);
    }

    #[tokio::test]
    async fn lists_ask_for_all_or_for_what_covers_a_service() {
        let cases = [
            ("list", "[]", "GET /v1/connect/intentions"),
            (
                "match db",
                r#"{"db": []}"#,
                "GET /v1/connect/intentions/match?by=destination&name=db",
            ),
            ("match --source web", "{}", "GET /v1/connect/intentions/match?by=source&name=web"),
        ];
        for (line, reply, expected) in cases {
            let stub = Stub::answering(&[(200, reply)]).await;
            asked!(Arguments, line, &stub).expect(line);
            assert_eq!(stub.requests(), [expected]);
        }
    }

    #[test]
    fn intentions_are_shown_in_a_row_or_whole() {
        let intention = Intention {
            id: "8f24".into(),
            source_name: "*".into(),
            destination_name: "db".into(),
            action: "deny".into(),
            precedence: 8,
            meta: [("ticket".into(), "4\u{7}2".into())].into(),
            ..Intention::default()
        };
        let expected = "\
ID    Source  Action  Destination  Precedence
8f24  *       deny    db           8
";
        assert_eq!(table(std::slice::from_ref(&intention)), expected);
        let expected = "\
ID:             8f24
Source:         *
Destination:    db
Action:         deny
Precedence:     8
Meta[ticket]:   4\\u{7}2
";
        assert_eq!(details(&intention), expected);
    }
}
