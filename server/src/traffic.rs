//! The traffic that all servers together have seen.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::name::NodeName;
use hawser_proto::v1;
use tokio::time::timeout;

use crate::dial::{Dialer, Lane};
use crate::handle::Handle;
use crate::history::{EdgeMinute, minute_of, sum};
use crate::identity::now;

/// Every server's share of the traffic, together.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Each edge, summed up.
    pub edges: BTreeMap<EdgeKey, Tally>,
    /// The first minute that is in it.
    pub from_minute: u64,
    /// The last one: the present, which is not over.
    pub to_minute: u64,
    /// Servers whose share is missing.
    pub silent: Vec<Silent>,
}

/// A server that did not tell its share of the traffic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Silent {
    /// Who.
    pub server: NodeName,
    /// Why, for people.
    pub why: String,
}

/// What every server has recorded of the last `minutes`, the present one included. Each is asked
/// for 2 s at most; one that does not answer is named, and the others' shares are still told.
pub async fn merged(handle: &Handle, minutes: u64) -> Merged {
    let to_minute = minute_of(now());
    let from_minute = to_minute.saturating_sub(minutes.saturating_sub(1));
    let own = handle.roster.own().name.clone();
    let history = handle.history.clone();
    let here = tokio::task::spawn_blocking(move || history.range(from_minute, to_minute));
    let others = handle.roster.members().into_iter().filter(|member| member.name != own);
    let asked = others.map(|member| async move {
        let told = timeout(ASK_MAX, ask(&handle.dialer, &member.address, from_minute, to_minute));
        let told = told.await.unwrap_or_else(|_| Err("it did not answer within 2 s".into()));
        (member.name, told)
    });
    let mut shares = futures_util::future::join_all(asked).await;
    let here = match here.await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    shares.push((own, here));
    let mut silent = Vec::new();
    let mut rows = Vec::new();
    for (server, told) in shares {
        match told {
            Ok(told) => rows.extend(told),
            Err(why) => silent.push(Silent { server, why }),
        }
    }
    Merged { edges: sum(rows), from_minute, to_minute, silent }
}

async fn ask(
    dialer: &Dialer,
    address: &str,
    from_minute: u64,
    to_minute: u64,
) -> Result<Vec<EdgeMinute>, String> {
    let mut client = dialer.client(address, Lane::Request).map_err(|error| error.to_string())?;
    let reply = client.history(v1::HistoryRequest { from_minute, to_minute }).await;
    let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
    let rows = reply.edges.into_iter().map(EdgeMinute::try_from).collect::<Result<_, _>>();
    rows.map_err(|invalid| invalid.to_string())
}

const ASK_MAX: Duration = Duration::from_secs(2);
