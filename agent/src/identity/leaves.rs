//! Certificates of the host's services: made for each, renewed in good time, kept for a restart
//! without servers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::name::ServiceName;
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::view::View;
use hawser_identity::Anchors;
use hawser_proto::v1;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::join::Membership;
use super::node::RenewError;
use super::{Credential, Damaged, Kept, Request};
use crate::clock::{self, Backoff};
use crate::disk;
use crate::local::Local;
use crate::servers::Servers;

/// Every service's credential.
pub(crate) type All = Arc<BTreeMap<ServiceName, Arc<Credential>>>;

/// The credentials that `folder` keeps; damaged ones are set aside.
pub(crate) fn kept(folder: &Path) -> All {
    let listed = std::fs::read_dir(folder).into_iter().flatten();
    let names = listed.filter_map(|entry| {
        entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse::<ServiceName>().ok()
    });
    let names = names.filter(ServiceName::is_label);
    let all = names.filter_map(|name| {
        let path = path(folder, &name);
        let bytes = Zeroizing::new(disk::read(&path).ok()??);
        let parse = || -> Result<Credential, Damaged> {
            let credential = Credential::try_from(serde_json::from_slice::<Kept>(&bytes)?)?;
            let is_its = credential.id.service() == Some(&name);
            if is_its { Ok(credential) } else { Err(Damaged::Mismatch) }
        };
        match parse() {
            Ok(credential) => Some((name, Arc::new(credential))),
            Err(why) => {
                disk::set_aside(&path, &why.to_string());
                None
            }
        }
    });
    Arc::new(all.collect())
}

/// What the loop reads and writes.
pub(crate) struct Leaves {
    /// Where credentials are kept.
    pub(crate) folder: PathBuf,
    /// Which services there are.
    pub(crate) local: Arc<Local>,
    /// Whom to ask.
    pub(crate) servers: Arc<Servers>,
    /// As whom.
    pub(crate) membership: watch::Receiver<Option<Arc<Membership>>>,
    /// Which roots are trusted.
    pub(crate) views: watch::Receiver<Arc<View>>,
    /// Wakes when the catalog has taken what runs here: only then does a server sign for it.
    pub(crate) synced: watch::Receiver<u64>,
    /// Where they go.
    pub(crate) all: watch::Sender<All>,
}

/// When a service's credential is next asked for.
struct Next {
    at: UnixTime,
    backoff: Backoff,
    /// Since when attempts fail; none after one that did not.
    failing_since: Option<UnixTime>,
    /// It is planned already for what made it outdated.
    is_hurried: bool,
}

impl Next {
    /// Makes it sooner where it is later than anything could have planned it: the clock was ahead
    /// then. `held` is when the credential that there is holds.
    fn pull_in(&mut self, held: Option<&Validity>, now: UnixTime) {
        let latest = match held {
            Some(held) if self.failing_since.is_none() => {
                let latest = held.renew_at(now, PERMILLE_MAX).unwrap_or(now);
                latest.max(now.plus(RENEW_GAP_MIN))
            }
            _ => now.plus(BACKOFF_MAX),
        };
        if self.at > latest {
            self.at = latest;
            self.is_hurried = false;
        }
        if self.failing_since.is_some_and(|since| since > now) {
            self.failing_since = Some(now);
        }
    }
}

