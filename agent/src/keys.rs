//! Keys of token providers: read and fetched before they are needed, kept while newer ones fail.
//!
//! Tasks: none of its own; [`run`] is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hawser_core::entry::JwtProvider;
use hawser_core::jwks::KeySet;
use hawser_core::jwt::KeyRing;
use hawser_core::view::View;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// One provider whose keys are elsewhere.
struct Source {
    provider: Arc<JwtProvider>,
    keys: Option<Arc<KeySet>>,
    due: Instant,
    /// Whether an answer is waited for.
    is_looking: bool,
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
/// that it took out of its set is gone with the next set that can be had. Each provider is waited
/// for by itself: one that is slow holds up no other.
pub(crate) async fn run(
    mut views: watch::Receiver<Arc<View>>,
    ring: watch::Sender<Arc<KeyRing>>,
    drain: CancellationToken,
) {
    let mut sources: BTreeMap<Arc<str>, Source> = BTreeMap::new();
    let mut looking = FuturesUnordered::new();
    loop {
        let view = views.borrow_and_update().clone();
        adopt(&mut sources, &view);
        publish(&sources, &ring);
        let now = Instant::now();
        for (name, source) in sources.iter_mut().filter(|(_, source)| source.is_due(now)) {
            source.is_looking = true;
            looking.push(look(name.clone(), source.provider.clone()));
        }
        let due = sources.values().filter(|source| !source.is_looking).map(|source| source.due);
        let due = due.min();
        let wait = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drain.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
            Some(found) = looking.next(), if !looking.is_empty() => take(&mut sources, found),
            () = wait => {}
        }
    }
}

/// What came of looking at one provider.
struct Found {
    name: Arc<str>,
    provider: Arc<JwtProvider>,
    /// The keys, and when to look again.
    keys: Result<(KeySet, Duration), String>,
}

impl Source {
    fn is_due(&self, now: Instant) -> bool {
        !self.is_looking && self.due <= now
    }
}

/// Takes in what was found at a provider, if that is still the one that is meant.
fn take(sources: &mut BTreeMap<Arc<str>, Source>, found: Found) {
    let Found { name, provider, keys } = found;
    let source = sources.get_mut(&name);
    let Some(source) = source.filter(|source| Arc::ptr_eq(&source.provider, &provider)) else {
        return;
    };
    source.is_looking = false;
    match keys {
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
            is_looking: false,
            failures: 0,
        });
    }
}

async fn look(name: Arc<str>, provider: Arc<JwtProvider>) -> Found {
    let keys = fetch(&provider).await;
    Found { name, provider, keys }
}

async fn fetch(provider: &JwtProvider) -> Result<(KeySet, Duration), String> {
    let (octets, every) = match origin(provider) {
        Some(Origin::File(file)) => {
            let read = tokio::time::timeout(FILE_WITHIN, read_file(file)).await;
            let octets = read.map_err(|_| format!("{file}: it cannot be read in time"))?;
            (octets.map_err(|why| format!("{file}: {why}"))?, FILE_EVERY)
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

/// Reads a file as far as a key set may be long, and one octet more. What is no plain file, as a
/// pipe or a device, may never end, and is not opened.
async fn read_file(file: &str) -> std::io::Result<Vec<u8>> {
    if !tokio::fs::metadata(file).await?.is_file() {
        return Err(std::io::Error::other("it is no plain file"));
    }
    let file = tokio::fs::File::open(file).await?;
    let mut octets = Vec::new();
    file.take(SET_OCTETS_MAX as u64 + 1).read_to_end(&mut octets).await?;
    Ok(octets)
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
const FILE_WITHIN: Duration = Duration::from_secs(5);
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

    #[tokio::test]
    async fn a_slow_provider_holds_up_no_other_and_a_long_file_is_not_read() {
        // It accepts, and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/keys", silent.local_addr().expect("bound"));
        let mut good = tempfile::NamedTempFile::new().expect("a file");
        good.write_all(set("good").as_bytes()).expect("written");
        let mut long = tempfile::NamedTempFile::new().expect("a file");
        let padding = " ".repeat(SET_OCTETS_MAX);
        long.write_all(format!("{padding}{}", set("long")).as_bytes()).expect("written");
        let file = |file: &tempfile::NamedTempFile| {
            let path = file.path().to_str().expect("UTF-8");
            format!(r#"{{"JSONWebKeySet":{{"Local":{{"Filename":"{path}"}}}}}}"#)
        };
        let remote = format!(
            r#"{{"JSONWebKeySet":{{"Remote":{{"URI":"{url}","RequestTimeoutMs":600000}}}}}}"#
        );
        let device = r#"{"JSONWebKeySet":{"Local":{"Filename":"/dev/zero"}}}"#.to_owned();
        let read = |json: &str| Arc::new(serde_json::from_str(json).expect("Consul's shape"));
        let all = |names: &[(&str, &str)]| {
            let providers = names.iter().map(|(name, json)| ((*name).into(), read(json)));
            Arc::new(View { providers: Arc::new(providers.collect()), ..View::default() })
        };
        let (first, second) = (file(&long), file(&good));
        let views = watch::Sender::new(all(&[("slow", &remote)]));
        let ring = watch::Sender::new(Arc::new(KeyRing::new()));
        let drain = CancellationToken::new();
        let running = tokio::spawn(run(views.subscribe(), ring.clone(), drain.clone()));
        let mut seen = ring.subscribe();
        views.send_replace(all(&[
            ("slow", &remote),
            ("long", &first),
            ("device", &device),
            ("good", &second),
        ]));
        let waited = tokio::time::timeout(
            Duration::from_secs(30),
            seen.wait_for(|ring| ring.contains_key("good")),
        );
        assert_eq!(waited.await.expect("in time").expect("it runs").len(), 1);
        let why = fetch(&read(&first)).await.expect_err("too long");
        assert!(why.contains("more than"), "{why}");
        let why = fetch(&read(&device)).await.expect_err("endless");
        assert!(why.contains("no plain file"), "{why}");
        drain.cancel();
        running.await.expect("it ends");
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
