//! Names of fields that stand in nearly every request or answer, so that they needn't be made each time: the `http` crate
//! looks at each byte, and allocates for the many that it doesn't know.

use http::HeaderName;
use http::header::InvalidHeaderName;

/// One of these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Known(usize);

/// The name of a field line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// One that is known. None of those is ever among the others.
    Known(Known),
    /// Any other.
    Other(HeaderName),
}

impl Known {
    /// The name with this text, for constants.
    const fn of(text: &str) -> Self {
        let text: [u8; LONGEST] = padded(text);
        let mut at = 0;
        while at < COUNT {
            let mut same = true;
            let mut byte = 0;
            while byte < LONGEST {
                same &= PADDED[at][byte] == text[byte];
                byte += 1;
            }
            if same {
                return Self(at);
            }
            at += 1;
        }
        panic!("this name isn't among those that are known");
    }

    /// The name that these bytes are, in whatever case.
    pub fn find(name: &[u8]) -> Option<Self> {
        let mut folded = [0; LONGEST];
        // Two copies of a length that is known, which may overlap, are less than one of any length.
        match (name.first_chunk::<16>(), name.last_chunk::<16>(), name.first_chunk::<8>(), name.last_chunk::<8>()) {
            (Some(start), Some(end), ..) => {
                folded[..16].copy_from_slice(start);
                folded.get_mut(name.len() - 16..name.len())?.copy_from_slice(end);
            }
            (.., Some(start), Some(end)) => {
                folded[..8].copy_from_slice(start);
                folded[name.len() - 8..name.len()].copy_from_slice(end);
            }
            _ => folded[..name.len()].copy_from_slice(name),
        }
        // All of it, and compared all of it: a length that is known is a few instructions.
        folded.make_ascii_lowercase();
        let (first, end) = (FIRST[name.len()], FIRST[name.len() + 1]);
        (first..end).find(|at| PADDED[*at] == folded).map(Self)
    }

    /// Its place in a set of bits.
    pub fn bit(self) -> u128 {
        1 << self.0
    }

    /// It, in lower case.
    pub fn as_str(self) -> &'static str {
        TEXTS[self.0]
    }

    /// Appends it with what stands between a name and a value.
    pub fn write(self, text: &mut Vec<u8>) {
        let end = text.len() + TEXTS[self.0].len() + ": ".len();
        // Of a length that is known, which is a few instructions.
        text.extend_from_slice(&WRITTEN[self.0]);
        text.truncate(end);
    }

    /// It, for the `http` crate.
    pub fn header_name(self) -> &'static HeaderName {
        &NAMES[self.0]
    }
}

impl Name {
    /// The name that a field line begins with.
    ///
    /// # Errors
    ///
    /// When it is no token (RFC 9110 §5.1).
    pub fn read(bytes: &[u8]) -> Result<Self, InvalidHeaderName> {
        Known::find(bytes)
            .map_or_else(|| HeaderName::from_bytes(bytes).map(Self::Other), |known| Ok(Self::Known(known)))
    }

    /// It, in lower case.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.as_str(),
            Self::Other(name) => name.as_str(),
        }
    }
}

impl From<HeaderName> for Name {
    fn from(name: HeaderName) -> Self {
        Known::find(name.as_str().as_bytes()).map_or(Self::Other(name), Self::Known)
    }
}

impl From<Name> for HeaderName {
    fn from(name: Name) -> Self {
        match name {
            Name::Known(known) => known.header_name().clone(),
            Name::Other(name) => name,
        }
    }
}

/// Bytes of the longest of them.
const LONGEST: usize = 32;

const fn padded<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let mut padded = [0; LENGTH];
    let (start, _) = padded.split_at_mut(text.len());
    start.copy_from_slice(text.as_bytes());
    padded
}

/// Where the names of each length begin, and the last of them end.
const fn first() -> [usize; LONGEST + 2] {
    let mut first = [0; LONGEST + 2];
    let mut at = 0;
    let mut length = 0;
    while length < first.len() {
        while at < COUNT && TEXTS[at].len() < length {
            at += 1;
        }
        first[length] = at;
        length += 1;
    }
    const { assert!(COUNT <= 128, "the names fit a set of bits") };
    assert!(at == COUNT, "the names stand in the order of their lengths");
    first
}

