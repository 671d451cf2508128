//! The app of the table: one script, played by an HTTP/1.1, a uwsgi and an HTTP/2 server alike, at a port or a path.
//! Which script is played, the first segment of the request's path says.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::support::app::{self, Received, Then};
use crate::support::http2;
use crate::support::tls::Stream;
use crate::support::unix::{SocketPath, UnixSocket};
use crate::support::uwsgi::{Packet, UwsgiApp};
use crate::support::wire::{Field, Framing, Input};

/// What hostward connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    HttpTcp,
    HttpUnix,
    UwsgiTcp,
    UwsgiUnix,
    H2c,
}

/// One thing that the app does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads the body to its end, or gives up.
    Read,
    /// Sends an interim answer.
    Interim(u16, Vec<Field>),
    /// Sends the head of the answer: framed by the `content-length` in it, else as the protocol does without.
    Head(u16, Vec<Field>),
    /// Sends a part of the body.
    Data(Bytes),
    /// Ends the answer.
    End,
    /// Ends the answer with trailers.
    Trailers(Vec<Field>),
    /// Switches to another protocol, and sends back what comes.
    Switch,
    /// Waits until the client's side says so.
    Hold,
    /// Waits until hostward gives the request up.
    Gone,
    /// Breaks off.
    Cut,
}

/// A running app. Dropping it ends it.
pub struct App {
    /// The value of `HOSTWARD_UPSTREAM`.
    pub url: String,
    stage: Arc<Stage>,
    _server: Server,
    _socket: Option<(UnixSocket, SocketPath)>,
}

/// A request as the app has it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// With names in lower case. The authority of HTTP/2 is the `host`.
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// Whether the body was read to its end.
    pub whole: bool,
    /// Whether hostward gave it up.
    pub gone: bool,
    /// Whether the script was played to its end.
    pub done: bool,
}

/// What the servers' threads and the rows share.
#[derive(Default)]
struct Stage {
    scripts: Mutex<HashMap<String, Vec<Step>>>,
    seen: Mutex<Vec<Seen>>,
    released: Mutex<HashSet<String>>,
    change: Condvar,
}

/// Kept running.
#[expect(dead_code, reason = "they are dropped, which ends them")]
enum Server {
    Http(app::App),
    Uwsgi(UwsgiApp),
    H2c(http2::App),
}

impl Upstream {
    pub fn is_http1(self) -> bool {
        matches!(self, Self::HttpTcp | Self::HttpUnix)
    }

    pub fn is_uwsgi(self) -> bool {
        matches!(self, Self::UwsgiTcp | Self::UwsgiUnix)
    }
}

impl App {
    pub fn start(upstream: Upstream) -> Self {
        let stage = Arc::<Stage>::default();
        let playing = Arc::clone(&stage);
        let (scheme, address, server) = match upstream {
            _ if upstream.is_http1() => {
                let app = app::App::start(move |talk| http1(&playing, talk.request.clone(), talk.input));
                ("http", app.address, Server::Http(app))
            }
            _ if upstream.is_uwsgi() => {
                let app = UwsgiApp::unread(move |packet, stream| {
                    uwsgi(&playing, packet, &mut Input::new(Stream::Plain(stream.try_clone().unwrap())));
                });
                ("uwsgi", app.address, Server::Uwsgi(app))
            }
            _ => {
                let app = http2::App::start(100, move |talk| h2c(Arc::clone(&playing), talk));
                ("h2c", app.address, Server::H2c(app))
            }
        };
        let at_path = matches!(upstream, Upstream::HttpUnix | Upstream::UwsgiUnix);
        let socket = at_path.then(SocketPath::new).map(|path| (path.listen(address), path));
        let url = match &socket {
            Some((_, path)) => format!("{scheme}+unix:{}", path.0.display()),
            None => format!("{scheme}://{address}"),
        };
        Self { url, stage, _server: server, _socket: socket }
    }

    /// What is to be done with requests whose path begins with `key`, and held until it is released anew. A script that
    /// doesn't say so ends its answer.
    pub fn will(&self, key: &str, mut script: Vec<Step>) {
        let ends = |step: &Step| matches!(step, Step::End | Step::Trailers(_) | Step::Switch | Step::Gone | Step::Cut);
        if !script.iter().any(ends) {
            script.push(Step::End);
        }
        self.stage.released.lock().unwrap().remove(key);
        self.stage.scripts.lock().unwrap().insert(key.to_owned(), script);
    }

