//! Running EC2 instances by tag.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use roxmltree::Node;

use crate::query::{AddressType, Query};
use crate::xml::{self, Unexpected};

/// One page of instances: their addresses, and where the next page begins.
pub(crate) struct Page {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) next: Option<String>,
}

/// The body that asks for the page at `next`.
pub(crate) fn body(query: &Query, next: Option<&str>) -> String {
    // A space as forms write it: some who check signatures write the form anew.
    let written =
        |text: &str| utf8_percent_encode(text, UNRESERVED).to_string().replace("%20", "+");
    let mut body = format!(
        "Action=DescribeInstances&Version=2016-11-15&MaxResults=100\
         &Filter.1.Name={}&Filter.1.Value.1={}\
         &Filter.2.Name=instance-state-name&Filter.2.Value.1=running",
        written(&format!("tag:{}", query.tag_key)),
        written(&query.tag_value)
    );
    if let Some(next) = next {
        body.push_str("&NextToken=");
        body.push_str(&written(next));
    }
    body
}

/// Parses the answer.
pub(crate) fn page(body: &str, wanted: AddressType) -> Result<Page, Unexpected> {
    let document = xml::parse(body)?;
    let root = document.root_element();
    if root.tag_name().name() != "DescribeInstancesResponse" {
        return Err(Unexpected("it answers something else".to_owned()));
    }
    let mut addresses = Vec::new();
    let reservations = items(Some(xml::only(root, "reservationSet")?));
    for reservation in reservations {
        for instance in items(Some(xml::only(reservation, "instancesSet")?)) {
            addresses.extend(address(instance, wanted));
        }
    }
    let next = xml::children(root, "nextToken").next().and_then(|node| xml::text(node).ok());
    Ok(Page { addresses, next: next.map(str::to_owned) })
}

/// The one address of an instance that is wanted, if it has one.
fn address(instance: Node<'_, '_>, wanted: AddressType) -> Option<IpAddr> {
    let of = |node: Node<'_, '_>, name| {
        let found = xml::children(node, name).next()?;
        xml::text(found).ok()?.parse::<IpAddr>().ok()
    };
    match wanted {
        AddressType::PrivateV4 => of(instance, "privateIpAddress").filter(IpAddr::is_ipv4),
        AddressType::PublicV4 => of(instance, "ipAddress").filter(IpAddr::is_ipv4),
        AddressType::PublicV6 => items(xml::children(instance, "networkInterfaceSet").next())
            .into_iter()
            .flat_map(|interface| items(xml::children(interface, "ipv6AddressesSet").next()))
            .find_map(|item| of(item, "ipv6Address").filter(IpAddr::is_ipv6)),
    }
}

fn items<'a, 'input>(list: Option<Node<'a, 'input>>) -> Vec<Node<'a, 'input>> {
    list.map(|list| xml::children(list, "item").collect()).unwrap_or_default()
}

/// RFC 3986's unreserved characters, as AWS's query protocol has them.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  <reservationSet>
    <item><instancesSet>
      <item><privateIpAddress>10.0.0.1</privateIpAddress><ipAddress>203.0.113.1</ipAddress>
        <networkInterfaceSet><item><privateIpAddress>10.9.9.9</privateIpAddress>
          <ipv6AddressesSet><item><ipv6Address>2001:db8::1</ipv6Address></item></ipv6AddressesSet>
        </item></networkInterfaceSet></item>
      <item><privateIpAddress>10.0.0.2</privateIpAddress></item>
    </instancesSet></item>
    <item><instancesSet><item><privateIpAddress>evil</privateIpAddress></item></instancesSet></item>
  </reservationSet>
  <nextToken>more</nextToken>
</DescribeInstancesResponse>"#;

    #[test]
    fn each_instance_gives_the_address_that_is_wanted() {
        let cases: [(AddressType, &[&str]); 3] = [
            (AddressType::PrivateV4, &["10.0.0.1", "10.0.0.2"]),
            (AddressType::PublicV4, &["203.0.113.1"]),
            (AddressType::PublicV6, &["2001:db8::1"]),
        ];
        for (wanted, expected) in cases {
            let page = page(ANSWER, wanted).expect("a page");
            let found: Vec<String> = page.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{wanted:?}");
            assert_eq!(page.next.as_deref(), Some("more"));
        }
        assert!(page("<Response/>", AddressType::PrivateV4).is_err());
    }

    #[test]
    fn a_tag_is_written_so_that_it_stays_one_value() {
        let query = "provider=aws tag_key=a&b tag_value=\"c d=*\"";
        let query = Query::parse(query).expect("a query");
        let body = body(&query, Some("a+/="));
        assert!(body.contains("Filter.1.Name=tag%3Aa%26b&Filter.1.Value.1=c+d%3D%2A&"), "{body}");
        assert!(body.ends_with("&NextToken=a%2B%2F%3D"), "{body}");
    }
}
