//! The messages between the supervisor and this process: `wherry_runner/execution/channel.py` is their description.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

pub const PROTOCOL: u32 = 6;

const MAX_HEADER_BYTES: usize = 64 << 10;
const MAX_DESCRIPTORS: usize = 250;

/// Supervisor → executor.
pub enum Incoming {
    Start(Start),
    Arm(Start),
    Disarm { guest: String },
    Drain { guest: String },
    Stop { guest: String },
}

/// Fork a process that runs a module once.
pub struct Start {
    pub guest: String,
    pub module_key: String,
    pub kind: String,
    pub variant: String,
    pub module: OwnedFd,
    pub descriptors: GuestDescriptors,
}

/// What a guest's own process needs of the descriptors that came with its start.
pub struct GuestDescriptors {
    pub payload: OwnedFd,
    pub report: OwnedFd,
    pub log: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub preopens: Vec<OwnedFd>,
    pub counts: Option<OwnedFd>,
    pub server: Option<ServerDescriptors>,
}

/// What a server's process needs beside.
pub struct ServerDescriptors {
    pub listener: OwnedFd,
    pub ready: OwnedFd,
}

/// Executor → supervisor.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Outgoing<'a> {
    Ready {
        engine: &'a str,
        protocol: u32,
        features: &'a [&'a str],
        writes_logs: bool,
        no_new_privileges: bool,
        landlock_abi: u32,
        seccomp: bool,
    },
    Started {
        guest: &'a str,
        pid: i32,
        took_nanoseconds: u64,
    },
    Disarmed {
        guest: &'a str,
    },
    Refused {
        guest: &'a str,
        message: &'a str,
    },
    Exited {
        guest: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        max_rss_bytes: u64,
        cpu_nanoseconds: u64,
    },
}

/// The connection can't go on.
#[derive(Debug)]
pub enum Fault {
    /// The supervisor broke the protocol.
    Protocol(String),
    Os(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Os(errno)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Protocol(message) => write!(out, "the supervisor broke the protocol: {message}"),
            Fault::Os(errno) => write!(out, "the connection to the supervisor: {errno}"),
        }
    }
}

/// This process's end of the connection.
pub struct Channel {
    socket: OwnedFd,
    header: Vec<u8>,
}

impl Channel {
    pub fn new(socket: OwnedFd) -> Channel {
        Channel {
            socket,
            header: vec![0; MAX_HEADER_BYTES],
        }
    }

    /// Receive one message; None at the end of the connection. Waits for one.
    #[inline(never)] // what it takes is not on a guest's stack
    pub fn receive(&mut self) -> Result<Option<Incoming>, Fault> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [IoSliceMut::new(&mut self.header)];
        let received = recvmsg(&self.socket, &mut header, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(Fault::Protocol("a message was cut".into()));
        }
        decode(&self.header[..received.bytes], descriptors)
            .map(Some)
            .map_err(Fault::Protocol)
    }

    /// Send one message, and a copy of the descriptor under the name `pidfd`. Waits for room.
    pub fn send(&self, message: &Outgoing, pidfd: Option<BorrowedFd>) -> Result<(), Fault> {
        let mut fields = serde_json::to_value(message).map_err(|error| Fault::Protocol(error.to_string()))?;
        let rights = pidfd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() {
            fields["descriptors"] = vec!["pidfd"].into();
            control.push(SendAncillaryMessage::ScmRights(rights));
        }
        let header = fields.to_string();
        sendmsg(
            &self.socket,
            &[IoSlice::new(header.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    r#type: String,
    guest: String,
    #[serde(default)]
    module_key: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    descriptors: Vec<String>,
}

fn decode(data: &[u8], descriptors: Vec<OwnedFd>) -> Result<Incoming, String> {
    let header: Header = serde_json::from_slice(data).map_err(|error| error.to_string())?;
    if header.descriptors.len() != descriptors.len() {
        return Err(format!(
            "{} descriptors came, named {:?}",
            descriptors.len(),
            header.descriptors
        ));
    }
    match header.r#type.as_str() {
        "start" => start(header, descriptors).map(Incoming::Start),
        "arm" => start(header, descriptors).map(Incoming::Arm),
        "disarm" => Ok(Incoming::Disarm { guest: header.guest }),
        "drain" => Ok(Incoming::Drain { guest: header.guest }),
        "stop" => Ok(Incoming::Stop { guest: header.guest }),
        other => Err(format!("unknown message {other:?}")),
    }
}

fn start(header: Header, descriptors: Vec<OwnedFd>) -> Result<Start, String> {
    let (mut module, mut payload, mut report, mut log, mut stdin) = (None, None, None, None, None);
    let (mut listener, mut ready, mut counts) = (None, None, None);
    let mut preopens = Vec::new();
    for (name, descriptor) in header.descriptors.iter().zip(descriptors) {
        let place = match name.as_str() {
            "module" => &mut module,
            "payload" => &mut payload,
            "report" => &mut report,
            "log" => &mut log,
            "stdin" => &mut stdin,
            "listener" => &mut listener,
            "ready" => &mut ready,
            "counts" => &mut counts,
            _ if *name == format!("preopen:{}", preopens.len()) => {
                preopens.push(descriptor);
                continue;
            }
            _ => return Err(format!("start: a descriptor {name:?}")),
        };
        if place.replace(descriptor).is_some() {
            return Err(format!("start: two descriptors {name:?}"));
        }
    }
    let wanted = |place: Option<OwnedFd>, name: &str| place.ok_or(format!("start: no descriptor {name:?}"));
    let server = match listener {
        None => None,
        Some(listener) => Some(ServerDescriptors {
            listener,
            ready: wanted(ready, "ready")?,
        }),
    };
    Ok(Start {
        guest: header.guest,
        module_key: header.module_key,
        kind: header.kind,
        variant: header.variant,
        module: wanted(module, "module")?,
        descriptors: GuestDescriptors {
            payload: wanted(payload, "payload")?,
            report: wanted(report, "report")?,
            log: wanted(log, "log")?,
            stdin,
            preopens,
            counts,
            server,
        },
    })
}