    /// Ends the hold.
    pub fn release(&self, key: &str) {
        self.stage.released.lock().unwrap().insert(key.to_owned());
        self.stage.change.notify_all();
    }

    /// The requests that have come.
    pub fn seen(&self, key: &str) -> Vec<Seen> {
        let seen = self.stage.seen.lock().unwrap();
        seen.iter().filter(|seen| key_of(&seen.target) == key).cloned().collect()
    }
}

impl Seen {
    /// The value of the only field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        crate::support::wire::field(&self.fields, name)
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }
}

impl Stage {
    fn begin(&self, seen: Seen) -> (usize, String, Vec<Step>) {
        let key = key_of(&seen.target).to_owned();
        let script = self.scripts.lock().unwrap().get(&key).cloned().unwrap_or_default();
        let mut all = self.seen.lock().unwrap();
        all.push(seen);
        (all.len() - 1, key, script)
    }

    fn update(&self, number: usize, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap()[number]);
    }

    /// Waits as long as the row takes, however busy the machine is: every cell releases its key at its end.
    fn wait_released(&self, key: &str) {
        let released = self.released.lock().unwrap();
        drop(self.change.wait_while(released, |released| !released.contains(key)).unwrap());
    }

    fn is_released(&self, key: &str) -> bool {
        self.released.lock().unwrap().contains(key)
    }
}

fn http1(stage: &Stage, request: Received, input: &mut Input) -> Then {
    let Received { method, target, fields, framing, .. } = request;
    play(stage, input, Seen { method, target, fields: lower(fields), ..Seen::default() }, framing, true)
}

fn uwsgi(stage: &Stage, packet: &Packet, input: &mut Input) {
    let named = |name: &str| packet.value(name).unwrap_or_default().to_owned();
    let mut fields: Vec<Field> = Vec::new();
    for (name, value) in &packet.variables {
        let name = match name.as_str() {
            "CONTENT_TYPE" | "CONTENT_LENGTH" if value.is_empty() => continue,
            "CONTENT_TYPE" | "CONTENT_LENGTH" => name,
            _ => match name.strip_prefix("HTTP_") {
                Some(name) => name,
                None => continue,
            },
        };
        fields.push((name.to_ascii_lowercase().replace('_', "-"), value.clone()));
    }
    let seen = Seen { method: named("REQUEST_METHOD"), target: named("REQUEST_URI"), fields, ..Seen::default() };
    play(stage, input, seen, Framing::Length(packet.length() as u64), false);
}

/// Plays a script on a connection of HTTP/1.1, or of uwsgi, whose answers look alike. One ends with its connection.
fn play(stage: &Stage, input: &mut Input, seen: Seen, framing: Framing, chunks: bool) -> Then {
    let (to_head, mut chunked, mut read) = (seen.method == "HEAD", false, framing == Framing::Empty);
    let (number, key, script) = stage.begin(seen);
    for step in script {
        let sent = match step {
            Step::Read => {
                let Ok((body, trailers)) = input.body(framing) else { return Then::Close };
                read = true;
                stage.update(number, |seen| (seen.body, seen.trailers, seen.whole) = (body, lower(trailers), true));
                Ok(())
            }
            Step::Interim(status, fields) => send(input, &head(status, &fields)),
            Step::Head(status, mut fields) => {
                let bodiless = to_head || matches!(status, 204 | 304);
                let told = fields.iter().any(|(name, _)| name == "content-length");
                // uwsgi has no chunks, but an app that wants trailers may make them.
                chunked = !bodiless && !told && (chunks || fields.iter().any(|(name, _)| name == "trailer"));
                if chunked {
                    fields.push(("transfer-encoding".into(), "chunked".into()));
                }
                // RFC 9112 §9.6: a server that will close the connection says so.
                if !read {
                    fields.push(("connection".into(), "close".into()));
                }
                send(input, &head(status, &fields))
            }
            Step::Data(bytes) if chunked => send(input, format!("{:x}\r\n", bytes.len()).as_bytes())
                .and_then(|()| send(input, &bytes))
                .and_then(|()| send(input, b"\r\n")),
            Step::Data(bytes) => send(input, &bytes),
            Step::End if chunked => send(input, b"0\r\n\r\n"),
            Step::End => Ok(()),
            Step::Trailers(fields) => send(input, format!("0\r\n{}\r\n", lines(&fields)).as_bytes()),
            Step::Switch => {
                send(input, SWITCH.as_bytes()).ok();
                while let Ok(bytes) = input.exactly(1) {
                    send(input, &bytes).ok();
                }
                stage.update(number, |seen| seen.gone = true);
                return Then::Close;
            }
            Step::Hold => {
                stage.wait_released(&key);
                Ok(())
            }
            Step::Gone => {
                let gone = input.rest().is_ok();
                stage.update(number, |seen| seen.gone = gone);
                return Then::Close;
            }
            Step::Cut => return Then::Close,
        };
        if sent.is_err() {
            return Then::Close;
        }
    }
    stage.update(number, |seen| seen.done = true);
    if read { Then::Keep } else { Then::Close }
}

