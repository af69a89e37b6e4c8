//! `hawser map`: who calls whom, how often, with which errors and how fast.

use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::json::{Edge, Edges};

use super::output::{Formatted, Table, visible};

/// Who calls whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many minutes to look back.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    minutes: u32,
    #[command(flatten)]
    formatted: Formatted,
}

/// Prints the traffic that all servers together know of.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let minutes = arguments.minutes.to_string();
    let (edges, _) = client.get::<Edges>("/v1/hawser/edges", &[("minutes", &minutes)]).await?;
    arguments.formatted.print(&edges, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(edges: &Edges) -> String {
    let mut text = if edges.edges.is_empty() {
        format!("No traffic was seen in the last {} min.\n", edges.minutes)
    } else {
        table(&edges.edges)
    };
    for server in &edges.missing {
        text += &format!("Server {} did not answer: its part is missing.\n", visible(server));
    }
    text
}

fn table(edges: &[Edge]) -> String {
    let headings = ["Caller", "Callee", "Verdict", "Rate", "Count", "Errors", "p50", "p95", "p99"];
    let mut table = Table::new(headings);
    for edge in edges {
        let callee = match edge.cluster.as_str() {
            "" => edge.destination.clone(),
            cluster => format!("{}@{cluster}", edge.destination),
        };
        table.row([
            &edge.source,
            &callee,
            &edge.verdict,
            &format!("{:.1}/s", edge.rate),
            &edge.count.to_string(),
            &errors(edge),
            &latency(edge, edge.p50_ms),
            &latency(edge, edge.p95_ms),
            &latency(edge, edge.p99_ms),
        ]);
    }
    table.into_text()
}

/// How many failed, and which share that is.
fn errors(edge: &Edge) -> String {
    if edge.errors == 0 || edge.count == 0 {
        return edge.errors.to_string();
    }
    let percent = edge.errors as f64 / edge.count as f64 * 100.0;
    format!("{} ({percent:.1} %)", edge.errors)
}

/// Three figures that mean something, whatever the scale; nothing where nothing was counted.
fn latency(edge: &Edge, millis: f64) -> String {
    match millis {
        _ if edge.count == 0 => "-".to_owned(),
        millis if millis < 1.0 => format!("{:.0} µs", millis * 1000.0),
        millis if millis < 10.0 => format!("{millis:.2} ms"),
        millis if millis < 1000.0 => format!("{millis:.0} ms"),
        millis => format!("{:.2} s", millis / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn the_minutes_are_passed_on() {
        for (line, expected) in [
            ("", "GET /v1/hawser/edges?minutes=5"),
            ("--minutes 60 --format json", "GET /v1/hawser/edges?minutes=60"),
        ] {
            let stub = Stub::answering(&[(200, r#"{"Minutes": 5, "Edges": []}"#)]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS);
            assert_eq!(stub.requests(), [expected], "{line:?}");
        }
    }

    #[test]
    fn edges_are_aligned_with_figures_that_mean_something() {
        let web = Edge {
            source: "web".into(),
            destination: "db".into(),
            verdict: "ok".into(),
            count: 3000,
            rate: 10.0,
            p50_ms: 0.25,
            p95_ms: 4.128,
            p99_ms: 1500.0,
            ..Edge::default()
        };
        let cron = Edge {
            source: "cron".into(),
            cluster: "eu".into(),
            verdict: "denied".into(),
            count: 12,
            errors: 12,
            rate: 0.04,
            p50_ms: 12.0,
            p95_ms: 99.0,
            p99_ms: 999.0,
            ..web.clone()
        };
        let edges = Edges { minutes: 5, missing: vec!["s3".into()], edges: vec![cron, web] };
        let expected = "\
Caller  Callee  Verdict  Rate    Count  Errors        p50     p95      p99
cron    db@eu   denied   0.0/s   12     12 (100.0 %)  12 ms   99 ms    999 ms
web     db      ok       10.0/s  3000   0             250 µs  4.13 ms  1.50 s
Server s3 did not answer: its part is missing.
";
        assert_eq!(text(&edges), expected);
        let none = Edges { minutes: 7, ..Edges::default() };
        assert_eq!(text(&none), "No traffic was seen in the last 7 min.\n");
    }
}
