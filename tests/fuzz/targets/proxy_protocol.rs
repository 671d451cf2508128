//! The PROXY header by another reading of `HAProxy`'s `doc/proxy-protocol.txt`, and what stands behind it is left alone.
//!
//! An input is a byte of settings and what a peer sends before it half-closes.

#![no_main]

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hostward::config::ProxyProtocol;
use hostward::downstream::proxy_protocol::{Refusal, client};
use hostward::worker;
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;
use tokio::runtime::LocalRuntime;

thread_local! {
    static RUNTIME: LocalRuntime = worker::runtime().expect("a runtime");
    static LISTENER: TcpListener = TcpListener::bind("127.0.0.1:0").expect("a port");
}

fuzz_target!(|input: &[u8]| {
    let Some((byte, sent)) = input.split_first() else { return };
    let mode = [ProxyProtocol::Off, ProxyProtocol::Optional, ProxyProtocol::Required][usize::from(byte & 15) % 3];
    let trusted = byte & 16 != 0;
    let peer: SocketAddr = "203.0.113.9:40000".parse().expect("an address");

    let read = read(sent);
    let (expected, used) = match (mode, trusted) {
        (ProxyProtocol::Off, _) | (ProxyProtocol::Optional, false) => (Ok(peer), 0),
        (ProxyProtocol::Required, false) => (Err(Refusal::Untrusted), 0),
        (ProxyProtocol::Optional | ProxyProtocol::Required, true) => match read {
            Read::Names(client, used) => (Ok(client), used),
            Read::NamesNobody(used) => (Ok(peer), used),
            Read::None if mode == ProxyProtocol::Optional => (Ok(peer), 0),
            Read::None => (Err(Refusal::Missing), 0),
            Read::Malformed => (Err(Refusal::Malformed), 0),
            Read::Gone => (Err(Refusal::Gone), 0),
            Read::Open => return,
        },
    };
    // A peer that has closed its side is not waited for.
    let timeout = Duration::from_secs(10);

    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut theirs, ours) = LISTENER.with(connect).expect("loopback");
            theirs.write_all(sent).expect("an empty socket takes it");
            theirs.shutdown(Shutdown::Write).expect("a socket that is open");
            let mut ours = tokio::net::TcpStream::from_std(ours).expect("a socket");
            let found = client(&mut ours, peer, trusted, mode, timeout).await.map(|(client, _)| client);
            assert_eq!(found, expected, "{}", sent.escape_ascii());
            if found.is_ok() {
                let mut rest = Vec::new();
                ours.read_to_end(&mut rest).await.expect("what was sent");
                assert_eq!(rest, sent[used..], "what stands behind the header");
            }
            // Closed by a reset: with ports in TIME-WAIT, they would soon be used up.
            ours.set_zero_linger().expect("a socket");
        });
    });
});

/// Two ends of a connection, the second of which doesn't block.
fn connect(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let theirs = TcpStream::connect(listener.local_addr()?)?;
    let (ours, _) = listener.accept()?;
    ours.set_nonblocking(true)?;
    Ok((theirs, ours))
}

enum Read {
    Names(SocketAddr, usize),
    NamesNobody(usize),
    /// Something else.
    None,
    /// The end came within a header, or at once.
    Gone,
    Malformed,
    /// The specification doesn't say.
    Open,
}

fn read(sent: &[u8]) -> Read {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const NAME: &[u8] = b"PROXY ";
    if sent.is_empty() {
        return Read::Gone;
    }
    if sent.starts_with(SIGNATURE) {
        return version_2(sent);
    }
    if sent.starts_with(NAME) {
        // "108 bytes is always enough" with a NUL.
        let longest = &sent[..sent.len().min(107)];
        return match longest.iter().position(|byte| *byte == b'\n') {
            Some(end) => version_1(&longest[..=end]),
            None if longest.len() == 107 => Read::Malformed,
            None => Read::Gone,
        };
    }
    if SIGNATURE.starts_with(sent) || NAME.starts_with(sent) { Read::Gone } else { Read::None }
}

/// Section 2.1.
fn version_1(line: &[u8]) -> Read {
    let used = line.len();
    let Some(line) = line.strip_suffix(b"\r\n") else { return Read::Malformed };
    // "The receiver must ignore anything presented before the CRLF is found"; a CR that none follows is none.
    if line == b"PROXY UNKNOWN" || (line.starts_with(b"PROXY UNKNOWN ") && !line.contains(&b'\r')) {
        return Read::NamesNobody(used);
    }
    let Ok(line) = std::str::from_utf8(line) else { return Read::Malformed };
    let words: Vec<&str> = line.split(' ').collect();
    let [_, family, source, destination, source_port, destination_port] = words[..] else { return Read::Malformed };
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    // "Heading zeroes are not permitted".
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    match (address(source), address(destination), port(source_port), port(destination_port)) {
        (Some(source), Some(_), Some(port), Some(_)) => Read::Names(SocketAddr::new(source.to_canonical(), port), used),
        _ => Read::Malformed,
    }
}

/// Section 2.2.
fn version_2(sent: &[u8]) -> Read {
    let Some(fixed) = sent.first_chunk::<16>() else { return Read::Gone };
    let length = usize::from(fixed[14]) * 256 + usize::from(fixed[15]);
    // hostward's own bound; a header may be 64 KiB long.
    if length > 4096 {
        return Read::Malformed;
    }
    let Some(rest) = sent.get(16..16 + length) else { return Read::Gone };
    let used = 16 + length;
    let (version, command) = (fixed[12] >> 4, fixed[12] & 15);
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 15);
    match (version, command) {
        // "must discard the protocol block including the family which is ignored".
        (2, 0) => return Read::NamesNobody(used),
        (2, 1) => {}
        _ => return Read::Malformed,
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (family, transport) {
        (1, 1 | 2) if length >= 12 => {
            let address: [u8; 4] = [rest[0], rest[1], rest[2], rest[3]];
            Read::Names(SocketAddr::new(IpAddr::from(address), port(8)), used)
        }
        (2, 1 | 2) if length >= 36 => {
            let mut address = [0; 16];
            address.copy_from_slice(&rest[..16]);
            Read::Names(SocketAddr::new(IpAddr::from(address).to_canonical(), port(32)), used)
        }
        (3, 1 | 2) if length >= 216 => Read::NamesNobody(used),
        // Too short; and "other values are reserved and must not be emitted and must be rejected as invalid by receivers".
        (1..=3, 1 | 2) | (4.., _) | (_, 3..) => Read::Malformed,
        // A family without a transport is not among the values that are listed, and none of those that are reserved.
        (1..=3, 0) => Read::Open,
        // "UNSPEC": "the receiver is free to accept the connection anyway and use the real endpoint addresses".
        _ => Read::NamesNobody(used),
    }
}
