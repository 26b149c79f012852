//! A resolver file (`resolv.conf`) as the `dns` of a result.

use cni::Dns;

/// Reads the text of a resolver file: `nameserver` (one each), `domain`, `search` and `options`; lines of
/// several `search` or `options` add up. Comments begin with `#` or `;`. Everything else is passed over.
#[must_use]
pub fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let words = words.map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.extend(words.take(1)),
            "domain" => dns.domain = words.take(1).next().unwrap_or(dns.domain),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_is_read_and_comments_are_not() {
        let dns = parse(
            "# nameserver 9.9.9.9\n; search no\n\nnameserver 1.1.1.1\n  nameserver\t2001:db8::1  # the second\n\
             search a.example b.example\ndomain example.org\noptions ndots:5 timeout:1\nsearch c.example\n\
             sortlist 10.0.0.0\nnameserver\r\n",
        );
        assert_eq!(dns.nameservers, ["1.1.1.1", "2001:db8::1"]);
        assert_eq!(dns.search, ["a.example", "b.example", "c.example"]);
        assert_eq!(dns.domain, "example.org");
        assert_eq!(dns.options, ["ndots:5", "timeout:1"]);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert!(parse("").is_empty());
        assert!(parse("nameserver\ndomain\n").is_empty());
    }
}