async fn h2c(stage: Arc<Stage>, mut talk: http2::Conversation) {
    let head = &talk.head;
    let mut fields = pairs(head.headers());
    fields.extend(head.uri().authority().map(|authority| ("host".to_owned(), authority.to_string())));
    let target = head.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let seen = Seen { method: head.method().to_string(), target, fields, ..Seen::default() };
    let (to_head, mut stream) = (seen.method == "HEAD", None);
    let (number, key, script) = stage.begin(seen);
    for step in script {
        match step {
            Step::Read => {
                let Ok((body, trailers)) = http2::body(&mut talk.body).await else { return };
                let trailers = pairs(&trailers);
                stage.update(number, |seen| (seen.body, seen.trailers, seen.whole) = (body, trailers, true));
            }
            Step::Interim(status, fields) => talk.respond.send_informational(response(status, &fields)).unwrap(),
            Step::Head(status, fields) => {
                let bodiless = to_head || matches!(status, 204 | 304);
                let begun = talk.respond.send_response(response(status, &fields), bodiless).ok();
                stream = begun.filter(|_| !bodiless);
            }
            Step::Data(bytes) => {
                if let Some(stream) = &mut stream
                    && !send_in_turn(stream, bytes).await
                {
                    return;
                }
            }
            Step::End => drop(stream.take().map(|mut stream| stream.send_data(Bytes::new(), true))),
            Step::Trailers(fields) => drop(stream.take().map(|mut stream| stream.send_trailers(map(&fields)))),
            // HTTP/2 has no such thing.
            Step::Switch => talk.reply(501, b""),
            Step::Hold => http2::until(|| stage.is_released(&key)).await,
            Step::Gone => {
                let reason = match &mut stream {
                    Some(stream) => std::future::poll_fn(|cx| stream.poll_reset(cx)).await,
                    None => std::future::poll_fn(|cx| talk.respond.poll_reset(cx)).await,
                };
                stage.update(number, |seen| seen.gone = reason.is_ok_and(|reason| reason == Reason::CANCEL));
                return;
            }
            Step::Cut => {
                match stream {
                    Some(mut stream) => stream.send_reset(Reason::INTERNAL_ERROR),
                    None => talk.respond.send_reset(Reason::INTERNAL_ERROR),
                }
                return;
            }
        }
    }
    stage.update(number, |seen| seen.done = true);
}

/// As the other side's window allows it, so that sent is not merely kept by the library. Whether anybody wants it.
async fn send_in_turn(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len().min(16 << 10));
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return false };
        let part = bytes.split_to(room.min(bytes.len()));
        if stream.send_data(part, false).is_err() {
            return false;
        }
    }
    true
}

/// Names and values of HTTP/2.
pub fn pairs(fields: &HeaderMap) -> Vec<Field> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    fields.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// The other way.
pub fn map(fields: &[Field]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
        .collect()
}

/// Names in lower case, as HTTP/2 has them.
pub fn lower(fields: Vec<Field>) -> Vec<Field> {
    fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}

/// Field lines of HTTP/1.1.
pub fn lines(fields: &[Field]) -> String {
    fields.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect()
}

fn key_of(target: &str) -> &str {
    target.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default()
}

fn response(status: u16, fields: &[Field]) -> Response<()> {
    let mut response = Response::builder().status(status).body(()).unwrap();
    response.headers_mut().extend(map(fields));
    response
}

fn head(status: u16, fields: &[Field]) -> Vec<u8> {
    format!("HTTP/1.1 {status} Said\r\n{}\r\n", lines(fields)).into_bytes()
}

fn send(input: &mut Input, bytes: &[u8]) -> std::io::Result<()> {
    std::io::Write::write_all(&mut input.stream, bytes)
}

/// RFC 6455 §1.3: the answer to the key in `rows`.
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
