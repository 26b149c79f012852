//! Conditions (`conditionsV4`, `conditionsV6`): which packets a host port is for, in the words of iptables or nft.
//!
//! Read [`parse`]. Users write the arguments of an `iptables` rule or a piece of an `nft` rule; what of both
//! languages chooses packets by address, link or source port is understood, and everything else is refused by
//! name, because a condition that is left out opens a port to those whom it was to keep away.
//!
//! ```text
//! iptables: [!] -s|--src|--source NET, [!] -d|--dst|--destination NET, [!] -i|--in-interface LINK,
//!           [!] -o|--out-interface LINK, [!] --sport|--source-port PORT[:PORT]
//! nft:      ip|ip6 saddr|daddr [==|!=] NET|FIRST-LAST, [meta] iifname|oifname|iif|oif [==|!=] LINK,
//!           tcp|udp|sctp|th sport [==|!=] PORT[-PORT]
//! ```
//!
//! Sources: the synopsis of iptables(8) and iptables-extensions(8), nft(8).

use std::net::IpAddr;

use ipnet::IpNet;
use netstate::LinkName;
use netstate::nft::{Field, IpVersion, Operator, Statement, Value};

/// The statements that choose the packets which `tokens` choose; why not, if they are not understood. `version`
/// is the family they are for.
pub(super) fn parse(tokens: &[&str], version: IpVersion) -> Result<Vec<Statement>, String> {
    let words: Vec<&str> = tokens.iter().flat_map(|token| token.split_whitespace()).collect();
    let mut reader = Reader { words: words.into_iter(), version };
    let mut statements = Vec::new();
    let of_iptables = speaks_iptables(tokens);
    while let Some(word) = reader.words.next() {
        let statement = if of_iptables { reader.option(word) } else { reader.expression(word) };
        statements.push(statement?);
    }
    Ok(statements)
}

/// Whether conditions are in the language of iptables, whose first word is an option or a negation of one.
pub(super) fn speaks_iptables(tokens: &[&str]) -> bool {
    tokens.first().is_some_and(|token| token.trim_start().starts_with(['-', '!']))
}

struct Reader<'a> {
    words: std::vec::IntoIter<&'a str>,
    version: IpVersion,
}

