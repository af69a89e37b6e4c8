//! Limits: every bound and every timeout of the data plane, with its default.

use std::time::Duration;

/// Bounds and timeouts. What a service's chain says about timeouts outranks these.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// How many workers share what counts for the host.
    pub workers: u32,
    /// Most connections accepted at once, over all listeners and workers.
    pub connections: usize,
    /// Most HTTP requests under way at once, over all listeners and workers.
    pub requests: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Most TLS handshakes of callers under way at once, over all workers.
    pub handshakes: usize,
    /// Most of them from one address, over all workers.
    pub handshakes_per_address: usize,
    /// Longest time from the first byte of an HTTP/1.1 request's head to its last.
    pub head: Duration,
    /// How long an HTTP/1.1 connection may wait for a request; after a request up to twice as long.
    pub http_idle: Duration,
    /// How long an application may be silent where its protocol is detected, before it is taken for
    /// one that waits to be spoken to.
    pub detect: Duration,
    /// Longest time in which nothing comes of a request's body that is not over.
    pub request_idle: Duration,
    /// Longest time that nothing moves on a TCP connection.
    pub tcp_idle: Duration,
    /// How long an mTLS connection without TCP streams is kept for the next.
    pub session_idle: Duration,
    /// Longest try of a request while another try is possible and within the budget.
    pub per_try: Duration,
    /// Most tries after the first.
    pub retries: u8,
    /// Largest request body that is kept for another try, in bytes.
    pub replay_bytes: u64,
    /// Retries may be this share of the requests of the last ten seconds, in percent.
    pub retry_budget_percent: u8,
    /// Retries per second that are allowed whatever the share.
    pub retry_budget_floor: u32,
    /// Most instances that one connection or request tries without reaching an application.
    pub connect_tries: u8,
    /// Most streams in one HTTP/2 connection.
    pub streams: u32,
    /// Most HTTP/2 connections from one worker to one instance, for one source service.
    pub connections_per_endpoint: usize,
    /// Most bytes of all header fields of a message.
    pub header_bytes: u32,
    /// Most header fields of a message.
    pub headers: usize,
    /// Longest request target, in bytes.
    pub target_bytes: usize,
    /// How often a silent HTTP/2 connection is asked whether it lives.
    pub ping_interval: Duration,
    /// Longest wait for that answer.
    pub ping_timeout: Duration,
    /// How often a silent HTTP/2 connection to another cluster is asked whether it lives.
    pub peer_ping_interval: Duration,
    /// Longest wait for that answer: longer than a lost packet takes to be sent again.
    pub peer_ping_timeout: Duration,
    /// Longest that sent bytes stay unacknowledged in a connection that many share.
    pub user_timeout: Duration,
    /// How long an idle connection to the application is kept.
    pub application_idle: Duration,
    /// Most idle connections to one application, per worker.
    pub application_pool: usize,
}

impl Limits {
    /// The share of one of `workers` where each counts by itself.
    pub(crate) fn of_one(mut self, workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        self.retry_budget_floor = self.retry_budget_floor.div_ceil(workers);
        self.workers = workers;
        self
    }

    /// Those of one HTTP/1.1 connection.
    pub(crate) fn http1(&self) -> hawser_http1::Limits {
        hawser_http1::Limits {
            head_bytes: self.header_bytes as usize,
            fields: self.headers,
            target_bytes: self.target_bytes,
            head: self.head,
            idle: self.http_idle,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 1,
            connections: 65_536,
            requests: 65_536,
            handshake: Duration::from_secs(5),
            handshakes: 1_024,
            handshakes_per_address: 128,
            head: Duration::from_secs(30),
            http_idle: Duration::from_secs(300),
            detect: Duration::from_secs(1),
            request_idle: Duration::from_secs(30),
            tcp_idle: Duration::from_secs(3_600),
            session_idle: Duration::from_secs(60),
            per_try: Duration::from_secs(2),
            retries: 2,
            replay_bytes: 64 * 1024,
            retry_budget_percent: 20,
            retry_budget_floor: 3,
            connect_tries: 8,
            streams: 100,
            connections_per_endpoint: 32,
            header_bytes: 64 * 1024,
            headers: 100,
            target_bytes: 8 * 1024,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            peer_ping_interval: Duration::from_millis(500),
            peer_ping_timeout: Duration::from_secs(1),
            user_timeout: Duration::from_secs(10),
            application_idle: Duration::from_secs(3),
            application_pool: 256,
        }
    }
}
