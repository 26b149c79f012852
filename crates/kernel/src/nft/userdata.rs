//! Comments: type-length-value records of one byte each, as libnftnl writes them, so that `nft list` shows them.
//!
//! A rule's comment ends in `#` and the sixteen hexadecimal digits of [`Rule::digest`].

use netstate::nft::Rule;

/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT`.
const COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`.
const KEY_ORDER: u8 = 0;
/// `NFTNL_UDATA_SET_DATABYTEORDER`.
const DATA_ORDER: u8 = 1;
/// The order of bytes of the host, as libnftables numbers them.
const HOST_ORDER: u32 = 1;
/// So much of a rule's own comment is kept: `nft` reads back no more than 128 bytes in all.
const RULE_COMMENT_ROOM: usize = 100;

/// What `nft` has to be told of a set in order to show its elements: whether keys and data are in the host's order of bytes.
pub(super) fn host_order(keys: bool, data: bool) -> Vec<u8> {
    let kinds = [(KEY_ORDER, keys), (DATA_ORDER, data)].into_iter().filter(|(_, is)| *is);
    kinds.flat_map(|(kind, _)| [kind, 4].into_iter().chain(HOST_ORDER.to_ne_bytes())).collect()
}

/// The userdata that carries a comment. Longer ones than fit are cut at a character.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let text = cut(text, super::COMMENT_ROOM);
    let mut bytes = vec![COMMENT, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment in userdata, if there is one.
pub(super) fn find_comment(mut bytes: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = bytes {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            return std::str::from_utf8(&value[..end]).ok();
        }
        bytes = after;
    }
    None
}

/// The comment under which a rule of that canonical text is written.
pub(super) fn rule_comment(rule: &Rule, text: &str) -> String {
    let digest = Rule::digest_of(text);
    match &rule.comment {
        Some(comment) => format!("{} #{digest:016x}", cut(comment, RULE_COMMENT_ROOM)),
        None => format!("#{digest:016x}"),
    }
}

/// The digest at the end of a rule's comment.
pub(super) fn find_digest(comment: &str) -> Option<u64> {
    let (_, digits) = comment.rsplit_once('#')?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

fn cut(text: &str, room: usize) -> &str {
    &text[..text.floor_char_boundary(room)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_comes_back_as_it_was_written() {
        assert_eq!(find_comment(&comment("pod web-1")), Some("pod web-1"));
        assert_eq!(find_comment(&comment("")), Some(""));
        let mut after_another = vec![7, 2, 1, 1];
        after_another.extend(comment("x"));
        assert_eq!(find_comment(&after_another), Some("x"));
    }

    #[test]
    fn broken_userdata_has_no_comment() {
        for broken in [&[][..], &[0], &[0, 9, b'a'], &[1, 1, 0], &[0, 1, 0xff]] {
            assert_eq!(find_comment(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_digest_is_found_at_the_end_of_any_comment() {
        let rule = Rule::new([]).with_comment("issue #12: é".repeat(20));
        assert_eq!(find_digest(&rule_comment(&rule, &rule.to_string())), Some(rule.digest()));
        assert_eq!(find_digest("issue #12"), None);
    }
}
