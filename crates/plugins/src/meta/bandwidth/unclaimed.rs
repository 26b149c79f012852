//! IFBs that the reference's `bandwidth` made and nobody's DEL will take away any more.
//!
//! Read [`collect`]. The name of such an IFB is a digest of network and container and says nothing to who knows
//! neither, but the kernel says whether it is in use: by a filter on the host's end of a cable that redirects to it.
//! The reference makes the IFB, then the redirection, and limits last, so an IFB with limits to which nothing leads
//! has lost its cable, whoever made it. One without limits may be in the making and stays.

use cni::{Error, Request};
use kernel::filter;
use kernel::link::{self, Filter, Link};
use kernel::netlink::Socket;
use kernel::qdisc::{self, Qdisc};

use crate::attachment;
use crate::fault::fault;
use crate::owner::Owner;

/// What limits: the second where some subnets are spared.
const LIMITING: [&str; 2] = ["tbf", "htb"];

/// Removes them. The valid attachments' own stay: they are for CHECK to complain of.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn collect(host: &mut Socket, request: &Request, valid: &[Owner]) -> Result<(), Error> {
    let kept: Vec<String> = valid.iter().flat_map(Owner::shaping_link_names).collect();
    let mut found = link::list(host, Filter { kind: Some("ifb"), ..Filter::default() }).map_err(fault)?;
    found.retain(|link| is_the_references(link) && !kept.contains(&link.name));
    if found.is_empty() {
        return Ok(());
    }
    // Limits first: where there are some by now, the redirection came before them.
    let limits = qdisc::list(host, None).map_err(fault)?;
    found.retain(|link| limits.iter().any(|qdisc| qdisc.link == link.index && limits_all(qdisc)));
    if found.is_empty() {
        return Ok(());
    }
    let led = led_to(host)?;
    found.retain(|link| !led.contains(&link.index));
    attachment::delete_together(host, &found, &Owner::stale_alias(&request.config.name))
}

/// The links to which what comes in by another is redirected.
fn led_to(host: &mut Socket) -> Result<Vec<u32>, Error> {
    let mut led = Vec::new();
    for hook in qdisc::list(host, None).map_err(fault)? {
        let place = match hook.kind.as_str() {
            "ingress" => qdisc::INGRESS_HANDLE,
            "clsact" => qdisc::CLSACT_INGRESS,
            _ => continue,
        };
        match filter::list(host, hook.link, place) {
            Ok(filters) => led.extend(filters.iter().filter_map(|filter| filter.redirect)),
            // The link has gone since.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(fault(error)),
        }
    }
    Ok(led)
}

fn limits_all(qdisc: &Qdisc) -> bool {
    qdisc.parent == qdisc::ROOT && LIMITING.contains(&qdisc.kind.as_str())
}

/// Whether the reference may have made it: it has a name as of [`Owner::shaping_link_names`], and bears no mark of
/// ours or anybody's.
fn is_the_references(link: &Link) -> bool {
    let digits = link.name.strip_prefix("bwp").unwrap_or_default();
    let is_digit = |letter: u8| letter.is_ascii_digit() || (b'a'..=b'f').contains(&letter);
    digits.len() == 12 && digits.bytes().all(is_digit) && link.alias.is_none() && link.group == 0
}
