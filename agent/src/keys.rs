//! Keys of token providers: read and fetched before they are needed, kept while newer ones fail.
//!
//! Tasks: none of its own; [`run`] is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hawser_core::entry::JwtProvider;
use hawser_core::jwks::KeySet;
use hawser_core::jwt::KeyRing;
use hawser_core::view::View;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// One provider whose keys are elsewhere.
struct Source {
    provider: Arc<JwtProvider>,
    keys: Option<Arc<KeySet>>,
    due: Instant,
    failures: u32,
}

/// Where a provider's keys come from, and how often they are looked at.
enum Origin<'a> {
    File(&'a str),
    Web { url: &'a str, within: Duration, every: Duration },
}

fn origin(provider: &JwtProvider) -> Option<Origin<'_>> {
    if let Some(remote) = &provider.keys.remote {
        let within = match remote.request_timeout_ms {
            0 => REQUEST_TIMEOUT,
            given => Duration::from_millis(given.into()),
        };
        let every = remote.cache_duration.unwrap_or(CACHE_DURATION).max(CACHE_DURATION_MIN);
        return Some(Origin::Web { url: &remote.uri, within, every });
    }
    let file = provider.keys.local.as_ref().map(|local| local.filename.as_str());
    file.filter(|file| !file.is_empty()).map(Origin::File)
}

/// Keeps `ring` filled with the keys of those providers in the view that do not hold them
/// themselves, until `drain`.
///
/// Keys that could not be had anew stay: a provider that is down takes nobody's access, and a key
/// that it took out of its set is gone with the next set that can be had.
pub(crate) async fn run(
    mut views: watch::Receiver<Arc<View>>,
    ring: watch::Sender<Arc<KeyRing>>,
    drain: CancellationToken,
) {
    let mut sources: BTreeMap<Arc<str>, Source> = BTreeMap::new();
    loop {
        let view = views.borrow_and_update().clone();
        adopt(&mut sources, &view);
        // Keys that an entry names no more count no more, however slow the others are.
        publish(&sources, &ring);
        refresh(&mut sources).await;
        publish(&sources, &ring);
        let due = sources.values().map(|source| source.due).min();
        let wait = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drain.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
            () = wait => {}
        }
    }
}

/// Takes over which providers there are. What an entry says now counts at once.
fn adopt(sources: &mut BTreeMap<Arc<str>, Source>, view: &View) {
    let named = view.providers.iter().filter(|(_, provider)| origin(provider).is_some());
    sources.retain(|name, source| {
        view.providers.get(name).is_some_and(|provider| provider.keys == source.provider.keys)
    });
    for (name, provider) in named {
        sources.entry(name.clone()).or_insert_with(|| Source {
            provider: provider.clone(),
            keys: None,
            due: Instant::now(),
            failures: 0,
        });
    }
}

/// Reads and fetches all that is due, at once.
async fn refresh(sources: &mut BTreeMap<Arc<str>, Source>) {
    let now = Instant::now();
    let due = sources.iter_mut().filter(|(_, source)| source.due <= now);
    join_all(due.map(|(name, source)| async move {
        match look(&source.provider).await {
            Ok((keys, every)) => {
                (source.failures, source.due) = (0, Instant::now() + every);
                source.keys = Some(Arc::new(keys));
            }
            Err(why) => {
                source.failures = source.failures.saturating_add(1);
                let span = RETRY * 2_u32.saturating_pow(source.failures - 1).min(RETRY_FACTOR_MAX);
                source.due = Instant::now() + span;
                let has_keys = source.keys.is_some();
                tracing::warn!(provider = %name, %why, has_keys, "keys of a provider not renewed");
            }
        }
    }))
    .await;
}

async fn look(provider: &JwtProvider) -> Result<(KeySet, Duration), String> {
    let (octets, every) = match origin(provider) {
        Some(Origin::File(file)) => {
            let octets = tokio::fs::read(file).await.map_err(|why| format!("{file}: {why}"))?;
            (octets, FILE_EVERY)
        }
        Some(Origin::Web { url, within, every }) => {
            let octets = hawser_aws::get(url, within).await.map_err(|why| why.to_string())?;
            (octets.to_vec(), every)
        }
        None => return Err("it holds its keys itself".to_owned()),
    };
    if octets.len() > SET_OCTETS_MAX {
        return Err(format!("more than {SET_OCTETS_MAX} bytes"));
    }
    let keys = KeySet::read(&octets).map_err(|why| why.to_string())?;
    Ok((keys, every))
}

fn publish(sources: &BTreeMap<Arc<str>, Source>, ring: &watch::Sender<Arc<KeyRing>>) {
    let held = |(name, source): (&Arc<str>, &Source)| Some((name.clone(), source.keys.clone()?));
    let new: KeyRing = sources.iter().filter_map(held).collect();
    ring.send_if_modified(|ring| {
        let is_new = **ring != new;
        if is_new {
            *ring = Arc::new(new);
        }
        is_new
    });
}

/// Consul's default.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);
const CACHE_DURATION: Duration = Duration::from_secs(300);
const CACHE_DURATION_MIN: Duration = Duration::from_secs(1);
const FILE_EVERY: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// After a minute it is asked once a minute.
const RETRY_FACTOR_MAX: u32 = 60;
const SET_OCTETS_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn set(id: &str) -> String {
        // 32 octets of 1, base64 for URLs.
        let x = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"{x}"}}]}}"#)
    }

    fn view(file: &str) -> Arc<View> {
        let json = format!(r#"{{"JSONWebKeySet":{{"Local":{{"Filename":"{file}"}}}}}}"#);
        let provider = Arc::new(serde_json::from_str(&json).expect("Consul's shape"));
        let providers = Arc::new([("okta".into(), provider)].into());
        Arc::new(View { providers, ..View::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_kept_until_there_are_newer_ones() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("UTF-8").to_owned();
        let views = watch::Sender::new(view(&path));
        let ring = watch::Sender::new(Arc::new(KeyRing::new()));
        let drain = CancellationToken::new();
        let running = tokio::spawn(run(views.subscribe(), ring.clone(), drain.clone()));
        let mut seen = ring.subscribe();
        // An empty file is no key set: it is looked at again until it is one.
        let mut until = async |id: Option<&str>| {
            let is = |ring: &Arc<KeyRing>| {
                ring.get("okta").and_then(|set| set.keys[0].id.as_deref()) == id
            };
            let waited = tokio::time::timeout(Duration::from_secs(600), seen.wait_for(is)).await;
            waited.expect("in time").expect("it runs");
        };
        until(None).await;
        file.write_all(set("one").as_bytes()).expect("written");
        until(Some("one")).await;
        std::fs::write(&path, "broken").expect("written");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(ring.borrow()["okta"].keys[0].id.as_deref(), Some("one"), "the last good ones");
        std::fs::write(&path, set("two")).expect("written");
        until(Some("two")).await;
        views.send_replace(Arc::default());
        until(None).await;
        drain.cancel();
        running.await.expect("it ends");
    }
}
