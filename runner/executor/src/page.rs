//! A page of memory in which a process counts, and which the supervisor reads whenever it likes
//! (`wherry_runner/http_counts.py` and `network_counts.py` have the same layout).

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::{http, network};

/// Where what the network refused is counted, from the page's beginning.
const NETWORK_AT: usize = 512;

/// Zeros are a valid value of all that is in it.
#[repr(C)]
pub struct Page {
    pub http: http::Counts,
    _unused: [u64; UNUSED],
    pub network: network::Counts,
}

const UNUSED: usize = (NETWORK_AT - size_of::<http::Counts>()) / size_of::<u64>();

impl Page {
    /// Map the page, for as long as this process lives.
    pub fn map(descriptor: OwnedFd) -> io::Result<&'static Page> {
        let fits = fstat(&descriptor)?.st_size as usize >= size_of::<Page>();
        if !fits || !fcntl_get_seals(&descriptor)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("the page of counts is too small, or can shrink"));
        }
        // SAFETY: a new mapping, which no one else in this process knows. It is never unmapped, and the file behind it is
        // large enough and can't shrink, so the reference is valid for ever. A page is aligned for any number, all bytes
        // are valid ones, and who else reads them reads whole numbers.
        unsafe {
            let start = mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &descriptor,
                0,
            )?;
            Ok(&*start.cast::<Page>())
        }
    }

    /// One that nobody else reads.
    pub fn own() -> &'static Page {
        Box::leak(Box::new(Page {
            http: http::Counts::default(),
            _unused: [0; UNUSED],
            network: network::Counts::default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_what_the_supervisor_reads() {
        assert_eq!(std::mem::offset_of!(Page, http), 0);
        assert_eq!(std::mem::offset_of!(Page, network), NETWORK_AT);
        assert_eq!(size_of::<http::Counts>(), 23 * 8);
    }
}
