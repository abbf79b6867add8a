//! Destructors of what belongs to a thread: never registered for the thread that a process began with.
//!
//! That one never ends: a guest's process leaves by `_exit`, and the executor's last deed is to return from `main`. To register one, the
//! C library takes the dynamic loader's lock and counts in what the loader knows of this program: two pages, of each guest its own.
//! (One destructor is a guest's own in any case: of the generator that wasmtime-wasi makes, which the executor must never do.)

use std::ffi::{c_int, c_void};

type Destructor = unsafe extern "C" fn(*mut c_void);
type Register = unsafe extern "C" fn(Destructor, *mut c_void, *mut c_void) -> c_int;

/// Stands before the C library's function of that name, by which Rust's standard library registers.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __cxa_thread_atexit_impl(
    destructor: Destructor,
    object: *mut c_void,
    library: *mut c_void,
) -> c_int {
    if rustix::thread::gettid() == rustix::process::getpid() {
        return 0;
    }
    // SAFETY: the name ends with a zero.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__cxa_thread_atexit_impl".as_ptr()) };
    if next.is_null() {
        return -1; // never run, as on a system that has no such function
    }
    // SAFETY: the C library's function is of this type, and is given what this one was.
    unsafe { std::mem::transmute::<*mut c_void, Register>(next)(destructor, object, library) }
}
