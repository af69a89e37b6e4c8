//! Judging requests: what the guard in the view says of one, and what becomes of its tokens.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use hawser_core::jwt::{Bearer, Edit, KeyRing, Keys, Proved};
use hawser_core::permission::{Asked, By, Fields, Guard, Tokens, Unproven, Verdict};
use hawser_core::reason::Reason;
use hawser_core::view::View;
use hawser_identity::Signatures;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Uri};
use tokio_util::sync::CancellationToken;

use crate::relay::Moved;

struct Names<'a>(&'a HeaderMap);

impl Fields for Names<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        self.0.get_all(name).iter().for_each(|value| see(value.as_bytes()));
    }
}

/// What of a request is judged.
struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    authority: &'a Authority,
    headers: &'a HeaderMap,
}

impl Head<'_> {
    /// What the guard says of it by `tokens`, and what decided that: the reason for which it does
    /// not pass.
    fn judged(
        &self,
        guard: &Guard,
        view: &View,
        tokens: &mut dyn Tokens,
    ) -> (Option<By>, Result<(), Reason>) {
        let Some(trust) = &view.trust else { return (None, Err(Reason::ViewMissing)) };
        let asked = Asked {
            method: self.method.as_str(),
            path: self.uri.path(),
            authority: self.authority.as_str(),
            fields: &Names(self.headers),
        };
        match guard.decide(&asked, trust.default_action, tokens) {
            Verdict::Allowed(by) => (Some(by), Ok(())),
            Verdict::Denied(by) => (Some(by), Err(Reason::PermissionDenied)),
            Verdict::Unproven(Unproven::Missing) => (None, Err(Reason::TokenMissing)),
            Verdict::Unproven(Unproven::Invalid) => (None, Err(Reason::TokenInvalid)),
            Verdict::Unproven(Unproven::NoKeys) => (None, Err(Reason::TokenKeysMissing)),
        }
    }
}

/// Judges a request, and changes in it what its tokens' providers say. Answers what decided, and
/// what they proved or the reason for which it does not pass.
pub(crate) fn judge<B>(
    guard: Option<&Guard>,
    view: &View,
    keys: &KeyRing,
    request: &mut Request<B>,
    authority: &Authority,
) -> (Option<By>, Result<Proved, Reason>) {
    // Claims are the proxy's word: a caller has no say in them, with or without a token.
    for provider in view.providers.values() {
        if let Some(forwarding) = &provider.forwarding {
            request.headers_mut().remove(forwarding.header_name.as_str());
        }
    }
    let Some(guard) = guard else { return (None, Ok(Proved::default())) };
    let head = Head {
        method: request.method(),
        uri: request.uri(),
        authority,
        headers: request.headers(),
    };
    let fields = Names(head.headers);
    let brought = (head.uri.query().unwrap_or_default(), &fields as &dyn Fields);
    let keys = Keys { inline: &view.inline_keys, fetched: keys };
    let mut bearer = Bearer::new(&view.providers, keys, &Signatures, brought, crate::clock::wall());
    let (by, judged) = head.judged(guard, view, &mut bearer);
    if let Err(reason) = judged {
        return (by, Err(reason));
    }
    let (edits, proved) = (bearer.edits(), bearer.proved());
    for edit in edits {
        match edit {
            Edit::Drop(name) => {
                request.headers_mut().remove(name.as_str());
            }
            Edit::Set(name, value) => {
                let pair = (HeaderName::try_from(name), HeaderValue::try_from(value));
                let (Ok(name), Ok(value)) = pair else {
                    return (by, Err(Reason::TokenInvalid));
                };
                request.headers_mut().insert(name, value);
            }
        }
    }
    (by, Ok(proved))
}

/// The head of a request that was let in: judged again with every view, for as long as it, or the
/// connection that it became, is under way.
pub(crate) struct UnderWay {
    method: Method,
    uri: Uri,
    authority: Authority,
    /// As they came, tokens and all.
    headers: HeaderMap,
    /// What its tokens proved then. That they run out meanwhile, or that keys change, cuts nothing.
    proved: Proved,
    /// Cancelled when it is no longer allowed.
    pub(crate) cut: CancellationToken,
    /// Does what is left to do when it has ended.
    ending: RefCell<Option<Ending>>,
}

/// Told what a connection moved, and why it ended.
type Ending = Box<dyn FnOnce((Moved, Result<(), Reason>))>;

impl UnderWay {
    /// Keeps what of `request` is judged, with the header fields that it came with and what its
    /// tokens proved; it is cut with `parent` at the latest.
    pub(crate) fn new<B>(
        request: &Request<B>,
        authority: &Authority,
        (headers, proved): (HeaderMap, Proved),
        parent: &CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            authority: authority.clone(),
            headers,
            proved,
            cut: parent.child_token(),
            ending: RefCell::default(),
        })
    }

    /// Does so when the connection that it becomes has ended, and holds until then what that needs.
    pub(crate) fn then(&self, ending: impl FnOnce((Moved, Result<(), Reason>)) + 'static) {
        *self.ending.borrow_mut() = Some(Box::new(ending));
    }

    /// The connection that it became has ended so.
    pub(crate) fn ended(&self, relayed: (Moved, Result<(), Reason>)) {
        let ending = self.ending.borrow_mut().take();
        if let Some(ending) = ending {
            ending(relayed);
        }
    }
}

/// The requests under way in one connection.
#[derive(Default)]
pub(crate) struct Kept {
    all: RefCell<Vec<Weak<UnderWay>>>,
    /// So many are kept before those are looked for that have ended.
    room: Cell<usize>,
}

impl Kept {
    /// Judges `request` again with every view, for as long as somebody else holds it.
    pub(crate) fn keep(&self, request: &Rc<UnderWay>) {
        let mut all = self.all.borrow_mut();
        if all.len() >= self.room.get() {
            all.retain(|kept| kept.strong_count() > 0);
            // Twice what is left: so looking costs no more than what came since the last time.
            self.room.set(ROOM_MIN.max(2 * all.len()));
        }
        all.push(Rc::downgrade(request));
    }

    /// Judges each again by what its tokens proved, and cuts those that are no longer allowed.
    /// Answers those.
    pub(crate) fn judge(&self, guard: Option<&Arc<Guard>>, view: &View) -> Vec<Weak<UnderWay>> {
        let Some(guard) = guard else { return Vec::new() };
        let is_denied = |kept: &&Weak<UnderWay>| {
            let Some(request) = kept.upgrade().filter(|it| !it.cut.is_cancelled()) else {
                return false;
            };
            let UnderWay { method, uri, authority, headers, proved, .. } = &*request;
            let head = Head { method, uri, authority, headers };
            let is_denied = head.judged(guard, view, &mut proved.clone()).1.is_err();
            if is_denied {
                request.cut.cancel();
            }
            is_denied
        };
        self.all.borrow().iter().filter(is_denied).cloned().collect()
    }
}

/// Fewer are never looked through for those that have ended.
const ROOM_MIN: usize = 8;
