//! `FaultInjection` and `Mirror` of routes, ours: faults that are made on purpose, and copies.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fault::{Fault, check_label, check_service, check_span};
use crate::duration;

/// A share of requests: percent, to the hundredth.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Percentage(pub u16);

impl Percentage {
    /// Whether a request is of the share, by a uniformly distributed `draw`.
    pub const fn takes(self, draw: u64) -> bool {
        draw % WHOLE < self.0 as u64
    }

    fn check(self, field: String) -> Result<(), Fault> {
        match self.0 {
            0 => Err(Fault::new(field, "it must be above 0 and at most 100")),
            _ => Ok(()),
        }
    }
}

impl Serialize for Percentage {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl<'de> Deserialize<'de> for Percentage {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(from)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(serde::de::Error::custom("a percentage must be from 0 to 100"));
        }
        // Within bounds.
        Ok(Self((percent * 100.0).round() as u16))
    }
}

/// Faults that the requests of a route meet: a delay first, then an abort, and an answer at a
/// bounded rate for what is left.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct FaultInjection {
    /// A wait before they are sent.
    #[serde(alias = "delay", skip_serializing_if = "Option::is_none")]
    pub delay: Option<InjectedDelay>,
    /// An answer in their place.
    #[serde(alias = "abort", skip_serializing_if = "Option::is_none")]
    pub abort: Option<InjectedAbort>,
    /// A bound to how fast answers arrive.
    #[serde(alias = "bandwidth", skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<InjectedBandwidth>,
}

/// A wait before requests are sent; it counts against their timeout.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct InjectedDelay {
    /// Which share of them.
    #[serde(alias = "percentage")]
    pub percentage: Percentage,
    /// How long.
    #[serde(
        alias = "duration",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub duration: Option<Duration>,
}

/// An answer in place of the application's.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct InjectedAbort {
    /// Which share of requests.
    #[serde(alias = "percentage")]
    pub percentage: Percentage,
    /// Its status; zero is 503.
    #[serde(rename = "HTTPStatus", alias = "http_status", skip_serializing_if = "is_zero")]
    pub http_status: u16,
    /// Its status where the request is gRPC; left out is 14, unavailable.
    #[serde(rename = "GRPCStatus", alias = "grpc_status", skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
}

/// A bound to how fast answers arrive.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct InjectedBandwidth {
    /// Which share of requests.
    #[serde(alias = "percentage")]
    pub percentage: Percentage,
    /// Bytes of each answer's body in a second.
    #[serde(alias = "bytes_per_second")]
    pub bytes_per_second: u64,
}

/// What one request meets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Injected {
    /// How long it waits first.
    pub delay: Option<Duration>,
    /// What it is answered with instead: a status, and gRPC's.
    pub abort: Option<(u16, u8)>,
    /// Bytes of its answer's body in a second.
    pub bytes_per_second: Option<u64>,
}

/// Where copies of the requests of a route go. Their answers go nowhere.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Mirror {
    /// The service.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// Which share of requests.
    #[serde(alias = "percentage")]
    pub percentage: Percentage,
}

impl FaultInjection {
    /// What a request meets, by uniformly distributed draws: one for each fault that there is.
    pub fn draw(&self, mut draw: impl FnMut() -> u64) -> Injected {
        let delay = self.delay.as_ref().filter(|it| it.percentage.takes(draw()));
        let delay = delay.and_then(|delay| delay.duration);
        if let Some(abort) = self.abort.as_ref().filter(|it| it.percentage.takes(draw())) {
            let status = if abort.http_status == 0 { HTTP_STATUS } else { abort.http_status };
            let abort = Some((status, abort.grpc_status.unwrap_or(GRPC_STATUS)));
            return Injected { delay, abort, bytes_per_second: None };
        }
        let slow = self.bandwidth.as_ref().filter(|it| it.percentage.takes(draw()));
        Injected { delay, abort: None, bytes_per_second: slow.map(|it| it.bytes_per_second) }
    }

