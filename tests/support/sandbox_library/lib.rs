//! What Python calls of the native executor's sandbox.

use std::ffi::c_int;

#[path = "../../../runner/executor/src/sandbox/mod.rs"]
mod sandbox;

use sandbox::{Calls, Confinement, Folder, Sandbox};

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
    enter(Sandbox::new(confinement(found), &folders, Some(log), Calls::Command))
}

/// Confine the process to what `probe` returned, and to what a server without folders may do.
#[unsafe(no_mangle)]
pub extern "C" fn apply_as_server(found: c_int) -> c_int {
    enter(Sandbox::new(confinement(found), &[], None, Calls::Server))
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
