//! What a client leaves lying at the end of an answer over HTTP/2. TLS takes up to 16 KiB more than the socket does:
//! for `h2` they are written, and nothing of HTTP/2 waits any more.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::SELF_SIGNED;
use crate::support::app::answer;
use crate::support::frames::{DATA, END_STREAM, Frames, GOAWAY, RST_STREAM, WINDOW_UPDATE};
use crate::support::tls::Stream;
use crate::support::{PATIENCE, Task, eventually};

/// A client that asks and doesn't read what comes.
struct Lazy {
    size: usize,
    /// Its own, and hostward's.
    ports: [String; 2],
    frames: Frames,
}

impl Lazy {
    /// Asks for so many bytes.
    fn ask(address: SocketAddr, size: usize) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // The less there is room for, the more exactly is it known.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE: as much as there is.
        let mut frames = Frames::over(Stream::tls(stream, &[b"h2"]), &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frames.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).unwrap();
        let (path, authority) = (format!("/{size}"), (":authority", "www.example.com"));
        frames.ask(1, END_STREAM, &[(":method", "GET"), (":scheme", "https"), authority, (":path", &path)]);
        let tcp = frames.stream.tcp();
        let ports = [tcp.local_addr(), tcp.peer_addr()].map(|address| format!("{:04X}", address.unwrap().port()));
        Self { size, ports, frames }
    }
}

/// For each client: bytes that have left hostward and not been read, and whether hostward still has the connection.
fn in_the_kernel(clients: &[Lazy]) -> Vec<(usize, bool)> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // Number, local address, remote address, state, tx_queue:rx_queue.
    let lines: Vec<Vec<_>> = table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let of = |client: &Lazy| {
        let [own, its] = &client.ports;
        let (mut bytes, mut open) = (0, false);
        for line in &lines {
            let ports = [line[1], line[2]].map(|address| &address[address.len() - 4..]);
            let queue = |at: usize| usize::from_str_radix(line[4].split(':').nth(at).unwrap(), 16).unwrap();
            if ports == [its, own] {
                bytes += queue(0);
                open = line[3] == ESTABLISHED;
            } else if ports == [own, its] {
                bytes += queue(1);
            }
        }
        (bytes, open)
    };
    clients.iter().map(of).collect()
}

/// The same, once it doesn't change any more.
fn settled(clients: &[Lazy]) -> Vec<(usize, bool)> {
    let (mut last, mut since) = (Vec::new(), Instant::now());
    eventually("the kernel has taken what it takes", || {
        let now = in_the_kernel(clients);
        // Not before the answers have begun: a handshake has fewer bytes.
        if now != last || now.iter().any(|(bytes, _)| *bytes < 10_000) {
            (last, since) = (now, Instant::now());
            return None;
        }
        (since.elapsed() > STEADY).then_some(now)
    })
}

#[test]
fn the_last_bytes_of_an_answer_are_not_left_lying_for_ever() {
    let task = Task::start(&[SELF_SIGNED, ("HOSTWARD_BODY_TIMEOUT", "3s"), ("HOSTWARD_IDLE_TIMEOUT", "1h")], |talk| {
        let size = talk.request.target[1..].parse().unwrap();
        talk.reply(answer("200 OK", "", &"x".repeat(size)))
    });
    let address = task.hostward.address;
    // What one connection takes up in the kernel, every one does, within some KiB.
    let (room, _) = settled(&[Lazy::ask(address, 32 << 20)])[0];
    let clients: Vec<_> = (0..16).map(|step| Lazy::ask(address, room - 28_000 + step * 4000)).collect();
    let begun = Instant::now();
    let unread = settled(&clients);
    assert!(unread.iter().all(|(_, open)| *open), "{unread:?}");
    // The first one's is whole: so many more are the bytes of handshake, records and frames.
    let more = unread[0].0 - clients[0].size;
    let left: Vec<_> =
        clients.iter().zip(&unread).map(|(client, (bytes, _))| (client.size + more).saturating_sub(*bytes)).collect();
    // As exactly as that is known: connections differ by some hundred bytes of records and frames.
    let held: Vec<_> = (0..clients.len()).filter(|number| left[*number] > 2000).collect();
    let by_tls_alone = held.iter().filter(|number| left[**number] < 15_000).count();
    assert!(by_tls_alone > 0 && by_tls_alone < held.len() && held.len() < clients.len(), "{left:?}");
    eventually("hostward has let go of them", || {
        let open = in_the_kernel(&clients);
        held.iter().all(|number| !open[*number].1).then_some(())
    });
    // The stream's time, and on a machine with other work to do the connection's after it; not one after another.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    // What has left hostward may lie for as long as a connection may be idle.
    assert!(in_the_kernel(&clients)[0].1);
}

#[test]
fn a_slow_client_gets_all_of_a_long_answer_over_http_2() {
    let size = 12 << 20;
    let task =
        Task::start(&[SELF_SIGNED, ("HOSTWARD_BODY_TIMEOUT", "3s"), ("HOSTWARD_IDLE_TIMEOUT", "1s")], move |talk| {
            talk.reply(answer("200 OK", "", &"x".repeat(size)))
        });
    let mut client = Lazy::ask(task.hostward.address, size);
    let begun = Instant::now();
    let (mut got, mut ended) = (0, false);
    while !ended {
        let frame = client.frames.next().expect("the connection stays");
        assert!(frame.kind != RST_STREAM && frame.kind != GOAWAY, "{frame:?} after {got}");
        if frame.kind == DATA {
            got += frame.payload.len();
            ended = frame.flags & END_STREAM != 0;
        }
        // Slow for longer than any timeout, and whole in the end.
        if begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(got, size);
    assert_eq!(task.hostward.request_line("/12582912")["bytes_out"], size);
}

/// In `/proc/net/tcp`.
const ESTABLISHED: &str = "01";
/// For so long nothing has to change.
const STEADY: Duration = Duration::from_millis(500);
