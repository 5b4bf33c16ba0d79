//! Visual tokens by the content of their image.

use std::collections::HashMap;

use super::digest::{ImageDigest, Salt};

/// Identifies cached visual tokens.
///
/// The salt is a part of it, as of the prefix cache's keys: if users shared visual tokens, the time to an answer would
/// reveal to one of them that another had asked about the same image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// Whose jobs may use them.
    pub salt: Salt,
    /// The image.
    pub digest: ImageDigest,
}

/// Visual tokens, least recently used first to go.
#[derive(Debug)]
pub struct ImageCache<T> {
    limit: u64,
    bytes: u64,
    entries: HashMap<ImageKey, Entry<T>>,
    clock: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Entry<T> {
    tokens: T,
    bytes: u64,
    /// When it was last used.
    used: u64,
}

impl<T: Clone> ImageCache<T> {
    /// An empty cache of up to `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, entries: HashMap::new(), clock: 0, evicted: 0 }
    }

    /// The bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries that were dropped for want of room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The visual tokens of an image.
    pub fn get(&mut self, key: &ImageKey) -> Option<T> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.tokens.clone())
    }

    /// Stores the visual tokens of an image, which take `bytes`. If they exceed the limit by themselves, it stores
    /// nothing.
    pub fn insert(&mut self, key: ImageKey, tokens: T, bytes: u64) {
        if bytes > self.limit {
            return;
        }
        self.remove(&key);
        while self.bytes + bytes > self.limit {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&oldest);
            self.evicted += 1;
        }
        self.clock += 1;
        self.bytes += bytes;
        self.entries.insert(key, Entry { tokens, bytes, used: self.clock });
    }

    /// Drops all entries.
    pub fn clear(&mut self) {
        self.evicted += self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
    }

    fn remove(&mut self, key: &ImageKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    fn key(colour: u8, salt: u8) -> ImageKey {
        let image = Image::new(1, 1, vec![colour; 3]).expect("an image");
        ImageKey { salt: Salt(vec![salt]), digest: ImageDigest::new(&image, "view") }
    }

    #[test]
    fn the_least_recently_used_are_evicted_by_bytes() {
        let mut cache = ImageCache::new(100);
        for (colour, bytes) in [(0, 30), (1, 30), (2, 40)] {
            cache.insert(key(colour, 0), colour, bytes);
        }
        assert_eq!((cache.bytes(), cache.evicted()), (100, 0));
        assert_eq!(cache.get(&key(0, 0)), Some(0));
        // 50 bytes need the room of the two that were not used since.
        cache.insert(key(3, 0), 3, 50);
        assert_eq!((cache.bytes(), cache.evicted()), (80, 2));
        assert_eq!([0, 1, 2, 3].map(|colour| cache.get(&key(colour, 0)).is_some()), [true, false, false, true]);
        // Too large for the cache: it stays as it is.
        cache.insert(key(4, 0), 4, 101);
        assert_eq!((cache.bytes(), cache.get(&key(4, 0))), (80, None));
        // A second time takes its first place.
        cache.insert(key(3, 0), 5, 60);
        assert_eq!((cache.bytes(), cache.evicted(), cache.get(&key(3, 0))), (90, 2, Some(5)));
        cache.clear();
        assert_eq!((cache.bytes(), cache.get(&key(3, 0))), (0, None));
    }

    #[test]
    fn salts_separate_users() {
        let mut cache = ImageCache::new(100);
        cache.insert(key(0, 1), (), 10);
        assert_eq!([key(0, 1), key(0, 2), key(1, 1)].map(|key| cache.get(&key)), [Some(()), None, None]);
    }

    #[test]
    fn a_cache_without_room_stores_nothing() {
        let mut cache = ImageCache::new(0);
        cache.insert(key(0, 0), (), 1);
        assert_eq!((cache.bytes(), cache.get(&key(0, 0))), (0, None));
    }
}
