//! Regular expressions for the allow-list: the part of the syntax that anybody writes into it.
//!
//! Read [`Pattern`]. It takes literals, `.`, classes (`[a-z]`, `[^.]`, `[[:alnum:]]`, `\d \w \s` and their
//! opposites), groups, `|`, `* + ?` and `{m,n}`, `^ $ \A \z \b \B`, with the meaning that the reference's library
//! gives them. What it does not take (Unicode classes, flags, back-references) is an error and never a guess: the
//! list decides what a pod may change. A whole library would make every plugin of this binary 80 KB larger.
//!
//! What stays true: a match takes time proportional to text times pattern, whatever the pattern, for all
//! alternatives are followed at once. Source: Ken Thompson, "Regular Expression Search Algorithm", 1968.

use std::iter::Peekable;
use std::str::Chars;

/// A pattern with this many steps is a mistake.
const LONGEST: usize = 10_000;
/// More repetitions than this are refused, as in the reference.
const MOST_REPETITIONS: usize = 1000;
/// Groups deeper than this are refused, so that no list can exhaust the stack.
const DEEPEST: usize = 100;

/// A pattern, ready to match. It matches a text when it matches any part of it.
#[derive(Debug)]
pub(super) struct Pattern {
    steps: Vec<Step>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is malformed, or of a kind that is not known here: says which.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text.chars().peekable(), depth: 0 };
        let node = reader.alternatives()?;
        if reader.rest.peek().is_some() {
            return Err("an unmatched )".to_owned());
        }
        let mut steps = Vec::new();
        compile(&node, &mut steps)?;
        steps.push(Step::Match);
        Ok(Self { steps })
    }

    /// Whether any part of `text` matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        let mut now = vec![false; self.steps.len()];
        for place in 0..=letters.len() {
            self.follow(0, &letters, place, &mut now);
            if now.last().copied().unwrap_or_default() {
                return true;
            }
            let Some(letter) = letters.get(place) else { return false };
            let mut next = vec![false; self.steps.len()];
            for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| now[*at]) {
                if matches!(step, Step::Letter(class) if class.has(*letter)) {
                    self.follow(at + 1, &letters, place + 1, &mut next);
                }
            }
            now = next;
        }
        false
    }

    /// Marks `start` and every step that is reached from it without a letter.
    fn follow(&self, start: usize, letters: &[char], place: usize, marks: &mut [bool]) {
        let word = |place: Option<usize>| {
            place.and_then(|place| letters.get(place)).is_some_and(|letter| is_word(*letter))
        };
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut marks[at], true) {
                continue;
            }
            let passes = match self.steps[at] {
                Step::Fork(one, other) => {
                    open.extend([one, other]);
                    false
                }
                Step::Jump(to) => {
                    open.push(to);
                    false
                }
                Step::Start => place == 0,
                Step::End => place == letters.len(),
                Step::Boundary(wanted) => (word(place.checked_sub(1)) != word(Some(place))) == wanted,
                Step::Letter(_) | Step::Match => false,
            };
            if passes {
                open.push(at + 1);
            }
        }
    }
}

/// What the matcher does; the next step follows unless it says otherwise.
#[derive(Debug)]
enum Step {
    Letter(Class),
    Fork(usize, usize),
    Jump(usize),
    Start,
    End,
    Boundary(bool),
    Match,
}

/// A set of letters.
#[derive(Debug, Clone, Default)]
struct Class {
    ranges: Vec<(char, char)>,
    negated: bool,
}