impl<'a> Reader<'a> {
    /// One option of iptables, with the negation before it and the value after it.
    fn option(&mut self, word: &'a str) -> Result<Statement, String> {
        let (operator, option) = match word {
            "!" => (Operator::NotEqual, self.next_after("!")?),
            _ => (Operator::Equal, word),
        };
        // Long options may carry their value behind an equals sign.
        let (option, value) = match option.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (option, None),
        };
        let field = match option {
            "-s" | "--src" | "--source" => Field::Source(self.version),
            "-d" | "--dst" | "--destination" => Field::Destination(self.version),
            "-i" | "--in-interface" => Field::InputLink,
            "-o" | "--out-interface" => Field::OutputLink,
            "--sport" | "--source-port" => Field::SourcePort,
            _ => return Err(format!("{option:?} is not understood")),
        };
        let value = value.map_or_else(|| self.next_after(option), Ok)?;
        self.statement(field, operator, value, ':')
    }

    /// One relational expression of nft.
    fn expression(&mut self, word: &'a str) -> Result<Statement, String> {
        let word = if word == "meta" { self.next_after(word)? } else { word };
        let field = match word {
            "ip" | "ip6" => self.address_field(word)?,
            "iifname" | "iif" => Field::InputLink,
            "oifname" | "oif" => Field::OutputLink,
            "tcp" | "udp" | "sctp" | "th" => match self.next_after(word)? {
                "sport" => Field::SourcePort,
                other => return Err(format!("\"{word} {other}\" is not understood")),
            },
            _ => return Err(format!("{word:?} is not understood")),
        };
        let (operator, value) = match self.next_after(word)? {
            "!=" | "ne" => (Operator::NotEqual, self.next_after("!=")?),
            "==" | "eq" => (Operator::Equal, self.next_after("==")?),
            value => (Operator::Equal, value),
        };
        self.statement(field, operator, value, '-')
    }

    fn address_field(&mut self, word: &str) -> Result<Field, String> {
        let version = if word == "ip" { IpVersion::V4 } else { IpVersion::V6 };
        if version != self.version {
            return Err(format!("{word:?} is of the other family"));
        }
        match self.next_after(word)? {
            "saddr" => Ok(Field::Source(version)),
            "daddr" => Ok(Field::Destination(version)),
            other => Err(format!("\"{word} {other}\" is not understood")),
        }
    }

    fn next_after(&mut self, word: &str) -> Result<&'a str, String> {
        self.words.next().ok_or_else(|| format!("nothing comes after {word:?}"))
    }

    fn statement(
        &self,
        field: Field,
        operator: Operator,
        value: &str,
        dash: char,
    ) -> Result<Statement, String> {
        let single = |value| Ok(Statement::Match { field, operator, value });
        let range = |first, last| Ok(Statement::Between { field, operator, first, last });
        match field {
            Field::Source(_) | Field::Destination(_) => match value.split_once(dash) {
                Some((first, last)) if dash == '-' => {
                    let (first, last) = (self.address(first)?, self.address(last)?);
                    ordered(value, first, last)
                        .and_then(|()| range(Value::Address(first), Value::Address(last)))
                }
                _ => single(self.network(value)?),
            },
            Field::SourcePort => match value.split_once(dash) {
                Some((first, last)) => {
                    let (first, last) = (port(first)?, port(last)?);
                    ordered(value, first, last).and_then(|()| range(Value::Port(first), Value::Port(last)))
                }
                None => single(Value::Port(port(value)?)),
            },
            _ => single(Value::Ifname(link(value)?)),
        }
    }

    /// A network as a prefix, which also holds for a single address; iptables writes masks in full, too.
    fn network(&self, text: &str) -> Result<Value, String> {
        let Some((address, mask)) = text.split_once('/') else {
            return self.address(text).map(Value::Address);
        };
        let address = self.address(address)?;
        let net = match mask.parse::<u8>() {
            Ok(length) => IpNet::new(address, length).ok(),
            Err(_) => mask.parse().ok().and_then(|mask: IpAddr| IpNet::with_netmask(address, mask).ok()),
        };
        let net = net.ok_or_else(|| format!("{text:?} is not a network"))?.trunc();
        // As nft does: a whole address is compared as such.
        let whole = net.prefix_len() == net.max_prefix_len();
        Ok(if whole { Value::Address(net.addr()) } else { Value::Network(net) })
    }

    fn address(&self, text: &str) -> Result<IpAddr, String> {
        let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an address or network"))?;
        if IpVersion::of(address) == self.version {
            Ok(address)
        } else {
            Err(format!("{text:?} is of the other family"))
        }
    }
}

fn ordered<T: PartialOrd>(text: &str, first: T, last: T) -> Result<(), String> {
    if first <= last { Ok(()) } else { Err(format!("{text:?} ends before it begins")) }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is not a port"))
}

