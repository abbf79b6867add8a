//! What Python calls of the native executor's sandbox.

use std::ffi::c_int;

#[path = "../../../runner/executor/src/sandbox/mod.rs"]
mod sandbox;

use sandbox::{Calls, Confinement, Folder, Reach, Sandbox};

/// What this kernel gives, as one number: the version of Landlock, plus 256 for no_new_privs and 512 for seccomp.
#[unsafe(no_mangle)]
pub extern "C" fn probe() -> c_int {
    let found = sandbox::probe();
    found.landlock_abi as c_int + 256 * c_int::from(found.no_new_privileges) + 512 * c_int::from(found.seccomp)
}

/// Confine the process to what `probe` returned, and to a folder for reading, one for reading and writing, and a log's.
#[unsafe(no_mangle)]
pub extern "C" fn apply(found: c_int, readable: c_int, writable: c_int, log: c_int) -> c_int {
    let folders = [
        Folder {
            descriptor: readable,
            writable: false,
        },
        Folder {
            descriptor: writable,
            writable: true,
        },
    ];
    let reach = Reach {
        folders: &folders,
        log: Some(log),
        ..Reach::default()
    };
    enter(Sandbox::new(confinement(found), &reach, Calls::default()))
}

/// Confine the process to what `probe` returned, and to what a server without folders may do.
#[unsafe(no_mangle)]
pub extern "C" fn apply_as_server(found: c_int) -> c_int {
    let calls = Calls {
        server: true,
        ..Calls::default()
    };
    enter(Sandbox::new(confinement(found), &Reach::default(), calls))
}

/// Confine the process to what `probe` returned, and to what a command may do that may reach one port.
#[unsafe(no_mangle)]
pub extern "C" fn apply_with_network(found: c_int, port: u16) -> c_int {
    let reach = Reach {
        connect: Some(&[(port, port)]),
        ..Reach::default()
    };
    let calls = Calls {
        network: true,
        ..Calls::default()
    };
    enter(Sandbox::new(confinement(found), &reach, calls))
}

/// Confine the process to what `probe` returned, and to what a command may do that may listen on one port.
#[unsafe(no_mangle)]
pub extern "C" fn apply_listening(found: c_int, port: u16) -> c_int {
    let reach = Reach {
        bind: &[port],
        ..Reach::default()
    };
    let calls = Calls {
        listens: true,
        ..Calls::default()
    };
    enter(Sandbox::new(confinement(found), &reach, calls))
}

fn confinement(found: c_int) -> Confinement {
    Confinement {
        no_new_privileges: found & 256 != 0,
        landlock_abi: (found & 255) as u32,
        seccomp: found & 512 != 0,
    }
}

fn enter(sandbox: Result<Sandbox, String>) -> c_int {
    match sandbox.and_then(Sandbox::enter) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            -1
        }
    }
}
