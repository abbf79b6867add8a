//! The executor's loop: loads modules, forks a process for each guest, tells the supervisor how they end.
//!
//! What must stay true, or children hang or share secrets (facts: executor.md):
//!   - one thread, always; checked after every load;
//!   - it never compiles, never runs a module, never enters tokio;
//!   - it never reads a guest's payload, never builds a guest's context, never draws a random number;
//!   - it holds a guest's descriptors only until it has forked.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use crate::allowance::Allowances;
use crate::channel::{Channel, Fault, Incoming, Outgoing, PROTOCOL, Start};
use crate::guest::{self, Inherited};
use crate::heap::Holes;
use crate::modules::Modules;
use crate::sandbox::Confinement;
use crate::{process, signals};

/// What it can do beyond plain commands.
const FEATURES: [&str; 5] = ["fuel", "cpu-limit", "http", "network", "working-dir"];
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
        }
    }

    /// Until the supervisor is gone; the kernel then kills the guests.
    pub fn serve(&mut self, engine: &str, wasi_03: bool) -> Result<(), Fault> {
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
        self.channel.send(&ready, None)?;
        loop {
            let mut sources = [
                PollFd::new(&self.channel, PollFlags::IN),
                PollFd::new(&self.ends, PollFlags::IN),
            ];
            match poll(&mut sources, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [message, ended] = sources.map(|source| !source.revents().is_empty());
            if ended {
                self.reap()?;
            }
            if message {
                match self.channel.receive()? {
                    Some(Incoming::Start(start)) => self.start(start)?,
                    Some(Incoming::Drain { guest }) => self.signal(&guest, Signal::TERM),
                    Some(Incoming::Stop { guest }) => self.signal(&guest, Signal::KILL),
                    None => return Ok(()),
                }
            }
        }
    }

    fn start(&mut self, start: Start) -> Result<(), Fault> {
        let Start {
            guest,
            module_key,
            kind,
            variant,
            module,
            descriptors,
        } = start;
        let refuse = |message: &str| self.channel.send(&Outgoing::Refused { guest: &guest, message }, None);
        let loads = self.modules.loads;
        let loaded = self
            .modules
            .get(module_key, kind, &variant, module, || self.holes.give_back());
        if self.modules.loads != loads {
            self.holes.take();
        }
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(message) => return refuse(&message),
        };
        if self.modules.loads != loads && !process::threads().is_ok_and(|threads| threads == 1) {
            // A child of a process with threads may hang in a lock that nobody will release: better no executor at all.
            return Err(Fault::Protocol("the executor has other threads than one".into()));
        }
        let executor = getpid();
        let child = match process::fork() {
            Ok(Some(child)) => child,
            Ok(None) => {
                let inherited = Inherited {
                    executor,
                    null: self.null.as_fd(),
                    allowances: &self.allowances,
                    confinement: &self.confinement,
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
        self.channel
            .send(&Outgoing::Started { guest: &guest, pid }, Some(pidfd.as_fd()))?;
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
