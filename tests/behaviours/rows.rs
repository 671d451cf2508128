//! The rows of the table. Each plays one request, says what the app should get of it and what the client, and knows
//! on which ways that can't be.

mod bodies;
mod faults;
mod hosts;
mod messages;
mod versions;

use super::Row;

pub const ROWS: [(&str, Row); 49] = [
    ("plain GET", messages::plain_get),
    ("path and query, byte for byte", messages::path_and_query),
    ("fields that stand more than once", messages::repeated_fields),
    ("long fields", messages::long_fields),
    ("bytes beyond ASCII in fields", messages::beyond_ascii),
    ("connection-specific fields go no further", messages::connection_fields),
    ("TRACE refused", messages::trace),
    ("POST with a length", bodies::post_with_length),
    ("POST of unknown length", bodies::post_of_unknown_length),
    ("POST of unknown length, unbuffered", bodies::unbuffered_post_of_unknown_length),
    ("empty bodies", bodies::empty_bodies),
    ("huge body up", bodies::huge_body_up),
    ("huge body of unknown length up", bodies::huge_body_of_unknown_length_up),
    ("huge body down", bodies::huge_body_down),
    ("huge body of unknown length down", bodies::huge_body_of_unknown_length_down),
    ("streamed answer, part by part", bodies::streamed_answer),
    ("both talk at once, unbuffered", bodies::both_at_once),
    ("slow reader frees the app", bodies::slow_reader),
    ("HEAD keeps the length", messages::head),
    ("204", messages::no_content),
    ("304 with Content-Length", messages::not_modified),
    ("Range, 206", messages::range),
    ("103 Early Hints", messages::early_hints),
    ("100 that nobody waits for", messages::unasked_100),
    ("Expect: 100-continue", messages::expect),
    ("Expect, refused", messages::expect_refused),
    ("request trailers, unbuffered", messages::request_trailers),
    ("request trailers, buffered", messages::buffered_request_trailers),
    ("response trailers", messages::response_trailers),
    ("HTTP/1.0", versions::http_1_0),
    ("HTTP/1.0 with keep-alive", versions::http_1_0_keep_alive),
    ("WebSocket", versions::websocket),
    ("101 that nobody asked for: 502", versions::unasked_101),
    ("foreign host refused", hosts::foreign_host),
    ("allowed host passes byte for byte", hosts::allowed_host),
    ("probe's host rewritten", hosts::probe),
    ("X-Forwarded-* made", hosts::forwarded_made),
    ("X-Forwarded-* of a trusted proxy", hosts::forwarded_kept),
    ("names that fool apps dropped", hosts::names_dropped),
    ("app answers before the body, unbuffered", faults::early_answer),
    ("app answers without reading the body, buffered", faults::early_answer_to_a_buffered_body),
    ("app closes before its answer: 502", faults::closed_before_the_head),
    ("app closes within a body with a length", faults::closed_within_a_length),
    ("app closes within a body without one", faults::closed_within_a_body),
    ("app goes on talking after its answer", faults::talks_on),
    ("client that says no more is answered", faults::says_no_more),
    ("client leaves: the app is told", faults::client_leaves),
    ("client leaves within the answer: the app is told", faults::client_leaves_an_answer),
    ("body that doesn't fit its length", faults::misfit),
];

/// Bytes.
const MIB: usize = 1 << 20;

/// What every request begins with in HTTP/2.
fn pseudo<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", "www.example.com"), (":path", path)]
}
