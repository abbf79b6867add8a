//! wasi:sockets 0.3, where it is not what the gate is asked about anyway: the lookup of names, and where sockets are made and bound.

use std::net::IpAddr;
use std::sync::Arc;

use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::ErrorCode as LookupError;
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostUdpSocket, IpAddress, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::sockets::{TcpSocket, UdpSocket, WasiSocketsView};

use super::gate::NoAddresses;
use super::listening::Protocol;
use super::networked::Networked;
use super::sockets;

const LOOKUP: &str = "wasi:sockets/ip-name-lookup@0.3.0";
const TYPES: &str = "wasi:sockets/types@0.3.0";

/// What `bind` is given.
type Binding<S> = (Resource<S>, IpSocketAddress);

pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>) -> Result<()> {
    linker
        .instance(LOOKUP)?
        .func_wrap_concurrent("resolve-addresses", |accessor, (name,): (String,)| {
            Box::pin(async move {
                let gate = accessor.with(|mut access| Arc::clone(access.data_mut().gate()));
                let found = gate.look_up(&name).await.map_err(code);
                Ok((found.map(|found| found.into_iter().map(IpAddr::into).collect::<Vec<IpAddress>>()),))
            })
        })?;
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[static]tcp-socket.create",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            if !store.data().gate().allows_sockets(Protocol::Tcp) {
                return Ok((Err(ErrorCode::AccessDenied),));
            }
            let made: Result<Resource<TcpSocket>, _> = HostTcpSocket::create(&mut store.data_mut().sockets(), family);
            Ok((match made {
                Ok(socket) => Ok(socket),
                Err(error) => Err(error.downcast()?),
            },))
        },
    )?;
    types.func_wrap_async(
        "[method]tcp-socket.bind",
        |mut store: StoreContextMut<'_, T>, (socket, to): Binding<TcpSocket>| {
            Box::new(async move {
                let Some(at) = sockets::tcp_place(store.data().gate(), to.into()) else {
                    return Ok((Err(ErrorCode::AccessDenied),));
                };
                let mut sockets = store.data_mut().sockets();
                Ok((match HostTcpSocket::bind(&mut sockets, socket, at.into()).await {
                    Ok(()) => Ok(()),
                    Err(error) => Err(error.downcast()?),
                },))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]udp-socket.bind",
        |mut store: StoreContextMut<'_, T>, (socket, to): Binding<UdpSocket>| {
            Box::new(async move {
                let at = store.data().gate().place(Protocol::Udp, to.into());
                let mut sockets = store.data_mut().sockets();
                Ok((match HostUdpSocket::bind(&mut sockets, socket, at.into()).await {
                    Ok(()) => Ok(()),
                    Err(error) => Err(error.downcast()?),
                },))
            })
        },
    )?;
    types.func_wrap_async(
        "[static]udp-socket.create",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                if !store.data().gate().allows_sockets(Protocol::Udp) {
                    return Ok((Err(ErrorCode::AccessDenied),));
                }
                let made: Result<Resource<UdpSocket>, _> =
                    HostUdpSocket::create(&mut store.data_mut().sockets(), family).await;
                Ok((match made {
                    Ok(socket) => Ok(socket),
                    Err(error) => Err(error.downcast()?),
                },))
            })
        },
    )
}

fn code(reason: NoAddresses) -> LookupError {
    match reason {
        NoAddresses::Refused | NoAddresses::AddressesRefused => LookupError::AccessDenied,
        NoAddresses::NotFound => LookupError::NameUnresolvable,
        NoAddresses::NoAnswer => LookupError::TemporaryResolverFailure,
    }
}
