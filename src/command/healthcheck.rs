//! `hostward healthcheck`: asks the hostward of this container whether it is live or ready, for an image that
//! has no curl. Plain blocking sockets: a health check runs every few seconds and should cost nothing.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::config::Config;

/// Asks, prints one line, and returns the exit code.
pub fn run(config: &Config, ready: bool, out: &mut impl Write) -> u8 {
    let (code, line) = match ask(config, ready) {
        Ok(line) => (0, line),
        Err(line) => (1, line),
    };
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

/// For the whole check. ECS gives a container's health check 5 s by default, and 2 at least.
const TIMEOUT: Duration = Duration::from_secs(2);

/// More than a status line can be.
const MOST: usize = 1024;

fn ask(config: &Config, ready: bool) -> Result<String, String> {
    let (setting, address) = match config.admin_listen {
        Some(address) => ("HOSTWARD_ADMIN_LISTEN", address),
        None if ready => return Err("not known: HOSTWARD_ADMIN_LISTEN is off, and nobody else says so".into()),
        None => ("HOSTWARD_LISTEN", config.listen),
    };
    if address.port() == 0 {
        return Err(format!("not known: {setting} has port 0, so the port is not in the settings"));
    }
    let deadline = Instant::now() + TIMEOUT;
    let (address, stream) = connect(address, deadline).map_err(|error| format!("not live: {address}: {error}"))?;
    if config.admin_listen.is_none() {
        return Ok(format!(
            "accepts connections on {address} (HOSTWARD_ADMIN_LISTEN is off: nothing more can be asked)"
        ));
    }
    let (path, word) = if ready { ("/readyz", "ready") } else { ("/livez", "live") };
    match status(stream, address, path, deadline) {
        Ok(200) => Ok(word.into()),
        Ok(code) => Err(format!("not {word}: {path} on {address} answered {code}")),
        Err(error) => Err(format!("not {word}: {path} on {address}: {error}")),
    }
}

/// Connects; to loopback, where hostward listens on every address.
pub(super) fn connect(address: SocketAddr, deadline: Instant) -> io::Result<(SocketAddr, TcpStream)> {
    let hosts = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        // `[::]` falls back to IPv4 where there is no IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ip => vec![ip],
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for host in hosts {
        let address = SocketAddr::new(host, address.port());
        match time_left(deadline).and_then(|left| TcpStream::connect_timeout(&address, left)) {
            Ok(stream) => return Ok((address, stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads some bytes until the deadline, however slowly those before came.
pub(super) fn read(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            read => return read,
        }
    }
}

/// The time until the deadline, which isn't zero: that would mean no timeout.
pub(super) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn status(mut stream: TcpStream, address: SocketAddr, path: &str, deadline: Instant) -> io::Result<u16> {
    stream.set_write_timeout(Some(time_left(deadline)?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut buffer = [0; MOST];
    let mut length = 0;
    while !buffer[..length].contains(&b'\n') {
        let read = read(&mut stream, &mut buffer[length..], deadline)?;
        if read == 0 {
            return Err(io::Error::other("no HTTP answer"));
        }
        length += read;
    }
    let mut response = httparse::Response::new(&mut []);
    // Only the status line is of interest: what follows it may be half there, or too much for no headers.
    let parsed = response.parse(&buffer[..length]);
    match (parsed, response.code) {
        (Ok(_) | Err(httparse::Error::TooManyHeaders), Some(code)) => Ok(code),
        _ => Err(io::Error::other("no HTTP answer")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::config::{Flags, load};

    fn config(admin: &str, listen: &str) -> Config {
        let environment = [("ALLOWED_HOSTS", "a.example"), ("ADMIN_LISTEN", admin), ("LISTEN", listen)]
            .map(|(name, value)| (format!("HOSTWARD_{name}").into(), value.into()));
        load(&Flags::default(), environment, false).unwrap().config
    }

    fn checked(config: &Config, ready: bool) -> (u8, String) {
        let mut out = Vec::new();
        let code = run(config, ready, &mut out);
        (code, String::from_utf8(out).unwrap())
    }

    /// Answers one request and hands back its first line.
    fn serve(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(request).unwrap().lines().next().unwrap_or_default().to_owned()
        });
        (address, served)
    }

    #[test]
    fn the_status_decides() {
        for (answer, ready, expected) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..], false, 0),
            (b"HTTP/1.1 200 OK\r\n\r\n", true, 0),
            (b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n", true, 1),
            (b"HTTP/1.1 204 No Content\r\n\r\n", false, 1),
            (b"SSH-2.0-x\r\n", false, 1),
            (b"", false, 1),
        ] {
            let (address, served) = serve(answer);
            let (code, line) = checked(&config(&address.to_string(), ":8080"), ready);
            assert_eq!(code, expected, "{line}");
            assert_eq!(line.lines().count(), 1);
            let path = if ready { "/readyz" } else { "/livez" };
            assert_eq!(served.join().unwrap(), format!("GET {path} HTTP/1.1"));
        }
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        let (address, served) = serve(b"HTTP/1.1 200 OK\r\n\r\n");
        let (code, line) = checked(&config(&format!("[::]:{}", address.port()), "127.0.0.1:1"), false);
        assert_eq!((code, line.as_str()), (0, "live\n"));
        served.join().unwrap();
    }

    #[test]
    fn without_an_admin_port_a_connect_must_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap().to_string();
        let (code, line) = checked(&config("off", &listen), false);
        assert_eq!(code, 0, "{line}");
        let (code, line) = checked(&config("off", &listen), true);
        assert_eq!((code, line.starts_with("not known")), (1, true), "it tells nothing of the app: {line}");
        drop(listener);
        let (code, line) = checked(&config("off", &listen), false);
        assert_eq!((code, line.starts_with("not live")), (1, true), "{line}");
        assert_eq!(checked(&config("127.0.0.1:0", ":8080"), false).0, 1);
    }

    #[test]
    fn one_that_accepts_and_is_silent_is_not_live() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let started = Instant::now();
        let (code, line) = checked(&config(&listener.local_addr().unwrap().to_string(), ":8080"), false);
        assert_eq!((code, line.contains("timed out")), (1, true), "{line}");
        assert!(started.elapsed() < TIMEOUT * 3);
    }
}
