//! wasi:sockets: what wasmtime asks before it uses an address, and where sockets are made.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as CreateTcp;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as CreateUdp;
use wasmtime_wasi::p2::{TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsView};

use super::gate::Gate;
use super::networked::Networked;

const CREATE_TCP: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const CREATE_UDP: &str = "wasi:sockets/udp-create-socket@0.2.12";

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
        SocketAddrUse::UdpSend => gate.allows("UDP", address),
        // Nothing that the guest did: it comes or not.
        SocketAddrUse::UdpReceive => gate.covers(address),
        // Any address and port, as the kernel chooses: what an outgoing socket has anyway.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind if address.ip().is_unspecified() && address.port() == 0 => true,
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
            gate.refuse_serving(&format!("binding {address}"));
            false
        }
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => {
            gate.refuse_serving("listening");
            false
        }
    }
}

pub fn add_to_linker<T: Networked>(linker: &mut Linker<T>) -> Result<()> {
    linker.instance(CREATE_TCP)?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            if !store.data().gate().allows_sockets("a TCP socket") {
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
                if !store.data().gate().allows_sockets("a UDP socket") {
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
    )
}
