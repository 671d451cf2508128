//! The sending of one request on one stream, until the head of the answer is there.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use h2::{Reason, RecvStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri, Version, header};
use http_body::Body;

use super::{Lease, Replay};
use crate::error::Failure;
use crate::http2::pump::{Pump, Stopped};
use crate::http2::stream_body;
use crate::io::flight::{Flight, WaitingFor};
use crate::message::interim;

/// Why an attempt brought no response.
pub(super) enum Missed {
    /// The app has refused the stream, and not acted on the request.
    Refused,
    /// The app has not acted on the request, and takes no more on this connection.
    Unprocessed,
    /// The connection broke. The app may have acted.
    Broken(Failure),
    /// Another attempt would not help.
    Final(Failure),
}

/// Sends the request on one stream and waits for the head of the answer.
pub(super) async fn attempt(
    lease: &Lease,
    head: Request<()>,
    body: &mut Replay,
    flight: &Rc<Flight>,
    takes_interim: bool,
) -> Result<(Response<RecvStream>, Option<Pump<Replay>>), Missed> {
    let mut sender = lease.place.open.sender.clone().ready().await.map_err(|_| Missed::Unprocessed)?;
    let ends = body.is_end_stream();
    let (mut response, stream) = sender.send_request(head, ends).map_err(|_| Missed::Unprocessed)?;
    drop(sender);
    let mut pump =
        (!ends).then(|| Pump::new(std::mem::replace(body, Replay::empty()), stream, Rc::clone(&lease.place.open.gate)));
    let mut sent = ends;
    let outcome = poll_fn(|cx| {
        if let Some(pump) = pump.as_mut().filter(|_| !sent) {
            match pump.poll(cx, no_edit) {
                Poll::Ready(Err(Stopped::Body(failure))) => return Poll::Ready(Err(Missed::Final(failure))),
                // What is wrong with the stream, the response tells.
                Poll::Ready(Ok(()) | Err(Stopped::Refused)) => sent = true,
                Poll::Pending => {}
            }
        }
        while let Poll::Ready(Some(Ok(hints))) = response.poll_informational(cx) {
            if let (true, Some(bytes)) = (takes_interim, interim::write(&hints)) {
                flight.queue_interim(&bytes);
                // Who sends it on has to look again.
                cx.waker().wake_by_ref();
            }
        }
        match Pin::new(&mut response).poll(cx) {
            Poll::Ready(response) => return Poll::Ready(response.map_err(|error| why(&error))),
            Poll::Pending => {}
        }
        match flight.overdue() {
            Some(WaitingFor::Body) => Poll::Ready(Err(Missed::Final(Failure::BodyTimeout))),
            Some(WaitingFor::App) => Poll::Ready(Err(Missed::Final(Failure::ResponseTimeout))),
            _ => Poll::Pending,
        }
    })
    .await;
    match outcome {
        Ok(response) => {
            if let Some(pump) = &mut pump {
                pump.body().forget();
            }
            Ok((response, pump.filter(|_| !sent)))
        }
        Err(missed) => {
            if let Some(pump) = pump {
                *body = pump.into_body();
            }
            Err(missed)
        }
    }
}

/// The head of HTTP/1.1 as one of HTTP/2: the `Host` becomes `:authority`, and what belongs to one connection of
/// HTTP/1.1 goes.
pub(super) fn translate(mut head: http::request::Parts) -> Request<()> {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        head.headers.remove(name);
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let host = head.headers.get(header::HOST);
    let target = host.and_then(|host| {
        Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path.clone()).build().ok()
    });
    match target {
        Some(target) => {
            head.headers.remove(header::HOST);
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = target;
        }
        // A request without a host; `h2` takes one of that version without an authority.
        None => *request.uri_mut() = path.into(),
    }
    *request.headers_mut() = head.headers;
    request
}

fn why(error: &h2::Error) -> Missed {
    // RFC 9113 §8.7: in both cases the request has not been processed, and any request may be sent again.
    if error.is_remote() && error.is_go_away() {
        return Missed::Unprocessed;
    }
    if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        return Missed::Refused;
    }
    let failure = lost(error);
    if error.is_io() { Missed::Broken(failure) } else { Missed::Final(failure) }
}

/// Why a response's body is truncated.
pub(super) fn broken(error: &stream_body::Error) -> Failure {
    match error {
        stream_body::Error::Stream(error) => lost(error),
        stream_body::Error::TooManyTrailers => Failure::TooManyResponseHeaders,
    }
}

/// Why a stream has ended before its response has.
fn lost(error: &h2::Error) -> Failure {
    if error.is_io() || (error.is_remote() && error.is_go_away()) {
        Failure::ConnectionLost
    } else if error.is_remote() {
        Failure::StreamReset
    } else {
        // What came was not HTTP/2.
        Failure::ResponseMalformed
    }
}

/// A request's trailers are edited where the body comes in.
pub(super) fn no_edit(_: &mut HeaderMap) {}
