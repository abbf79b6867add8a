//! Addresses of names that were asked for, for as long as their name servers say. Pure.
//!
//! Whether a name may be asked for, and each of its addresses used, is decided anew each time: nothing is permitted by being here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// For one more, the one that would be forgotten next is.
const MAX_NAMES: usize = 256;

/// However long a server says: what has moved is found again within a minute.
const MOST: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Cache {
    known: HashMap<String, Known>,
}

struct Known {
    addresses: Vec<IpAddr>,
    until: Instant,
}

impl Cache {
    pub fn get(&self, name: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let known = self.known.get(name)?;
        (now < known.until).then(|| known.addresses.clone())
    }

    /// `seconds`: how long it may be kept; 0: not at all.
    pub fn keep(&mut self, name: &str, addresses: &[IpAddr], seconds: u32, now: Instant) {
        if seconds == 0 {
            return;
        }
        if self.known.len() >= MAX_NAMES && !self.known.contains_key(name) {
            let first = self.known.iter().min_by_key(|(_, known)| known.until);
            if let Some(name) = first.map(|(name, _)| name.clone()) {
                self.known.remove(&name);
            }
        }
        let known = Known {
            addresses: addresses.to_vec(),
            until: now + MOST.min(Duration::from_secs(seconds.into())),
        };
        self.known.insert(name.to_owned(), known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1))];

    #[test]
    fn addresses_are_kept_for_as_long_as_their_server_says_and_a_minute_at_most() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        cache.keep("never.test", &HERE, 0, now);
        cache.keep("short.test", &HERE, 5, now);
        cache.keep("long.test", &HERE, 86_400, now);
        assert_eq!(cache.get("never.test", now), None);
        assert_eq!(cache.get("short.test", after(4)), Some(HERE.to_vec()));
        assert_eq!(cache.get("short.test", after(5)), None);
        assert_eq!(cache.get("long.test", after(59)), Some(HERE.to_vec()));
        assert_eq!(cache.get("long.test", after(60)), None);
    }

    #[test]
    fn there_is_a_bound() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..MAX_NAMES + 10 {
            let later = now + Duration::from_millis(number as u64);
            cache.keep(&format!("{number}.test"), &HERE, 5, later);
        }
        assert_eq!(cache.known.len(), MAX_NAMES);
        assert_eq!(cache.get("9.test", now), None);
        assert!(cache.get("10.test", now).is_some());
    }
}
