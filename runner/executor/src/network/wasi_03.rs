//! wasi:sockets 0.3, where it is not what the gate is asked about anyway: the lookup of names, and where sockets are made.

use std::net::IpAddr;
use std::sync::Arc;

use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::ErrorCode as LookupError;
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostUdpSocket, IpAddress, IpAddressFamily,
};
use wasmtime_wasi::sockets::{TcpSocket, UdpSocket, WasiSocketsView};

use super::gate::NoAddresses;
use super::listening::Protocol;
use super::networked::Networked;

const LOOKUP: &str = "wasi:sockets/ip-name-lookup@0.3.0";
const TYPES: &str = "wasi:sockets/types@0.3.0";

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