/// A link's whole name; patterns (`eth+`, `eth*`) are not understood.
fn link(text: &str) -> Result<LinkName, String> {
    let name = text.trim_matches('"');
    if name.ends_with(['+', '*']) {
        return Err(format!("{text:?} is a pattern, and only whole names are understood"));
    }
    name.parse().map_err(|_| format!("{text:?} is not a link's name"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn four(tokens: &[&str]) -> Result<String, String> {
        let statements = parse(tokens, IpVersion::V4)?;
        Ok(statements.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_words_of_iptables_are_understood() {
        for (tokens, expected) in [
            (&["-s", "10.0.0.0/8"][..], "ip saddr 10.0.0.0/8"),
            (&["!", "-d", "192.0.2.5"], "ip daddr != 192.0.2.5"),
            (&["--source", "10.1.2.3/255.255.0.0"], "ip saddr 10.1.0.0/16"),
            (&["--dst=192.0.2.0/24", "-i", "eth0"], "ip daddr 192.0.2.0/24 iifname \"eth0\""),
            (&["!", "-o", "lo"], "oifname != \"lo\""),
            (&["--sport", "1024:65535"], "th sport 1024-65535"),
            (&["! -s 192.0.2.0/24", "-d 192.0.2.7/32"], "ip saddr != 192.0.2.0/24 ip daddr 192.0.2.7"),
        ] {
            assert_eq!(four(tokens).as_deref(), Ok(expected), "{tokens:?}");
        }
    }

    #[test]
    fn the_words_of_nft_are_understood() {
        for (tokens, expected) in [
            (&["ip", "saddr", "!=", "1.1.1.1"][..], "ip saddr != 1.1.1.1"),
            (&["ip saddr 10.0.0.3-10.0.0.9"], "ip saddr 10.0.0.3-10.0.0.9"),
            (&["iifname", "\"eth0\"", "ip daddr == 192.0.2.0/24"], "iifname \"eth0\" ip daddr 192.0.2.0/24"),
            (&["meta oifname != lo"], "oifname != \"lo\""),
            (&["tcp sport 1-2"], "th sport 1-2"),
        ] {
            assert_eq!(four(tokens).as_deref(), Ok(expected), "{tokens:?}");
        }
        let six = parse(&["ip6 saddr 2001:db8::/32"], IpVersion::V6).unwrap();
        assert_eq!(six[0].to_string(), "ip6 saddr 2001:db8::/32");
    }

    #[test]
    fn nothing_is_left_out_silently() {
        for (tokens, named) in [
            (&["-s", "10.0.0.0/8", "-m", "time"][..], "\"-m\""),
            (&["-s"], "\"-s\""),
            (&["!"], "\"!\""),
            (&["-s", "10.0.0.0/8,10.1.0.0/16"], "10.0.0.0/8,10.1.0.0/16"),
            (&["-s", "2001:db8::1"], "other family"),
            (&["-i", "eth+"], "pattern"),
            (&["--sport", "2:1"], "\"2:1\""),
            (&["-d", "10.0.0.0/33"], "10.0.0.0/33"),
            (&["ip6 saddr ::1"], "other family"),
            (&["ip", "saddr", "{ 1.1.1.1, 2.2.2.2 }"], "\"{\""),
            (&["ip protocol tcp"], "ip protocol"),
            (&["ct state new"], "\"ct\""),
            (&["iifname"], "\"iifname\""),
            (&["tcp dport 80"], "tcp dport"),
            (&["ip saddr 1.1.1.1 drop"], "\"drop\""),
        ] {
            let error = four(tokens).unwrap_err();
            assert!(error.contains(named), "{tokens:?}: {error}");
        }
        assert_eq!(four(&[]), Ok(String::new()));
        assert_eq!(four(&[""]), Ok(String::new()));
    }

    proptest! {
        #[test]
        fn anything_else_is_an_error_and_no_more(tokens in prop::collection::vec(any::<String>(), 0..6)) {
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            for version in [IpVersion::V4, IpVersion::V6] {
                if let Ok(statements) = parse(&tokens, version) {
                    prop_assert!(statements.len() <= tokens.iter().flat_map(|token| token.split_whitespace()).count());
                }
            }
        }

        #[test]
        fn what_was_understood_reads_back_as_the_same(words in prop::collection::vec(
            prop::sample::select(vec!["ip", "saddr", "daddr", "!=", "10.0.0.0/8", "1.2.3.4", "iifname", "eth0",
                "tcp", "sport", "1-9", "80", "-s", "!", "-i", "--sport", "1:9", "oifname", "0.0.0.0/0"]), 0..9,
        )) {
            if let Ok(statements) = parse(&words, IpVersion::V4) {
                let text: Vec<String> = statements.iter().map(ToString::to_string).collect();
                let again: Vec<&str> = text.iter().map(String::as_str).collect();
                prop_assert_eq!(parse(&again, IpVersion::V4), Ok(statements));
            }
        }
    }
}
