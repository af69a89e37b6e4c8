//! `/v1/snapshot`: the whole state as an archive, and back through the log.

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_core::state::{AuthorityChoice, Command, RestorePart};
use http::StatusCode;

use super::ask::Ask;
use super::cluster::Said;
use crate::Handle;
use crate::acl::random_uuid;
use crate::archive::{self, Meta};
use crate::read::Consistency;

/// The whole state, as all that was acknowledged before made it. With `authority=omit` without the
/// keys of the certificate authority, which are sealed in it otherwise.
pub(crate) async fn save(handle: Handle, ask: Ask) -> Result<Bytes, ApiError> {
    let omits = match ask.query.text("authority") {
        None => false,
        Some("omit") => true,
        Some(_) => return Err(ApiError::bad_request("authority is \"omit\", or left out")),
    };
    let reading = handle.reader.read(Consistency::Default).await.map_err(super::unread)?;
    let mut dump = reading.state.dump();
    // What somebody began to restore is no part of the state, and may hold keys.
    dump.staged = None;
    if omits {
        dump.authority = None;
    }
    let meta = Meta {
        cluster: handle.identity.cluster_id().to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        index: dump.applied.0,
        term: handle.roster.status().term,
        has_authority: dump.authority.is_some(),
        ..Meta::default()
    };
    // A large state takes a while: not on a thread that carries consensus.
    let packed = tokio::task::spawn_blocking(move || archive::pack(meta, &dump)).await;
    let packed = packed.map_err(std::io::Error::other).and_then(|packed| packed);
    let packed = packed.map_err(|why| ApiError::Refused(why.to_string()))?;
    if packed.len() > ARCHIVE_OCTETS_MAX {
        let most = ARCHIVE_OCTETS_MAX >> 20;
        return Err(ApiError::Refused(format!(
            "the archive has {} MiB, and {most} MiB can be restored by HTTP: save the servers' \
             data folders",
            packed.len() >> 20
        )));
    }
    Ok(packed.into())
}

/// Puts an archive's state into the place of this cluster's, on every server at once. With
/// `authority=restore` the archive's certificate authority signs again.
pub(crate) async fn restore(handle: Handle, ask: Ask) -> Said {
    let choice = match ask.query.text("authority") {
        None => AuthorityChoice::Keep,
        Some("restore") => AuthorityChoice::Restore,
        Some(_) => return Err(ApiError::bad_request("authority is \"restore\", or left out")),
    };
    let body = ask.body.clone();
    let unpacked = tokio::task::spawn_blocking(move || {
        let (meta, state) = archive::unpack(&body)?;
        Ok::<_, archive::ArchiveError>((meta, archive::parts(&state)?))
    });
    let unpacked = unpacked.await.map_err(|why| ApiError::Refused(why.to_string()))?;
    let (meta, parts) = unpacked.map_err(ApiError::bad_request)?;
    let own = handle.identity.cluster_id();
    if meta.cluster != own && meta.has_authority {
        return Err(ApiError::bad_request(format!(
            "the archive is of cluster {}, whose keys do not open in cluster {own}: save it with \
             authority=omit, or start the servers with that cluster's operator key",
            meta.cluster
        )));
    }
    let id: Arc<str> = random_uuid().into();
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    for (number, rows) in (0..).zip(parts) {
        let part = RestorePart { id: id.clone(), number, rows: Box::new(rows) };
        handle.proposer.propose(Command::Stage(part)).await.map_err(super::unwritten)?;
    }
    let restore = Command::Restore { id, parts: count, choice };
    handle.proposer.propose(restore).await.map_err(super::unwritten)?;
    tracing::warn!(index = meta.index, "a snapshot took the state's place");
    Ok((StatusCode::OK, Bytes::new()))
}

/// What fits into one message between an agent and a server.
pub(crate) const ARCHIVE_OCTETS_MAX: usize = 7 << 20;
