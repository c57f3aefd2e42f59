//! An allocator that counts, for tests of what something weighs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

/// The allocator of the system, which counts for each thread what it holds.
struct Counting;

fn count(bytes: usize, sign: isize) {
    // A thread that ends frees what it had when its counter is gone; nobody asks for it then.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + sign * bytes as isize));
}

// SAFETY: everything is handed to the allocator of the system as it came.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread holds; below zero where it has freed what another made.
pub fn allocated() -> isize {
    ALLOCATED.with(Cell::get)
}
