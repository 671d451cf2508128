//! Whether the app can be reached from outside of the task, past hostward: in `awsvpc` mode the containers of a task share
//! their network namespace, so the kernel's table of listening sockets shows on which addresses the app listens.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::config::{Endpoint, Upstream};

/// Says so, once the app listens.
pub async fn watch(upstream: &Upstream) {
    let Endpoint::Tcp { host, port } = &upstream.endpoint else { return };
    let is_here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if !is_here {
        // Another namespace: its sockets aren't in this one's table.
        return;
    }
    for _ in 0..LOOKS {
        // By lines, because a table has one for each connection, those too that have just been closed.
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| File::open(path).ok());
        let listening = tables.flat_map(|table| listening(BufReader::new(table)));
        let listening: Vec<SocketAddr> = listening.filter(|address| address.port() == *port).collect();
        if let Some(address) = listening.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
            tracing::warn!(
                address = %address,
                hint = format!("whoever reaches the task's port {port} reaches the app without hostward: let the app listen on 127.0.0.1:{port}, or see to it that the security group keeps that port closed"),
                "app is open to the network"
            );
        }
        if !listening.is_empty() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The listening sockets of a table as the kernel writes it (proc(5), `/proc/net/tcp`).
fn listening(table: impl BufRead) -> impl Iterator<Item = SocketAddr> {
    table.lines().map_while(Result::ok).skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state) = (words.next()?, words.next()?, words.next()?);
        (state == LISTEN).then(|| address(local)).flatten()
    })
}

/// `0100007F:1F40`: words of four bytes, each in the machine's own order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for at in 0..4 {
                octets[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The kernel's number for the state.
const LISTEN: &str = "0A";
/// An app that hasn't come up in ten minutes has other worries.
const LOOKS: u32 = 300;
const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 0100007F:1F41 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   3: 00000000000000000000000001000000:1F42 00000000000000000000000000000000:0000 0A 0
   4: 00000000000000000000000000000000:1F43 00000000000000000000000000000000:0000 0A 0
   5: xyz";
        let expected = ["127.0.0.1:8000", "0.0.0.0:80", "[::1]:8002", "[::]:8003"];
        let expected: Vec<SocketAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(listening(table.as_bytes()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_kernel_writes_such_a_table() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let table = std::fs::read("/proc/net/tcp").unwrap();
        let found = listening(&*table).any(|address| address == listener.local_addr().unwrap());
        assert!(found, "{}", String::from_utf8_lossy(&table));
    }
}
