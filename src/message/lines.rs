//! A request's field lines, in their order, from the head that came in to the one that goes out. What nobody edits stays
//! where it was read: a map of the same fields costs more than everything that is done with them.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::message::names::{Known, Name};

/// Field lines.
#[derive(Clone, Debug, Default)]
pub struct FieldLines {
    /// The head that they were read from.
    head: Bytes,
    lines: Vec<Line>,
    /// Which known names they have: nearly every name that is looked for isn't there.
    known: u128,
}

#[derive(Clone, Debug)]
struct Line {
    name: Name,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    /// It stands in the head.
    Read { at: usize, length: usize },
    /// It was written, or somebody else has read it.
    Written(HeaderValue),
    /// It was written, and is so short that it needs no memory of its own.
    Short { text: [u8; SHORT], length: u8 },
}

impl FieldLines {
    /// The lines that httparse has found in `head`. `None` when one of them is no field line, or `pass` says no.
    pub fn read(
        lines: &[httparse::Header<'_>],
        head: &Bytes,
        mut pass: impl FnMut(&Name, &[u8]) -> bool,
    ) -> Option<Self> {
        let mut fields = Self { head: head.clone(), lines: Vec::with_capacity(lines.len() + ADDED), known: 0 };
        for line in lines {
            let name = Name::read(line.name.as_bytes()).ok()?;
            if !pass(&name, line.value) {
                return None;
            }
            let (at, length) = ((line.value.as_ptr() as usize).checked_sub(head.as_ptr() as usize)?, line.value.len());
            head.get(at..at.checked_add(length)?)?;
            fields.push(name, Value::Read { at, length });
        }
        Some(fields)
    }

    /// As the `http` crate has them. `None` when a value is none that it takes.
    pub fn into_map(self) -> Option<HeaderMap> {
        let mut map = HeaderMap::with_capacity(self.lines.len());
        for Line { name, value } in self.lines {
            map.append(HeaderName::from(name), shared(&self.head, value)?);
        }
        Some(map)
    }

    /// Names and values.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Name, &[u8])> {
        self.lines.iter().map(|line| (&line.name, text(&self.head, &line.value)))
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The values of all lines with this name.
    pub fn get_all(&self, name: Known) -> impl DoubleEndedIterator<Item = &[u8]> {
        let lines = if self.contains(name) { &self.lines[..] } else { &[] };
        lines.iter().filter(move |line| line.is(name)).map(|line| text(&self.head, &line.value))
    }

    /// The value of the first line with this name.
    pub fn get(&self, name: Known) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// Whether there is a line with this name.
    pub fn contains(&self, name: Known) -> bool {
        self.known & name.bit() != 0
    }

    /// The value of the first line with this name, to be kept.
    pub fn value(&self, name: Known) -> Option<HeaderValue> {
        let line = self.contains(name).then(|| self.lines.iter().find(|line| line.is(name)))??;
        shared(&self.head, line.value.clone())
    }

    /// Makes this the only line with this name.
    pub fn insert(&mut self, name: Known, value: HeaderValue) {
        self.insert_value(name, Value::Written(value));
    }

    /// The same with a value of at most [`SHORT`] bytes, which are to be visible ASCII: a longer one is cut.
    pub fn insert_short(&mut self, name: Known, value: &[u8]) {
        let mut text = [0; SHORT];
        let length = value.len().min(SHORT);
        text[..length].copy_from_slice(&value[..length]);
        self.insert_value(name, Value::Short { text, length: u8::try_from(length).unwrap_or_default() });
    }

    #[inline]
    fn insert_value(&mut self, name: Known, value: Value) {
        if self.contains(name) {
            self.replace(name, value);
        } else {
            self.push(Name::Known(name), value);
        }
    }

    fn replace(&mut self, name: Known, value: Value) {
        let mut found = self.lines.iter_mut().filter(|line| line.is(name));
        let first = found.next().map(|line| line.value = value);
        if first.is_some() && found.next().is_some() {
            let mut found = 0;
            self.lines.retain(|line| {
                found += usize::from(line.is(name));
                found <= 1 || !line.is(name)
            });
        }
    }

    /// Puts a line behind the others.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.push(Name::from(name), Value::Written(value));
    }

    /// Removes all lines with this name.
    pub fn remove(&mut self, name: Known) {
        if self.contains(name) {
            self.lines.retain(|line| !line.is(name));
            self.known &= !name.bit();
        }
    }

    /// Keeps only the lines with a name that `keep` is true for.
    pub fn retain(&mut self, mut keep: impl FnMut(&Name) -> bool) {
        let before = self.lines.len();
        self.lines.retain(|line| keep(&line.name));
        if self.lines.len() < before {
            self.known = self.lines.iter().map(Line::bit).fold(0, |known, bit| known | bit);
        }
    }

    /// Removes them all.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.known = 0;
    }

    fn push(&mut self, name: Name, value: Value) {
        let line = Line { name, value };
        self.known |= line.bit();
        self.lines.push(line);
    }
}

