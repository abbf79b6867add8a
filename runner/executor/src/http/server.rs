//! A server: takes connections from its listening socket until it is told to end.

use std::future::{Future, poll_fn};
use std::io;
use std::net;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustix::process::setpriority_process;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use wasmtime::{Engine, Store, UpdateDeadline};

use super::connection;
use super::counts::Counts;
use super::epochs;
use super::handler::Handler;
use super::instances::{Instance, Spares};
use super::settings::Settings;
use super::state::State;
use crate::limiter::{Limiter, Pool};
use crate::network::Gate;
use crate::output::SharedLog;
use crate::payload::Payload;
use crate::report::Report;
use crate::run::HOSTCALL_BYTES;
use crate::{unused, wasi};

/// After an error that more connections would only repeat: no descriptor or no memory is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// While connections wait for their turn, those without a request are looked through so often.
const CROWD_PAUSE: Duration = Duration::from_millis(250);

/// Of the runtime, until a client that waited already has its answer, where its guest waits for nothing: it is taken, its request
/// is read, its guest and then its connection have their turn.
const TURNS: u32 = 5;

/// Ticks of the engine's clock that an instance may compute before others have their turn.
const TURN_TICKS: u64 = 1;

pub struct Server {
    pub(super) handler: Handler,
    pub(super) settings: Settings,
    pub(super) counts: &'static Counts,
    pub(super) log: SharedLog,
    /// One permit for each request that may be worked on.
    pub(super) requests: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Told while there are as many connections as there may be.
    pub(super) crowded: Notify,
    engine: Engine,
    /// What each instance is given.
    payload: Payload,
    folders: Vec<OwnedFd>,
    gate: Arc<Gate>,
    memory: Arc<Pool>,
    pub(super) spares: Arc<Spares>,
    /// True once the server ends; whoever has a receiver is waited for.
    draining: watch::Sender<bool>,
}

/// For a server: on this thread, and at most one more for what can't be done without blocking.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        .on_thread_park(unused::give_back)
        .build()
}

impl Server {
    pub fn new(
        engine: &Engine,
        handler: &Handler,
        payload: Payload,
        folders: Vec<OwnedFd>,
        log: &SharedLog,
        gate: Arc<Gate>,
        counts: &'static Counts,
    ) -> io::Result<Server> {
        let settings = payload
            .http
            .ok_or_else(|| io::Error::other("nothing says what bounds it"))?;
        epochs::tick(engine)?;
        let spares = Spares::new(settings.instance_reuse);
        let mut memory = Pool::new(payload.memory_bytes);
        let those = Arc::downgrade(&spares);
        memory.on_shortage(move || those.upgrade().is_some_and(|those| those.clear()));
        Ok(Server {
            handler: handler.clone(),
            settings,
            counts,
            log: log.clone(),
            requests: Arc::new(Semaphore::new(settings.max_requests)),
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            crowded: Notify::new(),
            engine: engine.clone(),
            memory: Arc::new(memory),
            spares,
            payload,
            folders,
            gate,
            draining: watch::Sender::new(false),
        })
    }

    /// Serve clients of `listener`, which is bound and listens, until `termination` is readable, then finish what was begun.
    /// One byte goes to `ready` when connections are taken. Soon after the beginning this thread gets its `priority`. The report
    /// tells why it could not serve, if so.
    pub fn serve(
        self,
        runtime: &Runtime,
        listener: OwnedFd,
        ready: OwnedFd,
        termination: OwnedFd,
        priority: i32,
    ) -> Report {
        let told = |error: io::Error| format!("could not serve: {error}");
        let served = runtime.block_on(async {
            let listener = net::TcpListener::from(listener);
            listener.set_nonblocking(true).map_err(told)?;
            let listener = TcpListener::from_std(listener).map_err(told)?;
            // SAFETY: the registration owns the descriptor, whose number is nobody else's until both are gone.
            let termination = unsafe { AsyncFd::register_with_interest(termination, Interest::READABLE) }
                .map_err(|error| told(error.into()))?;
            let settled = tokio::spawn(settle(priority));
            self.try_instance().await?;
            let server = Arc::new(self);
            tokio::spawn(tell(ready, settled));
            server.accept(listener, &termination).await;
            Ok(())
        });
        served.map_or_else(Report::failed, |()| Report::exited(0))
    }

