//! Where a guest's first allocations come to lie: side by side, not in holes all over its executor's heap.
//!
//! What was freed while a module was loaded leaves holes between what is kept. A child would fill those first, a few words on each
//! page, and every page that it writes to is its own from then on: 19 of them for what takes 6. So the executor has the holes
//! itself whenever it forks. (The C library gives no other way: it has one arena for a thread, and takes what fits best.)

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::{self, NonNull};

/// The C library's sizes of chunks differ by so much, and are that much larger than what was asked for.
const STEP: usize = 16;
const HEADER: usize = 8;

/// Freed chunks up to this size are kept by size, also those at the heap's end.
const KEPT_BY_SIZE: usize = 1_032;

/// Larger holes are left: a child that needs so much at once fills whole pages.
const LARGEST: usize = 32 << 10;

/// Of the heap's end: a child that finds so much asks the kernel for no more. What the C library notes then is two pages.
const ROOM: usize = 64 << 10;

/// Let the heap end with some room.
pub fn make_room() {
    if let Some(room) = NonNull::new(allocate(ROOM)) {
        free(room, ROOM);
    }
}

/// The heap's holes, held.
#[derive(Default)]
pub struct Holes {
    first: Option<NonNull<Hole>>,
}

/// In the hole itself.
struct Hole {
    next: Option<NonNull<Hole>>,
    bytes: usize,
}

impl Holes {
    /// Hold every hole below the heap's end.
    pub fn take(&mut self) {
        let end = end_of_used();
        for bytes in (0..).map(|steps| LARGEST + HEADER - steps * STEP) {
            if bytes < size_of::<Hole>() {
                return;
            }
            while let Some(hole) = NonNull::new(allocate(bytes)) {
                let below = hole.addr().get() < end;
                if !below && bytes > KEPT_BY_SIZE {
                    free(hole, bytes); // it becomes a part of the heap's end again
                    break;
                }
                // SAFETY: it is large enough, and nobody else's.
                unsafe {
                    hole.write(Hole {
                        next: self.first,
                        bytes,
                    })
                };
                self.first = Some(hole);
                if !below {
                    break;
                }
            }
        }
    }

    /// Give them back, so that they can be used.
    pub fn give_back(&mut self) {
        while let Some(hole) = self.first {
            // SAFETY: written by `take`, and nobody else's.
            let Hole { next, bytes } = unsafe { hole.read() };
            self.first = next;
            free(hole, bytes);
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, align_of::<Hole>()).expect("a small size")
}

fn allocate(bytes: usize) -> *mut Hole {
    // SAFETY: of a size that is not zero.
    unsafe { alloc(layout(bytes)) }.cast()
}

fn free(hole: NonNull<Hole>, bytes: usize) {
    // SAFETY: it was allocated with this layout.
    unsafe { dealloc(hole.as_ptr().cast(), layout(bytes)) }
}

/// Where the part of the heap begins that nothing was allocated of yet.
fn end_of_used() -> usize {
    // SAFETY: both only tell.
    let (end, unused) = unsafe { (libc::sbrk(0), libc::mallinfo2().keepcost) };
    if ptr::eq(end, ptr::without_provenance(usize::MAX)) {
        return 0;
    }
    end.addr().saturating_sub(unused)
}
