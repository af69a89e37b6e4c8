//! Where what is sent to a service goes: routes, shares and ends.

use std::sync::Arc;

use hawser_core::discovery::Destination;
use hawser_core::entry::Weight;
use hawser_core::view::{RouteView, Routing, ServiceView, SplitView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::field::{Invalid, each, required};
use crate::v1;

impl From<&Routing> for v1::Routing {
    fn from(routing: &Routing) -> Self {
        let end = |(destination, service): &(Destination, Arc<ServiceView>)| v1::End {
            subset: destination.subset.as_deref().unwrap_or_default().to_owned(),
            service: Some((&**service).into()),
        };
        Self {
            routes: routing.routes.iter().map(Into::into).collect(),
            ends: routing.ends.iter().map(end).collect(),
        }
    }
}

impl TryFrom<v1::Routing> for Routing {
    type Error = Invalid;

    fn try_from(routing: v1::Routing) -> Result<Self, Invalid> {
        let end = |end: v1::End| {
            let service: ServiceView = required("end.service", end.service)?;
            let destination = Destination {
                service: service.chain.service.clone(),
                subset: (!end.subset.is_empty()).then(|| end.subset.into()),
                peer: service.peer.clone(),
            };
            Ok((destination, Arc::new(service)))
        };
        let ends: Vec<_> = routing.ends.into_iter().map(end).collect::<Result<_, Invalid>>()?;
        let routes: Vec<RouteView> = each(routing.routes)?;
        let mut splits = routes.iter().flat_map(|route| &route.splits);
        if splits.any(|split| split.end >= ends.len()) {
            return Err(Invalid::new("split_view.end", "there is no such end"));
        }
        if routes.iter().any(|route| route.mirror.is_some_and(|end| end >= ends.len())) {
            return Err(Invalid::new("route_view.mirror", "there is no such end"));
        }
        Ok(Self { routes, ends })
    }
}

impl From<&RouteView> for v1::RouteView {
    fn from(route: &RouteView) -> Self {
        Self {
            definition_json: json_out(route.definition.as_ref()),
            sticky_json: json_out(route.sticky.as_ref()),
            splits: route.splits.iter().map(Into::into).collect(),
            mirror: route.mirror.map(|end| u32::try_from(end).unwrap_or(u32::MAX)),
        }
    }
}

impl TryFrom<v1::RouteView> for RouteView {
    type Error = Invalid;

    fn try_from(route: v1::RouteView) -> Result<Self, Invalid> {
        Ok(Self {
            definition: json_in("route_view.definition_json", &route.definition_json)?,
            sticky: json_in("route_view.sticky_json", &route.sticky_json)?,
            splits: each(route.splits)?,
            mirror: route.mirror.map(|end| end as usize),
        })
    }
}

impl From<&SplitView> for v1::SplitView {
    fn from(split: &SplitView) -> Self {
        Self {
            weight: split.weight.0.into(),
            end: u32::try_from(split.end).unwrap_or(u32::MAX),
            request_headers_json: json_out(split.request_headers.as_ref()),
            response_headers_json: json_out(split.response_headers.as_ref()),
        }
    }
}

impl TryFrom<v1::SplitView> for SplitView {
    type Error = Invalid;

    fn try_from(split: v1::SplitView) -> Result<Self, Invalid> {
        let weight = u16::try_from(split.weight);
        let weight = weight.map_err(|why| Invalid::new("split_view.weight", why))?;
        let request = &split.request_headers_json;
        let response = &split.response_headers_json;
        Ok(Self {
            weight: Weight(weight),
            end: usize::try_from(split.end).unwrap_or(usize::MAX),
            request_headers: json_in("split_view.request_headers_json", request)?,
            response_headers: json_in("split_view.response_headers_json", response)?,
        })
    }
}

fn json_out<T: Serialize>(value: Option<&T>) -> String {
    let text = value.map(|value| {
        serde_json::to_string(value).expect("these are structs of texts, numbers and text maps")
    });
    text.unwrap_or_default()
}

fn json_in<T: DeserializeOwned>(field: &'static str, text: &str) -> Result<Option<T>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|why| Invalid::new(field, why))
}
