//! hostward reads and writes plain messages itself, and leaves the others to hyper: nobody may be able to tell.

use crate::app::Received;
use crate::http1::{self, Fields, Response};
use crate::proxy::Outcome;

/// Compares two conversations, of which one had hyper for everything, at the app and at the client.
///
/// # Errors
///
/// What is not the same.
pub fn differ(plain: &Outcome, hyper: &Outcome) -> Result<(), String> {
    let requests = |outcome: &Outcome| outcome.record.requests.iter().map(settled).collect::<Vec<_>>();
    let (one, other) = (requests(plain), requests(hyper));
    if one != other {
        return Err(format!("the app got {one:?}, and by hyper {other:?}"));
    }
    let (one, other) = (lines(&plain.received), lines(&hyper.received));
    if one != other {
        let shown = |lines: &[&[u8]]| lines.join(&b"\n"[..]).escape_ascii().to_string();
        return Err(format!("the client got\n{}\nand by hyper\n{}", shown(&one), shown(&other)));
    }
    Ok(())
}

/// Compares one answer with what the client got by hyper.
///
/// # Errors
///
/// What is not the same.
pub fn answers_differ(plain: &Response, hyper: &Response) -> Result<(), String> {
    let settled = |answer: &Response| {
        // A list, of which hyper makes one line, and where nothing may stand between two commas.
        let trailer = http1::all(&answer.fields, "trailer").join(&b","[..]);
        let trailer = trailer.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
        let trailer = trailer.collect::<Vec<_>>().join(&b","[..]);
        let mut fields = answer.fields.clone();
        fields.retain(|(name, _)| name != b"date" && name != b"trailer");
        fields.push((b"trailer".to_vec(), trailer));
        // A number, however many zeros it begins with.
        for (_, length) in fields.iter_mut().filter(|(name, _)| name == b"content-length") {
            length.drain(..length.iter().take_while(|digit| **digit == b'0').count());
        }
        let ours = fields.iter().any(|(name, _)| name == b"proxy-status");
        let body = if ours { lines(&answer.body).join(&b"\n"[..]) } else { answer.body.clone() };
        (answer.status, sorted(fields), body, sorted(answer.trailers.clone()), answer.until_close)
    };
    if settled(plain) != settled(hyper) {
        return Err(format!("the client got {plain:?}, and by hyper {hyper:?}"));
    }
    Ok(())
}

/// A request without what is another one each time: its id, its time, and the order of different fields.
fn settled(received: &Received) -> Received {
    let mut received = received.clone();
    if let Received::Http(request) = &mut received {
        request.fields.retain(|(name, _)| name != b"x-request-id" && name != b"x-request-start");
        request.fields = sorted(std::mem::take(&mut request.fields));
    }
    if let Received::Uwsgi(packet) = &mut received {
        packet.variables.retain(|(name, _)| name != b"HTTP_X_REQUEST_ID" && name != b"HTTP_X_REQUEST_START");
        packet.variables.sort();
    }
    received
}

/// Lines of one field in their order.
fn sorted(mut fields: Fields) -> Fields {
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// All lines that the client has got, but those with the time or an id, and the reason of a 400: hyper may have dropped
/// the bytes that show it. A 400 is the last response, and its length is that of the reason.
fn lines(received: &[u8]) -> Vec<&[u8]> {
    const REASON: &[u8] = b"400 Bad Request: ";
    let is_rejected = received.windows(REASON.len()).any(|bytes| bytes == REASON);
    let settled = |line: &&[u8]| {
        let is_settled = |start: &[u8]| line.starts_with(start);
        !is_settled(b"date: ")
            && !is_settled(b"request id: ")
            && !(is_rejected && (is_settled(REASON) || is_settled(b"content-length: ")))
    };
    let mut lines: Vec<&[u8]> = received.split(|byte| *byte == b'\n').filter(settled).collect();
    lines.sort_unstable();
    lines
}
