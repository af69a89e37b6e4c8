//! The API as an OpenAPI document, made from the routes: what is not there cannot be in it.

use hawser_api::routes::AGENT;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::ask::Ask;
use super::cluster::Said;
use super::routes::{Handler, ROUTES};
use crate::Handle;

/// `/v1/hawser/openapi`
pub(crate) async fn show(_: Handle, ask: Ask) -> Said {
    Ok((StatusCode::OK, ask.write(&document())?))
}

/// The document: every endpoint of servers and agents that is answered.
pub(crate) fn document() -> Value {
    let servers = ROUTES.iter().filter(|route| !matches!(route.handler, Handler::Refuse(_)));
    let servers = servers.map(|route| {
        let reads = matches!(route.handler, Handler::Read(_) | Handler::ReadOrPeer(_));
        (route.method.as_str(), route.pattern.to_owned(), reads)
    });
    let agents = AGENT.iter().filter(|route| route.is_answered);
    let agents = agents.map(|route| (route.method, format!("agent/{}", route.pattern), false));
    let mut paths: Map<String, Value> = Map::new();
    for (method, pattern, reads) in servers.chain(agents) {
        let (path, names) = named(&pattern);
        let operation = operation(method, &pattern, &names, reads);
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[method.to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hawser",
            "version": "v1",
            "description": "Consul's HTTP API as Hawser answers it. Bodies are Consul's.",
        },
        "security": [{}, { "token": [] }],
        "paths": paths,
        "components": { "securitySchemes": {
            "token": { "type": "apiKey", "in": "header", "name": "X-Consul-Token" },
        } },
    })
}

/// A pattern as OpenAPI writes it, and the names of its open parts.
fn named(pattern: &str) -> (String, Vec<String>) {
    let (mut path, mut names) = (String::from("/v1"), Vec::new());
    let mut before = "";
    for part in pattern.split('/') {
        path.push('/');
        match part {
            ":" | "*" => {
                let name = format!("{}{}", before.replace('-', "_"), suffix(names.len()));
                path.push_str(&format!("{{{name}}}"));
                names.push(name);
            }
            part => {
                path.push_str(part);
                before = part;
            }
        }
    }
    (path, names)
}

fn suffix(count: usize) -> String {
    if count == 0 { String::new() } else { (count + 1).to_string() }
}

fn operation(method: &str, pattern: &str, names: &[String], reads: bool) -> Value {
    let text = json!({ "type": "string" });
    let mut parameters: Vec<Value> = names
        .iter()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text }))
        .collect();
    let read: &[(&str, &str)] = if reads { &READ } else { &[] };
    for (name, kind) in COMMON.iter().chain(read) {
        let schema = json!({ "type": kind });
        parameters.push(json!({ "name": name, "in": "query", "schema": schema }));
    }
    let words = pattern.split(['/', '-']).filter(|word| !word.is_empty());
    let words = words.map(|word| match word {
        ":" => "One".to_owned(),
        "*" => "All".to_owned(),
        word => word[..1].to_ascii_uppercase() + &word[1..],
    });
    let id = method.to_ascii_lowercase() + &words.collect::<String>();
    let tag = pattern.split('/').next().unwrap_or_default();
    let mut operation = json!({
        "operationId": id,
        "tags": [tag],
        "parameters": parameters,
        "responses": {
            "200": { "description": "As Consul answers it." },
            "default": { "description": "A refusal: text that says why." },
        },
    });
    if method != Method::GET.as_str() && method != Method::DELETE.as_str() {
        let anything = json!({ "schema": {} });
        operation["requestBody"] = json!({ "content": { "application/json": anything } });
    }
    operation
}

/// What every endpoint heeds.
const COMMON: [(&str, &str); 2] = [("dc", "string"), ("pretty", "string")];
/// What reads heed, too.
const READ: [(&str, &str); 9] = [
    ("index", "integer"),
    ("wait", "string"),
    ("stale", "string"),
    ("consistent", "string"),
    ("cached", "string"),
    ("filter", "string"),
    ("near", "string"),
    ("node-meta", "string"),
    ("tag", "string"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_document_is_that_of_the_routes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let made = serde_json::to_string_pretty(&document()).expect("text") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &made).expect("written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(made == committed, "docs/openapi.json is old: run this with UPDATE_GOLDEN=1");
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let operations =
            paths.values().flat_map(|path| path.as_object().expect("methods").values());
        let ids: Vec<&str> =
            operations.map(|one| one["operationId"].as_str().expect("an id")).collect();
        let unique: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len(), "{ids:?}");
        assert!(ids.len() > 100);
    }
}
