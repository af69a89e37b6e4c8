//! The alert: how a gateway that speaks no TLS tells a TLS client that it is refused.

use hawser_core::reason::Reason;

/// The record of the fatal alert that stands for `reason` (RFC 8446, section 6).
///
/// What is refused by its name is `unrecognized_name`, and asking again is of no use; what cannot
/// be reached now is `internal_error`.
pub(crate) const fn record(reason: Reason) -> [u8; 7] {
    let description = match reason {
        Reason::NoEndpoint
        | Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::GatewayUnavailable
        | Reason::ViewMissing
        | Reason::Overloaded
        | Reason::Draining => INTERNAL_ERROR,
        _ => UNRECOGNIZED_NAME,
    };
    [ALERT, 3, 3, 0, 2, FATAL, description]
}

const ALERT: u8 = 21;
const FATAL: u8 = 2;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_says_whether_asking_again_helps() {
        for (reason, description) in [
            (Reason::NotExported, UNRECOGNIZED_NAME),
            (Reason::UnknownName, UNRECOGNIZED_NAME),
            (Reason::LocalName, UNRECOGNIZED_NAME),
            (Reason::Plaintext, UNRECOGNIZED_NAME),
            (Reason::HandshakeTimeout, UNRECOGNIZED_NAME),
            (Reason::NoEndpoint, INTERNAL_ERROR),
            (Reason::ConnectFailed, INTERNAL_ERROR),
            (Reason::GatewayUnavailable, INTERNAL_ERROR),
        ] {
            assert_eq!(record(reason), [21, 3, 3, 0, 2, 2, description], "{reason}");
        }
    }
}
