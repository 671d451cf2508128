//! The tables of cases in `tests/data/conformance`, read. Their form:
//!
//! * `# Family | where it comes from` begins a family, `; …` is a remark, a line without a margin names a case;
//! * below it, with a margin: the bytes, in as many lines as read well, with `\r`, `\n`, `\t`, `\0`, `\xHH`, `{name}`
//!   for a word of [`WORDS`] and `{a*70000}` for repetition; nothing is added to them;
//! * `@word` for what is special, `=> outcome`, and behind `>` what the other side must see.

use super::Way;

/// One case.
pub struct Case {
    pub family: String,
    pub source: String,
    pub name: String,
    /// What is sent: by the client, or by the app as its answer.
    pub bytes: Vec<u8>,
    pub marks: Vec<String>,
    /// The outcome's name, but for `@uwsgi-502`, and its statuses.
    outcome: String,
    pub statuses: Vec<u16>,
    /// What the other side sees.
    pub seen: Vec<u8>,
}

impl Case {
    /// Whether something is special about it.
    pub fn is(&self, mark: &str) -> bool {
        self.marks.iter().any(|given| given == mark)
    }

    /// What must become of it.
    pub fn outcome(&self, way: &Way) -> &str {
        if way.is_uwsgi() && self.is("uwsgi-502") { "502" } else { &self.outcome }
    }
}

/// The cases of a table.
pub fn read(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let (mut family, mut source) = (String::new(), String::new());
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with(';')) {
        if let Some(head) = line.strip_prefix("# ") {
            let (name, from) = head.split_once(" | ").unwrap_or_else(|| panic!("a family without a source: {line}"));
            (family, source) = (name.into(), from.into());
        } else if !line.starts_with(' ') {
            cases.push(Case {
                family: family.clone(),
                source: source.clone(),
                name: line.trim().into(),
                bytes: Vec::new(),
                marks: Vec::new(),
                outcome: String::new(),
                statuses: Vec::new(),
                seen: Vec::new(),
            });
        } else {
            let case = cases.last_mut().unwrap_or_else(|| panic!("no case has begun: {line}"));
            let part = &line.trim_start_matches(' ');
            if let Some(mark) = part.strip_prefix('@') {
                case.marks.push(mark.into());
            } else if let Some(outcome) = part.strip_prefix("=> ") {
                let mut words = outcome.split(' ');
                case.outcome = words.next().unwrap_or_default().into();
                case.statuses = words.map(|word| word.parse().expect("a status")).collect();
            } else if let Some(seen) = part.strip_prefix("> ") {
                case.seen.extend(bytes(seen));
            } else {
                case.bytes.extend(bytes(part));
            }
        }
    }
    for case in &cases {
        assert!(!case.outcome.is_empty() && !case.bytes.is_empty(), "{}: {} is not whole", case.family, case.name);
    }
    cases
}

/// What the tables need not repeat.
const WORDS: [(&str, &str); 6] = [
    ("host", "Host: www.example.com\r\n"),
    ("get", "GET / HTTP/1.1\r\nHost: www.example.com\r\n"),
    ("post", "POST / HTTP/1.1\r\nHost: www.example.com\r\n"),
    ("chunked", "Transfer-Encoding: chunked\r\n"),
    // 49 bytes: 0x31.
    ("smuggled", "GET /smuggled HTTP/1.1\r\nHost: www.example.com\r\n\r\n"),
    // 44 bytes: 0x2c.
    ("poison", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
];

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        match char {
            '\\' => match rest.next().unwrap_or_else(|| panic!("ends in a backslash: {text}")) {
                'r' => bytes.push(b'\r'),
                'n' => bytes.push(b'\n'),
                't' => bytes.push(b'\t'),
                '0' => bytes.push(0),
                '\\' => bytes.push(b'\\'),
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    bytes.push(u8::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("\\x{digits} in {text}")));
                }
                other => panic!("\\{other} in {text}"),
            },
            '{' => {
                let word: String = rest.by_ref().take_while(|char| *char != '}').collect();
                if let Some((what, times)) = word.rsplit_once('*') {
                    bytes.extend(self::bytes(what).repeat(times.parse().expect("a number")));
                } else {
                    let known = WORDS.iter().find(|(name, _)| *name == word);
                    bytes.extend(known.unwrap_or_else(|| panic!("{{{word}}} in {text}")).1.as_bytes());
                }
            }
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
