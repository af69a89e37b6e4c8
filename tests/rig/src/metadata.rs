//! The ECS task metadata endpoint, version 4, played: it answers with what a test says of the task.

use std::io::{BufRead, BufReader, Result, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The endpoint of one task. Dropping it closes its socket.
pub struct Metadata {
    address: SocketAddr,
    task: Arc<Mutex<Value>>,
    socket: TcpStream,
}

impl Metadata {
    /// Answers on `listener` about `task`, whose first container is the one that asks.
    ///
    /// # Errors
    /// The listener is not bound.
    pub fn serve(listener: TcpListener, task: Value) -> Result<Self> {
        let address = listener.local_addr()?;
        let socket = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        let task = Arc::new(Mutex::new(task));
        let told = Arc::clone(&task);
        thread::spawn(move || {
            // Shut down, the listener accepts nothing more and gives an error.
            while let Ok((socket, _)) = listener.accept() {
                // Whoever asks and goes away again is no fault of the endpoint's.
                let _ = answer(socket, &told);
            }
        });
        Ok(Self { address, task, socket })
    }

    /// What ECS sets as `ECS_CONTAINER_METADATA_URI_V4`.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("http://{}{CONTAINER}", self.address)
    }

    /// Changes what is said at `pointer`, such as `/DesiredStatus`.
    ///
    /// # Panics
    /// The task has nothing there.
    pub fn tell(&self, pointer: &str, value: &str) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        *task.pointer_mut(pointer).expect("a field of the task") = value.into();
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        // A listener that is gone already cannot be shut down, which is as well.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A Fargate task of two containers at `address`: `hawser`, and `app`, of whose health nothing is
/// known yet.
#[must_use]
pub fn task(id: &str, family: &str, address: IpAddr) -> Value {
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": [address] }]);
    json!({
        "Cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/prod",
        "TaskARN": format!("arn:aws:ecs:eu-west-1:111122223333:task/prod/{id}"),
        "Family": family, "Revision": "12", "AvailabilityZone": "eu-west-1b",
        "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
        "Containers": [
            { "Name": "hawser", "Type": "NORMAL", "KnownStatus": "RUNNING", "Networks": networks },
            {
                "Name": "app", "Type": "NORMAL", "KnownStatus": "RUNNING",
                "Health": { "status": "UNKNOWN" }, "Networks": networks,
            },
        ],
    })
}

fn answer(mut socket: TcpStream, task: &Mutex<Value>) -> Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::from("-");
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let task = task.lock().unwrap_or_else(PoisonError::into_inner);
    let path = first.split(' ').nth(1).and_then(|path| path.strip_prefix(CONTAINER));
    let body = match path {
        Some("/task") => task.to_string(),
        Some("") => task["Containers"][0].to_string(),
        _ => return write!(socket, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    };
    write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

const CONTAINER: &str = "/v4/id";
const PATIENCE: Duration = Duration::from_secs(5);
