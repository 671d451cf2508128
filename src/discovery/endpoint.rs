//! One question to the task metadata endpoint, and every way in which it can go wrong. Any HTTP endpoint will do,
//! so local stand-ins work. Whether and when to ask again is left to the parent module.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};

use super::document::{Document, presentable};

/// Bound on one question, from name resolution to the last byte: the endpoint is on the same host.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Real documents have a few KiB; a task with very many labels may have tens.
const LARGEST_ANSWER: usize = 1024 * 1024;

/// The endpoint for tasks whose containers are told no address (platform versions before 1.1.0).
const V2: &str = "http://169.254.170.2/v2/metadata";

/// Where the documents are.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The version, for the log.
    pub(super) version: &'static str,
    /// The own container's document; with v2, which can't tell containers apart, the task's.
    pub(super) container: Url,
    /// The task's document, where it is another one.
    pub(super) task: Option<Url>,
}

impl Endpoint {
    /// An endpoint that tells containers apart, by its address in the environment.
    pub(super) fn at(version: &'static str, uri: &str) -> Result<Self, Failure> {
        let unusable = |why: &str| Failure { reason: Reason::Uri, detail: format!("not a usable URL: {why}") };
        let mut container = Url::parse(uri.trim()).map_err(|error| unusable(&error.to_string()))?;
        if container.scheme() != "http" {
            return Err(unusable("the endpoint speaks plain http"));
        }
        let mut task = container.clone();
        for (url, last) in [(&mut container, None), (&mut task, Some("task"))] {
            if let Ok(mut path) = url.path_segments_mut() {
                // AWS answers a doubled slash with a redirect, and a trailing one with 404.
                path.pop_if_empty().extend(last);
            }
        }
        Ok(Self { version, container, task: Some(task) })
    }

    /// The endpoint of version 2, whose address is fixed.
    pub(super) fn v2() -> Result<Self, Failure> {
        Ok(Self { task: None, ..Self::at("v2", V2)? })
    }
}

/// Why there are no addresses yet.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The same reason is not logged again and again, however its details vary.
    pub(super) reason: Reason,
    detail: String,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The environment holds something that is no HTTP URL.
    Uri,
    /// No connection.
    Connect,
    /// No whole answer in time.
    Timeout,
    /// The connection ended, or what came wasn't HTTP.
    Broken,
    /// Another status than 200.
    Status(u16),
    /// An answer without end.
    TooLarge,
    /// 200, but no JSON object.
    NoDocument,
    /// A document that names no address.
    NoAddress,
}

impl Failure {
    /// The documents are there, and name no address.
    pub(super) fn no_address() -> Self {
        let detail = "the document names no address (yet): no network of a running container has one".to_owned();
        Self { reason: Reason::NoAddress, detail }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// The client for all questions. Proxy variables don't count: the endpoint is link-local, and what it says decides
/// who may enter.
pub(super) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(TRY_TIMEOUT)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("hostward/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Asks once.
pub(super) async fn ask(client: &Client, url: &Url) -> Result<Document, Failure> {
    let mut response = client.get(url.clone()).send().await.map_err(|error| broken(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    // Counted while reading: a length can be missing, and a promise of a short body broken.
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            let detail = format!("the answer is longer than {LARGEST_ANSWER} bytes");
            return Err(Failure { reason: Reason::TooLarge, detail });
        }
        body.extend_from_slice(&chunk);
    }
    if status != StatusCode::OK {
        let detail = format!("answered {}{}", status.as_u16(), excerpt(&body));
        return Err(Failure { reason: Reason::Status(status.as_u16()), detail });
    }
    Document::parse(&body).ok_or_else(|| {
        let detail = format!("the answer is not a JSON object{}", excerpt(&body));
        Failure { reason: Reason::NoDocument, detail }
    })
}

/// How a URL looks in the log: without a password, and capped.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "(a URL with a password)".to_owned();
    }
    presentable(url.as_str()).unwrap_or_default()
}

fn broken(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        let detail = format!("no whole answer within {TRY_TIMEOUT:?}");
        return Failure { reason: Reason::Timeout, detail };
    }
    let connect = error.is_connect();
    // The outer layers only say "error sending request for url"; the innermost one knows why.
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let why = presentable(&innermost.to_string()).unwrap_or_default();
    if connect {
        Failure { reason: Reason::Connect, detail: format!("could not connect: {why}") }
    } else {
        Failure { reason: Reason::Broken, detail: format!("the answer broke off or was not HTTP: {why}") }
    }
}

/// What a body says, for the log. AWS's errors are JSON strings.
fn excerpt(body: &[u8]) -> String {
    let text = serde_json::from_slice::<String>(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    presentable(&text).map_or_else(String::new, |text| format!(": {text}"))
}