macro_rules! names {
    ($($name:literal)*) => {
        const TEXTS: &[&str] = &[$($name),*];
        const COUNT: usize = TEXTS.len();
        static NAMES: [HeaderName; COUNT] = [$(HeaderName::from_static($name)),*];
        const PADDED: [[u8; LONGEST]; COUNT] = [$(padded($name)),*];
        static WRITTEN: [[u8; LONGEST + 2]; COUNT] = [$(padded(concat!($name, ": "))),*];
    };
}

// In the order of their lengths.
names! {
    "te"
    "age" "via"
    "host" "date" "etag" "vary"
    "accept" "cookie" "expect" "server" "origin" "pragma"
    "referer" "expires" "trailer" "upgrade"
    "location" "priority"
    "x-real-ip" "sec-ch-ua" "x-api-key" "x-runtime" "forwarded"
    "user-agent" "connection" "set-cookie" "tracestate" "keep-alive"
    "x-amz-cf-id" "traceparent" "x-csrftoken"
    "content-type" "x-request-id" "x-csrf-token" "x-powered-by"
    "cache-control" "last-modified" "authorization" "if-none-match" "accept-ranges" "server-timing"
    "content-length" "sec-fetch-site" "sec-fetch-mode" "sec-fetch-user" "sec-fetch-dest"
    "accept-encoding" "accept-language" "x-frame-options" "referrer-policy" "x-forwarded-for" "x-amzn-trace-id"
    "x-request-start"
    "content-encoding" "x-forwarded-port" "x-forwarded-host" "sec-ch-ua-mobile" "x-requested-with" "x-correlation-id"
    "if-modified-since" "x-forwarded-proto" "transfer-encoding"
    "sec-ch-ua-platform" "permissions-policy"
    "content-disposition"
    "x-content-type-options"
    "content-security-policy"
    "upgrade-insecure-requests" "strict-transport-security"
    "cross-origin-opener-policy"
    "access-control-allow-origin"
    "cross-origin-resource-policy" "cross-origin-embedder-policy"
    "access-control-allow-credentials"
}

static FIRST: [usize; LONGEST + 2] = first();

macro_rules! constants {
    ($($constant:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $constant: Known = Known::of($name);
        )*
    };
}

constants! {
    AUTHORIZATION = "authorization";
    CONNECTION = "connection";
    CONTENT_LENGTH = "content-length";
    CONTENT_TYPE = "content-type";
    COOKIE = "cookie";
    EXPECT = "expect";
    FORWARDED = "forwarded";
    HOST = "host";
    KEEP_ALIVE = "keep-alive";
    TE = "te";
    TRACEPARENT = "traceparent";
    TRACESTATE = "tracestate";
    TRAILER = "trailer";
    TRANSFER_ENCODING = "transfer-encoding";
    UPGRADE = "upgrade";
    USER_AGENT = "user-agent";
    VIA = "via";
    X_AMZN_TRACE_ID = "x-amzn-trace-id";
    X_AMZ_CF_ID = "x-amz-cf-id";
    X_FORWARDED_FOR = "x-forwarded-for";
    X_FORWARDED_HOST = "x-forwarded-host";
    X_FORWARDED_PORT = "x-forwarded-port";
    X_FORWARDED_PROTO = "x-forwarded-proto";
    X_REAL_IP = "x-real-ip";
    X_REQUEST_ID = "x-request-id";
    X_REQUEST_START = "x-request-start";
}

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = Known> {
    (0..COUNT).map(Known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_and_is_what_the_library_makes_of_it() {
        for known in all() {
            let text = known.as_str();
            for spelling in [text.to_owned(), text.to_ascii_uppercase()] {
                assert_eq!(Name::read(spelling.as_bytes()).unwrap(), Name::Known(known), "{spelling}");
            }
            assert_eq!(*known.header_name(), text.parse::<HeaderName>().unwrap());
            assert_eq!(Name::from(known.header_name().clone()), Name::Known(known));
            let mut written = b"x".to_vec();
            known.write(&mut written);
            assert_eq!(written, format!("x{text}: ").as_bytes());
        }
        assert_eq!((HOST.as_str(), X_FORWARDED_PROTO.as_str()), ("host", "x-forwarded-proto"));
    }

    #[test]
    fn others_are_the_librarys() {
        for text in
            ["hosts", "X-Something-Of-Its-Own", "sec-fetch-typo", "a-name-that-is-longer-than-all-of-them-together"]
        {
            let expected = HeaderName::from_bytes(text.as_bytes()).unwrap();
            assert_eq!(Name::read(text.as_bytes()).unwrap(), Name::Other(expected));
        }
        for text in ["", "a b", "sec-ch-ua:", "x\u{e9}", "host\0"] {
            assert!(Name::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
