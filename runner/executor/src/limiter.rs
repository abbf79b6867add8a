//! What a module's memories and tables may hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wasmtime::{Error, ResourceLimiter, Result};

/// Of one store. Each reserves address space or bookkeeping on the host: more than any real module has.
const MAX_INSTANCES: usize = 1_000;
const MAX_MEMORIES: usize = 100;
const MAX_TABLES: usize = 1_000;

/// A table's element, whatever it refers to.
const ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// One limit over what several stores use together.
pub struct Pool {
    limit: u64,
    used: AtomicU64,
    make_room: Option<MakeRoom>,
}

/// Lets go of stores that are kept for later; whether there were any.
type MakeRoom = Box<dyn Fn() -> bool + Send + Sync>;

impl Pool {
    /// `limit` in bytes; none: only the address space limits it.
    pub fn new(limit: Option<u64>) -> Pool {
        Pool {
            limit: limit.unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            make_room: None,
        }
    }

    /// What is done before a growth is refused.
    pub fn on_shortage(&mut self, make_room: impl Fn() -> bool + Send + Sync + 'static) {
        self.make_room = Some(Box::new(make_room));
    }

    /// Whether there is so much left; the error: all that would be in use.
    fn fits(&self, bytes: u64) -> std::result::Result<(), u64> {
        let wanted = self.used.load(Relaxed).saturating_add(bytes);
        if wanted > self.limit { Err(wanted) } else { Ok(()) }
    }
}

/// One limit over the sum of all memories (those of collected objects too) and tables of a store, and of those that share
/// its pool.
pub struct Limiter {
    pool: Arc<Pool>,
    /// Of the pool, by this store.
    used: u64,
    /// Allowed last and perhaps not yet there.
    growing: u64,
    /// All that would have been in use, had the first refused growth been allowed.
    refused: Option<u64>,
}

impl Limiter {
    /// `limit` in bytes; none: only the address space limits it.
    pub fn new(limit: Option<u64>) -> Limiter {
        Limiter::of(&Arc::new(Pool::new(limit)))
    }

    /// One that takes from a pool, and gives back what it took at its end.
    pub fn of(pool: &Arc<Pool>) -> Limiter {
        Limiter {
            pool: Arc::clone(pool),
            used: 0,
            growing: 0,
            refused: None,
        }
    }

    /// From here on another's growths are meant.
    pub fn begin(&mut self) {
        self.refused = None;
    }

    /// What a refused growth would have made of the sum, and what it may be; none if all were allowed.
    pub fn refused(&self) -> Option<(u64, u64)> {
        self.refused.map(|wanted| (wanted, self.pool.limit))
    }

    fn grow(&mut self, bytes: u64) -> bool {
        self.growing = 0;
        let mut fits = self.pool.fits(bytes);
        if fits.is_err() && self.pool.make_room.as_ref().is_some_and(|make_room| make_room()) {
            fits = self.pool.fits(bytes);
        }
        if let Err(wanted) = fits {
            self.refused.get_or_insert(wanted);
            return false;
        }
        self.take(bytes);
        true
    }

    /// The growth that was allowed last did not happen: the system had no memory for it.
    fn failed(&mut self) {
        if self.growing > 0 {
            self.refused.get_or_insert(self.pool.used.load(Relaxed));
            self.used -= self.growing;
            self.pool.used.fetch_sub(self.growing, Relaxed);
            self.growing = 0;
        }
    }

    /// All stores of a pool are one thread's: nobody else takes anything between the question and this.
    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.pool.used.fetch_add(bytes, Relaxed);
        self.growing = bytes;
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.pool.used.fetch_sub(self.used, Relaxed);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        // Beyond a maximum of its own the growth fails, whatever is said here; that is no question of the limit.
        let beyond = maximum.is_some_and(|maximum| desired > maximum);
        Ok(self.grow(if beyond { 0 } else { (desired - current) as u64 }))
    }

    fn memory_grow_failed(&mut self, _error: Error) -> Result<()> {
        self.failed();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        let beyond = maximum.is_some_and(|maximum| desired > maximum);
        Ok(self.grow(if beyond {
            0
        } else {
            ((desired - current) as u64).saturating_mul(ELEMENT_BYTES)
        }))
    }

    fn table_grow_failed(&mut self, _error: Error) -> Result<()> {
        self.failed();
        Ok(())
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    #[test]
    fn memories_and_tables_are_counted_together() {
        let mut limiter = Limiter::new(Some(2 * PAGE as u64));
        assert!(limiter.memory_growing(0, PAGE, None).unwrap());
        assert!(limiter.table_growing(0, 8_192, None).unwrap()); // 64 KiB
        assert_eq!(limiter.refused(), None);
        assert!(!limiter.table_growing(8_192, 8_193, None).unwrap());
        assert!(!limiter.memory_growing(PAGE, 2 * PAGE, None).unwrap());
        assert_eq!(limiter.refused(), Some((2 * PAGE as u64 + 8, 2 * PAGE as u64)));
    }

    #[test]
    fn stores_that_share_a_pool_are_counted_together_and_give_back_what_they_took() {
        let pool = Arc::new(Pool::new(Some(3 * PAGE as u64)));
        let (mut one, mut other) = (Limiter::of(&pool), Limiter::of(&pool));
        assert!(one.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(!other.memory_growing(0, 2 * PAGE, None).unwrap());
        assert_eq!(other.refused(), Some((4 * PAGE as u64, 3 * PAGE as u64)));
        drop(one);
        assert!(other.memory_growing(0, 3 * PAGE, None).unwrap());
    }

    #[test]
    fn what_is_kept_for_later_makes_room() {
        let kept = Arc::new(std::sync::Mutex::new(Vec::<Limiter>::new()));
        let those = Arc::clone(&kept);
        let mut pool = Pool::new(Some(2 * PAGE as u64));
        pool.on_shortage(move || !std::mem::take(&mut *those.lock().unwrap()).is_empty());
        let pool = Arc::new(pool);
        let mut one = Limiter::of(&pool);
        assert!(one.memory_growing(0, 2 * PAGE, None).unwrap());
        kept.lock().unwrap().push(one);
        let mut other = Limiter::of(&pool);
        assert!(other.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(!other.memory_growing(2 * PAGE, 3 * PAGE, None).unwrap());
    }

    #[test]
    fn what_failed_is_not_counted() {
        let mut limiter = Limiter::new(Some(2 * PAGE as u64));
        assert!(limiter.memory_growing(0, 2 * PAGE, None).unwrap());
        limiter.memory_grow_failed(Error::msg("no memory")).unwrap();
        assert!(limiter.refused().is_some());
        assert!(limiter.memory_growing(0, 2 * PAGE, None).unwrap());
    }

    #[test]
    fn a_modules_own_maximum_is_no_refusal() {
        let mut limiter = Limiter::new(Some(PAGE as u64));
        assert!(limiter.memory_growing(PAGE, 3 * PAGE, Some(2 * PAGE)).unwrap());
        limiter.memory_grow_failed(Error::msg("beyond its maximum")).unwrap();
        assert_eq!(limiter.refused(), None);
        assert!(limiter.memory_growing(0, PAGE, None).unwrap());
    }
}