impl Leaves {
    /// Keeps every local service in credentials until `drain`. What cannot be renewed stays.
    pub(crate) async fn run(mut self, drain: CancellationToken) {
        let mut changes = self.local.changes();
        let mut links = self.servers.links();
        let mut plan: BTreeMap<ServiceName, Next> = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            self.views.borrow_and_update();
            self.synced.borrow_and_update();
            links.borrow_and_update();
            let names = self.local.names();
            self.forget(&names, &mut plan);
            self.schedule(&names, &mut plan);
            let now = clock::now();
            let due: Vec<ServiceName> = plan
                .iter()
                .filter(|(_, next)| next.at <= now)
                .map(|(name, _)| name.clone())
                .collect();
            let membership = self.membership.borrow().clone();
            if let (false, Some(membership)) = (due.is_empty(), membership) {
                let renewing = due.into_iter().map(|name| {
                    let (servers, membership) = (&self.servers, &membership);
                    async move {
                        let signed = sign(servers, membership, &name).await;
                        (name, signed)
                    }
                });
                let mut signed =
                    futures_util::stream::iter(renewing).buffer_unordered(SIGNING_AT_ONCE);
                while let Some((name, result)) = tokio::select! {
                    () = drain.cancelled() => return,
                    next = signed.next() => next,
                } {
                    if let Some(next) = plan.get_mut(&name) {
                        self.take(&name, result, next);
                    }
                }
            }
            let now = clock::now();
            let next = plan.values().map(|next| next.at.since(now)).min();
            let wait = match self.membership.borrow().is_some() {
                true => next.unwrap_or(LOOK_EVERY),
                // Nothing can be asked for before the host has joined, which wakes this loop.
                false => LOOK_EVERY,
            };
            tokio::select! {
                () = drain.cancelled() => return,
                () = sleep(wait.clamp(WAIT_MIN, LOOK_EVERY)) => {}
                changed = changes.changed() => if changed.is_err() { return },
                Ok(()) = self.views.changed() => {}
                Ok(()) = self.membership.changed() => self.hurry(&mut plan),
                Ok(()) = self.synced.changed() => self.hurry(&mut plan),
                Ok(()) = links.changed() => self.hurry(&mut plan),
            }
        }
    }

    /// Drops the credentials of services that run here no more.
    fn forget(&self, names: &BTreeSet<ServiceName>, plan: &mut BTreeMap<ServiceName, Next>) {
        plan.retain(|name, _| names.contains(name));
        let held = self.all.borrow().clone();
        let gone: Vec<&ServiceName> = held.keys().filter(|name| !names.contains(*name)).collect();
        if gone.is_empty() {
            return;
        }
        for name in &gone {
            if let Err(why) = disk::remove(&path(&self.folder, name)) {
                tracing::warn!(service = name.as_str(), %why, "a credential was not removed");
            }
        }
        let mut rest = BTreeMap::clone(&held);
        rest.retain(|name, _| names.contains(name));
        self.all.send_replace(Arc::new(rest));
    }

    fn schedule(&self, names: &BTreeSet<ServiceName>, plan: &mut BTreeMap<ServiceName, Next>) {
        let now = clock::now();
        let trust = self.views.borrow().trust.clone();
        let held = self.all.borrow().clone();
        for name in names {
            let credential = held.get(name);
            let next = plan.entry(name.clone()).or_insert_with(|| Next {
                at: match credential {
                    None => now,
                    Some(held) => held.validity.renew_at(now, clock::permille()).unwrap_or(now),
                },
                backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
                failing_since: None,
                is_hurried: false,
            });
            next.pull_in(credential.map(|held| &held.validity), now);
            if let (Some(trust), Some(held)) = (&trust, credential)
                && !trust.roots.is_empty()
                && !next.is_hurried
            {
                let SpiffeId { trust_domain, datacenter, .. } = held.id.clone();
                let anchors = Anchors::new(trust_domain, datacenter)
                    .services(trust.roots.iter().map(|root| &root[..]));
                // Spread, unless peers already refuse the old one.
                let wait = match anchors.verify(&held.chain, now) {
                    Ok(_) if !held.is_superseded(trust) && !held.is_revoked(trust) => continue,
                    Ok(_) if trust.issuing.root != held.issuer => {
                        clock::up_to(trust.issuing.reissue_within)
                    }
                    Ok(_) | Err(_) => Duration::ZERO,
                };
                next.is_hurried = true;
                // A server may know newer roots than this view does for a moment.
                let wait = wait.max(RENEW_GAP_MIN);
                next.at = next.at.min(now.plus(wait));
                tracing::info!(service = name.as_str(), ?wait, "another leaf is due");
            }
        }
    }

    /// What waits after a failure is tried soon: the reason may be gone.
    fn hurry(&self, plan: &mut BTreeMap<ServiceName, Next>) {
        let held = self.all.borrow().clone();
        let now = clock::now();
        for (name, next) in plan {
            if !held.contains_key(name) {
                next.at = next.at.min(now);
            } else if next.failing_since.is_some() {
                next.at = next.at.min(now.plus(clock::up_to(HURRY_WITHIN)));
            }
        }
    }

    fn take(&self, name: &ServiceName, result: Result<Credential, RenewError>, next: &mut Next) {
        let now = clock::now();
        match result {
            Ok(credential) => {
                next.backoff.reset();
                next.failing_since = None;
                next.at = credential.validity.renew_at(now, clock::permille()).unwrap_or(now);
                // Never in a tight loop, whatever a server signs.
                next.at = next.at.max(now.plus(RENEW_GAP_MIN));
                next.is_hurried = false;
                let kept = serde_json::to_vec(&credential.kept()).map_err(std::io::Error::from);
                let kept = kept.map(Zeroizing::new);
                if let Err(why) = kept.and_then(|b| disk::write(&path(&self.folder, name), &b)) {
                    tracing::error!(service = name.as_str(), %why, "a leaf was not kept on disk");
                }
                tracing::info!(
                    service = name.as_str(),
                    not_after_secs = credential.validity.not_after.as_secs(),
                    "a new leaf"
                );
                let mut all = BTreeMap::clone(&self.all.borrow());
                all.insert(name.clone(), Arc::new(credential));
                self.all.send_replace(Arc::new(all));
            }
            Err(why) => {
                next.at = now.plus(next.backoff.next());
                let since = *next.failing_since.get_or_insert(now);
                if now.since(since) >= TROUBLE_AFTER {
                    tracing::warn!(service = name.as_str(), %why, "no new leaf");
                } else {
                    // A new service is asked for before the catalog has it: that is no trouble.
                    tracing::debug!(service = name.as_str(), %why, "no new leaf yet");
                }
            }
        }
    }
}

