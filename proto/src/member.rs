//! A member of the Raft cluster: who it is and where it is dialled.

use hawser_core::name::NodeName;

use crate::field::{Invalid, parsed};
use crate::v1;

/// One server, as servers and agents tell each other of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Drawn at its first start; never zero.
    pub id: u64,
    /// Its node name.
    pub name: NodeName,
    /// `host:port` that servers and agents dial.
    pub address: String,
}

impl From<&Member> for v1::Member {
    fn from(member: &Member) -> Self {
        Self { id: member.id, name: member.name.to_string(), address: member.address.clone() }
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = Invalid;

    /// # Errors
    /// No id, a malformed name, or an address that is not `host:port` with a port above zero.
    fn try_from(member: v1::Member) -> Result<Self, Invalid> {
        if member.id == 0 {
            return Err(Invalid::new("member.id", "it is missing"));
        }
        let name = parsed("member.name", &member.name)?;
        let port = member
            .address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(Invalid::new("member.address", "it is not host:port"));
        }
        Ok(Self { id: member.id, name, address: member.address })
    }
}
