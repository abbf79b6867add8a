//! wasi:sockets/ip-name-lookup 0.2, by the gate.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::vec;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, subscribe};

use super::gate::NoAddresses;
use super::networked::Networked;

const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

type Found = Result<Vec<IpAddr>, NoAddresses>;

/// A `resolve-address-stream`: a lookup that goes on, and then what it gave.
enum Addresses {
    LookingUp(LookingUp),
    Found(Result<vec::IntoIter<IpAddr>, ErrorCode>),
}

/// Ends with who waits for it.
struct LookingUp(JoinHandle<Found>);

impl Drop for LookingUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Addresses {
    fn poll(&mut self, context: &mut Context) -> Poll<&mut Result<vec::IntoIter<IpAddr>, ErrorCode>> {
        if let Addresses::LookingUp(looking) = self {
            let Poll::Ready(found) = Pin::new(&mut looking.0).poll(context) else {
                return Poll::Pending;
            };
            // A task of ours is neither ended by others nor does it panic.
            let found = found.unwrap_or(Err(NoAddresses::NoAnswer));
            *self = Addresses::Found(found.map(Vec::into_iter).map_err(code));
        }
        match self {
            Addresses::Found(found) => Poll::Ready(found),
            Addresses::LookingUp(_) => Poll::Pending,
        }
    }
}

#[async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        poll_fn(|context| self.poll(context).map(|_| ())).await;
    }
}

fn code(reason: NoAddresses) -> ErrorCode {
    match reason {
        // As wasmtime denies it.
        NoAddresses::Refused | NoAddresses::AddressesRefused => ErrorCode::PermanentResolverFailure,
        NoAddresses::NotFound => ErrorCode::NameUnresolvable,
        NoAddresses::NoAnswer => ErrorCode::TemporaryResolverFailure,
    }
}

pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>) -> Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<Addresses>(),
        |mut store: StoreContextMut<'_, T>, number| {
            let table = store.data_mut().ctx().table;
            table.delete(Resource::<Addresses>::new_own(number))?;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, T>, (network, name): (Resource<Network>, String)| {
            store.data_mut().ctx().table.get(&network)?;
            let gate = Arc::clone(store.data().gate());
            let looking = tokio::spawn(async move { gate.look_up(&name).await });
            let stream = store
                .data_mut()
                .ctx()
                .table
                .push(Addresses::LookingUp(LookingUp(looking)))?;
            Ok((Ok::<_, ErrorCode>(stream),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, T>, (stream,): (Resource<Addresses>,)| {
            let stream = store.data_mut().ctx().table.get_mut(&stream)?;
            let next = match stream.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => Err(ErrorCode::WouldBlock),
                Poll::Ready(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
                Poll::Ready(Err(code)) => Err(*code),
            };
            Ok((next,))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, T>, (stream,): (Resource<Addresses>,)| -> Result<(Resource<DynPollable>,)> {
            Ok((subscribe(store.data_mut().ctx().table, stream)?,))
        },
    )
}
