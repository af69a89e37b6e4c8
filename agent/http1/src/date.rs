//! The date: written once a second, for answers that carry none.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// The `Date` of now, formatted again only when the second has changed.
#[derive(Debug)]
pub struct Date {
    second: Cell<u64>,
    text: RefCell<HeaderValue>,
}

impl Default for Date {
    fn default() -> Self {
        Self { second: Cell::new(0), text: RefCell::new(formatted(0)) }
    }
}

impl Date {
    /// Calls `with` with the date of now.
    pub(crate) fn with(&self, with: impl FnOnce(&[u8])) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second.replace(since.as_secs()) != since.as_secs() {
            *self.text.borrow_mut() = formatted(since.as_secs());
        }
        with(self.text.borrow().as_bytes());
    }
}

fn formatted(second: u64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    HeaderValue::try_from(httpdate::fmt_http_date(time))
        .unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}
