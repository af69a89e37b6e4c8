//! Shares of rates: what instances ask for and what they are leased.

use hawser_core::name::ServiceName;
use hawser_core::share::{Ask, Lease, WHOLE_PPM};

use crate::field::{Invalid, parsed};
use crate::v1;

impl From<Lease> for v1::ShareLease {
    fn from(lease: Lease) -> Self {
        Self { id: lease.id, share_ppm: lease.share_ppm }
    }
}

impl TryFrom<v1::ShareLease> for Lease {
    type Error = Invalid;

    fn try_from(lease: v1::ShareLease) -> Result<Self, Invalid> {
        if lease.share_ppm > WHOLE_PPM {
            let why = format_args!("{} is more than the whole", lease.share_ppm);
            return Err(Invalid::new("share_lease.share_ppm", why));
        }
        Ok(Self { id: lease.id, share_ppm: lease.share_ppm })
    }
}

impl From<&Ask> for v1::ShareAsk {
    fn from(ask: &Ask) -> Self {
        Self {
            caller: ask.caller.as_ref().map(ServiceName::to_string).unwrap_or_default(),
            demand_ppm: ask.demand_ppm,
            holds: ask.holds.map(Into::into),
        }
    }
}

impl TryFrom<v1::ShareAsk> for Ask {
    type Error = Invalid;

    fn try_from(ask: v1::ShareAsk) -> Result<Self, Invalid> {
        let caller = match ask.caller.as_str() {
            "" => None,
            name => Some(parsed("share_ask.caller", name)?),
        };
        let holds = ask.holds.map(TryInto::try_into).transpose()?;
        Ok(Self { caller, demand_ppm: ask.demand_ppm, holds })
    }
}
