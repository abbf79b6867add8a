//! wasi:sockets: what wasmtime asks before it uses an address, and where sockets are made.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as CreateTcp;
use wasmtime_wasi::p2::bindings::sockets::udp::HostUdpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as CreateUdp;
use wasmtime_wasi::p2::{Network, TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsView};

use super::gate::Gate;
use super::listening::Protocol;
use super::networked::Networked;

const CREATE_TCP: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const CREATE_UDP: &str = "wasi:sockets/udp-create-socket@0.2.12";
const TCP: &str = "wasi:sockets/tcp@0.2.12";
const UDP: &str = "wasi:sockets/udp@0.2.12";

/// Let sockets be made if anything is granted, and have each use of an address decided by the gate. The address that it is
/// asked about is the one that is used, by value: nothing can change it in between.
pub fn configure(builder: &mut WasiCtxBuilder, gate: &Arc<Gate>) {
    if !gate.is_open() {
        return;
    }
    let gate = Arc::clone(gate);
    builder.allow_tcp(true).allow_udp(true).socket_addr_check(
        move |address, purpose| -> Pin<Box<dyn Future<Output = bool> + Send + Sync>> {
            Box::pin(std::future::ready(allows(&gate, address, purpose)))
        },
    );
}

fn allows(gate: &Gate, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    match purpose {
        SocketAddrUse::TcpConnect => gate.allows("TCP", address),
        SocketAddrUse::UdpSend => gate.allows_datagram(address),
        // Nothing that the guest did: it comes or not.
        SocketAddrUse::UdpReceive => gate.takes_datagram(address),
        // Any address and port, as the kernel chooses: what an outgoing socket has anyway.
        SocketAddrUse::TcpBind if is_any(address) => true,
        // Where datagrams are taken from everybody, all that are taken come to a port that is named.
        SocketAddrUse::UdpBind if is_any(address) && !gate.listens(Protocol::Udp) => true,
        SocketAddrUse::TcpBind | SocketAddrUse::TcpListen => gate.allows_binding(Protocol::Tcp, address),
        SocketAddrUse::UdpBind => gate.allows_binding(Protocol::Udp, address),
        // Of a socket that may listen: whoever comes.
        SocketAddrUse::TcpAccept => true,
    }
}

fn is_any(address: SocketAddr) -> bool {
    address.ip().is_unspecified() && address.port() == 0
}

/// Where a TCP socket is to be bound that its guest binds there; None if that is refused. Any port is what an outgoing socket
/// has, and of no use to others.
pub fn tcp_place(gate: &Gate, to: SocketAddr) -> Option<SocketAddr> {
    let at = gate.place(Protocol::Tcp, to);
    (!is_any(at) || gate.reaches() || gate.allows_binding(Protocol::Tcp, at)).then_some(at)
}

/// What `start-bind` is given.
type Binding<S> = (Resource<S>, Resource<Network>, IpSocketAddress);

pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>) -> Result<()> {
    linker.instance(CREATE_TCP)?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            if !store.data().gate().allows_sockets(Protocol::Tcp) {
                return Ok((Err(ErrorCode::AccessDenied),));
            }
            let made: Result<Resource<TcpSocket>, _> =
                CreateTcp::create_tcp_socket(&mut store.data_mut().sockets(), family);
            Ok((match made {
                Ok(socket) => Ok(socket),
                Err(error) => Err(error.downcast()?),
            },))
        },
    )?;
    linker.instance(CREATE_UDP)?.func_wrap_async(
        "create-udp-socket",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                if !store.data().gate().allows_sockets(Protocol::Udp) {
                    return Ok((Err(ErrorCode::AccessDenied),));
                }
                let made: Result<Resource<UdpSocket>, _> =
                    CreateUdp::create_udp_socket(&mut store.data_mut().sockets(), family).await;
                Ok((match made {
                    Ok(socket) => Ok(socket),
                    Err(error) => Err(error.downcast()?),
                },))
            })
        },
    )?;
    linker.instance(TCP)?.func_wrap_async(
        "[method]tcp-socket.start-bind",
        |mut store: StoreContextMut<'_, T>, (socket, network, to): Binding<TcpSocket>| {
            Box::new(async move {
                let Some(at) = tcp_place(store.data().gate(), to.into()) else {
                    return Ok((Err(ErrorCode::AccessDenied),));
                };
                let mut sockets = store.data_mut().sockets();
                Ok((
                    match HostTcpSocket::start_bind(&mut sockets, socket, network, at.into()).await {
                        Ok(()) => Ok(()),
                        Err(error) => Err(error.downcast()?),
                    },
                ))
            })
        },
    )?;
    linker.instance(UDP)?.func_wrap_async(
        "[method]udp-socket.start-bind",
        |mut store: StoreContextMut<'_, T>, (socket, network, to): Binding<UdpSocket>| {
            Box::new(async move {
                let at = store.data().gate().place(Protocol::Udp, to.into());
                let mut sockets = store.data_mut().sockets();
                Ok((
                    match HostUdpSocket::start_bind(&mut sockets, socket, network, at.into()).await {
                        Ok(()) => Ok(()),
                        Err(error) => Err(error.downcast()?),
                    },
                ))
            })
        },
    )
}
