//! Names of fields that stand in nearly every request or answer, so that they needn't be made each time: the `http` crate
//! looks at each byte, and allocates for the many that it doesn't know.

use http::HeaderName;
use http::header::InvalidHeaderName;

/// The name that a field line begins with.
///
/// # Errors
///
/// When it is no token (RFC 9110 §5.1).
pub fn name(bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
    let mut folded = [0; LONGEST];
    if let Some(start) = folded.get_mut(..bytes.len()) {
        start.copy_from_slice(bytes);
        // All of it, and compared all of it: a length that is known is a few instructions.
        folded.make_ascii_lowercase();
        if let Some((_, name)) = of_length(bytes.len()).iter().find(|(text, _)| *text == folded) {
            return Ok(name.clone());
        }
    }
    HeaderName::from_bytes(bytes)
}

/// Bytes of the longest of them.
const LONGEST: usize = 32;

const fn padded(text: &str) -> [u8; LONGEST] {
    let mut padded = [0; LONGEST];
    let (start, _) = padded.split_at_mut(text.len());
    start.copy_from_slice(text.as_bytes());
    padded
}

macro_rules! names {
    ($($length:literal: $($name:literal)*;)*) => {
        /// Those of this length, behind their text.
        fn of_length(length: usize) -> &'static [([u8; LONGEST], HeaderName)] {
            match length {
                $($length => {
                    static NAMES: [([u8; LONGEST], HeaderName); [$($name),*].len()] =
                        [$((padded($name), HeaderName::from_static($name))),*];
                    &NAMES
                })*
                _ => &[],
            }
        }

        #[cfg(test)]
        const ALL: &[(usize, &[&str])] = &[$(($length, &[$($name),*])),*];
    };
}

names! {
    3: "age" "via";
    4: "host" "date" "etag" "vary";
    6: "accept" "cookie" "server" "origin" "pragma";
    7: "referer" "expires";
    8: "location" "priority";
    9: "x-real-ip" "sec-ch-ua" "x-api-key" "x-runtime";
    10: "user-agent" "connection" "set-cookie" "tracestate" "keep-alive";
    11: "x-amz-cf-id" "traceparent" "x-csrftoken";
    12: "content-type" "x-request-id" "x-csrf-token" "x-powered-by";
    13: "cache-control" "last-modified" "authorization" "if-none-match" "accept-ranges" "server-timing";
    14: "content-length" "sec-fetch-site" "sec-fetch-mode" "sec-fetch-user" "sec-fetch-dest";
    15: "accept-encoding" "accept-language" "x-frame-options" "referrer-policy" "x-forwarded-for" "x-amzn-trace-id";
    16: "content-encoding" "x-forwarded-port" "x-forwarded-host" "sec-ch-ua-mobile" "x-requested-with" "x-correlation-id";
    17: "if-modified-since" "x-forwarded-proto";
    18: "sec-ch-ua-platform" "permissions-policy";
    19: "content-disposition";
    22: "x-content-type-options";
    23: "content-security-policy";
    25: "upgrade-insecure-requests" "strict-transport-security";
    26: "cross-origin-opener-policy";
    27: "access-control-allow-origin";
    28: "cross-origin-resource-policy" "cross-origin-embedder-policy";
    32: "access-control-allow-credentials";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_where_it_is_looked_for_and_is_what_the_library_makes_of_it() {
        for (length, names) in ALL {
            for text in *names {
                assert_eq!(text.len(), *length, "{text}");
                for spelling in [(*text).to_owned(), text.to_ascii_uppercase()] {
                    let found = name(spelling.as_bytes()).unwrap();
                    assert_eq!((found.as_str(), &found), (*text, &text.parse().unwrap()), "{spelling}");
                    assert!(of_length(*length).iter().any(|(_, known)| *known == found));
                }
            }
        }
    }

    #[test]
    fn others_are_the_librarys() {
        for text in
            ["host", "x-something-of-its-own", "sec-fetch-typo", "a-name-that-is-longer-than-all-of-them-together"]
        {
            assert_eq!(name(text.as_bytes()).unwrap(), HeaderName::from_bytes(text.as_bytes()).unwrap());
        }
        for text in ["", "a b", "sec-ch-ua:", "x\u{e9}"] {
            assert!(name(text.as_bytes()).is_err(), "{text}");
        }
    }
}
