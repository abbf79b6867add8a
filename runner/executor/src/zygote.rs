//! The executor's loop: loads modules, forks a process for each guest, tells the supervisor how they end.
//!
//! What must stay true, or children hang or share secrets (facts: executor.md):
//!   - one thread, always; checked after every load;
//!   - it never compiles, never runs a module, never enters tokio;
//!   - it never reads a guest's payload, never builds a guest's context, never draws a random number;
//!   - it holds a guest's descriptors only until it has forked; of an armed start, until a client has come.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use crate::allowance::Allowances;
use crate::channel::{Channel, Fault, Incoming, Outgoing, PROTOCOL, Start};
use crate::guest::{self, Inherited};
use crate::heap::{self, Holes};
use crate::modules::{Loaded, Modules};
use crate::sandbox::Confinement;
use crate::{process, signals};

/// What it can do beyond plain commands.
const FEATURES: [&str; 6] = ["arm", "fuel", "cpu-limit", "http", "network", "working-dir"];
const WASI_03: &str = "wasi-0.3";

pub struct Zygote {
    channel: Channel,
    modules: Modules,
    confinement: Confinement,
    allowances: Allowances,
    /// Readable when a child has ended.
    ends: OwnedFd,
    /// /dev/null
    null: OwnedFd,
    guests: BTreeMap<i32, String>,
    /// Held whenever it forks.
    holes: Holes,
    /// What RLIMIT_DATA counts of this process, and so of a guest's when it begins. Read here, for a read takes a guest 50 µs. What
    /// else is allocated here until the next module is loaded is nothing beside what a guest has for the host's side.
    data_bytes: u64,
    /// Starts that wait for a client of their listening socket.
    armed: Vec<Start>,
}

impl Zygote {
    pub fn new(
        channel: Channel,
        modules: Modules,
        confinement: Confinement,
        allowances: Allowances,
        ends: OwnedFd,
        null: OwnedFd,
    ) -> Zygote {
        Zygote {
            channel,
            modules,
            confinement,
            allowances,
            ends,
            null,
            guests: BTreeMap::new(),
            holes: Holes::default(),
            data_bytes: 0,
            armed: Vec::new(),
        }
    }

    /// Tell the supervisor what this is.
    pub fn introduce(&mut self, engine: &str, wasi_03: bool) -> Result<(), Fault> {
        let features: Vec<_> = FEATURES.into_iter().chain(wasi_03.then_some(WASI_03)).collect();
        let ready = Outgoing::Ready {
            engine,
            protocol: PROTOCOL,
            features: &features,
            writes_logs: true,
            no_new_privileges: self.confinement.no_new_privileges,
            landlock_abi: self.confinement.landlock_abi,
            seccomp: self.confinement.seccomp,
        };
        self.channel.send(&ready, None)
    }

    /// Until the supervisor is gone; the kernel then kills the guests.
    pub fn serve(&mut self) -> Result<(), Fault> {
        loop {
            let woken = self.wait()?;
            if woken.ended {
                self.reap()?;
            }
            if woken.message {
                match self.channel.receive()? {
                    Some(Incoming::Start(start)) => self.start(start, Instant::now())?,
                    Some(Incoming::Arm(start)) => self.arm(start)?,
                    Some(Incoming::Disarm { guest }) => self.disarm(&guest)?,
                    Some(Incoming::Drain { guest }) => self.signal(&guest, Signal::TERM),
                    Some(Incoming::Stop { guest }) => self.signal(&guest, Signal::KILL),
                    None => return Ok(()),
                }
            }
            for guest in woken.called {
                // Unless it was disarmed just now.
                if let Some(start) = self.take_armed(&guest) {
                    self.start(start, woken.at)?;
                }
            }
        }
    }

    /// Until there is something to do.
    fn wait(&self) -> Result<Woken, Fault> {
        let mut sources = Vec::with_capacity(2 + self.armed.len());
        sources.push(PollFd::new(&self.channel, PollFlags::IN));
        sources.push(PollFd::new(&self.ends, PollFlags::IN));
        sources.extend(
            self.armed
                .iter()
                .filter_map(listener)
                .map(|listener| PollFd::new(listener, PollFlags::IN)),
        );
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let at = Instant::now();
        let is_ready = |source: &PollFd| !source.revents().is_empty();
        let called = self.armed.iter().zip(&sources[2..]);
        Ok(Woken {
            at,
            message: is_ready(&sources[0]),
            ended: is_ready(&sources[1]),
            called: called
                .filter(|(_, source)| is_ready(source))
                .map(|(start, _)| start.guest.clone())
                .collect(),
        })
    }

    /// Keep a start until a client comes. What can be done and refused without one is, now.
    fn arm(&mut self, start: Start) -> Result<(), Fault> {
        let loaded = match (listener(&start), start.module.try_clone()) {
            (None, _) => Err("it is to wait for a client, and was given nothing to listen on".into()),
            (_, Err(error)) => Err(format!("no descriptor left: {error}")),
            (Some(_), Ok(module)) => self.load(start.module_key.clone(), start.kind.clone(), &start.variant, module)?,
        };
        match loaded {
            Ok(_) => self.armed.push(start),
            Err(message) => {
                let (guest, message) = (&start.guest, &message);
                self.channel.send(&Outgoing::Refused { guest, message }, None)?;
            }
        }
        Ok(())
    }

