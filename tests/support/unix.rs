//! A socket at a path or with an abstract name, whose connections lead to an app with a port: what one side says or
//! ends, the other gets. So the app that the other tests use can listen anywhere.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// A listening socket. Dropping it closes it, and leaves the path behind as a killed app does.
pub struct UnixSocket {
    /// The path; of an abstract socket, the name with an `@` in front.
    pub name: String,
    address: net::SocketAddr,
    ended: Arc<AtomicBool>,
}

/// A path of its own, removed with what is there when it is dropped.
pub struct SocketPath(pub PathBuf);

impl SocketPath {
    /// Nothing is there yet.
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hostward-unix-{}-{}.sock", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // A socket's path is short, the target directory's may be long.
        Self(std::env::temp_dir().join(name))
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    pub fn url(&self) -> String {
        format!("http+unix:{}", self.0.display())
    }

    /// Listens, and leads to `app`.
    pub fn listen(&self, app: SocketAddr) -> UnixSocket {
        let address = net::SocketAddr::from_pathname(&self.0).unwrap();
        UnixSocket::listen(self.0.display().to_string(), address, app)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

impl UnixSocket {
    /// An abstract socket that leads to `app`.
    pub fn named(name: &str, app: SocketAddr) -> Self {
        Self::listen(format!("@{name}"), net::SocketAddr::from_abstract_name(name).unwrap(), app)
    }

    fn listen(name: String, address: net::SocketAddr, app: SocketAddr) -> Self {
        let listener = UnixListener::bind_addr(&address).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                bridge(client, TcpStream::connect(app).unwrap());
            }
        });
        Self { name, address, ended }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; it has gone, and with it the listener, when nobody is there any more.
        super::eventually("the socket is closed", || UnixStream::connect_addr(&self.address).is_err().then_some(()));
    }
}

/// Passes on what one side says or ends to the other.
pub fn bridge(client: UnixStream, app: TcpStream) {
    let (mut from_client, mut to_client) = (client.try_clone().unwrap(), client);
    let (mut from_app, mut to_app) = (app.try_clone().unwrap(), app);
    thread::spawn(move || {
        copy(&mut from_client, &mut to_app);
        to_app.shutdown(Shutdown::Write).ok();
    });
    thread::spawn(move || {
        copy(&mut from_app, &mut to_client);
        to_client.shutdown(Shutdown::Write).ok();
    });
}

/// Both ways end with an error when the other side is gone.
fn copy(from: &mut impl Read, to: &mut impl Write) {
    io::copy(from, to).ok();
}
