//! Random numbers for a guest, from the kernel at each call.
//!
//! A generator in this process's memory would be dangerous in a program that forks: were it ever used before the fork,
//! every guest would draw the same numbers (facts: executor.md, trap 2).

use std::convert::Infallible;

use rand_core::TryRng;
use rustix::rand::{GetRandomFlags, getrandom};

/// getrandom(2).
pub struct Kernel;

impl Kernel {
    pub fn bytes<const N: usize>() -> [u8; N] {
        let mut bytes = [0; N];
        fill(&mut bytes);
        bytes
    }
}

impl TryRng for Kernel {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes(Kernel::bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes(Kernel::bytes()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fill(bytes);
        Ok(())
    }
}

/// Every call gives something, or is interrupted: since Linux 3.17 it does not fail otherwise.
fn fill(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("getrandom: {errno}"),
        }
    }
}