    /// Forget an armed start. One that has begun was told of before: then there is nothing to say.
    fn disarm(&mut self, guest: &str) -> Result<(), Fault> {
        match self.take_armed(guest) {
            // Its descriptors are closed before that is told: clients are refused from then on, if nobody else listens.
            Some(start) => drop(start),
            None => return Ok(()),
        }
        self.channel.send(&Outgoing::Disarmed { guest }, None)
    }

    fn take_armed(&mut self, guest: &str) -> Option<Start> {
        let place = self.armed.iter().position(|start| start.guest == guest)?;
        Some(self.armed.remove(place))
    }

    /// A module, loaded. The inner error is for the user.
    fn load(
        &mut self,
        module_key: String,
        kind: String,
        variant: &str,
        module: OwnedFd,
    ) -> Result<Result<Rc<Loaded>, String>, Fault> {
        let loads = self.modules.loads;
        let loaded = self
            .modules
            .get(module_key, kind, variant, module, || self.holes.give_back());
        if self.modules.loads != loads {
            self.holes.take();
            heap::make_room();
            if !process::threads().is_ok_and(|threads| threads == 1) {
                // A child of a process with threads may hang in a lock that nobody will release: better no executor at all.
                return Err(Fault::Protocol("the executor has other threads than one".into()));
            }
            self.data_bytes = process::data_bytes().map_err(|error| Fault::Protocol(format!("no /proc: {error}")))?;
        }
        Ok(loaded)
    }

    /// Fork a guest's process. `asked`: since when somebody waits for it.
    fn start(&mut self, start: Start, asked: Instant) -> Result<(), Fault> {
        let Start {
            guest,
            module_key,
            kind,
            variant,
            module,
            descriptors,
        } = start;
        let loaded = self.load(module_key, kind, &variant, module)?;
        let refuse = |message: &str| self.channel.send(&Outgoing::Refused { guest: &guest, message }, None);
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(message) => return refuse(&message),
        };
        let executor = getpid();
        signals::hold_termination().map_err(no_signals)?;
        let forked = process::fork();
        if !matches!(forked, Ok(None)) {
            signals::release_termination().map_err(no_signals)?;
        }
        let child = match forked {
            Ok(Some(child)) => child,
            Ok(None) => {
                let inherited = Inherited {
                    executor,
                    null: self.null.as_fd(),
                    allowances: &self.allowances,
                    confinement: &self.confinement,
                    data_bytes: self.data_bytes,
                };
                guest::run(&loaded, descriptors, &inherited)
            }
            Err(error) => return refuse(&format!("can't fork: {error}")),
        };
        drop(descriptors);
        // Nobody but this process reaps the child, so its number can't have been given to another by now.
        let pidfd = match pidfd_open(child, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                let _ = kill_process(child, Signal::KILL);
                return refuse(&format!("can't watch its process: {errno}"));
            }
        };
        let pid = child.as_raw_nonzero().get();
        let started = Outgoing::Started {
            guest: &guest,
            pid,
            took_nanoseconds: u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX),
        };
        self.channel.send(&started, Some(pidfd.as_fd()))?;
        self.guests.insert(pid, guest);
        Ok(())
    }

    fn signal(&self, guest: &str, signal: Signal) {
        let pid = self
            .guests
            .iter()
            .find(|(_, name)| *name == guest)
            .and_then(|(&pid, _)| Pid::from_raw(pid));
        if let Some(pid) = pid {
            // It is a child that was not reaped: the number is its own, even if it has ended by itself just now.
            let _ = kill_process(pid, signal);
        }
    }

    /// Tell of every child that has ended.
    fn reap(&mut self) -> Result<(), Fault> {
        signals::drain(&self.ends);
        while let Some(end) = process::reap() {
            let Some(guest) = self.guests.remove(&end.pid) else {
                continue;
            };
            let exited = Outgoing::Exited {
                guest: &guest,
                exit_code: end.how.ok(),
                signal: end.how.err(),
                max_rss_bytes: end.max_rss_bytes,
                cpu_nanoseconds: end.cpu_nanoseconds,
            };
            self.channel.send(&exited, None)?;
        }
        Ok(())
    }
}

fn no_signals(error: io::Error) -> Fault {
    Fault::Protocol(format!("could not keep signals: {error}"))
}

/// Why the executor goes on.
struct Woken {
    at: Instant,
    message: bool,
    ended: bool,
    /// Armed starts that have a client.
    called: Vec<String>,
}

/// What an armed start waits for.
fn listener(start: &Start) -> Option<&OwnedFd> {
    start.descriptors.server.as_ref().map(|server| &server.listener)
}