impl Class {
    fn has(&self, letter: char) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&letter)) != self.negated
    }

    fn one(letter: char) -> Self {
        Self { ranges: vec![(letter, letter)], negated: false }
    }

    /// `\d`, `\w`, `\s`; their opposites are upper case.
    fn named(name: char) -> Option<Self> {
        let ranges: &[(char, char)] = match name.to_ascii_lowercase() {
            'd' => &[('0', '9')],
            'w' => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            's' => &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
            _ => return None,
        };
        Some(Self { ranges: ranges.to_vec(), negated: name.is_ascii_uppercase() })
    }

    /// The ranges that are in it, also where it is said by what is not.
    fn spelled_out(&self) -> Vec<(char, char)> {
        if !self.negated {
            return self.ranges.clone();
        }
        let mut gaps = Vec::new();
        let mut next = '\0';
        for (first, last) in &self.ranges {
            if next < *first {
                gaps.push((next, char::from_u32(u32::from(*first) - 1).unwrap_or(next)));
            }
            next = char::from_u32(u32::from(*last) + 1).unwrap_or(char::MAX);
        }
        gaps.push((next, char::MAX));
        gaps
    }
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// A pattern as it is written.
#[derive(Debug)]
enum Node {
    Letter(Class),
    Start,
    End,
    Boundary(bool),
    Sequence(Vec<Self>),
    Alternatives(Vec<Self>),
    Repeated { node: Box<Self>, least: usize, most: Option<usize> },
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn alternatives(&mut self) -> Result<Node, String> {
        let mut all = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            all.push(self.sequence()?);
        }
        Ok(Node::Alternatives(all))
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(letter) = self.rest.next_if(|letter| !matches!(letter, '|' | ')')) {
            let node = self.one(letter)?;
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn one(&mut self, letter: char) -> Result<Node, String> {
        Ok(match letter {
            '.' => Node::Letter(Class { negated: true, ..Class::one('\n') }),
            '^' => Node::Start,
            '$' => Node::End,
            '(' => self.group()?,
            '[' => Node::Letter(self.class()?),
            '\\' => self.escaped()?,
            '*' | '+' | '?' => return Err(format!("nothing before {letter} to repeat")),
            '{' if counts(self.rest.clone())?.is_some() => {
                return Err("nothing before { to repeat".to_owned());
            }
            letter => Node::Letter(Class::one(letter)),
        })
    }

    fn group(&mut self) -> Result<Node, String> {
        if self.rest.next_if_eq(&'?').is_some() && self.rest.next() != Some(':') {
            return Err("(? with anything but : is not known here".to_owned());
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("groups more than {DEEPEST} deep"));
        }
        let node = self.alternatives()?;
        self.depth -= 1;
        if self.rest.next() == Some(')') { Ok(node) } else { Err("an unmatched (".to_owned()) }
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let (least, most) = match self.rest.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                let mut ahead = self.rest.clone();
                ahead.next();
                let Some((least, most, after)) = counts(ahead)? else { return Ok(node) };
                self.rest = after;
                return self.once(Node::Repeated { node: Box::new(node), least, most });
            }
            _ => return Ok(node),
        };
        self.rest.next();
        self.once(Node::Repeated { node: Box::new(node), least, most })
    }

    /// A repetition cannot be repeated. A `?` after it prefers the shorter match, which matches no less.
    fn once(&mut self, node: Node) -> Result<Node, String> {
        self.rest.next_if_eq(&'?');
        let mut ahead = self.rest.clone();
        match ahead.next() {
            Some('*' | '+' | '?') => Err("a repetition of a repetition".to_owned()),
            Some('{') if counts(ahead)?.is_some() => Err("a repetition of a repetition".to_owned()),
            _ => Ok(node),
        }
    }

    fn escaped(&mut self) -> Result<Node, String> {
        match self.rest.next() {
            Some('A') => Ok(Node::Start),
            Some('z') => Ok(Node::End),
            Some('b') => Ok(Node::Boundary(true)),
            Some('B') => Ok(Node::Boundary(false)),
            Some(letter) => Ok(Node::Letter(escaped_letter(letter)?)),
            None => Err("a \\ at the end".to_owned()),
        }
    }

    /// What stands between brackets.
    fn class(&mut self) -> Result<Class, String> {
        let open = || "an unmatched [".to_owned();
        let mut class = Class { negated: self.rest.next_if_eq(&'^').is_some(), ranges: Vec::new() };
        let mut first = true;
        loop {
            let letter = self.rest.next().ok_or_else(open)?;
            if letter == ']' && !first {
                return Ok(class);
            }
            first = false;
            if letter == '[' && self.rest.peek() == Some(&':') {
                class.ranges.extend_from_slice(self.named_class()?);
                continue;
            }
            let low = match letter {
                '\\' => escaped_letter(self.rest.next().ok_or_else(open)?)?,
                letter => Class::one(letter),
            };
            let single = |class: &Class| match (class.negated, class.ranges.as_slice()) {
                (false, [(low, high)]) if low == high => Some(*low),
                _ => None,
            };
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.peek().is_some_and(|next| *next != ']');
            let Some(low) = single(&low).filter(|_| is_range) else {
                class.ranges.extend(low.spelled_out());
                continue;
            };
            self.rest.next();
            let high = match self.rest.next().ok_or_else(open)? {
                '\\' => escaped_letter(self.rest.next().ok_or_else(open)?)?,
                letter => Class::one(letter),
            };
            let high =
                single(&high).filter(|high| low <= *high).ok_or("a range that ends before it begins")?;
            class.ranges.push((low, high));
        }
    }

    /// `[:alnum:]` and its kin, within brackets.
    fn named_class(&mut self) -> Result<&'static [(char, char)], String> {
        let mut ahead = self.rest.clone();
        ahead.next();
        let name: String = ahead.by_ref().take_while(|letter| *letter != ':').collect();
        let ranges: &[(char, char)] = match name.as_str() {
            "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
            "alpha" => &[('A', 'Z'), ('a', 'z')],
            "digit" => &[('0', '9')],
            "lower" => &[('a', 'z')],
            "upper" => &[('A', 'Z')],
            "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
            _ => return Err(format!("the class [:{name}:] is not known here")),
        };
        if ahead.next() != Some(']') {
            return Err("an unmatched [".to_owned());
        }
        self.rest = ahead;
        Ok(ranges)
    }
}

