//! What the host's declarations keep on disk: one file per service and check, 0600.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use hawser_api::definition::{CheckDefinition, ServiceDefinition};
use hawser_core::clock::UnixTime;
use hawser_core::health::Status;
use hawser_core::name::{CheckId, InstanceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::{self, UnsafeFolder};

/// The folder.
pub(super) struct Store {
    folder: PathBuf,
}

/// How a check stood when it was last looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// The check's kind: another kind under the same id is another check.
    pub(super) kind: String,
    /// What was reported.
    pub(super) status: Status,
    /// When, for a TTL check.
    pub(super) reported_at: Option<UnixTime>,
}

/// What was kept.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) services: Vec<ServiceDefinition>,
    pub(super) checks: Vec<CheckDefinition>,
    pub(super) ports: BTreeMap<InstanceId, u16>,
    pub(super) maintenance: BTreeMap<Option<InstanceId>, Arc<str>>,
    pub(super) statuses: BTreeMap<CheckId, Remembered>,
    pub(super) dropped: BTreeSet<CheckId>,
}

impl Store {
    /// Opens the folder and reads it; damaged files are set aside and said.
    pub(super) fn open(folder: PathBuf) -> Result<(Self, Kept), UnsafeFolder> {
        for part in ["", SERVICES, CHECKS] {
            disk::private_folder(&folder.join(part))?;
        }
        let maintenance: Vec<(Option<InstanceId>, Arc<str>)> =
            one(&folder.join(MAINTENANCE)).unwrap_or_default();
        let kept = Kept {
            services: every(&folder.join(SERVICES)),
            checks: every(&folder.join(CHECKS)),
            ports: one(&folder.join(PORTS)).unwrap_or_default(),
            maintenance: maintenance.into_iter().collect(),
            statuses: one(&folder.join(STATUSES)).unwrap_or_default(),
            dropped: one(&folder.join(DROPPED)).unwrap_or_default(),
        };
        Ok((Self { folder }, kept))
    }

    /// Keeps a service.
    pub(super) fn keep_service(&self, definition: &ServiceDefinition) -> io::Result<()> {
        let name = file_name(definition.service().instance.id.as_str());
        keep(&self.folder.join(SERVICES).join(name), definition)
    }

    /// Keeps a check.
    pub(super) fn keep_check(&self, definition: &CheckDefinition) -> io::Result<()> {
        let name = file_name(definition.check().id.as_str());
        keep(&self.folder.join(CHECKS).join(name), definition)
    }

    /// Forgets a service.
    pub(super) fn forget_service(&self, id: &InstanceId) {
        said(disk::remove(&self.folder.join(SERVICES).join(file_name(id.as_str()))));
    }

    /// Forgets a check.
    pub(super) fn forget_check(&self, id: &CheckId) {
        said(disk::remove(&self.folder.join(CHECKS).join(file_name(id.as_str()))));
    }

    /// Keeps the mesh ports.
    pub(super) fn keep_ports(&self, ports: &BTreeMap<InstanceId, u16>) {
        let path = self.folder.join(PORTS);
        if one::<BTreeMap<InstanceId, u16>>(&path).as_ref() != Some(ports) {
            said(keep(&path, ports));
        }
    }

    /// Keeps what is in maintenance.
    pub(super) fn keep_maintenance(&self, held: &BTreeMap<Option<InstanceId>, Arc<str>>) {
        let pairs: Vec<_> = held.iter().collect();
        said(keep(&self.folder.join(MAINTENANCE), &pairs));
    }

    /// Keeps which checks of definitions were deregistered by themselves.
    pub(super) fn keep_dropped(&self, dropped: &BTreeSet<CheckId>) {
        let path = self.folder.join(DROPPED);
        if one::<BTreeSet<CheckId>>(&path).unwrap_or_default() != *dropped {
            said(keep(&path, dropped));
        }
    }

    /// Keeps how the checks stand.
    pub(super) fn keep_statuses(&self, statuses: &BTreeMap<CheckId, Remembered>) {
        said(keep(&self.folder.join(STATUSES), statuses));
    }
}

fn keep(path: &Path, value: &impl Serialize) -> io::Result<()> {
    disk::write(path, &serde_json::to_vec(value)?)
}

fn one<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = disk::read(path).unwrap_or_else(|why| {
        tracing::error!(file = %path.display(), %why, "a file cannot be read");
        None
    })?;
    serde_json::from_slice(&bytes).inspect_err(|why| disk::set_aside(path, &why.to_string())).ok()
}

fn every<T: DeserializeOwned>(folder: &Path) -> Vec<T> {
    let listed = fs::read_dir(folder).inspect_err(|why| {
        tracing::error!(folder = %folder.display(), %why, "a folder cannot be read");
    });
    let mut paths: Vec<PathBuf> = listed
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| one(path)).collect()
}

/// An id may hold any printable text, slashes included; its digest is a file name.
fn file_name(id: &str) -> String {
    let digest = digest::digest(&digest::SHA256, id.as_bytes());
    let hex: String = digest.as_ref()[..16].iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{hex}.json")
}

fn said(result: io::Result<()>) {
    if let Err(why) = result {
        tracing::error!(%why, "the agent's folder cannot be written");
    }
}

const SERVICES: &str = "services";
const CHECKS: &str = "checks";
const PORTS: &str = "ports.json";
const MAINTENANCE: &str = "maintenance.json";
const STATUSES: &str = "statuses.json";
const DROPPED: &str = "dropped.json";