async fn sign(
    servers: &Servers,
    membership: &Membership,
    name: &ServiceName,
) -> Result<Credential, RenewError> {
    let link = servers.link().ok_or(RenewError::CutOff)?;
    let request = Request::make()?;
    let ask = v1::SignLeafRequest { service: name.to_string(), csr: request.csr.clone() };
    let reply = timeout(CALL, link.client().sign_leaf(ask))
        .await
        .map_err(|_| RenewError::CutOff)?
        .map_err(Box::new)?;
    let expected = membership.beside(Role::Service(name.clone()));
    Ok(request.answered(reply.into_inner(), &expected)?)
}

fn path(folder: &Path, name: &ServiceName) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// What fails for no longer is how things start.
const TROUBLE_AFTER: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);
const SIGNING_AT_ONCE: usize = 4;
const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Spread a little, because a whole fleet may have been cut off at once.
const HURRY_WITHIN: Duration = Duration::from_secs(3);
const RENEW_GAP_MIN: Duration = Duration::from_secs(1);
const WAIT_MIN: Duration = Duration::from_millis(20);
const PERMILLE_MAX: u16 = 1000;
/// Sleeps are cut short, so that a clock that jumps is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clock_that_was_ahead_planned_is_pulled_in() {
        let noon = UnixTime::from_secs(1_000_000);
        let hour = |hours: u64| noon.plus(Duration::from_secs(hours * 3_600));
        let held = Validity { not_before: noon, not_after: hour(24) };
        let out = Validity { not_before: noon, not_after: noon };
        let latest = held.renew_at(noon, PERMILLE_MAX).expect("it holds");
        let soon = noon.plus(RENEW_GAP_MIN);
        let cases = [
            // the credential, whether it fails, the plan, expected, why
            (Some(&held), false, hour(13), hour(13), "as planned"),
            (Some(&held), false, hour(30), latest, "after it has run out: the clock was ahead"),
            (Some(&out), false, hour(30), soon, "it ran out: at once"),
            (Some(&out), false, soon, soon, "but in no tight loop"),
            (Some(&held), true, hour(30), noon.plus(BACKOFF_MAX), "a failure is tried again"),
            (None, false, hour(30), noon.plus(BACKOFF_MAX), "a new service waits for none"),
        ];
        for (held, fails, at, expected, why) in cases {
            let failing_since = fails.then(|| hour(30));
            let backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
            let mut next = Next { at, backoff, failing_since, is_hurried: true };
            next.pull_in(held, noon);
            assert_eq!(next.at, expected, "{why}");
            assert_eq!(next.is_hurried, at == expected, "{why}: planned anew");
            assert!(next.failing_since.is_none_or(|since| since <= noon), "{why}");
        }
    }
}
