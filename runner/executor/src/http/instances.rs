//! Instances between two requests: one may serve several, one after the other, where that is wanted.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use wasmtime::Store;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::HostResponseOutparam;

use super::handler::Made;
use super::state;

/// After so long without a request an instance is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// One, its store, and what it has done.
pub struct Instance {
    pub store: Store<state::State>,
    /// None before it is made.
    pub made: Option<Made>,
    /// Requests that it was given.
    pub requests: u32,
}

impl Instance {
    pub fn new(store: Store<state::State>) -> Instance {
        Instance {
            store,
            made: None,
            requests: 0,
        }
    }

    /// Whether it holds on to an answer, which only its end would end.
    fn owes_an_answer(&mut self) -> bool {
        let mut held = self.store.data_mut().table.iter_mut();
        held.any(|each| each.is::<HostOutgoingBody>() || each.is::<HostResponseOutparam>())
    }
}

/// Those that wait for their next request.
pub struct Spares {
    state: Mutex<State>,
    /// That each may be given.
    requests: u32,
    this: Weak<Spares>,
}

#[derive(Default)]
struct State {
    /// Since when each waits. The one used last is the last.
    waiting: Vec<(Instance, Instant)>,
    /// A task looks through them now and then.
    watched: bool,
}

impl Spares {
    /// `requests`: for how many each may serve.
    pub fn new(requests: u32) -> Arc<Spares> {
        Arc::new_cyclic(|this| Spares {
            state: Mutex::default(),
            requests,
            this: Weak::clone(this),
        })
    }

    pub fn take(&self) -> Option<Instance> {
        self.with(|state| state.waiting.pop()).map(|(instance, _)| instance)
    }

    /// Keep one for its next request, if it may have another. Within a runtime.
    pub fn keep(&self, mut instance: Instance) {
        if instance.requests >= self.requests || instance.owes_an_answer() {
            return;
        }
        let watched = self.with(|state| {
            state.waiting.push((instance, Instant::now()));
            std::mem::replace(&mut state.watched, true)
        });
        if !watched {
            tokio::spawn(look_through(Weak::clone(&self.this)));
        }
    }

    /// Let go of all; whether there were any.
    pub fn clear(&self) -> bool {
        // They go when nobody holds the lock any more.
        !self.with(|state| std::mem::take(&mut state.waiting)).is_empty()
    }

    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Let go of those that waited for too long, until none is left.
async fn look_through(spares: Weak<Spares>) {
    loop {
        sleep(PATIENCE).await;
        let Some(spares) = spares.upgrade() else { return };
        let (gone, watched) = spares.with(|state| {
            let late = state.waiting.partition_point(|(_, since)| since.elapsed() >= PATIENCE);
            let gone: Vec<_> = state.waiting.drain(..late).collect();
            state.watched = !state.waiting.is_empty();
            (gone, state.watched)
        });
        drop(gone);
        if !watched {
            return;
        }
    }
}