impl From<HeaderMap> for FieldLines {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self { lines: Vec::with_capacity(map.len() + ADDED), ..Self::default() };
        for (name, value) in map {
            // Further lines of a field come without its name.
            let name = name.map(Name::from).or_else(|| fields.lines.last().map(|line| line.name.clone()));
            if let Some(name) = name {
                fields.push(name, Value::Written(value));
            }
        }
        fields
    }
}

impl Line {
    fn bit(&self) -> u128 {
        match self.name {
            Name::Known(known) => known.bit(),
            Name::Other(_) => 0,
        }
    }

    fn is(&self, name: Known) -> bool {
        matches!(self.name, Name::Known(known) if known == name)
    }
}

fn text<'a>(head: &'a [u8], value: &'a Value) -> &'a [u8] {
    match value {
        Value::Read { at, length } => head.get(*at..*at + *length).unwrap_or_default(),
        Value::Written(value) => value.as_bytes(),
        Value::Short { text, length } => text.get(..usize::from(*length)).unwrap_or_default(),
    }
}

fn shared(head: &Bytes, value: Value) -> Option<HeaderValue> {
    match value {
        Value::Read { at, length } => HeaderValue::from_maybe_shared(head.slice(at..at + length)).ok(),
        Value::Written(value) => Some(value),
        Value::Short { text, length } => HeaderValue::from_bytes(text.get(..usize::from(length))?).ok(),
    }
}

/// Lines that hostward may add.
const ADDED: usize = 10;
/// Bytes of a value that fits into its line.
pub const SHORT: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::names::{COOKIE, HOST, VIA};

    const HEAD: &str = "GET / HTTP/1.1\r\nHost: a\r\nCookie: b=c\r\nX-Own: d\r\ncookie: e=f\r\n\r\n";

    fn read(head: &str) -> FieldLines {
        let mut lines = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut lines);
        let head = Bytes::copy_from_slice(head.as_bytes());
        assert!(request.parse(&head).unwrap().is_complete());
        FieldLines::read(request.headers, &head, |_, _| true).unwrap()
    }

    fn written(fields: &FieldLines) -> Vec<(&str, &str)> {
        fields.iter().map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap())).collect()
    }

    #[test]
    fn lines_keep_their_order_and_what_is_inserted_is_the_only_one() {
        let mut fields = read(HEAD);
        let same = FieldLines::from(fields.clone().into_map().unwrap());
        assert_eq!(written(&fields), [("host", "a"), ("cookie", "b=c"), ("x-own", "d"), ("cookie", "e=f")]);
        assert_eq!(written(&same), [("host", "a"), ("cookie", "b=c"), ("cookie", "e=f"), ("x-own", "d")]);
        assert!(fields.get_all(COOKIE).eq(same.get_all(COOKIE)) && fields.get(COOKIE) == Some(b"b=c"));
        fields.insert(COOKIE, HeaderValue::from_static("g"));
        fields.insert(VIA, HeaderValue::from_static("h"));
        fields.insert(HOST, HeaderValue::from_static("i"));
        assert_eq!(written(&fields), [("host", "i"), ("cookie", "g"), ("x-own", "d"), ("via", "h")]);
        fields.remove(COOKIE);
        fields.retain(|name| name.as_str() != "x-own");
        assert_eq!(written(&fields), [("host", "i"), ("via", "h")]);
        assert!(fields.contains(VIA) && !fields.contains(COOKIE));
    }

    #[test]
    fn a_short_value_is_a_value_like_others_and_takes_no_more_memory() {
        let mut fields = read(HEAD);
        fields.insert_short(VIA, b"1.1 a");
        fields.insert_short(HOST, b"");
        assert_eq!((fields.get(VIA), fields.get(HOST)), (Some(&b"1.1 a"[..]), Some(&b""[..])));
        assert_eq!(fields.value(VIA).unwrap(), "1.1 a");
        let map = fields.into_map().unwrap();
        assert_eq!((map["via"].as_bytes(), map["host"].as_bytes()), (&b"1.1 a"[..], &b""[..]));
        assert_eq!(size_of::<Value>(), size_of::<HeaderValue>());
    }

    #[test]
    fn what_is_done_to_lines_has_the_same_outcome_as_what_is_done_to_a_map() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let (mut fields, mut map) = (FieldLines::default(), HeaderMap::new());
            for _ in 0..random.usize(..30) {
                let known = random.choice([COOKIE, HOST, VIA]).unwrap();
                let other = HeaderName::from_static(random.choice(["a", "x-own"]).unwrap());
                let name = if random.bool() { other } else { known.header_name().clone() };
                let value = HeaderValue::from(random.u16(..));
                match random.u8(..4) {
                    0 => {
                        fields.insert(known, value.clone());
                        map.insert(known.header_name(), value);
                    }
                    1 => {
                        fields.remove(known);
                        map.remove(known.header_name());
                    }
                    _ => {
                        fields.append(name.clone(), value.clone());
                        map.append(name, value);
                    }
                }
                assert_eq!(fields.len(), map.len());
                assert_eq!(fields.get(known), map.get(known.header_name()).map(HeaderValue::as_bytes));
                assert_eq!(fields.value(known).as_ref(), map.get(known.header_name()));
            }
            assert_eq!(FieldLines::from(map.clone()).into_map().unwrap(), map);
            assert_eq!(fields.into_map().unwrap(), map);
        }
    }
}