/// What a letter after `\` stands for.
fn escaped_letter(letter: char) -> Result<Class, String> {
    if let Some(class) = Class::named(letter) {
        return Ok(class);
    }
    Ok(Class::one(match letter {
        't' => '\t',
        'n' => '\n',
        'r' => '\r',
        letter if letter.is_ascii_punctuation() => letter,
        letter => return Err(format!("\\{letter} is not known here")),
    }))
}

/// The numbers of `{m}`, `{m,}` and `{m,n}` after the brace, with what follows; nothing for a brace that is just
/// a brace.
#[expect(clippy::type_complexity, reason = "two numbers and what is left to read")]
fn counts(
    mut rest: Peekable<Chars<'_>>,
) -> Result<Option<(usize, Option<usize>, Peekable<Chars<'_>>)>, String> {
    let number = |rest: &mut Peekable<Chars<'_>>| -> Option<String> {
        let digits: String = std::iter::from_fn(|| rest.next_if(char::is_ascii_digit)).collect();
        Some(digits).filter(|digits| !digits.is_empty())
    };
    let Some(least) = number(&mut rest) else { return Ok(None) };
    let most = match rest.next() {
        Some('}') => Some(least.clone()),
        Some(',') => {
            let most = number(&mut rest);
            if rest.next() != Some('}') {
                return Ok(None);
            }
            most
        }
        _ => return Ok(None),
    };
    let size = |digits: &str| digits.parse().ok().filter(|count| *count <= MOST_REPETITIONS);
    let too_many = || format!("more than {MOST_REPETITIONS} repetitions");
    let least = size(&least).ok_or_else(too_many)?;
    let most = most.map(|most| size(&most).ok_or_else(too_many)).transpose()?;
    if most.is_some_and(|most| most < least) {
        return Err("a repetition that ends before it begins".to_owned());
    }
    Ok(Some((least, most, rest)))
}