    /// Make an instance, which the first request gets: a module that can't have one is better refused now than with each.
    async fn try_instance(&self) -> Result<(), String> {
        let mut instance = self.instance()?;
        let made = timeout(
            self.settings.request_timeout(),
            self.handler.instantiate(&mut instance.store),
        );
        match made.await {
            Ok(Ok(made)) => {
                instance.made = Some(made);
                self.spares.keep(instance);
                Ok(())
            }
            Ok(Err(error)) => Err(match instance.store.data().limiter.refused() {
                Some((wanted, limit)) => format!(
                    "could not run the module: its memories and tables begin with at least {wanted} bytes, and its limit \
                     is {limit}"
                ),
                None => format!("could not run the module: {error:#}"),
            }),
            Err(_) => Err(format!(
                "could not run the module: an instance was not made within {} s",
                self.settings.request_seconds
            )),
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, termination: &AsyncFd<OwnedFd>) {
        while let Some(permit) = unless(termination, self.room_for_one()).await {
            match unless(termination, listener.accept()).await {
                None => break,
                Some(Ok((client, _))) => self.spawn(client, false, Some(permit)),
                // The client was gone before we came to it.
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Some(Err(_)) => sleep(ACCEPT_PAUSE).await,
            }
        }
        self.draining.send_replace(true);
        // Who is in the queue already was promised an answer.
        while let Poll::Ready(Ok((client, _))) = poll_fn(|context| Poll::Ready(listener.poll_accept(context))).await {
            self.spawn(client, true, None);
        }
        drop(listener);
        self.draining.closed().await;
    }

    /// Wait until there may be another connection. Those that have no request make room for it.
    async fn room_for_one(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = self.connections.clone().try_acquire_owned() {
                return permit;
            }
            self.crowded.notify_waiters();
            if let Ok(Ok(permit)) = timeout(CROWD_PAUSE, self.connections.clone().acquire_owned()).await {
                return permit;
            }
        }
    }

    fn spawn(self: &Arc<Self>, client: TcpStream, last: bool, permit: Option<OwnedSemaphorePermit>) {
        let lives = self.lives();
        let served = connection::serve(Arc::clone(self), client, last, permit);
        tokio::spawn(async move {
            served.await;
            drop(lives);
        });
    }

    /// Whether no request is worked on but one.
    pub(super) fn is_at_its_last(&self) -> bool {
        self.requests.available_permits() + 1 == self.settings.max_requests
    }

    /// What the end of the server waits for, as long as somebody has it; it tells when the server ends.
    pub(super) fn lives(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// An instance for one request, perhaps still to be made. Whatever it did before, it has all that a request may use.
    pub(super) fn instance(&self) -> Result<Instance, String> {
        let mut instance = match self.spares.take() {
            Some(instance) => instance,
            None => Instance::new(self.store()?),
        };
        let store = &mut instance.store;
        store.data_mut().limiter.begin();
        let counted = store.set_fuel(self.payload.fuel.unwrap_or(u64::MAX));
        if self.payload.fuel.is_some() && counted.is_err() {
            return Err("the module was compiled without fuel, which its limit wants".into());
        }
        store.set_epoch_deadline(TURN_TICKS);
        Ok(instance)
    }

    fn store(&self) -> Result<Store<State>, String> {
        let wasi = wasi::context(&self.payload, &self.folders, None, &self.log, &self.gate)?.build();
        let mut store = Store::new(&self.engine, State::new(wasi, &self.gate, Limiter::of(&self.memory)));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        // tokio's own way to let others have their turn: it looks for what came from outside, too.
        store.epoch_deadline_callback(|_| {
            Ok(UpdateDeadline::YieldCustom(
                TURN_TICKS,
                Box::pin(tokio::task::yield_now()),
            ))
        });
        Ok(store)
    }

    /// Write a line of ours into the guest's log.
    pub(super) fn tell(&self, text: &str) {
        self.log.tell(text);
    }
}

/// Have the weight that is the module's own, once a client that waited has had its turn: at the weight of an idle one it waits for
/// all others on this machine. A module that computes is interrupted at each tick, so it is that late by some ticks at most.
///
/// # Panics
/// If it can't be had: then the module must not go on.
async fn settle(priority: i32) {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    setpriority_process(None, priority).expect("it could not be made nice");
}

/// Tell that connections are taken, once it has settled: who is told begins to work, perhaps on the same core.
async fn tell(ready: OwnedFd, settled: JoinHandle<()>) {
    let _ = settled.await;
    // Nobody there to be told is no reason not to serve.
    let _ = rustix::io::write(&ready, b"1");
}

/// What a future gives; None if the server is to end before.
async fn unless<F: Future>(termination: &AsyncFd<OwnedFd>, what: F) -> Option<F::Output> {
    let mut what = pin!(what);
    poll_fn(|context| {
        // Never read: once it is told, it stays so.
        if termination.poll_read_ready(context).is_ready() {
            return Poll::Ready(None);
        }
        what.as_mut().poll(context).map(Some)
    })
    .await
}