    pub(super) fn check(&self, at: &str) -> Result<(), Fault> {
        if let Some(delay) = &self.delay {
            delay.percentage.check(format!("{at}.Delay.Percentage"))?;
            let field = format!("{at}.Delay.Duration");
            if delay.duration.is_none() {
                return Err(Fault::new(field, "it is missing"));
            }
            check_span(&field, delay.duration, DELAY_MAX)?;
        }
        if let Some(abort) = &self.abort {
            abort.percentage.check(format!("{at}.Abort.Percentage"))?;
            if abort.http_status != 0 && !(400..600).contains(&abort.http_status) {
                let why = "use 400 to 599";
                return Err(Fault::new(format!("{at}.Abort.HTTPStatus"), why));
            }
            if abort.grpc_status.is_some_and(|status| !(1..=16).contains(&status)) {
                return Err(Fault::new(format!("{at}.Abort.GRPCStatus"), "use 1 to 16"));
            }
        }
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.percentage.check(format!("{at}.Bandwidth.Percentage"))?;
            if bandwidth.bytes_per_second == 0 {
                let field = format!("{at}.Bandwidth.BytesPerSecond");
                return Err(Fault::new(field, "it must be above 0: use Abort for no answer"));
            }
        }
        Ok(())
    }
}

impl Mirror {
    pub(super) fn check(&self, at: &str) -> Result<(), Fault> {
        check_service(&format!("{at}.Service"), &self.service)?;
        check_label(&format!("{at}.ServiceSubset"), &self.service_subset)?;
        if self.service.is_empty() && self.service_subset.is_empty() {
            return Err(Fault::new(at, "name a Service or a ServiceSubset"));
        }
        self.percentage.check(format!("{at}.Percentage"))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_zero(number: &u16) -> bool {
    *number == 0
}

const WHOLE: u64 = 10_000;
const HTTP_STATUS: u16 = 503;
const GRPC_STATUS: u8 = 14;
const DELAY_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> FaultInjection {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let cases = [
            (r#"{"Delay":{"Duration":"1s"}}"#, "F.Delay.Percentage"),
            (r#"{"Delay":{"Percentage":5}}"#, "F.Delay.Duration"),
            (r#"{"Delay":{"Percentage":5,"Duration":"2h"}}"#, "F.Delay.Duration"),
            (r#"{"Abort":{"Percentage":0,"HTTPStatus":500}}"#, "F.Abort.Percentage"),
            (r#"{"Abort":{"Percentage":5,"HTTPStatus":200}}"#, "F.Abort.HTTPStatus"),
            (r#"{"Abort":{"Percentage":5,"GRPCStatus":17}}"#, "F.Abort.GRPCStatus"),
            (r#"{"Bandwidth":{"Percentage":5}}"#, "F.Bandwidth.BytesPerSecond"),
        ];
        for (json, expected) in cases {
            assert_eq!(faults(json).check("F").expect_err(json).field, expected);
        }
        for (json, expected) in [
            (r#"{"Percentage":5}"#, "M"),
            (r#"{"Service":"A","Percentage":5}"#, "M.Service"),
            (r#"{"Service":"a"}"#, "M.Percentage"),
        ] {
            let mirror: Mirror = serde_json::from_str(json).expect(json);
            assert_eq!(mirror.check("M").expect_err(json).field, expected);
        }
        assert!(serde_json::from_str::<Mirror>(r#"{"Percentage":101}"#).is_err());
    }

    #[test]
    fn faults_take_their_share_one_after_another() {
        let all = faults(
            r#"{"Delay":{"Percentage":20,"Duration":"1s"},
                "Abort":{"Percentage":50,"HTTPStatus":418,"GRPCStatus":8},
                "Bandwidth":{"Percentage":10,"BytesPerSecond":100}}"#,
        );
        // Every combination of hundredths of three draws, coarsely.
        let (mut delayed, mut aborted, mut slow, mut count) = (0, 0, 0, 0);
        for a in 0..20_u64 {
            for b in 0..20_u64 {
                for c in 0..20_u64 {
                    let mut draws = [a, b, c].map(|it| it * 500).into_iter();
                    let met = all.draw(|| draws.next().expect("three at most"));
                    count += 1;
                    delayed += i32::from(met.delay == Some(Duration::from_secs(1)));
                    aborted += i32::from(met.abort == Some((418, 8)));
                    slow += i32::from(met.bytes_per_second == Some(100));
                    assert!(met.abort.is_none() || met.bytes_per_second.is_none());
                }
            }
        }
        // A tenth of the half that is not aborted.
        assert_eq!((delayed * 100, aborted * 100, slow * 100), (count * 20, count * 50, count * 5));
        let usual = faults(r#"{"Abort":{"Percentage":100}}"#).draw(|| 9_999);
        assert_eq!(usual.abort, Some((503, 14)));
        assert_eq!(faults("{}").draw(|| 0), Injected::default());
    }
}