/// Writes the steps of a node behind those that are there.
fn compile(node: &Node, steps: &mut Vec<Step>) -> Result<(), String> {
    if steps.len() > LONGEST {
        return Err(format!("more than {LONGEST} steps"));
    }
    match node {
        Node::Letter(class) => steps.push(Step::Letter(class.clone())),
        Node::Start => steps.push(Step::Start),
        Node::End => steps.push(Step::End),
        Node::Boundary(wanted) => steps.push(Step::Boundary(*wanted)),
        Node::Sequence(nodes) => nodes.iter().try_for_each(|node| compile(node, steps))?,
        Node::Alternatives(nodes) => alternatives(nodes, steps)?,
        Node::Repeated { node, least, most } => {
            for _ in 0..*least {
                compile(node, steps)?;
            }
            match most {
                None => {
                    let fork = steps.len();
                    steps.push(Step::Match);
                    compile(node, steps)?;
                    steps.push(Step::Jump(fork));
                    steps[fork] = Step::Fork(fork + 1, steps.len());
                }
                Some(most) => {
                    let mut forks = Vec::new();
                    for _ in *least..*most {
                        forks.push(steps.len());
                        steps.push(Step::Match);
                        compile(node, steps)?;
                    }
                    let end = steps.len();
                    forks.into_iter().for_each(|fork| steps[fork] = Step::Fork(fork + 1, end));
                }
            }
        }
    }
    Ok(())
}

fn alternatives(nodes: &[Node], steps: &mut Vec<Step>) -> Result<(), String> {
    let mut jumps = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        if number + 1 == nodes.len() {
            compile(node, steps)?;
            break;
        }
        let fork = steps.len();
        steps.push(Step::Match);
        compile(node, steps)?;
        jumps.push(steps.len());
        steps.push(Step::Match);
        steps[fork] = Step::Fork(fork + 1, steps.len());
    }
    let end = steps.len();
    jumps.into_iter().for_each(|jump| steps[jump] = Step::Jump(end));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}")).matches(text)
    }

    #[test]
    fn the_lines_of_an_allow_list_match_what_they_say() {
        let key = "net.ipv4.conf.IFNAME.arp_filter";
        for pattern in [
            "^net.ipv4.conf.IFNAME.arp_filter$",
            r"^net\.ipv[46]\.conf\.(IFNAME|eth\d+)\.arp_[a-z]+$",
            "arp_filter",
            "",
            "net.{1,6}conf",
            r"\barp_filter\b",
        ] {
            assert!(matches(pattern, key), "{pattern}");
        }
        for pattern in ["^net.ipv6", "arp_filter.$", r"^net\.ipv[^4]", r"\bfilter", "x{2}|y+", "(a|b)z"] {
            assert!(!matches(pattern, key), "{pattern}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for pattern in [
            "(",
            ")",
            "[",
            "a**",
            "*",
            "+a",
            "a{2}{3}",
            "a{3,2}",
            "a{1001}",
            "(?i)a",
            "(?P<n>a)",
            r"\pL",
            r"\1",
            "[z-a]",
            r"a\",
            "[[:nope:]]",
            "((a{1000}){1000}){1000}",
            &"(".repeat(5000),
        ] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        assert!(!matches("(a*)*b", &"a".repeat(2000)));
        assert!(!matches("(a|aa)+$x", &"a".repeat(2000)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4000))]
        #[test]
        fn a_match_is_what_a_full_library_says(
            pattern in r"(\^|\$|\.|a|b|c|-|\\\.|\\d|\\w|\\W|\\b|\[ab\]|\[\^a\]|\[a-c\]|\[\^\\W\.\]|\(|\)|\(\?:|\||\*|\+|\?|\{2\}|\{1,2\}|\{1,\}|\]|\}){0,10}",
            text in r"[abc\.1 -]{0,8}",
        ) {
            let oracle = regex::bytes::RegexBuilder::new(&pattern).unicode(false).build();
            // What we refuse and a library takes is listed above; what both take has to mean the same.
            if let (Ok(ours), Ok(oracle)) = (Pattern::new(&pattern), &oracle) {
                proptest::prop_assert_eq!(ours.matches(&text), oracle.is_match(text.as_bytes()), "{}", pattern);
            }
        }
    }
}
