//! A link between two processes of this host: a Unix socket, or TCP on loopback.

use super::{Broken, Link, Received};
use std::{
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// How long a peer may be silent. A guest that is being moved is not; a peer that hangs must not hang this one.
const SILENCE: Duration = Duration::from_secs(60);
const PIECE: usize = 1 << 16;
/// How often a link that broke is tried again, and how long after.
const TRIES: u32 = 200;
const BETWEEN: Duration = Duration::from_millis(50);

/// Tries until the peer is there, or for so long that it will not come any more.
fn patiently(mut attempt: impl FnMut() -> io::Result<Socket>) -> io::Result<Option<Socket>> {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NotFound, WouldBlock};
    for _ in 0..TRIES {
        match attempt() {
            Ok(socket) => return Ok(Some(socket)),
            Err(error) if matches!(error.kind(), ConnectionRefused | Interrupted | NotFound | WouldBlock) => {
            }
            Err(error) => return Err(error),
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(None)
}

/// `unix:PATH`, or `tcp:PORT` on loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither unix:PATH nor tcp:PORT");
        match text.split_once(':').ok_or_else(wrong)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            ("tcp", port) => port.parse().map(Self::Tcp).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
        }
    }
}

/// Waits for one peer.
pub enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub fn new(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Unix(path) => Self::Unix(UnixListener::bind(path)?, path.clone()),
            Address::Tcp(port) => Self::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?),
        })
    }

    /// Where it listens: the port that it was given, for port 0.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?.port()),
        })
    }

    pub fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener, _) => Socket::unix(listener.accept()?.0),
            Self::Tcp(listener) => Socket::tcp(listener.accept()?.0),
        }
    }

    /// A peer that has been here comes again; `None`: it does not.
    pub fn accept_again(&self) -> io::Result<Option<Socket>> {
        self.block(false)?;
        let accepted = patiently(|| self.accept());
        self.block(true)?;
        let accepted = accepted?;
        accepted.iter().try_for_each(|socket| socket.block())?;
        Ok(accepted)
    }

    fn block(&self, blocks: bool) -> io::Result<()> {
        match self {
            Self::Unix(listener, _) => listener.set_nonblocking(!blocks),
            Self::Tcp(listener) => listener.set_nonblocking(!blocks),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Its name is of no use to anybody any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One end of a connection.
pub enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::unix(UnixStream::connect(path)?),
            Address::Tcp(port) => {
                Self::tcp(TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))?)
            }
        }
    }

    /// Goes to where a peer was reached before; `None`: it is not there any more.
    pub fn connect_again(address: &Address) -> io::Result<Option<Self>> {
        patiently(|| Self::connect(address))
    }

    fn block(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(false),
            Self::Tcp(stream) => stream.set_nonblocking(false),
        }
    }

    fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self::Unix(stream))
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Link for Socket {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write(&bytes[written..]) {
                Ok(0) => return Err(Broken { written, why: "the peer takes nothing more".to_owned() }),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken { written, why: error.to_string() }),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Received, Broken> {
        let mut bytes = vec![0; PIECE];
        loop {
            match self.read(&mut bytes) {
                Ok(0) => return Ok(Received::Closed),
                Ok(count) => {
                    bytes.truncate(count);
                    return Ok(Received::Bytes(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::Closed),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let why = format!("the peer has said nothing for {} s", SILENCE.as_secs());
                    return Err(Broken { written: 0, why });
                }
                Err(error) => return Err(Broken { written: 0, why: error.to_string() }),
            }
        }
    }

    fn close(&mut self) {
        // Whoever is gone already need not hear of it.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/tmp/a", "tcp:4444"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in ["", "unix:", "tcp:lots", "udp:1", "/tmp/a"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_go_both_ways_over_tcp() {
        let listener = Listener::new(&Address::Tcp(0)).unwrap();
        let mut one = Socket::connect(&listener.address().unwrap()).unwrap();
        let mut other = listener.accept().unwrap();
        one.send(b"there").unwrap();
        assert_eq!(other.receive(), Ok(Received::Bytes(b"there".to_vec())));
        other.send(b"back").unwrap();
        assert_eq!(one.receive(), Ok(Received::Bytes(b"back".to_vec())));
        other.close();
        assert_eq!(one.receive(), Ok(Received::Closed));
    }
}
